"""What PBAS and GLASS share: settings, a fixed embedding, and projector and discriminator at every position."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import OddSide, PatchEmbedding, as_rows, resize
from flawsmith.models.base import AnomalyModel, AnomalyOutput, Side, TrainingModule
from flawsmith.models.components.batches import FeatureBatch, Sampling, Step
from flawsmith.models.components.fast import fold_linear, fold_norm, pointwise
from flawsmith.models.components.heads import LEAKY_SLOPE, Discriminator, Projector
from flawsmith.models.components.memory_bank import BankConfig
from flawsmith.models.components.score_maps import ScoreMap, ScoreMapModel, UpsampleAndSmooth

Rows = Float[Tensor, "position width"]
Scale = Literal["probability", "logit"]


class PatchConfig(BankConfig):
    """Settings of a method that learns from single positions; defaults are those of the authors' released code."""

    image_size: tuple[Side, Side] = Field((288, 288), description="(height, width) of the input in pixels.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "crop", description="The released code scales the shorter side and crops the centre."
    )
    patch_size: OddSide = Field(3, ge=1, description="Side p of the neighbourhood, odd.")
    level_width: int | None = Field(
        1536,
        ge=1,
        description="Width that each level is pooled to before the levels are joined; null: its channels, each "
        "averaged over its neighbourhood, as in the papers' text.",
    )
    width: int | None = Field(
        1536, ge=1, description="Width of the embedding; null: the sum of the levels' widths, C1 + C2 in the papers."
    )
    projector_depth: int = Field(1, ge=0, description="Linear layers of the feature adaptor; 0 leaves it out.")
    hidden: int | None = Field(1024, ge=1, description="Hidden width of the discriminator; null: 1/1.5 a layer.")
    projector_lr: float = Field(1e-4, gt=0, description="Adam's learning rate of the feature adaptor.")
    projector_weight_decay: float = Field(1e-5, ge=0, description="Adam's coupled weight decay of the adaptor.")
    discriminator_lr: float = Field(2e-4, gt=0, description="Learning rate of the discriminator.")
    discriminator_weight_decay: float = Field(0.01, ge=0, description="Weight decay of the discriminator.")
    discriminator_optimiser: Literal["adamw", "adam"] = Field("adamw", description="adam in the papers.")
    epochs: int = Field(640, ge=1, description="Epochs; one passes over the training images, or has a fixed length.")
    batch_size: int = Field(8, ge=1, description="Images a step, and a batch of a pass over the images.")
    steps_per_epoch: int | None = Field(None, ge=1, description="Fixed steps an epoch instead of a full pass.")
    most_steps_per_epoch: int | None = Field(
        None, ge=1, description="An epoch ends after so many steps at the latest (GLASS, released code: 50)."
    )
    patches_per_step: int | None = Field(None, ge=2, description="Positions drawn at random a step; null takes all.")
    scale: Scale = Field(
        "probability", description="What scores and maps mean; a logit ranks alike and never rounds to 1."
    )
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")
    score_norm: Literal["none", "position"] = Field(
        "none",
        description="position: scores count relative to those of the training images at the same position; in no "
        "paper.",
    )

    @property
    def sampling(self) -> Sampling:
        """How training batches are drawn."""
        return Sampling(
            self.batch_size,
            self.steps_per_epoch,
            self.patches_per_step,
            self.most_steps_per_epoch,
            level=self.finest_level,
        )

    @property
    def finest_level(self) -> int:
        """The number of the finest level that is embedded and learned from; a bank reads finer ones too."""
        return 0


class PatchModel(ScoreMapModel):
    """Projector and discriminator at every position of a fixed embedding; a method adds its losses.

    ``config.scale`` is what a score means: the discriminator's probability, as in the papers, or its logit. Both rank
    images alike, but a probability rounds to 1 in float32 from a logit of 17 on, above which no limit can be set.

    Args:
        depth: linear layers of the discriminator.
    """

    config: PatchConfig

    def __init__(self, config: PatchConfig, backbone: Backbone, seed: int = 0, *, depth: int = 2) -> None:
        super().__init__(config, backbone, seed, comparison=config.score_norm)
        self.embedding = PatchEmbedding(
            backbone.channels[config.finest_level :],
            patch_size=config.patch_size,
            level_width=config.level_width,
            width=config.width,
        )
        self.grid: tuple[int, int] = self.embedding.finest(backbone.grids(config.image_size))
        self.smooth = UpsampleAndSmooth(self.grid, config.image_size, sigma=config.sigma)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, f"{self.name} weights"))
            self.projector = Projector(self.embedding.width, config.projector_depth)
            self.discriminator = Discriminator(self.embedding.width, config.hidden, depth)

    @property
    def highest_score(self) -> float | None:
        bounded = self.config.scale == "probability" and not len(self.norms) and self.bank is None
        return 1.0 if bounded else None

    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        embedding = self.embedding(levels)
        logits = self.discriminator(self.projector(as_rows(embedding)))
        return [on_scale(logits, self.config.scale).reshape(-1, *embedding.shape[-2:])]

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        (low,) = self.score_maps(levels)
        return AnomalyOutput(self.smooth(low), low.amax(dim=(1, 2)))

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """The embedding, what the projector has learned to make of it, and what the discriminator decides by."""
        embedding = self.embedding(self.backbone(images))
        adapted = self.projector(as_rows(embedding))
        rows = {"adapted": adapted} if self.projector.layers else {}
        if self.trains_discriminator:
            rows["refined"] = self.discriminator.refined(adapted)
        shape = len(embedding), *embedding.shape[-2:], -1
        return {"embedding": embedding} | {name: row.reshape(shape).permute(0, 3, 1, 2) for name, row in rows.items()}

    def export_form(self) -> nn.Module:
        return FoldedPatchModel(self)

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch by name, ``loss`` their weighted sum; other figures are recorded beside them."""

    @property
    def trains_discriminator(self) -> bool:
        """Whether the settings leave the discriminator anything to learn."""
        return True

    def feature_batch(self, images: Float[Tensor, "batch 3 height width"] | FeatureBatch) -> FeatureBatch:
        """Images as the frozen backbone sees them; a batch of level maps is one already."""
        if isinstance(images, FeatureBatch):
            return images
        with torch.no_grad():
            return FeatureBatch(self.backbone(images))

    @torch.no_grad()
    def _embedded(self, levels: Sequence[Tensor], rows: Tensor | None = None) -> Rows:
        """The embedding, which is fixed, at all positions, or some rows of it."""
        embedding = as_rows(self.embedding(levels))
        return embedding if rows is None else embedding[rows]

    def project(self, levels: Sequence[Tensor], rows: Tensor | None = None) -> Rows:
        """Adapted features of all positions, or of some rows of the embedding."""
        if rows is not None:
            return self.projector(self._embedded(levels, rows))
        with torch.no_grad():
            parts = self.embedding.parts(levels)
        return self.projector.of_parts(parts, self.embedding.finest(levels).shape[-2:])

    def gaussian(self, like: Rows, purpose: str, step: Step | None) -> Rows:
        """Standard normal numbers: a function of (seed, purpose, step), or of torch's generator without a step.

        They are drawn on the device of the features, whose numbers are others than a CPU's: a million of them a step
        would take longer on their way than the step.
        """
        if step is None:
            return torch.randn_like(like)
        source = torch.Generator(like.device).manual_seed(derived_seed(self.seed, purpose, *step))
        return torch.randn(like.shape, generator=source, device=like.device)

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the projector, AdamW or Adam for the discriminator, whichever of them learns."""
        config = self.config
        optimizers: list[torch.optim.Optimizer] = []
        if config.projector_depth:
            optimizers.append(
                torch.optim.Adam(
                    self.projector.parameters(),
                    lr=config.projector_lr,
                    weight_decay=config.projector_weight_decay,
                    fused=True,
                )
            )
        if self.trains_discriminator:
            kind = torch.optim.AdamW if config.discriminator_optimiser == "adamw" else torch.optim.Adam
            optimizers.append(
                kind(
                    self.discriminator.parameters(),
                    lr=config.discriminator_lr,
                    weight_decay=config.discriminator_weight_decay,
                    fused=True,
                )
            )
        return optimizers

    def training_module(self) -> TrainingModule:
        """The LightningModule that trains this model, on batches of images or of level maps."""
        return TrainingModule(self, self.losses, self.make_optimizers)


def on_scale(logits: Tensor, scale: Scale) -> Tensor:
    """The discriminator's logits as what a score means."""
    return torch.sigmoid(logits) if scale == "probability" else logits


class FoldedPatchModel(nn.Module):
    """A patch model for inference, with all that is linear folded into one map, applied a level before up-sampling."""

    def __init__(self, model: PatchModel) -> None:
        super().__init__()
        self.backbone, self.norms, self.embedding = model.backbone, model.norms, model.embedding
        self.smooth, self.bank, self.scale = model.smooth, model.bank, model.config.scale
        first, *others = model.discriminator.blocks
        weight, bias = fold_norm(*fold_linear([*model.projector.layers, first.linear]), first.norm)
        # Resizing keeps constants, so the bias may go with the first level alone, where it costs no pass of its own.
        self.level_maps = nn.ModuleList(
            pointwise(weight[:, level.channels_out], bias if number == 0 else None)
            for number, level in enumerate(model.embedding.levels)
        )
        self.blocks = nn.ModuleList(pointwise(*fold_norm(*fold_linear([block.linear]), block.norm)) for block in others)
        self.out = pointwise(model.discriminator.out.weight.double())
        self.eval().requires_grad_(False)

    forward = AnomalyModel.forward

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """As :meth:`flawsmith.models.base.AnomalyModel.from_levels`."""
        grid = self.smooth.rows.shape[1], self.smooth.columns.shape[1]
        mapped = zip(self.embedding.parts(levels), self.level_maps, strict=True)
        finest, *coarser = [resize(linear(part), grid) for (_, part), linear in mapped]
        hidden = sum(coarser, start=finest)
        for block in self.blocks:
            hidden = block(F.leaky_relu(hidden, LEAKY_SLOPE))
        low = on_scale(self.out(F.leaky_relu(hidden, LEAKY_SLOPE)), self.scale)[:, 0]
        for norm in self.norms:
            low = norm(low)
        if self.bank is not None:
            low = low + resize(self.bank(levels)[:, None], low.shape[-2:])[:, 0]
        return AnomalyOutput(self.smooth(low), low.amax(dim=(1, 2)))
