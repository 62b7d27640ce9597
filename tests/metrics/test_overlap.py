from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.metrics import brute_force
from tests.metrics.strategies import map_sets

from flawsmith.metrics import pro


def one_square(height: int = 40, width: int = 30) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[5:12, 6:15] = True
    return mask


@given(map_sets(), st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_equals_brute_force(case: tuple[list[np.ndarray], list[np.ndarray]], limit: float) -> None:
    maps, masks = case

    value, reference = pro.aupro(maps, masks, limit=limit), brute_force.aupro(maps, masks, limit)

    assert value == (None if reference is None else pytest.approx(reference, abs=1e-6))


@given(map_sets())
def test_area_of_the_full_curve_is_the_aupro(case: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    maps, masks = case

    curve, value = pro.pro_curve(maps, masks), pro.aupro(maps, masks)

    assert (curve is None) == (value is None)
    if curve is not None:
        points = list(zip(curve.x, curve.y, strict=True))
        assert brute_force.area_below(points, 0.3) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 1.0), (0.0, 0.15), (-1.0, 0.0)])
def test_perfect_constant_and_inverted_maps(slope: float, expected: float) -> None:
    mask = one_square()

    assert pro.aupro([slope * mask, np.zeros((9, 9))], [mask, None]) == pytest.approx(expected)


def test_regions_touching_at_a_corner_are_one() -> None:
    assert pro.label_regions(np.eye(4, dtype=bool))[1] == 1


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[0, 0] = True
    mask[5:15, 5:15] = True
    scores = np.zeros((20, 20))
    scores[5:15, 5:15] = 1.0

    # The large region is found before any false positive; the single pixel ties with all defect-free pixels.
    assert pro.aupro([scores], [mask]) == pytest.approx((1.0 + 0.15) / 2)


def test_no_region_and_no_defect_free_pixel_are_undefined() -> None:
    zeros, ones = np.zeros((4, 4)), np.ones((4, 4))

    assert pro.aupro([zeros], [None]) is None
    assert pro.aupro([zeros], [ones]) is None
    assert pro.pro_curve([zeros], [ones]) is None


def test_pixels_not_inspected_count_as_lowest() -> None:
    mask = one_square()
    cropped = np.where(mask, -np.inf, 0.5)

    assert pro.aupro([cropped], [mask]) == 0.0


def test_nan_and_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pro.aupro([np.full((2, 2), np.nan)], [None])
    with pytest.raises(ValueError, match="differ in size"):
        pro.aupro([np.zeros((2, 2))], [np.ones((2, 3))])
    with pytest.raises(ValueError, match="limit"):
        pro.aupro([np.zeros((2, 2))], [np.eye(2)], limit=0.0)
