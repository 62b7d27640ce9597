"""PatchCore: distance to a memory of good patches (Roth et al., CVPR 2022).

Nothing is trained: features of good patches are collected, a greedy coreset of them is kept, and a patch is as
anomalous as it is far from the nearest one kept. Equations are those of the paper; docs/methods/patchcore.md says where
the presets follow the released code (amazon-science/patchcore-inspection), where anomalib, and where neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed, generator
from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import PatchEmbedding, as_rows, average_embedding
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
from flawsmith.models.components.memory_bank import greedy_coreset, random_projection
from flawsmith.models.registry import register

IMAGES_A_PASS = 8

Aggregation = Literal["average", "pooled"]
Weighting = Literal["paper", "none"]
Rows = Float[Tensor, "row width"]


class PatchCoreConfig(MethodConfig):
    """Every number of PatchCore; defaults are those of the authors' released code (preset ``official``)."""

    aggregation: Aggregation = Field(
        "pooled",
        description="Eqs. 1 and 2. pooled: neighbourhoods of a level are flattened and pooled to width values, as in "
        "the released code; average: every channel is averaged over the neighbourhood and levels are concatenated, as "
        "in anomalib.",
    )
    patch_size: int = Field(3, ge=1, description="Side of the neighbourhood, odd (Fig. 4 of the paper: 3).")
    width: int = Field(1024, ge=1, description="Width of a pooled embedding (released code: 1024).")
    coreset_ratio: float = Field(0.1, gt=0, le=1, description="Share of the patches that is kept (Eq. 5); 1 keeps all.")
    least_rows: int = Field(1024, ge=1, description="Patches that are kept at least, or all where there are fewer.")
    most_candidates: int = Field(
        500_000,
        ge=1,
        description="Patches that the coreset is chosen from, and that its ratio is of; where there are more, as many "
        "of every image are drawn. No category of MVTec AD has more at 224 pixels.",
    )
    projection: int = Field(128, ge=1, description="Width that wider patches are projected to for the choice alone.")
    weighting: Weighting = Field(
        "none",
        description="Image score. paper: Eq. 7, which is not continuous; none: the largest distance (Eq. 6), as in the "
        "released code.",
    )
    neighbours: int = Field(9, ge=2, description="b of Eq. 7; 9 in anomalib.")
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")

    @model_validator(mode="after")
    def _odd_neighbourhood(self) -> PatchCoreConfig:
        if self.patch_size % 2 == 0:
            raise ValueError("patch_size must be odd")
        return self


# ---- Features: Eqs. 1 to 3 -----------------------------------------------------------------------------------------


class AverageEmbedding(nn.Module):
    """Every channel averaged over its neighbourhood, all levels resized to the finest and concatenated.

    Args:
        patch_size: side of the neighbourhood.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch width height0 width0"]:
        return average_embedding(levels, self.patch_size, levels[0].shape[-2:])


def patch_embedding(config: PatchCoreConfig, channels: Sequence[int]) -> nn.Module:
    """What makes one embedding a position of the finest level."""
    if config.aggregation == "average":
        return AverageEmbedding(config.patch_size)
    return PatchEmbedding(channels, patch_size=config.patch_size, level_width=config.width, width=config.width)


# ---- Memory: Eqs. 4 and 5 ------------------------------------------------------------------------------------------


class Candidates:
    """The patches of the good images that the coreset is chosen from.

    Args:
        features: level maps of the images.
        embedding: level maps to embeddings.
        most: patches at most; drawn evenly from the images where there are more, at least one an image.
        seed: of that draw.
    """

    def __init__(self, features: FeatureSource, embedding: nn.Module, *, most: int, seed: int) -> None:
        self._features, self._embedding, self._seed = features, embedding, seed
        self.positions = int(np.prod(features.grids[0]))
        self.kept = min(self.positions, max(1, most // len(features)))

    def __len__(self) -> int:
        return self.kept * len(self._features)

    def batches(self) -> Iterator[Rows]:
        """All candidates in order, those of a few images at a time."""
        for start in range(0, len(self._features), IMAGES_A_PASS):
            images = np.arange(start, min(start + IMAGES_A_PASS, len(self._features)))
            rows = as_rows(self._embedding(self._features.batch(images)))
            yield rows if self.kept == self.positions else rows[self._drawn(images)]

    def rows(self, indices: Int[Tensor, " chosen"]) -> Rows:
        """Some candidates, in the order of their indices."""
        found, start = [], 0
        ordered = indices.sort().values
        for batch in self.batches():
            found.append(batch[ordered[(ordered >= start) & (ordered < start + len(batch))] - start])
            start += len(batch)
        return torch.cat(found)

    def _drawn(self, images: np.ndarray) -> Int[Tensor, " drawn"]:
        drawn = [
            at * self.positions
            + generator(self._seed, "patchcore candidates", int(image)).permutation(self.positions)[: self.kept]
            for at, image in enumerate(images)
        ]
        return torch.from_numpy(np.concatenate(drawn))


@torch.no_grad()
def memory_of(candidates: Candidates, config: PatchCoreConfig, seed: int) -> Rows:
    """Eq. 5: the greedy coreset of the candidates, chosen on their random projections (Algorithm 1)."""
    count = min(len(candidates), max(round(config.coreset_ratio * len(candidates)), config.least_rows))
    if count == len(candidates):
        return torch.cat(list(candidates.batches()))
    projected, matrix, start = None, None, 0
    for batch in candidates.batches():
        width = batch.shape[1]
        if projected is None:
            if width > config.projection:
                matrix = random_projection(width, config.projection, derived_seed(seed, "patchcore projection"))
            projected = torch.empty(len(candidates), min(width, config.projection))
        projected[start : start + len(batch)] = batch if matrix is None else batch @ matrix
        start += len(batch)
    assert projected is not None
    first = int(generator(seed, "patchcore first").integers(len(candidates)))
    return candidates.rows(greedy_coreset(projected, count, first=first))


# ---- Scores: Eqs. 6 and 7 ------------------------------------------------------------------------------------------


class MemoryDetector(Detector):
    """Distance of every patch to the nearest one in the memory, found exactly.

    ‖x − m‖² = ‖x‖² − 2·x·m + ‖m‖² finds the nearest row as one matrix product, but loses the distance itself to
    cancellation where it is small. It is therefore computed once more, from the row that was found.

    Args:
        backbone: the frozen backbone.
        embedding: level maps to embeddings.
        memory: the patches that are kept.
        image_size: (height, width) of the input.
        weighting: of the image score.
        neighbours: b of Eq. 7; as many as the memory has rows where it has fewer.
        sigma: of the map's smoothing.
    """

    center: Tensor
    memory: Tensor
    half_squares: Tensor
    supports: Tensor

    def __init__(
        self,
        backbone: Backbone,
        embedding: nn.Module,
        memory: Rows,
        image_size: tuple[int, int],
        *,
        weighting: Weighting,
        neighbours: int,
        sigma: float,
    ) -> None:
        super().__init__()
        self.backbone, self.embedding = backbone, embedding
        self.smooth = UpsampleAndSmooth(backbone.grids(image_size)[0], image_size, sigma=sigma)
        center = memory.mean(dim=0)  # around the mean, the three terms above are smaller, and so is their rounding
        self.register_buffer("center", center)
        self.register_buffer("memory", memory - center)
        self.register_buffer("half_squares", self.memory.square().sum(dim=1) / 2)
        self.neighbours = min(neighbours, len(memory))
        self.weighting: Weighting = weighting if self.neighbours > 1 else "none"
        if self.weighting == "paper":
            self.register_buffer("supports", supports(self.memory, self.neighbours))
        self.eval().requires_grad_(False)

    @property
    def continuous(self) -> bool:
        """Eq. 7 weighs by the neighbours of one patch of the memory, which the last digit can exchange for another."""
        return self.weighting != "paper"

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        return self.from_levels(self.backbone(images))

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """Map and score from the backbone's level maps."""
        embedding = self.embedding(levels)
        patches = embedding.flatten(2).transpose(1, 2) - self.center
        search = self.half_squares - patches @ self.memory.T
        rows = search.argmin(dim=2)
        distances = torch.linalg.vector_norm(patches - self.memory[rows], dim=2)
        score = self._score(patches, distances, rows)
        return AnomalyOutput(self.smooth(distances.unflatten(1, embedding.shape[-2:])), score)

    def _score(self, patches: Tensor, distances: Tensor, rows: Tensor) -> Float[Tensor, " batch"]:
        """Eq. 6, and Eq. 7 where it is asked for."""
        farthest, at = distances.max(dim=1)  # s* and m^test,*
        if self.weighting == "none":
            return farthest
        # gather, not take_along_dim: exported, that would fix the number of images.
        patch = patches.gather(1, at[:, None, None].expand(-1, 1, patches.shape[2]))
        support = self.supports[rows.gather(1, at[:, None])[:, 0]]  # N_b(m*), m* first
        to_support = torch.linalg.vector_norm(patch - self.memory[support], dim=2)
        return (1 - to_support.softmax(dim=1)[:, 0]) * farthest


def supports(memory: Rows, count: int) -> Int[Tensor, "row count"]:
    """N_b of every row of the memory: the row itself, then the nearest others."""
    found = []
    squares = memory.square().sum(dim=1)
    for start in range(0, len(memory), IMAGES_A_PASS * 128):
        part = memory[start : start + IMAGES_A_PASS * 128]
        search = squares - 2 * part @ memory.T
        itself = torch.arange(start, start + len(part))
        search[torch.arange(len(part)), itself] = -torch.inf
        found.append(search.topk(count, dim=1, largest=False).indices)
    return torch.cat(found)


# ---- The method ----------------------------------------------------------------------------------------------------


@register
class PatchCore(Method):
    """PatchCore on a frozen backbone."""

    name = "patchcore"
    paper = "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022"
    Config = PatchCoreConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = {
        "official": PatchCoreConfig(image_size=(224, 224), policy="crop"),
        "paper": PatchCoreConfig(image_size=(224, 224), policy="crop", weighting="paper"),
        "fast": PatchCoreConfig(aggregation="average", coreset_ratio=0.01, most_candidates=250_000, projection=256),
    }

    def __init__(self, config: PatchCoreConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self._embedding = patch_embedding(config, backbone.channels).eval()
        self._memory = torch.zeros(1, self._width())

    def _width(self) -> int:
        return sum(self.backbone.channels) if self.config.aggregation == "average" else self.config.width

    def stages(self) -> list[Stage]:
        def compute(data: TrainingData) -> dict[str, Tensor]:
            most = self.config.most_candidates
            candidates = Candidates(data.features(), self._embedding, most=most, seed=self.seed)
            return {"memory": memory_of(candidates, self.config, self.seed)}

        def accept(tensors: dict[str, Tensor]) -> None:
            self._memory = tensors["memory"]

        return [SinglePass("coreset", compute, accept)]

    def network(self) -> MemoryDetector:
        config = self.config
        return MemoryDetector(
            self.backbone,
            self._embedding,
            self._memory,
            config.image_size,
            weighting=config.weighting,
            neighbours=config.neighbours,
            sigma=config.sigma,
        )
