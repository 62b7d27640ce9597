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
from flawsmith.evaluation.curves import FloatArray
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
        "image_auroc_loco_mean": _mean(logical, structural),
        "spro": None if saturated is None else saturated.pooled,
        "spro_logical": by_kind.get(LOGICAL),
        "spro_structural": by_kind.get(STRUCTURAL),
        "spro_loco_mean": _mean(by_kind.get(LOGICAL), by_kind.get(STRUCTURAL)),
    }


def loco_intervals(
    evidence: Evidence, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> dict[LocoMetric, tuple[float, float]]:
    """Percentile intervals of the image figures by kind and of their mean, where they are defined.

    Arguments and the resampled images as in :func:`flawsmith.evaluation.bootstrap.intervals`.
    """
    weights = bootstrap.resample_weights(evidence.flawed, n_resamples=n_resamples, seed=seed)
    drawn: dict[LocoMetric, FloatArray] = {}
    names: tuple[LocoMetric, LocoMetric] = ("image_auroc_logical", "image_auroc_structural")
    for kind, name in zip(_KINDS, names, strict=True):
        if _image_auroc(evidence, kind) is not None:
            kept = _of_kind(evidence, kind) | ~evidence.flawed
            values = bootstrap.image_replicates(evidence.scores[kept], evidence.flawed[kept], weights[:, kept])
            drawn[name] = values["image_auroc"]
    if len(drawn) == len(_KINDS):
        drawn["image_auroc_loco_mean"] = np.mean(list(drawn.values()), axis=0)
    ends = {name: bootstrap.percentile_interval(values, level) for name, values in drawn.items()}
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
