"""What MVTec LOCO AD reports: logical and structural anomalies apart, each against all good images, and their mean.

The LOCO mean weighs both kinds alike, whatever their numbers. The pooled value, all anomalies against all good images,
weighs them by their images: for image AUROC it is ``(n_s AUROC_s + n_l AUROC_l) / (n_s + n_l)``. Both are given, under
names of their own, because published tables hold either.

The image score is the model's own; the benchmark's kit takes the maximum of the map instead.

Source: Bergmann et al., "Beyond Dents and Scratches", IJCV 2022.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from flawsmith.data.layouts.mvtec_loco import LOGICAL, STRUCTURAL
from flawsmith.evaluation import bootstrap, ranking
from flawsmith.evaluation.curves import FloatArray, area_up_to, shares
from flawsmith.evaluation.evidence import Evidence

LocoMetric = Literal[
    "image_auroc_logical",
    "image_auroc_structural",
    "image_auroc_loco_mean",
    "spro",
    "spro_logical",
    "spro_structural",
    "spro_loco_mean",
]
LOCO_METRICS: tuple[LocoMetric, ...] = get_args(LocoMetric)
_KINDS = {LOGICAL: "logical", STRUCTURAL: "structural"}


def loco_figures(evidence: Evidence) -> dict[LocoMetric, float | None]:
    """The benchmark's figures; None where the data cannot give one, so for other data sets throughout.

    Kinds are told by the defect type of the images, ``logical_anomalies`` or ``structural_anomalies``, in any case.
    """
    logical, structural = (_image_auroc(evidence, kind) for kind in _KINDS)
    saturated = evidence.saturated
    by_kind = {} if saturated is None else {name.casefold(): area for name, area in saturated.by_defect.items()}
    return {
        "image_auroc_logical": logical,
        "image_auroc_structural": structural,
        "image_auroc_loco_mean": _image_mean(evidence, logical, structural),
        "spro": None if saturated is None else saturated.pooled,
        "spro_logical": by_kind.get(LOGICAL),
        "spro_structural": by_kind.get(STRUCTURAL),
        "spro_loco_mean": _mean(by_kind.get(LOGICAL), by_kind.get(STRUCTURAL)),
    }


def loco_replicates(evidence: Evidence, weights: npt.NDArray[np.number]) -> dict[LocoMetric, FloatArray]:
    """Every figure of :func:`loco_figures` that is defined, in every resample, centred on the exact figures.

    Image figures are exact in every resample. Those of the overlap come from counts at a grid of thresholds, as in
    :mod:`flawsmith.evaluation.bootstrap`.

    Args:
        evidence: one model's results.
        weights: (resamples, images) as of :func:`flawsmith.evaluation.bootstrap.resample_weights`.

    Returns:
        (resamples,) values; NaN for a resample that leaves a figure undefined (no annotated defect drawn).
    """
    points = {name: value for name, value in loco_figures(evidence).items() if value is not None}
    if not points:
        return {}
    values, whole = (_uncentred(evidence, times) for times in (weights, np.ones((1, weights.shape[1]))))
    return {name: values[name] + (point - whole[name][0]) for name, point in points.items()}


def _uncentred(evidence: Evidence, weights: npt.NDArray[np.number]) -> dict[LocoMetric, FloatArray]:
    good = ~evidence.flawed
    logical, structural = (_of_kind(evidence, kind) | good for kind in _KINDS)
    first, second = (_auroc_replicates(evidence, weights, kept) for kept in (logical, structural))
    values: dict[LocoMetric, FloatArray] = {
        "image_auroc_logical": first,
        "image_auroc_structural": second,
        "image_auroc_loco_mean": (first + second) / 2,
    }
    if evidence.protocol.loco_mean == "pooled":
        values["image_auroc_loco_mean"] = _auroc_replicates(evidence, weights, np.ones_like(good))
    if evidence.saturated is not None:
        every = np.ones_like(good)
        pooled, first, second = (_spro_replicates(evidence, weights, kept) for kept in (every, logical, structural))
        values |= {
            "spro": pooled,
            "spro_logical": first,
            "spro_structural": second,
            "spro_loco_mean": (first + second) / 2,
        }
    return values


def _auroc_replicates(evidence: Evidence, weights: npt.NDArray[np.number], kept: npt.NDArray[np.bool_]) -> FloatArray:
    if not kept.any():
        return np.full(len(weights), np.nan)
    values = bootstrap.image_replicates(evidence.scores[kept], evidence.flawed[kept], weights[:, kept])
    return values["image_auroc"]


def _spro_replicates(evidence: Evidence, weights: npt.NDArray[np.number], kept: npt.NDArray[np.bool_]) -> FloatArray:
    assert evidence.saturated is not None
    bins, limit = evidence.saturated.bins, evidence.saturated.limit
    # Images take their places in the bins in the order they came.
    taking_part = evidence.pixel_index >= 0
    rows = kept[taking_part]
    times = weights[:, taking_part & kept].astype(np.float64)
    rate = shares(times @ bins.free[rows], times @ bins.n_free[rows])
    overlap = shares(times @ bins.overlap[rows], times @ bins.n_channels[rows])
    return area_up_to(rate, overlap, limit)


def loco_intervals(
    evidence: Evidence, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> dict[LocoMetric, tuple[float, float]]:
    """Percentile intervals of every figure that is defined.

    Arguments and the resampled images as in :func:`flawsmith.evaluation.bootstrap.intervals`.

    Returns:
        (low, high) in [0, 1] by the figure's name.
    """
    weights = bootstrap.resample_weights(evidence.flawed, n_resamples=n_resamples, seed=seed)
    ends = {
        name: bootstrap.percentile_interval(np.clip(values, 0.0, 1.0), level)
        for name, values in loco_replicates(evidence, weights).items()
    }
    return {name: pair for name, pair in ends.items() if pair is not None}


def loco_notes(evidence: Evidence) -> list[str]:
    """Why a LOCO mean is missing although one kind of anomaly is there."""
    missing = [name for kind, name in _KINDS.items() if not _of_kind(evidence, kind).any()]
    if len(missing) != 1:
        return []
    return [f"No {missing[0]} anomalies among the images: the LOCO mean of logical and structural is undefined."]


def _of_kind(evidence: Evidence, kind: str) -> npt.NDArray[np.bool_]:
    return evidence.flawed & np.array([name.casefold() == kind for name in evidence.defects], dtype=bool)


def _image_auroc(evidence: Evidence, kind: str) -> float | None:
    members = _of_kind(evidence, kind)
    against = members | ~evidence.flawed
    return ranking.auroc(evidence.scores[against], members[against])


def _mean(logical: float | None, structural: float | None) -> float | None:
    return None if logical is None or structural is None else (logical + structural) / 2


def _image_mean(evidence: Evidence, logical: float | None, structural: float | None) -> float | None:
    """What the protocol calls the mean of image AUROC."""
    mean = _mean(logical, structural)
    if mean is None or evidence.protocol.loco_mean == "loco":
        return mean
    return ranking.auroc(evidence.scores, evidence.flawed)
