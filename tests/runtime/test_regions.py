"""Connected regions against SciPy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.regions import find_regions, label, region_level, strongest_region

EIGHT = np.ones((3, 3), int)


def _spiral(size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    top, left, bottom, right = 0, 0, size - 1, size - 1
    while top <= bottom and left <= right:
        mask[top, left : right + 1] = True
        mask[top : bottom + 1, right] = True
        mask[bottom, left : right + 1] = True
        mask[top + 2 : bottom + 1, left] = True
        if left + 1 <= right:
            mask[min(top + 2, bottom), left : left + 2] = True
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    return mask


def _assert_like_scipy(mask: np.ndarray) -> None:
    labels, count = label(mask)
    expected, expected_count = ndimage.label(mask, EIGHT)
    assert count == expected_count
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


@given(arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
@settings(max_examples=300, deadline=None)
def test_labels_equal_scipy_on_any_mask(mask: np.ndarray) -> None:
    _assert_like_scipy(mask)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.41, 0.6, 0.95])
def test_labels_equal_scipy_on_noise(density: float) -> None:
    _assert_like_scipy(np.random.default_rng(3).random((157, 211)) < density)


@pytest.mark.parametrize(
    "mask",
    [
        np.indices((64, 64)).sum(axis=0) % 2 == 0,
        _spiral(101),
        np.ones((50, 60), bool),
        np.zeros((50, 60), bool),
        np.arange(40)[None].repeat(30, 0) % 2 == 0,
        np.arange(40)[:, None].repeat(30, 1) % 2 == 0,
        np.eye(40, dtype=bool),
        np.eye(40, dtype=bool)[::-1],
        np.ones((1, 1), bool),
        np.ones((1, 9), bool),
        np.ones((9, 1), bool),
    ],
    ids=[
        "checkerboard",
        "spiral",
        "full",
        "empty",
        "bars",
        "stripes",
        "diagonal",
        "rising",
        "1x1",
        "row",
        "column",
    ],
)
def test_labels_equal_scipy_on_hard_shapes(mask: np.ndarray) -> None:
    _assert_like_scipy(mask)


def _brute(
    anomaly_map: np.ndarray, limit: float, minimum_area: int, mask: np.ndarray | None, cell: float | None
) -> list[dict]:
    above = anomaly_map > limit
    inspected = anomaly_map if mask is None else anomaly_map[mask]
    typical = np.median(inspected) if inspected.size else 0.0
    if mask is not None:
        above &= mask
    labels, count = ndimage.label(above, EIGHT)
    regions = []
    for number in range(1, count + 1):
        y, x = np.nonzero(labels == number)
        if y.size < minimum_area:
            continue
        spot, peak = y.size, float(anomaly_map[y, x].max())
        level = limit
        if cell is not None:
            half = (anomaly_map[y, x] >= typical + (peak - typical) / 2).sum() / cell
            share = 0.8 if half <= 1600 else 0.4 + 0.4 * 1600 / half
            level = min(peak, max(limit, typical + share * (peak - typical)))
        belongs = anomaly_map[y, x] >= level
        y, x = y[belongs], x[belongs]
        best = np.argmax(anomaly_map[y, x])
        regions.append(
            {
                "area": y.size,
                "box": (x.min(), y.min(), x.max() + 1, y.max() + 1),
                "peak": peak,
                "level": pytest.approx(level),
                "spot": spot,
                "peak_position": (x[best], y[best]),
                "centroid": (pytest.approx(x.mean()), pytest.approx(y.mean())),
                "strangest_place": False,
            }
        )
    return sorted(regions, key=lambda region: -region["peak"])


@pytest.mark.parametrize("size", [(90, 140), (20, 30), (64, 48)])
@pytest.mark.parametrize("policy", ["squash", "crop"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_regions_of_a_map_on_its_way_are_those_of_the_whole_map(
    size: tuple[int, int], policy: str, *, is_masked: bool
) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(size) < 0.8 if is_masked else None
    inverse = Geometry(policy=policy, size=(32, 48)).inverse((rng.random((32, 48)) ** 6).astype(np.float32), size)
    whole = inverse.whole()

    assert strongest_region(inverse, mask=mask) == strongest_region(whole, mask=mask)
    for limit in (-0.1, 0.1, 0.3, 0.6, 0.9, 1.1):
        options = {"minimum_area": 3, "mask": mask, "cell": 0.2}
        assert find_regions(inverse, limit, **options) == find_regions(whole, limit, **options)


@given(
    anomaly_map=arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.integers(0, 6).map(float),
    ),
    limit=st.integers(-1, 6),
    minimum_area=st.integers(1, 4),
    seed=st.none() | st.integers(0, 99),
    cell=st.sampled_from([None, 1.0, 0.05, 0.002]),
)
@settings(max_examples=300, deadline=None)
def test_regions_equal_brute_force(
    anomaly_map: np.ndarray, limit: int, minimum_area: int, seed: int | None, cell: float | None
) -> None:
    mask = None if seed is None else np.random.default_rng(seed).random(anomaly_map.shape) < 0.7

    regions = find_regions(anomaly_map, limit, minimum_area=minimum_area, mask=mask, cell=cell)

    assert [region.model_dump() for region in regions] == _brute(anomaly_map, limit, minimum_area, mask, cell)


@pytest.mark.parametrize("radius", [9, 12, 36, 60])
def test_area_of_a_blurred_flaw_is_near_its_own_and_that_of_its_spot_is_not(radius: int) -> None:
    y, x = np.mgrid[:300, :300]
    flaw = (y - 145) ** 2 + (x - 150) ** 2 <= radius**2
    anomaly_map = (1 + 20 * ndimage.gaussian_filter(flaw.astype(float), 16)).astype(np.float32)

    region = find_regions(anomaly_map, 1.2, cell=1.0)[0]

    assert 0.4 < region.area / flaw.sum() < 2
    assert region.spot > 1.2 * flaw.sum()


def test_large_uneven_flaw_is_not_cut_to_its_brightest_part() -> None:
    y, x = np.mgrid[:260, :260]
    flaw = (np.abs(y - 130) < 60) & (np.abs(x - 130) < 40)
    uneven = np.where(flaw, 12 + 8 * (x - 90) / 80, 0)
    anomaly_map = (1 + ndimage.gaussian_filter(uneven, 8)).astype(np.float32)

    region = find_regions(anomaly_map, 3.0, cell=1.0)[0]

    assert 0.9 < region.area / flaw.sum() < 1.3


def test_size_of_a_flaw_is_counted_in_pixels_of_the_network() -> None:
    y, x = np.mgrid[:100, :100]
    anomaly_map = np.exp(-((y - 50) ** 2 + (x - 50) ** 2) / 400).astype(np.float32)
    small, large = (find_regions(anomaly_map, 0.1, cell=cell)[0] for cell in (4.0, 0.01))

    assert small.level == pytest.approx(0.8, abs=0.03)
    assert large.level == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("offset", [-50.0, 0.0, 1000.0])
def test_flaw_does_not_depend_on_what_the_map_counts_from(offset: float) -> None:
    y, x = np.mgrid[:40, :60]
    anomaly_map = (np.exp(-((y - 20) ** 2 + (x - 30) ** 2) / 50) * 8 + offset).astype(np.float32)

    assert strongest_region(anomaly_map).area == strongest_region(anomaly_map - np.float32(offset)).area
    assert find_regions(anomaly_map, offset + 1, cell=1.0)[0].area == strongest_region(anomaly_map).area


@given(
    anomaly_map=arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(0, 8).map(float),
    ),
    minimum_area=st.integers(1, 30),
    seed=st.none() | st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_region_level_is_where_regions_begin(anomaly_map: np.ndarray, minimum_area: int, seed: int | None) -> None:
    mask = None
    if seed is not None:
        mask = np.random.default_rng(seed).random(anomaly_map.shape) < 0.7
        mask[0, 0] = True

    level = region_level(anomaly_map, minimum_area=minimum_area, mask=mask)

    for limit in range(-1, 10):
        found = find_regions(anomaly_map, limit, minimum_area=minimum_area, mask=mask)
        assert bool(found) == (limit < level)


def test_map_that_is_not_a_number_has_no_region_there() -> None:
    anomaly_map = np.array([[np.nan, 2.0], [0.0, 0.0]], np.float32)

    assert [region.area for region in find_regions(anomaly_map, 1.0)] == [1]


def test_regions_leave_the_map_and_mask_unchanged() -> None:
    anomaly_map = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    mask = anomaly_map > 0.2
    before = anomaly_map.copy(), mask.copy()

    find_regions(anomaly_map, 0.5, mask=mask)

    np.testing.assert_array_equal(anomaly_map, before[0])
    np.testing.assert_array_equal(mask, before[1])
