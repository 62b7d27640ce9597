"""Figures over pixels, and per-region overlap (PRO): the rate of each annotated defect above a threshold, every defect
alike.

All are exact: every distinct score is a threshold, and no threshold is ever looped over. The functions take all maps at
once; :class:`flawsmith.metrics.accumulate.PixelMetrics` takes them one by one and goes through the same counts and the
same sums. The variants computed by released codes, whose published figures are not comparable, are in
:mod:`flawsmith.metrics.legacy_pro`.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021 (definition, limit 0.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawsmith.metrics.ranking import (
    Curve,
    FloatArray,
    average_precision_from_counts,
    defined,
    next_float,
    partial_auc_weight,
    rates,
)

ScoreArray = npt.NDArray[np.float32]
RegionArray = npt.NDArray[np.int32]
CountArray = npt.NDArray[np.unsignedinteger]

FPR_LIMIT = 0.3
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_PIECE = 2**20
_SEGMENT = 2**16


@dataclass(frozen=True)
class FalsePositiveCounts:
    """Negatives, the defect-free pixels, counted against the distinct scores of flawed pixels.

    Attributes:
        scores: (distinct,) distinct scores of flawed pixels, ascending.
        above: (distinct,) negatives scoring more.
        at_least: (distinct,) negatives scoring as much or more.
        total: number of negatives.
    """

    scores: ScoreArray
    above: CountArray
    at_least: CountArray
    total: int


def count_negatives(distinct: ScoreArray, negatives: Iterable[ScoreArray], total: int) -> FalsePositiveCounts:
    """Count negatives against the flawed pixels' distinct scores.

    Args:
        distinct: (distinct,) ascending, without repetition.
        negatives: blocks of scores, sorted ascending in each block; read once, one at a time.
        total: number of scores in all blocks together.

    Returns:
        The exact counts. Memory: 8 bytes a distinct score below 2^32 negatives, 16 from there.
    """
    dtype = _count_type(total)
    # Steps of two staircases over `distinct`: negatives below v, and those below or equal to v. The extra entry takes
    # the negatives that lie above every flawed score.
    below: CountArray = np.zeros(len(distinct) + 1, dtype=dtype)
    up_to: CountArray = np.zeros(len(distinct) + 1, dtype=dtype)
    for block in negatives:
        # The smaller side is looked up in the larger; both are sorted, so neighbouring lookups share cache lines.
        if block.size == 0:
            continue
        if len(distinct) <= block.size:
            left = places(block, distinct)
            below[:-1] += np.diff(left, prepend=0).astype(dtype)
            up_to[:-1] += np.diff(_past_ties(block, distinct, left), prepend=0).astype(dtype)
        else:
            left = places(distinct, block)
            for steps, first in ((below, _past_ties(distinct, block, left)), (up_to, left)):
                # `first` ascends, so equal entries stand together and run lengths count them.
                starts = np.flatnonzero(np.append(True, first[1:] != first[:-1]))
                steps[first[starts]] += np.diff(starts, append=len(first)).astype(dtype)
    for steps in (below, up_to):
        np.cumsum(steps, out=steps)
        np.subtract(dtype(total), steps, out=steps)
    return FalsePositiveCounts(scores=distinct, above=up_to[:-1], at_least=below[:-1], total=total)


def merged(parts: Sequence[FalsePositiveCounts]) -> FalsePositiveCounts:
    """The counts of several groups of images together.

    Args:
        parts: at least one, all counted against the same distinct scores.
    """
    total = sum(part.total for part in parts)
    above, at_least = (np.zeros(len(parts[0].scores), dtype=_count_type(total)) for _ in range(2))
    for part in parts:
        above += part.above
        at_least += part.at_least
    return FalsePositiveCounts(scores=parts[0].scores, above=above, at_least=at_least, total=total)


def _count_type(total: int) -> type[np.uint32] | type[np.uint64]:
    return np.uint32 if total < 2**32 else np.uint64


def places(ascending: ScoreArray, keys: ScoreArray) -> npt.NDArray[np.intp]:
    """``searchsorted(ascending, keys, "left")`` for ascending keys, nearly twice as fast in long arrays.

    The array is searched segment by segment, each small enough to stay in the processor's cache.
    """
    if len(ascending) <= 4 * _SEGMENT:
        return np.searchsorted(ascending, keys, side="left")
    left = np.empty(len(keys), dtype=np.intp)
    # Keys up to and with a segment's last score find their place inside that segment.
    inner = np.searchsorted(keys, ascending[_SEGMENT - 1 : -1 : _SEGMENT], side="right")
    bounds = [0, *inner.tolist(), len(keys)]
    for segment, (first, end) in enumerate(pairwise(bounds)):
        start = segment * _SEGMENT
        left[first:end] = np.searchsorted(ascending[start : start + _SEGMENT], keys[first:end], side="left")
        left[first:end] += start
    return left


def _past_ties(ascending: ScoreArray, keys: ScoreArray, left: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """``searchsorted(ascending, keys, "right")``, searching anew only where a key stands in the array."""
    inside = left < len(ascending)
    tied = np.flatnonzero(inside)[ascending[left[inside]] == keys[inside]]
    right = left.copy()
    right[tied] = np.searchsorted(ascending, keys[tied], side="right")
    return right


def partial_auc_weights(counts: FalsePositiveCounts, limit: float = 1.0) -> FloatArray:
    """:func:`flawsmith.metrics.ranking.partial_auc_weight` of one flawed pixel of each distinct score.

    A region's or an image's area is the mean of these weights over its pixels.

    Args:
        counts: the counts.
        limit: largest false-positive rate, in (0, 1]; the curve is interpolated linearly there.

    Returns:
        (distinct,) areas in [0, 1], divided by the limit; NaN without negatives.

    Raises:
        ValueError: a limit outside (0, 1].
    """
    weights = np.full(len(counts.scores), np.nan)
    for piece in _pieces(max(len(weights), 1)):  # once for none, so that the limit is always checked
        with np.errstate(invalid="ignore"):
            start, end = counts.above[piece] / counts.total, counts.at_least[piece] / counts.total
        weights[piece] = partial_auc_weight(start, end, limit)
    return weights


def _pieces(length: int) -> Iterator[slice]:
    """Slices that cover an array, last one first: long arrays are worked through with short temporaries."""
    for start in reversed(range(0, length, _PIECE)):
        yield slice(start, min(start + _PIECE, length))


def pixel_average_precision_from_counts(counts: FalsePositiveCounts, number: npt.NDArray[np.integer]) -> float | None:
    """Step-wise average precision over pixels.

    Args:
        counts: the counts.
        number: (distinct,) number of flawed pixels of each distinct score.

    Returns:
        In [0, 1]; None without flawed pixels.
    """
    n_positives = int(number.sum())
    if n_positives == 0:
        return None
    positives_above, area = 0, 0.0
    for piece in _pieces(len(number)):
        positives = positives_above + np.cumsum(number[piece][::-1], dtype=np.int64)[::-1]
        area += float(average_precision_from_counts(number[piece], positives, counts.at_least[piece], n_positives))
        positives_above = int(positives[0])
    return area


def pixel_auroc_from_counts(counts: FalsePositiveCounts, number: npt.NDArray[np.integer]) -> float | None:
    """Area under the ROC curve over pixels, ties counting half: the mean weight over flawed pixels.

    Args:
        counts: the counts.
        number: (distinct,) number of flawed pixels of each distinct score.

    Returns:
        In [0, 1]; None without flawed pixels or without negatives.
    """
    n_positives = int(number.sum())
    return defined(np.dot(partial_auc_weights(counts), number / n_positives)) if n_positives else None


def region_areas(
    positives: Sequence[ScoreArray], regions: Sequence[RegionArray], counts: FalsePositiveCounts, limit: float
) -> FloatArray:
    """Each region's area under its overlap against the false-positive rate; AUPRO is their mean.

    Args:
        positives: scores of each image's flawed pixels, ascending.
        regions: region of each of them within its image, from 0.
        counts: negatives counted against the distinct scores of all of them.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        (regions,) areas in [0, 1], divided by the limit, images in order; NaN without negatives.

    Raises:
        ValueError: a limit outside (0, 1].
    """
    weights = partial_auc_weights(counts, limit)
    areas = [np.empty(0)]
    for scores, region in zip(positives, regions, strict=True):
        if scores.size:
            areas.append(np.bincount(region, weights[places(counts.scores, scores)]) / np.bincount(region))
    return np.concatenate(areas)


def mean_area(areas: FloatArray) -> float | None:
    """The mean over regions, as of :func:`region_areas`; None without regions or without negatives."""
    return defined(areas.mean()) if areas.size else None


def label_regions(mask: npt.NDArray[np.bool_]) -> tuple[RegionArray, int]:
    """Number the 8-connected regions of a mask.

    Args:
        mask: (height, width), True where flawed.

    Returns:
        (height, width) labels, 0 where defect-free, and the number of regions.

    >>> label_regions(np.eye(3, dtype=bool))[1]
    1
    """
    labels, number = ndimage.label(mask, structure=EIGHT_CONNECTED)
    return labels.astype(np.int32, copy=False), int(number)


def split_map(
    anomaly_map: npt.ArrayLike, mask: npt.ArrayLike | None, excluded: npt.NDArray[np.bool_] | None = None
) -> tuple[ScoreArray, RegionArray, ScoreArray]:
    """Part a map into the scores of its flawed regions and of its defect-free pixels.

    Args:
        anomaly_map: (height, width) scores, computed with as float32; -inf marks pixels that were not
            inspected.
        mask: (height, width), non-zero where flawed; None for an image without a flaw.
        excluded: (height, width), True where a pixel takes no part, neither as flawed nor as defect-free; a region
            is what is left of it. None: all take part.

    Returns:
        (flawed,) scores of the flawed pixels, ascending; (flawed,) the region of each within the image, from 0; and
        (negatives,) scores of the defect-free pixels, ascending.

    Raises:
        ValueError: a NaN score, or shapes that differ.

    >>> split_map([[0.5, 0.25, 1.0]], [[1, 0, 1]])[1]
    array([0, 1], dtype=int32)
    """
    scores = np.asarray(anomaly_map, dtype=np.float32)
    if scores.ndim != 2:
        raise ValueError(f"an anomaly map has two axes, not the shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("the anomaly map holds NaN: pixels that were not inspected are marked by -inf")
    flags = None if mask is None else np.asarray(mask) != 0
    if flags is not None and flags.shape != scores.shape:
        raise ValueError(f"mask {flags.shape} and anomaly map {scores.shape} differ in size")
    if flags is not None and excluded is not None:
        flags = flags & ~excluded
    if flags is None or not flags.any():
        negatives = scores if excluded is None else scores[~excluded]
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32), np.sort(negatives, axis=None)
    labels, _ = label_regions(flags)
    positives = scores[flags]
    order = np.argsort(positives)
    negatives = scores[~flags if excluded is None else ~(flags | excluded)]
    return positives[order], labels[flags][order] - 1, np.sort(negatives)


Maps = Sequence[npt.ArrayLike]
Masks = Sequence[npt.ArrayLike | None]


def _counted(
    maps: Maps, masks: Masks
) -> tuple[list[ScoreArray], list[RegionArray], FalsePositiveCounts, npt.NDArray[np.intp]]:
    """Scores and regions of all flawed pixels, the counts, and the number of flawed pixels of each distinct score."""
    parts = [split_map(anomaly_map, mask) for anomaly_map, mask in zip(maps, masks, strict=True)]
    positives = [part[0] for part in parts]
    distinct, number = distinct_scores(positives)
    counts = count_negatives(distinct, (part[2] for part in parts), sum(part[2].size for part in parts))
    return positives, [part[1] for part in parts], counts, number


def distinct_scores(blocks: Sequence[ScoreArray]) -> tuple[ScoreArray, npt.NDArray[np.intp]]:
    """(distinct,) the scores of all blocks, ascending and without repetition, and how often each stands there."""
    return np.unique(np.concatenate([np.empty(0, dtype=np.float32), *blocks]), return_counts=True)


def pixel_auroc(maps: Maps, masks: Masks) -> float | None:
    """Exact area under the ROC curve over the pixels of all images, ties counting half.

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        masks: masks of the same sizes, non-zero where flawed; None for images without a flaw.

    Returns:
        In [0, 1], or None without a flawed or without a defect-free pixel.

    Raises:
        ValueError: a NaN score, or sizes that differ.

    >>> pixel_auroc([[[0.1, 0.4], [0.35, 0.8]]], [[[0, 0], [1, 1]]])
    0.75
    """
    _, _, counts, number = _counted(maps, masks)
    return pixel_auroc_from_counts(counts, number)


def pixel_average_precision(maps: Maps, masks: Masks) -> float | None:
    """Exact step-wise average precision over the pixels of all images (scikit-learn's definition).

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        masks: masks of the same sizes, non-zero where flawed; None for images without a flaw.

    Returns:
        In [0, 1], or None without a flawed pixel.

    Raises:
        ValueError: a NaN score, or sizes that differ.

    >>> round(pixel_average_precision([[[0.1, 0.4], [0.35, 0.8]]], [[[0, 0], [1, 1]]]), 3)
    0.833
    """
    _, _, counts, number = _counted(maps, masks)
    return pixel_average_precision_from_counts(counts, number)


def aupro(maps: Maps, masks: Masks, *, limit: float = FPR_LIMIT) -> float | None:
    """Exact area under the per-region-overlap curve.

    Regions are the 8-connected components of the masks, pooled over all images; every distinct score is a
    threshold (``score >= t``); the false-positive rate counts the defect-free pixels of all images, good ones
    included; the curve is interpolated linearly at the limit and its area divided by the limit. A perfect map
    gives 1, a constant one half the limit, an inverted one 0.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        masks: masks of the same sizes, non-zero where flawed; None for images without a flaw.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        In [0, 1], or None without a region or without a defect-free pixel.

    Raises:
        ValueError: a NaN score, sizes that differ, or a limit outside (0, 1].

    >>> aupro([[[0.9, 0.8, 0.1]], [[0.2, 0.3, 0.1]]], [[[1, 1, 0]], None])
    1.0
    >>> round(aupro([[[0.5, 0.5, 0.5]]], [[[1, 0, 0]]]), 3)
    0.15
    """
    positives, regions, counts, _ = _counted(maps, masks)
    return mean_area(region_areas(positives, regions, counts, limit))


def pro_curve(maps: Maps, masks: Masks) -> Curve | None:
    """The exact curve whose area :func:`aupro` gives.

    Args:
        maps: (height, width) maps, taken as float32, sizes may differ between images; -inf where not inspected.
        masks: masks of the same sizes, non-zero where flawed; None for images without a flaw.

    Returns:
        False-positive rates and mean overlaps at and just above every distinct score of a flawed pixel, with the ends
        (0, 0) and (1, 1); None without a region or without a defect-free pixel.

    Raises:
        ValueError: a NaN score, or sizes that differ.

    >>> pro_curve([[[0.9, 0.3, 0.3]]], [[[1, 1, 0]]]).y.tolist()
    [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """
    positives, regions, counts, _ = _counted(maps, masks)
    sizes = [np.bincount(region) for region in regions]
    steps = [1.0 / size[region] for size, region in zip(sizes, regions, strict=True)]
    return overlap_curve(positives, steps, counts, sum(len(size) for size in sizes))


def overlap_curve(
    positives: Sequence[ScoreArray], steps: Sequence[npt.ArrayLike], counts: FalsePositiveCounts, n_regions: int
) -> Curve | None:
    """A curve of mean overlap, with two points a distinct score, just above it and at it; where pixels tie, a ramp.

    Args:
        positives: blocks of scores, each ascending.
        steps: what each of these scores adds to the overlap of its region; a number for all of a block, or one each.
        counts: negatives counted against the distinct scores of all of them.
        n_regions: number of regions.

    Returns:
        The curve, or None without a region or without negatives.
    """
    if not n_regions or not counts.total:
        return None
    step = np.zeros(len(counts.scores))
    for scores, height in zip(positives, steps, strict=True):
        np.add.at(step, places(counts.scores, scores), np.asarray(height) / n_regions)
    reached = np.cumsum(step[::-1])[::-1]
    return Curve(
        x=rates(_descending(counts.above, counts.at_least), counts.total),
        # Rounding may leave sums of rates a little outside.
        y=np.clip(rates(_descending(reached - step, reached), 1.0), 0.0, 1.0),
        thresholds=np.concatenate([[np.inf], _descending(next_float(counts.scores), counts.scores), [-np.inf]]),
    )


def _descending(above: npt.NDArray[np.number], at: npt.NDArray[np.number]) -> FloatArray:
    """Values just above and at ascending scores, interleaved from the highest score down."""
    return np.stack([above, at], axis=1).astype(np.float64)[::-1].ravel()
