"""The held-out flaws: seeded, mixed, visible, and confined to their masks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawsmith.synthesis.held_out import FALLBACK, HELD_OUT_RECIPES, WEIGHTS, held_out_flaw, held_out_flaws, strength


def good_image(shape: tuple[int, int] = (64, 80), seed: int = 0) -> np.ndarray:
    ramp = np.linspace(40, 200, shape[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 6, (*shape, 3))
    return np.clip(ramp + noise, 0, 255).astype(np.uint8)


def test_a_flaw_depends_on_seed_and_index_alone() -> None:
    image = good_image()
    first = held_out_flaw(image, seed=3, index=7)
    held_out_flaw(image, seed=3, index=8)
    again = held_out_flaw(image, seed=3, index=7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, held_out_flaw(image, seed=3, index=8).image)
    assert not np.array_equal(first.image, held_out_flaw(image, seed=4, index=7).image)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    level=st.sampled_from([None, 0, 127, 128, 255]),
    index=st.integers(0, 10_000),
)
def test_flaw_is_visible_and_confined_to_its_mask(height: int, width: int, level: int | None, index: int) -> None:
    shape = (height, width)
    image = good_image(shape) if level is None else np.full((*shape, 3), level, np.uint8)
    before = image.copy()
    flaw = held_out_flaw(image, seed=0, index=index, other=good_image((20, 9), seed=5))
    assert np.array_equal(image, before)
    assert flaw.image.dtype == np.uint8
    assert flaw.image.shape == image.shape
    assert flaw.mask.shape == shape
    assert flaw.mask.dtype == bool
    assert flaw.mask.any()
    assert np.array_equal(flaw.image[~flaw.mask], image[~flaw.mask])
    assert np.abs(flaw.image[flaw.mask].astype(int) - image[flaw.mask]).mean() >= 4


def test_new_recipes_leave_the_mixture_alone() -> None:
    assert HELD_OUT_RECIPES == ("glass", "aand", "slsg-structural", "slsg-logical")
    pixels = hashlib.sha256()
    for flaw in held_out_flaws([np.full((48, 48, 3), 90, np.uint8)] * 8, seed=0):
        pixels.update(flaw.mask.tobytes())
    assert pixels.hexdigest().startswith("40d8ed735d57b058")


def test_a_set_mixes_its_recipes_and_all_strengths() -> None:
    flaws = list(held_out_flaws([good_image(seed=seed) for seed in range(40)], seed=0))
    assert {flaw.recipe for flaw in flaws} == set(HELD_OUT_RECIPES)
    assert not any(flaw.recipe == FALLBACK for flaw in flaws)
    for name in HELD_OUT_RECIPES:
        own = [flaw.weight for flaw in flaws if flaw.recipe == name]
        assert max(own) - min(own) > 0.4


@pytest.mark.parametrize("count", [8, 21, 40])
def test_strengths_are_spread_evenly_at_every_count(count: int) -> None:
    weights = sorted(strength(1, index) for index in range(count))
    low, high = WEIGHTS
    steps = np.diff([low, *weights, high])
    assert min(weights) >= low
    assert max(weights) <= high
    assert steps.max() < 2.7 * (high - low) / count


def test_flaws_cover_a_small_part_of_most_images() -> None:
    areas = [flaw.mask.mean() for flaw in held_out_flaws([good_image()] * 60, seed=0)]
    assert 0.005 < np.median(areas) < 0.3
    assert max(areas) < 0.7


def test_each_image_serves_the_next_as_the_other() -> None:
    images = [good_image(seed=seed) for seed in range(4)]
    listed = list(held_out_flaws(images, seed=2))
    logical = HELD_OUT_RECIPES.index("slsg-logical")
    alone = held_out_flaw(images[logical], seed=2, index=logical, other=images[logical - 1])
    assert np.array_equal(listed[logical].image, alone.image)


def test_flaws_on_grey_images_are_grey() -> None:
    grey = np.repeat(good_image()[:, :, :1], 3, axis=2)
    for flaw in held_out_flaws([grey] * 12, seed=0):
        assert (flaw.image == flaw.image[:, :, :1]).all()


def test_flaws_on_large_images_stay_in_a_window() -> None:
    image = np.full((64, 6000, 3), 90, np.uint8)
    flaw = held_out_flaw(image, seed=0, index=0)
    columns = np.flatnonzero(flaw.mask.any(axis=0))
    assert columns[-1] - columns[0] < 2048


def test_a_tiny_image_has_the_fall_back() -> None:
    flaw = held_out_flaw(np.full((1, 1, 3), 128, np.uint8), seed=0, index=0)
    assert flaw.recipe == FALLBACK
    assert flaw.mask.all()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "float", "empty"],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a uint8 image"):
        held_out_flaw(image, seed=0, index=0)
