"""The student for plain transformers, whose levels share one grid (the ViT variant of the released code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from flawsmith.methods.aand.student import Student

Map = Float[Tensor, "batch channel height width"]
BLOCKS_PER_LEVEL = 2
HEAD_WIDTH = 64


class TokenBottleneck(nn.Module):
    """A 1×1 convolution with batch norm and ReLU a level, all side by side, and a 1×1 convolution to one width."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, count, 1), nn.BatchNorm2d(count), nn.ReLU()) for count in channels
        )
        self.fuse = nn.Conv2d(sum(channels), channels[-1], 1)

    def forward(self, levels: Sequence[Map]) -> Map:
        brought = [layer(level) for layer, level in zip(self.levels, levels, strict=True)]
        found: Map = self.fuse(torch.cat(brought, dim=1))
        return found


class TokenDecoder(nn.Module):
    """Transformer blocks over the bottleneck's tokens; every second block's output stands for a teacher's level.

    Levels come in the teacher's order, first to last, not mirrored.
    """

    def __init__(self, channels: Sequence[int], grid: tuple[int, int]) -> None:
        super().__init__()
        width = channels[-1]
        self.grid = grid
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        heads = max(1, width // HEAD_WIDTH)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(width, heads, qkv_bias=True, act_layer=QuickGELU) for _ in range(BLOCKS_PER_LEVEL)))
            for _ in channels
        )

    def forward(self, embedding: Map) -> list[Map]:
        tokens = self.norm(embedding.flatten(2).transpose(1, 2) + self.position)
        found = []
        for blocks in self.levels:
            tokens = blocks(tokens)
            found.append(tokens.transpose(1, 2).unflatten(2, self.grid))
        return found


def token_student(channels: Sequence[int], grid: tuple[int, int]) -> Student:
    """The student of a plain transformer, untrained."""
    return Student(TokenBottleneck(channels), TokenDecoder(channels, grid))
