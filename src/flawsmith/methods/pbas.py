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

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import PatchEmbedding
from flawsmith.methods.base import (
    Detector,
    LightningStage,
    Method,
    MethodConfig,
    SinglePass,
    Stage,
    TrainingData,
)
from flawsmith.methods.layers.centers import (
    CenterKind,
    aligned_update,
    clustered_centers,
    distance_to_centers,
    nearest_center,
    safe_length,
)
from flawsmith.methods.layers.heads import Discriminator, Projector
from flawsmith.methods.layers.patch_batches import PatchBatch, PatchBatches, Sampling
from flawsmith.methods.layers.patch_detector import NearestCenterDetector, PatchDetector, Scale
from flawsmith.methods.layers.ray import ray_hidden
from flawsmith.methods.registry import register

Rows = Float[Tensor, "position width"]


class PBASConfig(MethodConfig):
    """Every number of PBAS; defaults are those of the authors' released code (preset ``official``)."""

    image_size: tuple[int, int] = Field((288, 288), description="(height, width) of the input in pixels; paper: 256.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "crop", description="The released code scales the shorter side and crops the centre."
    )
    patch_size: int = Field(3, ge=1, description="Side p of the neighbourhood, odd (Eq. 2); best at 3 in Fig. 12b.")
    level_width: int = Field(1536, ge=1, description="Width that each level is pooled to before the levels are joined.")
    width: int = Field(1536, ge=1, description="Width of the embedding (Eq. 4).")
    projector_depth: int = Field(1, ge=0, description="Linear layers of the feature projector; 0 leaves it out.")
    hidden: int | None = Field(1024, ge=1, description="Hidden width of the discriminator; null: 1/1.5 a layer.")
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
    projector_lr: float = Field(1e-4, gt=0, description="Adam's learning rate of the projector.")
    projector_weight_decay: float = Field(1e-5, ge=0, description="Adam's coupled weight decay of the projector.")
    discriminator_lr: float = Field(2e-4, gt=0, description="Learning rate of the discriminator.")
    discriminator_weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay of the discriminator.")
    discriminator_optimiser: Literal["adamw", "adam"] = Field("adamw", description="adam in the paper.")
    epochs: int = Field(640, ge=1, description="Passes over the training images; 400 in the paper.")
    batch_size: int = Field(8, ge=1, description="Images a step (Fig. 12d), and a batch of the centre pass.")
    steps_per_epoch: int | None = Field(None, ge=1, description="Fixed steps an epoch instead of a full pass.")
    patches_per_step: int | None = Field(None, ge=2, description="Positions drawn at random a step; null takes all.")
    scale: Scale = Field(
        "probability", description="What scores and maps mean; a logit ranks alike and never rounds to 1."
    )
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")

    @model_validator(mode="after")
    def _something_to_train(self) -> PBASConfig:
        if self.synthesis == "none" and self.projector_depth == 0:
            raise ValueError("without a projector and without synthesis there is nothing to train")
        if self.patch_size % 2 == 0:
            raise ValueError("patch_size must be odd")
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
    return Boundary(nearest, offset, distance, distance.mean())


def ray_lengths(boundary: Boundary, degree: float) -> Float[Tensor, " position"]:
    """Length of the synthetic step in units of the offset: α·L_abl / ‖f − c‖ of Eq. 7, without gradient.

    A feature that lies on its centre has no direction: its offset is zero and the step stays zero.
    """
    return degree * boundary.radius.detach() / safe_length(boundary.distance.detach())


def ray_anomalies(features: Rows, boundary: Boundary, degree: float) -> Rows:
    """Eq. 7: anomalous features, all at the distance α·L_abl from their normal features, on the rays from the centres.

    The step is a constant to the gradient, the normal feature is not: the anomaly branch reaches the projector as
    identity.
    """
    return features + ray_lengths(boundary, degree)[:, None] * boundary.offset


def discrimination_losses(logits: Float[Tensor, " position"], normal: int) -> tuple[Tensor, Tensor]:
    """Eqs. 8 and 9: binary cross-entropy of the first ``normal`` rows against 0 and of the others against 1."""
    logits = logits.float()
    return F.softplus(logits[:normal]).mean(), F.softplus(-logits[normal:]).mean()


# ---- Training ------------------------------------------------------------------------------------------------------


class PBASModule(pl.LightningModule):
    """Projector and discriminator with the centre table; one training step is Eq. 10."""

    centers: Tensor

    def __init__(self, config: PBASConfig, channels: Sequence[int], seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.seed = config, seed
        self.embedding = PatchEmbedding(
            channels, patch_size=config.patch_size, level_width=config.level_width, width=config.width
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "pbas weights"))
            self.projector = Projector(config.width, config.projector_depth)
            self.discriminator = Discriminator(config.width, config.hidden, config.discriminator_depth)
        self.register_buffer("centers", torch.zeros(0, config.width))

    def project(self, batch: PatchBatch) -> Rows:
        """Projected features of the batch's positions (Eq. 4 and the projector), one row each."""
        with torch.no_grad():
            parts = self.embedding.parts(batch.levels)
        features = self.projector.of_parts(parts, batch.levels[0].shape[-2:])
        return features if batch.rows is None else features[batch.rows]

    def losses(self, features: Rows, step: tuple[int, int] = (0, 0)) -> dict[str, Tensor]:
        """L_abl, L_n, L_a and their weighted sum (Eqs. 6, 8, 9 and 10) of projected features."""
        boundary = approximate_boundary(features, self.centers)
        total = self.config.boundary_weight * boundary.radius
        parts = {"loss_boundary": boundary.radius}
        if self.config.synthesis != "none":
            normal, anomalous = discrimination_losses(self._logits(features, boundary, step), len(features))
            parts |= {"loss_normal": normal, "loss_anomaly": anomalous}
            total = total + self.config.discrimination_weight * (normal + anomalous)
        return {"loss": total, **parts}

    def _logits(self, features: Rows, boundary: Boundary, step: tuple[int, int]) -> Tensor:
        if self.config.synthesis == "ray":
            first = self.discriminator.blocks[0].linear
            lengths = ray_lengths(boundary, self.config.anomaly_degree)
            hidden = ray_hidden(features, self.centers, boundary.nearest, lengths, first.weight, first.bias)
            return self.discriminator.from_first_linear(hidden)
        noise = torch.Generator().manual_seed(derived_seed(self.seed, "pbas noise", *step))
        anomalies = features + self.config.noise * torch.randn(features.shape, generator=noise)
        return self.discriminator(torch.cat([features, anomalies]))

    def training_step(self, batch: PatchBatch, batch_idx: int) -> dict[str, Tensor]:
        losses = self.losses(self.project(batch), batch.step)
        found = self.optimizers()
        optimisers = found if isinstance(found, list) else [found]
        for optimiser in optimisers:
            optimiser.zero_grad()
        self.manual_backward(losses["loss"])
        for optimiser in optimisers:
            optimiser.step()
        return {name: value.detach() for name, value in losses.items()}

    def transfer_batch_to_device(self, batch: PatchBatch, device: torch.device, dataloader_idx: int) -> PatchBatch:
        rows = None if batch.rows is None else batch.rows.to(device)
        return PatchBatch([level.to(device) for level in batch.levels], rows, batch.step)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        discriminator = torch.optim.AdamW if config.discriminator_optimiser == "adamw" else torch.optim.Adam
        optimisers: list[torch.optim.Optimizer] = []
        if config.projector_depth:
            optimisers.append(
                torch.optim.Adam(
                    self.projector.parameters(), lr=config.projector_lr, weight_decay=config.projector_weight_decay
                )
            )
        if config.synthesis != "none":
            optimisers.append(
                discriminator(
                    self.discriminator.parameters(),
                    lr=config.discriminator_lr,
                    weight_decay=config.discriminator_weight_decay,
                )
            )
        return optimisers


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
    projected = (module.project(batch).float() for batch in batches.epoch(0))
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
    strides=(16,),
    level_width=384,
    width=384,
    hidden=256,
    anomaly_degree=0.3,
    scale="logit",
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
        "paper": PBASConfig(image_size=(256, 256), epochs=400, anomaly_degree=0.3, discriminator_optimiser="adam"),
        "fast": FAST,
    }

    def __init__(self, config: PBASConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.module = PBASModule(config, backbone.channels, seed)

    def stages(self) -> list[Stage]:
        def compute(data: TrainingData) -> dict[str, Tensor]:
            features = data.features()
            batches = PatchBatches(features, Sampling(self.config.batch_size), seed=self.seed, purpose="centre")
            return {"centers": initial_centers(self.module, batches, int(np.prod(features.grids[0])))}

        def accept(tensors: dict[str, Tensor]) -> None:
            self.module.centers = tensors["centers"]

        return [
            SinglePass("centre", compute, accept),
            LightningStage(
                "boundary",
                self.module,
                lambda data: PatchBatches(data.features(), self._sampling, seed=self.seed),
                self.config.epochs,
            ),
        ]

    @property
    def _sampling(self) -> Sampling:
        config = self.config
        return Sampling(config.batch_size, config.steps_per_epoch, config.patches_per_step)

    def network(self) -> Detector:
        module, config = self.module, self.config
        shared = self.backbone, module.embedding, module.projector
        if config.synthesis == "none":
            return NearestCenterDetector(*shared, module.centers, config.image_size, sigma=config.sigma)
        return PatchDetector(*shared, module.discriminator, config.image_size, sigma=config.sigma, scale=config.scale)
