"""Exact sPRO over any number of maps in bounded memory, for each kind of defect and pooled.

Stands beside :mod:`flawsmith.evaluation.pooling`, whose defect-free scores it counts with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from flawsmith.evaluation.counting import ScoreArray, joined
from flawsmith.evaluation.curves import Curve
from flawsmith.evaluation.pooling import PixelMetrics
from flawsmith.evaluation.saturated import SPRO_LIMIT, Channel, curve_of, distinct_scores, highest_scores, mean_area

CURVE_POINTS = 1000


@dataclass(frozen=True, eq=False)
class SaturatedFigures:
    """Areas under the sPRO curve of all maps added; None where undefined.

    Attributes:
        pooled: over the channels of all images, in [0, 1].
        by_defect: by defect type, in [0, 1]: over its channels, against its own images and the good ones, as the
            benchmark keeps logical and structural anomalies apart.
        curve: the pooled curve, thinned for a plot.
        limit: largest false-positive rate.
    """

    pooled: float | None
    by_defect: Mapping[str, float | None]
    curve: Curve | None
    limit: float


class SaturatedOverlap:
    """Gathers the channels of maps that a :class:`PixelMetrics` takes in, whose defect-free scores it counts with.

    Of a channel only the highest scores are kept: 4 bytes a pixel of its saturation area, and while computing about 50.

    >>> import numpy as np
    >>> channel = Channel(np.array([[False, True]]), threshold=1.0, relative=True)
    >>> with PixelMetrics() as pixels:
    ...     overlap = SaturatedOverlap(pixels)
    ...     overlap.add(pixels.add([[0.1, 0.9]], channel.mask), [[0.1, 0.9]], [channel])
    ...     overlap.compute(["logical_anomalies"]).pooled
    1.0

    Args:
        pixels: takes in every map, good ones too, with the union of its channels as mask.
    """

    def __init__(self, pixels: PixelMetrics) -> None:
        self._pixels = pixels
        self._highest: list[ScoreArray] = []
        self._image: list[int] = []

    def add(self, image: int, anomaly_map: npt.ArrayLike, channels: Sequence[Channel]) -> None:
        """Take in the defects of one image; nothing of the arrays is kept.

        Args:
            image: the image's index in ``pixels``.
            anomaly_map: (height, width) scores, taken as float32; -inf where not inspected.
            channels: its defects, of the map's size; empty ones are passed over.

        Raises:
            ValueError: sizes that differ.
        """
        for channel in channels:
            scores = highest_scores(anomaly_map, channel)
            if scores.size:
                self._highest.append(scores)
                self._image.append(image)

    def compute(self, defects: Sequence[str | None], *, limit: float = SPRO_LIMIT) -> SaturatedFigures | None:
        """The figures of all maps added so far; None where no channel marks a pixel.

        Args:
            defects: (images,) the defect type of each image of ``pixels``, None for good ones.
            limit: largest false-positive rate, in (0, 1].
        """
        if not self._highest:
            return None
        distinct = distinct_scores(self._highest)
        counts = {
            kind: self._pixels.count_free(distinct, [image for image, own in enumerate(defects) if own == kind])
            for kind in (None, *sorted({own for own in defects if own is not None}))
        }
        everything = joined(list(counts.values()))
        return SaturatedFigures(
            pooled=mean_area(self._highest, everything, limit),
            by_defect={
                kind: mean_area(
                    [scores for scores, at in zip(self._highest, self._image, strict=True) if defects[at] == kind],
                    joined([counts[None], own]),
                    limit,
                )
                for kind, own in counts.items()
                if kind is not None
            },
            curve=curve_of(self._highest, everything, CURVE_POINTS) if everything.total else None,
            limit=limit,
        )
