"""What other limits would have done with images whose scores and labels are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.runtime.decision import LARGEST_SCORE, Decision

_EQUAL = 1e-3
_SHARES = (0.01, 0.05, 0.1)
"""Of the good images: limits that reject no more than these are shown, beside those that reject none and miss none."""


class LimitStep(BaseModel):
    """A limit, and how often it would be wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: float = Field(description="An image is rejected where its score is above.")
    missed: int = Field(description="Flawed images that are not rejected.")
    rejected: int = Field(description="Good images that are rejected.")
    in_use: bool = Field(default=False, description="Whether it is the limit in use.")


def limit_steps(good: ArrayLike, flawed: ArrayLike, in_use: float) -> list[LimitStep]:
    """Every limit that changes a count, the lowest first.

    Of the limits between two scores the lower one is taken if it is a good image's, which it does not reject; else the
    middle, and so below the lowest flawed score too: the limit that misses none keeps away from it. An image that has
    no region of the smallest area, whatever the limit, passes at each of them and makes none.

    Args:
        good: (n,) image scores of good images.
        flawed: (m,) image scores of flawed images.
        in_use: the limit in use, a step even where it changes nothing.

    Example:
        >>> [(step.limit, step.missed, step.rejected) for step in limit_steps([1.0, 2.0], [1.5, 4.0], 2.5)]
        [(1.0, 0, 1), (1.25, 0, 1), (1.75, 1, 1), (2.0, 1, 0), (2.5, 1, 0)]
    """
    good, flawed = (np.sort(np.asarray(scores, np.float64).ravel()) for scores in (good, flawed))
    scores = np.unique(np.concatenate([good, flawed]))
    scores = scores[scores > -LARGEST_SCORE]
    places = scores[:-1].copy()
    above_flawed = ~np.isin(places, good)
    places[above_flawed] = (places[above_flawed] + scores[1:][above_flawed]) / 2
    below_flawed = scores[scores < flawed[0]][-1:] if flawed.size else scores[:0]
    highest_good = good[good > -LARGEST_SCORE][-1:]
    limits = np.unique(np.concatenate([places, highest_good, (below_flawed + flawed[:1]) / 2, [in_use]]))
    missed = np.searchsorted(flawed, limits, side="right")
    rejected = good.size - np.searchsorted(good, limits, side="right")
    return [
        LimitStep(limit=float(limit), missed=int(misses), rejected=int(rejects), in_use=bool(limit == in_use))
        for limit, misses, rejects in zip(limits, missed, rejected, strict=True)
    ]


def rejecting_none(steps: Sequence[LimitStep]) -> LimitStep | None:
    """The lowest limit that rejects no good image."""
    return next((step for step in steps if step.rejected == 0), None)


def missing_none(steps: Sequence[LimitStep]) -> LimitStep | None:
    """The highest limit that misses no flawed image; None where each of the limits misses some."""
    return next((step for step in reversed(steps) if step.missed == 0), None)


def telling(steps: Sequence[LimitStep], n_good: int) -> list[LimitStep]:
    """The few steps to choose from, the highest first: in use, missing none, rejecting none and few of the good images.

    Args:
        steps: as :func:`limit_steps` gives them.
        n_good: number of good images.

    Example:
        >>> steps = limit_steps([1.0, 2.0, 3.0], [2.5, 4.0], 3.5)
        >>> [(step.limit, step.missed, step.rejected, step.in_use) for step in telling(steps, 3)]
        [(3.5, 1, 0, True), (3.0, 1, 0, False), (2.25, 0, 1, False)]
    """
    few = [
        next((step for step in steps if step.rejected <= share * n_good), None) for share in (0.0, *_SHARES) if n_good
    ]
    shown = {step.limit: step for step in (*few, missing_none(steps)) if step is not None}
    used = [step for step in steps if step.in_use]
    # The limit in use is a tolerance above the score that it comes from, which is no choice of its own.
    shown = {limit: step for limit, step in shown.items() if not any(_same(step, other) for other in used)}
    shown |= {step.limit: step for step in used}
    return sorted(shown.values(), key=lambda step: -step.limit)


def _same(step: LimitStep, other: LimitStep) -> bool:
    near = abs(step.limit - other.limit) <= _EQUAL * abs(other.limit)
    return near and (step.missed, step.rejected) == (other.missed, other.rejected)


def limit_sentences(steps: Sequence[LimitStep], n_good: int, n_flawed: int) -> list[str]:
    """The two limits that a reader asks for first, in words.

    Args:
        steps: in ascending order.
        n_good: number of good images.
        n_flawed: number of flawed images.

    Example:
        >>> limit_sentences(limit_steps([1.0, 2.0], [3.0], 2.5), 2, 1)[0]
        'The lowest limit that rejects none of these good parts is 2; it misses 0 of 1 flaws.'
    """
    sentences = []
    if n_good and (step := rejecting_none(steps)) is not None:
        missed = f"; it misses {step.missed} of {n_flawed} flaws" if n_flawed else ""
        sentences.append(f"The lowest limit that rejects none of these good parts is {step.limit:.4g}{missed}.")
    if n_flawed and (step := missing_none(steps)) is not None:
        rejected = f"; it rejects {step.rejected} of {n_good} good parts" if n_good else ""
        sentences.append(f"The highest that misses none of these flaws is {step.limit:.4g}{rejected}.")
    return sentences


def promise_of(step: LimitStep, decision: Decision) -> tuple[float, float]:
    """The share of good parts that a limit rejects, in the mean and with 95 % confidence at most.

    Args:
        step: of the good images behind the limits in use.
        decision: the limits in use.

    Example:
        >>> in_use = Decision(limit=2.0, map_limit=1.0, stated_false_reject_rate=0.01, n_good=99)
        >>> promise_of(LimitStep(limit=1.0, missed=0, rejected=0), in_use)[0]
        0.01
    """
    rank = min(step.rejected + 1, decision.n_good)
    return rank / (decision.n_good + 1), decision.worst_rate_at(rank)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines of text: the first column left, the others right, each as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
