"""What groups of good images, such as days or lots, say about images of the next group; without scipy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flawsmith.runtime.decision import LARGE_VARIANCE_SHARE, GroupFigures, choose_limits

_DEALS, _RARE = 199, 0.05
_LONGEST_WORDS = 200


def group_figures(scores: ArrayLike, groups: Sequence[str], *, alpha: float, by: str) -> GroupFigures | None:
    """What the groups of the images behind a limit say.

    Args:
        scores: (n,) the numbers that decide, of good images.
        groups: (n,) names of their groups; images without a name are in no group.
        alpha: target false-reject rate of the limit.
        by: what made the groups, in words.

    Returns:
        The figures; None where no image has a group.

    Example:
        >>> figures = group_figures([1, 2, 3, 4, 9, 9], ["mon", "mon", "tue", "tue", "wed", "wed"], alpha=0.2, by="day")
        >>> figures.count, figures.lowest, figures.highest
        (3, 0.0, 1.0)
    """
    values = np.asarray(scores, np.float64).ravel()
    known = np.array([bool(name) for name in groups], bool)
    if not known.any():
        return None
    values, (names, members) = values[known], np.unique(np.asarray(groups)[known], return_inverse=True)
    if names.size == 1:
        return GroupFigures(by=by[:_LONGEST_WORDS], count=1, least_size=int(values.size))
    above = leave_one_group_out(values, members, alpha=alpha)
    sizes = np.bincount(members)
    rates = np.bincount(members, weights=above) / sizes
    share = variance_share(values, members)
    return GroupFigures(
        by=by[:_LONGEST_WORDS],
        count=int(names.size),
        least_size=int(sizes.min()),
        lowest=float(rates.min()),
        highest=float(rates.max()),
        mean=float(above.mean()),
        variance_share=share,
        differ=share is not None and share >= LARGE_VARIANCE_SHARE and _is_rare(values, members, share),
    )


def _is_rare(values: NDArray[np.float64], members: NDArray[np.intp], share: float) -> bool:
    """Whether as many images, dealt at random into groups of these sizes, differ as much in under 5 of 100 deals."""
    rng = np.random.default_rng(0)
    shares = [variance_share(values, rng.permutation(members)) or 0.0 for _ in range(_DEALS)]
    return (1 + sum(other >= share for other in shares)) / (1 + _DEALS) < _RARE


def leave_one_group_out(scores: ArrayLike, groups: ArrayLike, *, alpha: float) -> NDArray[np.bool_]:
    """Which images lie above the limit that the images of all other groups set.

    Args:
        scores: (n,) the numbers that decide.
        groups: (n,) numbers or names of their groups, at least two different ones.
        alpha: target false-reject rate of the limit.

    Raises:
        ValueError: there is one group alone.

    Example:
        >>> leave_one_group_out([1, 2, 5, 6], [0, 0, 1, 1], alpha=0.1).tolist()
        [False, False, True, True]
    """
    values, members = np.asarray(scores, np.float64).ravel(), np.unique(groups, return_inverse=True)[1].ravel()
    if members.size == 0 or members.max() == 0:
        raise ValueError("leaving one group out takes at least two")
    above = np.zeros(values.size, bool)
    for group in range(members.max() + 1):
        inside, others = members == group, values[members != group]
        above[inside] = values[inside] > choose_limits(others, others, alpha=alpha).limit
    return above


def variance_share(scores: ArrayLike, groups: ArrayLike) -> float | None:
    """The share of the variance of scores that lies between groups, by ranks: the intraclass correlation.

    Ranks take the place of scores, since scores may have long tails. The share is estimated by one-way analysis of
    variance with groups of unequal size and cut off at 0.

    Args:
        scores: (n,) numbers.
        groups: (n,) numbers or names of their groups.

    Returns:
        A share in [0, 1]; None where no group has two images, where there is one group, or where all scores are equal.

    Source:
        Shrout and Fleiss, Intraclass correlations, Psychological Bulletin 1979, ICC(1, 1).

    Example:
        >>> round(variance_share([1, 2, 11, 12, 21, 22], [0, 0, 1, 1, 2, 2]), 3)
        0.882
    """
    values, members = np.asarray(scores, np.float64).ravel(), np.unique(groups, return_inverse=True)[1].ravel()
    sizes = np.bincount(members)
    n, count = values.size, sizes.size
    if count < 2 or n == count:
        return None
    ranks = _mean_ranks(values)
    means = np.bincount(members, weights=ranks) / sizes
    between = float((sizes * (means - ranks.mean()) ** 2).sum()) / (count - 1)
    within = float(((ranks - means[members]) ** 2).sum()) / (n - count)
    usual_size = (n - (sizes**2).sum() / n) / (count - 1)
    total = between + (usual_size - 1) * within
    return min(1.0, max(0.0, float((between - within) / total))) if total > 0 else None


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, members, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[members.ravel()]
