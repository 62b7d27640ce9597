"""Saturated per-region overlap (sPRO): how much of each annotated defect must be found is said by the data set.

Where a part is missing, any pixel of a large area may rightly be marked, so the overlap of a defect is full once its
saturation area is reached: ``min(|marked pixels of the defect| / saturation area, 1)``. A defect is a channel of its
own, channels of one image may overlap, and defect-free is what no channel marks.

Pixels beyond the saturation area add nothing, so of a channel only its highest scores count, as many as the saturation
area has pixels. The area under the curve is exact: it is the mean, over channels and then over those pixels, of what
one pixel adds to it. Every distinct score is a threshold (``score >= t``), and none is looped over.

Source: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
Localization", IJCV 2022 (definition, limit 0.05); MVTec LOCO AD's evaluation kit (saturation areas, ``score > t``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.pro import (
    FalsePositiveCounts,
    ScoreArray,
    count_negatives,
    distinct_scores,
    mean_area,
    overlap_curve,
    partial_auc_weights,
    places,
    split_map,
)
from flawsmith.metrics.ranking import Curve, FloatArray

SPRO_LIMIT = 0.05


def saturation_area(defect_area: int, threshold: float, *, relative: bool) -> int:
    """How many pixels of a defect must be marked for its overlap to be full, as MVTec LOCO AD's kit computes it.

    It may be 0 for a tiny defect; whoever divides by it takes 1 instead.

    Args:
        defect_area: pixels of the defect.
        threshold: share of the defect in [0, 1] if relative, else pixels, at least 0.
        relative: which of the two.

    Returns:
        Whole pixels, at most the defect's area.

    Raises:
        ValueError: a threshold out of its range.

    >>> saturation_area(50, 0.5, relative=True), saturation_area(50, 60, relative=False)
    (25, 50)
    """
    if not 0.0 <= threshold <= (1.0 if relative else float("inf")):
        raise ValueError(f"a saturation threshold is a share in [0, 1] or a number of pixels, not {threshold}")
    return int(threshold * defect_area) if relative else int(min(threshold, defect_area))


@dataclass(frozen=True, eq=False)
class Channel:
    """One annotated defect of one image.

    Attributes:
        mask: (height, width), True where the defect is.
        threshold: saturation threshold, as in :func:`saturation_area`.
        relative: whether the threshold is a share of the defect's area.

    >>> channel = Channel(np.ones((4, 5), dtype=bool), threshold=0.5, relative=True)
    >>> channel.area, channel.saturation_area
    (20, 10)
    """

    mask: npt.NDArray[np.bool_]
    threshold: float
    relative: bool

    @property
    def area(self) -> int:
        """Pixels of the defect."""
        return int(np.count_nonzero(self.mask))

    @property
    def saturation_area(self) -> int:
        """Pixels at which the overlap is full; see :func:`saturation_area`."""
        return saturation_area(self.area, self.threshold, relative=self.relative)


def highest_scores(anomaly_map: npt.ArrayLike, channel: Channel) -> ScoreArray:
    """The scores of a defect that its saturated overlap depends on.

    Args:
        anomaly_map: (height, width) scores, taken as float32.
        channel: the defect, of the map's size.

    Returns:
        (saturation area,) highest scores in the defect, ascending; at least one, but none of an empty defect.

    Raises:
        ValueError: sizes that differ.
    """
    scores = np.asarray(anomaly_map, dtype=np.float32)
    if channel.mask.shape != scores.shape:
        raise ValueError(f"channel {channel.mask.shape} and anomaly map {scores.shape} differ in size")
    inside = scores[np.asarray(channel.mask, dtype=bool)]
    if not inside.size:
        return inside
    left = inside.size - max(1, channel.saturation_area)
    return np.sort(np.partition(inside, left)[left:])


def union_of(channels: Sequence[Channel]) -> npt.NDArray[np.bool_] | None:
    """(height, width) True where any channel marks a defect; None without channels."""
    return np.logical_or.reduce([channel.mask for channel in channels]) if channels else None


def channel_areas(highest: Sequence[ScoreArray], counts: FalsePositiveCounts, limit: float) -> FloatArray:
    """Each channel's own area under its saturated overlap against the false-positive rate; AU-sPRO is their mean.

    Args:
        highest: scores of each channel, as of :func:`highest_scores`, none empty.
        counts: negatives counted against distinct scores that hold all of these.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        (channels,) areas in [0, 1], divided by the limit; NaN without defect-free pixels.

    Raises:
        ValueError: a limit outside (0, 1].
    """
    weights = partial_auc_weights(counts, limit)
    return np.array([weights[places(counts.scores, scores)].mean() for scores in highest])


def au_spro(
    maps: Sequence[npt.ArrayLike], channels: Sequence[Sequence[Channel]], *, limit: float = SPRO_LIMIT
) -> float | None:
    """Exact area under the curve of the mean saturated overlap over all channels of all images.

    The false-positive rate counts the pixels that no channel of their image marks, good images included; the curve is
    interpolated linearly at the limit and its area divided by the limit. A perfect map gives 1, a constant one half the
    limit, an inverted one 0.

    Source: Bergmann et al., "Beyond Dents and Scratches", IJCV 2022, section 5.

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        channels: the defects of each image, of its map's size; none for a good image.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        In [0, 1], or None without a marked pixel or without a defect-free one.

    Raises:
        ValueError: a NaN score, sizes that differ, or a limit outside (0, 1].

    >>> part = np.array([[0.9, 0.1, 0.2, 0.3]])
    >>> missing = Channel(np.array([[True, True, False, False]]), threshold=1, relative=False)
    >>> au_spro([part], [[missing]])
    1.0
    """
    highest, counts = _counted(maps, channels)
    return mean_area(channel_areas(highest, counts, limit))


def spro_curve(maps: Sequence[npt.ArrayLike], channels: Sequence[Sequence[Channel]]) -> Curve | None:
    """The exact curve whose area :func:`au_spro` gives.

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        channels: the defects of each image, of its map's size; none for a good image.

    Returns:
        False-positive rates and mean saturated overlaps with the ends (0, 0) and (1, 1), or None without a marked pixel
        or without a defect-free one.

    Raises:
        ValueError: a NaN score, or sizes that differ.

    >>> missing = Channel(np.array([[True, True, False]]), threshold=1, relative=False)
    >>> spro_curve([[[0.9, 0.1, 0.3]]], [[missing]]).y.tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    highest, counts = _counted(maps, channels)
    return overlap_curve(highest, [1.0 / scores.size for scores in highest], counts, len(highest))


def spro_at(
    maps: Sequence[npt.ArrayLike], channels: Sequence[Sequence[Channel]], thresholds: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Mean saturated overlap and false-positive rate where pixels scoring more than a threshold are marked.

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        channels: the defects of each image, of its map's size; none for a good image.
        thresholds: (thresholds,) in any order; compared in float64.

    Returns:
        (thresholds,) overlaps and (thresholds,) rates, in [0, 1]; NaN without a marked or a defect-free pixel.

    Raises:
        ValueError: a NaN score, or sizes that differ.

    >>> missing = Channel(np.array([[True, True, False]]), threshold=1, relative=False)
    >>> overlap, rate = spro_at([[[0.9, 0.1, 0.3]]], [[missing]], [0.5, 0.2])
    >>> overlap.tolist(), rate.tolist()
    ([1.0, 1.0], [0.0, 1.0])
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    highest, negatives = _split(maps, channels)
    overlaps = [1.0 - np.searchsorted(scores, levels, side="right") / scores.size for scores in highest]
    alarms = np.zeros(levels.shape)
    for scores in negatives:
        alarms += scores.size - np.searchsorted(scores, levels, side="right")
    total = sum(scores.size for scores in negatives)
    undefined = np.full(levels.shape, np.nan)
    return np.mean(overlaps, axis=0) if overlaps else undefined, alarms / total if total else undefined


def _split(
    maps: Sequence[npt.ArrayLike], channels: Sequence[Sequence[Channel]]
) -> tuple[list[ScoreArray], list[ScoreArray]]:
    """The highest scores of every channel that is not empty, and every image's defect-free scores, ascending."""
    highest: list[ScoreArray] = []
    negatives: list[ScoreArray] = []
    for anomaly_map, defects in zip(maps, channels, strict=True):
        negatives.append(split_map(anomaly_map, union_of(defects))[2])
        highest += [highest_scores(anomaly_map, channel) for channel in defects]
    return [scores for scores in highest if scores.size], negatives


def _counted(
    maps: Sequence[npt.ArrayLike], channels: Sequence[Sequence[Channel]]
) -> tuple[list[ScoreArray], FalsePositiveCounts]:
    highest, negatives = _split(maps, channels)
    distinct, _ = distinct_scores(highest)
    return highest, count_negatives(distinct, negatives, sum(scores.size for scores in negatives))
