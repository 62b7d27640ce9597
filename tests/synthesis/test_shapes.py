"""Rectangles: within the image, at every size, uniform, and decided by the generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawsmith.synthesis.masks import mask_field, random_rectangle


def spans(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))


@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 2**32 - 1))
def test_a_rectangle_lies_within_the_image_and_spans_half_of_it_at_most(shape: tuple[int, int], seed: int) -> None:
    mask = random_rectangle(shape, np.random.default_rng(seed))
    rows, columns = spans(mask)
    assert mask.shape == shape
    assert mask.sum() == len(rows) * len(columns) > 0
    assert len(rows) <= -(-shape[0] // 2)
    assert len(columns) <= -(-shape[1] // 2)
    assert np.array_equal(mask, random_rectangle(shape, np.random.default_rng(seed)))


def test_sides_and_places_are_uniform() -> None:
    rng = np.random.default_rng(0)
    masks = [random_rectangle((10, 16), rng) for _ in range(4000)]
    heights = np.bincount([len(spans(mask)[0]) for mask in masks], minlength=6)
    assert heights[1:] == pytest.approx(np.full(5, 800), rel=0.12)
    tops = [spans(mask)[0][0] for mask in masks if len(spans(mask)[0]) == 3]
    assert np.bincount(tops) == pytest.approx(np.full(8, 100), rel=0.35)
    lefts = {int(spans(mask)[1][0]) for mask in masks}
    assert lefts == set(range(16))


def test_a_sixteenth_of_the_image_is_covered_on_average() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([random_rectangle((128, 128), rng).mean() for _ in range(2000)]) == pytest.approx(1 / 16, rel=0.08)


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 1.0])
def test_a_mask_as_a_field_is_itself_at_every_threshold(threshold: float) -> None:
    mask = np.eye(4, 6, dtype=bool)
    assert np.array_equal(mask_field(mask) > threshold, mask)
