"""Projector and discriminator that GLASS and PBAS share (methods' text: feature adaptor and one-hidden-layer MLP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.features.patch_embedding import Part, as_rows, join_parts, resize

LEAKY_SLOPE = 0.2
EPSILON = 1e-10
"""Added to a length that is divided by, as in the released code."""


class Projector(nn.Sequential):
    """Linear layers of equal width without activation, Xavier-normal weights (PBAS: projector, GLASS: adaptor).

    Args:
        depth: number of layers; 1 in both papers, 0 leaves features as they are.
    """

    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__(*(nn.Linear(width, width) for _ in range(depth)))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight)

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, in order."""
        return [cast(nn.Linear, layer) for layer in self]

    def of_parts(self, parts: Sequence[Part], grid: Sequence[int]) -> Float[Tensor, "position width"]:
        """Rows of the projected embedding, given what each level contributes at its own resolution.

        Projecting and resizing are linear and commute: a coarse level is projected on its own small grid, which saves
        a part of the matrix products of both passes.
        """
        if not self.layers:
            return as_rows(join_parts(parts, grid))
        first, *rest = self.layers
        total: Tensor | None = None
        for channels, part in parts:
            mapped = nn.functional.linear(part.permute(0, 2, 3, 1), first.weight[:, channels])
            resized = resize(mapped.permute(0, 3, 1, 2), grid)
            total = resized if total is None else total + resized
        assert total is not None, "an embedding has at least one level"
        features = as_rows(total) + first.bias
        for layer in rest:
            features = layer(features)
        return features


class DiscriminatorBlock(nn.Module):
    """Linear → batch norm → leaky ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        nn.init.xavier_normal_(self.linear.weight)

    def activate(self, hidden: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.norm(hidden), LEAKY_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.activate(self.linear(features))


class Discriminator(nn.Module):
    """Linear → batch norm → leaky ReLU blocks, then a linear layer without bias; the output is a logit.

    Args:
        hidden: width of every hidden block. None shrinks by a factor of 1.5 a block, as the released code does.
        depth: number of linear layers, at least 2.
    """

    def __init__(self, width: int, hidden: int | None = 1024, depth: int = 2) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError("a discriminator has at least two layers")
        blocks = []
        for _ in range(depth - 1):
            inside = hidden or int(width // 1.5)
            blocks.append(DiscriminatorBlock(width, inside))
            width = inside
        self._blocks = nn.ModuleList(blocks)
        self.out = nn.Linear(width, 1, bias=False)
        nn.init.xavier_normal_(self.out.weight)

    @property
    def blocks(self) -> list[DiscriminatorBlock]:
        """The hidden blocks, in order."""
        return [cast(DiscriminatorBlock, block) for block in self._blocks]

    def forward(self, features: Float[Tensor, "position width"]) -> Float[Tensor, " position"]:
        return self.out(self.refined(features)).squeeze(-1)

    def refined(self, features: Float[Tensor, "position width"]) -> Float[Tensor, "position hidden"]:
        """What the last linear layer sees of features."""
        for block in self.blocks:
            features = block(features)
        return features

    def from_first_linear(self, hidden: Float[Tensor, "position hidden"]) -> Float[Tensor, " position"]:
        """The logit, given the output of the first linear layer."""
        first, *rest = self.blocks
        features = first.activate(hidden)
        for block in rest:
            features = block(features)
        return self.out(features).squeeze(-1)
