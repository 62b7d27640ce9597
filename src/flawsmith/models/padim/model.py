"""PaDiM: a Gaussian of good features at every position (Defard et al., ICPR workshops 2020).

Nothing is trained: mean and covariance of every position are counted in two passes over the good images, and a position
is as anomalous as it is far from its mean by the Mahalanobis distance. Equations are those of the paper;
docs/methods/padim.md says where the presets differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from flawsmith.data.seeding import generator
from flawsmith.features.backbones import Backbone
from flawsmith.models.base import (
    AnomalyOutput,
    Detector,
    FeatureSource,
    Method,
    MethodConfig,
    SinglePass,
    Stage,
    TrainingData,
)
from flawsmith.models.components.detectors import UpsampleAndSmooth
from flawsmith.models.registry import register
from flawsmith.runtime.errors import FlawsmithError

IMAGES_A_PASS = 16
POSITIONS_A_PASS = 256
FLOOR = 1e-6
"""Least regularisation relative to a position's largest variance: below it, float32 cannot hold the covariance."""
LARGEST_FILE = 1_900_000_000
"""Bytes of Gaussians that an ONNX graph, which ends at 2 GiB, has room for beside the backbone."""
WIDE = 1000
"""From so many channels on, a backbone's levels count as wide."""

Embedding = Float[Tensor, "batch channel position"]


class PaDiMConfig(MethodConfig):
    """Every number of PaDiM; defaults are those of the implementation that the paper's followers use (``official``)."""

    strides: tuple[int, ...] = Field(
        (4, 8, 16), description="Backbone levels by stride in pixels, finest first; positions are those of the finest."
    )
    channels: int | None = Field(
        None,
        ge=1,
        description="Channels drawn at random (paper, section III-B), or all where there are fewer. null: 550 of "
        "levels with 1,000 channels or more, 100 of others: the paper's numbers for WideResNet-50 and ResNet-18.",
    )
    regularisation: float = Field(0.01, ge=1e-6, description="ε of Eq. 1, added to every variance (paper: 0.01).")
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")


# ---- Features ------------------------------------------------------------------------------------------------------


class ChosenChannels(nn.Module):
    """Some channels of all levels at the positions of the finest, where a coarse value is repeated (section III-A).

    Args:
        counts: channels of every level.
        grids: (h, w) of every level, finest first.
        chosen: which of all channels, levels one after another, in ascending order.
    """

    def __init__(
        self, counts: Sequence[int], grids: Sequence[tuple[int, int]], chosen: Int[np.ndarray, " channel"]
    ) -> None:
        super().__init__()
        starts = np.cumsum([0, *counts])
        self._used: list[int] = []
        for number, (start, stop) in enumerate(pairwise(starts)):
            own = chosen[(chosen >= start) & (chosen < stop)] - start
            if len(own):
                self._used.append(number)
                self.register_buffer(f"channels_{number}", torch.from_numpy(own), persistent=False)
                self.register_buffer(f"source_{number}", nearest_positions(grids[number], grids[0]), persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> Embedding:
        parts = [
            levels[number].index_select(1, self.get_buffer(f"channels_{number}")).flatten(2) for number in self._used
        ]
        sources = [self.get_buffer(f"source_{number}") for number in self._used]
        return torch.cat([part.index_select(2, source) for part, source in zip(parts, sources, strict=True)], dim=1)


def nearest_positions(coarse: tuple[int, int], fine: tuple[int, int]) -> Int[Tensor, " position"]:
    """The position of a coarse grid that every position of a fine one lies in, both row by row.

    >>> nearest_positions((1, 2), (2, 4)).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    rows, columns = (torch.arange(many) * few // many for few, many in zip(coarse, fine, strict=True))
    return (rows[:, None] * coarse[1] + columns).flatten()


# ---- Gaussians: Eq. 1 ----------------------------------------------------------------------------------------------


@torch.no_grad()
def gaussians(
    batches: Callable[[], Iterator[Embedding]], regularisation: float
) -> tuple[Float[Tensor, "position channel"], Float[Tensor, "position packed"]]:
    """Eq. 1: means, and what whitens: the inverse Cholesky factors of the covariances.

    Args:
        batches: the embeddings of all good images, afresh at every call.
        regularisation: ε, added to every variance. A single image has no covariance: ε alone remains.

    Returns:
        The means, and the lower triangles of the factors in half precision, row by row: what a model file holds.
    """
    count, total = 0, torch.zeros(())
    for batch in batches():
        count, total = count + len(batch), total + batch.double().sum(dim=0)
    mean = (total / count).T.float()  # position, channel
    positions, channels = mean.shape
    covariance = torch.zeros(positions, channels, channels)
    for batch in batches():
        offsets = batch.permute(2, 1, 0) - mean[..., None]
        covariance.baddbmm_(offsets, offsets.transpose(1, 2), alpha=1 / max(count - 1, 1))
    rows, columns = torch.tril_indices(channels, channels)
    packed = torch.empty(positions, len(rows), dtype=torch.float16)
    for start in range(0, positions, POSITIONS_A_PASS):
        part = slice(start, start + POSITIONS_A_PASS)
        packed[part] = whitening(covariance[part].double(), regularisation)[:, rows, columns].half()
    return mean, packed


def whitening(
    covariance: Float[Tensor, "position channel channel"], regularisation: float
) -> Float[Tensor, "position channel channel"]:
    """L⁻¹ of every regularised covariance Σ = L·Lᵀ, so that ‖L⁻¹·x‖² = xᵀ·Σ⁻¹·x; lower triangular."""
    variances = covariance.diagonal(dim1=1, dim2=2)
    added = (FLOOR * variances.amax(dim=1, keepdim=True)).clamp_min(regularisation)
    factor = torch.linalg.cholesky(covariance + torch.diag_embed(added.expand_as(variances)))
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


class Whitening(nn.Module):
    """The factors as full matrices, for computing."""

    factors: Tensor

    def __init__(self, packed: Float[Tensor, "position packed"], channels: int) -> None:
        super().__init__()
        factors = torch.zeros(len(packed), channels, channels)
        rows, columns = torch.tril_indices(channels, channels)
        factors[:, rows, columns] = packed.float()
        self.register_buffer("factors", factors)

    def forward(self) -> Float[Tensor, "position channel channel"]:
        return self.factors


class PackedWhitening(nn.Module):
    """The factors as a model file holds them: lower triangles in half precision.

    Unpacking them does not depend on the image: an engine does it once, when it reads the graph.
    """

    packed: Tensor
    places: Tensor

    def __init__(self, packed: Float[Tensor, "position packed"], channels: int) -> None:
        super().__init__()
        zero = torch.zeros(len(packed), 1, dtype=packed.dtype)
        places = torch.full((channels, channels), packed.shape[1])
        rows, columns = torch.tril_indices(channels, channels)
        places[rows, columns] = torch.arange(len(rows))
        self.register_buffer("packed", torch.cat([packed, zero], dim=1))
        self.register_buffer("places", places.flatten())

    def forward(self) -> Float[Tensor, "position channel channel"]:
        channels = round(len(self.places) ** 0.5)
        return self.packed.index_select(1, self.places).float().reshape(-1, channels, channels)


# ---- Scores: Eq. 2 -------------------------------------------------------------------------------------------------


class GaussianDetector(Detector):
    """Mahalanobis distance at every position; the image score is the largest value of the smoothed map.

    The unit is √channels, the distance that a good position has on average. Nothing is ranked otherwise, and the
    rounding of ill-conditioned covariances stays below what the parity gate allows.

    Args:
        backbone: the frozen backbone.
        embedding: level maps to embeddings.
        mean: of every position.
        packed: the whitening factors, see :func:`gaussians`.
        image_size: (height, width) of the input.
        sigma: of the map's smoothing.
    """

    mean: Tensor

    def __init__(
        self,
        backbone: Backbone,
        embedding: ChosenChannels,
        mean: Float[Tensor, "position channel"],
        packed: Float[Tensor, "position packed"],
        image_size: tuple[int, int],
        *,
        sigma: float,
    ) -> None:
        super().__init__()
        self.backbone, self.embedding = backbone, embedding
        self._made_of = (mean, packed, image_size, sigma)
        self.grid = backbone.grids(image_size)[0]
        self.smooth = UpsampleAndSmooth(self.grid, image_size, sigma=sigma)
        self.register_buffer("mean", mean.T)
        self.unit = mean.shape[1] ** -0.5
        self.whitening: nn.Module = Whitening(packed, mean.shape[1])
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        return self.from_levels(self.backbone(images))

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """Map and score from the backbone's level maps."""
        offsets = (self.embedding(levels) - self.mean).permute(2, 1, 0)
        whitened = self.whitening() @ offsets  # position, channel, batch
        distances = self.unit * torch.linalg.vector_norm(whitened, dim=1).T.reshape(-1, *self.grid)  # Eq. 2
        anomaly_map = self.smooth(distances)
        return AnomalyOutput(anomaly_map, anomaly_map.amax(dim=(1, 2)))

    def folded(self) -> Detector:
        """The same with packed factors: a quarter of the file."""
        mean, packed, image_size, sigma = self._made_of
        folded = GaussianDetector(self.backbone, self.embedding, mean, packed, image_size, sigma=sigma)
        folded.whitening = PackedWhitening(packed, mean.shape[1])
        return folded


# ---- The method ----------------------------------------------------------------------------------------------------


@register
class PaDiM(Method):
    """PaDiM on a frozen backbone."""

    name = "padim"
    paper = (
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, "
        "ICPR workshops 2020"
    )
    Config = PaDiMConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = {
        "official": PaDiMConfig(image_size=(224, 224), policy="crop", interpolation="lanczos"),
        "paper": PaDiMConfig(image_size=(224, 224), policy="crop"),
        "fast": PaDiMConfig(strides=(8, 16), channels=100),
    }

    def __init__(self, config: PaDiMConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        grids, available = backbone.grids(config.image_size), sum(backbone.channels)
        usual = 550 if available >= WIDE else 100
        self.count = min(config.channels or usual, available)
        positions = int(np.prod(grids[0]))
        self._check_size(positions)
        chosen = generator(seed, "padim channels").choice(available, self.count, replace=False)
        self._embedding = ChosenChannels(backbone.channels, grids, np.sort(chosen)).eval()
        self._mean = torch.zeros(positions, self.count)
        self._packed = torch.zeros(positions, self.count * (self.count + 1) // 2, dtype=torch.float16)

    def stages(self) -> list[Stage]:
        def compute(data: TrainingData) -> dict[str, Tensor]:
            features = data.features()
            mean, packed = gaussians(lambda: self._embeddings(features), self.config.regularisation)
            return {"mean": mean, "whitening": packed}

        def accept(tensors: dict[str, Tensor]) -> None:
            self._mean, self._packed = tensors["mean"], tensors["whitening"]

        return [SinglePass("gaussian", compute, accept)]

    def network(self) -> GaussianDetector:
        config = self.config
        return GaussianDetector(
            self.backbone, self._embedding, self._mean, self._packed, config.image_size, sigma=config.sigma
        )

    def _embeddings(self, features: FeatureSource) -> Iterator[Embedding]:
        for start in range(0, len(features), IMAGES_A_PASS):
            yield self._embedding(features.batch(np.arange(start, min(start + IMAGES_A_PASS, len(features)))))

    def _check_size(self, positions: int) -> None:
        """Refuse Gaussians that no model file can hold, before any image is read."""
        size = positions * self.count * (self.count + 1)
        if size > LARGEST_FILE:
            raise FlawsmithError(
                f"{self.name} with {self.count} channels at {positions} positions makes a model file of "
                f"{size / 1e9:.1f} GB, and 1.9 GB are possible: --set channels=100, a smaller image_size, or "
                "strides without the finest"
            )
