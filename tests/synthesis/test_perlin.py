"""Gradient noise equals the released generators, at any size and in batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawsmith.synthesis.masks import (
    THRESHOLD,
    draw_lattice,
    fractal_noise,
    gradient_noise,
    noise_field,
    rotate,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


def golden_case() -> dict:
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    return next(case for case in cases if case["name"] == "perlin_noise_fields")


@pytest.mark.parametrize("number", range(4))
def test_noise_equals_the_golden_fields(number: int) -> None:
    case = golden_case()
    shape = tuple(case["hyper_parameters"]["fields"][number]["shape"])
    with np.load(GOLDEN / case["file"], allow_pickle=False) as arrays:
        noise = gradient_noise(shape, arrays[f"angles{number}"])
        expected = arrays[f"noise{number}"]
    np.testing.assert_allclose(noise, expected, **case["tolerance"])


def plain_noise(shape: tuple[int, int], angles: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel."""
    cells = (angles.shape[0] - 1, angles.shape[1] - 1)
    out = np.empty(shape)
    for i, j in np.ndindex(shape):
        y, x = i * cells[0] / shape[0], j * cells[1] / shape[1]
        r, c = int(y), int(x)
        fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y - r, x - c)]
        total = 0.0
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            angle = angles[r + a, c + b]
            dot = math.cos(angle) * (y - r - a) + math.sin(angle) * (x - c - b)
            total += dot * (fade[0] if a else 1 - fade[0]) * (fade[1] if b else 1 - fade[1])
        out[i, j] = math.sqrt(2) * total
    return out


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    cells=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 2**32 - 1),
)
def test_noise_of_any_size_follows_the_definition(shape: tuple[int, int], cells: tuple[int, int], seed: int) -> None:
    angles = np.random.default_rng(seed).uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))
    noise = gradient_noise(shape, angles)
    np.testing.assert_allclose(noise, plain_noise(shape, angles), atol=1e-9)
    assert np.abs(noise).max() <= 1 + 1e-9


def test_a_batch_equals_its_fields_one_by_one() -> None:
    angles = np.random.default_rng(0).uniform(0, 7, (2, 3, 5, 9))
    batch = gradient_noise((33, 47), angles)
    assert batch.shape == (2, 3, 33, 47)
    np.testing.assert_allclose(batch[1, 2], gradient_noise((33, 47), angles[1, 2]), atol=1e-12)


@pytest.mark.parametrize(("shape", "points"), [((0, 4), (2, 2)), ((4, 4), (1, 2))])
def test_impossible_fields_are_refused(shape: tuple[int, int], points: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no noise"):
        gradient_noise(shape, np.zeros(points))


def test_masks_follow_the_generator_alone() -> None:
    def masks(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.stack([noise_field((40, 56), rng) > THRESHOLD for _ in range(5)])

    assert np.array_equal(masks(1), masks(1))
    assert not np.array_equal(masks(1), masks(2))


def test_exponents_bound_the_lattice() -> None:
    # One cell an axis: the noise is smooth, so neighbours differ by little.
    noise = noise_field((64, 64), np.random.default_rng(0), exponents=(0, 1), max_rotation=0)
    assert np.abs(np.diff(noise, axis=0)).max() < 0.1


def test_rotation_is_clockwise_about_the_centre_with_zeros_outside() -> None:
    field = np.zeros((5, 5))
    field[0, 2] = 1.0
    turned = rotate(field, 90)
    assert np.argwhere(turned > 0.99).tolist() == [[2, 4]]
    assert rotate(np.ones((8, 8)), 45)[0, 0] == 0


def test_a_turn_keeps_the_shape_of_the_smallest_fields() -> None:
    for shape in ((1, 1), (1, 7), (5, 1)):
        assert rotate(np.ones(shape, np.float32), 30).shape == shape


def test_single_precision_noise_agrees_with_double() -> None:
    angles = np.random.default_rng(0).uniform(0, 2 * math.pi, (33, 17))
    single = gradient_noise((256, 200), angles.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, gradient_noise((256, 200), angles), atol=5e-6)


def test_lattices_take_every_power_of_two_in_range_on_both_axes() -> None:
    rng = np.random.default_rng(0)
    lattices = {draw_lattice(rng, (1, 4)) for _ in range(300)}
    assert lattices == {(down, across) for down in (2, 4, 8) for across in (2, 4, 8)}


def test_a_kept_lattice_is_not_drawn_again() -> None:
    noise = noise_field((64, 64), np.random.default_rng(0), lattice=(2, 4), max_rotation=0)
    assert np.abs(noise[::32, ::16]).max() < 1e-6


def test_fractal_noise_fills_the_unit_range_at_any_shape() -> None:
    field = fractal_noise((37, 91), np.random.default_rng(3))
    assert (field.min(), field.max()) == (0.0, 1.0)
    assert fractal_noise((1, 1), np.random.default_rng(3)).shape == (1, 1)
