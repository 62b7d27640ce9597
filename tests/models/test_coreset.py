"""Greedy coresets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flawsmith.models.components.memory_bank import greedy_coreset, random_projection


def plain_greedy(rows: np.ndarray, count: int, first: int) -> list[int]:
    """One choice after another, each against the whole table, in float64."""
    chosen, distances = [first], np.full(len(rows), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, np.square(rows - rows[chosen[-1]]).sum(axis=1))
        chosen.append(int(distances.argmax()))
    return chosen


@pytest.mark.parametrize("pool", [8, 64, 10_000])
def test_choices_are_those_of_the_plain_algorithm(pool: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawsmith.models.components.memory_bank.POOL", pool)
    monkeypatch.setattr("flawsmith.models.components.memory_bank.SWEEP", 100)
    rows = np.random.default_rng(seed).normal(5, 1, (500, 6))

    chosen = greedy_coreset(torch.from_numpy(rows).float(), 120, first=17)

    assert chosen.tolist() == plain_greedy(rows.astype(np.float32).astype(np.float64), 120, 17)


def test_no_row_is_chosen_twice_and_copies_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawsmith.models.components.memory_bank.POOL", 4)
    rows = torch.tensor([[0.0], [3.0], [8.0]]).repeat(10, 1)

    chosen = greedy_coreset(rows, 30, first=1)

    assert sorted(rows[chosen].flatten().tolist()) == [0.0, 3.0, 8.0]


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
