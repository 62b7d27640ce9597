"""From what an evaluation took in to its figures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import stats

from flawsmith.data.layouts.mvtec import LOGICAL, STRUCTURAL
from flawsmith.metrics import bootstrap, ranking
from flawsmith.metrics.collect import EvaluationState, ScoredImage, accumulate
from flawsmith.metrics.protocol import CLEAN, Protocol
from flawsmith.metrics.results import DefectResult, Evaluation
from flawsmith.metrics.what_if import LimitStep, limit_steps, telling
from flawsmith.runtime.bundle import SelectionName, stamps_of
from flawsmith.runtime.decision import Decision

REJECT = "reject"
VERDICTS = ("pass", "review", REJECT)
LEVEL = 0.95
_ROUNDED: tuple[bootstrap.Metric, ...] = ("image_auroc", "pixel_auroc")


def evaluate_images(
    images: Iterable[ScoredImage],
    *,
    protocol: Protocol = CLEAN,
    saturated: bool = True,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a stream of inspected images.

    Args:
        images: inspected images with ground truth, in any order; maps are dropped as they come.
        protocol: the rules.
        saturated: whether images may have channels; see :class:`flawsmith.metrics.collect.MetricCollection`.
        n_resamples: bootstrap resamples behind the intervals; 0 leaves the bootstrap out.
        seed: seeds the bootstrap.

    Returns:
        Every figure the data can give.

    Raises:
        FlawsmithError: no image, an image twice, a good image whose mask marks flawed pixels, or a full disk.
        ValueError: a NaN score, or an image that lacks what the protocol measures.

    >>> part = np.array([[0.1, 0.9]], dtype=np.float32)
    >>> good = ScoredImage("a.png", 0.2, "pass", "good", False, 0 * part)
    >>> flawed = ScoredImage("b.png", 0.9, "reject", "dent", True, part, part > 0.5)
    >>> result = evaluate_images([good, flawed], n_resamples=0)
    >>> result.image_auroc, result.aupro, result.miss_rate
    (1.0, 1.0, 0.0)
    """
    state = accumulate(images, protocol=protocol, saturated=saturated)
    return summarise(state, n_resamples=n_resamples, seed=seed)


def summarise(
    state: EvaluationState,
    *,
    selection: SelectionName = "last",
    decision: Decision | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The figures of an evaluation, by the protocol by which its images were taken in.

    Args:
        state: what was taken in.
        selection: how the model's checkpoint was chosen; figures of one chosen on test data say so.
        decision: the limits behind the verdicts, whose promise stands beside them; None: not known.
        n_resamples: bootstrap resamples behind the intervals; 0 leaves the bootstrap out.
        seed: seeds the bootstrap.

    Returns:
        Every figure the data can give.

    >>> images = [ScoredImage(str(score), score, "pass", "dent", score > 0.5) for score in (0.2, 0.4, 0.9)]
    >>> summarise(accumulate(images), n_resamples=0).image_auroc
    1.0
    """
    protocol, flawed = state.protocol, state.flawed
    rejected = np.array([verdict == REJECT for verdict in state.verdicts])
    points = bootstrap.point_estimates(state)
    ends: dict[str, tuple[float, float]] = {}
    if n_resamples > 0:
        ends.update(bootstrap.intervals(state, level=LEVEL, n_resamples=n_resamples, seed=seed).items())
    for name, hit in (("false_reject_rate", rejected[~flawed]), ("miss_rate", ~rejected[flawed])):
        if hit.size:
            exact = stats.binomtest(int(hit.sum()), hit.size).proportion_ci(LEVEL, method="exact")
            ends[name] = (float(exact.low), float(exact.high))
    threshold = ranking.f1_max_threshold(state.scores, flawed)
    if flawed.all():  # every order of flawed images alone is a perfect one, which says nothing
        points |= {"image_ap": None, "image_f1_max": None}
        ends = {name: interval for name, interval in ends.items() if name not in ("image_ap", "image_f1_max")}
        threshold = None
    notes = _notes(state, points)
    promised = decision if decision is not None and decision.held_out else None
    if protocol.rounding == "three_decimals":
        points |= {name: round(value, 3) for name in _ROUNDED if (value := points[name]) is not None}
    return Evaluation(
        protocol=protocol.name,
        deviations=protocol.deviations(),
        selection=selection,
        stamps=[*stamps_of(selection), *protocol.caveats()],
        **points,
        image_f1_threshold=threshold,
        false_reject_rate=_rate(rejected[~flawed]),
        miss_rate=_rate(~rejected[flawed]),
        stated_false_reject_rate=None if promised is None else promised.stated_false_reject_rate,
        worst_false_reject_rate=None if promised is None else promised.worst_false_reject_rate,
        n_good=int((~flawed).sum()),
        n_flawed=int(flawed.sum()),
        n_annotated=int((flawed & (state.pixel_index >= 0)).sum()),
        what_if=_what_if(state, decision),
        by_defect=_by_defect(state, rejected),
        verdicts=_verdict_counts(state),
        intervals=ends,
        notes=notes,
    )


def _what_if(state: EvaluationState, decision: Decision | None) -> list[LimitStep]:
    """What other limits would have done, where the state knows the numbers that the limit is set on."""
    if decision is None or state.deciding is None or decision.by_regions != (state.levels is not None):
        return []
    good, flawed = state.deciding[~state.flawed], state.deciding[state.flawed]
    return telling(limit_steps(good, flawed, decision.deciding_limit), good.size)


def _rate(flags: npt.NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if flags.size else None


def _by_defect(state: EvaluationState, rejected: npt.NDArray[np.bool_]) -> dict[str, DefectResult]:
    defects = np.array(state.defects, dtype=object)
    return {
        name: _defect(state, rejected, (defects == name) & state.flawed) for name in sorted(set(defects[state.flawed]))
    }


def _defect(
    state: EvaluationState,
    rejected: npt.NDArray[np.bool_],
    members: npt.NDArray[np.bool_],
) -> DefectResult:
    against = members | ~state.flawed
    areas, n_regions = np.empty(0), 0
    if state.pixels is not None:
        images = state.pixel_index[members & (state.pixel_index >= 0)]
        areas = state.pixels.region_area[np.isin(state.pixels.region_image, images)]
        n_regions = int(state.pixels.counts.n_regions[images].sum())
    return DefectResult(
        n=int(members.sum()),
        image_auroc=ranking.auroc(state.scores[against], members[against]),
        aupro=float(areas.mean()) if areas.size and np.isfinite(areas).all() else None,
        miss_rate=_rate(~rejected[members]),
        n_missed=int((~rejected[members]).sum()),
        n_regions=n_regions,
        mean_score=float(state.scores[members].mean()),
    )


def _verdict_counts(state: EvaluationState) -> dict[str, dict[str, int]]:
    return {
        truth: {
            verdict: sum(
                decided == verdict and bool(flag) == (truth == "flawed")
                for decided, flag in zip(state.verdicts, state.flawed, strict=True)
            )
            for verdict in VERDICTS
        }
        for truth in ("good", "flawed")
    }


def _notes(state: EvaluationState, points: dict[bootstrap.Metric, float | None]) -> list[str]:
    """What the data could not give and what a reader would otherwise take wrongly."""
    notes = list(state.notes)
    flawed = state.flawed
    if not flawed.any():
        notes.append("No flawed test image: only the false reject rate is defined.")
    elif flawed.all():
        notes.append("No good test image: AUROC, AP, F1 and the false reject rate are undefined.")
    if flawed.any() and points["pixel_auroc"] is None:
        notes.append("No annotated flaw beside defect-free pixels: pixel AUROC and AUPRO are undefined.")
    elif state.protocol.pro != "exact" and state.pixels is not None and state.pixels.overlap is None:
        notes.append(
            "PRO by the released code is undefined: it fails on maps without any spread and where no threshold has a "
            "false-positive rate below 0.3."
        )
    kinds = {"logical": state.of_kind(LOGICAL), "structural": state.of_kind(STRUCTURAL)}
    missing = [name for name, members in kinds.items() if not members.any()]
    if len(missing) == 1:
        notes.append(
            f"No {missing[0]} anomalies among the images: the LOCO mean of logical and structural is undefined."
        )
    reviewed = flawed[np.array(state.verdicts) == "review"]
    for kind, number, counted in (
        ("flawed", int(reviewed.sum()), "counted in the miss rate"),
        ("good", int((~reviewed).sum()), "not counted in the false reject rate"),
    ):
        if number:
            images = f"1 {kind} image was" if number == 1 else f"{number} {kind} images were"
            notes.append(f"{images} sent to review: not rejected, so {counted}.")
    if points["image_auroc"] == 1.0:
        notes.append(
            "Scores of good and flawed test images do not overlap, so the intervals have zero width: more test images "
            "would show the real uncertainty."
        )
    return notes
