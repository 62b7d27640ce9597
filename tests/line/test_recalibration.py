"""Limits from parts that people have looked at rest on the random audit alone."""

from __future__ import annotations

import numpy as np
import pytest

from flawsmith.line.limits import AuditedParts, audited_parts, limits_from, scores_behind
from flawsmith.line.record import Record
from flawsmith.line.store import AuditEntry
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError

LIMITS = Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=0.05, n_good=19, target_false_reject_rate=0.1)


def is_even(part: Record) -> bool:
    """The draw of these tests."""
    return part.id % 2 == 0


def is_any(part: Record) -> bool:
    """All parts compare with the limits in use."""
    return True


def record(number: int, *, deciding: float = 0.3, verdict: str = "pass") -> Record:
    facts = {
        "inclusion": 1.0 if verdict == "review" else 0.5,
        "line": "bolt",
        "source": "http",
        "clock": 0.0,
        "received": f"2026-11-{10 + number % 3}T08:00:00",
    }
    return Record(id=number, image_sha256=f"{number:064d}", verdict=verdict, deciding=deciding, **facts)


def labelled(part: Record, label: str = "good", **facts: object) -> tuple[Record, AuditEntry]:
    return part, AuditEntry(part.id, "", "review", "anna", "bolt", {"label": label, **facts}, "")


def test_parts_count_by_the_draw_alone_whatever_the_line_said() -> None:
    said = [labelled(record(1)), labelled(record(2, verdict="review")), labelled(record(4, verdict="reject"))]

    parts = audited_parts([*said, labelled(record(6))], [], is_even, is_any)

    assert (len(parts.deciding), parts.days) == (3, ("2026-11-12", "2026-11-11", "2026-11-10"))


def test_parts_count_up_to_the_first_of_the_draw_that_nobody_has_looked_at() -> None:
    said = [labelled(record(number)) for number in (2, 4, 8, 10)]

    parts = audited_parts(said, [record(5), record(6)], is_even, is_any)

    assert (len(parts.deciding), parts.later) == (2, 2)


def test_parts_between_the_limits_count_no_longer_than_there_was_an_audit() -> None:
    said = [labelled(record(2)), labelled(record(4, verdict="review")), labelled(record(6))]

    parts = audited_parts([*said, labelled(record(8, verdict="review"))], [], is_even, is_any)

    assert len(parts.deciding) == 3


def test_parts_that_set_no_limit_are_counted_apart() -> None:
    said = [
        labelled(record(2), "flawed"),
        labelled(record(4), "unclear"),
        labelled(record(6), role="test"),
        labelled(record(8)),
    ]

    parts = audited_parts(said, [], is_even, is_any)

    assert (len(parts.deciding), parts.flawed, parts.unclear, parts.kept) == (1, 1, 1, 1)


def test_parts_of_another_model_neither_count_nor_hold_others_back() -> None:
    parts = audited_parts([labelled(record(2)), labelled(record(4))], [record(2)], is_even, lambda part: part.id > 3)

    assert (len(parts.deciding), parts.later) == (1, 0)


def test_a_limit_from_parts_keeps_its_promise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good = rng.normal(size=99)

    limits = limits_from(LIMITS, {"good": good, "good_groups": np.arange(99) // 33}, alpha=0.05)

    assert (limits.n_good, limits.stated_false_reject_rate, limits.held_out) == (99, 0.05, True)
    assert (good > limits.limit).sum() == 4  # the fifth largest of 99 is the limit
    assert limits.map_limit == LIMITS.map_limit
    assert limits.groups is not None
    assert (limits.groups.by, limits.groups.count) == ("day", 3)


def test_few_parts_say_nothing_of_a_limit() -> None:
    with pytest.raises(FlawsmithError, match=r"3 good parts .* 17 more are needed"):
        scores_behind(AuditedParts((0.1, 0.2, 0.3), ("a", "a", "b")))
