"""Image-level figures: how well image scores rank flawed images above good ones.

Pure functions of scores and labels. A figure that the images cannot give is None: AUROC needs a good and a
flawed image, average precision and F1 need a flawed one (and are 1 where every image is flawed).

The functions named ``..._from_counts`` turn counts into values. Figures over pixels and every resample of the bootstrap
go through them; figures over images are scikit-learn's where it has them, which is imported on use: where pandas is
installed it takes half a second, and most processes compute none.
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


def rates(counts: npt.ArrayLike, totals: npt.ArrayLike) -> FloatArray:
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


def partial_auc_weight(start: FloatArray, end: FloatArray, limit: float = 1.0) -> FloatArray:
    """What a positive adds to the area under a curve up to a false-positive rate, divided by that rate.

    The positive lifts the curve along a straight ramp between two false-positive rates, those just above its score and
    at it (the trapezoid rule over tied scores), and keeps it lifted from there on. An area under a ROC curve or a curve
    of region overlap is the mean of these weights over positives: every flawed pixel alike for the one, every region
    alike for the other.

    Args:
        start: false-positive rates just above the scores, in [0, 1].
        end: false-positive rates at the scores, of the same shape; not below ``start``.
        limit: largest false-positive rate, in (0, 1]; the curve is interpolated linearly there.

    Returns:
        Weights of the same shape, in [0, 1]; NaN where the rates are.

    Raises:
        ValueError: a limit outside (0, 1].

    >>> partial_auc_weight(np.array([0.0, 0.1, 0.3]), np.array([0.0, 0.3, 0.9]), limit=0.3).round(3).tolist()
    [1.0, 0.333, 0.0]
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"the limit of the false-positive rate must lie in (0, 1], not {limit}")
    width = end - start
    inside = np.clip(limit - start, 0.0, width)
    # On the ramp the mean height is half of what is reached; beyond its end the height is 1.
    reached = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    weight: FloatArray = (inside * reached / 2 + np.clip(limit - end, 0.0, None)) / limit
    return weight


def area_from_counts(
    negatives: FloatArray,
    n_negatives: npt.ArrayLike,
    positives: FloatArray,
    n_positives: npt.ArrayLike,
    limit: float = 1.0,
) -> FloatArray:
    """Area under the rate of positives against the false-positive rate, up to a limit and divided by it.

    Args:
        negatives: (..., thresholds) negatives scoring at least each threshold, thresholds descending.
        n_negatives: (...) number of negatives.
        positives: (..., thresholds) positives scoring at least each threshold, or the sum of their overlaps.
        n_positives: (...) number of positives.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        (...) areas in [0, 1]; NaN without positives or without negatives.

    >>> area_from_counts(np.array([0.0, 1.0]), 2, np.array([1.0, 2.0]), 2).item()
    0.875
    """
    rate, reached = rates(negatives, n_negatives), rates(positives, n_positives)
    weight = partial_auc_weight(rate[..., :-1], rate[..., 1:], limit)
    area: FloatArray = (weight * np.diff(reached, axis=-1)).sum(axis=-1)
    return area


def average_precision_from_counts(
    new_positives: npt.NDArray[np.number],
    positives: npt.NDArray[np.number],
    negatives: npt.NDArray[np.number],
    n_positives: npt.ArrayLike,
) -> FloatArray:
    """Step-wise average precision: the sum of recall steps times the precision reached (scikit-learn's definition).

    Args:
        new_positives: (..., thresholds) positives with the threshold as score, thresholds in any order.
        positives: (..., thresholds) positives scoring at least each threshold.
        negatives: (..., thresholds) negatives scoring at least each threshold.
        n_positives: (...) number of positives.

    Returns:
        (...) in [0, 1], or what these thresholds add to it; NaN without positives.

    >>> average_precision_from_counts(np.array([1, 1]), np.array([1, 2]), np.array([0, 1]), 2).round(3).item()
    0.833
    """
    retrieved = positives + negatives
    precision = np.divide(positives, retrieved, out=np.zeros(retrieved.shape), where=retrieved > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        step = new_positives / np.asarray(n_positives, dtype=np.float64)[..., None]
    precision_area: FloatArray = (step * precision).sum(axis=-1)
    return precision_area


def f1_from_counts(positives: FloatArray, negatives: FloatArray, n_positives: npt.ArrayLike) -> FloatArray:
    """F1 at each threshold: 2 TP / (2 TP + FP + FN).

    Args:
        positives: (..., thresholds) positives scoring at least each threshold.
        negatives: (..., thresholds) negatives scoring at least each threshold.
        n_positives: (...) number of positives.

    Returns:
        (..., thresholds) in [0, 1]; NaN without positives.

    >>> f1_from_counts(np.array([1.0, 2.0]), np.array([0.0, 1.0]), 2).round(3).tolist()
    [0.667, 0.8]
    """
    total = np.asarray(n_positives, dtype=np.float64)[..., None]
    denominator = positives + negatives + total
    f1 = np.divide(2.0 * positives, denominator, out=np.zeros(denominator.shape), where=denominator > 0)
    return np.where(total > 0, f1, np.nan)


def defined(value: float | np.floating | FloatArray) -> float | None:
    """A plain float, or None where the figure is undefined (NaN)."""
    return None if np.isnan(value) else float(value)


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

    Source: scikit-learn, ``roc_auc_score``.

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
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score))


def average_precision(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> float | None:
    """Step-wise average precision of image scores.

    Source: scikit-learn, ``average_precision_score``.

    Args:
        scores: (images,) image scores, higher is more anomalous; infinities allowed, NaN not.
        flawed: (images,) True for flawed images.

    Returns:
        In [0, 1], or None without a flawed image.

    Raises:
        ValueError: a NaN, or shapes that differ.

    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [False, False, True, True]), 3)
    0.833
    """
    score, label = _checked(scores, flawed)
    if not label.any():
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(label, score))


def f1_max(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> float | None:
    """The highest F1 over all thresholds: 2 TP / (2 TP + FP + FN).

    An oracle on labelled data: a figure to compare methods by, never a limit to run with.

    Args:
        scores: (images,) image scores, higher is more anomalous; infinities allowed, NaN not.
        flawed: (images,) True for flawed images.

    Returns:
        In [0, 1], or None without a flawed image.

    Raises:
        ValueError: a NaN, or shapes that differ.

    >>> f1_max([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.8
    """
    f1, _ = _f1_by_threshold(scores, flawed)
    return defined(f1.max(initial=0.0)) if f1.size else None


def f1_max_threshold(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> float | None:
    """The score that gives :func:`f1_max`: images scoring at least this much are called flawed.

    Args:
        scores: (images,) image scores, higher is more anomalous; infinities allowed, NaN not.
        flawed: (images,) True for flawed images.

    Returns:
        One of the scores, the highest where several tie; None without a flawed image.

    Raises:
        ValueError: a NaN, or shapes that differ.

    >>> f1_max_threshold([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.35
    """
    f1, thresholds = _f1_by_threshold(scores, flawed)
    return float(thresholds[np.argmax(f1)]) if f1.size else None


def _f1_by_threshold(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """F1 at every distinct score, the highest first, and those scores as they were given; empty without flaws."""
    score, label = _checked(scores, flawed)
    if not label.any():
        return np.empty(0), np.empty(0)
    order, last = descending_groups(score)
    hits = np.cumsum(label[order], dtype=np.float64)[last]
    original = np.asarray(scores, dtype=np.float64)  # infinities were replaced by ranks
    return f1_from_counts(hits, last + 1.0 - hits, hits[-1]), original[order[last]]


def descending_groups(scores: FloatArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices that sort scores from the highest down, and where in that order each run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))


def roc_curve(scores: npt.ArrayLike, flawed: npt.ArrayLike) -> Curve | None:
    """The ROC curve for a plot, corners only; with infinite scores its thresholds are ranks.

    Source: scikit-learn, ``roc_curve``.

    Args:
        scores: (images,) image scores, higher is more anomalous; infinities allowed, NaN not.
        flawed: (images,) True for flawed images.

    Returns:
        The curve, or None without a good or without a flawed image.

    Raises:
        ValueError: a NaN, or shapes that differ.

    >>> roc_curve([0.1, 0.4, 0.8], [False, False, True]).y.tolist()
    [0.0, 1.0, 1.0]
    """
    score, label = _checked(scores, flawed)
    if label.all() or not label.any():
        return None
    from sklearn import metrics

    x, y, thresholds = metrics.roc_curve(label, score, drop_intermediate=True)
    return Curve(x=x, y=y, thresholds=thresholds)
