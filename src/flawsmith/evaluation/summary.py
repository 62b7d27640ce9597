"""From gathered evidence to the figures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import stats

from flawsmith.evaluation import bootstrap, ranking
from flawsmith.evaluation.evidence import Evidence, ImageRecord, gather
from flawsmith.evaluation.loco import loco_figures, loco_intervals, loco_notes
from flawsmith.evaluation.protocol import CLEAN, Protocol
from flawsmith.evaluation.results import DefectResult, Evaluation
from flawsmith.runtime.bundle import SelectionName, stamps_of

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
        saturated: whether records may have channels; see :func:`flawsmith.evaluation.evidence.gather`.
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
