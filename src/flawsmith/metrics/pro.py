"""Per-region overlap (PRO): the share of each annotated defect above a threshold, every defect alike.

The area under the PRO curve (AUPRO) is exact here: every distinct score is a threshold, and no threshold is
ever looped over. The variants computed by released codes, whose published figures are not comparable, are in
:mod:`flawsmith.metrics.released_pro`.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021 (definition, limit 0.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawsmith.metrics.ranking import Curve, FloatArray, next_float, shares

ScoreArray = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.unsignedinteger]

_PIECE = 2**20
_SEGMENT = 2**16


@dataclass(frozen=True)
class FreeCounts:
    """Defect-free pixels counted against the distinct scores of flawed pixels.

    Attributes:
        scores: (distinct,) distinct scores of flawed pixels, ascending.
        above: (distinct,) defect-free pixels scoring more.
        at_least: (distinct,) defect-free pixels scoring as much or more.
        total: number of defect-free pixels.
    """

    scores: ScoreArray
    above: CountArray
    at_least: CountArray
    total: int


def count_free(distinct: ScoreArray, free: Iterable[ScoreArray], total: int) -> FreeCounts:
    """Count defect-free pixels against the flawed pixels' distinct scores.

    Args:
        distinct: (distinct,) ascending, without repetition.
        free: blocks of defect-free scores, sorted ascending in each block; read once, one at a time.
        total: number of defect-free scores in all blocks together.

    Returns:
        The exact counts. Memory: 8 bytes a distinct score below 2^32 defect-free pixels, 16 from there.
    """
    dtype = _count_type(total)
    # Steps of two staircases over `distinct`: defect-free scores below v, and those below or equal to v. The
    # extra entry takes the defect-free scores that lie above every flawed one.
    below: CountArray = np.zeros(len(distinct) + 1, dtype=dtype)
    up_to: CountArray = np.zeros(len(distinct) + 1, dtype=dtype)
    for block in free:
        # The smaller side is looked up in the larger; both are sorted, so neighbouring lookups share cache
        # lines.
        if block.size == 0:
            continue
        if len(distinct) <= block.size:
            left = _find(block, distinct)
            below[:-1] += np.diff(left, prepend=0).astype(dtype)
            up_to[:-1] += np.diff(_past_ties(block, distinct, left), prepend=0).astype(dtype)
        else:
            left = _find(distinct, block)
            for steps, first in ((below, _past_ties(distinct, block, left)), (up_to, left)):
                # `first` ascends, so equal entries stand together and run lengths count them.
                starts = np.flatnonzero(np.append(True, first[1:] != first[:-1]))
                steps[first[starts]] += np.diff(starts, append=len(first)).astype(dtype)
    for steps in (below, up_to):
        np.cumsum(steps, out=steps)
        np.subtract(dtype(total), steps, out=steps)
    return FreeCounts(scores=distinct, above=up_to[:-1], at_least=below[:-1], total=total)


def joined(parts: Sequence[FreeCounts]) -> FreeCounts:
    """The counts of several groups of images together.

    Args:
        parts: at least one, all counted against the same distinct scores.
    """
    total = sum(part.total for part in parts)
    above, at_least = (np.zeros(len(parts[0].scores), dtype=_count_type(total)) for _ in range(2))
    for part in parts:
        above += part.above
        at_least += part.at_least
    return FreeCounts(scores=parts[0].scores, above=above, at_least=at_least, total=total)


def _count_type(total: int) -> type[np.uint32] | type[np.uint64]:
    return np.uint32 if total < 2**32 else np.uint64


def _find(ascending: ScoreArray, keys: ScoreArray) -> npt.NDArray[np.intp]:
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
    """``searchsorted(ascending, keys, "right")``, searching anew only where a key is found in the array."""
    inside = left < len(ascending)
    tied = np.flatnonzero(inside)[ascending[left[inside]] == keys[inside]]
    right = left.copy()
    right[tied] = np.searchsorted(ascending, keys[tied], side="right")
    return right


def gain_up_to(counts: FreeCounts, limit: float = 1.0) -> FloatArray:
    """What one flawed pixel of each distinct score adds to the area under a recall or overlap curve.

    A pixel scoring v lifts the curve from the false-positive rate above(v) / total, reaches its full share at
    at_least(v) / total (a straight ramp: the trapezoid rule over tied scores) and keeps it. Areas under such
    curves are sums over pixels, so a region's or an image's area is the mean of these gains over its pixels.

    Args:
        counts: the counts.
        limit: largest false-positive rate, in (0, 1]; the curve is interpolated linearly there.

    Returns:
        (distinct,) areas in [0, 1], divided by the limit; NaN without defect-free pixels.
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"the limit of the false-positive rate must lie in (0, 1], not {limit}")
    gain = np.full(len(counts.scores), np.nan)
    if counts.total == 0:
        return gain
    for piece in _pieces(len(gain)):
        start = counts.above[piece] / counts.total
        end = counts.at_least[piece] / counts.total
        width = end - start
        inside = np.clip(limit - start, 0.0, width)
        # On the ramp the mean height is half of what is reached; beyond its end the height is 1.
        reached = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
        gain[piece] = (inside * reached / 2 + np.clip(limit - end, 0.0, None)) / limit
    return gain


def _pieces(length: int) -> Iterator[slice]:
    """Slices that cover an array, last one first: long arrays are worked through with short temporaries."""
    for start in reversed(range(0, length, _PIECE)):
        yield slice(start, min(start + _PIECE, length))


def average_precision(counts: FreeCounts, flawed: npt.NDArray[np.integer]) -> float:
    """Step-wise average precision over pixels (scikit-learn's definition).

    Args:
        counts: the counts.
        flawed: (distinct,) number of flawed pixels of each distinct score.

    Returns:
        In [0, 1]; NaN without flawed pixels.
    """
    number = int(flawed.sum())
    if number == 0:
        return float("nan")
    hits_above, total = 0, 0.0
    for piece in _pieces(len(flawed)):
        own = flawed[piece]
        hits = hits_above + np.cumsum(own[::-1], dtype=np.int64)[::-1]
        total += float((own / number * (hits / (hits + counts.at_least[piece]))).sum())
        hits_above = int(hits[0])
    return total


def recall_area(counts: FreeCounts, flawed: npt.NDArray[np.integer]) -> float:
    """Area under the ROC curve over pixels, ties counting half; arguments as in :func:`average_precision`.

    Returns:
        In [0, 1]; NaN without flawed or without defect-free pixels.
    """
    number = int(flawed.sum())
    return float(np.dot(gain_up_to(counts), flawed / number)) if number else float("nan")


FPR_LIMIT = 0.3
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class SplitMap:
    """One anomaly map, its pixels parted into flawed and defect-free.

    Attributes:
        flawed: (flawed,) scores of the flawed pixels, ascending.
        region: (flawed,) index of each flawed pixel's region within the image, from 0.
        regions: number of 8-connected regions.
        free: (free,) scores of the defect-free pixels, ascending.
    """

    flawed: ScoreArray
    region: npt.NDArray[np.int32]
    regions: int
    free: ScoreArray


def label_regions(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """Number the 8-connected regions of a mask.

    Args:
        mask: (height, width), True where flawed.

    Returns:
        (height, width) labels, 0 where defect-free, and the number of regions.
    """
    labels, number = ndimage.label(mask, structure=EIGHT_CONNECTED)
    return labels.astype(np.int32, copy=False), int(number)


def split_map(
    anomaly_map: npt.ArrayLike, mask: npt.ArrayLike | None, excluded: npt.NDArray[np.bool_] | None = None
) -> SplitMap:
    """Part a map into the scores of its flawed regions and of its defect-free pixels.

    Args:
        anomaly_map: (height, width) scores, computed with as float32; -inf marks pixels that were not
            inspected.
        mask: (height, width), non-zero where flawed; None for an image without a flaw.
        excluded: (height, width), True where a pixel takes no part, neither as flawed nor as defect-free; a region
            is what is left of it. None: all take part.

    Raises:
        ValueError: a NaN score, or shapes that differ.
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
        none = np.empty(0, dtype=np.float32)
        free = scores if excluded is None else scores[~excluded]
        return SplitMap(none, np.empty(0, dtype=np.int32), 0, np.sort(free, axis=None))
    labels, number = label_regions(flags)
    flawed = scores[flags]
    order = np.argsort(flawed)
    free = scores[~flags if excluded is None else ~(flags | excluded)]
    return SplitMap(flawed[order], labels[flags][order] - 1, number, np.sort(free))


def _split_all(maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike | None]) -> list[SplitMap]:
    return [split_map(one, mask) for one, mask in zip(maps, masks, strict=True)]


def _region_ids(parts: Sequence[SplitMap]) -> npt.NDArray[np.int64]:
    """(flawed,) region numbers that run through all images."""
    first = np.cumsum([0, *(part.regions for part in parts)])
    return np.concatenate([part.region + start for part, start in zip(parts, first, strict=False)])


def aupro(
    maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike | None], *, limit: float = FPR_LIMIT
) -> float | None:
    """Exact area under the per-region-overlap curve.

    Regions are the 8-connected components of the masks, pooled over all images; every distinct score is a
    threshold (``score >= t``); the false-positive rate counts the defect-free pixels of all images, good ones
    included; the curve is interpolated linearly at the limit and its area divided by the limit. A perfect map
    gives 1, a constant one half the limit, an inverted one 0.

    Args:
        maps: (height, width) float32 maps, sizes may differ between images; -inf where not inspected.
        masks: masks of the same sizes, non-zero where flawed; None for images without a flaw.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        In [0, 1], or None without a region or without a defect-free pixel.

    Raises:
        ValueError: a NaN score, sizes that differ, or a limit outside (0, 1].
    """
    parts = _split_all(maps, masks)
    total = sum(part.free.size for part in parts)
    if total == 0 or not any(part.regions for part in parts):
        return None
    flawed = np.concatenate([part.flawed for part in parts])
    distinct, which = np.unique(flawed, return_inverse=True)
    gain = gain_up_to(count_free(distinct, (part.free for part in parts), total), limit)
    region = _region_ids(parts)
    return float((np.bincount(region, gain[which]) / np.bincount(region)).mean())


def pro_curve(
    maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike | None], *, max_points: int = 1000
) -> Curve | None:
    """Points of the exact PRO curve, for a plot; arguments as in :func:`aupro`.

    Args:
        maps: as in :func:`aupro`.
        masks: as in :func:`aupro`.
        max_points: at most this many thresholds, spread evenly over the flawed pixels' distinct scores.

    Returns:
        The curve with its ends (0, 0) and (1, 1), or None without a region or without a defect-free pixel.
    """
    parts = _split_all(maps, masks)
    if not any(part.regions for part in parts) or not any(part.free.size for part in parts):
        return None
    distinct = np.unique(np.concatenate([part.flawed for part in parts]))
    picked = distinct[np.unique(np.linspace(0, len(distinct) - 1, max(max_points // 2, 2)).astype(int))]
    # "Just above v" closes the horizontal run before the step at v.
    thresholds = np.unique(np.concatenate([picked, next_float(picked)]))[::-1]
    rate, overlap = _curve_at(parts, thresholds)
    ends = np.concatenate([[np.inf], thresholds, [-np.inf]])
    return Curve(x=shares(rate, 1.0), y=shares(overlap, 1.0), thresholds=ends)


def _curve_at(parts: Sequence[SplitMap], thresholds: npt.NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """False-positive rate and mean region overlap at given thresholds, ``score >= t``."""
    free = sum((part.free.size - np.searchsorted(part.free, thresholds)) for part in parts)
    total = sum(part.free.size for part in parts)
    overlaps = [
        1.0 - np.searchsorted(part.flawed[part.region == index], thresholds) / size
        for part in parts
        for index, size in enumerate(np.bincount(part.region, minlength=part.regions))
    ]
    return np.asarray(free) / total, np.mean(overlaps, axis=0)
