"""Decoder parts that both networks of SLSG are built from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch channel height width"]
Grid = tuple[int, int]


def resize(maps: Map, grid: Grid) -> Map:
    """Bilinear, corner centres aligned; a map of that size already is left as it is."""
    if grid_of(maps) == tuple(grid):
        return maps
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=True)


def grid_of(maps: Map) -> Grid:
    """(height, width)."""
    return int(maps.shape[-2]), int(maps.shape[-1])


class ConvGroup(nn.Sequential):
    """3×3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UpBlock(nn.Module):
    """Up-sampling with a convolution group, then convolution groups over what was joined to it.

    Args:
        inputs: channels from below.
        joined: channels of what is joined.
        width: channels of the result.
        squeezed: channels after up-sampling; by default the width.
        convolutions: groups after joining.
    """

    def __init__(
        self, inputs: int, joined: int, width: int, *, squeezed: int | None = None, convolutions: int = 2
    ) -> None:
        super().__init__()
        squeezed = squeezed or width
        self.up = ConvGroup(inputs, squeezed)
        groups = [ConvGroup(squeezed + joined if number == 0 else width, width) for number in range(convolutions)]
        self.groups = nn.Sequential(*groups)

    def forward(self, below: Map, joined: Sequence[Map], grid: Grid) -> Map:
        return self.groups(torch.cat([self.up(resize(below, grid)), *joined], dim=1))


class Head(nn.Module):
    """Convolution groups and a last convolution without activation."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.groups = nn.Sequential(*(ConvGroup(*pair) for pair in pairwise(widths)))
        self.out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, maps: Map) -> Map:
        return self.out(self.groups(maps))
