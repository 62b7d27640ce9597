"""Stand-ins for a backbone: level maps that are given, in place of a network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone, BackboneInfo

Grid = tuple[int, int]


class GivenLevels(nn.Module):
    """Gives the same level maps whatever it sees; without any, zeros of the given sizes for every image."""

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid], levels: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.channels, self.sizes, self.levels = tuple(channels), tuple(grids), levels

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.levels is not None:
            return list(self.levels)
        return [torch.zeros(len(images), n, *grid) for n, grid in zip(self.channels, self.sizes, strict=True)]


def fixed_backbone(
    channels: Sequence[int], grids: Sequence[Grid], levels: Sequence[Tensor] | None = None, **info: Any
) -> Backbone:
    """A backbone of levels of these sizes."""
    strides = tuple(8 * 2**number for number in range(len(channels)))
    facts = {"name": "fixed", "architecture": "fixed", "weights": "random", "sha256": "0", "strides": strides}
    shape = {"channels": tuple(channels), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return Backbone(GivenLevels(channels, grids, levels), BackboneInfo(**{**facts, **shape, **info}))
