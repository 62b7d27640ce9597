"""What other limits would have done, against counting one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawsmith.metrics.collect import ScoredImage, accumulate
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.summary import summarise
from flawsmith.metrics.what_if import LimitStep, limit_steps, missing_none, promise_of, rejecting_none, telling
from flawsmith.runtime.decision import LARGEST_SCORE, Decision, choose_limits

scores = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=12)


@given(scores, scores, st.integers(-1, 14).map(float))
def test_steps_count_as_one_would_by_hand(good: list[float], flawed: list[float], in_use: float) -> None:
    steps = limit_steps(good, flawed, in_use)

    assert [step.limit for step in steps] == sorted({step.limit for step in steps})
    assert [step.limit for step in steps if step.in_use] == [in_use]
    for step in steps:
        assert step.missed == sum(score <= step.limit for score in flawed)
        assert step.rejected == sum(score > step.limit for score in good)


@given(scores, scores)
def test_every_pair_of_counts_that_a_limit_can_give_is_a_step(good: list[float], flawed: list[float]) -> None:
    steps = limit_steps(good, flawed, 99.0)

    inside = np.arange(min(*good, *flawed), 13, 0.25)
    possible = {(sum(s <= limit for s in flawed), sum(s > limit for s in good)) for limit in inside}
    assert possible <= {(step.missed, step.rejected) for step in steps} | {(len(flawed), 0)}


@given(scores, scores)
def test_the_two_limits_asked_for_first_are_the_extreme_ones(good: list[float], flawed: list[float]) -> None:
    steps = limit_steps(good, flawed, 99.0)

    lowest, highest = rejecting_none(steps), missing_none(steps)
    assert lowest is not None and lowest.limit == max(good)
    if highest is None:
        assert not any(score < min(flawed) for score in good)
    else:
        assert highest.limit < min(flawed)
        assert sum(highest.limit < score < min(flawed) for score in (*good, *flawed)) == 0


def test_few_limits_are_shown_and_the_one_in_use_is_among_them() -> None:
    rng = np.random.default_rng(0)
    good, flawed = rng.normal(size=400), rng.normal(2, 1, 300)

    shown = telling(limit_steps(good, flawed, 2.5), 400)

    assert len(shown) <= 6
    assert [step.limit for step in shown] == sorted((step.limit for step in shown), reverse=True)
    assert sum(step.in_use for step in shown) == 1
    assert {0, 4, 20, 40} <= {step.rejected for step in shown}


def test_tolerance_above_a_score_is_no_choice_of_its_own() -> None:
    shown = telling(limit_steps([1.0, 2.0], [5.0], 2.0001), 2)

    assert [round(step.limit, 3) for step in shown] == [3.5, 2.0]


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_promise_of_a_step_is_that_of_the_limit_of_its_rank(rank: int) -> None:
    good = np.arange(50.0)
    decision = choose_limits(good, good, alpha=rank / 51)

    (used,) = (step for step in limit_steps(good, [], decision.limit) if step.in_use)

    assert promise_of(used, decision) == (decision.stated_false_reject_rate, decision.worst_false_reject_rate)


def test_image_without_a_region_large_enough_makes_no_limit() -> None:
    steps = limit_steps([-LARGEST_SCORE, 1.0, 2.0], [-LARGEST_SCORE, 4.0], 3.0)

    assert min(step.limit for step in steps) == 1.0
    assert [(step.missed, step.rejected) for step in steps] == [(1, 1), (1, 0), (1, 0)]
    assert missing_none(steps) is None
    assert limit_steps([-LARGEST_SCORE], [-LARGEST_SCORE], 3.0) == [
        LimitStep(limit=3.0, missed=1, rejected=0, in_use=True)
    ]


def evaluation(good: list[float], flawed: list[float], limit: float = 1.0, **changes: object) -> Evaluation:
    fields: dict = {"limit": limit, "map_limit": 1.0, "stated_false_reject_rate": 0.01, "n_good": 99, **changes}
    decision = Decision(**fields)
    images = [
        ScoredImage(f"{number}.png", score, decision.verdict_of(score), "dent" if bad else "good", bad)
        for number, (score, bad) in enumerate([(s, False) for s in good] + [(s, True) for s in flawed])
    ]
    return summarise(accumulate(images), decision=decision, n_resamples=0)


def test_table_begins_with_counts_at_the_limit_beside_the_promise() -> None:
    lines = evaluation([0.1, 0.2, 1.5], [0.5, 3.0, 4.0]).as_table().split("\n")

    assert lines[:2] == ["flaws missed: 1 of 3", "good parts rejected: 1 of 3"]
    assert lines[2].startswith("promised: about 10 of 1,000; 95 % sure: no more than 30")
    places = [
        next(at for at, line in enumerate(lines) if text in line) for text in ("in use", "defect", "image AUROC  ")
    ]
    assert places == sorted(places)
    assert "The lowest limit that rejects none of these good parts is 1.5; it misses 1 of 3 flaws." in lines
    assert "The highest that misses none of these flaws is 0.35; it rejects 1 of 3 good parts." in lines


def test_perfect_ranking_is_no_headline_where_flaws_pass() -> None:
    result = evaluation([0.1, 0.2], [0.5, 0.6, 3.0])

    table = result.as_table()

    assert result.image_auroc == 1.0
    assert table.startswith("flaws missed: 2 of 3")
    assert table.index("flaws missed") < table.index("1.0000")


def test_without_good_images_nothing_is_said_of_them() -> None:
    result = evaluation([], [0.5, 3.0, 4.0])

    assert "do not contradict" not in result.as_table()
    assert "No limit finds all flaws" not in result.as_table() + result.next_steps()[0]
    assert "--flawed FLAWED" in result.next_steps()[0]
    assert "\n\n\n" not in result.as_table()


def test_broken_promise_says_what_to_do() -> None:
    broken, kept = evaluation([2.0] * 9, [3.0]), evaluation([0.5] * 9, [3.0])

    assert (broken.promise_is_broken, kept.promise_is_broken) == (True, False)
    assert "These good parts differ from those that the limit rests on" in broken.as_table()
    assert "flawsmith calibrate model.flaw GOOD" in broken.next_steps()[0]
    assert "differ from" not in kept.as_table()


@pytest.mark.parametrize(
    ("good", "flawed", "says"),
    [
        ([0.1] * 30, [0.5] * 3 + [3.0] * 30, "--catch 1"),
        ([0.1] * 15 + [0.9] * 15, [0.5] * 3 + [3.0] * 30, "--smallest-flaw"),
        (
            [0.1] * 20 + [0.6] * 9 + [0.9],
            [0.5] + [0.8] * 9 + [3.0] * 30,
            "misses 1 instead of 10 of 40 flaws and rejects 1 of 30 good parts: flawsmith calibrate model.flaw GOOD "
            "--flawed FLAWED --catch 97%.",
        ),
        ([0.1] * 99 + [1.1], [3.0] * 30, "Look at the good parts that were rejected"),
        ([0.1] * 30, [3.0] * 30, "flawsmith predict"),
        ([0.1] * 30, [3.0] * 3, "test with more of both"),
        ([0.1] * 30, [], "test with more of both"),
    ],
)
def test_next_step_fits_what_went_wrong(good: list[float], flawed: list[float], says: str) -> None:
    assert says in evaluation(good, flawed).next_steps()[0]


def test_there_are_no_other_limits_on_the_score_where_regions_decide() -> None:
    result = evaluation([0.1], [3.0], minimum_area=4)

    assert result.what_if == []
    assert "in use" not in result.as_table()
