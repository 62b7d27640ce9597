"""The fixed convolutions equal the released code's unfold, resize and pool, at any width, level and patch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flawsmith.features.patch_embedding import PatchEmbedding, adaptive_pooling, as_rows


def plain_embedding(levels: list[Tensor], patch_size: int, level_width: int, width: int) -> Tensor:
    """The released code's steps one by one: unfold, resize every plane, pool each level, stack, pool."""
    grid = levels[0].shape[-2:]
    pooled = []
    for level in levels:
        batch, channels, *size = level.shape
        patches = F.unfold(level, patch_size, padding=patch_size // 2)
        planes = patches.reshape(batch, channels * patch_size**2, *size)
        if tuple(size) != tuple(grid):
            planes = F.interpolate(planes, size=grid, mode="bilinear", align_corners=False)
        rows = planes.permute(0, 2, 3, 1).reshape(-1, 1, channels * patch_size**2)
        pooled.append(F.adaptive_avg_pool1d(rows, level_width))
    stacked = torch.cat(pooled, dim=2)
    return F.adaptive_avg_pool1d(stacked, width)[:, 0]


level_shapes = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=60)
@given(
    shapes=level_shapes,
    batch=st.integers(1, 2),
    patch_size=st.sampled_from([1, 3, 5]),
    level_width=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_embedding_equals_unfolding_and_pooling(
    shapes: list[tuple[int, int, int]], batch: int, patch_size: int, level_width: int, width: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    levels = [torch.randn(batch, *shape, generator=random) for shape in shapes]
    embed = PatchEmbedding([shape[0] for shape in shapes], patch_size=patch_size, level_width=level_width, width=width)

    rows = as_rows(embed(levels))

    expected = plain_embedding(levels, patch_size, level_width, width)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


@given(length=st.integers(1, 60), bins=st.integers(1, 60))
def test_pooling_matrix_equals_adaptive_pooling(length: int, bins: int) -> None:
    values = torch.eye(length, dtype=torch.float64)[None]

    expected = F.adaptive_avg_pool1d(values, bins)[0].T

    np.testing.assert_allclose(adaptive_pooling(length, bins).toarray(), expected.numpy(), atol=1e-15)


def test_full_width_needs_half_of_the_planes_a_level() -> None:
    embed = PatchEmbedding([512, 1024], patch_size=3, level_width=1536, width=1536)

    assert [level.channels_out for level in embed.levels] == [slice(0, 768), slice(768, 1536)]
    assert all(level.groups > 100 for level in embed.levels), "a dense kernel costs half as much as the backbone"


def test_of_more_levels_the_coarsest_are_embedded() -> None:
    torch.manual_seed(0)
    fine, coarse = torch.randn(2, 4, 8, 12), torch.randn(2, 6, 4, 6)
    embed = PatchEmbedding([6], patch_size=3, level_width=12, width=12)

    torch.testing.assert_close(embed([fine, coarse]), embed([coarse]))
    assert embed.finest([(8, 12), (4, 6)]) == (4, 6)


def test_kernels_are_fixed_and_stay_out_of_checkpoints() -> None:
    embed = PatchEmbedding([4, 8], patch_size=3, level_width=12, width=12)

    assert not list(embed.parameters())
    assert not embed.state_dict()


@pytest.mark.parametrize("patch_size", [0, 2, -1])
def test_even_patch_is_refused(patch_size: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        PatchEmbedding([4], patch_size=patch_size, level_width=4, width=4)
