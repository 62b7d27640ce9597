"""The limits of a line: what they promise, how they may move, and what people who look at parts say of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.calibration.groups import group_figures
from flawsmith.line.record import WITHDRAWN, Draw, Label, LabelRole, Record
from flawsmith.line.store import AuditEntry
from flawsmith.runtime.decision import (
    CONFIDENCE,
    FEW_GOOD_IMAGES,
    LARGEST_SCORE,
    Decision,
    choose_limits,
    images_needed,
    parts_of_1000,
    worst_rate,
)
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.line.model import LoadedModel

MOST_STEPS = 400
"""Steps of a limit: a limit that rejects more good images than that is no limit."""
BY = "day"
"""What makes the groups of audited parts."""


class LimitChange(BaseModel):
    """New limits, from the scores of the good images that the model file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_false_rejects: str | float | None = Field(
        default=None, description="share of good parts that may be rejected: 10/1000, 1% or 0.01"
    )
    review_rate: str | float | None = Field(
        default=None, description="share that may be rejected or go to review, likewise; none: no review"
    )
    use: str | None = Field(default=None, max_length=64, description="or limits that were in use before, by their name")


class LimitFacts(BaseModel):
    """Limits in use, and what they are worth."""

    limits: str = Field(description="their name")
    decides: str = Field(description="score or map")
    limit: float = Field(description="above it is a reject")
    review_limit: float | None = Field(description="above it is a review")
    good_images: int = Field(description="good images behind them")
    rejected_of_1000: float = Field(description="good parts rejected, in the mean")
    rejected_of_1000_at_worst: float = Field(description="the same with 95 % confidence")
    promise: str = Field(description="both in words")

    @classmethod
    def of(cls, decision: Decision) -> LimitFacts:
        """What there is to say of limits."""
        return cls(
            limits=decision.identity,
            decides="map" if decision.by_regions else "score",
            limit=decision.map_limit if decision.by_regions else decision.limit,
            review_limit=decision.review_limit,
            good_images=decision.n_good,
            rejected_of_1000=1000 * decision.stated_false_reject_rate,
            rejected_of_1000_at_worst=1000 * decision.worst_false_reject_rate,
            promise=decision.promise,
        )


class LimitPreview(BaseModel):
    """What a change of limits would do."""

    before: LimitFacts
    after: LimitFacts
    good_before: dict[str, int] = Field(description="good images behind the limits by verdict; empty: not stored")
    good_after: dict[str, int]
    recent: int = Field(description="latest parts of this model that could be judged again, at most 1,000")
    changes: dict[str, int] = Field(description="of these by change of verdict, such as pass -> reject")
    changed: list[int] = Field(description="their records, the latest, at most 20")


class NotedLimits(NamedTuple):
    """Limits that were set on a line, and what they rest on, as `LoadedModel.audited`."""

    decision: Decision
    audited: Mapping[str, NDArray[Any]] | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> NotedLimits:
        """As an entry of the audit has them."""
        audited = facts.get("audited")
        arrays = None if audited is None else {name: np.array(values) for name, values in audited.items()}
        return cls(Decision(**facts["decision"]), arrays)


# Scores and steps, for a page that moves limits by itself


class Step(BaseModel):
    """A limit at one of the good images behind it."""

    limit: float = Field(description="that rejects all above it")
    rejected_of_1000: float = Field(description="good parts rejected, in the mean")
    rejected_of_1000_at_worst: float = Field(description="the same with 95 % confidence")


class Reviewed(BaseModel):
    """A part of which a person has said what it is."""

    id: int | None = Field(description="number of the record; null: it was tried and kept")
    picked: int | None = Field(default=None, description="number of the audit's entry of an image that was kept")
    deciding: float
    label: Label
    draw: Draw | None = Field(description="how it came before the person; null: somebody picked it")
    inclusion: float | None = Field(description="probability with which such a part came; null: none is known")
    role: LabelRole


class Recent(BaseModel):
    """Latest parts that this model has judged under this setting, the newest first, in columns."""

    id: list[int]
    deciding: list[float]
    image: list[bool] = Field(description="whether the image was kept")


class LimitScores(BaseModel):
    """Scores behind the limits in use, and all steps that the limits can take."""

    now: LimitFacts
    can_move: bool = Field(description="whether the model file holds the scores behind its limits")
    why_not: str = Field(default="", description="what to do where they cannot be moved")
    zones: bool = Field(description="with zones a step moves several limits at once: the preview alone is exact")
    held_out: bool = Field(description="whether the model did not learn from the good images")
    audited: bool = Field(description="whether they are parts of the line that people have looked at")
    good: list[float] = Field(description="numbers that decide, of the good images, the largest first")
    groups: list[int] | None = Field(description="numbers of their groups; null: none are known")
    groups_by: str = Field(description="what makes the groups")
    forged: list[float] = Field(description="scores of synthetic flaws; empty where the map decides")
    steps: list[Step] = Field(description="limits at the largest good image, the second largest and so on")
    needed: tuple[int, int] = Field(description="good images that 10 of 1,000 take: in the mean, and proven")
    reviewed: list[Reviewed]
    recent: Recent
    earlier: list[str] = Field(description="names of limits that were in use before, the latest first")


def limit_scores(
    model: LoadedModel,
    *,
    recent: Sequence[Record],
    has_image: Sequence[bool],
    labelled: Sequence[tuple[Record, AuditEntry]],
    picked: Sequence[AuditEntry],
    changes: Sequence[AuditEntry],
) -> LimitScores:
    """What there is to know before the limits of a model are moved.

    Args:
        model: with the limits in use.
        recent: records of the line, the newest first.
        has_image: whether the image of each was kept.
        labelled: records with what a person said of them last.
        picked: images that were tried and kept, as the audit has them, the latest first.
        changes: of limits, as the audit has them, the latest first.
    """
    decision = model.decision
    good, groups = model.good_behind, model.groups_behind
    tolerance, why_not = _tolerance(model, good)
    order = np.argsort(-good, kind="stable")
    good = good[order]
    judged = [(record, kept) for record, kept in zip(recent, has_image, strict=True) if _counts(record, model)]
    arrays = {} if decision.by_regions else model.bundle.calibration
    forged = np.asarray(arrays.get("forged", ()), np.float64).ravel()
    latest = {entry.facts["image_sha256"]: entry for entry in reversed(_of_model(picked, model))}  # word on each image
    names = dict.fromkeys(entry.facts["effect"]["before"]["limits"] for entry in _of_model(changes, model))
    return LimitScores(
        now=LimitFacts.of(decision),
        can_move=not why_not,
        why_not=why_not,
        zones=bool(decision.zones),
        held_out=decision.held_out,
        audited=model.audited is not None,
        good=good.tolist(),
        groups=None if groups is None else groups[order].tolist(),
        groups_by="" if decision.groups is None else decision.groups.by,
        forged=sorted(forged.tolist(), reverse=True),
        steps=[] if why_not else steps_of(good + tolerance, decision),
        needed=images_needed(0.01),
        reviewed=[
            *(_reviewed(*pair) for pair in labelled if _counts(pair[0], model)),
            *(_picked(entry) for entry in latest.values()),
        ],
        recent=Recent(
            id=[record.id for record, _ in judged],
            deciding=[record.deciding or 0.0 for record, _ in judged],
            image=[kept for _, kept in judged],
        ),
        earlier=[name for name in names if name != decision.identity],
    )


def _of_model(changes: Sequence[AuditEntry], model: LoadedModel) -> list[AuditEntry]:
    return [entry for entry in changes if entry.facts["model"] == model.sha256]


def _counts(record: Record, model: LoadedModel) -> bool:
    """Whether the number that decided about a part can stand beside limits: a part that no limit rejects has none."""
    return record.model_sha256 == model.sha256 and record.deciding is not None and record.deciding > -LARGEST_SCORE


def _reviewed(record: Record, entry: AuditEntry) -> Reviewed:
    facts = entry.facts
    return Reviewed(
        id=record.id,
        deciding=record.deciding or 0.0,
        label=facts["label"],
        draw=facts.get("draw"),
        inclusion=record.inclusion,
        role=facts.get("role", "calibrate"),
    )


def _picked(entry: AuditEntry) -> Reviewed:
    facts = entry.facts
    return Reviewed(
        id=None,
        picked=entry.id,
        deciding=facts["deciding"],
        label=facts["label"],
        draw=None,
        inclusion=None,
        role=facts["role"],
    )


def _tolerance(model: LoadedModel, good: NDArray[np.float64]) -> tuple[float, str]:
    """How far a limit lies above the image that sets it, as engines differ a little; and why there can be no others."""
    if not good.size:
        return 0.0, "the model file does not hold the scores behind its limits: calibrate with a folder of good images"
    change = LimitChange(max_false_rejects=1 / (good.size + 1), review_rate="none")
    try:
        strictest = model.decision_of(change, ())
    except FlawsmithError as error:
        return 0.0, str(error)
    return 0.0 if strictest.zones else strictest.deciding_limit - float(good.max()), ""


def steps_of(limits: NDArray[np.float64], decision: Decision) -> list[Step]:
    """What limits at each of the good images promise.

    Args:
        limits: (n,) the largest first.
        decision: the limits in use, which rest on the same images.

    Example:
        >>> in_use = Decision(limit=199, map_limit=1, stated_false_reject_rate=1 / 201, n_good=200)
        >>> [round(step.rejected_of_1000_at_worst) for step in steps_of(np.arange(200.0)[::-1], in_use)[:2]]
        [15, 23]
    """
    return [
        Step(
            limit=float(limit),
            rejected_of_1000=1000 * rank / (len(limits) + 1),
            rejected_of_1000_at_worst=1000 * decision.worst_rate_at(rank),
        )
        for rank, limit in enumerate(limits[:MOST_STEPS], 1)
    ]


# What reviews prove


class Share(BaseModel):
    """A share of parts that were drawn at random, with what it proves."""

    wrong: int = Field(description="of those looked at: flawed among passes, good among rejects")
    looked_at: int = Field(description="with a clear label")
    at_most_of_1000: float | None = Field(description="with 95 % confidence; null: nothing is proven yet")
    words: str


class Evidence(BaseModel):
    """What the reviews of a line say of its model and limits in use."""

    waiting: dict[Draw, int] = Field(description="parts that wait, by how they came")
    labels: dict[str, int] = Field(description="labels of all parts that were looked at")
    today: dict[str, int] = Field(description="labels since the begin of the day that was asked for")
    misses: Share
    overkill: Share
    twice: int = Field(description="parts that two people have looked at")
    agreed: int = Field(description="of these, parts of which both said the same")


def upper_bound(wrong: int, looked_at: int) -> float:
    """The share that is not exceeded, with 95 % confidence: Clopper and Pearson's bound.

    Args:
        wrong: of those looked at.
        looked_at: parts drawn at random.

    Example:
        >>> round(upper_bound(0, 299), 4), upper_bound(3, 3)
        (0.01, 1.0)
    """
    return 1.0 if wrong >= looked_at else worst_rate(wrong + 1, looked_at)


def evidence(
    labelled: Sequence[tuple[Record, AuditEntry]],
    said: Sequence[AuditEntry],
    waiting: dict[Draw, int],
    *,
    limits: str | None,
    model: str | None,
    since: str,
) -> Evidence:
    """What reviews prove.

    Args:
        labelled: records with what was said of them last.
        said: all reviews of the line, the newest first.
        waiting: parts that wait, by how they came.
        limits, model: name of the limits in use and SHA-256 of the model: verdicts by others prove nothing of them.
        since: begin of the day, UTC.
    """
    drawn: dict[str | None, list[str]] = defaultdict(list)
    for record, entry in labelled:
        if (record.model_sha256, record.limits) == (model, limits):
            drawn[entry.facts.get("draw")].append(entry.facts["label"])
    twice, agreed = _second_opinions(said)
    return Evidence(
        waiting=waiting,
        labels=Counter(entry.facts["label"] for _, entry in labelled),
        today=Counter(entry.facts["label"] for _, entry in labelled if entry.at >= since),
        misses=_share(
            drawn["passes"],
            "flawed",
            none="No pass was audited yet: misses are unknown.",
            some="Misses: {} flawed in {:,} audited passes.",
            proven="parts that pass are flawed",
        ),
        overkill=_share(
            drawn["rejects"],
            "good",
            none="No reject was audited yet: how many of them are good is unknown.",
            some="Overkill: {} of {:,} rejects looked at were good.",
            proven="rejects are good",
        ),
        twice=twice,
        agreed=agreed,
    )


def _share(labels: Sequence[str], wrong_label: Label, *, none: str, some: str, proven: str) -> Share:
    """What the clear ones among labels prove, of which one kind contradicts the verdict."""
    wrong, looked_at = labels.count(wrong_label), labels.count("good") + labels.count("flawed")
    if not looked_at:
        return Share(wrong=0, looked_at=0, at_most_of_1000=None, words=none)
    bound, words = upper_bound(wrong, looked_at), some.format(wrong, looked_at)
    if wrong < looked_at:
        words += f" {100 * CONFIDENCE:.0f} % sure: no more than {parts_of_1000(bound, up=True)} of 1,000 {proven}."
    return Share(wrong=wrong, looked_at=looked_at, at_most_of_1000=1000 * bound, words=words)


def _second_opinions(said: Sequence[AuditEntry]) -> tuple[int, int]:
    """Parts that two people have looked at, and those of which their last words are the same."""
    by_part: dict[int, dict[str, str]] = defaultdict(dict)
    for entry in reversed(said):
        by_part[entry.facts["record"]][entry.who] = entry.facts["label"]
    opinions = [
        labels for people in by_part.values() if len(labels := [x for x in people.values() if x != WITHDRAWN]) > 1
    ]
    return len(opinions), sum(len(set(labels)) == 1 for labels in opinions)


# Limits from parts that people have looked at: those of the random audit alone, which no score has chosen


@dataclass(frozen=True)
class AuditedParts:
    """Good parts that were drawn at random, whatever the line said of them.

    Attributes:
        deciding: (n,) the numbers that decide.
        days: (n,) when they came.
        flawed, unclear, kept: parts of the same draw that set no limit: flawed, unclear, or kept to measure with.
        later: good ones that count once parts before them were looked at.
    """

    deciding: tuple[float, ...] = ()
    days: tuple[str, ...] = ()
    flawed: int = 0
    unclear: int = 0
    kept: int = 0
    later: int = 0


def audited_parts(
    labelled: Sequence[tuple[Record, AuditEntry]],
    waiting: Iterable[Record],
    is_drawn: Callable[[Record], bool],
    counts: Callable[[Record], bool],
) -> AuditedParts:
    """The good parts of the random audit.

    The draw does not look at verdicts: of the parts between the limits, which all wait for a person, those count that
    the same draw would have taken anyway, as long as there was an audit. So that nobody chooses by what they look at
    first, parts count up to the first one of the draw that nobody has looked at.

    Args:
        labelled: records with what was said of them last, the oldest first.
        waiting: records that nobody has looked at, the oldest first.
        is_drawn: whether the draw takes a part.
        counts: whether a record's number compares with the limits in use.
    """
    first_waiting = next((record.id for record in waiting if counts(record) and is_drawn(record)), None)
    last_drawn = max(
        (record.id for record, _ in labelled if record.inclusion and record.verdict != "review"), default=0
    )
    good: dict[str, Record] = {}
    flawed = unclear = kept = later = 0
    for record, entry in labelled:
        if record.id > last_drawn or record.deciding is None or not counts(record) or not is_drawn(record):
            continue
        facts = entry.facts
        if first_waiting is not None and record.id > first_waiting:
            later += facts["label"] == "good"
        elif facts["label"] != "good":
            flawed += facts["label"] == "flawed"
            unclear += facts["label"] == "unclear"
        elif facts.get("role", "calibrate") != "calibrate":
            kept += 1
        else:
            good[record.image_sha256] = record
    parts = good.values()
    deciding = tuple(record.deciding for record in parts if record.deciding is not None)
    return AuditedParts(deciding, tuple(record.received[:10] for record in parts), flawed, unclear, kept, later)


def limits_from(
    decision: Decision,
    behind: Mapping[str, NDArray[Any]],
    *,
    alpha: float | None = None,
    review_alpha: float | None = None,
    tolerance: float = 0.0,
) -> Decision:
    """The limits of a setting from the numbers that decide of other good parts.

    Args:
        decision: limits in use; what they are asked for stays unless it is given.
        behind: ``good`` (n,) numbers that decide, and perhaps ``good_groups`` (n,) numbers of their days.
        alpha: share of good parts that may be rejected.
        review_alpha: share that may lie above the review limit; 0: there is none.
        tolerance: by how much engines may differ.

    Raises:
        FlawsmithError: the setting has zones, whose limits take more than one number a part, or a rate is impossible.

    Example:
        >>> limits = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=0.01, n_good=99)
        >>> new = limits_from(limits, {"good": np.linspace(0, 1, 199)}, alpha=0.05)
        >>> round(new.limit, 3), new.map_limit, new.n_good
        (0.955, 0.5, 199)
    """
    if decision.zones:
        raise FlawsmithError("zones have limits of their own: calibrate with a folder of good images")
    good = np.asarray(behind["good"], np.float64)
    alpha = decision.target_false_reject_rate if alpha is None else alpha
    review_alpha = decision.target_review_rate if review_alpha is None else review_alpha or None
    chosen = choose_limits(good, good, alpha=alpha, review_alpha=review_alpha, tolerance=tolerance)
    groups = behind.get("good_groups")
    names = [""] * len(good) if groups is None else [f"{BY} {number}" for number in groups]
    return decision.model_copy(
        update={
            "map_limit" if decision.by_regions else "limit": chosen.limit,
            "review_limit": chosen.review_limit,
            "target_false_reject_rate": alpha,
            "target_review_rate": review_alpha,
            "stated_false_reject_rate": chosen.stated_false_reject_rate,
            "n_good": chosen.n_good,
            "held_out": True,
            "cross_fitted": None,
            "trimmed": 0,
            "repeat_deviation": None,
            "chosen_on_flawed": False,
            "groups": group_figures(good, names, alpha=alpha, by=BY),
        }
    )


def scores_behind(parts: AuditedParts) -> dict[str, NDArray[Any]]:
    """What limits from audited parts rest on.

    Raises:
        FlawsmithError: there are too few.
    """
    missing = FEW_GOOD_IMAGES - len(parts.deciding)
    if missing > 0:
        raise FlawsmithError(
            f"{len(parts.deciding)} good parts of the random audit were looked at; {missing} more are needed before "
            "they say anything of a limit"
        )
    numbers = np.unique(parts.days, return_inverse=True)[1].astype(np.int32).ravel()
    return {"good": np.array(parts.deciding, np.float64), "good_groups": numbers}
