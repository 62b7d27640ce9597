"""Everything a page needs to move limits by itself: scores, and what each step of the limit is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from flawsmith.line.model import LimitChange, LimitFacts, LoadedModel
from flawsmith.line.record import Draw, Label, LabelRole, Record
from flawsmith.line.store import AuditEntry
from flawsmith.runtime.decision import LARGEST_SCORE, Decision, images_needed
from flawsmith.runtime.errors import FlawsmithError

MOST_STEPS = 400
"""Steps of a limit: a limit that rejects more good images than that is no limit."""


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
            *(_picked(entry) for entry in _latest_of_each(_of_model(picked, model))),
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


def _latest_of_each(picked: Sequence[AuditEntry]) -> list[AuditEntry]:
    """The latest word on each image."""
    return list({entry.facts["image_sha256"]: entry for entry in reversed(picked)}.values())


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
