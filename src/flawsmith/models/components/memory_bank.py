"""A memory bank beside a trained detector: what no good image shows counts, whether or not a flaw like it was
synthesized.

In none of the papers on GLASS, PBAS and AAND; the idea is PatchCore's (Roth et al., CVPR 2022). A discriminator or a
student knows the flaws that it was taught and what resembles them, a memory knows what it has seen: each misses what
the other finds, so the sum of both maps is better than either. Several neighbourhoods are remembered because single
positions show small flaws on parts that lie anywhere, and means over neighbours large ones on textures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor, nn

from flawsmith.data.seeding import generator
from flawsmith.features.patch_embedding import average_embedding
from flawsmith.models.base import FeatureSource, MethodConfig
from flawsmith.models.components.precision import full_precision

POOL = 4096
"""Rows that choices are made among: small enough for a processor's cache."""
SWEEP = 8192
"""Rows that are compared with the new choices at a time, which bounds the memory of their distances."""

Rows = Float[Tensor, "row width"]


def random_projection(width: int, components: int, seed: int) -> Float[Tensor, "width components"]:
    """A sparse random matrix that nearly keeps distances (Johnson and Lindenstrauss; Li et al. 2006).

    Args:
        width: width of the rows to project.
        components: width of the projected rows, at most ``width``.
        seed: any non-negative number.
    """
    projection = SparseRandomProjection(components, random_state=seed % 2**32).fit(np.zeros((1, width)))
    return torch.from_numpy(projection.components_.toarray().T.copy()).float()


@torch.no_grad()
def greedy_coreset(rows: Rows, count: int, *, first: int) -> Int[Tensor, " chosen"]:
    """Indices of rows, each the farthest from all before it by Euclidean distance, the first of equals.

    Args:
        rows: the table, float32.
        count: how many to choose. Fewer come back where the chosen rows cover all others exactly.
        first: the row to begin with.

    Example:
        >>> greedy_coreset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3, first=0).tolist()
        [0, 3, 2]
    """
    rows = rows - rows.mean(dim=0)  # keeps the cancellation in the squared distances small
    squares = rows.square().sum(dim=1)
    distances = torch.full((len(rows),), torch.inf)
    chosen, new = [first], [first]
    while len(chosen) < min(count, len(rows)):
        _sweep(distances, rows, squares, new)
        pool, near, others = _farthest(distances)
        new = _choose(rows[pool], near, min(count, len(rows)) - len(chosen), others)
        if not new:
            break
        new = pool[new].tolist()
        chosen += new
    return torch.tensor(chosen)


def _sweep(distances: Tensor, rows: Rows, squares: Tensor, new: list[int]) -> None:
    """Lower the squared distances of all rows to what the new choices leave of them, in place."""
    centers, own = rows[new].T.contiguous(), squares[new]
    for start in range(0, len(rows), SWEEP):
        part = slice(start, start + SWEEP)
        nearest = torch.addmm(own, rows[part], centers, alpha=-2).amin(dim=1) + squares[part]
        torch.minimum(distances[part], nearest, out=distances[part])
    distances[new] = 0.0  # exactly, so that no row is chosen twice


def _farthest(distances: Tensor) -> tuple[Tensor, Tensor, float]:
    """The farthest rows in the table's order, their squared distances, and the largest of any other row."""
    if len(distances) <= POOL:
        return torch.arange(len(distances)), distances.clone(), 0.0
    values, found = distances.topk(POOL + 1)
    pool = found[:POOL].sort().values
    return pool, distances[pool], float(values[POOL])


def _choose(rows: Rows, near: Tensor, count: int, others: float) -> list[int]:
    """Greedy choices among the rows of a pool until one outside it may be farther; none where all are covered."""
    chosen: list[int] = []
    squares = rows.square().sum(dim=1)
    while len(chosen) < count:
        farthest = int(near.argmax())
        if near[farthest] <= 0 or near[farthest] < others:
            break
        chosen.append(farthest)
        to_it = torch.addmv(squares, rows, rows[farthest], alpha=-2).add_(squares[farthest])
        torch.minimum(near, to_it, out=near)
        near[farthest] = 0.0
    return chosen


LEVEL_CANDIDATES = 20_000
"""Features, drawn evenly from all positions of all images, among which those to remember are chosen."""
LARGEST_SHARE = 0.1
"""Most of the candidates that are remembered."""
LEAST = 1e-6
"""Added under the root, whose slope at 0 has no bound."""

Level = Float[Tensor, "batch channel height width"]


class MemoryBank(nn.Module):
    """Distance of every position of a level map to the nearest remembered feature, in units of what good images show.

    Args:
        channels: of the level.
        size: remembered features.
    """

    features: Tensor
    unit: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, channels))
        self.register_buffer("unit", torch.ones(()))

    def remember(self, features: Float[Tensor, "feature channel"], unit: Float[Tensor, ""] | float = 1.0) -> None:
        """Take features as the memory; fewer than its size fill it by repetition, which changes no distance.

        Args:
            features: one a row.
            unit: the distance that counts as 1, above 0; infinity makes all distances 0.
        """
        rows = torch.arange(len(self.features)) % len(features)
        self.features.copy_(features[rows])
        self.unit.fill_(float(unit))

    @torch.no_grad()
    def forward(self, level: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch 1 height width"]:
        with full_precision(level.device):
            queries = level.float().flatten(2).transpose(1, 2)
            # |q − m|² = |q|² + (|m|² − 2 q·m), of which only the bracket depends on the feature. It finds the nearest
            # one; the distance itself would lose digits to cancellation.
            nearest = (self.features.square().sum(1) - 2 * queries @ self.features.T).argmin(2)
            squared = (queries - self.features[nearest]).square().sum(2)
            distance = (squared + LEAST).sqrt() / self.unit
        return distance.reshape(level.shape[0], 1, *level.shape[-2:])


class Coreset(NamedTuple):
    """Features to remember.

    Attributes:
        features: one a row.
        rows: the image that each comes from.
    """

    features: Float[Tensor, "feature channel"]
    rows: Int[Tensor, " feature"]


class LevelMaps:
    """A level of good images, or several joined on its grid, image by image, as they are or averaged over neighbours.

    Args:
        images: level maps of the good images.
        level: which of their levels.
        side: of the neighbourhood, see :func:`average_embedding`.
        joined: levels that are concatenated: this one and those before it, as many as there are.
    """

    def __init__(self, images: FeatureSource, level: int, side: int = 1, *, joined: int = 1) -> None:
        self._images, self.level, self.side, self.joined = images, level, side, joined
        self.grid = images.grids[level]
        self.positions = self.grid[0] * self.grid[1]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Level:
        """The maps of one image, a batch of one."""
        levels = self._images.batch([row])[: self.level + 1][-self.joined :]
        return average_embedding([level.float() for level in levels], self.side, self.grid)


def sample_coreset(
    maps: LevelMaps, size: int, seed: int, *, purpose: str = "memory", candidates: int = LEVEL_CANDIDATES
) -> Coreset:
    """Features of good images that leave no other one far away: greedy k-centres among evenly drawn candidates.

    Args:
        maps: a level of the good images.
        size: features to choose at most; no more than a tenth of the candidates, rounded up, because whoever remembers
            everything is never surprised by what it has seen, and always by what it has not.
        seed: of the candidates.
        purpose: what the draw is for; other purposes draw others.
        candidates: how many are drawn, at least one an image.

    Source:
        The coreset of Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, Alg. 1, without its
        random projection.
    """
    rng = generator(seed, purpose, maps.level)
    share = min(maps.positions, -(-candidates // len(maps)))
    drawn = [maps[row][0].flatten(1)[:, rng.choice(maps.positions, share, replace=False)].T for row in range(len(maps))]
    features, rows = torch.cat(drawn), torch.arange(len(maps)).repeat_interleave(share)
    chosen = greedy_coreset(features, min(size, math.ceil(LARGEST_SHARE * len(rows))), first=0)
    return Coreset(features[chosen], rows[chosen])


def distances_to_others(
    chosen: Coreset, maps: LevelMaps, rows: Sequence[int]
) -> Iterator[Float[Tensor, "1 1 height width"]]:
    """Distances of an image's positions to remembered features of all other images, image after image.

    An image's own features count only where no other one's are remembered.
    """
    for row in rows:
        others = chosen.features[chosen.rows != row]
        features = others if len(others) else chosen.features
        memory = MemoryBank(features.shape[1], len(features))
        memory.remember(features)
        yield memory(maps[row])


def typical_peak(chosen: Coreset, maps: LevelMaps) -> Float[Tensor, ""]:
    """Median over good images of the largest distance of their positions to features of all other images; never 0.

    One image has no others to say what is typical: no distance is strange then, and infinity is returned.

    Args:
        chosen: what is remembered.
        maps: the level of the good images.
    """
    if len(maps) == 1:
        return torch.tensor(torch.inf)
    peaks = [distances.amax() for distances in distances_to_others(chosen, maps, range(len(maps)))]
    return torch.stack(peaks).median().clamp_min(LEAST)


CANDIDATES = 50_000
MEASURED = 200
"""Good images, evenly spaced, whose scores and distances say how much the two scatter."""


Side = Annotated[int, Field(ge=1)]


class Neighbourhood(BaseModel):
    """What one memory remembers: means over the neighbours of a position, on as many levels as there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Side = Field(description="Of the square of neighbours, in positions of each level, odd.")
    levels: int = Field(
        1,
        ge=1,
        description="Levels that are concatenated: the coarsest and the next finer ones, on its grid.",
    )

    def of(self, levels: Sequence[Level]) -> Level:
        """The map to remember, or to compare with what is remembered, from all levels, finest first."""
        return average_embedding(levels[-self.levels :], self.side, levels[-1].shape[-2:])


class BankConfig(MethodConfig):
    """Settings of the memory bank; by default there is none, as in every paper."""

    bank: tuple[Side | Neighbourhood, ...] = Field(
        (),
        description="Neighbourhoods whose means over good images are remembered, each the odd side of one on the "
        "coarsest level, or {side: 3, levels: 2} to join levels; maps and scores count the distance to the nearest of "
        "them too. PatchCore's idea, in no paper on this method; [] remembers nothing.",
    )
    bank_size: int = Field(2000, ge=1, description="Means remembered of each neighbourhood.")
    bank_weight: float = Field(
        0.75,
        gt=0,
        description="How much the distances of a neighbourhood scatter on good images, as a share of what the method's "
        "own map does.",
    )

    @model_validator(mode="after")
    def _consistent_bank(self) -> BankConfig:
        found = self.neighbourhoods
        if len(set(found)) < len(found) or any(one.side % 2 == 0 for one in found):
            raise ValueError("bank needs odd sides, each once, such as [1,5]; [] remembers nothing")
        return self

    @property
    def neighbourhoods(self) -> tuple[Neighbourhood, ...]:
        """All that is remembered."""
        return tuple(Neighbourhood(side=one) if isinstance(one, int) else one for one in self.bank)


class MultiScaleMemoryBank(nn.Module):
    """Distances to remembered features, over some neighbourhoods, in the unit of the scores that they are added to.

    Args:
        channels: of all levels, finest first.
        neighbourhoods: what is remembered.
        size: features remembered of each.
    """

    means: Tensor
    scale: Tensor

    def __init__(self, channels: Sequence[int], neighbourhoods: Sequence[Neighbourhood], size: int) -> None:
        super().__init__()
        self.neighbourhoods = tuple(neighbourhoods)
        self.memories = nn.ModuleList(MemoryBank(sum(channels[-one.levels :]), size) for one in neighbourhoods)
        self.register_buffer("means", torch.zeros(len(neighbourhoods)))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "batch height width"]:
        """Σ over neighbourhoods of (distance − mean) / spread, times the scale; about 0 on good images.

        Args:
            levels: all level maps, finest first.
        """
        pairs = zip(self.neighbourhoods, self.memories, strict=True)
        found = [memory(one.of(levels))[:, 0] for one, memory in pairs]
        return (torch.stack(found).sum(dim=0) - self.means.sum()) * self.scale


@torch.no_grad()
def filled_bank(images: FeatureSource, config: BankConfig, seed: int) -> MultiScaleMemoryBank:
    """A bank of the good images, of scale 1.

    Mean and spread are those of the distances to other images' features. One image has no others, and copies of one
    do not differ: nothing says what is usual then, so the bank says 0 everywhere.
    """
    bank = MultiScaleMemoryBank(images.channels, config.neighbourhoods, config.bank_size)
    for number, (one, memory) in enumerate(zip(bank.neighbourhoods, bank.memories, strict=True)):
        assert isinstance(memory, MemoryBank)
        maps = LevelMaps(images, len(images.grids) - 1, one.side, joined=one.levels)
        chosen = sample_coreset(maps, config.bank_size, seed, purpose=f"bank {one.side}", candidates=CANDIDATES)
        spread, mean = torch.tensor(torch.inf), torch.tensor(0.0)
        if len(maps) > 1:
            spread, mean = _scatter(distances_to_others(chosen, maps, measured_rows(len(maps))))
        memory.remember(chosen.features, spread)
        bank.means[number] = mean / spread
    return bank


def measured_rows(images: int) -> list[int]:
    """Rows of the images that are measured: all, or evenly spaced ones of many."""
    return sorted({int(row) for row in np.linspace(0, images - 1, min(images, MEASURED)).round()})


def _scatter(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of all values; an infinite one where they do not differ, which gives no unit."""
    values = torch.cat([one.flatten() for one in maps]).double()
    spread = values.std(correction=0)
    return torch.where(spread > LEAST, spread, torch.inf).float(), values.mean().float()
