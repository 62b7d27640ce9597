"""SegNet: from the encoder's levels to logits of normal and anomalous at every pixel."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.models.base import full_precision
from flawsmith.models.components.memory_bank import MemoryBank
from flawsmith.models.slsg.config import SLSGConfig, Stem, Topology
from flawsmith.models.slsg.functional import (
    Grid,
    Images,
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
from flawsmith.runtime.errors import FlawsmithError

AUXILIARY_WIDTH = 32
CLASSES = 2
RELEASED_DILATION = 3
RELEASED_GROUPS = 4
RELEASED_STD = 0.02


def resize(maps: Map, grid: Grid) -> Map:
    """Bilinear, corner centres aligned; a map of that size already is left as it is.

    Example:
        >>> resize(torch.tensor([[[[0.0], [1.0]]]]), (3, 1)).flatten().tolist()
        [0.0, 0.5, 1.0]
    """
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


class SkipAttention(nn.Module):
    """Attention on a skip connection, as the released code has it: y = x ⊙ pw(dwd(dw(x))), then ReLU, 1×1 and + x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.dilated = nn.Conv2d(channels, channels, 3, padding=3, dilation=3, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Map) -> Map:
        with full_precision(x.device):  # torch 2.14 on CPUs: the dilated one's weight gradient in bfloat16 is garbage
            wide = self.dilated(self.depthwise(x.float()))
        return self.output(torch.relu(x * self.pointwise(wide))) + x


class Logits(NamedTuple):
    """Logits of normal and anomalous.

    Attributes:
        final: at every pixel of the image, (batch, 2, height, width).
        auxiliary: of the head behind the SG block, up-sampled likewise.
        novelty: (batch, 1, height, width), by what share a pixel is farther from the memories than the farthest
            position of a typical good image, 0 where it is not, summed over memories; None without any.
    """

    final: Map
    auxiliary: Map
    novelty: Map | None = None


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


class SegNet(nn.Module):
    """Everything of SegNet but the encoder.

    A level as large as the next coarser one is a stem: it is joined without attention in a block of half the work.
    Beside a level with a memory, the distances to its normal features are joined behind the SG block and in every block
    of the decoder.

    Args:
        channels: of the levels, finest first; the last level is the bottleneck.
        grids: (height, width) of the levels.
        image_size: (height, width) of the logits.
        config: how it is built.

    Example:
        >>> segnet = SegNet([4, 8], [(16, 16), (8, 8)], (32, 32), SLSGConfig())
        >>> segnet([torch.zeros(2, 4, 16, 16), torch.zeros(2, 8, 8, 8)]).final.shape
        torch.Size([2, 2, 32, 32])
    """

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid], image_size: Grid, config: SLSGConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        *skips, bottleneck = channels
        widths = config.decoder_widths or tuple(skips)
        self.stems = [grids[number] == grids[number + 1] for number in range(len(skips))]
        # Levels of the packaged backbone spread by about 6, which no layer's initial weights are made for.
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(count) if config.normalised_levels else nn.Identity() for count in channels
        )
        self.memories = nn.ModuleDict(
            {str(number): MemoryBank(channels[number], config.memory_size) for number in config.memory_levels}
        )
        distances = len(self.memories)
        self.distance_norm = nn.BatchNorm2d(distances) if distances else nn.Identity()
        self.sg_block: SGBlock | None = None
        if config.attention or config.graph:
            self.sg_block = SGBlock(
                bottleneck,
                grids[-1],
                released=config.block == "released",
                attention=config.attention,
                graph=config.graph,
                subtract_position=config.subtract_position,
                neighbours=config.neighbours,
                margin=config.neighbour_margin,
            )
        self.auxiliary = nn.Sequential(
            ConvGroup(bottleneck + distances, bottleneck // 2), ConvGroup(bottleneck // 2, AUXILIARY_WIDTH)
        )
        self.auxiliary_head = Head([AUXILIARY_WIDTH, AUXILIARY_WIDTH], CLASSES)
        self.attention = nn.ModuleList(
            SkipAttention(count) if config.skip_attention and not stem else nn.Identity()
            for count, stem in zip(skips, self.stems, strict=True)
        )
        blocks, below = [], bottleneck
        for number in reversed(range(len(skips))):
            width = widths[number]
            joined = skips[number] + distances + (AUXILIARY_WIDTH if self._joins_auxiliary(number) else 0)
            if self.stems[number]:
                blocks.append(UpBlock(below, joined, width, squeezed=max(1, width // 2), convolutions=1))
            else:
                blocks.append(UpBlock(below, joined, width))
            below = width
        self.blocks = nn.ModuleList(blocks)
        self.head = Head([below, max(8, below // 2), max(8, below // 4)], CLASSES)

    def _joins_auxiliary(self, number: int) -> bool:
        """The coarsest block reads the bottleneck itself, a stem's block is for detail."""
        return self.config.bottleneck_skips and number < len(self.stems) - 1 and not self.stems[number]

    def forward(self, levels: Sequence[Map]) -> Logits:
        """Logits from the encoder's level maps, finest first."""
        distances = [memory(levels[int(number)]) for number, memory in self.memories.items()]
        # All as one map at the finest one's grid.
        normalised = [self.distance_norm(_concatenated(*distances))] if distances else []
        *skips, x = [norm(level) for norm, level in zip(self.norms, levels, strict=True)]
        if self.sg_block is not None:
            x = self.sg_block(x)
        auxiliary = small = self.auxiliary(_concatenated(x, *normalised))
        logits = resize(self.auxiliary_head(auxiliary), self.image_size)
        for block, number in zip(self.blocks, reversed(range(len(skips))), strict=True):
            grid = grid_of(skips[number])
            small = resize(small, grid)  # from level to level, as the released code does
            joined = [self.attention[number](skips[number])]
            if self._joins_auxiliary(number):
                joined.append(small)
            x = block(x, [*joined, *(resize(maps, grid) for maps in normalised)], grid)
        if self.config.full_resolution:
            x = resize(x, _doubled(grid_of(x), self.image_size))
        final = resize(self.head(x), self.image_size)
        final = final + logits if self.config.added_auxiliary else final
        return Logits(final, logits, _novelty(distances, self.image_size))


def _novelty(distances: Sequence[Map], size: Grid) -> Map | None:
    if not distances:
        return None
    return torch.stack([resize((distance - 1).clamp_min(0), size) for distance in distances]).sum(0)


def _concatenated(maps: Map, *others: Map) -> Map:
    """Maps with others behind them, resized to theirs."""
    return torch.cat([maps, *(resize(other, grid_of(maps)) for other in others)], dim=1)


def _doubled(grid: Grid, most: Grid) -> Grid:
    return min(2 * grid[0], most[0]), min(2 * grid[1], most[1])


_PARTS = ("conv1", "bn1", "act1", "layer1", "layer2", "layer3", "layer4")


class UnpooledResNet(nn.Module):
    """A ResNet without max-pooling, so that its last map is a sixteenth of the image.

    Gives the activated stem and the outputs of the four stages: strides 2, 2, 4, 8 and 16.

    Args:
        trunk: timm's features of a ResNet.
        stem: whether the first stage reads the stem's convolution as it is, as in the released code, or normalised
            and activated.
    """

    def __init__(self, trunk: nn.Module, stem: Stem) -> None:
        super().__init__()
        self.stem = stem
        self.parts = nn.ModuleDict({name: getattr(trunk, name) for name in _PARTS})

    def forward(self, images: Images) -> list[Tensor]:
        parts = self.parts
        x = parts["conv1"](images)
        skip = parts["act1"](parts["bn1"](x))
        levels, x = [skip], x if self.stem == "raw" else skip
        for name in _PARTS[3:]:
            x = parts[name](x)
            levels.append(x)
        return levels


class PlainTrunk(nn.Module):
    """A backbone as it is: its levels, finest first."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Images) -> list[Tensor]:
        return list(self.trunk(images))


Encoder = UnpooledResNet | PlainTrunk


def make_encoder(backbone: Backbone, topology: Topology, stem: Stem, seed: int | None) -> Encoder:
    """A copy of a backbone that can be trained; as made, it is frozen and in evaluation mode.

    Args:
        backbone: what the encoder begins as.
        topology: unpooled: without max-pooling, for ResNets; plain: as it is.
        stem: see :class:`UnpooledResNet`.
        seed: the convolutions of an untrained backbone are drawn from it; None keeps the backbone's own.

    Raises:
        FlawsmithError: the backbone is no ResNet, and its topology is to be changed.
    """
    trunk = copy.deepcopy(backbone.trunk)
    if backbone.info.weights == "random" and seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "slsg encoder"))
            trunk.apply(_draw)
    if topology == "plain":
        return PlainTrunk(trunk).eval()
    if not all(hasattr(trunk, name) for name in _PARTS):
        raise FlawsmithError(
            f"topology=unpooled needs a whole ResNet, which {backbone.info.name} with these strides is not: choose "
            "--backbone resnet18@random and strides=[2,4,8,16,32], or topology=plain"
        )
    return UnpooledResNet(trunk, stem).eval()


def _draw(module: nn.Module) -> None:
    """He's initialisation, as ResNets have it."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_running_stats()
        module.reset_parameters()
