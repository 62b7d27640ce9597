"""Exact pixel figures from counts of defect-free pixels between the flawed pixels' scores.

Flawed pixels are few and defect-free pixels are many, and only the order between the two matters. So it is
enough to know, for every distinct score v of a flawed pixel, how many defect-free pixels score above v and
how many score exactly v. Everything else (pixel AUROC, pixel AP, region overlap) follows without an
approximation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from flawsmith.evaluation.curves import FloatArray

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
