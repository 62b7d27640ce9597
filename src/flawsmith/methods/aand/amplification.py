"""Residual anomaly amplification (RAA): what makes a frozen teacher's anomalous features more anomalous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.methods.aand.position import position_encoding
from flawsmith.methods.layers.precision import full_precision

MOST_HIDDEN = 1024

Residual = Literal["tanh", "sigmoid", "learnable"]
Components = Literal["both", "generator", "gate", "none"]
Map = Float[Tensor, "batch channel height width"]
GateMap = Float[Tensor, "batch 1 height width"]


def pointwise_mlp(channels: int) -> nn.Sequential:
    """Φ: three 1×1 convolutions with ReLU between them, min(2C, 1024) wide; Kaiming-normal weights."""
    hidden = min(2 * channels, MOST_HIDDEN)
    layers = [nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, channels, 1)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    first, second, third = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class ResidualGate(nn.Module):
    """The matching-guided residual gate: how anomalous a position is, by matching it with two memories (Eqs. 2 to 4).

    Args:
        channels: of the level.
        grid: (height, width) of the level's map.
        memories: L, learnable embeddings each of the normal and of the anomaly memory.
        temperature: divides the cosine similarities before the softmax; 1 in the paper, 0.2 in the released code.

    Attributes:
        memory: normal embeddings, then those of anomalies.
    """

    memory: Float[Tensor, "item channel"]
    position: Float[Tensor, "channel height width"]

    def __init__(self, channels: int, grid: tuple[int, int], *, memories: int, temperature: float) -> None:
        super().__init__()
        self.mlp = pointwise_mlp(channels)
        self.memory = nn.Parameter(torch.randn(2 * memories, channels))
        self.temperature = temperature
        self.register_buffer("position", position_encoding(channels, grid))

    def forward(self, features: Map) -> GateMap:
        """w: the weight of the anomaly memory at every position, in (0, 1)."""
        return self.matches(features)[:, len(self.memory) // 2 :].sum(dim=1, keepdim=True)

    def matches(self, features: Map) -> Float[Tensor, "batch item height width"]:
        """Softmax over both memories of the cosine similarity between the query of a position and every embedding."""
        queries = F.normalize(self.mlp(features + self.position).float(), dim=1)
        with full_precision(features.device):
            similarity = F.conv2d(queries, F.normalize(self.memory.float(), dim=1)[:, :, None, None])
            return (similarity / self.temperature).softmax(dim=1)


class ResidualGenerator(nn.Module):
    """The attribute-scaling residual generator: Δ = tanh(Φ(F)) ⊙ F (Eq. 5).

    Args:
        channels: of the level.
        residual: ``tanh``, ``sigmoid``, or ``learnable``, where Φ(F) itself is the residual (paper, Table VII).
    """

    def __init__(self, channels: int, *, residual: Residual) -> None:
        super().__init__()
        self.mlp, self.residual = pointwise_mlp(channels), residual

    def forward(self, features: Map) -> Map:
        """Δ, one residual a position."""
        found = self.mlp(features).float()
        if self.residual == "learnable":
            return found
        return (found.tanh() if self.residual == "tanh" else found.sigmoid()) * features


class Amplified(NamedTuple):
    """What amplification makes of one level.

    Attributes:
        features: F_A = F + w·Δ (Eq. 1).
        gate: w as the gate predicts it; None without a gate.
        residual: Δ, before it is weighted; None without a generator.
    """

    features: Map
    gate: GateMap | None
    residual: Map | None


class Amplifier(nn.Module):
    """Gate and generator of one level, either of which may be left out (paper, Table V).

    Without a gate every position is amplified, without a generator none.
    """

    def __init__(self, gate: ResidualGate | None, generator: ResidualGenerator | None) -> None:
        super().__init__()
        self.gate, self.generator = gate, generator

    def forward(self, features: Map, weight: GateMap | None = None) -> Amplified:
        """The amplified level; a given weight, such as the truth in training, takes the place of the gate's."""
        gate = None if self.gate is None else self.gate(features)
        if self.generator is None:
            return Amplified(features, gate, None)
        residual, weight = self.generator(features), gate if weight is None else weight
        return Amplified(features + (residual if weight is None else weight * residual), gate, residual)


class Amplifiers(nn.ModuleList):
    """The amplifiers of all levels: the frozen teacher becomes the advanced teacher.

    Args:
        channels: of the levels, finest first.
        grids: (height, width) of the levels.
        components: which parts there are.
        memories: see :class:`ResidualGate`.
        temperature: see :class:`ResidualGate`.
        residual: see :class:`ResidualGenerator`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        grids: Sequence[tuple[int, int]],
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
                ResidualGenerator(count, residual=residual) if components in ("both", "generator") else None,
            )
            for count, grid in zip(channels, grids, strict=True)
        )

    def forward(self, levels: Sequence[Map]) -> list[Map]:
        """The advanced teacher's level maps."""
        return [amplified.features for amplified in self.amplified(levels)]

    def amplified(self, levels: Sequence[Map], weights: Sequence[GateMap | None] | None = None) -> list[Amplified]:
        """The same with gates and residuals; given weights take the place of the gates'."""
        given = weights or [None] * len(levels)
        return [amplify(level, weight) for amplify, level, weight in zip(self, levels, given, strict=True)]
