"""Greedy coresets."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flawsmith.models.components.memory_bank import greedy_coreset, random_projection

NEAR_TIE = 1838884748  # a draw where float32 and float64 do not agree which of two rows is farther


def plain_greedy(rows: np.ndarray, count: int, first: int) -> list[int]:
    """One choice after another, each against the whole table rounded to the grid; of equally far rows the first."""
    bits = min(24, (51 - math.ceil(math.log2(rows.shape[1]))) // 2)
    step = 2.0 ** (math.frexp(np.abs(rows).max())[1] - bits)
    grid = np.round(rows.astype(np.float64) / step)
    chosen, distances = [first], np.full(len(rows), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, np.square(grid - grid[chosen[-1]]).sum(axis=1))
        if distances.max() == 0:
            break
        chosen.append(int(distances.argmax()))
    return chosen


def normal_rows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 1, (500, 6)).astype(np.float32)


def rows_on_a_lattice(seed: int) -> np.ndarray:
    """Most distances are those of other rows too, and some rows are copies."""
    return np.random.default_rng(seed).integers(-2, 3, (500, 4)).astype(np.float32)


def rows_almost_on_a_lattice(seed: int) -> np.ndarray:
    """Distances differ by less than float32 tells of their squares, and by less than its products keep."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 5, (500, 4)) * (1 + 2e-7 * rng.normal(size=(500, 4)))).astype(np.float32)


def rows_of_one_length(seed: int) -> np.ndarray:
    """All rows are equally far from the first, up to rounding."""
    rows = np.random.default_rng(seed).normal(size=(500, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[17] = 0
    return rows.astype(np.float32)


DRAWS = [normal_rows, rows_on_a_lattice, rows_almost_on_a_lattice, rows_of_one_length]


@pytest.mark.parametrize(("pool", "sweep"), [(1, 7), (8, 100), (64, 499), (10_000, 10_000)])
@pytest.mark.parametrize("draw", DRAWS)
def test_choices_are_those_of_the_plain_algorithm_however_the_work_is_cut(
    draw: Callable[[int], np.ndarray], pool: int, sweep: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.models.components.memory_bank.POOL", pool)
    monkeypatch.setattr("flawsmith.models.components.memory_bank.SWEEP", sweep)

    for rows in (draw(seed), draw(NEAR_TIE)):
        chosen = greedy_coreset(torch.from_numpy(rows), 120, first=17)

        assert chosen.tolist() == plain_greedy(rows, 120, 17)


def test_of_equally_far_rows_the_first_is_chosen() -> None:
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])

    assert greedy_coreset(square, 3, first=0).tolist() == [0, 3, 1]
    assert greedy_coreset(square, 3, first=2).tolist() == [2, 1, 0]


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**15, 2.0**50])
def test_rows_that_rounding_alone_tells_apart_are_equally_far(scale: float) -> None:
    rows = torch.tensor([[0.0] * 2048, [-1.0] * 2048, [1 + 2**-23] * 2048]) * scale

    assert greedy_coreset(rows, 2, first=0).tolist() == [0, 1]


def test_no_row_is_chosen_twice_and_copies_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawsmith.models.components.memory_bank.POOL", 4)
    rows = torch.tensor([[0.1], [3.3], [8.7]]).repeat(10, 1)

    chosen = greedy_coreset(rows, 30, first=1)

    assert sorted(chosen.tolist()) == [0, 1, 2]


def test_more_than_there_are_gives_all(seed: int) -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))

    assert sorted(greedy_coreset(rows, 50, first=2).tolist()) == list(range(7))


def test_projection_nearly_keeps_distances_and_follows_its_seed() -> None:
    rows = torch.randn(200, 600, generator=torch.Generator().manual_seed(0))
    matrix = random_projection(600, 128, seed=1)

    ratio = torch.pdist(rows @ matrix) / torch.pdist(rows)

    assert matrix.shape == (600, 128)
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert ratio.std() < 0.1
    assert torch.equal(matrix, random_projection(600, 128, seed=1))
    assert not torch.equal(matrix, random_projection(600, 128, seed=2))
