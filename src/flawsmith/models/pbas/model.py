"""PBAS: progressive boundary guided anomaly synthesis (Chen et al., IEEE TCSVT 2025).

Normal features are pulled towards a table of centres (approximate boundary learning, ABL), anomalous features are
synthesised along the rays from their centres (anomaly feature synthesis, AFS), and a discriminator learns the refined
boundary between the two (refined boundary optimisation, RBO). Equations are those of the paper; where the released code
differs, the presets ``paper`` and ``official`` do, and docs/methods/pbas.md lists every difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from flawsmith.features.backbones import Backbone
from flawsmith.models.base import LightningStage, Method, MethodConfig, SinglePass, Stage, TrainingData
from flawsmith.models.components.centers import (
    CenterKind,
    aligned_update,
    clustered_centers,
    distance_to_centers,
    nearest_center,
    safe_length,
)
from flawsmith.models.components.detectors import NearestCenterDetector, PositionDetector
from flawsmith.models.components.distributed import Part, mean
from flawsmith.models.components.fast import ray_hidden
from flawsmith.models.components.memory_bank import Neighbourhood
from flawsmith.models.components.patch_learner import (
    PatchBatch,
    PatchBatches,
    PatchConfig,
    PatchLearner,
    Rows,
    Sampling,
)
from flawsmith.models.components.postprocessing import Finish
from flawsmith.models.registry import register

ON_CENTER = 1e-6
"""Share of the mean distance within which a feature counts as its centre."""


class PBASConfig(PatchConfig):
    """Every number of PBAS; defaults are those of the authors' released code (preset ``official``).

    The paper trains at 256 pixels for 400 epochs; a neighbourhood of 3 is best in its Fig. 12b, 8 images a step in
    Fig. 12d.
    """

    embedded_levels: int | None = Field(
        None, ge=1, description="Coarsest levels that are embedded and learned from; null: all. A bank reads all."
    )
    discriminator_depth: int = Field(2, ge=2, description="Linear layers of the discriminator.")
    center: CenterKind = Field("aligned", description="Centre initialisation (Table VI); aligned is the paper's own.")
    center_smoothing: float = Field(0.1, gt=0, le=1, description="Weight of a new batch in the moving average.")
    synthesis: Literal["ray", "gaussian", "none"] = Field(
        "ray", description="Anomaly synthesis (Table V); none trains ABL alone and scores by the distance to a centre."
    )
    anomaly_degree: float = Field(0.25, gt=0, description="α of Eq. 7; 0.3 in the paper.")
    noise: float = Field(0.015, gt=0, description="Standard deviation of gaussian synthesis, as in SimpleNet.")
    boundary_weight: float = Field(
        1.0, ge=0, description="λ1 of Eq. 10, weight of the boundary loss (released code: 1)."
    )
    discrimination_weight: float = Field(
        1.0, ge=0, description="λ2 of Eq. 10, weight of Eqs. 8 and 9 (released code: 1)."
    )

    @property
    def finest_level(self) -> int:
        return len(self.strides) - (self.embedded_levels or len(self.strides))

    @model_validator(mode="after")
    def _something_to_train(self) -> PBASConfig:
        if self.embedded_levels is not None and self.embedded_levels > len(self.strides):
            raise ValueError(f"embedded_levels must be {len(self.strides)} at most, as many as strides has")
        if self.synthesis == "none" and self.projector_depth == 0:
            raise ValueError("without a projector and without synthesis there is nothing to train")
        return self


# ---- Losses and synthesis: pure functions --------------------------------------------------------------------------


@dataclass(frozen=True)
class Boundary:
    """Each feature's centre and its distance: what Eqs. 6 and 7 share.

    Attributes:
        nearest: row of the centre table by highest cosine similarity, (position,).
        offset: feature minus centre, without gradient, (position, width).
        distance: Euclidean length of the offset, (position,).
        radius: the mean distance, which is the boundary loss L_abl of Eq. 6.
    """

    nearest: Int[Tensor, " position"]
    offset: Rows
    distance: Float[Tensor, " position"]
    radius: Float[Tensor, ""]


def approximate_boundary(features: Rows, centers: Float[Tensor, "center width"]) -> Boundary:
    """Eq. 6: the mean Euclidean distance of the features to their nearest centres."""
    nearest = nearest_center(features, centers)
    distance, offset = distance_to_centers(features.float(), centers, nearest)
    return Boundary(nearest, offset, distance, mean(distance))


def ray_lengths(boundary: Boundary, degree: float) -> Float[Tensor, " position"]:
    """Length of the synthetic step in units of the offset: α·L_abl / ‖f − c‖ of Eq. 7, without gradient.

    A feature that lies on its centre, up to rounding, has no direction: its step is zero.
    """
    radius, distance = boundary.radius.detach(), boundary.distance.detach()
    return torch.where(distance > ON_CENTER * radius, degree * radius / safe_length(distance), 0.0)


def ray_anomalies(features: Rows, boundary: Boundary, degree: float) -> Rows:
    """Eq. 7: anomalous features, all at the distance α·L_abl from their normal features, on the rays from the centres.

    The step is a constant to the gradient, the normal feature is not: the anomaly branch reaches the projector as
    identity.
    """
    return features + ray_lengths(boundary, degree)[:, None] * boundary.offset


def discrimination_losses(logits: Float[Tensor, " position"], normal: int) -> tuple[Tensor, Tensor]:
    """Eqs. 8 and 9: binary cross-entropy of the first ``normal`` rows against 0 and of the others against 1."""
    logits = logits.float()
    return mean(F.softplus(logits[:normal])), mean(F.softplus(-logits[normal:]))


# ---- Training ------------------------------------------------------------------------------------------------------


class PBASModule(PatchLearner):
    """Projector and discriminator with the centre table; one training step is Eq. 10."""

    name = "pbas"
    centers: Tensor

    def __init__(self, config: PBASConfig, channels: Sequence[int], seed: int) -> None:
        super().__init__(config, channels, seed, depth=config.discriminator_depth)
        self.config = config
        self.register_buffer("centers", torch.zeros(0, config.width))

    @property
    def trains_discriminator(self) -> bool:
        return self.config.synthesis != "none"

    def batch_losses(self, batch: PatchBatch) -> dict[str, Tensor]:
        return self.losses(self.project(batch.levels, batch.rows), batch.step, batch.positions)

    def losses(self, features: Rows, step: tuple[int, int] = (0, 0), part: Part | None = None) -> dict[str, Tensor]:
        """L_abl, L_n, L_a and their weighted sum (Eqs. 6, 8, 9 and 10) of projected features."""
        boundary = approximate_boundary(features, self.centers)
        total = self.config.boundary_weight * boundary.radius
        parts = {"loss_boundary": boundary.radius}
        if self.config.synthesis != "none":
            normal, anomalous = discrimination_losses(self._logits(features, boundary, step, part), len(features))
            parts |= {"loss_normal": normal, "loss_anomaly": anomalous}
            total = total + self.config.discrimination_weight * (normal + anomalous)
        return {"loss": total, **parts}

    def _logits(self, features: Rows, boundary: Boundary, step: tuple[int, int], part: Part | None) -> Tensor:
        if self.config.synthesis == "ray":
            first = self.discriminator.blocks[0].linear
            lengths = ray_lengths(boundary, self.config.anomaly_degree)
            hidden = ray_hidden(features, self.centers, boundary.nearest, lengths, first.weight, first.bias)
            return self.discriminator.from_first_linear(hidden)
        noise = self.gaussian(features, "pbas noise", step, part)
        anomalies = features + self.config.noise * noise
        return self.discriminator(torch.cat([features, anomalies]))


# ---- Centre initialisation -----------------------------------------------------------------------------------------


@torch.no_grad()
def initial_centers(module: PBASModule, batches: PatchBatches, positions: int) -> Float[Tensor, "center width"]:
    """The centre table from one pass with the untrained projector (paper, section III-C; Table VI's variants).

    Args:
        module: with its projector as initialised.
        batches: the training images, all positions of each.
        positions: positions an image, which is also the number of centres.
    """
    config = module.config
    projected = (module.project(batch.levels).float() for batch in batches.epoch(0))
    if config.center == "kmeans":
        return clustered_centers(projected, positions, seed=module.seed)
    centers, images = torch.zeros(positions, config.width), 0
    for features in projected:
        table = features.reshape(-1, positions, config.width)
        mean = table.mean(dim=0)
        if images == 0:
            centers = mean
        elif config.center == "aligned":
            centers = aligned_update(centers, mean, config.center_smoothing)
        elif config.center == "iterative":
            centers = torch.lerp(centers, mean, config.center_smoothing)
        else:  # average
            centers = torch.lerp(centers, mean, len(table) / (images + len(table)))
        images += len(table)
    return centers


FAST = PBASConfig(
    image_size=(320, 320),
    policy="squash",
    strides=(8, 16),
    embedded_levels=1,
    level_width=384,
    width=384,
    hidden=256,
    anomaly_degree=0.3,
    scale="logit",
    score_norm="position",
    bank=(5, Neighbourhood(side=1, levels=2), Neighbourhood(side=5, levels=2)),
    bank_weight=1.0,
    discriminator_lr=1e-3,
    epochs=30,
    steps_per_epoch=20,
)


@register
class PBAS(Method):
    """PBAS on a frozen backbone."""

    name = "pbas"
    paper = "Chen et al., Progressive Boundary Guided Anomaly Synthesis for Industrial Anomaly Detection, TCSVT 2025"
    Config = PBASConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = {
        "official": PBASConfig(),
        "paper": PBASConfig(
            image_size=(256, 256),
            epochs=400,
            anomaly_degree=0.3,
            discriminator_optimiser="adam",
            discriminator_weight_decay=0.0,
        ),
        "fast": FAST,
    }

    def __init__(self, config: PBASConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.module = PBASModule(config, backbone.channels, seed)
        self._finish = Finish(config, config.score_norm, backbone.channels, seed)

    def stages(self) -> list[Stage]:
        def compute(data: TrainingData) -> dict[str, Tensor]:
            features = data.features()
            batches = PatchBatches(features, Sampling(self.config.batch_size), seed=self.seed, purpose="centre")
            positions = int(np.prod(features.grids[self.config.finest_level]))
            return {"centers": initial_centers(self.module, batches, positions)}

        def accept(tensors: dict[str, Tensor]) -> None:
            self.module.centers = tensors["centers"]

        found: list[Stage] = [
            SinglePass("centre", compute, accept),
            LightningStage(
                "boundary",
                self.module,
                lambda data: PatchBatches(data.features(), self.config.sampling, seed=self.seed),
                self.config.epochs,
            ),
        ]
        return found + self._finish.stages(self._detector)

    def network(self) -> PositionDetector:
        return self._finish.applied(self._detector())

    def _detector(self) -> PositionDetector:
        module, config = self.module, self.config
        if config.synthesis != "none":
            return module.detector(self.backbone)
        return NearestCenterDetector(
            self.backbone, module.embedding, module.projector, module.centers, config.image_size, sigma=config.sigma
        )
