"""Image-level figures: how well image scores rank flawed images above good ones.

Pure functions of scores and labels. A figure that the images cannot give is None: AUROC needs a good and a
flawed image, average precision and F1 need a flawed one (and are 1 where every image is flawed).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from flawsmith.evaluation.curves import Curve, FloatArray


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
