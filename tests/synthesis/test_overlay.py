"""Blending and the laws of its weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import TypeAdapter, ValidationError

from flawsmith.synthesis.blend import (
    FixedWeight,
    MixtureWeight,
    NormalWeight,
    UniformWeight,
    WeightLaw,
    blend,
    faded,
    visible,
)


@given(
    mask=arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    weight=st.floats(0, 1),
    kind=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
)
def test_blend_follows_the_formula_in_both_layouts(mask: np.ndarray, weight: float, kind: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, texture = rng.normal(0, 2, (2, *mask.shape, 3)).astype(kind)
    m = mask[:, :, None]

    out = blend(image, texture, mask, weight)

    np.testing.assert_allclose(out, np.where(m, weight * image + (1 - weight) * texture, image), atol=1e-6)
    assert np.array_equal(out[~mask], image[~mask])
    assert out.dtype == kind
    if mask.shape != (3, 3):
        planes = blend(image.transpose(2, 0, 1), texture.transpose(2, 0, 1), mask, weight)
        assert np.array_equal(planes, out.transpose(2, 0, 1))


def test_blend_leaves_its_arguments_alone() -> None:
    image, texture = np.zeros((4, 5, 3), np.float32), np.ones((4, 5, 3), np.float32)
    blend(image, texture, np.ones((4, 5), bool), 0.5)
    assert image.max() == 0
    assert texture.min() == 1


def test_blend_takes_planes_wider_than_opencv_has_channels() -> None:
    image = np.zeros((3, 2, 1000), np.float32)
    out = blend(image, image + 1, np.ones((2, 1000), bool), 0.25)
    assert (out == 0.75).all()


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    image = np.zeros((4, 5, 3), np.float32)
    with pytest.raises(ValueError, match="do not belong together"):
        blend(image, image, np.ones((5, 4), bool), 0.5)
    with pytest.raises(ValueError, match="do not belong together"):
        blend(image, image[:3], np.ones((4, 5), bool), 0.5)


def test_normal_weights_are_clipped_and_not_drawn_again() -> None:
    law = NormalWeight(std=0.5)
    rng = np.random.default_rng(0)
    drawn = np.array([law.draw(rng) for _ in range(2000)])
    assert (drawn.min(), drawn.max()) == (0.2, 0.8)
    # Two tails beyond 0.6 standard deviations.
    assert np.mean((drawn == 0.2) | (drawn == 0.8)) == pytest.approx(0.549, abs=0.04)
    assert [law.clip(value) for value in (-1, 0.3, 2)] == [0.2, 0.3, 0.8]


def test_uniform_weights_fill_their_range() -> None:
    law = UniformWeight(low=0.1, high=0.5)
    rng = np.random.default_rng(0)
    drawn = [law.draw(rng) for _ in range(500)]
    assert 0.1 <= min(drawn) < 0.11
    assert 0.49 < max(drawn) <= 0.5
    assert law.at(0.5) == pytest.approx(0.3)


def test_mixtures_take_the_one_weight_by_its_share() -> None:
    law = MixtureWeight(share=0.25, value=0.75, otherwise=UniformWeight(high=0.9))
    rng = np.random.default_rng(0)
    drawn = np.array([law.draw(rng) for _ in range(2000)])
    assert np.mean(drawn == 0.75) == pytest.approx(0.25, abs=0.03)
    assert drawn.max() < 0.9


def test_a_fixed_weight_draws_nothing() -> None:
    rng = np.random.default_rng(0)
    assert FixedWeight(value=0.3).draw(rng) == 0.3
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("law", [FixedWeight(value=0.1), NormalWeight(), UniformWeight(high=0.8)])
def test_laws_survive_json(law: WeightLaw) -> None:
    adapter: TypeAdapter[WeightLaw] = TypeAdapter(WeightLaw)
    assert adapter.validate_json(adapter.dump_json(law)) == law


def test_ranges_that_fall_are_refused() -> None:
    with pytest.raises(ValidationError, match="above the largest"):
        UniformWeight(low=0.5, high=0.4)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        FixedWeight(value=1.5)


def square_flaw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey image, the same with a white square, and the square."""
    image = np.full((60, 60, 3), 0.5, np.float32)
    mask = np.zeros((60, 60), bool)
    mask[15:45, 15:45] = True
    return image, np.where(mask[:, :, None], np.float32(1), image), mask


@pytest.mark.parametrize("feather", [1.0, 3.0])
def test_a_faded_flaw_rises_from_the_edge_of_its_mask_inwards(feather: float) -> None:
    image, synthetic, mask = square_flaw()

    out = faded(image, synthetic, mask, feather)

    profile = out[30, 15:31, 0]
    assert np.array_equal(out[~mask], image[~mask])
    assert (np.diff(profile) >= -1e-6).all(), "it only rises"
    assert profile[0] < 0.5 + 0.25 / feather, "no seam"
    assert profile[-1] == pytest.approx(1.0, abs=1e-3), "whole in the middle"
    assert (profile < 0.95).sum() == pytest.approx(1.7 * feather, abs=1.5), "over about so many pixels"


def test_only_what_changed_is_visible() -> None:
    image, synthetic, mask = square_flaw()
    synthetic[:, :30] = image[:, :30]

    found = visible(image, synthetic, mask, 0.1)

    assert not (found & ~mask).any()
    assert found[15:45, 33:45].all()
    assert not found[:, :27].any()
    assert not visible(image, image, mask, 0.1).any()
