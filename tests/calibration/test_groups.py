"""What is said of groups, against brute force and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawsmith.calibration.groups import group_figures, leave_one_group_out, variance_share
from flawsmith.runtime.decision import choose_limits

GROUPED = st.integers(2, 6).flatmap(
    lambda count: st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, 20)), min_size=3, max_size=40)
).filter(lambda pairs: len({group for group, _ in pairs}) > 1)  # fmt: skip


@given(GROUPED, st.sampled_from([0.05, 0.2, 0.5]))
def test_leaving_one_group_out_is_the_limit_of_the_others(pairs: list[tuple[int, int]], alpha: float) -> None:
    groups, scores = (np.array(column) for column in zip(*pairs, strict=True))

    above = leave_one_group_out(scores, groups, alpha=alpha)

    for (group, score), is_above in zip(pairs, above, strict=True):
        others = sorted(value for other, value in pairs if other != group)
        rank = max(1, min(len(others), -(-round((len(others) + 1) * (1 - alpha) * 10**6) // 10**6)))
        assert is_above == (score > others[rank - 1])


@given(GROUPED)
def test_variance_share_is_that_of_the_textbook(pairs: list[tuple[int, int]]) -> None:
    from scipy import stats

    groups, scores = (np.array(column) for column in zip(*pairs, strict=True))
    share = variance_share(scores, groups)
    members = [stats.rankdata(scores)[groups == group] for group in np.unique(groups)]
    n, k = len(scores), len(members)
    if n == k or np.ptp(scores) == 0:
        assert share is None
        return
    total = np.concatenate(members)
    between = sum(len(m) * (m.mean() - total.mean()) ** 2 for m in members) / (k - 1)
    within = sum(((m - m.mean()) ** 2).sum() for m in members) / (n - k)
    usual = (n - sum(len(m) ** 2 for m in members) / n) / (k - 1)
    expected = (between - within) / (between + (usual - 1) * within)
    assert share == pytest.approx(min(1.0, max(0.0, expected)), abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_variance_share_is_estimated_without_large_bias(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(10), 20)
    estimates = []
    for _ in range(200):
        scores = share**0.5 * rng.normal(size=10)[groups] + (1 - share) ** 0.5 * rng.normal(size=200)
        estimates.append(variance_share(scores, groups))

    assert np.mean(estimates) == pytest.approx(share, abs=0.06)


def test_rate_on_a_new_day_is_what_leaving_days_out_says(seed: int) -> None:
    """The promise of ten days of 20 images, a third of the variance between them, is for parts of these days alone."""
    rng = np.random.default_rng(seed)
    promised, said, given_rates = [], [], []
    for _ in range(400):
        day = 0.3**0.5 * rng.normal(size=11)
        scores = day[:10].repeat(20) + 0.7**0.5 * rng.normal(size=200)
        figures = group_figures(scores, [str(i // 20) for i in range(200)], alpha=0.05, by="day")
        decision = choose_limits(scores, scores, alpha=0.05)
        new_day = day[10] + 0.7**0.5 * rng.normal(size=500)
        assert figures is not None and figures.mean is not None
        promised.append(decision.stated_false_reject_rate)
        said.append(figures.mean)
        given_rates.append((new_day > decision.limit).mean())

    assert np.mean(given_rates) > np.mean(promised) * 1.1
    assert np.mean(said) == pytest.approx(np.mean(given_rates), abs=0.012)


@pytest.mark.parametrize(("count", "size"), [(3, 2), (5, 3), (10, 5)])
def test_groups_without_effect_are_seldom_warned_of(count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"day {number // size}" for number in range(count * size)]
    warned = 0
    for _ in range(100):
        figures = group_figures(rng.normal(size=count * size), groups, alpha=0.1, by="day")
        assert figures is not None
        warned += "WARNING" in figures.describe()

    assert warned <= 12


def test_single_groups_are_named_where_they_are_large_enough() -> None:
    small = group_figures([1, 2, 3, 9], ["a", "a", "b", "b"], alpha=0.2, by="day")

    assert small is not None
    assert "it rejected 500 of 1,000 good images." in small.describe()


def test_one_group_is_a_warning_and_no_group_is_nothing() -> None:
    assert group_figures([1.0, 2.0], ["", ""], alpha=0.1, by="") is None
    figures = group_figures([1.0, 2.0], ["mon", "mon"], alpha=0.1, by="day")
    assert figures is not None
    assert "WARNING: all of them are of one group (day)" in figures.describe()


def test_large_differences_between_groups_are_said() -> None:
    scores = [*range(20), *range(100, 120), *range(200, 220)]
    figures = group_figures(scores, ["a"] * 20 + ["b"] * 20 + ["c"] * 20, alpha=0.05, by="sub-folder")

    assert figures is not None
    decision = choose_limits(scores, scores, alpha=0.05, groups=figures)
    assert "60 good images of 3 groups (sub-folder)" in decision.describe()
    assert "it rejected between 0 and 1,000 of 1,000 good images, 333 on average" in decision.describe()
    assert "lie between groups" in decision.describe()
