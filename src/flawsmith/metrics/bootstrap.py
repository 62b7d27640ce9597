"""Bootstrap intervals over images, for every figure, and paired where two models are compared.

Images are what a test set draws, so images are resampled, with replacement and within each label (no resample
lacks good or flawed images). A resample is a vector of weights: image-level figures are computed from
weighted counts in score order, pixel-level ones from weighted sums of each image's counts at the common grid
of thresholds (``PixelBins``).

Image-level replicates are exact. Pixel-level replicates are the figures of the curve through the grid's
points, which lies within 1/256 of the exact one between neighbours (and on it where there are few distinct
scores); the small difference between the exact figure and the grid's figure of the unresampled set is added
to every replicate, so intervals are centred on the exact figure. Intervals are percentile intervals, clipped
to [0, 1].

Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from flawsmith.metrics import ranking
from flawsmith.metrics.accumulate import PixelBins
from flawsmith.metrics.collect import Evidence
from flawsmith.metrics.pro import FPR_LIMIT
from flawsmith.metrics.ranking import FloatArray, area_up_to, average_precision_of, best_f1_of, shares

Metric = Literal["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"]
METRICS: tuple[Metric, ...] = get_args(Metric)

# Replicates computed at once: bounds the working arrays to some tens of megabytes.
_BLOCK_ENTRIES = 2**21


@dataclass(frozen=True)
class Difference:
    """How much one model's figure exceeds another's on the same images.

    Attributes:
        value: first minus second, on all images.
        low: lower end of the interval.
        high: upper end of the interval.
        level: share of replicates inside, such as 0.95.
    """

    value: float
    low: float
    high: float
    level: float


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
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    sorted_weights = weights[:, order].astype(np.float64)
    label = flawed[order]
    hits = np.cumsum(sorted_weights * label, axis=1)[:, ends]
    alarms = np.cumsum(sorted_weights * ~label, axis=1)[:, ends]
    n_flawed, n_good = hits[:, -1], alarms[:, -1]
    return {
        "image_auroc": area_up_to(shares(alarms, n_good), shares(hits, n_flawed)),
        "image_ap": average_precision_of(hits, alarms, n_flawed),
        "image_f1_max": best_f1_of(hits, alarms, n_flawed),
    }


def pixel_replicates(
    bins: PixelBins, weights: npt.NDArray[np.number], *, limit: float = FPR_LIMIT
) -> dict[Metric, FloatArray]:
    """Pixel AUROC, pixel AP and AUPRO of every resample, from counts at the grid of thresholds.

    Args:
        bins: counts of each image.
        weights: (resamples, images) how often each image counts, images as in ``bins``.
        limit: largest false-positive rate of the AUPRO.

    Returns:
        (resamples,) values for each figure; NaN where undefined.
    """
    times = weights.astype(np.float64)
    free, flawed, overlap = times @ bins.free, times @ bins.flawed, times @ bins.overlap
    n_flawed = times @ bins.n_flawed
    rate = shares(free, times @ bins.n_free)
    return {
        "pixel_auroc": area_up_to(rate, shares(flawed, n_flawed)),
        "pixel_ap": average_precision_of(flawed, free, n_flawed),
        "aupro": area_up_to(rate, shares(overlap, times @ bins.n_regions), limit),
    }


def point_estimates(evidence: Evidence) -> dict[Metric, float | None]:
    """The exact figures of all images; None where undefined."""
    best = ranking.best_f1(evidence.scores, evidence.flawed)
    pixels = evidence.pixels
    return {
        "image_auroc": ranking.auroc(evidence.scores, evidence.flawed),
        "image_ap": ranking.average_precision(evidence.scores, evidence.flawed),
        "image_f1_max": None if best is None else best.value,
        "pixel_auroc": None if pixels is None else pixels.auroc,
        "pixel_ap": None if pixels is None else pixels.average_precision,
        "aupro": evidence.aupro,
    }


def replicates(evidence: Evidence, weights: npt.NDArray[np.number]) -> dict[Metric, FloatArray]:
    """Every figure that the evidence defines, in every resample, centred on the exact figures.

    Args:
        evidence: one model's results.
        weights: (resamples, images) as of :func:`resample_weights`.

    Returns:
        (resamples,) values; NaN for a resample that leaves a figure undefined (no annotated flaw drawn).
    """
    widest = max(weights.shape[1], 0 if evidence.pixels is None else len(evidence.pixels.bins.thresholds))
    block = max(1, _BLOCK_ENTRIES // max(widest, 1))
    parts = [_uncentred(evidence, weights[at : at + block]) for at in range(0, len(weights), block)]
    whole = _uncentred(evidence, np.ones((1, weights.shape[1])))
    points = point_estimates(evidence)
    return {
        name: np.concatenate([part[name] for part in parts]) + (point - whole[name][0])
        for name, point in points.items()
        if point is not None
    }


def _uncentred(evidence: Evidence, weights: npt.NDArray[np.number]) -> dict[Metric, FloatArray]:
    values = image_replicates(evidence.scores, evidence.flawed, weights)
    if evidence.pixels is not None:
        # Images take their places in the bins in the order they came.
        taking_part = evidence.pixel_index >= 0
        bins, limit = evidence.pixels.bins, evidence.pixels.limit
        values |= pixel_replicates(bins, weights[:, taking_part], limit=limit)
        if evidence.released is not None and evidence.released.value is not None:
            values["aupro"] = evidence.released.replicates(weights[:, taking_part])
    return values


def percentile_interval(values: FloatArray, level: float) -> tuple[float, float] | None:
    """The central interval holding ``level`` of the defined values; None where all are NaN."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(
    evidence: Evidence,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[Metric, tuple[float, float]]:
    """Percentile intervals of every figure that the evidence defines.

    Args:
        evidence: one model's results.
        level: share of resamples inside, in (0, 1).
        n_resamples: number of resamples.
        seed: seeds the draws; the same seed gives the same intervals.

    Returns:
        (low, high) in [0, 1] by the figure's name.
    """
    weights = resample_weights(evidence.flawed, n_resamples=n_resamples, seed=seed)
    result: dict[Metric, tuple[float, float]] = {}
    for name, values in replicates(evidence, weights).items():
        ends = percentile_interval(np.clip(values, 0.0, 1.0), level)
        if ends is not None:
            result[name] = ends
    return result


def paired_difference(
    metric: Metric,
    first: Evidence,
    second: Evidence,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Difference | None:
    """The difference of one figure between two models, with an interval over the same resampled images.

    Args:
        metric: the figure's name.
        first: results of one model.
        second: results of the other, on the same images in the same order.
        level: share of resamples inside, in (0, 1).
        n_resamples: number of resamples.
        seed: seeds the draws.

    Returns:
        First minus second, or None where either is undefined.

    Raises:
        ValueError: the two were not made from the same images.
    """
    if first.images != second.images or not np.array_equal(first.flawed, second.flawed):
        raise ValueError("a paired comparison needs the same images in the same order for both models")
    weights = resample_weights(first.flawed, n_resamples=n_resamples, seed=seed)
    one, two = (replicates(evidence, weights).get(metric) for evidence in (first, second))
    value_one, value_two = (point_estimates(evidence)[metric] for evidence in (first, second))
    if one is None or two is None or value_one is None or value_two is None:
        return None
    ends = percentile_interval(one - two, level)
    return None if ends is None else Difference(value_one - value_two, *ends, level)
