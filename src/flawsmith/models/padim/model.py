"""PaDiM: a Gaussian of good features at every position (Defard et al., ICPR workshops 2020).

Nothing is trained: mean and covariance of every position are counted in two passes over the good images, and a position
is as anomalous as it is far from its mean by the Mahalanobis distance. The equations are in functional.py;
docs/research/padim.md says where the presets differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import Self

from flawsmith.data.seeding import generator
from flawsmith.features.backbones import Backbone
from flawsmith.models.base import (
    LARGEST_FILE,
    AnomalyModel,
    AnomalyOutput,
    FeatureSource,
    SinglePass,
    Stage,
    TrainingData,
)
from flawsmith.models.components.level_table import LevelTable
from flawsmith.models.components.score_maps import UpsampleAndSmooth
from flawsmith.models.padim.config import CONDITIONS, PRESETS, PaDiMConfig
from flawsmith.models.padim.functional import (
    Embedding,
    Matrices,
    Packed,
    covariances,
    mahalanobis,
    means,
    nearest_positions,
    packed_whitening,
)
from flawsmith.models.registry import register
from flawsmith.runtime.errors import FlawsmithError

IMAGES_A_PASS = 16
WIDE = 1000
"""From so many channels on, a backbone's levels count as wide."""


class ChosenChannels(nn.Module):
    """Some channels of all levels at the positions of the finest, where a coarse value is repeated (section III-A).

    Args:
        counts: channels of every level.
        grids: (h, w) of every level, finest first.
        chosen: which of all channels, levels one after another, in ascending order.

    Example:
        >>> embedding = ChosenChannels((2, 3), ((4, 4), (2, 2)), np.array([0, 3]))
        >>> embedding([torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)]).shape
        torch.Size([1, 2, 16])
    """

    def __init__(
        self, counts: Sequence[int], grids: Sequence[tuple[int, int]], chosen: Int[np.ndarray, " channel"]
    ) -> None:
        super().__init__()
        starts = np.cumsum([0, *counts])
        for number, (start, stop) in enumerate(pairwise(starts)):
            channels = chosen[(chosen >= start) & (chosen < stop)] - start
            self.register_buffer(f"channels_{number}", torch.from_numpy(channels))
            self.register_buffer(f"source_{number}", nearest_positions(grids[number], grids[0]), persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> Embedding:
        used = [number for number in range(len(levels)) if len(self.get_buffer(f"channels_{number}"))]
        parts = [levels[number].index_select(1, self.get_buffer(f"channels_{number}")).flatten(2) for number in used]
        sources = [self.get_buffer(f"source_{number}") for number in used]
        return torch.cat([part.index_select(2, source) for part, source in zip(parts, sources, strict=True)], dim=1)


class Whitening(nn.Module):
    """The whitening factors as full matrices, for computing; its state are the packed ones.

    Attributes:
        packed: lower triangles in half precision, (positions, packed).
        factors: the same as matrices; before there are any, a matrix of zeros for all positions.
    """

    packed: Tensor
    factors: Tensor

    def __init__(self, positions: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("packed", torch.zeros(positions, channels * (channels + 1) // 2, dtype=torch.float16))
        self.register_buffer("factors", torch.zeros(1, channels, channels), persistent=False)
        self.register_load_state_dict_post_hook(_unpack)  # type: ignore[no-untyped-call]

    def fit(self, packed: Packed) -> None:
        """Take other factors."""
        self.packed, self.factors = packed, PackedWhitening(packed, self.channels)()

    def forward(self) -> Matrices:
        return self.factors


def _unpack(whitening: Whitening, *_: Any) -> None:
    whitening.fit(whitening.packed)


class PackedWhitening(nn.Module):
    """The factors as a model file holds them: lower triangles in half precision.

    Unpacking them does not depend on the image: an engine does it once, when it reads the graph.
    """

    packed: Tensor
    places: Tensor

    def __init__(self, packed: Packed, channels: int) -> None:
        super().__init__()
        zero = torch.zeros_like(packed[:, :1])
        places = torch.full((channels, channels), packed.shape[1])
        rows, columns = torch.tril_indices(channels, channels)
        places[rows, columns] = torch.arange(len(rows))
        self.register_buffer("packed", torch.cat([packed, zero], dim=1))
        self.register_buffer("places", places.flatten().to(packed.device))

    def forward(self) -> Matrices:
        channels = round(len(self.places) ** 0.5)
        return self.packed.index_select(1, self.places).float().reshape(-1, channels, channels)


@register
class PaDiM(AnomalyModel):
    """PaDiM on a frozen backbone; the image score is the largest value of the smoothed map.

    The unit of map and score is √channels, the distance that a good position has on average. Nothing is ranked
    otherwise.

    Attributes:
        count: channels drawn at random.
        grid: (h, w) of the finest level.
        mean: μ of Eq. 1, (channels, positions).
        whitening: gives factors of Σ⁻¹.

    Raises:
        FlawsmithError: no model file can hold the Gaussians.

    Example:
        >>> model = PaDiM.from_preset("fast", backbone="efficientnet_lite0@random", image_size=(64, 64), channels=10)
        >>> good = torch.randn(4, 3, 64, 64)
        >>> anomaly_map, score = model.fit([good])(good[:2])
        >>> anomaly_map.shape, score.shape
        (torch.Size([2, 64, 64]), torch.Size([2]))
    """

    name = "padim"
    suits = "a baseline of the least memory and time"
    training_time = "under 1 min"
    paper = (
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, "
        "ICPR workshops 2020"
    )
    Config = PaDiMConfig
    presets = PRESETS
    conditions = CONDITIONS

    config: PaDiMConfig
    mean: Tensor
    whitening: Whitening

    def __init__(self, config: PaDiMConfig, backbone: Backbone, seed: int = 0) -> None:
        super().__init__(config, backbone, seed)
        grids, available = backbone.grids(config.image_size), sum(backbone.channels)
        usual = 550 if available >= WIDE else 100
        self.count = min(config.channels or usual, available)
        self.grid, positions = grids[0], int(np.prod(grids[0]))
        self._check_size(positions)
        chosen = generator(seed, "padim channels").choice(available, self.count, replace=False)
        self.embedding = ChosenChannels(backbone.channels, grids, np.sort(chosen))
        self.smooth = UpsampleAndSmooth(self.grid, config.image_size, sigma=config.sigma)
        self.register_buffer("mean", torch.zeros(self.count, positions))
        self.unit = self.count**-0.5
        self.whitening = Whitening(positions, self.count)

    @torch.no_grad()
    def fit(self, images: Iterable[Float[Tensor, "batch 3 height width"]]) -> Self:
        """Count the Gaussians of good images.

        Args:
            images: batches of normalised images, of the size in ``config``.

        Raises:
            FlawsmithError: there is no image.
        """
        return self.fit_features(LevelTable(self.backbone(batch.to(self.mean.device)) for batch in images))

    @torch.no_grad()
    def fit_features(self, features: FeatureSource) -> Self:
        """Count the Gaussians of good images from their level maps.

        A single image has no covariance: ε of Eq. 1 alone remains.

        Args:
            features: level maps as the frozen backbone gives them.
        """
        self.mean, count = means(self._embeddings(features))
        self.whitening.fit(
            packed_whitening(covariances(self._embeddings(features), self.mean, count), self.config.regularisation)
        )
        return self

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        yield SinglePass("gaussian", lambda: self.fit_features(data.features()))

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        offsets = (self.embedding(levels) - self.mean).permute(2, 1, 0)  # position, channel, batch
        distances = mahalanobis(offsets, self.whitening())
        anomaly_map = self.smooth(self.unit * distances.reshape(-1, *self.grid))
        return AnomalyOutput(anomaly_map, anomaly_map.amax(dim=(1, 2)))

    def export_form(self) -> nn.Module:
        """The same with packed factors: a quarter of the file."""
        form = copy(self)
        form._modules = {**self._modules, "whitening": PackedWhitening(self.whitening.packed, self.count)}
        return form

    def _embeddings(self, features: FeatureSource) -> Iterator[Embedding]:
        for start in range(0, len(features), IMAGES_A_PASS):
            levels = features.batch(np.arange(start, min(start + IMAGES_A_PASS, len(features))))
            yield self.embedding([level.to(self.mean.device) for level in levels])

    def _check_size(self, positions: int) -> None:
        """Refuse Gaussians that no model file can hold, before any image is read."""
        size = positions * self.count * (self.count + 1)
        if size > LARGEST_FILE:
            raise FlawsmithError(
                f"{self.name} with {self.count} channels at {positions} positions makes a model file of "
                f"{size / 1e9:.1f} GB, and 1.9 GB are possible: --set channels=100, or a smaller image_size"
            )
