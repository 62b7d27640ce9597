"""PatchCore: candidates, memory and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flawsmith.models.patchcore.model import (
    AverageEmbedding,
    Candidates,
    MemoryDetector,
    PatchCoreConfig,
    memory_of,
    supports,
)


class Levels:
    """A source of random level maps."""

    channels, grids = (3, 5), ((4, 6), (2, 3))

    def __init__(self, images: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self._levels = [
            torch.randn(images, count, *grid, generator=rng)
            for count, grid in zip(self.channels, self.grids, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._levels[0])

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[torch.Tensor]:
        return [level[list(rows)] for level in self._levels]


class FlatBackbone(nn.Module):
    """The image itself as the only level."""

    def grids(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return (size,)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


def detector(memory: torch.Tensor, **settings: object) -> MemoryDetector:
    options = {"weighting": "none", "neighbours": 3, "sigma": 0.0, **settings}
    return MemoryDetector(FlatBackbone(), AverageEmbedding(1), memory, (5, 7), **options)  # type: ignore[arg-type]


def random_memory_and_images(seed: int, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return 20 + torch.randn(rows, 3, generator=rng), 20 + torch.randn(2, 3, 5, 7, generator=rng)


def test_embedding_averages_over_the_neighbourhood_with_zeros_beyond_the_border() -> None:
    level = torch.zeros(1, 1, 3, 3)
    level[0, 0, 0, 0] = 9.0

    (embedding,) = AverageEmbedding(3)([level])[0]

    assert embedding.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_even_neighbourhood_is_refused() -> None:
    with pytest.raises(ValidationError, match="odd"):
        PatchCoreConfig(patch_size=2)


def test_candidates_are_drawn_evenly_from_many_images_and_found_again_by_index(seed: int) -> None:
    source = Levels(20, seed)
    candidates = Candidates(source, AverageEmbedding(3), most=100, seed=1)

    everything = torch.cat(list(candidates.batches()))

    assert len(candidates) == len(everything) == 100
    assert torch.equal(candidates.rows(torch.tensor([99, 3, 40])), everything[[3, 40, 99]])
    assert torch.equal(everything, torch.cat(list(candidates.batches()))), "drawn again the same"
    other = Candidates(source, AverageEmbedding(3), most=100, seed=2)
    assert not torch.equal(everything, torch.cat(list(other.batches())))


@pytest.mark.parametrize(("images", "expected"), [(1, 24), (5, 30), (20, 48)])
def test_memory_holds_its_share_and_at_least_some_rows(images: int, expected: int, seed: int) -> None:
    candidates = Candidates(Levels(images, seed), AverageEmbedding(3), most=10_000, seed=0)

    memory = memory_of(candidates, PatchCoreConfig(coreset_ratio=0.1, least_rows=30), seed=0)

    assert memory.shape == (expected, 8)
    assert len(memory.unique(dim=0)) == expected


@pytest.mark.parametrize("projection", [4, 128])
def test_memory_follows_its_seed(projection: int, seed: int) -> None:
    config = PatchCoreConfig(coreset_ratio=0.1, least_rows=10, projection=projection)
    candidates = Candidates(Levels(6, seed), AverageEmbedding(3), most=10_000, seed=0)

    first, again, other = (memory_of(candidates, config, seed=number) for number in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scores_are_exact_distances_to_the_nearest_row(seed: int) -> None:
    memory, images = random_memory_and_images(seed)

    output = detector(memory)(images)

    rows = images.flatten(2).transpose(1, 2).double()
    expected = torch.cdist(rows, memory.double()).amin(dim=2)
    torch.testing.assert_close(output.map.flatten(1).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.score.double(), expected.amax(dim=1), atol=1e-5, rtol=0)


def test_a_patch_of_the_memory_has_the_distance_zero_far_from_the_origin() -> None:
    memory = 1000 + torch.arange(12.0).reshape(4, 3)
    images = memory[2][None, :, None, None].expand(1, 3, 5, 7)

    output = detector(memory)(images)

    assert output.map.abs().max() == 0


def test_image_score_is_weighted_by_the_neighbours_of_the_nearest_row(seed: int) -> None:
    memory, images = random_memory_and_images(seed)

    score = detector(memory, weighting="paper")(images).score

    for image, found in zip(images, score, strict=True):  # Eqs. 6 and 7, word by word
        distances = torch.cdist(image.flatten(1).T.double(), memory.double())
        farthest = int(distances.amin(dim=1).argmax())
        nearest = int(distances[farthest].argmin())
        support = torch.cdist(memory[[nearest]].double(), memory.double())[0].argsort()[:3]
        star = distances[farthest, nearest]
        weight = 1 - star.exp() / distances[farthest, support].exp().sum()
        assert float(found) == pytest.approx(float(weight * star), abs=1e-4)


def test_weighting_by_neighbours_is_not_continuous_and_says_so() -> None:
    memory = torch.eye(3)

    assert detector(memory).continuous
    assert not detector(memory, weighting="paper").continuous


def test_a_single_row_is_not_weighted_to_nothing() -> None:
    score = detector(torch.zeros(1, 3), weighting="paper")(torch.ones(1, 3, 5, 7)).score

    assert float(score) == pytest.approx(3**0.5)


def test_a_row_supports_itself_first_even_among_copies() -> None:
    memory = torch.tensor([[0.0], [0.0], [1.0], [5.0]])

    found = supports(memory, 2)

    assert found[:, 0].tolist() == [0, 1, 2, 3]
    assert set(found[0].tolist()) == {0, 1}
