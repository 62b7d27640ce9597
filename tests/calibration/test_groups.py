"""What is said of groups, against brute force and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flawsmith.calibration.groups import group_figures, leave_one_group_out, variance_share
from flawsmith.runtime.decision import GroupFigures, choose_limits, parts_of_1000, worst_rate, worst_rate_of_new_group

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
    assert small.describe() == "Each of the 2 left out in turn: 500 of 1,000 good images rejected."


def test_one_group_is_a_warning_and_no_group_is_nothing() -> None:
    assert group_figures([1.0, 2.0], ["", ""], alpha=0.1, by="") is None
    figures = group_figures([1.0, 2.0], ["mon", "mon"], alpha=0.1, by="day")
    assert figures is not None
    assert "WARNING: all are of one group (day)" in figures.describe()


def test_large_differences_between_groups_are_said() -> None:
    scores = [*range(20), *range(100, 120), *range(200, 220)]
    figures = group_figures(scores, ["a"] * 20 + ["b"] * 20 + ["c"] * 20, alpha=0.05, by="sub-folder")

    assert figures is not None
    decision = choose_limits(scores, scores, alpha=0.05, groups=figures)
    assert "60 good images of 3 groups (sub-folder)" in decision.describe()
    assert "between 0 and 1,000 of 1,000 good images, 333 on average rejected" in decision.groups.describe()
    assert "lie between groups" in decision.groups.describe()


@pytest.mark.parametrize(
    ("count", "size", "share"), [(2, 100, 0.1), (3, 60, 0.0), (5, 40, 0.3), (10, 20, 0.1), (10, 20, 0.5), (40, 5, 0.1)]
)
def test_new_group_stays_within_the_worst_case(count: int, size: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.arange(count).repeat(size)
    kept, kept_by_images_alone = [], []
    for _ in range(200):
        means = share**0.5 * rng.normal(size=count + 1)
        scores = means[groups] + (1 - share) ** 0.5 * rng.normal(size=groups.size)
        figures = GroupFigures(by="day", count=count, variance_share=variance_share(scores, groups))
        decision = choose_limits(scores, scores, alpha=0.02, groups=figures)
        rate = stats.norm.sf((decision.limit - means[count]) / (1 - share) ** 0.5)
        kept.append(rate <= decision.worst_false_reject_rate)
        kept_by_images_alone.append(rate <= worst_rate(round(decision.stated_false_reject_rate * 201), 200))

    assert np.mean(kept) > 0.91  # 95 of 100, less 2.6 deviations of 200 draws
    if share:
        assert np.mean(kept_by_images_alone) < np.mean(kept)


@given(st.integers(1, 5), st.integers(60, 400), st.integers(2, 12), st.floats(0, 0.9))
@settings(max_examples=8)
def test_worst_case_of_a_new_group_is_the_quantile_of_its_law(rank: int, n: int, groups: int, share: float) -> None:
    rng = np.random.default_rng(0)
    draws, size, freedom = 400_000, n / groups, groups - 1
    ratio = (1 + (size - 1) * share) / (1 - share)
    within = (n - 1) / (freedom * ratio + n - groups)
    of_means = ratio * within / size * freedom / rng.chisquare(freedom, draws)
    new_group = rng.normal(size=draws) * np.sqrt(np.maximum(of_means - within / size, 0) + of_means / groups)
    limit = stats.norm.isf(rng.beta(rank, n + 1 - rank, draws))
    rates = stats.norm.cdf((new_group - limit) / within**0.5)

    stated = worst_rate_of_new_group(rank, n, groups, share)

    assert (rates <= stated).mean() == pytest.approx(0.95, abs=0.004)


def test_more_groups_widen_less() -> None:
    worst = [worst_rate_of_new_group(2, 200, groups, 0.1) for groups in (2, 3, 5, 10, 20)]

    assert worst == sorted(worst, reverse=True)
    assert worst[-1] > worst_rate(2, 200)
    assert worst_rate_of_new_group(1, 20, 2, 1.0) == 1.0
    with pytest.raises(ValueError, match="two groups"):
        worst_rate_of_new_group(1, 20, 1, 0.1)


def test_promise_of_several_groups_is_that_of_a_group_that_the_limit_does_not_know() -> None:
    rng = np.random.default_rng(0)
    scores = np.repeat([0.0, 0.4, 0.8, 1.2, 1.6], 40) + rng.normal(size=200)
    names = [f"day {number // 40}" for number in range(200)]
    figures = group_figures(scores, names, alpha=0.01, by="day")

    decision = choose_limits(scores, scores, alpha=0.01, groups=figures)
    alike = choose_limits(scores, scores, alpha=0.01)

    assert decision.worst_false_reject_rate > 3 * alike.worst_false_reject_rate
    assert decision.promise.endswith(f"no more than {parts_of_1000(decision.worst_false_reject_rate, up=True)}")
    assert " in a new group, 24 in these." in decision.describe()
    assert decision.describe().endswith("Only more groups prove 10 of 1,000.")
    assert decision.worst_rate_at(201) == 1.0
