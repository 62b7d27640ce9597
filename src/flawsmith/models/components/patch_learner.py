"""What PBAS and GLASS share: the embedding, the two networks on it, their optimisers and one training step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from flawsmith.data.seeding import derived_seed, generator
from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import PatchEmbedding, as_rows, join_parts
from flawsmith.models.base import FeatureSource, Side
from flawsmith.models.components.detectors import PatchDetector, Scale
from flawsmith.models.components.distributed import Part, part_of, share
from flawsmith.models.components.heads import Discriminator, Projector
from flawsmith.models.components.memory_bank import BankConfig


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn.

    Attributes:
        batch_size: images a batch.
        steps_per_epoch: batches an epoch; None makes one pass over all images.
        patches_per_step: positions drawn at random from a batch; None takes all.
        most_steps: a pass over all images ends after so many batches at the latest; None lets it end.
        level: the level whose positions are drawn.
    """

    batch_size: int
    steps_per_epoch: int | None = None
    patches_per_step: int | None = None
    most_steps: int | None = None
    level: int = 0


@dataclass(frozen=True)
class PatchBatch:
    """Level maps of some images and, where positions are drawn, the rows of the embedding to use.

    Attributes:
        levels: level maps, finest first.
        rows: of the embedding of these images; None takes all.
        step: (epoch, number of the step).
        images: which images of the batch these are, where several processes share it.
        positions: likewise, which of the batch's positions.
    """

    levels: list[Tensor]
    rows: Tensor | None
    step: tuple[int, int]
    images: Part | None = None
    positions: Part | None = None

    def to(self, device: torch.device) -> PatchBatch:
        """The same on a device."""
        rows = None if self.rows is None else self.rows.to(device)
        return replace(self, levels=[level.to(device) for level in self.levels], rows=rows)


class PatchBatches:
    """The batches of one stage; those of an epoch are a function of (seed, purpose, epoch).

    Processes that train together get their shares of the same batches.
    """

    def __init__(self, features: FeatureSource, sampling: Sampling, *, seed: int, purpose: str = "train") -> None:
        self._features, self._sampling, self._seed, self._purpose = features, sampling, seed, purpose

    def __len__(self) -> int:
        sampling = self._sampling
        whole = sampling.steps_per_epoch or -(-len(self._features) // sampling.batch_size)
        return whole if sampling.most_steps is None else min(whole, sampling.most_steps)

    def images(self, epoch: int) -> Iterator[np.ndarray]:
        """The images of every batch of an epoch, by row; those of all processes."""
        size, total = self._sampling.batch_size, len(self._features)
        rng = generator(self._seed, f"{self._purpose} order", epoch)
        passes = -(-len(self) * size // total)
        order = np.concatenate([rng.permutation(total) for _ in range(passes)])
        stop = len(self) * size if self._sampling.steps_per_epoch else min(total, len(self) * size)
        for start in range(0, stop, size):
            yield order[start : min(start + size, stop)]

    def epoch(self, epoch: int) -> Iterator[PatchBatch]:
        positions = int(np.prod(self._features.grids[self._sampling.level]))
        for step, images in enumerate(self.images(epoch)):
            rows, wanted = None, self._sampling.patches_per_step
            if wanted is not None and wanted < len(images) * positions:
                rng = generator(self._seed, f"{self._purpose} positions", epoch, step)
                rows = torch.from_numpy(rng.choice(len(images) * positions, wanted, replace=False))
            levels = self._features.batch(images[share(len(images))])
            whole = PatchBatch(levels, rows, (epoch, step), part_of(len(images)))
            yield whole if whole.images is None else _with_own_rows(whole, whole.images, positions)


def _with_own_rows(batch: PatchBatch, images: Part, positions: int) -> PatchBatch:
    """A batch whose rows are drawn from all images, with those of this process's images in their order."""
    assert isinstance(images.rows, slice)
    first, stop = images.rows.start * positions, images.rows.stop * positions
    if batch.rows is None:
        return replace(batch, positions=Part(slice(first, stop), images.count * positions))
    mine = ((batch.rows >= first) & (batch.rows < stop)).nonzero()[:, 0]
    return replace(batch, rows=batch.rows[mine] - first, positions=Part(mine, len(batch.rows)))


Rows = Float[Tensor, "position width"]


class PatchConfig(BankConfig):
    """Settings of a method that learns from single positions; defaults are those of the authors' released code."""

    image_size: tuple[Side, Side] = Field((288, 288), description="(height, width) of the input in pixels.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "crop", description="The released code scales the shorter side and crops the centre."
    )
    patch_size: int = Field(3, ge=1, description="Side p of the neighbourhood, odd.")
    level_width: int = Field(1536, ge=1, description="Width that each level is pooled to before the levels are joined.")
    width: int = Field(1536, ge=1, description="Width of the embedding.")
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

    @model_validator(mode="after")
    def _odd_neighbourhood(self) -> PatchConfig:
        if self.patch_size % 2 == 0:
            raise ValueError("patch_size must be odd")
        return self

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


class PatchLearner(pl.LightningModule):
    """Feature adaptor and discriminator over a fixed embedding; a method adds its losses.

    Args:
        config: the method's settings.
        channels: channels of the backbone's levels.
        seed: seed of the run, for weights and every draw of a step.
        depth: linear layers of the discriminator.
    """

    name: ClassVar[str]

    def __init__(self, config: PatchConfig, channels: Sequence[int], seed: int, *, depth: int = 2) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seed, self._patch_config = seed, config
        self.embedding = PatchEmbedding(
            channels[config.finest_level :],
            patch_size=config.patch_size,
            level_width=config.level_width,
            width=config.width,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, f"{self.name} weights"))
            self.projector = Projector(config.width, config.projector_depth)
            self.discriminator = Discriminator(config.width, config.hidden, depth)

    @abstractmethod
    def batch_losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch by name, ``loss`` their weighted sum; other figures are recorded beside them."""

    @property
    def trains_discriminator(self) -> bool:
        """Whether the method's settings leave the discriminator anything to learn."""
        return True

    def project(self, levels: Sequence[Tensor], rows: Tensor | None = None) -> Rows:
        """Adapted features of all positions, or of some rows of the embedding; the embedding itself is fixed."""
        grid = self.embedding.finest(levels).shape[-2:]
        with torch.no_grad():
            parts = self.embedding.parts(levels)
            drawn = None if rows is None else as_rows(join_parts(parts, grid))[rows]
        return self.projector.of_parts(parts, grid) if drawn is None else self.projector(drawn)

    def gaussian(self, like: Rows, purpose: str, step: tuple[int, int], part: Part | None) -> Rows:
        """Standard normal numbers for some rows, a function of (seed, purpose, step) and their places in the batch."""
        source = torch.Generator().manual_seed(derived_seed(self.seed, purpose, *step))
        shape = like.shape if part is None else (part.count, *like.shape[1:])
        drawn = torch.randn(shape, generator=source)
        return (drawn if part is None else drawn[part.rows]).to(like.device)

    def detector(self, backbone: Backbone) -> PatchDetector:
        """The networks as they are now, behind the frozen backbone."""
        config = self._patch_config
        return PatchDetector(
            backbone,
            self.embedding,
            self.projector,
            self.discriminator,
            config.image_size,
            sigma=config.sigma,
            scale=config.scale,
        )

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        losses = self.batch_losses(batch)
        found = self.optimizers()
        optimisers = found if isinstance(found, list) else [found]
        for optimiser in optimisers:
            optimiser.zero_grad()
        self.manual_backward(losses["loss"])
        for optimiser in optimisers:
            optimiser.step()
        return {name: value.detach() for name, value in losses.items()}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config = self._patch_config
        decoupled = config.discriminator_optimiser == "adamw"
        optimisers: list[torch.optim.Optimizer] = []
        if config.projector_depth:
            optimisers.append(
                torch.optim.Adam(
                    self.projector.parameters(), lr=config.projector_lr, weight_decay=config.projector_weight_decay
                )
            )
        if self.trains_discriminator:
            optimisers.append(
                (torch.optim.AdamW if decoupled else torch.optim.Adam)(
                    self.discriminator.parameters(),
                    lr=config.discriminator_lr,
                    weight_decay=config.discriminator_weight_decay,
                )
            )
        return optimisers
