"""Transforms of good images: what each does, how often, at any size, and by the generator alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pydantic import TypeAdapter, ValidationError

from flawsmith.synthesis.augment import (
    BandCopy,
    Blur,
    ColourJitter,
    Flip,
    HalfTurn,
    JitterStrength,
    Pose,
    Shuffle,
    Transform,
)

JITTER = ColourJitter(strengths=(JitterStrength(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.3),))
ALL = (HalfTurn(), Pose(), Flip(axis="either"), Shuffle(), BandCopy(), JITTER, Blur())


def good_image(shape: tuple[int, int] = (64, 80), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: transform.kind)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 71), (64, 64)])
def test_any_size_stays_as_it_is_and_the_image_is_left_alone(transform: Any, shape: tuple[int, int]) -> None:
    image = good_image(shape)
    before = image.copy()
    for seed in range(3):
        # As in a chain: what comes before may have handed over a view.
        changed = transform(np.rot90(image, 2), np.random.default_rng(seed))
        assert changed.shape == image.shape
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1 + 1e-6
        assert np.array_equal(changed, transform(np.rot90(image, 2), np.random.default_rng(seed)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: transform.kind)
def test_transforms_survive_json(transform: Any) -> None:
    adapter = TypeAdapter(Transform)
    assert adapter.validate_json(adapter.dump_json(transform)) == transform


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_transform_applies_with_its_share(share: float) -> None:
    image, rng = good_image((4, 4)), np.random.default_rng(0)
    applied = sum(HalfTurn(share=share)(image, rng) is not image for _ in range(2000))
    assert applied / 2000 == pytest.approx(share, abs=0.035)


def test_what_always_applies_draws_nothing_to_decide_it() -> None:
    rng = np.random.default_rng(0)
    assert np.array_equal(HalfTurn()(good_image(), rng), good_image()[::-1, ::-1])
    assert rng.random() == np.random.default_rng(0).random()


def test_flips_mirror_the_named_axis_or_either() -> None:
    image, rng = good_image((5, 7)), np.random.default_rng(0)
    assert np.array_equal(Flip(axis="vertical")(image, rng), np.flipud(image))
    assert np.array_equal(Flip(axis="horizontal")(image, rng), np.fliplr(image))
    either = Counter(np.array_equal(Flip(axis="either")(image, rng), np.flipud(image)) for _ in range(400))
    assert either[True] == pytest.approx(200, abs=40)


def test_a_pose_without_flips_only_turns() -> None:
    image, still, turning = good_image((40, 40)), Pose(max_turn=0, flips=False), Pose(max_turn=5, flips=False)
    for seed in range(8):
        np.testing.assert_allclose(still(image, np.random.default_rng(seed)), image, atol=1e-6)
        assert not np.allclose(turning(image, np.random.default_rng(seed)), image, atol=1e-2)
    assert (
        len({still.model_copy(update={"flips": True})(image, np.random.default_rng(n)).tobytes() for n in range(30)})
        == 4
    )


def test_inner_bands_are_copied_over_the_outer_ones() -> None:
    rows = np.repeat(np.arange(256, dtype=np.float32)[:, None, None] / 255, 6, axis=1).repeat(3, axis=2)
    copied = np.rint(BandCopy()(rows, np.random.default_rng(0))[:, 0, 0] * 255).astype(int)
    expected = [*range(64, 128), *range(64, 128), *range(128, 192), *range(128, 192)]
    assert copied.tolist() == expected


def test_jitter_takes_its_strengths_by_their_shares() -> None:
    strengths = (JitterStrength(share=0.7, brightness=0.4), JitterStrength(share=0.3, saturation=0.4))
    grey, rng = np.full((2, 2, 3), 0.5, np.float32), np.random.default_rng(0)
    changed = sum(not np.allclose(ColourJitter(strengths=strengths)(grey, rng), grey) for _ in range(2000))
    assert changed / 2000 == pytest.approx(0.7, abs=0.03), "saturation alone does nothing to grey"
    with pytest.raises(ValidationError, match=r"sum to 0\.3"):
        ColourJitter(strengths=strengths[1:])


@pytest.mark.parametrize("side", [128, 256, 512])
def test_a_blur_follows_the_image(side: int) -> None:
    step = np.zeros((side, side, 3), np.float32)
    step[:, side // 2 :] = 1
    edge = Blur(sigma=2)(step, np.random.default_rng(0))[side // 2, :, 0]
    centre = side // 2 + 2 * side / 256
    assert np.interp(centre, np.arange(side) + 0.5, edge) == pytest.approx(0.841, abs=0.03), "one sigma from the edge"


def test_at_256_pixels_a_blur_is_that_of_its_radius() -> None:
    image = good_image((256, 256))
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    blurred = Blur(sigma=2)(image, np.random.default_rng(0))
    assert np.abs(np.array(picture) / 255 - blurred).mean() < 0.01


def test_own_cells_are_put_back_in_another_order() -> None:
    image = good_image((32, 64))
    shuffled = Shuffle(cells=(4, 8)).apply(image, np.random.default_rng(0))
    cells = lambda array: sorted(map(bytes, array.reshape(4, 8, 8, 8, 3).swapaxes(1, 2).reshape(32, -1)))  # noqa: E731
    assert cells(shuffled) == cells(image)
    assert not np.array_equal(shuffled, image)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 71)])
def test_cells_are_shuffled_at_any_size(shape: tuple[int, int]) -> None:
    image = good_image(shape)
    shuffled = Shuffle(cells=(4, 8)).apply(image, np.random.default_rng(0))
    assert shuffled.shape == image.shape
    assert np.isin(shuffled, image).all()


def test_another_pose_turns_and_flips_without_dark_corners() -> None:
    image = np.full((40, 60, 3), 0.5, np.float32)
    image[:20] = 0.9
    poses = [Pose(max_turn=10).apply(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(pose.shape == image.shape and pose.min() > 0.49 for pose in poses)
    assert {bool(pose[2].mean() > pose[-3].mean()) for pose in poses} == {True, False}
