"""How far every position is from anything seen on good images: a memory of normal features.

PatchCore scores by such a distance alone; here it stands beside what a method has learned. Unlike a difference to what
is remembered, the distance to the nearest of it does not jump where two features are equally near.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flawsmith.data.seeding import generator
from flawsmith.features.patch_embedding import average_embedding
from flawsmith.methods.base import FeatureSource
from flawsmith.methods.layers.coreset import greedy_coreset
from flawsmith.methods.layers.precision import full_precision

CANDIDATES = 20_000
"""Features, drawn evenly from all positions of all images, among which those to remember are chosen."""
LARGEST_SHARE = 0.1
"""Most of the candidates that are remembered."""
LEAST = 1e-6
"""Added under the root, whose slope at 0 has no bound."""

Level = Float[Tensor, "batch channel height width"]


class Familiarity(nn.Module):
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


class Chosen(NamedTuple):
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


def chosen_features(
    maps: LevelMaps, size: int, seed: int, *, purpose: str = "memory", candidates: int = CANDIDATES
) -> Chosen:
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
    return Chosen(features[chosen], rows[chosen])


def distances_to_others(
    chosen: Chosen, maps: LevelMaps, rows: Sequence[int]
) -> Iterator[Float[Tensor, "1 1 height width"]]:
    """Distances of an image's positions to remembered features of all other images, image after image.

    An image's own features count only where no other one's are remembered.
    """
    for row in rows:
        others = chosen.features[chosen.rows != row]
        features = others if len(others) else chosen.features
        memory = Familiarity(features.shape[1], len(features))
        memory.remember(features)
        yield memory(maps[row])


def typical_peak(chosen: Chosen, maps: LevelMaps) -> Float[Tensor, ""]:
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
