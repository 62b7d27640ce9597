"""Networks of AAND: residual amplifiers (RAA) on a frozen teacher, and students that reconstruct its features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from flawsmith.models.aand.functional import (
    Map,
    Residual,
    Rows,
    WeightMap,
    amplify,
    match_weights,
    position_encoding,
    project_queries,
    scaled_residual,
)
from flawsmith.models.components.fast import matched_anomaly_weight

Components = Literal["both", "generator", "gate", "contrastive", "none"]
Grid = tuple[int, int]
Scale = Literal["down", "same", "up"]

MOST_HIDDEN = 1024
BLOCKS_PER_LEVEL = 2
HEAD_WIDTH = 64


def pointwise_mlp(channels: int) -> nn.Sequential:
    """Φ: three 1×1 convolutions with ReLU between them, min(2C, 1024) wide; Kaiming-normal weights."""
    hidden = min(2 * channels, MOST_HIDDEN)
    layers = [nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, channels, 1)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    first, second, third = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class ResidualGate(nn.Module):
    """The matching-guided residual gate: how anomalous a position is, by matching it with two memories.

    Args:
        channels: of the level.
        grid: (height, width) of the level's map.
        memories: L, learnable embeddings each of the normal and of the anomaly memory.
        temperature: divides the cosine similarities before the softmax; 1 in the paper, 0.2 in the released code.

    Attributes:
        memory: normal embeddings, then those of anomalies.

    Source:
        AAND, Eqs. 2 to 4.

    Example:
        >>> ResidualGate(8, (4, 6), memories=5, temperature=0.2)(torch.rand(2, 8, 4, 6)).shape
        torch.Size([2, 1, 4, 6])
    """

    memory: Float[Tensor, "item channel"]
    position: Float[Tensor, "channel height width"]

    def __init__(self, channels: int, grid: Grid, *, memories: int, temperature: float) -> None:
        super().__init__()
        self.mlp = pointwise_mlp(channels)
        self.memory = nn.Parameter(torch.randn(2 * memories, channels))
        self.temperature = temperature
        self.register_buffer("position", position_encoding(channels, grid))

    def forward(self, features: Map) -> WeightMap:
        """w: the weight of the anomaly memory at every position, in (0, 1)."""
        return matched_anomaly_weight(self.queries(features), self.memory, self.temperature)

    def matches(self, features: Map) -> Float[Tensor, "batch item height width"]:
        """Softmax over both memories of the cosine similarity between the query of a position and every embedding."""
        return match_weights(self.queries(features), self.memory, temperature=self.temperature)

    def queries(self, features: Map) -> Map:
        """q of Eq. 2 at every position."""
        return project_queries(features, self.position, self.mlp)


class ResidualGenerator(nn.Module):
    """The attribute-scaling residual generator: Δ = tanh(Φ(F)) ⊙ F.

    Args:
        channels: of the level.
        residual: ``tanh``, ``sigmoid``, or ``learnable``, where Φ(F) itself is the residual (paper, Table VII).

    Source:
        AAND, Eq. 5.

    Example:
        >>> ResidualGenerator(8, residual="tanh")(torch.rand(2, 8, 4, 6)).shape
        torch.Size([2, 8, 4, 6])
    """

    def __init__(self, channels: int, *, residual: Residual) -> None:
        super().__init__()
        self.mlp, self.residual = pointwise_mlp(channels), residual

    def forward(self, features: Map) -> Map:
        """Δ, one residual a position."""
        return scaled_residual(self.mlp(features), features, residual=self.residual)

    def of_rows(self, features: Rows) -> Rows:
        """Δ of positions that are taken out of their map."""
        return self(features[:, :, None, None])[:, :, 0, 0]


class Amplified(NamedTuple):
    """What amplification makes of one level.

    Attributes:
        features: F_A = F + w·Δ (Eq. 1).
        gate: w as the gate predicts it; None without a gate.
        residual: Δ, before it is weighted; None without a generator.
    """

    features: Map
    gate: WeightMap | None
    residual: Map | None


class Amplifier(nn.Module):
    """Gate and generator of one level, either of which may be left out (paper, Table V).

    Without a gate every position is amplified, without a generator none.
    """

    def __init__(self, gate: ResidualGate | None, generator: ResidualGenerator | None) -> None:
        super().__init__()
        self.gate, self.generator = gate, generator

    def forward(self, features: Map, weight: WeightMap | None = None) -> Amplified:
        """The amplified level; a given weight, such as the truth in training, takes the place of the gate's."""
        gate = None if self.gate is None else self.gate(features)
        if self.generator is None:
            return Amplified(features, gate, None)
        residual = self.generator(features)
        return Amplified(amplify(features, residual, gate if weight is None else weight), gate, residual)


class Amplifiers(nn.ModuleList):
    """The amplifiers of all levels: the frozen teacher becomes the advanced teacher.

    Args:
        channels: of the levels, finest first.
        grids: (height, width) of the levels.
        components: which parts there are.
        memories: see :class:`ResidualGate`.
        temperature: see :class:`ResidualGate`.
        residual: see :class:`ResidualGenerator`.

    Example:
        >>> amplifiers = Amplifiers([4, 8], [(8, 12), (4, 6)])
        >>> [tuple(level.shape) for level in amplifiers([torch.rand(1, 4, 8, 12), torch.rand(1, 8, 4, 6)])]
        [(1, 4, 8, 12), (1, 8, 4, 6)]
    """

    def __init__(
        self,
        channels: Sequence[int],
        grids: Sequence[Grid],
        *,
        components: Components = "both",
        memories: int = 50,
        temperature: float = 0.2,
        residual: Residual = "tanh",
    ) -> None:
        super().__init__(
            Amplifier(
                ResidualGate(count, grid, memories=memories, temperature=temperature)
                if components in ("both", "gate")
                else None,
                None if components == "gate" else ResidualGenerator(count, residual=residual),
            )
            for count, grid in zip(channels, grids, strict=True)
        )

    def forward(self, levels: Sequence[Map]) -> list[Map]:
        """The advanced teacher's level maps."""
        return [amplified.features for amplified in self.amplified(levels)]

    def amplified(self, levels: Sequence[Map], weights: Sequence[WeightMap | None] | None = None) -> list[Amplified]:
        """The same with gates and residuals; weights, where there are any, take the place of the gates'."""
        weights = weights or [None] * len(levels)
        return [amplifier(level, weight) for amplifier, level, weight in zip(self, levels, weights, strict=True)]


@dataclass(frozen=True)
class StudentLayout:
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
    "wide_resnet50_2": StudentLayout(),
    "wide_resnet101_2": StudentLayout(decoder=(3, 4, 23)),
    "resnet50": StudentLayout(squeeze=4),
    "resnet101": StudentLayout(squeeze=4, decoder=(3, 4, 23)),
    "resnet152": StudentLayout(squeeze=4, decoder=(3, 8, 36)),
    "resnet18": StudentLayout(block="basic", embedding=2, decoder=(2, 2, 2)),
    "resnet34": StudentLayout(block="basic", decoder=(3, 4, 6)),
}
OTHER = StudentLayout(heads=True)


def layout_for(
    architecture: str, *, widths: tuple[int, ...] | None = None, blocks: tuple[int, ...] | None = None
) -> StudentLayout:
    """The mirrored layers of a ResNet, or bottleneck blocks with heads for any other backbone.

    Args:
        architecture: timm's name, with or without a tag.
        widths: see :class:`StudentLayout`; other widths than the teacher's need heads.
        blocks: blocks of the decoder's stages, coarsest first; None: those of the architecture.

    Example:
        >>> layout_for("resnet18").decoder
        (2, 2, 2)
    """
    layout = _RESNETS.get(architecture.split(".")[0], OTHER)
    if widths is not None:
        layout = replace(layout, heads=True, widths=widths)
    return layout if blocks is None else replace(layout, decoder=blocks)


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
        return self.norm(self.conv(features))

    def fold(self) -> None:
        """Put the batch norm, in evaluation mode, into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm, transpose=isinstance(self.conv, nn.ConvTranspose2d))
            self.norm = nn.Identity()


class ResidualBlock(nn.Module):
    """A residual block: a path of convolutions with ReLU between them, a shortcut, and a ReLU over their sum."""

    def __init__(self, path: Sequence[ConvNorm], shortcut: ConvNorm | None) -> None:
        super().__init__()
        self.path, self.shortcut = nn.ModuleList(path), shortcut

    def forward(self, features: Map) -> Map:
        hidden = features
        for number, layer in enumerate(self.path):
            hidden = layer(torch.relu(hidden) if number else hidden)
        return torch.relu(hidden + (features if self.shortcut is None else self.shortcut(features)))


def residual_stage(inputs: int, outputs: int, count: int, layout: StudentLayout, scale: Scale) -> nn.Sequential:
    """Residual blocks, the first of which changes channels and scale."""
    blocks = []
    for number in range(count):
        first = number == 0
        before, change = (inputs, scale) if first else (outputs, "same")
        if layout.block == "bottleneck":
            inner = max(1, outputs // layout.squeeze)
            path = [ConvNorm(before, inner, 1), ConvNorm(inner, inner, 3, change), ConvNorm(inner, outputs, 1)]
        else:
            path = [ConvNorm(before, outputs, 3, change), ConvNorm(outputs, outputs, 3)]
        blocks.append(ResidualBlock(path, ConvNorm(before, outputs, 1, change) if first else None))
    return nn.Sequential(*blocks)


class OneClassEmbedding(nn.Module):
    """Multi-scale fusion and one-class embedding of RD4AD: all levels at the coarsest, then residual blocks.

    The unused convolution of the released code is left out.

    Args:
        channels: of the teacher's levels, finest first, each level half as large as the one before.
        layout: widths and blocks.
    """

    def __init__(self, channels: Sequence[int], layout: StudentLayout) -> None:
        super().__init__()
        widths = layout.widths or tuple(channels)
        self.fusion = nn.ModuleList(
            nn.Sequential(*_downwards((channels[level], *widths[level + 1 :]))) for level in range(len(channels) - 1)
        )
        fused = widths[-1] * (len(channels) - 1) + channels[-1]
        self.blocks = residual_stage(fused, 2 * widths[-1], layout.embedding, layout, "down")

    def forward(self, levels: Sequence[Map]) -> Map:
        return self.blocks(self.fused(levels))

    def fused(self, levels: Sequence[Map]) -> Map:
        """All levels at the coarsest level's grid, side by side."""
        finer = [chain(level) for chain, level in zip(self.fusion, levels[:-1], strict=True)]
        return torch.cat([*finer, levels[-1]], dim=1)


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

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid], layout: StudentLayout) -> None:
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
        levels: list[Map] = []
        for stage, head, (height, width) in zip(self.stages, self.heads, self.grids[::-1], strict=True):
            embedding = stage(embedding)[:, :, :height, :width]
            levels.insert(0, head(embedding))
        return levels


class Student(nn.Module):
    """Bottleneck and decoder: from the teacher's level maps to their reconstruction."""

    def __init__(self, bottleneck: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.bottleneck, self.decoder = bottleneck, decoder

    def forward(self, levels: Sequence[Map]) -> list[Map]:
        return self.decoder(self.bottleneck(levels))


def reverse_student(channels: Sequence[int], grids: Sequence[Grid], layout: StudentLayout) -> Student:
    """The student of a convolutional backbone, untrained.

    Args:
        channels: of the teacher's levels, finest first.
        grids: (height, width) of the levels, each half the one before, rounded up.
        layout: how it is built.

    Source:
        Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022, sections 3.2, 3.3.

    Example:
        >>> student = reverse_student([4, 8], [(8, 8), (4, 4)], StudentLayout(decoder=(1, 1), embedding=1)).eval()
        >>> [tuple(level.shape) for level in student([torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)])]
        [(1, 4, 8, 8), (1, 8, 4, 4)]
    """
    return Student(OneClassEmbedding(channels, layout), Decoder(channels, grids, layout))


class TokenBottleneck(nn.Module):
    """A 1×1 convolution with batch norm and ReLU a level, all side by side, and a 1×1 convolution to one width."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, count, 1), nn.BatchNorm2d(count), nn.ReLU()) for count in channels
        )
        self.fuse = nn.Conv2d(sum(channels), channels[-1], 1)

    def forward(self, levels: Sequence[Map]) -> Map:
        projected = [layer(level) for layer, level in zip(self.levels, levels, strict=True)]
        return self.fuse(torch.cat(projected, dim=1))


class TokenDecoder(nn.Module):
    """Transformer blocks over the bottleneck's tokens; every second block's output stands for a teacher's level.

    Levels come in the teacher's order, first to last, not mirrored.
    """

    def __init__(self, channels: Sequence[int], grid: Grid) -> None:
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
        levels = []
        for blocks in self.levels:
            tokens = blocks(tokens)
            levels.append(tokens.transpose(1, 2).unflatten(2, self.grid))
        return levels


def token_student(channels: Sequence[int], grid: Grid) -> Student:
    """The student of a plain transformer, untrained."""
    return Student(TokenBottleneck(channels), TokenDecoder(channels, grid))
