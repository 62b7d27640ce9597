"""Limits and verdicts against brute force and arithmetic."""

from __future__ import annotations

import math
import textwrap
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy import ndimage, stats

from flawsmith.runtime.decision import FEW_GOOD_IMAGES, Decision, GroupFigures, choose_limits, images_needed, worst_rate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.roi import RegionOfInterest

LEFT_HALF_POLYGONS = (((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),)
LEFT_HALF = RegionOfInterest(include=LEFT_HALF_POLYGONS)


def _decision(**changes: object) -> Decision:
    values = {"limit": 1.0, "map_limit": 0.5, "stated_false_reject_rate": 0.01, "n_good": 99, **changes}
    return Decision(**values)


def _map_with_square(side: int, *, left: int = 2, value: float = 0.9) -> np.ndarray:
    anomaly_map = np.zeros((20, 30), np.float32)
    anomaly_map[3 : 3 + side, left : left + side] = value
    return anomaly_map


@pytest.mark.parametrize("n", [1, 2, 5, 19, 20, 98, 99, 100, 199, 299, 999])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.2, 0.3, 0.001])
def test_limit_is_the_conformal_rank(n: int, alpha: float) -> None:
    scores = np.random.default_rng(n).permutation(n).astype(float)
    exact = (n + 1) * (1 - Fraction(str(alpha)))
    rank = -(-exact.numerator // exact.denominator)

    decision = choose_limits(scores, scores + 100, alpha=alpha)

    if rank > n:
        assert decision.limit == n - 1
        assert decision.stated_false_reject_rate == pytest.approx(1 / (n + 1))
    else:
        assert decision.limit == rank - 1
        assert decision.map_limit == rank - 1 + 100
        assert decision.stated_false_reject_rate == pytest.approx((n + 1 - rank) / (n + 1))
        assert decision.stated_false_reject_rate <= alpha + 1e-12


def test_99_good_images_support_one_percent_exactly() -> None:
    decision = choose_limits(np.arange(99.0), np.arange(99.0))

    assert decision.stated_false_reject_rate == pytest.approx(0.01)
    assert decision.limit == 98.0


def test_tolerances_raise_the_limits() -> None:
    decision = choose_limits([1.0, 2.0], [3.0, 4.0], tolerance=0.25, map_tolerance=0.5)

    assert (decision.limit, decision.map_limit) == (2.25, 4.5)


@given(st.integers(5, 60), st.sampled_from([0.05, 0.1, 0.2]))
@settings(max_examples=40, deadline=None)
def test_rejected_share_of_the_calibration_images_stays_within_alpha(n: int, alpha: float) -> None:
    scores = np.random.default_rng(n).normal(size=n)

    decision = choose_limits(scores, scores, alpha=alpha)

    assert (scores > decision.limit).sum() <= math.floor(alpha * (n + 1))


def test_new_good_images_are_rejected_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(7)
    rejected = []
    for _ in range(4000):
        scores = rng.normal(size=40)
        decision = choose_limits(scores[:39], scores[:39], alpha=0.05)
        rejected.append(scores[39] > decision.limit)

    assert decision.stated_false_reject_rate == pytest.approx(2 / 40)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [], "map_maxima": []}, "at least one"),
        ({"scores": [1.0], "map_maxima": []}, "one of each"),
        ({"scores": [float("nan")], "map_maxima": [1.0]}, "not a finite"),
        ({"scores": [1.0], "map_maxima": [float("inf")]}, "not a finite"),
        ({"scores": [1.0], "map_maxima": [1.0], "alpha": 0.0}, "between 0 and 1"),
        ({"scores": [1.0], "map_maxima": [1.0], "alpha": 1.0}, "between 0 and 1"),
        ({"scores": [1.0], "map_maxima": [1.0], "review_alpha": 0.005}, "review rate"),
        ({"scores": [1.0], "map_maxima": [1.0], "alpha": 1e-12}, "target_false_reject_rate must be at least 1e-09"),
        ({"scores": [1e31], "map_maxima": [1.0]}, "limit must be at most 1e\\+30"),
        ({"scores": [1.0], "map_maxima": [1.0], "minimum_area": 0}, "minimum_area must be at least 1"),
        ({"scores": [1.0], "map_maxima": [1.0], "pixel_size": -1.0}, "pixel_size must be greater than"),
    ],
)
def test_calibration_refuses_what_says_nothing(arguments: dict, message: str) -> None:
    with pytest.raises(FlawsmithError, match=message):
        choose_limits(**arguments)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [(0.5, "pass"), (0.8, "pass"), (0.81, "review"), (1.0, "review"), (1.0001, "reject")],
)
def test_score_decides_and_equality_passes(score: float, verdict: str) -> None:
    decision = _decision(review_limit=0.8)

    assert decision.decide(score, _map_with_square(4))[0] == verdict


def test_without_review_limit_there_is_no_review() -> None:
    assert _decision().decide(0.99, _map_with_square(4))[0] == "pass"


def test_pass_shows_no_region_though_the_map_exceeds_its_limit() -> None:
    assert _decision().decide(0.0, _map_with_square(4)) == ("pass", [])


def test_reject_shows_where_the_map_peaks_though_it_stays_below_its_limit() -> None:
    below = 0.1 * _map_with_square(4)
    assert below.max() < _decision().map_limit

    verdict, (region,) = _decision().decide(99.0, below)

    assert verdict == "reject"
    assert (region.area, region.peak) == (16, pytest.approx(below.max()))
    assert region.strangest_place


def test_region_above_the_maps_limit_is_no_mere_strangest_place() -> None:
    verdict, regions = _decision(review_limit=0.8).decide(0.9, _map_with_square(4))

    assert verdict == "review"
    assert [region.strangest_place for region in regions] == [False]


def test_reject_on_an_even_map_shows_all_that_is_inspected() -> None:
    unseen = np.zeros((6, 8), bool)
    unseen[:, :3] = True

    _, (region,) = _decision().decide(99.0, np.zeros((6, 8), np.float32), unseen)

    assert region.box == (3, 0, 8, 6)


def test_review_by_the_map_shows_what_exceeds_the_review_limit() -> None:
    decision = _decision(minimum_area=5, map_limit=2.0, review_limit=0.5)

    verdict, regions = decision.decide(0.0, _map_with_square(4))

    assert verdict == "review"
    assert [region.area for region in regions] == [16]


def test_smallest_area_counts_the_spot_above_the_limit_not_the_flaw_in_it() -> None:
    anomaly_map = _map_with_square(4)
    anomaly_map[anomaly_map > 0] = 0.6
    y, x = np.argwhere(anomaly_map > 0)[0]
    anomaly_map[y, x] = 5.0

    verdict, (region,) = _decision(minimum_area=10).decide(0.0, anomaly_map)

    assert (verdict, region.area, region.spot) == ("reject", 1, 16)


@pytest.mark.parametrize(("limit", "multiple"), [(4.0, 1.5), (0.0, None), (-2.0, None)])
def test_multiples_of_a_limit_need_a_positive_one(limit: float, multiple: float | None) -> None:
    assert _decision(limit=limit).times_limit(6.0) == multiple


def test_region_of_interest_ignores_what_lies_outside() -> None:
    decision = _decision(region_of_interest=LEFT_HALF)

    inside = decision.decide(0.0, _map_with_square(4, left=2))
    outside = decision.decide(99.0, _map_with_square(4, left=20))

    assert inside[0] == "reject"
    assert outside == ("pass", [])


def test_minimum_area_ignores_specks() -> None:
    decision = _decision(minimum_area=5)

    assert decision.decide(99.0, _map_with_square(2))[0] == "pass"
    assert decision.decide(0.0, _map_with_square(3))[0] == "reject"


def test_review_by_regions_uses_the_map() -> None:
    decision = _decision(minimum_area=5, review_limit=0.3)

    assert decision.decide(99.0, _map_with_square(3, value=0.4))[0] == "review"
    assert decision.decide(99.0, _map_with_square(2, value=0.4))[0] == "pass"


def test_pixels_cut_away_belong_to_no_region() -> None:
    not_inspected = np.zeros((20, 30), bool)
    not_inspected[:, :10] = True

    assert _decision(minimum_area=2).decide(0.0, _map_with_square(4), not_inspected) == ("pass", [])


@given(
    seed=st.integers(0, 10_000),
    minimum_area=st.integers(1, 12),
    interest=st.booleans(),
    review=st.booleans(),
    cut=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_verdict_equals_brute_force(seed: int, minimum_area: int, interest: bool, review: bool, cut: bool) -> None:
    rng = np.random.default_rng(seed)
    anomaly_map = ndimage.gaussian_filter(rng.random((24, 31)), 1).astype(np.float32)
    # The column whose centres lie on the polygon's edge is Pillow's to decide; it is kept out of the
    # comparison.
    anomaly_map[:, 15] = 0
    score = float(rng.random() * 1.5)
    decision = _decision(
        map_limit=0.62,
        minimum_area=minimum_area,
        region_of_interest=LEFT_HALF if interest else None,
        review_limit=0.58 if review else None,
    )
    not_inspected = np.indices((24, 31))[0] < 6 if cut else None
    counts = np.ones((24, 31), bool)
    if interest:
        counts &= (np.arange(31) + 0.5)[None] < 15.5
    if cut:
        counts &= ~not_inspected

    def largest(limit: float) -> int:
        labels, count = ndimage.label((anomaly_map > np.float32(limit)) & counts, np.ones((3, 3)))
        return int(np.bincount(labels.ravel())[1:].max()) if count else 0

    by_regions = interest or minimum_area > 1
    reject = largest(0.62) >= minimum_area if by_regions else score > 1.0
    in_review = review and (largest(0.58) >= minimum_area if by_regions else score > 0.58)
    expected = "reject" if reject else "review" if in_review else "pass"

    assert decision.decide(score, anomaly_map, not_inspected)[0] == expected


def test_level_calibrates_the_region_setting() -> None:
    rng = np.random.default_rng(0)
    maps = [ndimage.gaussian_filter(rng.random((24, 31)), 1).astype(np.float32) for _ in range(39)]
    setting = {"region_of_interest": LEFT_HALF, "minimum_area": 6}
    probe = _decision(**setting)
    levels = [probe.level(anomaly_map) for anomaly_map in maps]

    decision = choose_limits(levels, levels, alpha=0.1, **setting)

    rejected = [decision.decide(0.0, anomaly_map)[0] == "reject" for anomaly_map in maps]
    assert sum(rejected) == sum(level > decision.map_limit for level in levels) == 3


@given(st.integers(1, 60), st.integers(0, 99), st.booleans())
@settings(max_examples=60, deadline=None)
def test_level_decides_as_the_regions_do(area: int, seed: int, interest: bool) -> None:
    rng = np.random.default_rng(seed)
    anomaly_map = (rng.random((6, 8)) * 4).round().astype(np.float32)  # ties, and areas larger than the map
    decision = _decision(
        map_limit=2.0, review_limit=1.0, minimum_area=area, region_of_interest=LEFT_HALF if interest else None
    )
    if not decision.by_regions:
        return

    assert decision.verdict_of(decision.level(anomaly_map)) == decision.decide(0.0, anomaly_map)[0]


def test_area_that_nothing_can_have_sets_no_limit() -> None:
    level = _decision(minimum_area=10).level(np.array([[0.2, 0.4]], np.float32))

    with pytest.raises(FlawsmithError, match="larger than what is inspected"):
        choose_limits([0.5], [level], minimum_area=10)


def test_identity_is_that_of_today_whatever_fields_come() -> None:
    assert _decision().identity == "ae932720671f"


@pytest.mark.parametrize(("target", "n"), [(0.02, 5000), (0.05, 3000), (0.01, 50_000), (0.01, 1000)])
def test_rate_to_ask_for_is_sure(target: float, n: int) -> None:
    scores = np.arange(float(n))
    text = choose_limits(scores, scores, alpha=target).describe()
    asked = float(text.partition("ask for ")[2].split()[0].rstrip("."))

    assert choose_limits(scores, scores, alpha=asked / 1000).worst_false_reject_rate <= target


def test_polygons_cover_their_share_of_the_pixels() -> None:
    whole = (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),)

    assert RegionOfInterest(include=whole).to_mask((37, 53)).all()
    assert RegionOfInterest(include=LEFT_HALF_POLYGONS).to_mask((40, 60)).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"review_limit": 1.5},
        {"review_limit": 0.7, "minimum_area": 4},
        {"region_of_interest": {}},
        {"region_of_interest": {"include": (((0.0, 0.0), (1.0, 1.0)),)}},
        {"region_of_interest": {"exclude": (((0.0, 0.0), (1.2, 0.0), (1.0, 1.0)),)}},
        {"region_of_interest": {"mask": "iVBORw0KGgo="}},
        {"pixel_size": 0.0},
        {"minimum_area": 0},
        {"limit": float("nan")},
        {"map_limit": float("inf")},
        {"stated_false_reject_rate": 0.0},
        {"mood": "strict"},
    ],
)
def test_senseless_decisions_are_refused(changes: dict) -> None:
    with pytest.raises(ValidationError):
        _decision(**changes)


def test_region_of_interest_without_a_pixel_is_refused_when_judging() -> None:
    decision = _decision(region_of_interest=LEFT_HALF)

    with pytest.raises(FlawsmithError, match="covers no inspected pixel"):
        decision.decide(0.0, _map_with_square(4), np.ones((20, 30), bool))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_score_that_is_not_finite_never_passes(score: float) -> None:
    with pytest.raises(FlawsmithError, match="not a finite number"):
        _decision().decide(score, _map_with_square(4))


def test_map_that_is_not_finite_never_passes() -> None:
    with pytest.raises(FlawsmithError, match="not a finite number"):
        _decision().decide(0.0, _map_with_square(4, value=float("nan")))


def test_description_warns_of_few_images_and_names_what_the_target_needs() -> None:
    text = choose_limits([1.0] * 5, [1.0] * 5).describe()

    assert "5 good images" in text
    assert "about 167 of 1,000" in text
    assert "no more than 451" in text
    assert "10 of 1,000 takes 99 such images, 299 to be 95 % sure." in text
    assert "WARNING: it rests on only 5 good images; check by eye." in text


def test_description_of_images_that_were_learned_from_calls_the_limit_a_guess() -> None:
    text = choose_limits([1.0], [1.0], held_out=False).describe()

    assert "learned from too" in text
    assert "WARNING" in text
    assert "1,000" not in text
    assert "held out" not in text


def test_description_says_so_when_no_score_can_exceed_the_limit() -> None:
    scores = np.append(np.linspace(0, 0.5, 199), 1.0)

    silent, spoken = (
        choose_limits(scores, scores, alpha=0.001, tolerance=1e-4, highest_score=top) for top in (None, 1.0)
    )

    assert not silent.rejects_nothing
    assert spoken.rejects_nothing
    assert "no image is rejected" in spoken.describe()
    assert not choose_limits(scores, scores, alpha=0.1, highest_score=1.0).rejects_nothing


def test_description_of_enough_images_is_calm() -> None:
    text = choose_limits(np.arange(200.0), np.arange(200.0)).describe()

    assert "200 good images" in text
    assert text.endswith("95 % sure of 10 of 1,000 takes 299 such images.")
    assert "WARNING" not in text


def test_description_of_a_proven_target_asks_for_nothing() -> None:
    text = choose_limits(np.arange(299.0), np.arange(299.0), alpha=1 / 300).model_copy(
        update={"target_false_reject_rate": 0.01}
    )

    assert "such images" not in text.describe()


@given(
    n=st.integers(4, 5000),
    rank=st.integers(1, 60),
    groups=st.none() | st.builds(GroupFigures, by=st.sampled_from(["day", "x" * 200]), count=st.integers(1, 99)),
    share=st.none() | st.floats(0, 1),
    more=st.sampled_from(
        [
            {},
            {"cross_fitted": 5},
            {"trimmed": 3},
            {"review_limit": 0.4, "repeat_deviation": 0.01},
            {"review_limit": 0.4, "target_review_rate": 0.2},
        ]
    ),
)
@settings(max_examples=20)
def test_description_takes_two_lines_at_most(
    n: int, rank: int, groups: GroupFigures | None, share: float | None, more: dict[str, Any]
) -> None:
    more = more if n >= FEW_GOOD_IMAGES else {}
    changes = {"variance_share": share, "count": 1 if groups is None else min(groups.count, n // 2)}
    known = None if groups is None else groups.model_copy(update=changes)

    text = _decision(n_good=n, stated_false_reject_rate=min(rank, n) / (n + 1), groups=known, **more).describe()

    assert len(textwrap.wrap(text, 100)) <= 2
    assert text.count("1,000 good parts") == 1


def test_decision_survives_json() -> None:
    decision = _decision(region_of_interest=LEFT_HALF, review_limit=0.1)

    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize(("rank", "n"), [(1, 1), (1, 20), (2, 200), (5, 60), (60, 60), (37, 1000), (100, 9999)])
def test_worst_rate_is_the_quantile_of_the_beta_law(rank: int, n: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        expected = stats.beta.ppf(confidence, rank, n + 1 - rank)
        assert worst_rate(rank, n, confidence) == pytest.approx(expected, rel=1e-9)


def test_images_needed_are_the_fewest() -> None:
    for rate in (0.2, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001):
        expected, proven = images_needed(rate)

        assert 1 / (expected + 1) <= rate * (1 + 1e-12) < 1 / expected
        assert worst_rate(1, proven) <= rate < worst_rate(1, proven - 1)


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.1), (60, 0.05), (200, 0.01)])
def test_rates_of_simulated_calibrations_follow_the_beta_law(n: int, alpha: float, seed: int) -> None:
    """Scores are uniform, so a limit rejects the share of good parts that lies above it."""
    rng = np.random.default_rng(seed)
    decisions = [choose_limits(scores, scores, alpha=alpha) for scores in rng.random((2000, n))]

    rates = [1 - decision.limit for decision in decisions]

    rank = round(decisions[0].stated_false_reject_rate * (n + 1))
    assert stats.kstest(rates, stats.beta(rank, n + 1 - rank).cdf).pvalue > 1e-4
    assert np.mean(rates) == pytest.approx(decisions[0].stated_false_reject_rate, rel=0.1)
    kept = np.mean(np.array(rates) <= decisions[0].worst_false_reject_rate)
    assert abs(kept - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize("values", [2, 5, 20])
def test_tied_scores_reject_no_more_than_promised(values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    decisions = [choose_limits(scores, scores, alpha=0.1) for scores in rng.integers(values, size=(2000, 60))]

    rates = np.array([(values - 1 - decision.limit) / values for decision in decisions])  # the share above the limit

    assert rates.mean() <= decisions[0].stated_false_reject_rate + 0.005
    assert np.mean(rates <= decisions[0].worst_false_reject_rate) >= 0.95 - 4 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize(
    ("n", "rank", "promise"),
    [
        (20, 1, "about 48 of 1,000; 95 % sure: no more than 140"),
        (200, 2, "about 10 of 1,000; 95 % sure: no more than 24"),
        (999, 1, "about 1 of 1,000; 95 % sure: no more than 3"),
        (9999, 1, "about 0.1 of 1,000; 95 % sure: no more than 0.3"),
    ],
)
def test_promise_speaks_of_1000_parts(n: int, rank: int, promise: str) -> None:
    assert _decision(n_good=n, stated_false_reject_rate=rank / (n + 1)).promise == promise


def test_worst_rate_of_any_number_of_images_takes_no_time_and_holds() -> None:
    expected = stats.beta.ppf(0.95, 5 * 10**11, 5 * 10**11 + 1)

    assert expected <= worst_rate(5 * 10**11, 10**12) < 1.01 * expected


@given(
    score=st.floats(-2, 3, width=32),
    values=arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-2, 3, width=32)),
    review=st.none() | st.floats(-2, 1, width=32),
)
def test_reject_and_review_always_show_a_region_and_a_pass_never_does(
    score: float, values: np.ndarray, review: float | None
) -> None:
    verdict, regions = _decision(review_limit=review).decide(score, values)

    assert bool(regions) == (verdict != "pass")
    assert all(region.area >= 1 and region.level <= region.peak for region in regions)
