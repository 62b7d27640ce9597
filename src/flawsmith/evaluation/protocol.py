"""How images are turned into figures, said once and by name."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy import stats

from flawsmith.evaluation import bootstrap, ranking
from flawsmith.evaluation.evidence import Evidence, ImageRecord, gather
from flawsmith.evaluation.loco import loco_figures, loco_intervals, loco_notes
from flawsmith.evaluation.results import DefectResult, Evaluation

__all__ = ["Evidence", "ImageRecord", "Protocol", "evaluate_records", "gather", "summarise"]

REJECT = "reject"
VERDICTS = ("pass", "review", REJECT)
LEVEL = 0.95


class Protocol(Enum):
    """A named set of rules for evaluating."""

    CLEAN = "clean"

    def describe(self) -> str:
        """The rules in words, one sentence each."""
        return _RULES[self]


_RULES = {
    Protocol.CLEAN: (
        "Whole images at their original size, all test images once. "
        "Masks are binarised above zero at their original size; a mask of another size than its image is "
        "resized by the nearest pixel, and noted. "
        "Pixels the model does not look at count with the lowest score. "
        "All figures are exact: every distinct score is a threshold; regions are 8-connected; AUPRO "
        "integrates to a false-positive rate of 0.3, interpolated there. "
        "Where the data set says when each defect counts as found (MVTec LOCO AD), sPRO integrates to a "
        "false-positive rate of 0.05; logical and structural anomalies are taken apart, each with all good images, "
        "and given with their mean (the LOCO mean) and with the value pooled over both. "
        "Image scores are the model's own, not the maximum of its map as in that data set's kit. "
        "Flawed images without a mask count for the image figures only. "
        "Limits were stored with the model before any test image was seen."
    )
}


def evaluate_records(
    records: Iterable[ImageRecord],
    *,
    protocol: Protocol = Protocol.CLEAN,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a stream of inspected images.

    Args:
        records: inspected images with ground truth, in any order; maps are dropped as they come.
        protocol: the rules.
        n_resamples: bootstrap resamples behind the intervals; 0 leaves the bootstrap out.
        seed: seeds the bootstrap.

    Returns:
        Every figure the data can give.

    Raises:
        FlawsmithError: no record, an image twice, or a good image whose mask marks flawed pixels.
        ValueError: a NaN score.
    """
    return summarise(gather(records), protocol=protocol, n_resamples=n_resamples, seed=seed)


def summarise(
    evidence: Evidence,
    *,
    protocol: Protocol = Protocol.CLEAN,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The figures of gathered evidence; arguments as in :func:`evaluate_records`."""
    flawed = evidence.flawed
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
    return Evaluation(
        protocol=protocol.value,
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
        notes=_notes(evidence, points),
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
    areas = np.empty(0)
    if evidence.pixels is not None:
        own = np.isin(evidence.pixels.region_image, evidence.pixel_index[members])
        areas = evidence.pixels.region_area[own]
    return DefectResult(
        n=int(members.sum()),
        image_auroc=ranking.auroc(evidence.scores[against], members[against]),
        aupro=float(areas.mean()) if areas.size and np.isfinite(areas).all() else None,
        miss_rate=_share(~rejected[members]),
        n_missed=int((~rejected[members]).sum()),
        n_regions=int(areas.size),
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
