"""Image-level figures: how well image scores rank flawed images above good ones.

Pure functions of scores and labels. A figure that the images cannot give is None: AUROC needs a good and a
flawed image, average precision and F1 need a flawed one (and are 1 where every image is flawed).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn import metrics

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


@dataclass(frozen=True)
class BestF1:
    """The highest F1 over all thresholds and the score that gives it.

    Attributes:
        value: 2 TP / (2 TP + FP + FN), in [0, 1].
        threshold: images scoring at least this much are called flawed; the highest such score where several
            tie.
    """

    value: float
    threshold: float


def _checked(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    score = np.asarray(scores, dtype=np.float64)
    label = np.asarray(flawed, dtype=bool)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"scores {score.shape} and labels {label.shape} must be two vectors of one length")
    if np.isnan(score).any():
        raise ValueError("an image score is NaN: nothing can be ranked")
    # scikit-learn refuses infinities, and ranking figures depend on the order of the scores alone.
    if not np.isfinite(score).all():
        score = np.unique(score, return_inverse=True)[1].astype(np.float64)
    return score, label


def auroc(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a flawed image outscores a good one, ties counting half.

    Args:
        scores: (images,) image scores, higher is more anomalous; infinities allowed, NaN not.
        flawed: (images,) True for flawed images.

    Returns:
        In [0, 1], or None without a good or without a flawed image.

    Raises:
        ValueError: a NaN, or shapes that differ.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    score, label = _checked(scores, flawed)
    if label.all() or not label.any():
        return None
    return float(metrics.roc_auc_score(label, score))


def average_precision(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> float | None:
    """Step-wise average precision (scikit-learn's definition); arguments as in :func:`auroc`.

    Returns:
        In [0, 1], or None without a flawed image.
    """
    score, label = _checked(scores, flawed)
    return float(metrics.average_precision_score(label, score)) if label.any() else None


def best_f1(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> BestF1 | None:
    """The highest F1 over all thresholds; arguments as in :func:`auroc`.

    An oracle on labelled data: a figure to compare methods by, never a limit to run with.

    >>> best_f1([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    BestF1(value=0.8, threshold=0.35)
    """
    score, label = _checked(scores, flawed)
    if not label.any():
        return None
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits = np.cumsum(label[order])[ends]
    f1 = 2.0 * hits / (ends + 1 + label.sum())
    best = int(np.argmax(f1))
    # The index finds the score as it was given, also where infinities were replaced by ranks.
    original = np.asarray(scores, dtype=np.float64)[order[ends[best]]]
    return BestF1(value=float(f1[best]), threshold=float(original))


def roc_curve(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> Curve | None:
    """The ROC curve for a plot, corners only; None without a good or without a flawed image.

    Arguments as in :func:`auroc`. With infinite scores the thresholds are ranks.
    """
    score, label = _checked(scores, flawed)
    if label.all() or not label.any():
        return None
    x, y, thresholds = metrics.roc_curve(label, score, drop_intermediate=True)
    return Curve(x=x, y=y, thresholds=thresholds)
