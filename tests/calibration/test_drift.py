"""The test of drift against brute force, an independent implementation and simulation; charts against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import betabinom, kstest

from flawsmith.calibration.drift import (
    ALARM,
    DriftTest,
    RankCounts,
    RejectChart,
    StatisticsChart,
    count_limits,
    image_statistics,
)

POWERS = (0.2, 0.4, 0.6, 0.8)
SCORES = st.lists(st.integers(-6, 6).map(lambda number: number / 4), max_size=25)


def brute_force(reference: list[float], scores: list[float], ties: list[float]) -> tuple[list[float], list[float]]:
    """P-values and evidence after each part, from their definitions: a bet for each beginning, direction and power."""
    p_values: list[float] = []
    evidence: list[float] = []
    for place, (score, tie) in enumerate(zip(scores, ties, strict=True)):
        pool = reference + scores[: place + 1]
        above, on = sum(other > score for other in pool), sum(other == score for other in pool)
        p_values.append((above + tie * on) / len(pool))
        total = (place + 2) ** -0.25  # the stake that is laid aside still
        for begin in range(place + 1):
            stake = (begin + 1) ** -0.25 - (begin + 2) ** -0.25
            for power in POWERS:
                for ranks in (p_values[begin:], [1 - p for p in p_values[begin:]]):
                    total += stake / 8 * math.prod(power * p ** (power - 1) for p in ranks)
        evidence.append(total)
    return p_values, evidence


@given(SCORES, SCORES, st.integers(0, 2**32))
def test_evidence_is_the_sum_over_all_beginnings(reference: list[float], scores: list[float], seed: int) -> None:
    ties = np.random.default_rng(seed).uniform(0.01, 0.99, len(scores)).tolist()
    test = DriftTest(reference)

    measured = [(test.add(score, tie, 0), test.evidence) for score, tie in zip(scores, ties, strict=True)]

    for (p, evidence), *expected in zip(measured, *brute_force(reference, scores, ties), strict=True):
        assert (p, evidence) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_p_values_are_those_of_mapie() -> None:
    martingales = pytest.importorskip("mapie.exchangeability_testing.martingales")
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=300), 1)  # ties in plenty
    other, test = martingales.OnlineMartingaleTest(task="regression", random_state=7), DriftTest(scores[:50])
    ties = np.random.default_rng(7)

    for place in range(50, scores.size):
        expected = other.compute_p_value(scores[place], scores[:place])
        assert test.add(float(scores[place]), ties.uniform(), place) == pytest.approx(expected)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=1200),
        lambda rng: rng.integers(0, 4, 1200) / 4,
        lambda rng: 1e6 + rng.normal(size=1200) * 1e-3,
    ],
    ids=["continuous", "discrete", "finer than the grid"],
)
def test_p_values_of_stable_parts_are_uniform_and_independent(draw: object) -> None:
    rng = np.random.default_rng(11)
    scores = draw(rng)  # type: ignore[operator]
    test = DriftTest(scores[:200])

    p = np.array([test.add(float(score), rng.random(), 0) for score in scores[200:]])

    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 3 / math.sqrt(p.size)


def evidence_of(reference: NDArray[np.float64], scores: NDArray[np.float64], rng: np.random.Generator) -> DriftTest:
    test = DriftTest(reference)
    for number, score in enumerate(scores):
        test.add(float(score), rng.random(), number)
        if test.evidence >= ALARM:
            break
    return test


def test_good_images_above_the_limit_have_to_be_left_out_with_the_parts() -> None:
    """The limit is one of the good images' scores: what is above or on it goes, on both sides."""
    rng = np.random.default_rng(5)
    left_out, left_in = [], []
    for _ in range(12):
        good, parts = rng.normal(size=200), rng.normal(size=800)
        limit = np.sort(good)[-100]
        parts = parts[parts < limit]
        left_out.append(evidence_of(good[good < limit], parts, rng).evidence)
        left_in.append(evidence_of(good, parts, rng).evidence)

    assert max(left_out) < 10
    assert np.median(left_in) > ALARM


@pytest.mark.parametrize(("shift", "direction", "most"), [(2.0, "higher", 25), (-1.0, "lower", 90)])
def test_shift_after_many_good_parts_is_found_soon_and_dated(shift: float, direction: str, most: int) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=5000)
    scores[4800:] += shift

    test = evidence_of(rng.normal(size=200), scores, rng)

    assert test.evidence >= ALARM
    assert 4800 < test.parts <= 4800 + most
    assert test.direction == direction
    assert abs(test.since - 4800) <= 15


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40))
def test_ranks_on_the_grid_follow_the_order_of_scores(scores: list[float]) -> None:
    counts = RankCounts(scores)

    for score in scores:
        below, on = counts.below_and_on(score)
        assert below <= sum(other < score for other in scores)
        assert below + on >= sum(other <= score for other in scores)
        near = [other for other in scores if abs(other - score) <= max(abs(score), abs(other)) / 2**14 + 1e-37]
        assert on <= len(near)
    assert len(counts) == len(scores)


@pytest.mark.parametrize(("n", "hits", "misses"), [(500, 1, 99), (50, 3.5, 20.5), (1000, 0.5, 1e6), (300, 40, 10)])
def test_limits_of_counts_are_those_of_the_beta_binomial_law(n: int, hits: float, misses: float) -> None:
    lower, upper = count_limits(n, hits, misses)

    law = betabinom(n, hits, misses)
    assert law.sf(upper) <= 0.00135 < law.sf(upper - 1)
    assert law.cdf(lower - 1) <= 0.00135 < law.cdf(lower)


def test_groups_of_rejects_are_held_against_promise_and_history() -> None:
    rng = np.random.default_rng(2)
    chart = RejectChart(0.01, 1000)

    for number in range(12 * chart.size):
        chart.add(bool(rng.random() < (0.04 if number >= 11 * chart.size else 0.01)), number)

    stable, last = chart.groups[10], chart.groups[11]
    assert chart.groups[9].upper is None
    assert stable.lower is not None and stable.upper is not None and last.upper is not None
    assert stable.lower <= stable.rejects <= stable.upper
    assert last.rejects > max(last.upper, chart.promised)
    assert last.number == 12 * chart.size - 1


def test_statistics_that_moved_are_named_with_size_and_beginning() -> None:
    rng = np.random.default_rng(4)
    chart = StatisticsChart()

    for number in range(400):
        values = {"brightness": 0.5 + 0.01 * rng.normal(), "contrast": 0.2 + 0.01 * rng.normal(), "saturation": 0.3}
        if number >= 300:
            values["brightness"] *= 0.9
        chart.add(values, number)

    moved = [movement for movement in chart.movements() if movement.moved]
    assert [movement.words for movement in moved] == ["brightness -10 %"]
    assert moved[0].since is not None and 295 <= moved[0].since <= 305
    assert not any(movement.moved for movement in chart.movements() if movement.name == "saturation")


def test_image_statistics_say_what_was_done_to_an_image() -> None:
    rng = np.random.default_rng(6)
    image = np.clip(0.4 + 0.2 * rng.normal(size=(3, 700, 90)), 0, 1).astype(np.float32)
    blurred = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2) + np.roll(image, (1, 1), (1, 2))) / 4
    before = image_statistics(image)

    assert image_statistics(0.5 * image)["brightness"] == pytest.approx(before["brightness"] / 2, rel=0.01)
    assert image_statistics(blurred)["sharpness"] < 0.7 * before["sharpness"]
    assert image_statistics(np.repeat(image[:1], 3, 0))["saturation"] == 0.0
    assert set(before) == {"brightness", "contrast", "sharpness", "saturation"}


def test_a_statistic_that_is_hardly_there_does_not_move() -> None:
    """The saturation of grey parts, which is rounding of their colours."""
    chart = StatisticsChart()
    for number in range(300):
        chart.add({"brightness": 0.5 if number < 150 else 0.45, "saturation": 2e-5 if number < 150 else 4e-5}, number)

    assert [movement.name for movement in chart.movements() if movement.moved] == ["brightness"]
