"""The memory of normal features: what is remembered, what is far from it, and how SLSG's SegNet comes to know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawsmith.features.extract import to_onnx
from flawsmith.models.components.memory_bank import (
    CODED,
    Coreset,
    LevelMaps,
    MemoryBank,
    _first_least,
    distances_to_others,
    draw_features,
    sample_coreset,
    squared_distances_between_images,
    typical_peak,
)
from flawsmith.runtime.engine import make_engine

CHANNELS, GRIDS = [4, 8, 16], [(16, 24), (8, 12), (4, 6)]


class Maps:
    """Level maps of a few images."""

    channels, grids = tuple(CHANNELS), tuple(GRIDS)

    def __init__(self, count: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.levels = [
            torch.randn(count, channels, *grid, generator=rng) for channels, grid in zip(CHANNELS, GRIDS, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, rows: Any) -> list[Tensor]:
        return [level[np.asarray(rows)] for level in self.levels]


def exactly(positions: Tensor, features: Tensor) -> Tensor:
    """The distance to the nearest feature, from differences."""
    return torch.cdist(positions, features, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def remembering(features: Tensor, size: int) -> MemoryBank:
    memory = MemoryBank(features.shape[1], size)
    memory.fit(features)
    return memory


def test_distance_is_that_to_the_nearest_remembered_feature(seed: int) -> None:
    torch.manual_seed(seed)
    features, level = 6 * torch.randn(20, 8), 6 * torch.randn(3, 8, 4, 5)

    found = remembering(features, 20)(level)

    positions = level.flatten(2).transpose(1, 2).reshape(-1, 8)
    expected = exactly(positions, features).reshape(3, 1, 4, 5)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_what_is_remembered_is_no_distance_away(seed: int) -> None:
    torch.manual_seed(seed)
    level = torch.randn(1, 8, 4, 5)

    found = remembering(level[0].flatten(1).T, 20)(level)

    assert float(found.max()) < 0.01


def test_a_memory_larger_than_what_there_is_to_remember_gives_the_same_distances(seed: int) -> None:
    torch.manual_seed(seed)
    features, level = torch.randn(7, 8), torch.randn(2, 8, 4, 5)

    torch.testing.assert_close(remembering(features, 50)(level), remembering(features, 7)(level))


def test_distances_keep_their_precision_where_training_runs_in_a_lower_one(seed: int) -> None:
    torch.manual_seed(seed)
    memory, level = remembering(torch.randn(9, 8), 9), torch.randn(2, 8, 4, 5)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = memory(level)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, memory(level))


def test_joined_levels_are_averaged_each_and_then_brought_to_the_coarser_grid(seed: int) -> None:
    images = Maps(2, seed)

    maps = LevelMaps(images, 2, 3, joined=2)

    _, fine, coarse = images.batch([1])
    expected = torch.cat([F.avg_pool2d(F.avg_pool2d(fine, 3, 1, 1), 2), F.avg_pool2d(coarse, 3, 1, 1)], dim=1)
    torch.testing.assert_close(maps[1], expected)
    assert maps.positions == 24


def test_coreset_features_are_positions_of_their_images_and_a_function_of_the_seed(seed: int) -> None:
    images = Maps(5, seed)

    coreset = sample_coreset(LevelMaps(images, 1), 30, seed)

    assert coreset.features.shape == (30, 8)
    for feature, row in zip(coreset.features, coreset.images, strict=True):
        assert not exactly(feature[None], images.levels[1][row].flatten(1).T).any()
    assert torch.equal(coreset.features, sample_coreset(LevelMaps(images, 1), 30, seed).features)
    other = sample_coreset(LevelMaps(images, 1), 30, seed, purpose="other", candidates=60)
    assert not torch.equal(coreset.features, other.features)


def test_coreset_features_leave_no_position_farther_than_evenly_drawn_ones_do(seed: int) -> None:
    images = Maps(8, seed)
    images.levels[1][0, :, :2, :2] += 20  # rare, so that an even draw passes it over
    positions = images.levels[1].movedim(1, -1).reshape(-1, 8)

    def radius(features: Tensor) -> float:
        return float(exactly(positions, features).max())

    drawn = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:10]]
    assert radius(sample_coreset(LevelMaps(images, 1), 10, seed).features) < radius(drawn)


def test_of_few_images_little_is_remembered(seed: int) -> None:
    assert len(sample_coreset(LevelMaps(Maps(1, seed), 2), 1000, seed).images) == 3, "a tenth of 24 positions"


def test_unit_is_the_typical_peak_over_features_of_other_images(seed: int) -> None:
    images = Maps(3, seed)
    levels = images.levels[2].flatten(2).transpose(1, 2)
    coreset = Coreset(torch.cat([levels[0, :2], levels[1, :2]]), torch.tensor([0, 0, 1, 1]))

    others = [coreset.features[2:], coreset.features[:2], coreset.features]
    expected = sorted(float(exactly(one, known).max()) for one, known in zip(levels, others, strict=True))[1]
    assert float(typical_peak(coreset, LevelMaps(images, 2))) == pytest.approx(expected, rel=1e-4)


def test_an_images_own_features_are_no_measure_of_what_is_far_from_it(seed: int) -> None:
    images = Maps(2, seed)
    maps = LevelMaps(images, 2)
    rows = torch.arange(2).repeat_interleave(24)
    coreset = Coreset(torch.cat([maps[row][0].flatten(1).T for row in range(2)]), rows)

    (first,) = distances_to_others(coreset, maps, [0])

    expected = exactly(images.levels[2][0].flatten(1).T, images.levels[2][1].flatten(1).T)
    torch.testing.assert_close(first.flatten(), expected, atol=1e-3, rtol=1e-4)


def test_nothing_is_strange_where_there_is_one_image_alone(seed: int) -> None:
    images = Maps(1, seed)
    coreset = sample_coreset(LevelMaps(images, 2), 1000, seed)

    assert typical_peak(coreset, LevelMaps(images, 2)) == torch.inf


def test_distances_are_told_in_the_memorys_unit(seed: int) -> None:
    torch.manual_seed(seed)
    features, level = torch.randn(7, 8), torch.randn(2, 8, 4, 5)
    memory = MemoryBank(8, 7)
    memory.fit(features, torch.tensor(4.0))

    torch.testing.assert_close(4 * memory(level), remembering(features, 7)(level))


def test_a_tolerant_memory_forgives_each_feature_its_share_and_prefers_what_is_then_nearest(seed: int) -> None:
    torch.manual_seed(seed)
    features, level = 6 * torch.randn(20, 8), 6 * torch.randn(3, 8, 4, 5)
    tolerance = 60 * torch.rand(20)
    memory = MemoryBank(8, 33, tolerant=True)  # larger than what it is given
    memory.fit(features, 2.0, tolerance)

    positions = level.flatten(2).transpose(1, 2).reshape(-1, 8)
    squared = (positions[:, None] - features).square().sum(2) - tolerance
    expected = squared.amin(1).clamp_min(0).sqrt() / 2
    torch.testing.assert_close(memory(level).flatten(), expected, atol=1e-3, rtol=1e-4)
    assert (squared.argmin(1) != (positions[:, None] - features).square().sum(2).argmin(1)).any()


def test_what_good_images_differ_by_is_measured_to_the_nearest_feature_of_another_image(seed: int) -> None:
    images = Maps(3, seed)
    rows = torch.arange(3).repeat_interleave(24)
    drawn = Coreset(torch.cat([images.levels[2][row].flatten(1).T for row in range(3)]), rows)
    coreset = Coreset(drawn.features[::5], rows[::5])

    between = squared_distances_between_images(coreset, drawn)

    for feature, image, squared in zip(coreset.features, coreset.images, between, strict=True):
        nearest = exactly(feature[None], drawn.features[drawn.images != image])
        torch.testing.assert_close(squared.sqrt(), nearest[0], atol=1e-3, rtol=1e-4)
    alone = Coreset(drawn.features[:24], rows[:24])
    assert not squared_distances_between_images(alone, alone).any(), "one image says nothing of how they differ"


def test_what_good_images_differ_by_is_computed_where_their_features_are() -> None:
    """On torch's device without contents: places there are none in a table on the CPU."""
    images = Maps(3, 0)
    images.levels = [level.to("meta") for level in images.levels]
    drawn = draw_features(LevelMaps(images, 2), 0, purpose="bank", candidates=100)

    between = squared_distances_between_images(drawn, drawn)

    assert (between.device.type, len(between)) == ("meta", len(drawn.features))


@pytest.mark.parametrize("size", [1, 7, 30, 64])
def test_of_equally_near_features_the_first_counts_whatever_the_size_of_the_memory(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    table = torch.randint(4, (50, size)).float()

    assert torch.equal(_first_least(table), torch.from_numpy(table.numpy().argmin(1)))


def coded_and_exact(channels: int, size: int, *, tolerant: bool = False) -> tuple[MemoryBank, MemoryBank]:
    """Two memories of the same features of a few clusters: one looks for the nearest in 8 bits first."""
    centers = 8 * torch.randn(12, channels)
    features = centers[torch.arange(size) % 12] + torch.randn(size, channels) * torch.linspace(0.2, 3, channels)
    banks = (
        MemoryBank(channels, size, tolerant=tolerant, coded=True),
        MemoryBank(channels, size, tolerant=tolerant),
    )
    for bank in banks:
        bank.fit(features, 2.0, 3 * torch.rand(size, generator=torch.Generator().manual_seed(0)) if tolerant else None)
    return banks


@pytest.mark.parametrize("tolerant", [False, True])
def test_codes_find_the_nearest_but_for_a_few_that_are_nearly_as_near(tolerant: bool, seed: int) -> None:
    torch.manual_seed(seed)
    coded, exact = coded_and_exact(24, CODED, tolerant=tolerant)
    level = exact.features[torch.randint(CODED, (900,))] + torch.randn(900, 24)
    level[:50] += 100  # far beyond what the codes hold
    level = level.T.reshape(1, 24, 30, 30)

    found, expected = coded(level), exact(level)

    assert float((found > expected + 1e-4).float().mean()) < 0.01
    assert float((found - expected).min()) > -1e-4
    assert float((found / expected).max()) < 1.03


def test_codes_follow_what_is_loaded_whatever_its_size(seed: int) -> None:
    torch.manual_seed(seed)
    coded, _ = coded_and_exact(8, CODED + 8)
    other = MemoryBank(8, CODED + 8, coded=True)

    other.load_state_dict(coded.state_dict())

    level = torch.randn(1, 8, 6, 6)
    assert torch.equal(other(level), coded(level))
    assert "codes" not in str(list(coded.state_dict())), "they follow from the features"


class Remembering(nn.Module):
    """A memory behind a layer that makes features, as a detector."""

    def __init__(self, bank: MemoryBank) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, len(bank.features[0]), 3, 2, 1)
        self.bank = bank

    def forward(self, images: Tensor) -> Tensor:
        return self.bank(self.backbone(images))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_look_for_codes_in_8_bits_and_find_what_torch_does(engine: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = Remembering(coded_and_exact(24, CODED)[0]).eval()
    image = torch.randn(1, 3, 24, 32)

    graph = to_onnx(model, {"image": (3, 24, 32)}, ["distance"])
    (found,) = make_engine(engine, graph, batch=1).run(image.numpy())

    with torch.no_grad():
        np.testing.assert_allclose(found, model(image).numpy(), rtol=1e-4)
    assert b"QuantizeLinear" in graph
