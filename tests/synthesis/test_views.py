"""Good images as on another day."""

from __future__ import annotations

import numpy as np
import pytest

from flawsmith.synthesis.views import ANGLE, TURNED, View, draw_view


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).random((6, 6, 3), np.float32)


def test_turns_are_those_of_their_names(image: np.ndarray) -> None:
    np.testing.assert_allclose(TURNED["mirrored"].of(image), image[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(TURNED["half"].of(image), image[::-1, ::-1], atol=1e-6)
    np.testing.assert_allclose(TURNED["quarter"].of(image), np.rot90(image), atol=1e-6)


def test_a_view_as_made_changes_nothing(image: np.ndarray) -> None:
    np.testing.assert_allclose(View().of(image), image, atol=1e-6)


def test_a_part_moves_to_the_right_and_down_and_the_border_is_repeated() -> None:
    image = np.zeros((10, 10, 3), np.float32)
    image[2, 3], image[0] = 1, 0.25

    moved = View(shift=(0.2, 0.1)).of(image)

    assert moved[3, 5, 0] == 1
    np.testing.assert_array_equal(moved[0], 0.25)


def test_light_changes_values_and_stays_in_range(image: np.ndarray) -> None:
    np.testing.assert_allclose(View(exposure=0.5).of(image), image / 2, atol=1e-6)
    np.testing.assert_allclose(View(contrast=0.0).of(image), image.mean(), atol=1e-6)
    assert View(exposure=3.0).of(image).max() == 1
    assert View(blur=0.8).of(image).std() < image.std()


@pytest.fixture
def smooth() -> np.ndarray:
    """Red to the right, blue downwards: without noise, and without one pixel that differs from its neighbours."""
    right, down = np.meshgrid(np.linspace(0.2, 0.8, 64), np.linspace(0.2, 0.8, 64))
    return np.stack([right, np.full((64, 64), 0.5), down], axis=-1).astype(np.float32)


def test_noise_has_its_strength_and_is_the_same_again(smooth: np.ndarray) -> None:
    noisy = View(noise=0.01, noise_seed=1)

    assert (noisy.of(smooth) - smooth).std() == pytest.approx(0.01, rel=0.1)
    np.testing.assert_array_equal(noisy.of(smooth), noisy.of(smooth))
    assert (View(noise=0.01, noise_seed=2).of(smooth) != noisy.of(smooth)).any()
    assert View(noise=0.5).of(smooth).min() == 0


def test_a_stored_view_is_a_little_different_the_more_the_lower_the_quality(smooth: np.ndarray) -> None:
    error = {quality: np.abs(View(quality=quality).of(smooth) - smooth).mean() for quality in (70, 95)}

    assert 0 < error[95] < error[70] < 0.02


def test_images_with_noise_of_their_own_get_none() -> None:
    noisy = np.clip(0.5 + np.random.default_rng(0).normal(0, 2 / 255, (64, 64, 3)), 0, 1).astype(np.float32)

    np.testing.assert_array_equal(View(noise=0.01, quality=70).of(noisy), View().of(noisy))


def test_the_part_is_turned_not_its_squashed_picture() -> None:
    """A bar of 40 by 10 in a square photograph, seen at half its width, is 40 by 5 when it is turned."""
    squashed = np.zeros((60, 30, 3), np.float32)
    squashed[25:35, 5:25] = 1  # 10 high and 40 wide where pixels are square

    turned = View(degrees=90).of(squashed, stretch=2.0)[:, :, 0]

    rows, columns = np.nonzero(turned > 0.5)
    assert np.ptp(rows) + 1 == pytest.approx(40, abs=1)
    assert np.ptp(columns) + 1 == pytest.approx(5, abs=1)


def test_parts_are_turned_only_as_they_lie() -> None:
    rng = np.random.default_rng(0)
    upright, half, angles = ([draw_view(rng, turns) for _ in range(200)] for turns in ((), ("half",), ("quarter",)))

    assert all(abs(view.degrees) <= ANGLE and not view.mirrored for view in upright)
    assert {round(view.degrees / 180) for view in half} == {0, 1}
    assert np.histogram([view.degrees for view in angles], 4, (0, 360))[0].min() > 30
    assert any(draw_view(rng, ("mirrored",)).mirrored for _ in range(20))


def test_some_views_are_noisy_and_some_are_stored_but_not_all() -> None:
    rng = np.random.default_rng(0)
    views = [draw_view(rng) for _ in range(200)]

    for changed in ([view.noise > 0 for view in views], [view.quality is not None for view in views]):
        assert 60 < sum(changed) < 140
    assert len({view.noise_seed for view in views}) == 200
