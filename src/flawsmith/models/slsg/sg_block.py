"""The SG block: dense self-attention and a sparse graph over the cells of the deepest map."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flawsmith.models.components.precision import full_precision

Nodes = Float[Tensor, "batch channel node"]
Similarity = Float[Tensor, "batch node node"]
Grid = tuple[int, int]

BASE = 1e4
RELEASED_DILATION = 3
RELEASED_GROUPS = 4
RELEASED_STD = 0.02


def position_table(channels: int, grid: Grid) -> Float[Tensor, "node channel"]:
    """P, sines and cosines of the place of every node, nodes row by row.

    The first half of the channels encodes the column, the other half the row; within a half of 2d channels, the first
    d are sines and the others cosines of the place times 10⁴ to the power −i/d.

    Args:
        channels: a multiple of four.
        grid: (height, width) of the map.
    """
    frequency = BASE ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))

    def axis(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([axis(grid[1])[columns.flatten()], axis(grid[0])[rows.flatten()]], dim=1).float()


def position_similarity(channels: int, grid: Grid) -> Float[Tensor, "node node"]:
    """W_p of Eq. 4: cosine similarity of places, 1 on the diagonal.

    Every row of P has the squared length channels / 2, so the cosine is 2·P·Pᵀ / channels.

    Args:
        channels: of the encoding; made a multiple of four.
        grid: (height, width) of the map.
    """
    width = max(4, channels // 4 * 4)
    table = position_table(width, grid).double()
    return (2 * table @ table.T / width).float()


class Graph(NamedTuple):
    """The relations that a block found.

    Attributes:
        attention: W_d of Eq. 2, rows sum to 1; None where it is switched off.
        similarity: W_s of Eq. 5; None where the graph is switched off.
        ranked: nodes by similarity, best first, as many as are looked at.
        neighbours: those among them that are taken, K a node.
        share: how much each of them counts, in [0, 1]; None: in full.
    """

    attention: Similarity | None
    similarity: Similarity | None
    ranked: Int[Tensor, "batch node ranked"] | None
    neighbours: Int[Tensor, "batch node neighbour"] | None
    share: Float[Tensor, "batch node neighbour"] | None


class SGBlock(nn.Module):
    """Global extensive and key sparse relations of a map's cells (section 3.3).

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
            paper, the block is not continuous: a difference in the last digit can exchange a neighbour.
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
        self.attends, self.has_graph, self.released = attention, graph, released
        nodes, key = grid[0] * grid[1], max(1, channels // 2)
        self.dilation = RELEASED_DILATION if released else 1
        self.ranked = min(neighbours * self.dilation, nodes)
        self.count, self.margin = -(-self.ranked // self.dilation), margin
        if margin and not released:
            self.ranked = min(neighbours + 1, nodes)  # the first that is none, too
            self.count = min(neighbours, nodes)
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
        all_taken = self.count == self.position.shape[0]
        return not self.has_graph or all_taken or (self.margin > 0 and not self.released)

    def graph(self, maps: Float[Tensor, "batch channel height width"]) -> Graph:
        """The relations that the block sees in X."""
        return self._relations(self.input(maps))

    def forward(self, maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        x = self.input(maps)
        found = self._relations(x)
        nodes = x.flatten(2)
        parts = []
        if found.attention is not None:
            attended = self._attended(x, found.attention)
            parts.append(nodes + attended if self.released else attended)
        elif self.released:
            parts.append(nodes)
        if found.neighbours is not None:
            parts.append(max_relative(nodes, found.neighbours, found.share))
        # The released code puts the channels of both alternately, the paper one behind the other.
        joined = torch.stack(parts, dim=2).flatten(1, 2) if self.released else torch.cat(parts, dim=1)
        updated = self.update(joined.reshape(joined.shape[0], -1, *x.shape[-2:]))
        return updated + maps if self.released else updated

    def _relations(self, x: Tensor) -> Graph:
        query = self.query(x).flatten(2)
        key = self.query(x).flatten(2) if self.key is None else self.key(x).flatten(2)
        with full_precision(x.device):
            query, key = query.float(), key.float()
            attention = similarity = ranked = neighbours = share = None
            if self.attends:
                attention = torch.softmax(query.transpose(1, 2) @ key * self.scale, dim=2)
            if self.has_graph:
                cosine = F.normalize(query, dim=1).transpose(1, 2) @ F.normalize(key, dim=1)
                similarity = cosine - self.position
                highest, ranked = similarity.detach().topk(self.ranked, dim=2)
                neighbours = ranked[:, :, :: self.dilation][:, :, : self.count]
                if self.ranked == self.count + 1 and self.margin:
                    share = ((highest[:, :, :-1] - highest[:, :, -1:]) / self.margin).clamp(0, 1)
        return Graph(attention, similarity, ranked, neighbours, share)

    def _attended(self, x: Tensor, attention: Similarity) -> Nodes:
        """Z of Eq. 3; in the released form of the nodes as a list, and through one more layer."""
        value = self.value(x.flatten(2)[:, :, :, None] if self.released else x).flatten(2)
        found = value @ attention.transpose(1, 2).to(value.dtype)
        return self.mix(found[:, :, :, None]).flatten(2) if self.released else found


def max_relative(
    nodes: Nodes,
    neighbours: Int[Tensor, "batch node neighbour"],
    share: Float[Tensor, "batch node neighbour"] | None = None,
) -> Nodes:
    """Eq. 6: the largest difference to a neighbour, by channel.

    Args:
        nodes: v.
        neighbours: their indices.
        share: in [0, 1], what each difference is multiplied by; None: all count in full.
    """
    _, channels, count = nodes.shape
    flat = neighbours.flatten(1)[:, None].expand(-1, channels, -1)
    found = nodes.gather(2, flat).reshape(*nodes.shape[:2], count, -1)
    if share is None:
        return found.amax(dim=3) - nodes
    return ((found - nodes[:, :, :, None]) * share[:, None].to(nodes.dtype)).amax(dim=3)


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


def _released_update(channels: int, joined: int) -> nn.Sequential:
    groups = RELEASED_GROUPS if joined % RELEASED_GROUPS == 0 else 1
    first = nn.Conv2d(joined, 2 * channels, 1, groups=groups)
    if (2 * channels) % groups:
        first = nn.Conv2d(joined, 2 * channels, 1)
    nn.init.kaiming_normal_(first.weight)
    assert first.bias is not None
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, nn.BatchNorm2d(2 * channels), nn.GELU(), *_conv_norm(2 * channels, channels))
