"""How far every position is from anything seen on good images: a memory of normal features beside SegNet.

In no version of SLSG. MemSeg, of the same authors, hands the differences to a memory of normal images to its decoder.
Here it is the distance to the nearest remembered feature, one number a position: unlike a difference it does not jump
where two features are equally near.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flawsmith.data.seeding import generator
from flawsmith.methods.base import FeatureSource
from flawsmith.methods.layers.precision import full_precision

CANDIDATES = 20_000
"""Features, drawn evenly from all positions of all images, among which those to remember are chosen."""
LARGEST_SHARE = 0.1
"""Most of the candidates that are remembered."""
LEAST = 1e-6
"""Added under the root, whose slope at 0 has no bound."""


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


def chosen_features(images: FeatureSource, level: int, size: int, seed: int) -> Chosen:
    """Features of good images that leave no other one far away: greedy k-centres among evenly drawn candidates.

    Args:
        images: level maps of the good images.
        level: which of their levels.
        size: features to choose at most; no more than a tenth of the candidates, rounded up, because whoever remembers
            everything is never surprised by what it has seen, and always by what it has not.
        seed: of the candidates.

    Source:
        The coreset of Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, Alg. 1, without its
        random projection.
    """
    candidates = _candidates(images, level, generator(seed, "slsg memory", level))
    chosen = farthest_first(candidates.features, min(size, math.ceil(LARGEST_SHARE * len(candidates.rows))))
    return Chosen(candidates.features[chosen], candidates.rows[chosen])


def farthest_first(candidates: Float[Tensor, "candidate channel"], size: int) -> Int[Tensor, " chosen"]:
    """Indices of candidates, each the farthest from those before it, from the first one on."""
    lengths = candidates.square().sum(1)

    def squared(centre: int) -> Tensor:
        # One product reads the candidates once; their differences would be written out first.
        return lengths + lengths[centre] - 2 * (candidates @ candidates[centre])

    chosen, nearest = [0], squared(0)
    while len(chosen) < min(size, len(candidates)):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, squared(chosen[-1]))
    return torch.tensor(chosen)


def typical_peak(chosen: Chosen, images: FeatureSource, level: int) -> Float[Tensor, ""]:
    """Median over good images of the largest distance of their positions to features of all other images; never 0.

    One image has no others to say what is typical: no distance is strange then, and infinity is returned. An image's
    own features count only where no other one's are remembered.

    Args:
        chosen: what is remembered.
        images: level maps of the good images.
        level: which of their levels.
    """
    if len(images) == 1:
        return torch.tensor(torch.inf)
    peaks = []
    for row, maps in enumerate(_maps(images, level)):
        others = chosen.features[chosen.rows != row]
        features = others if len(others) else chosen.features
        memory = Familiarity(features.shape[1], len(features))
        memory.remember(features)
        peaks.append(memory(maps).amax())
    return torch.stack(peaks).median().clamp_min(LEAST)


def _candidates(images: FeatureSource, level: int, rng: np.random.Generator) -> Chosen:
    height, width = images.grids[level]
    share = min(height * width, -(-CANDIDATES // len(images)))
    found = [maps[0].flatten(1)[:, rng.choice(height * width, share, replace=False)].T for maps in _maps(images, level)]
    return Chosen(torch.cat(found), torch.arange(len(images)).repeat_interleave(share))


def _maps(images: FeatureSource, level: int) -> Iterator[Float[Tensor, "1 channel height width"]]:
    """A level of one image after the other."""
    return (images.batch([row])[level].float() for row in range(len(images)))
