"""Exact sPRO over any number of maps in bounded memory, for each kind of defect and pooled.

Stands beside :mod:`flawsmith.metrics.accumulate`, whose defect-free scores it counts with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.accumulate import PixelMetrics, spread
from flawsmith.metrics.pro import ScoreArray, joined
from flawsmith.metrics.ranking import next_float
from flawsmith.metrics.spro import SPRO_LIMIT, Channel, distinct_scores, highest_scores, mean_area

QUANTILES = 512
CHANNEL_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class SaturatedBins:
    """Cumulative counts of every image at a common grid of thresholds, for curves and bootstrap intervals.

    The thresholds are quantiles of the scores that saturated overlap depends on, every channel alike, each with the
    next larger number beside it, so that ties stay apart. With few distinct scores the grid holds them all.

    Attributes:
        thresholds: (thresholds,) descending.
        free: (images, thresholds) defect-free pixels scoring at least the threshold.
        overlap: (images, thresholds) sum over the image's channels of their saturated overlap at the threshold.
        n_free: (images,) defect-free pixels.
        n_channels: (images,) channels that mark a pixel.
    """

    thresholds: ScoreArray
    free: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]
    n_free: npt.NDArray[np.int64]
    n_channels: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SaturatedFigures:
    """Areas under the sPRO curve of all maps added; None where undefined.

    Attributes:
        pooled: over the channels of all images, in [0, 1].
        by_defect: by defect type, in [0, 1]: over its channels, against its own images and the good ones, as the
            benchmark keeps logical and structural anomalies apart.
        bins: counts for curves and bootstrap intervals.
        limit: largest false-positive rate.
    """

    pooled: float | None
    by_defect: Mapping[str, float | None]
    bins: SaturatedBins
    limit: float


class SaturatedOverlap:
    """Gathers the channels of maps that a :class:`PixelMetrics` takes in, whose defect-free scores it counts with.

    Of a channel only the highest scores are kept: 4 bytes a pixel of its saturation area, and while computing about 50.

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
            bins=self._bins(self._grid(distinct)),
            limit=limit,
        )

    def _grid(self, distinct: ScoreArray) -> ScoreArray:
        """Descending thresholds of the bins; see :class:`SaturatedBins`."""
        picked = distinct
        if len(distinct) > QUANTILES:
            each = np.sort(np.concatenate([spread(scores, CHANNEL_SAMPLES) for scores in self._highest]))
            picked = spread(each, QUANTILES)
        return np.unique(np.concatenate([picked, next_float(picked)]))[::-1]

    def _bins(self, thresholds: ScoreArray) -> SaturatedBins:
        free = self._pixels.free_at_least(thresholds)
        overlap = np.zeros_like(free)
        for image, scores in zip(self._image, self._highest, strict=True):
            overlap[image] += 1.0 - np.searchsorted(scores, thresholds, side="left") / scores.size
        return SaturatedBins(
            thresholds=thresholds,
            free=free,
            overlap=overlap,
            n_free=self._pixels.n_free,
            n_channels=np.bincount(self._image, minlength=len(free)),
        )
