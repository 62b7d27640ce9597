"""What reviews prove: how many flaws pass, and how many rejects were good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, Field

from flawsmith.line.record import WITHDRAWN, Draw, Record
from flawsmith.line.store import AuditEntry
from flawsmith.runtime.decision import CONFIDENCE, parts_of_1000, worst_rate


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
    in_use = (model, limits)
    now = [(record, entry) for record, entry in labelled if (record.model_sha256, record.limits) == in_use]
    labels: dict[str, int] = defaultdict(int)
    today: dict[str, int] = defaultdict(int)
    for _, entry in labelled:
        labels[entry.facts["label"]] += 1
        if entry.at >= since:
            today[entry.facts["label"]] += 1
    twice, agreed = _second_opinions(said)
    return Evidence(
        waiting=waiting,
        labels=dict(labels),
        today=dict(today),
        misses=_misses(*_count(now, "passes", "flawed")),
        overkill=_overkill(*_count(now, "rejects", "good")),
        twice=twice,
        agreed=agreed,
    )


def _count(labelled: Sequence[tuple[Record, AuditEntry]], draw: Draw, wrong: str) -> tuple[int, int]:
    """Labels that contradict the verdict, and all clear ones, of parts that were drawn so."""
    drawn = [entry.facts["label"] for _, entry in labelled if entry.facts.get("draw") == draw]
    return sum(label == wrong for label in drawn), sum(label in ("good", "flawed") for label in drawn)


def _misses(wrong: int, looked_at: int) -> Share:
    if not looked_at:
        return Share(wrong=0, looked_at=0, at_most_of_1000=None, words="No pass was audited yet: misses are unknown.")
    bound = upper_bound(wrong, looked_at)
    words = (
        f"Misses: {wrong} flawed in {looked_at:,} audited passes. {100 * CONFIDENCE:.0f} % sure: no more than "
        f"{parts_of_1000(bound, up=True)} of 1,000 parts that pass are flawed."
    )
    return Share(wrong=wrong, looked_at=looked_at, at_most_of_1000=1000 * bound, words=words)


def _overkill(wrong: int, looked_at: int) -> Share:
    if not looked_at:
        words = "No reject was audited yet: how many of them are good is unknown."
        return Share(wrong=0, looked_at=0, at_most_of_1000=None, words=words)
    bound = upper_bound(wrong, looked_at)
    words = f"Overkill: {wrong} of {looked_at:,} rejects looked at were good."
    if wrong < looked_at:
        words += (
            f" {100 * CONFIDENCE:.0f} % sure: no more than {parts_of_1000(bound, up=True)} of 1,000 rejects are good."
        )
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
