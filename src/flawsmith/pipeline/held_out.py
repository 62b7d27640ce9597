"""What the scores of the held-out good images say beyond the limit: which of them set it, and whether they belong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

FALSE_ALARMS = 0.05
"""Probability that good images whose scores have an exponential tail are called odd; with a normal tail about 0.01."""
_LARGEST_PART = 4
"""At most one in so many is looked for among the odd ones: more of them are no exception."""
_EQUAL = 1e-3


def odd_scores(scores: ArrayLike) -> int:
    """How many of the highest scores stand apart from the others; mostly none.

    The gap below the r highest scores, times r, is compared with the mean of the gaps next below it, in the upper half
    of the scores, each times the number of scores above it. For an exponential tail these products are independent and
    equally distributed (Rényi 1953), so that their ratio follows an F distribution with 2 and 2m degrees of freedom, m
    being the number of gaps in the mean, and exceeds t with the probability (1 + t/m)^(-m). Lighter tails, as a normal
    one, are called odd less often. Half of the allowed probability goes to r = 1, a quarter to r = 2, and so on.

    Args:
        scores: (n,) image scores of good images that the model did not learn from.

    Example:
        >>> odd_scores([15.2, 15.5, 15.9, 16.6, 36.6]), odd_scores([15.2, 15.5, 15.9, 16.6, 17.5])
        (1, 0)
    """
    ascending = np.sort(np.asarray(scores, np.float64).ravel())
    n = ascending.size
    products = np.arange(n - 1, 0, -1) * np.diff(ascending)
    tried = n // _LARGEST_PART
    for r in range(tried, 0, -1):
        others = products[: n - r - 1][-max(3, n // 2) :]
        if others.size < 2 or not others.any():
            continue
        ratio = products[n - r - 1] / others.mean()
        allowed = FALSE_ALARMS * 0.5**r / (1 - 0.5**tried)
        if (1 + ratio / others.size) ** -others.size < allowed:
            return r
    return 0


def remarks(names: Sequence[str], scores: ArrayLike) -> tuple[str, ...]:
    """What to look at among the held-out images, in sentences; nothing where they are alike."""
    values = np.asarray(scores, np.float64).ravel()
    order = np.argsort(-values, kind="stable")
    if values.size > 1 and np.ptp(values) <= _EQUAL * np.abs(values).max():
        return (
            f"all {values.size} held-out images have nearly the same score, {values[0]:.4g}, as if they were all "
            "black or white: check them with `flawsmith doctor`",
        )
    number = odd_scores(values)
    if not number:
        return ()
    odd, others = order[:number], values[order[number:]]
    listed = " and ".join(filter(None, (", ".join(names[i] for i in odd[:-1]), names[odd[-1]])))
    each = " and ".join(filter(None, (", ".join(f"{values[i]:.3g}" for i in odd[:-1]), f"{values[odd[-1]]:.3g}")))
    verb, these, are = ("scores", "it", "it is") if number == 1 else ("score", "them", "they are")
    return (
        f"held-out {listed} {verb} {each}, the other {len(others)} from {others.min():.3g} to {others.max():.3g}: look "
        f"at {these}; if {are} flawed, remove {these} and train again",
    )


def in_words(scores: ArrayLike) -> str:
    """What the scores behind a limit are like, in a few words.

    Args:
        scores: (n,) image scores of held-out good images, at least one.

    Example:
        >>> in_words([3.0, 1.0, 2.0, 1.5])
        'highest 3, then 2, lowest 1'
        >>> in_words([15.2, 15.5, 15.9, 16.6, 36.6])
        'highest 36.6, then 16.6, lowest 15.2: the highest stands apart, look at its image in report.html'
    """
    descending = np.sort(np.asarray(scores, np.float64).ravel())[::-1]
    if descending.size < 3:
        return ", ".join(f"{value:.4g}" for value in descending)
    text = f"highest {descending[0]:.4g}, then {descending[1]:.4g}, lowest {descending[-1]:.4g}"
    odd = odd_scores(descending)
    if odd == 1:
        return f"{text}: the highest stands apart, look at its image in report.html"
    return f"{text}: the highest {odd} stand apart, look at their images in report.html" if odd else text
