"""Figures of an evaluation and their bootstrap intervals over images, paired where two models are compared.

Images are what a test set draws, so images are resampled, with replacement and within each label (no resample
lacks good or flawed images). A resample is a vector of weights, and its figures are those of weighted sums of each
image's counts, through the same functions from counts to values as the exact figures: image-level ones from counts in
score order, pixel-level ones from counts at the common grid of thresholds
(:class:`flawsmith.metrics.accumulate.ThresholdCounts`).

Image-level replicates are exact. Pixel-level replicates are the figures of the curve through the grid's
points, which lies within 1/256 of the exact one between neighbours (and on it where there are few distinct
scores); the small difference between the exact figure and the grid's figure of the unresampled set is added
to every replicate, so intervals are centred on the exact figure. Intervals are percentile intervals, clipped
to [0, 1].

Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from flawsmith.data.layouts.mvtec import LOGICAL, STRUCTURAL
from flawsmith.metrics import ranking
from flawsmith.metrics.collect import EvaluationState
from flawsmith.metrics.ranking import FloatArray, area_from_counts, average_precision_from_counts, f1_from_counts

LocoMetric = Literal[
    "image_auroc_logical",
    "image_auroc_structural",
    "image_auroc_loco_mean",
    "spro",
    "spro_logical",
    "spro_structural",
    "spro_loco_mean",
]
Metric = Literal["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"] | LocoMetric
LOCO_METRICS: tuple[LocoMetric, ...] = get_args(LocoMetric)
METRICS: tuple[Metric, ...] = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")

# Replicates computed at once: bounds the working arrays to some tens of megabytes.
_BLOCK_ENTRIES = 2**21


def resample_weights(
    flawed: npt.NDArray[np.bool_], *, n_resamples: int = 1000, seed: int = 0
) -> npt.NDArray[np.uint16]:
    """How often each image is drawn in each resample.

    Args:
        flawed: (images,) labels; each label's images are resampled among themselves.
        n_resamples: number of resamples.
        seed: seeds the draws.

    Returns:
        (resamples, images) counts; each row sums to the number of images, label by label.

    >>> resample_weights(np.array([True, False, False]), n_resamples=2).sum(axis=1).tolist()
    [3, 3]
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, len(flawed)), dtype=np.uint16)
    for label in (False, True):
        members = np.flatnonzero(flawed == label)
        if len(members):
            even = np.full(len(members), 1.0 / len(members))
            weights[:, members] = generator.multinomial(len(members), even, size=n_resamples)
    return weights


def image_replicates(
    scores: FloatArray, flawed: npt.NDArray[np.bool_], weights: npt.NDArray[np.number]
) -> dict[Metric, FloatArray]:
    """Image AUROC, AP and F1-max of every resample.

    Args:
        scores: (images,) image scores.
        flawed: (images,) labels.
        weights: (resamples, images) how often each image counts.

    Returns:
        (resamples,) values for each figure; NaN where undefined.

    >>> values = image_replicates(np.array([1.0, 2.0, 3.0]), np.array([False, True, True]), np.array([[1, 2, 0]]))
    >>> values["image_auroc"].tolist()
    [1.0]
    """
    order, last = ranking.descending_groups(scores)
    times = weights[:, order].astype(np.float64)
    label = flawed[order]
    hits = np.cumsum(times * label, axis=1)[:, last]
    alarms = np.cumsum(times * ~label, axis=1)[:, last]
    n_flawed, n_good = hits[:, -1], alarms[:, -1]
    steps = np.diff(hits, axis=-1, prepend=0.0)
    return {
        "image_auroc": area_from_counts(alarms, n_good, hits, n_flawed),
        "image_ap": average_precision_from_counts(steps, hits, alarms, n_flawed),
        "image_f1_max": f1_from_counts(hits, alarms, n_flawed).max(axis=-1),
    }


def point_estimates(state: EvaluationState) -> dict[Metric, float | None]:
    """The exact figures of all images; None where the data cannot give one.

    Those of MVTec LOCO AD are told by the defect type of the images, ``logical_anomalies`` or
    ``structural_anomalies``, in any case of letters; the data of others leave them undefined.
    """
    pixels, saturated = state.pixels, state.saturated
    logical, structural = (_auroc_against_good(state, kind) for kind in (LOGICAL, STRUCTURAL))
    loco_mean = _mean(logical, structural)
    if loco_mean is not None and state.protocol.loco_mean == "pooled":
        loco_mean = ranking.auroc(state.scores, state.flawed)
    by_kind = {} if saturated is None else {name.casefold(): area for name, area in saturated.by_defect.items()}
    return {
        "image_auroc": ranking.auroc(state.scores, state.flawed),
        "image_ap": ranking.average_precision(state.scores, state.flawed),
        "image_f1_max": ranking.f1_max(state.scores, state.flawed),
        "pixel_auroc": None if pixels is None else pixels.auroc,
        "pixel_ap": None if pixels is None else pixels.average_precision,
        "aupro": None if pixels is None else pixels.overlap,
        "image_auroc_logical": logical,
        "image_auroc_structural": structural,
        "image_auroc_loco_mean": loco_mean,
        "spro": None if saturated is None else saturated.overlap,
        "spro_logical": by_kind.get(LOGICAL),
        "spro_structural": by_kind.get(STRUCTURAL),
        "spro_loco_mean": _mean(by_kind.get(LOGICAL), by_kind.get(STRUCTURAL)),
    }


def _auroc_against_good(state: EvaluationState, kind: str) -> float | None:
    members = state.of_kind(kind)
    against = members | ~state.flawed
    return ranking.auroc(state.scores[against], members[against])


def _mean(logical: float | None, structural: float | None) -> float | None:
    return None if logical is None or structural is None else (logical + structural) / 2


def replicates(state: EvaluationState, weights: npt.NDArray[np.number]) -> dict[Metric, FloatArray]:
    """Every figure that the data define, in every resample, centred on the exact figures.

    Args:
        state: one model's results.
        weights: (resamples, images) as of :func:`resample_weights`.

    Returns:
        (resamples,) values; NaN for a resample that leaves a figure undefined (no annotated flaw drawn).
    """
    points = {name: value for name, value in point_estimates(state).items() if value is not None}
    loco = any(name in points for name in LOCO_METRICS)
    widest = max(weights.shape[1], 0 if state.pixels is None else len(state.pixels.counts.thresholds))
    block = max(1, _BLOCK_ENTRIES // max(widest, 1))
    parts = [_uncentred(state, weights[at : at + block], loco=loco) for at in range(0, len(weights), block)]
    whole = _uncentred(state, np.ones((1, weights.shape[1])), loco=loco)
    return {
        name: np.concatenate([part[name] for part in parts]) + (point - whole[name][0])
        for name, point in points.items()
    }


def _uncentred(state: EvaluationState, weights: npt.NDArray[np.number], *, loco: bool) -> dict[Metric, FloatArray]:
    values = image_replicates(state.scores, state.flawed, weights)
    # Images take their places among the counts in the order they came.
    taking_part = state.pixel_index >= 0
    if state.pixels is not None:
        counts = state.pixels.counts.weighted(weights[:, taking_part])
        values["pixel_auroc"], values["pixel_ap"] = counts.auroc(), counts.average_precision()
        values["aupro"] = state.pixels.resampled_overlap(counts, weights[:, taking_part])
    if not loco:
        return values
    by_kind = [weights * (state.of_kind(kind) | ~state.flawed) for kind in (LOGICAL, STRUCTURAL)]
    logical, structural = (image_replicates(state.scores, state.flawed, times)["image_auroc"] for times in by_kind)
    values["image_auroc_logical"], values["image_auroc_structural"] = logical, structural
    pooled = state.protocol.loco_mean == "pooled"
    values["image_auroc_loco_mean"] = values["image_auroc"] if pooled else (logical + structural) / 2
    if state.saturated is not None:
        spro, logical, structural = (
            state.saturated.counts.weighted(times[:, taking_part]).overlap_area(state.saturated.limit)
            for times in (weights, *by_kind)
        )
        values["spro"], values["spro_logical"], values["spro_structural"] = spro, logical, structural
        values["spro_loco_mean"] = (logical + structural) / 2
    return values


def percentile_interval(values: FloatArray, level: float) -> tuple[float, float] | None:
    """The central interval holding ``level`` of the defined values; None where all are NaN.

    >>> percentile_interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(
    state: EvaluationState,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[Metric, tuple[float, float]]:
    """Percentile intervals of every figure that the data define.

    Args:
        state: one model's results.
        level: rate of resamples inside, in (0, 1).
        n_resamples: number of resamples.
        seed: seeds the draws; the same seed gives the same intervals.

    Returns:
        (low, high) in [0, 1] by the figure's name.

    >>> from flawsmith.metrics.collect import ScoredImage, accumulate
    >>> scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.35]
    >>> images = [ScoredImage(str(at), score, "pass", "dent", at > 2) for at, score in enumerate(scores)]
    >>> intervals(accumulate(images), n_resamples=20)["image_auroc"]
    (1.0, 1.0)
    """
    weights = resample_weights(state.flawed, n_resamples=n_resamples, seed=seed)
    ends = {
        name: percentile_interval(np.clip(values, 0.0, 1.0), level)
        for name, values in replicates(state, weights).items()
    }
    return {name: pair for name, pair in ends.items() if pair is not None}


def paired_differences(
    first: EvaluationState,
    second: EvaluationState,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[Metric, tuple[float, float, float]]:
    """How much each figure of one model exceeds another's, with an interval over the same resampled images.

    Args:
        first: results of one model.
        second: results of the other, on the same images in the same order.
        level: rate of resamples inside, in (0, 1).
        n_resamples: number of resamples.
        seed: seeds the draws.

    Returns:
        By the figure's name: first minus second on all images, and the ends of the interval. Figures that either
        model's data leave undefined are left out.

    Raises:
        ValueError: the two were not made from the same images.

    >>> from flawsmith.metrics.collect import ScoredImage, accumulate
    >>> scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.35]
    >>> images = [ScoredImage(str(at), score, "pass", "dent", at > 2) for at, score in enumerate(scores)]
    >>> state = accumulate(images)
    >>> paired_differences(state, state, n_resamples=20)["image_auroc"]
    (0.0, 0.0, 0.0)
    """
    if first.images != second.images or not np.array_equal(first.flawed, second.flawed):
        raise ValueError("a paired comparison needs the same images in the same order for both models")
    weights = resample_weights(first.flawed, n_resamples=n_resamples, seed=seed)
    points, others = point_estimates(first), point_estimates(second)
    values, other_values = replicates(first, weights), replicates(second, weights)
    differences: dict[Metric, tuple[float, float, float]] = {}
    for name, replicate in values.items():
        point, other = points[name], others[name]
        if point is None or other is None:
            continue
        ends = percentile_interval(replicate - other_values[name], level)
        if ends is not None:
            differences[name] = (point - other, *ends)
    return differences
