"""Score maps made comparable, from position to position or from level to level.

Some positions of a good part always score higher than others, and some scatter more: an edge, a print, the border of
the image. An image score is the largest value of a map, so it listens to those positions alone; where the maps of
several levels are summed, to the level that scatters most. What good parts score says how much a score means.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import resize
from flawsmith.methods.base import AnomalyOutput, Detector, SinglePass, TrainingData
from flawsmith.methods.layers.memory_bank import MemoryBank

ScoreMap = Float[Tensor, "batch h w"]
Comparison = Literal["position", "level"]

PRIOR_IMAGES = 10
LEAST_PRIOR = 0.1
IMAGES_A_PASS = 8


class ScoreNorm(nn.Module):
    """An affine map of scores, one for all positions or one a position.

    Args:
        scale: factor, (1, 1) or (h, w).
        offset: what is added then, likewise.
    """

    scale: Float[Tensor, "rows columns"]
    offset: Float[Tensor, "rows columns"]

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", offset.float())

    def forward(self, scores: ScoreMap) -> ScoreMap:
        return scores * self.scale + self.offset


class Moments:
    """Means and variances of one score map over good images."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, scores: ScoreMap) -> None:
        """Count a batch in."""
        scores = scores.double()
        self.count += len(scores)
        self._sum, self._squares = self._sum + scores.sum(dim=0), self._squares + scores.square().sum(dim=0)

    @property
    def by_position(self) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
        """Mean and variance of every position over the images, float64."""
        mean = self._sum / self.count
        return mean, (self._squares / self.count - mean.square()).clamp_min(0)

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over all images and positions together, float64 scalars."""
        mean = (self._sum / self.count).mean()
        return mean, ((self._squares / self.count).mean() - mean.square()).clamp_min(0)


def position_norm(moments: Moments) -> ScoreNorm:
    """Gives every position the mean and the spread that the whole map has; scores keep their unit.

    With n images, mean and variance m(p) and v(p) of a position are drawn towards those of the whole map, m and v, by
    λ = max(10 / (n + 10), 0.1); then s'(p) = (s(p) − m(p))·√(v / v(p)) + m. Few images therefore change little, and a
    position that hardly varies is stretched by a factor of √10 at most.
    """
    (mean, variance), (whole_mean, whole) = moments.by_position, moments.whole
    prior = max(PRIOR_IMAGES / (moments.count + PRIOR_IMAGES), LEAST_PRIOR)
    mean, variance = (
        torch.lerp(mean, whole_mean.expand_as(mean), prior),
        torch.lerp(variance, whole.expand_as(variance), prior),
    )
    scale = (whole / variance).sqrt() if whole > 0 else torch.ones_like(mean)
    return ScoreNorm(scale, whole_mean - mean * scale)


def level_norms(moments: Sequence[Moments]) -> list[ScoreNorm]:
    """Gives every level the same spread, the mean of theirs; means stay. A level that never varies stays as it is."""
    found = [one.whole for one in moments]
    common = torch.stack([variance.sqrt() for _, variance in found]).mean()
    scales = [common / variance.sqrt() if variance > 0 else torch.ones_like(common) for _, variance in found]
    pairs = [(scale, mean - mean * scale) for scale, (mean, _) in zip(scales, found, strict=True)]
    return [ScoreNorm(scale.reshape(1, 1), offset.reshape(1, 1)) for scale, offset in pairs]


class ScoreMapDetector(Detector):
    """A detector whose map and image score come from low-resolution score maps of the backbone's levels.

    Args:
        backbone: the frozen backbone.

    Attributes:
        norms: what makes scores comparable, one a score map; none leaves all scores as they are.
        bank: what else counts, on the coarsest level's grid; added to the last score map.
    """

    bank: MemoryBank | None

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.norms, self.bank = backbone, nn.ModuleList(), None

    @abstractmethod
    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps, from the backbone's level maps, before they are made comparable."""

    @abstractmethod
    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """Map and score from the backbone's level maps."""

    def score_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps that map and image score are made of."""
        maps = self.raw_maps(levels)
        if len(self.norms):
            maps = [norm(scores) for norm, scores in zip(self.norms, maps, strict=True)]
        if self.bank is None:
            return maps
        *finer, last = maps
        return [*finer, last + resize(self.bank(levels)[:, None], last.shape[-2:])[:, 0]]

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        return self.from_levels(self.backbone(images))


def norm_stage(
    network: Callable[[], ScoreMapDetector], accept: Callable[[list[ScoreNorm]], None], comparison: Comparison
) -> SinglePass:
    """The stage that makes norms from the trained detector's scores of all training images.

    Args:
        network: gives the trained detector.
        accept: takes the norms, one a score map.
        comparison: what is made comparable.
    """

    @torch.no_grad()
    def compute(data: TrainingData) -> dict[str, Tensor]:
        detector, moments = network(), dict[int, Moments]()
        for batch in _batches(data):
            for number, scores in enumerate(detector.raw_maps(batch)):
                moments.setdefault(number, Moments()).add(scores)
        found = [moments[number] for number in sorted(moments)]
        norms = level_norms(found) if comparison == "level" else [position_norm(one) for one in found]
        return {
            f"{name} {number}": value for number, norm in enumerate(norms) for name, value in norm.state_dict().items()
        }

    def take(tensors: dict[str, Tensor]) -> None:
        count = len(tensors) // 2
        accept([ScoreNorm(tensors[f"scale {number}"], tensors[f"offset {number}"]) for number in range(count)])

    return SinglePass("norm", compute, take)


def _batches(data: TrainingData) -> Iterator[list[Tensor]]:
    features = data.features()
    for start in range(0, len(features), IMAGES_A_PASS):
        yield features.batch(np.arange(start, min(start + IMAGES_A_PASS, len(features))))
