"""The SG block: dense self-attention and a sparse graph over the cells of the deepest map."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from flawsmith.models.components.precision import full_precision
from flawsmith.models.slsg.functional import (
    Grid,
    Map,
    Neighbours,
    Nodes,
    Similarity,
    attend,
    dense_similarity,
    max_relative,
    nearest_nodes,
    position_similarity,
    sparse_similarity,
    update,
)

RELEASED_DILATION = 3
RELEASED_GROUPS = 4
RELEASED_STD = 0.02


class Graph(NamedTuple):
    """The relations that a block sees.

    Attributes:
        attention: W_d of Eq. 2; None where it is switched off.
        similarity: W_s of Eq. 5; None where the graph is switched off.
        neighbours: the graph's edges; None likewise.
    """

    attention: Similarity | None
    similarity: Similarity | None
    neighbours: Neighbours | None


class SGBlock(nn.Module):
    """Global extensive and key sparse relations of a map's cells (section 3.3, Eqs. 2 to 7).

    ``released`` builds the block of the authors' code instead of the paper's: a convolution before everything, one
    layer for query and key, no 1/√d, every third of the 3·K most similar nodes as neighbours, values from a filter that
    runs along the nodes row by row, and a grouped update of two layers around which X goes as a residual.

    Args:
        channels: of X and X'.
        grid: (height, width) of the map.
        released: see above.
        attention: dense relations (Table 6).
        graph: sparse relations (Table 6).
        subtract_position: whether W_s leaves the similarity of places out (Table 6).
        neighbours: K, neighbours of a node; fewer where the map has fewer nodes.
        margin: a neighbour counts in part where its similarity is by less than this above that of the first node that
            is none; one that counts for nothing still makes the largest difference 0 at least. With 0, as in the
            paper, the block is not continuous: a difference in the last digit can exchange a neighbour. The released
            block has none.

    Raises:
        ValueError: neither attention nor graph.

    Example:
        >>> import torch
        >>> SGBlock(8, (4, 6))(torch.zeros(2, 8, 4, 6)).shape
        torch.Size([2, 8, 4, 6])
    """

    position: Tensor

    def __init__(
        self,
        channels: int,
        grid: Grid,
        *,
        released: bool = False,
        attention: bool = True,
        graph: bool = True,
        subtract_position: bool = True,
        neighbours: int = 9,
        margin: float = 0.0,
    ) -> None:
        super().__init__()
        if not attention and not graph:
            raise ValueError("an SG block needs attention or a graph")
        key = max(1, channels // 2)
        self.released, self.attends, self.has_graph, self.neighbours = released, attention, graph, neighbours
        self.dilation, self.margin = (RELEASED_DILATION, 0.0) if released else (1, margin)
        self.scale = 1.0 if released else 1 / math.sqrt(key)
        position = position_similarity(channels, grid)
        self.register_buffer("position", position * float(subtract_position), persistent=False)
        self.input: nn.Module = _conv_norm(channels, channels) if released else nn.Identity()
        self.query: nn.Module = _conv_norm(channels, key) if released else nn.Conv2d(channels, key, 1)
        self.key: nn.Module | None = None if released else nn.Conv2d(channels, key, 1)
        if attention:
            self.value = nn.Conv2d(channels, channels, 3, padding=1) if released else nn.Conv2d(channels, channels, 1)
            if released:
                self.mix = nn.Conv2d(channels, channels, 1)
                for layer in (self.value, self.mix):
                    nn.init.normal_(layer.weight, 0.0, RELEASED_STD)
        joined = channels * (2 if graph and (attention or released) else 1)
        self.update = _released_update(channels, joined) if released else nn.Conv2d(joined, channels, 1)

    @property
    def continuous(self) -> bool:
        """Whether a small change of X can only make a small change of X'."""
        nodes = len(self.position)
        all_are_neighbours = nodes == 1 if self.released else nodes <= self.neighbours
        return not self.has_graph or all_are_neighbours or self.margin > 0

    def graph(self, maps: Map) -> Graph:
        """The relations that the block sees in X."""
        return self._relations(self.input(maps))

    def forward(self, maps: Map) -> Map:
        x = self.input(maps)
        relations = self._relations(x)
        nodes, parts = x.flatten(2), []
        if relations.attention is not None:
            attended = self._attended(x, relations.attention)
            parts.append(nodes + attended if self.released else attended)
        elif self.released:
            parts.append(nodes)
        if relations.neighbours is not None:
            _, indices, weights = relations.neighbours
            parts.append(max_relative(nodes, indices, weights))
        grid = (x.shape[-2], x.shape[-1])
        updated = update(parts, grid, self.update, order="alternating" if self.released else "joined")
        return updated + maps if self.released else updated

    def _relations(self, x: Map) -> Graph:
        query = self.query(x).flatten(2)
        key = self.query(x).flatten(2) if self.key is None else self.key(x).flatten(2)
        attention = similarity = neighbours = None
        with full_precision(x.device):
            query, key = query.float(), key.float()
            if self.attends:
                attention = dense_similarity(query, key, scale=self.scale)
            if self.has_graph:
                similarity = sparse_similarity(query, key, self.position)
                neighbours = nearest_nodes(similarity, self.neighbours, dilation=self.dilation, margin=self.margin)
        return Graph(attention, similarity, neighbours)

    def _attended(self, x: Map, attention: Similarity) -> Nodes:
        """Z of Eq. 3; in the released form of the nodes as a list, and through one more layer."""
        if not self.released:
            return attend(attention, self.value(x).flatten(2))
        nodes = attend(attention, self.value(x.flatten(2)[:, :, :, None]).flatten(2))
        return self.mix(nodes[:, :, :, None]).flatten(2)


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


def _released_update(channels: int, joined: int) -> nn.Sequential:
    groups = RELEASED_GROUPS if joined % RELEASED_GROUPS == 0 else 1
    first = nn.Conv2d(joined, 2 * channels, 1, groups=groups)
    nn.init.kaiming_normal_(first.weight)
    assert first.bias is not None
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, nn.BatchNorm2d(2 * channels), nn.GELU(), *_conv_norm(2 * channels, channels))
