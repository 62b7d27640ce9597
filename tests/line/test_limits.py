"""What stands beside limits that are to be moved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flawsmith.line.limits import _counts, steps_of
from flawsmith.runtime.decision import LARGEST_SCORE, Decision, GroupFigures


@pytest.mark.parametrize(
    ("deciding", "sha256", "counts"),
    [(0.4, "a", True), (0.4, "b", False), (None, "a", False), (-LARGEST_SCORE, "a", False)],
)
def test_part_that_no_limit_rejects_is_no_point_on_the_axis(
    deciding: float | None, sha256: str, *, counts: bool
) -> None:
    record: Any = SimpleNamespace(model_sha256=sha256, deciding=deciding)
    model: Any = SimpleNamespace(sha256="a")

    assert _counts(record, model) == counts


def test_steps_promise_what_the_limits_there_would() -> None:
    groups = GroupFigures(by="day", count=5, variance_share=0.1)
    decision = Decision(limit=9.0, map_limit=1.0, stated_false_reject_rate=1 / 41, n_good=40, groups=groups)

    steps = steps_of([float(score) for score in range(40, 0, -1)], decision)  # type: ignore[arg-type]

    assert steps[0].rejected_of_1000_at_worst == pytest.approx(1000 * decision.worst_false_reject_rate)
    worst = [step.rejected_of_1000_at_worst for step in steps]
    assert worst == sorted(worst)
    assert worst[0] > 80, "of a group that the limit does not know: more than the 72 of parts of the same days"
