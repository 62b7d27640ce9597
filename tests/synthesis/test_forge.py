"""The simple forger: seeded, visible, and confined to its mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawsmith.synthesis.forge import blend, forge


def good_image(shape: tuple[int, int] = (64, 80), seed: int = 0) -> np.ndarray:
    ramp = np.linspace(40, 200, shape[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 6, (*shape, 3))
    return np.clip(ramp + noise, 0, 255).astype(np.uint8)


def test_forging_depends_on_seed_and_index_alone() -> None:
    image = good_image()
    first = forge(image, seed=3, index=7)
    forge(image, seed=3, index=8)
    again = forge(image, seed=3, index=7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], forge(image, seed=3, index=8)[0])
    assert not np.array_equal(first[0], forge(image, seed=4, index=7)[0])


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
    forged, mask = forge(image, seed=0, index=index, sources=[good_image((20, 9), seed=5)])
    assert np.array_equal(image, before)
    assert forged.dtype == np.uint8
    assert forged.shape == image.shape
    assert mask.shape == shape
    assert mask.dtype == bool
    assert mask.any()
    assert np.array_equal(forged[~mask], image[~mask])
    assert np.abs(forged[mask].astype(int) - image[mask]).mean() >= 4


def test_flaws_cover_a_small_part_of_most_images() -> None:
    areas = [forge(good_image(), seed=0, index=i)[1].mean() for i in range(60)]
    assert 0.005 < np.median(areas) < 0.3
    assert max(areas) < 0.7


def test_blend_weighs_the_image_inside_the_mask() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    texture = np.full((2, 2, 3), 200, np.uint8)
    mask = np.array([[True, False], [False, False]])
    out = blend(image, texture, mask, weight=0.2)
    assert out[0, 0].tolist() == [180, 180, 180]
    assert np.array_equal(out[~mask], image[~mask])


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "float", "empty"],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a uint8 image"):
        forge(image, seed=0, index=0)


def test_flaws_on_grey_images_are_grey() -> None:
    grey = np.repeat(good_image()[:, :, :1], 3, axis=2)
    for index in range(12):
        forged, _ = forge(grey, seed=0, index=index, sources=[good_image(seed=9)])
        assert (forged == forged[:, :, :1]).all()
