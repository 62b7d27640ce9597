"""Limits from parts that people have looked at: those of the random audit alone, which no score has chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawsmith.calibration.groups import group_figures
from flawsmith.line.record import Record
from flawsmith.line.store import AuditEntry
from flawsmith.runtime.decision import FEW_GOOD_IMAGES, Decision, choose_limits
from flawsmith.runtime.errors import FlawsmithError

BY = "day"
"""What makes the groups of audited parts."""


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


__all__ = ["BY", "AuditedParts", "audited_parts", "limits_from", "scores_behind"]
