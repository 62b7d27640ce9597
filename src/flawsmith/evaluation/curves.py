"""Areas and peaks of ranking curves, given counts at descending thresholds.

Every figure of the evaluation is a functional of cumulative counts: how many flawed and how many defect-free
items score at least each threshold. The functions take leading batch axes, so one call serves a point
estimate and a thousand bootstrap replicates alike. What is undefined comes back as NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A polyline for a plot.

    Attributes:
        x: (points,) false-positive rates, ascending, in [0, 1].
        y: (points,) true-positive rates or mean region overlaps, in [0, 1].
        thresholds: (points,) the score at which each point is reached (``score >= threshold``); ``inf`` at
            the origin.
    """

    x: FloatArray
    y: FloatArray
    thresholds: FloatArray


def shares(counts: FloatArray, totals: npt.ArrayLike) -> FloatArray:
    """Cumulative counts (..., thresholds) over totals (...), with the curve's ends 0 and 1 put on.

    Returns (..., thresholds + 2); NaN where the total is zero.
    """
    total = np.asarray(totals, dtype=np.float64)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = np.asarray(counts, dtype=np.float64) / total
    undefined = np.where(total > 0, 0.0, np.nan)
    return np.concatenate([undefined, inner, undefined + 1.0], axis=-1)


def next_float(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The next larger number of each score that is not denormal.

    Programs may have told the processor to treat denormals as zero; a threshold must differ from its score there too.
    """
    following = np.nextafter(scores, np.float32(np.inf))
    smallest = np.finfo(np.float32).tiny
    safe = np.where(scores < 0, np.float32(0.0), smallest)
    return np.where((scores > -2 * smallest) & (scores < smallest), safe, following).astype(np.float32)


def area_up_to(x: FloatArray, y: FloatArray, limit: float = 1.0) -> FloatArray:
    """Trapezoid area under a curve for x in [0, limit], interpolated linearly at the limit and divided by it.

    Args:
        x: (..., points) ascending in [0, 1].
        y: (..., points).
        limit: in (0, 1].

    Returns:
        (...) areas in [0, 1]; NaN where the curve is undefined.
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"the limit of an area must lie in (0, 1], not {limit}")
    left, right = x[..., :-1], x[..., 1:]
    low, high = y[..., :-1], y[..., 1:]
    width = right - left
    inside = np.minimum(right, limit) - np.minimum(left, limit)
    # A vertical segment (two points at one false-positive rate) has no area; the guard only avoids 0/0.
    reached = low + (high - low) * np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    area: FloatArray = (inside * (low + reached) / 2).sum(axis=-1) / limit
    return area


def average_precision_of(flawed: FloatArray, free: FloatArray, total_flawed: FloatArray) -> FloatArray:
    """Step-wise average precision: the sum of recall steps times the precision reached (scikit-learn's
    definition).

    Args:
        flawed: (..., thresholds) flawed items scoring at least each threshold, thresholds descending.
        free: (..., thresholds) defect-free items scoring at least each threshold.
        total_flawed: (...) number of flawed items.

    Returns:
        (...) in [0, 1]; NaN without flawed items.
    """
    retrieved = flawed + free
    precision = np.divide(flawed, retrieved, out=np.zeros_like(retrieved), where=retrieved > 0)
    steps = np.diff(flawed, axis=-1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = (steps * precision).sum(axis=-1) / total_flawed
    return np.where(np.asarray(total_flawed) > 0, result, np.nan)


def best_f1_of(flawed: FloatArray, free: FloatArray, total_flawed: FloatArray) -> FloatArray:
    """The highest F1 over the thresholds: 2 TP / (2 TP + FP + FN).

    Arguments and result as in :func:`average_precision_of`.
    """
    total = np.asarray(total_flawed, dtype=np.float64)
    denominator = flawed + free + total[..., None]
    f1 = np.divide(2.0 * flawed, denominator, out=np.zeros_like(denominator), where=denominator > 0)
    return np.where(total > 0, f1.max(axis=-1, initial=0.0), np.nan)


def defined(value: float | np.floating) -> float | None:
    """A plain float, or None where the figure is undefined (NaN)."""
    return None if np.isnan(value) else float(value)
