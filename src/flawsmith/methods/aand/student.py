"""The student of reverse distillation: a bottleneck that fuses all levels, and a decoder that mirrors a ResNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Map = Float[Tensor, "batch channel height width"]
Grid = tuple[int, int]
Scale = Literal["down", "same", "up"]


@dataclass(frozen=True)
class Layout:
    """How the student is built.

    Attributes:
        block: ``bottleneck`` of three convolutions or ``basic`` of two.
        squeeze: output channels of a bottleneck over its inner channels; 2 in wide ResNets, 4 in plain ones.
        embedding: blocks of the one-class embedding.
        decoder: blocks of the decoder's stages, coarsest first.
        heads: close every level with a 1×1 convolution. A ResNet's levels come out of a ReLU, as those of the
            decoder's last blocks do; other backbones' levels have both signs.
        widths: channels of bottleneck and decoder by level, finest first; None: those of the teacher.
    """

    block: Literal["bottleneck", "basic"] = "bottleneck"
    squeeze: int = 2
    embedding: int = 3
    decoder: tuple[int, ...] = (3, 4, 6)
    heads: bool = False
    widths: tuple[int, ...] | None = None


_RESNETS = {
    "wide_resnet50_2": Layout(),
    "wide_resnet101_2": Layout(decoder=(3, 4, 23)),
    "resnet50": Layout(squeeze=4),
    "resnet101": Layout(squeeze=4, decoder=(3, 4, 23)),
    "resnet152": Layout(squeeze=4, decoder=(3, 8, 36)),
    "resnet18": Layout(block="basic", embedding=2, decoder=(2, 2, 2)),
    "resnet34": Layout(block="basic", decoder=(3, 4, 6)),
}
OTHER = Layout(heads=True)


def layout_for(
    architecture: str, *, widths: tuple[int, ...] | None = None, blocks: tuple[int, ...] | None = None
) -> Layout:
    """The mirrored layers of a ResNet, or bottleneck blocks with heads for any other backbone.

    Args:
        architecture: timm's name, with or without a tag.
        widths: see :class:`Layout`; given ones need heads.
        blocks: blocks of the decoder's stages, coarsest first; None: those of the architecture.
    """
    found = _RESNETS.get(architecture.split(".")[0], OTHER)
    if widths is not None:
        found = replace(found, heads=True, widths=widths)
    return found if blocks is None else replace(found, decoder=blocks)


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm; ``up`` doubles the map with a transposed 2×2 convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, scale: Scale = "same") -> None:
        super().__init__()
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if scale == "up":
            self.conv = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
        else:
            stride = 2 if scale == "down" else 1
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, features: Map) -> Map:
        found: Map = self.norm(self.conv(features))
        return found

    def fold(self) -> None:
        """Put the batch norm, in evaluation mode, into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm, transpose=isinstance(self.conv, nn.ConvTranspose2d))
            self.norm = nn.Identity()


class Block(nn.Module):
    """A residual block: a path of convolutions with ReLU between them, a shortcut, and a ReLU over their sum."""

    def __init__(self, path: Sequence[ConvNorm], shortcut: ConvNorm | None) -> None:
        super().__init__()
        self.path, self.shortcut = nn.ModuleList(path), shortcut

    def forward(self, features: Map) -> Map:
        found = features
        for number, layer in enumerate(self.path):
            found = layer(torch.relu(found) if number else found)
        return torch.relu(found + (features if self.shortcut is None else self.shortcut(features)))


def residual_stage(inputs: int, outputs: int, count: int, layout: Layout, scale: Scale) -> nn.Sequential:
    """Residual blocks, the first of which changes channels and scale."""
    blocks = []
    for number in range(count):
        first = number == 0
        before, how = (inputs, scale) if first else (outputs, "same")
        if layout.block == "bottleneck":
            inner = max(1, outputs // layout.squeeze)
            path = [ConvNorm(before, inner, 1), ConvNorm(inner, inner, 3, how), ConvNorm(inner, outputs, 1)]
        else:
            path = [ConvNorm(before, outputs, 3, how), ConvNorm(outputs, outputs, 3)]
        blocks.append(Block(path, ConvNorm(before, outputs, 1, how) if first else None))
    return nn.Sequential(*blocks)


class OneClassEmbedding(nn.Module):
    """Multi-scale fusion and one-class embedding of RD4AD: all levels at the coarsest, then residual blocks.

    The unused convolution of the released code is left out.

    Args:
        channels: of the teacher's levels, finest first, each level half as large as the one before.
        layout: widths and blocks.
    """

    def __init__(self, channels: Sequence[int], layout: Layout) -> None:
        super().__init__()
        widths = layout.widths or tuple(channels)
        self.fusion = nn.ModuleList(
            nn.Sequential(*_downwards((channels[level], *widths[level + 1 :]))) for level in range(len(channels) - 1)
        )
        fused = widths[-1] * (len(channels) - 1) + channels[-1]
        self.blocks = residual_stage(fused, 2 * widths[-1], layout.embedding, layout, "down")

    def forward(self, levels: Sequence[Map]) -> Map:
        found: Map = self.blocks(self.fused(levels))
        return found

    def fused(self, levels: Sequence[Map]) -> Map:
        """All levels at the coarsest level's grid, side by side."""
        brought = [chain(level) for chain, level in zip(self.fusion, levels[:-1], strict=True)]
        return torch.cat([*brought, levels[-1]], dim=1)


def _downwards(widths: Sequence[int]) -> Iterator[nn.Module]:
    """Convolutions that halve the map, one for each change of width."""
    for before, after in pairwise(widths):
        yield ConvNorm(before, after, 3, "down")
        yield nn.ReLU()


class Decoder(nn.Module):
    """The mirrored ResNet: from the embedding back to every level, coarsest first.

    Args:
        channels: of the teacher's levels, finest first.
        grids: of the teacher's levels; where an axis is odd, what doubling adds is cut off.
        layout: widths and blocks.
    """

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid], layout: Layout) -> None:
        super().__init__()
        widths = layout.widths or tuple(channels)
        self.grids = tuple(grids)
        inputs = (2 * widths[-1], *widths[:0:-1])
        self.stages = nn.ModuleList(
            residual_stage(before, after, count, layout, "up")
            for before, after, count in zip(inputs, widths[::-1], layout.decoder, strict=True)
        )
        heads = zip(widths[::-1], channels[::-1], strict=True)
        self.heads = nn.ModuleList(
            nn.Conv2d(width, count, 1) if layout.heads else nn.Identity() for width, count in heads
        )

    def forward(self, embedding: Map) -> list[Map]:
        """The student's level maps, finest first."""
        found: list[Map] = []
        for stage, head, (height, width) in zip(self.stages, self.heads, self.grids[::-1], strict=True):
            embedding = stage(embedding)[:, :, :height, :width]
            found.insert(0, head(embedding))
        return found


class Student(nn.Module):
    """Bottleneck and decoder: from the teacher's level maps to their reconstruction."""

    def __init__(self, bottleneck: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.bottleneck, self.decoder = bottleneck, decoder

    def forward(self, levels: Sequence[Map]) -> list[Map]:
        found: list[Map] = self.decoder(self.bottleneck(levels))
        return found


def reverse_student(channels: Sequence[int], grids: Sequence[Grid], layout: Layout) -> Student:
    """The student of a convolutional backbone, untrained."""
    return Student(OneClassEmbedding(channels, layout), Decoder(channels, grids, layout))
