"""Neighbourhood aggregation of GLASS and PBAS as one fixed convolution a level.

The released code unfolds every level map into p×p neighbourhoods, resizes all planes to the first level's grid and
runs two adaptive average poolings over the flattened vectors. Every one of these steps is linear and the resizing acts
on each plane alone, so the embedding of a position is the sum over levels of a fixed p×p convolution of the level map,
resized bilinearly afterwards. The kernels are sparse and nearly block-diagonal: grouped, they cost a small part of the
backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar, cast

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor, nn

T = TypeVar("T")


def odd(side: int) -> int:
    """The side of a neighbourhood, which has a middle.

    Raises:
        ValueError: it has none.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError("it must be odd and positive")
    return side


OddSide = Annotated[int, AfterValidator(odd)]
Part = tuple[slice, Tensor]
"""Consecutive embedding channels, and their values (batch, channel, h, w) at the resolution of one level."""


def adaptive_pooling(length: int, bins: int) -> sp.csr_array:
    """The matrix of a one-dimensional adaptive average pooling, (bins, length).

    Bin i averages the values from floor(i·L/n) up to, not including, ceil((i+1)·L/n); with more bins than values the
    windows overlap and repeat values.

    >>> adaptive_pooling(4, 2).toarray()
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    """
    starts = np.arange(bins) * length // bins
    stops = -(-(np.arange(1, bins + 1) * length) // bins)
    counts = stops - starts
    indptr = np.concatenate([[0], np.cumsum(counts)])
    columns = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts) + np.repeat(starts, counts)
    return sp.csr_array((np.repeat(1.0 / counts, counts), columns, indptr), shape=(bins, length))


def aggregation_matrices(
    channels: Sequence[int], *, patch_size: int, level_width: int | None, width: int | None
) -> list[sp.csr_array]:
    """One sparse matrix a level, (width, channels·p·p), columns ordered (channel, row, column) of the neighbourhood.

    Args:
        channels: channels of every level.
        patch_size: side p of the square neighbourhood, odd.
        level_width: values that each level is pooled to first (``pretrain_embed_dimension`` of the released code);
            None: as many as it has channels, each the mean over its neighbourhood (the papers' text).
        width: values of the final embedding (``target_embed_dimension``); None: the levels side by side.

    Example:
        >>> [matrix.shape for matrix in aggregation_matrices([2, 4], patch_size=3, level_width=6, width=5)]
        [(5, 18), (5, 36)]
    """
    odd(patch_size)
    widths = [count if level_width is None else level_width for count in channels]
    starts = np.concatenate([[0], np.cumsum(widths)])
    final = adaptive_pooling(int(starts[-1]), int(starts[-1]) if width is None else width)
    return [
        sp.csr_array(final[:, start : start + pooled] @ adaptive_pooling(count * patch_size**2, pooled))
        for count, pooled, start in zip(channels, widths, starts[:-1], strict=True)
    ]


def block_count(matrix: sp.csr_array, inputs: int, taps: int) -> int:
    """The largest number of groups into which a (outputs, inputs·taps) matrix falls block-diagonally.

    Example:
        >>> block_count(sp.csr_array(np.eye(4)), inputs=4, taps=1)
        4
    """
    outputs = matrix.shape[0]
    rows, columns = matrix.nonzero()
    for groups in range(int(np.gcd(outputs, inputs)), 1, -1):
        if outputs % groups or inputs % groups:
            continue
        if np.array_equal(rows // (outputs // groups), columns // taps // (inputs // groups)):
            return groups
    return 1


class LevelEmbedding(nn.Module):
    """The part of the embedding that one level contributes: a fixed grouped convolution, zero padding, no bias.

    ``channels_out`` are the consecutive embedding channels that depend on this level; all others are zero for it.
    """

    kernel: Tensor

    def __init__(self, matrix: sp.csr_array, channels: int, patch_size: int) -> None:
        super().__init__()
        used = np.flatnonzero(np.diff(matrix.indptr))
        self.channels_out = slice(int(used[0]), int(used[-1]) + 1)
        part = sp.csr_array(matrix[self.channels_out])
        self.groups = block_count(part, channels, patch_size**2)
        self.padding = patch_size // 2
        dense = part.toarray().reshape(self.groups, -1, self.groups, channels // self.groups, patch_size, patch_size)
        kernel = np.concatenate([dense[group, :, group] for group in range(self.groups)])
        self.register_buffer("kernel", torch.from_numpy(kernel).float(), persistent=False)

    def forward(self, level: Float[Tensor, "batch channel height width"]) -> Tensor:
        level = level.contiguous(memory_format=torch.channels_last)  # grouped convolutions run twice as fast so
        return F.conv2d(level, self.kernel, padding=self.padding, groups=self.groups)


class PatchEmbedding(nn.Module):
    """Level maps to one embedding a position of the first level (GLASS and PBAS, section "feature extraction").

    Args:
        channels: channels of the levels that are embedded, finest first; of more levels the coarsest are.
        patch_size: side of the neighbourhood, odd; 3 in both papers.
        level_width: width that each level is pooled to first, 1536 in the released scripts; None: its channels.
        width: width of the embedding, 1536 in the released scripts; None: the levels side by side.

    Attributes:
        width: of the embedding.

    Example:
        >>> embed = PatchEmbedding([4, 8], patch_size=3, level_width=12, width=12)
        >>> embed([torch.ones(1, 4, 6, 6), torch.ones(1, 8, 3, 3)]).shape
        torch.Size([1, 12, 6, 6])
    """

    def __init__(self, channels: Sequence[int], *, patch_size: int, level_width: int | None, width: int | None) -> None:
        super().__init__()
        matrices = aggregation_matrices(channels, patch_size=patch_size, level_width=level_width, width=width)
        self.width = int(matrices[0].shape[0])
        self._levels = nn.ModuleList(
            LevelEmbedding(matrix, count, patch_size) for matrix, count in zip(matrices, channels, strict=True)
        )

    @property
    def levels(self) -> list[LevelEmbedding]:
        """The part of every level, finest first."""
        return [cast(LevelEmbedding, level) for level in self._levels]

    def finest(self, levels: Sequence[T]) -> T:
        """Of things that go with the levels, that of the finest one embedded, whose positions the embedding has."""
        return levels[-len(self._levels)]

    def parts(self, levels: Sequence[Tensor]) -> list[Part]:
        """Each level's contribution at its own resolution, with the embedding channels it belongs to."""
        embedded = levels[-len(self._levels) :]
        return [(module.channels_out, module(level)) for module, level in zip(self.levels, embedded, strict=True)]

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch width height0 width0"]:
        return join_parts(self.parts(levels), self.finest(levels).shape[-2:])


def join_parts(parts: Sequence[Part], grid: Sequence[int]) -> Float[Tensor, "batch width height0 width0"]:
    """The embedding on a grid: the sum of what the levels contribute, each resized.

    Example:
        >>> parts = [(slice(0, 2), torch.ones(1, 2, 4, 4)), (slice(1, 3), torch.ones(1, 2, 2, 2))]
        >>> join_parts(parts, (4, 4))[0, :, 0, 0]
        tensor([1., 2., 1.])
    """
    first = parts[0][1]
    if len(parts) == 1 and parts[0][0].start == 0:  # nothing to add to
        return resize(first, grid)
    width = max(channels.stop for channels, _ in parts)
    # Not len(first): in an exported graph that would fix the number of images.
    embedding = first.new_zeros(first.shape[0], *grid, width).permute(0, 3, 1, 2)
    for channels, part in parts:
        embedding[:, channels] += resize(part, grid)
    return embedding


def resize(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Bilinear resizing with half-pixel centres, unchanged where the grid fits already.

    Example:
        >>> resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    height, width = maps.shape[-2:]
    if (height, width) == tuple(grid):
        return maps
    if grid[0] % height == 0 and grid[1] % width == 0:
        # The same numbers, but exported as constant scales: ONNX Runtime then keeps its blocked layout through the
        # resizing, which takes a quarter of the time.
        scales = (float(grid[0] // height), float(grid[1] // width))
        return F.interpolate(maps, scale_factor=scales, mode="bilinear", align_corners=False)
    return F.interpolate(maps, size=tuple(grid), mode="bilinear", align_corners=False)


def average_embedding(
    levels: Sequence[Float[Tensor, "batch _ _ _"]], side: int, grid: Sequence[int]
) -> Float[Tensor, "batch width height0 width0"]:
    """Every channel averaged over its neighbourhood, all levels resized to one grid and concatenated.

    Args:
        levels: level maps of any sizes.
        side: of the neighbourhood in positions of each level, odd; what lies outside of a map counts as 0.
        grid: (height0, width0); half of a level's is the mean over 2x2 of its positions.

    Example:
        >>> average_embedding([torch.ones(1, 4, 6, 6), torch.ones(1, 8, 3, 3)], 3, (6, 6)).shape
        torch.Size([1, 12, 6, 6])
    """
    averaged = levels if side == 1 else [F.avg_pool2d(level, side, 1, side // 2) for level in levels]
    return torch.cat([resize(level, grid) for level in averaged], dim=1)


def as_rows(embedding: Float[Tensor, "batch width height0 width0"]) -> Float[Tensor, "position width"]:
    """One row a position, image-major and then row by row over the map.

    Example:
        >>> as_rows(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([24, 5])
    """
    return embedding.permute(0, 2, 3, 1).reshape(-1, embedding.shape[1])
