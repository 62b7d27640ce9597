"""PatchCore: distance to a memory of good patches (Roth et al., CVPR 2022).

Nothing is trained: features of good patches are collected, a greedy coreset of them is the memory, and a patch is as
anomalous as it is far from the nearest one in it. The equations are in functional.py; docs/research/patchcore.md says
where the presets follow the released code (amazon-science/patchcore-inspection), where anomalib, and where neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import Self

from flawsmith.data.seeding import derived_seed, generator
from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import PatchEmbedding
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
from flawsmith.models.components.memory_bank import random_projection
from flawsmith.models.components.score_maps import UpsampleAndSmooth
from flawsmith.models.patchcore.config import CONDITIONS, PRESETS, PatchCoreConfig
from flawsmith.models.patchcore.functional import (
    Embedding,
    Memory,
    PatchTable,
    coreset,
    half_squares,
    largest_distance,
    nearest_patches,
    neighbourhood_features,
    neighbours,
    patch_table,
    patches,
    ranked_patches,
    reweighted_score,
)
from flawsmith.models.registry import register
from flawsmith.runtime.errors import FlawsmithError

IMAGES_A_PASS = 8


class AverageEmbedding(nn.Module):
    """Every channel averaged over its neighbourhood, see :func:`neighbourhood_features`."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, levels: Sequence[Tensor]) -> Embedding:
        return neighbourhood_features(levels, self.patch_size)


class Candidates:
    """The patches of the good images that the coreset is chosen from, in batches: all of them rarely fit in memory.

    Args:
        most: patches at most; drawn evenly from the images where there are more, at least one an image.
    """

    def __init__(
        self,
        features: FeatureSource,
        embedding: Callable[[Sequence[Tensor]], Embedding],
        *,
        most: int,
        seed: int,
    ) -> None:
        self._features, self._embedding, self._seed = features, embedding, seed
        self.positions = int(np.prod(features.grids[0]))
        self.share = min(self.positions, max(1, most // len(features)))

    def __len__(self) -> int:
        return self.share * len(self._features)

    def batches(self) -> Iterator[PatchTable]:
        """All candidates in order, those of a few images at a time."""
        for start in range(0, len(self._features), IMAGES_A_PASS):
            images = np.arange(start, min(start + IMAGES_A_PASS, len(self._features)))
            rows = patch_table(self._embedding(self._features.batch(images)))
            yield rows if self.share == self.positions else rows[self._drawn(images)]

    def rows(self, indices: Int[Tensor, " chosen"]) -> PatchTable:
        """Some candidates, in the order of their indices."""
        chosen, start = [], 0
        ordered = indices.sort().values
        for batch in self.batches():
            chosen.append(batch[ordered[(ordered >= start) & (ordered < start + len(batch))] - start])
            start += len(batch)
        return torch.cat(chosen)

    def _drawn(self, images: np.ndarray) -> Int[Tensor, " drawn"]:
        drawn = [
            number * self.positions
            + generator(self._seed, "patchcore candidates", int(image)).permutation(self.positions)[: self.share]
            for number, image in enumerate(images)
        ]
        return torch.from_numpy(np.concatenate(drawn))


def rows_to_keep(candidates: int, config: PatchCoreConfig) -> int:
    """How many of the candidates are remembered.

    Example:
        >>> rows_to_keep(50_000, PatchCoreConfig(coreset_ratio=0.01, least_rows=1024))
        1024
    """
    return min(candidates, max(round(config.coreset_ratio * candidates), config.least_rows))


@torch.no_grad()
def memory_of(candidates: Candidates, config: PatchCoreConfig, seed: int) -> Memory:
    """The coreset of the candidates, chosen on their random projections (Eq. 5, Algorithm 1)."""
    count = rows_to_keep(len(candidates), config)
    if count == len(candidates):
        return torch.cat(list(candidates.batches()))
    projected = torch.cat(list(_projections(candidates, config.projection, seed)))
    first = int(generator(seed, "patchcore first").integers(len(candidates)))
    return candidates.rows(coreset(projected, count, first=first))


def _projections(candidates: Candidates, width: int, seed: int) -> Iterator[PatchTable]:
    """ψ of Algorithm 1 for all candidates, some at a time; candidates that are no wider stay as they are."""
    matrix = None
    for batch in candidates.batches():
        if matrix is None and batch.shape[1] > width:
            matrix = random_projection(batch.shape[1], width, derived_seed(seed, "patchcore projection")).to(batch)
        yield batch if matrix is None else batch @ matrix


@register
class PatchCore(AnomalyModel):
    """PatchCore on a frozen backbone.

    Attributes:
        center: mean of the memory, (width): around it, rounding is least.
        memory: the remembered patches less the centre, (rows, width).
        half_squares: half the squared norms of the memory's rows, (rows).
        supports: neighbours in the memory of every row, itself first, (rows, b); with weighting=paper alone.

    Example:
        >>> model = PatchCore.from_preset("fast", backbone="efficientnet_lite0@random", image_size=(64, 64))
        >>> good = torch.randn(4, 3, 64, 64)
        >>> anomaly_map, score = model.fit([good])(good[:2])
        >>> anomaly_map.shape, score.shape
        (torch.Size([2, 64, 64]), torch.Size([2]))
    """

    name = "patchcore"
    suits = "a baseline that is not trained in epochs"
    training_time = "under 1 min"
    paper = "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022"
    licence = "Apache-2.0"
    Config = PatchCoreConfig
    presets = PRESETS
    conditions = CONDITIONS

    config: PatchCoreConfig
    center: Tensor
    memory: Tensor
    half_squares: Tensor
    supports: Tensor

    def __init__(self, config: PatchCoreConfig, backbone: Backbone, seed: int = 0) -> None:
        super().__init__(config, backbone, seed)
        pooled = config.aggregation == "pooled"
        width = config.width if pooled else sum(backbone.channels)
        self.embedding: nn.Module = AverageEmbedding(config.patch_size)
        if pooled:
            self.embedding = PatchEmbedding(
                backbone.channels, patch_size=config.patch_size, level_width=width, width=width
            )
        self.smooth = UpsampleAndSmooth(backbone.grids(config.image_size)[0], config.image_size, sigma=config.sigma)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("memory", torch.zeros(1, width))
        self.register_buffer("half_squares", torch.zeros(1))
        if config.weighting == "paper":
            self.register_buffer("supports", torch.zeros(1, 1, dtype=torch.long))

    @property
    def continuous(self) -> bool:
        """Eq. 7 weighs by the neighbours of one patch of the memory, which the last digit can exchange for another."""
        return not self._reweights

    @property
    def _reweights(self) -> bool:
        """Eq. 7 would make every score of a memory of one row 0."""
        return self.config.weighting == "paper" and self.supports.shape[1] > 1

    def fit_memory(self, rows: PatchTable) -> None:
        """Take patches as the memory, whatever chose them.

        Args:
            rows: one patch a row, as the embedding makes them.
        """
        self.center = rows.mean(dim=0)
        self.memory = rows - self.center
        self.half_squares = half_squares(self.memory)
        if self.config.weighting == "paper":
            self.supports = neighbours(self.memory, min(self.config.neighbours, len(rows)))

    @torch.no_grad()
    def fit(self, images: Iterable[Float[Tensor, "batch 3 height width"]]) -> Self:
        """Choose the memory from good images.

        Args:
            images: batches of normalised images, of the size in ``config``.

        Raises:
            FlawsmithError: there is no image.
        """
        return self.fit_features(LevelTable(self.backbone(batch.to(self.memory.device)) for batch in images))

    def fit_features(self, features: FeatureSource) -> Self:
        """Choose the memory from the level maps of good images.

        Args:
            features: level maps as the frozen backbone gives them.
        """

        def embedding(levels: Sequence[Tensor]) -> Embedding:
            return self.embedding([level.to(self.memory.device) for level in levels])

        candidates = Candidates(features, embedding, most=self.config.most_candidates, seed=self.seed)
        self.fit_memory(memory_of(candidates, self.config, self.seed))
        return self

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        self._check_size(len(data))
        yield SinglePass("coreset", lambda: self.fit_features(data.features()))

    def _check_size(self, images: int) -> None:
        """Refuse a memory that no model file can hold, before any image is read."""
        positions = int(np.prod(self.backbone.grids(self.config.image_size)[0]))
        candidates = images * min(positions, max(1, self.config.most_candidates // images))
        rows, width = rows_to_keep(candidates, self.config), len(self.center)
        size = rows * (4 * width + (8 * self.config.neighbours if self.config.weighting == "paper" else 0))
        if size > LARGEST_FILE:
            raise FlawsmithError(
                f"{self.name} would remember {rows} patches of {width} values, a model file of {size / 1e9:.1f} GB, "
                "and 1.9 GB are possible: --set coreset_ratio=0.01, or a smaller image_size"
            )

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        embedding = self.embedding(levels)
        test = patches(embedding) - self.center
        rank = min(self.config.map_neighbour, len(self.memory))
        if rank == 1:
            distances, nearest = nearest_patches(test, self.memory, self.half_squares)
            shown = distances
        else:
            distances, nearest, shown = ranked_patches(test, self.memory, self.half_squares, rank)
        if self._reweights:
            score = reweighted_score(test, distances, nearest, self.memory, self.supports)
        else:
            score, _ = largest_distance(distances)
        low = shown.unflatten(1, embedding.shape[-2:])  # type: ignore[no-untyped-call]
        return AnomalyOutput(self.smooth(low), score)
