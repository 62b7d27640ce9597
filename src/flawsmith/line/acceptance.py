"""An acceptance study: parts whose state is known, several times each, judged by the line's model and limits.

The figures are those of an attribute study (AIAG, Measurement Systems Analysis, 4th ed.): effectiveness, miss rate,
false alarm rate, with its bounds for acceptance; beside them what so few parts prove, and how much the score itself
repeats. A part between the limits counts as stopped, as a reject does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.line.limits import upper_bound
from flawsmith.line.store import AuditEntry, Store
from flawsmith.runtime.decision import Verdict
from flawsmith.runtime.errors import FlawsmithError

Truth = Literal["good", "flawed"]
Grade = Literal["acceptable", "marginal", "not acceptable"]
KIND, PLACED = "accept", "placed"
"""Of its entries in the audit: what is done with a study, and its placements, of which there are hundreds."""
_BOUNDS: dict[Grade, tuple[float, float, float]] = {"acceptable": (0.9, 0.02, 0.05), "marginal": (0.8, 0.05, 0.1)}
"""Least effectiveness, largest miss rate and false alarm rate (AIAG, MSA 4th ed., chapter III C)."""


class Plan(BaseModel):
    """How many parts a study has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    good: int = Field(default=50, ge=1, le=1000, description="good parts")
    flawed: int = Field(default=50, ge=1, le=1000, description="flawed parts")
    repeats: int = Field(default=3, ge=1, le=20, description="times that each part is placed")


class Placement(BaseModel):
    """A part that was placed and judged."""

    id: int = Field(description="number of the entry in the audit")
    part: str
    truth: Truth
    verdict: Verdict
    deciding: float = Field(description="the number that is compared with the limit")
    image_sha256: str

    @property
    def is_right(self) -> bool:
        """Whether a good part passed, or a flawed one was stopped."""
        return (self.verdict == "pass") == (self.truth == "good")


class Result(BaseModel):
    """What a study has shown."""

    good_parts: int
    flawed_parts: int
    good_placements: int
    flawed_placements: int
    effective: int = Field(description="parts that were judged rightly every time")
    misses: int = Field(description="placements of flawed parts that passed")
    false_alarms: int = Field(description="placements of good parts that did not pass")
    missed_parts: list[str] = Field(description="flawed parts that passed at least once")
    alarmed_parts: list[str] = Field(description="good parts that did not pass at least once")
    misses_at_most: float | None = Field(description="share of flawed parts, with 95 % confidence; null: none placed")
    false_alarms_at_most: float | None = Field(description="the same of good parts")
    kappa: float | None = Field(description="Cohen's, of verdict and truth over all placements; null: not defined")
    changing: list[str] = Field(description="parts whose verdict was not the same every time")
    repeat_deviation: float | None = Field(
        description="standard deviation of the deciding number among placements of a part, as a share of the limit; "
        "null: no part was placed twice"
    )
    grade: Grade | None = Field(description="by AIAG's bounds; null: good or flawed parts lack")


@dataclass(frozen=True)
class Study:
    """A study as the audit has it.

    Attributes:
        number: of the entry with which it began.
        plan: of it.
        model, limits: that judge: SHA-256 and name.
        limit: the number that decides must not exceed it.
        who, at: who began it, and when.
        placements: in order, without those that were taken back.
        withdrawn: number of the latter.
        signed: by whom it was ended; empty: it goes on.
        ended: when.
    """

    number: int
    plan: Plan
    model: str
    limits: str
    limit: float
    who: str
    at: str
    placements: tuple[Placement, ...] = ()
    withdrawn: int = 0
    signed: str = ""
    ended: str = ""

    @property
    def result(self) -> Result:
        """What it has shown so far."""
        return result_of(self.placements, self.limit)

    def refuse(self, part: str, truth: Truth, image_sha256: str) -> None:
        """Refuse a placement that would spoil the study.

        Raises:
            FlawsmithError: it is over, the part had another state or was placed often enough, or the picture is known.
        """
        if self.signed:
            raise FlawsmithError("the study is over: begin another one")
        same = [placement for placement in self.placements if placement.part == part]
        if any(placement.truth != truth for placement in same):
            raise FlawsmithError(f"part {part} was placed as {same[0].truth} before: give another name")
        if len(same) >= self.plan.repeats:
            raise FlawsmithError(f"part {part} was placed {self.plan.repeats} times already, as planned")
        twin = next((each for each in self.placements if each.image_sha256 == image_sha256), None)
        if twin is not None:
            raise FlawsmithError(f"this is the very picture that was taken of part {twin.part}: take a new one")


def studies(store: Store, line: str) -> list[Study]:
    """The studies of a line, the latest first."""
    by_number: dict[int, list[AuditEntry]] = defaultdict(list)
    for entry in reversed(store.entries(line=line, kind=(KIND, PLACED), count=-1)):
        by_number[entry.facts.get("study", entry.id)].append(entry)
    return [_study(number, entries) for number, entries in sorted(by_number.items(), reverse=True)]


def _study(number: int, entries: Sequence[AuditEntry]) -> Study:
    begun, *later = entries
    placements = {
        entry.id: Placement(id=entry.id, **{name: entry.facts[name] for name in Placement.model_fields if name != "id"})
        for entry in later
        if entry.kind == PLACED
    }
    deeds = [entry for entry in later if entry.kind == KIND]
    withdrawn = [entry.facts["placement"] for entry in deeds if entry.facts["event"] == "withdrawn"]
    end = next((entry for entry in deeds if entry.facts["event"] == "ended"), None)
    return Study(
        number,
        Plan.model_validate(begun.facts["plan"]),
        begun.facts["model"],
        begun.facts["limits"],
        begun.facts["limit"],
        begun.who,
        begun.at,
        tuple(placement for place, placement in placements.items() if place not in withdrawn),
        len(withdrawn),
        "" if end is None else end.facts["signed"],
        "" if end is None else end.at,
    )


def result_of(placements: Sequence[Placement], limit: float) -> Result:
    """What placements show.

    Args:
        placements: of a study.
        limit: on the number that decides.

    Example:
        >>> placed = [
        ...     Placement(id=1, part=name, truth=truth, verdict=verdict, deciding=0.0, image_sha256="")
        ...     for name, truth, verdict in [("a", "good", "pass"), ("b", "flawed", "pass"), ("b", "flawed", "reject")]
        ... ]
        >>> result = result_of(placed, 1.0)
        >>> result.effective, result.misses, result.changing, result.grade
        (1, 1, ['b'], 'not acceptable')
    """
    parts: dict[str, list[Placement]] = defaultdict(list)
    for placement in placements:
        parts[placement.part].append(placement)
    wrong = {part for part, same in parts.items() if not all(each.is_right for each in same)}
    of: dict[Truth, list[Placement]] = {
        truth: [each for each in placements if each.truth == truth] for truth in get_args(Truth)
    }
    errors = {truth: sum(not each.is_right for each in those) for truth, those in of.items()}
    named = {truth: sorted({each.part for each in those}) for truth, those in of.items()}
    wrong_of = {truth: [part for part in names if part in wrong] for truth, names in named.items()}
    bounds = {truth: upper_bound(len(wrong_of[truth]), len(names)) if names else None for truth, names in named.items()}
    grade: Grade | None = None
    if of["good"] and of["flawed"]:
        shares = (
            (len(parts) - len(wrong)) / len(parts),
            errors["flawed"] / len(of["flawed"]),
            errors["good"] / len(of["good"]),
        )
        grade = next((name for name, bound in _BOUNDS.items() if _is_within(shares, bound)), "not acceptable")
    return Result(
        good_parts=len(named["good"]),
        flawed_parts=len(named["flawed"]),
        good_placements=len(of["good"]),
        flawed_placements=len(of["flawed"]),
        effective=len(parts) - len(wrong),
        misses=errors["flawed"],
        false_alarms=errors["good"],
        missed_parts=wrong_of["flawed"],
        alarmed_parts=wrong_of["good"],
        misses_at_most=bounds["flawed"],
        false_alarms_at_most=bounds["good"],
        kappa=_kappa(len(of["good"]), len(of["flawed"]), errors["good"], errors["flawed"]),
        changing=sorted(part for part, same in parts.items() if len({each.verdict for each in same}) > 1),
        repeat_deviation=_repeat_deviation(list(parts.values()), limit),
        grade=grade,
    )


def _is_within(shares: tuple[float, float, float], bounds: tuple[float, float, float]) -> bool:
    return shares[0] >= bounds[0] and shares[1] <= bounds[1] and shares[2] <= bounds[2]


def _kappa(good: int, flawed: int, false_alarms: int, misses: int) -> float | None:
    """Cohen's kappa of two states, from placements and those judged wrongly."""
    total = good + flawed
    if not total:
        return None
    stopped = flawed - misses + false_alarms
    agreed = 1 - (false_alarms + misses) / total
    chance = (flawed * stopped + good * (total - stopped)) / total**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def _repeat_deviation(parts: Sequence[Sequence[Placement]], limit: float) -> float | None:
    """Pooled standard deviation among placements of a part, as a share of the limit."""
    repeated = [np.array([each.deciding for each in same]) for same in parts if len(same) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    if not freedom or limit <= 0:
        return None
    return math.sqrt(sum(float(((values - values.mean()) ** 2).sum()) for values in repeated) / freedom) / limit
