from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.metrics import brute_force
from tests.metrics.brute_force import Defect
from tests.metrics.strategies import LEVELS, defect_sets, map_sets

from flawsmith.metrics import pro
from flawsmith.metrics.accumulate import CHANNEL_QUANTILES, PixelMetrics, PixelResult, SaturatedOverlap
from flawsmith.metrics.pro import FalsePositiveCounts, merged
from flawsmith.metrics.spro import Channel, au_spro, saturation_area, spro_at, spro_curve, union_of

LIMITS = st.sampled_from([0.01, 0.05, 0.1, 0.3, 1.0])
KINDS = (None, "logical_anomalies", "structural_anomalies")
Maps = list[np.ndarray]


def channels_of(maps: Maps, defects: list[Defect]) -> list[list[Channel]]:
    return [[Channel(*rest) for image, *rest in defects if image == index] for index in range(len(maps))]


def about(value: float | None) -> object:
    return None if value is None else pytest.approx(value, abs=1e-9)


def one_defect(size: tuple[int, int] = (40, 30)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[5:15, 6:16] = True
    return mask


# Saturation areas


@pytest.mark.parametrize(
    ("area", "threshold", "relative", "expected"),
    [
        (100, 1.0, True, 100),
        (9, 0.5, True, 4),
        (100, 0.29, True, 28),  # 0.29 × 100 lies a little below 29 in floating point, as in the kit
        (8, 0.1, True, 0),
        (100, 60, False, 60),
        (50, 60, False, 50),
        (0, 60, False, 0),
    ],
)
def test_saturation_area_is_a_share_or_a_number_of_pixels(
    area: int, threshold: float, relative: bool, expected: int
) -> None:
    assert saturation_area(area, threshold, relative=relative) == expected


@pytest.mark.parametrize(("threshold", "relative"), [(1.5, True), (-0.1, True), (-1, False), (float("nan"), False)])
def test_impossible_threshold_is_refused(threshold: float, relative: bool) -> None:
    with pytest.raises(ValueError, match="saturation threshold"):
        saturation_area(10, threshold, relative=relative)


# Against brute force


@given(defect_sets(), LIMITS)
def test_area_equals_brute_force(case: tuple[Maps, list[Defect]], limit: float) -> None:
    maps, defects = case

    value, points = au_spro(maps, channels_of(*case), limit=limit), brute_force.spro_points(maps, defects)

    assert value == about(None if points is None else brute_force.area_below(points, limit))


@given(defect_sets())
def test_curve_passes_through_every_distinct_score(case: tuple[Maps, list[Defect]]) -> None:
    curve, points = spro_curve(case[0], channels_of(*case)), brute_force.spro_points(*case)

    assert (curve is None) == (points is None)
    if curve is None or points is None:
        return
    assert np.all(np.diff(curve.x) >= 0)
    assert np.all(np.diff(curve.y) >= -1e-12)
    corners = list(zip(curve.x, curve.y, strict=True))
    for x, y in points:
        on_a_corner = any(abs(x - a) < 1e-9 and abs(y - b) < 1e-9 for a, b in corners)
        level = curve.y[max(np.searchsorted(curve.x, x + 1e-12, side="right") - 1, 0)]
        # Scores that no saturated pixel has lie on the level runs between the corners.
        assert on_a_corner or level == pytest.approx(y, abs=1e-9)


@given(defect_sets(), LIMITS)
def test_area_under_the_curve_is_the_figure(case: tuple[Maps, list[Defect]], limit: float) -> None:
    curve, value = spro_curve(case[0], channels_of(*case)), au_spro(case[0], channels_of(*case), limit=limit)

    assert value == about(
        None if curve is None else brute_force.area_below(list(zip(curve.x, curve.y, strict=True)), limit)
    )


@given(defect_sets(), st.lists(st.sampled_from([*LEVELS.tolist(), -2.0, 0.1, 9.0]), min_size=1, max_size=5))
def test_values_at_thresholds_equal_brute_force(case: tuple[Maps, list[Defect]], thresholds: list[float]) -> None:
    overlaps, rates = spro_at(case[0], channels_of(*case), thresholds)

    for threshold, found, rate in zip(thresholds, overlaps, rates, strict=True):
        expected = brute_force.spro(*case, above=lambda score, t=threshold: score > t)
        assert found == pytest.approx(np.nan if expected[0] is None else expected[0], abs=1e-9, nan_ok=True)
        assert rate == pytest.approx(np.nan if expected[1] is None else expected[1], abs=1e-9, nan_ok=True)


def streamed(maps: Maps, defects: list[Defect], kinds: list[str | None], limit: float) -> PixelResult | None:
    with PixelMetrics(in_memory_bytes=64) as pixels:
        saturated = SaturatedOverlap(pixels, limit=limit)
        for scores, channels, kind in zip(maps, channels_of(maps, defects), kinds, strict=True):
            pixels.update(scores, union_of(channels))
            saturated.update(scores, channels, defect=kind)
        return saturated.compute()


@given(defect_sets(), LIMITS, st.data())
def test_maps_taken_in_one_by_one_give_the_figures_of_every_kind(
    case: tuple[Maps, list[Defect]], limit: float, data: st.DataObject
) -> None:
    maps, defects = case
    marked = {image for image, *_ in defects}
    kinds = [data.draw(st.sampled_from(KINDS[1:])) if index in marked else None for index in range(len(maps))]

    figures = streamed(maps, defects, kinds, limit)

    if not any(mask.any() for _, mask, *_ in defects):
        assert figures is None
        return
    assert figures is not None
    every = channels_of(maps, defects)
    assert figures.overlap == about(au_spro(maps, every, limit=limit))
    assert set(figures.by_defect) == set(kinds) - {None}
    for kind, value in figures.by_defect.items():
        images = [index for index, other in enumerate(kinds) if other in (None, kind)]
        assert value == about(au_spro([maps[at] for at in images], [every[at] for at in images], limit=limit))


# What the figure means


@given(map_sets())
def test_fully_saturating_regions_give_the_region_overlap(case: tuple[Maps, list[np.ndarray]]) -> None:
    maps, masks = case
    regions = [pro.label_regions(mask) for mask in masks]
    channels = [
        [Channel(labels == number, 1.0, relative=True) for number in range(1, count + 1)] for labels, count in regions
    ]

    assert au_spro(maps, channels, limit=0.3) == about(pro.aupro(maps, masks))


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 1.0), (0.0, 0.025), (-1.0, 0.0)])
def test_perfect_constant_and_inverted_maps(slope: float, expected: float) -> None:
    mask = one_defect()

    value = au_spro([slope * mask, np.zeros((9, 9))], [[Channel(mask, 0.5, relative=True)], []])

    assert value == pytest.approx(expected)


def test_overlap_is_full_once_the_saturation_area_is_found() -> None:
    mask = one_defect()
    found = np.zeros(mask.shape)
    found[5:15, 6:9] = 1.0  # 30 of 100 pixels

    saturated, whole = (au_spro([found], [[Channel(mask, pixels, relative=False)]]) for pixels in (30, 60))

    assert saturated == pytest.approx(1.0)
    assert whole == pytest.approx(0.5 + 0.5 * 0.025)


def test_tiny_defect_whose_saturation_area_is_zero_asks_for_one_pixel() -> None:
    mask = np.zeros((5, 9), dtype=bool)
    mask[0, :8] = True
    found = np.zeros(mask.shape)
    found[0, 3] = 1.0

    assert au_spro([found], [[Channel(mask, 0.1, relative=True)]]) == pytest.approx(1.0)


def test_pixel_of_another_channel_is_no_false_positive() -> None:
    first, second = np.zeros((2, 4, 8), dtype=bool)
    first[:, :4], second[:, 2:6] = True, True
    highest_in_the_second = np.where(second, 2.0, np.where(first, 1.0, 0.0))
    channels = [Channel(one, 1.0, relative=True) for one in (first, second)]

    assert au_spro([highest_in_the_second], [channels]) == 1.0
    assert au_spro([highest_in_the_second], [channels[:1]]) < 0.6


def test_small_and_large_defects_weigh_alike_across_images() -> None:
    large, small = one_defect(), np.zeros((40, 30), dtype=bool)
    small[0, 0] = True
    channels = [[Channel(large, 1.0, relative=True)], [Channel(small, 1.0, relative=True)]]

    assert au_spro([large.astype(float), np.zeros((40, 30))], channels) == pytest.approx((1 + 0.025) / 2)


def test_pixels_not_inspected_count_as_lowest() -> None:
    mask = one_defect()

    assert au_spro([np.where(mask, -np.inf, 0.5)], [[Channel(mask, 1.0, relative=True)]]) == 0.0


def test_without_a_defect_or_a_defect_free_pixel_nothing_is_defined() -> None:
    zeros, everything = np.zeros((4, 4)), Channel(np.ones((4, 4), dtype=bool), 1.0, relative=True)

    for channels in ([[]], [[everything]], [[Channel(np.zeros((4, 4), dtype=bool), 1.0, relative=True)]]):
        assert au_spro([zeros], channels) is None
        assert spro_curve([zeros], channels) is None
    assert np.isnan(spro_at([zeros], [[everything]], [0.5])[1]).all()


def test_nan_sizes_that_differ_and_limits_are_refused() -> None:
    channel = Channel(np.eye(2, dtype=bool), 1.0, relative=True)

    with pytest.raises(ValueError, match="NaN"):
        au_spro([np.full((2, 2), np.nan)], [[channel]])
    with pytest.raises(ValueError, match="differ in size"):
        au_spro([np.zeros((2, 3))], [[channel]])
    with pytest.raises(ValueError, match="limit"):
        au_spro([np.zeros((2, 2))], [[channel]], limit=1.5)
    with PixelMetrics() as pixels, pytest.raises(ValueError, match="differ in size"):
        SaturatedOverlap(pixels).update(np.zeros((2, 3)), [channel])


def area_at_thresholds(figures: PixelResult) -> float:
    images = len(figures.counts.n_negatives)
    return float(figures.counts.weighted(np.ones((1, images))).overlap_area(figures.limit)[0])


@given(defect_sets(), LIMITS)
def test_counts_at_thresholds_of_few_distinct_scores_give_the_exact_figure(
    case: tuple[Maps, list[Defect]], limit: float
) -> None:
    maps, defects = case
    marked = {image for image, *_ in defects}

    figures = streamed(maps, defects, [KINDS[1] if at in marked else None for at in range(len(maps))], limit)

    if figures is not None and figures.overlap is not None:
        assert area_at_thresholds(figures) == pytest.approx(figures.overlap, abs=1e-9)


def test_counts_at_thresholds_of_many_distinct_scores_come_close() -> None:
    generator = np.random.default_rng(7)
    maps = list(generator.normal(size=(4, 120, 120)).astype(np.float32))
    defects = []
    for image, (height, share) in enumerate([(80, 0.8), (10, 0.3), (30, 1.0)]):
        mask = np.zeros((120, 120), dtype=bool)
        mask[20 : 20 + height, 20:100] = True
        maps[image] += 2 * mask
        defects.append((image, mask, share, True))

    figures = streamed(maps, defects, [KINDS[1]] * 3 + [None], 0.05)

    assert figures is not None
    assert len(figures.counts.thresholds) <= 2 * CHANNEL_QUANTILES
    assert area_at_thresholds(figures) == pytest.approx(figures.overlap, abs=2e-3)


def test_counts_of_groups_may_exceed_what_each_can_hold() -> None:
    half = FalsePositiveCounts(
        scores=np.zeros(1, dtype=np.float32),
        above=np.array([2**31], dtype=np.uint32),
        at_least=np.array([2**32 - 1], dtype=np.uint32),
        total=2**32 - 1,
    )

    both = merged([half, half])

    assert (both.above.tolist(), both.at_least.tolist(), both.total) == ([2**32], [2**33 - 2], 2**33 - 2)
