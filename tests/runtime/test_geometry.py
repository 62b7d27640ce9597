"""Geometry: into the network and back to the original pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.roi import RegionOfInterest

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIZES = [(64, 64), (97, 131), (131, 97), (40, 200), (300, 211), (33, 34)]
GEOMETRIES = [
    Geometry(size=(64, 64), **PLAIN),
    Geometry(size=(48, 80), **PLAIN),
    Geometry(policy="letterbox", size=(64, 64), **PLAIN),
    Geometry(policy="letterbox", size=(50, 90), **PLAIN),
    Geometry(policy="crop", size=(64, 64), **PLAIN),
    Geometry(policy="crop", size=(57, 64), resize=73, **PLAIN),
]


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).copy()


def test_squash_equals_resize_and_normalise() -> None:
    image = _picture(90, 120)
    geometry = Geometry(size=(32, 48))
    expected = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)) / 255.0
    expected = (expected - geometry.mean) / geometry.std

    result = geometry.apply(image)

    assert result.shape == (3, 32, 48)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(329, 329), (288, 400), (411, 333), (700, 521)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_crop_equals_resizing_the_shorter_side_then_cutting_the_centre(
    size: tuple[int, int], interpolation: str
) -> None:
    image = _picture(*size)
    geometry = Geometry(policy="crop", size=(288, 288), resize=329, interpolation=interpolation, **PLAIN)
    shorter = min(size)
    height, width = int(329 * size[0] / shorter), int(329 * size[1] / shorter)
    top, left = round((height - 288) / 2.0), round((width - 288) / 2.0)
    filters = {"bilinear": 2, "bicubic": 3, "lanczos": 1}
    planes = [Image.fromarray(image[:, :, channel].astype(np.float32)) for channel in range(3)]
    whole = np.stack([np.asarray(plane.resize((width, height), filters[interpolation])) for plane in planes])
    expected = whole[:, top : top + 288, left : left + 288]

    exact = geometry.apply(image.astype(np.uint16)) * 65535
    rounded = geometry.apply(image) * 255

    np.testing.assert_allclose(exact, expected, atol=5e-3)
    # 8-bit pixels are rounded after each of the two passes of the resizing, and bounded.
    assert np.abs(rounded - np.clip(expected, 0, 255)).max() <= 2.01


def test_crop_offset_rounds_half_to_even() -> None:
    geometry = Geometry(policy="crop", size=(288, 288), resize=329)

    inspected = geometry.valid_mask((329, 329))

    assert inspected is not None
    assert np.flatnonzero(inspected.any(axis=0))[[0, -1]].tolist() == [20, 307]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g.policy}-{g.size}")
@pytest.mark.parametrize("size", SIZES)
def test_bright_square_returns_to_its_place(geometry: Geometry, size: tuple[int, int]) -> None:
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    side = max(6, min(size) // 4)
    top, left = height // 2 - side // 2, width // 2 - side // 3
    image[top : top + side, left : left + side] = 255

    restored = geometry.invert(geometry.apply(image)[0], size)

    assert restored.shape == size
    assert restored.dtype == np.float32
    assert restored.flags.writeable
    weight = np.clip(restored - restored.min(), 0, None)
    rows, columns = np.indices(size)
    centre = (np.average(rows, weights=weight), np.average(columns, weights=weight))
    assert abs(centre[0] - (top + (side - 1) / 2)) < 1
    assert abs(centre[1] - (left + (side - 1) / 2)) < 1


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g.policy}-{g.size}")
def test_map_of_ramps_keeps_coordinates(geometry: Geometry) -> None:
    size = (120, 170)
    ramp = np.repeat((np.arange(170, dtype=np.uint16) * 300)[None, :, None], 120, 0).repeat(3, 2)

    restored = geometry.invert(geometry.apply(ramp)[0], size) * 65535 / 300

    inside = geometry.valid_mask(size)
    keep = np.ones(size, bool) if inside is None else inside
    keep[:, :6] = keep[:, -6:] = False
    columns = np.flatnonzero(keep.any(axis=0))[4:-4]
    keep[:, : columns[0]] = keep[:, columns[-1] :] = False
    error = np.abs(restored - np.arange(170)[None])[keep]
    assert error.max() < 1


@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    index=st.integers(0, len(GEOMETRIES) - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_size_goes_in_and_comes_back(height: int, width: int, index: int) -> None:
    geometry = GEOMETRIES[index]
    image = np.full((height, width, 3), 200, np.uint8)

    batch = geometry.apply(image)
    restored = geometry.invert(batch[0], (height, width))
    inspected = geometry.valid_mask((height, width))

    assert batch.shape == (3, *geometry.size)
    assert restored.shape == (height, width)
    seen = np.ones((height, width), bool) if inspected is None else inspected
    assert seen.any()
    np.testing.assert_allclose(restored[seen], 200 / 255, atol=1e-5)


@given(
    height=st.integers(1, 80),
    width=st.integers(1, 120),
    index=st.integers(0, len(GEOMETRIES) - 1),
    seed=st.integers(0, 99),
    has_region=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_columns_of_a_map_are_those_of_the_whole_map(
    height: int, width: int, index: int, seed: int, *, has_region: bool
) -> None:
    region = RegionOfInterest(include=(((0.1, 0.2), (0.9, 0.1), (0.6, 0.8)),)) if has_region else None
    geometry = GEOMETRIES[index].model_copy(update={"region": region})
    rng = np.random.default_rng(seed)
    anomaly_map = (rng.random(geometry.size) ** 8).astype(np.float32)
    inverse = geometry.inverse(anomaly_map, (height, width))
    whole, limit = inverse.whole(), float(rng.random())
    above = inverse.columns_above(limit)

    numbers = np.flatnonzero(rng.random(width) < 0.4)
    np.testing.assert_array_equal(inverse.columns(numbers), whole[:, numbers])
    assert inverse.peak() == whole.max()
    assert set(np.flatnonzero((whole > limit).any(axis=0))) <= set(above)
    ends = above[np.flatnonzero(np.diff(above, append=width + 1) > 1)]
    assert not (whole[:, ends[ends < width - 1]] > limit).any()


def test_extreme_aspect_needs_no_giant_intermediate_image() -> None:
    image = np.zeros((1, 60_000, 3), np.uint8)
    image[:, 29_900:30_100] = 255
    geometry = Geometry(policy="crop", size=(256, 256), **PLAIN)

    batch = geometry.apply(image)

    assert batch.min() == 1.0
    inspected = geometry.valid_mask((1, 60_000))
    assert inspected is not None
    assert inspected.sum() == 1


def test_what_a_crop_cuts_away_holds_the_smallest_value() -> None:
    geometry = Geometry(policy="crop", size=(32, 32), resize=40)
    anomaly_map = np.random.default_rng(1).random((32, 32), np.float32) - 0.5

    restored = geometry.invert(anomaly_map, (100, 130))
    inspected = geometry.valid_mask((100, 130))

    assert inspected is not None
    assert (restored[~inspected] == anomaly_map.min()).all()
    assert restored[inspected].max() > 0


@pytest.mark.parametrize("policy", ["squash", "letterbox"])
def test_only_a_crop_leaves_pixels_out(policy: str) -> None:
    assert Geometry(policy=policy, size=(32, 32)).valid_mask((100, 130)) is None


def test_crop_of_a_square_without_margin_inspects_all() -> None:
    assert Geometry(policy="crop", size=(32, 32)).valid_mask((100, 100)) is None


def test_letterbox_fills_with_the_mean() -> None:
    geometry = Geometry(policy="letterbox", size=(64, 64))

    batch = geometry.apply(np.full((20, 40, 3), 255, np.uint8))

    assert (batch[:, :16] == 0).all()
    assert (batch[:, 48:] == 0).all()
    assert (batch[:, 16:48] > 1).all()


def test_16_bit_of_full_scale_equals_8_bit() -> None:
    image = _picture(90, 120)
    geometry = Geometry(size=(32, 48))

    deep = geometry.apply(image.astype(np.uint16) * 257)

    # 8-bit pixels are rounded to a level after each of the two passes of the resizing.
    assert np.abs(deep - geometry.apply(image)).max() < 1.01 / 255 / min(geometry.std)


def test_declared_bits_scale_a_12_bit_camera_and_a_dark_part_stays_dark() -> None:
    geometry = Geometry(size=(8, 8), value_range=Geometry.range_of_bits(12), **PLAIN)

    bright = geometry.apply(np.full((16, 16, 3), 4095, np.uint16))
    dark = geometry.apply(np.full((16, 16, 3), 41, np.uint16))
    beyond = geometry.apply(np.full((16, 16, 3), 60000, np.uint16))

    np.testing.assert_allclose(bright, 1.0)
    np.testing.assert_allclose(dark, 41 / 4095, rtol=1e-5)
    np.testing.assert_allclose(beyond, 1.0)


def test_value_range_leaves_8_bit_images_alone() -> None:
    image = _picture(30, 30)

    declared = Geometry(size=(16, 16), value_range=(0.0, 1023.0)).apply(image)

    np.testing.assert_array_equal(declared, Geometry(size=(16, 16)).apply(image))


@pytest.mark.parametrize("value_range", [(1e6, 2e6), (-2e6, -1e6)])
def test_range_beyond_what_images_hold_paints_over_with_what_they_do(value_range: tuple[float, float]) -> None:
    left = RegionOfInterest(include=[[(0, 0), (0.5, 0), (0.5, 1), (0, 1)]])
    image = np.full((16, 16, 3), 9, np.uint16)

    pixels = Geometry(size=(16, 16), value_range=value_range, region=left).fit(image)

    assert np.isfinite(pixels).all()


@pytest.mark.parametrize("bits", [0, 8, 17])
def test_bits_outside_of_9_to_16_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="9 to 16"):
        Geometry.range_of_bits(bits)


def test_restore_refuses_a_map_of_another_size() -> None:
    with pytest.raises(ValueError, match="network's input"):
        Geometry(size=(8, 8)).invert(np.zeros((8, 9), np.float32), (20, 20))


@pytest.mark.parametrize(
    "settings_",
    [
        {"size": (0, 8)},
        {"size": (8,)},
        {"size": (8, 8), "std": (1.0, 0.0, 1.0)},
        {"size": (8, 8), "mean": (float("nan"), 0.0, 0.0)},
        {"size": (8, 8), "value_range": (5.0, 5.0)},
        {"size": (8, 8), "resize": 9},
        {"size": (8, 8), "policy": "crop", "resize": 7},
        {"size": (8, 8), "policy": "stretch"},
        {"size": (8, 8), "interpolation": "nearest"},
        {"size": (8, 8), "colour": "grey"},
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Geometry(**settings_)


def test_survives_json() -> None:
    geometry = Geometry(policy="crop", size=(24, 32), resize=40, value_range=(0, 1023))

    assert Geometry.model_validate_json(geometry.model_dump_json()) == geometry


def test_crop_of_a_long_web_resizes_only_what_the_network_sees():
    web = np.random.default_rng(0).integers(0, 256, (8, 60_000, 3), dtype=np.uint8)
    geometry = Geometry(policy="crop", size=(288, 288), mean=(0, 0, 0), std=(1, 1, 1))

    applied = geometry.apply(web)  # whole, it would be 288 × 2,160,000 pixels

    middle = web[:, 29_990:30_010]
    expected = np.asarray(Image.fromarray(middle).resize((720, 288), Image.Resampling.BILINEAR))[:, 216:504]
    assert np.abs(applied - expected.transpose(2, 0, 1) / 255).max() < 2.5 / 255
