"""From gathered evidence to the figures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import stats

from flawsmith.data.layouts.mvtec import LOGICAL, STRUCTURAL
from flawsmith.metrics import bootstrap, ranking
from flawsmith.metrics.collect import Evidence, ImageRecord, gather
from flawsmith.metrics.protocol import CLEAN, Protocol
from flawsmith.metrics.ranking import FloatArray, area_up_to, shares
from flawsmith.metrics.results import DefectResult, Evaluation
from flawsmith.runtime.bundle import SelectionName, stamps_of

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
    :mod:`flawsmith.metrics.bootstrap`.

    Args:
        evidence: one model's results.
        weights: (resamples, images) as of :func:`flawsmith.metrics.bootstrap.resample_weights`.

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

    Arguments and the resampled images as in :func:`flawsmith.metrics.bootstrap.intervals`.

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


REJECT = "reject"
VERDICTS = ("pass", "review", REJECT)
LEVEL = 0.95
_ROUNDED: tuple[bootstrap.Metric, ...] = ("image_auroc", "pixel_auroc")


def evaluate_records(
    records: Iterable[ImageRecord],
    *,
    protocol: Protocol = CLEAN,
    saturated: bool = True,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a stream of inspected images.

    Args:
        records: inspected images with ground truth, in any order; maps are dropped as they come.
        protocol: the rules.
        saturated: whether records may have channels; see :func:`flawsmith.metrics.collect.gather`.
        n_resamples: bootstrap resamples behind the intervals; 0 leaves the bootstrap out.
        seed: seeds the bootstrap.

    Returns:
        Every figure the data can give.

    Raises:
        FlawsmithError: no record, an image twice, a good image whose mask marks flawed pixels, or a full disk.
        ValueError: a NaN score, or a record that lacks what the protocol measures.
    """
    evidence = gather(records, protocol=protocol, saturated=saturated)
    return summarise(evidence, n_resamples=n_resamples, seed=seed)


def summarise(
    evidence: Evidence, *, selection: SelectionName = "last", n_resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """The figures of gathered evidence, by the protocol it was gathered by.

    Args:
        evidence: what was gathered.
        selection: how the model's checkpoint was chosen; figures of one chosen on test data are stamped.
        n_resamples, seed: as in :func:`evaluate_records`.
    """
    protocol, flawed = evidence.protocol, evidence.flawed
    rejected = np.array([verdict == REJECT for verdict in evidence.verdicts])
    points = bootstrap.point_estimates(evidence)
    best = ranking.best_f1(evidence.scores, flawed)
    ends: dict[str, tuple[float, float]] = {}
    if n_resamples > 0:
        for intervals in (bootstrap.intervals, loco_intervals):
            ends.update(intervals(evidence, level=LEVEL, n_resamples=n_resamples, seed=seed).items())
    for name, hit in (("false_reject_rate", rejected[~flawed]), ("miss_rate", ~rejected[flawed])):
        if hit.size:
            exact = stats.binomtest(int(hit.sum()), hit.size).proportion_ci(LEVEL, method="exact")
            ends[name] = (float(exact.low), float(exact.high))
    notes = _notes(evidence, points)
    if protocol.rounding == "three_decimals":
        points |= {name: round(value, 3) for name in _ROUNDED if (value := points[name]) is not None}
    return Evaluation(
        protocol=protocol.name,
        deviations=protocol.deviations(),
        selection=selection,
        stamps=[*stamps_of(selection), *protocol.stamps()],
        **points,
        **loco_figures(evidence),
        image_f1_threshold=None if best is None else best.threshold,
        false_reject_rate=_share(rejected[~flawed]),
        miss_rate=_share(~rejected[flawed]),
        n_good=int((~flawed).sum()),
        n_flawed=int(flawed.sum()),
        n_annotated=int((flawed & (evidence.pixel_index >= 0)).sum()),
        by_defect=_by_defect(evidence, rejected),
        verdicts=_verdict_counts(evidence),
        intervals=ends,
        notes=notes,
    )


def _share(flags: npt.NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if flags.size else None


def _by_defect(evidence: Evidence, rejected: npt.NDArray[np.bool_]) -> dict[str, DefectResult]:
    defects = np.array(evidence.defects, dtype=object)
    return {
        name: _defect(evidence, rejected, (defects == name) & evidence.flawed)
        for name in sorted(set(defects[evidence.flawed]))
    }


def _defect(
    evidence: Evidence,
    rejected: npt.NDArray[np.bool_],
    members: npt.NDArray[np.bool_],
) -> DefectResult:
    against = members | ~evidence.flawed
    areas, regions = np.empty(0), 0
    if evidence.pixels is not None:
        own = np.isin(evidence.pixels.region_image, evidence.pixel_index[members])
        areas, regions = evidence.pixels.region_area[own], int(own.sum())
    if evidence.released is not None:
        areas = evidence.released.area[np.isin(evidence.released.image, evidence.pixel_index[members])]
    return DefectResult(
        n=int(members.sum()),
        image_auroc=ranking.auroc(evidence.scores[against], members[against]),
        aupro=float(areas.mean()) if areas.size and np.isfinite(areas).all() else None,
        miss_rate=_share(~rejected[members]),
        n_missed=int((~rejected[members]).sum()),
        n_regions=regions,
        mean_score=float(evidence.scores[members].mean()),
    )


def _verdict_counts(evidence: Evidence) -> dict[str, dict[str, int]]:
    return {
        truth: {
            verdict: sum(
                given == verdict and bool(flag) == (truth == "flawed")
                for given, flag in zip(evidence.verdicts, evidence.flawed, strict=True)
            )
            for verdict in VERDICTS
        }
        for truth in ("good", "flawed")
    }


def _notes(evidence: Evidence, points: dict[bootstrap.Metric, float | None]) -> list[str]:
    """What the data could not give and what a reader would otherwise take wrongly."""
    notes = list(evidence.notes)
    flawed = evidence.flawed
    if not flawed.any():
        notes.append("No flawed test image: only the false reject rate is defined.")
    elif flawed.all():
        notes.append("No good test image: AUROC and the false reject rate are undefined.")
    if flawed.any() and points["pixel_auroc"] is None:
        notes.append("No annotated flaw beside defect-free pixels: pixel AUROC and AUPRO are undefined.")
    elif evidence.released is not None and evidence.aupro is None:
        notes.append(
            "PRO by the released code is undefined: it fails on maps without any spread and where no threshold has a "
            "false-positive rate below 0.3."
        )
    notes += loco_notes(evidence)
    to_review = sum(verdict == "review" and bool(flag) for verdict, flag in zip(evidence.verdicts, flawed, strict=True))
    if to_review:
        images = "1 flawed image was" if to_review == 1 else f"{to_review} flawed images were"
        notes.append(f"{images} sent to review: not rejected, so counted in the miss rate.")
    if points["image_auroc"] == 1.0:
        notes.append(
            "Image scores part good and flawed images perfectly: a bootstrap cannot widen that, so an "
            "interval of zero width speaks of these images only."
        )
    return notes
