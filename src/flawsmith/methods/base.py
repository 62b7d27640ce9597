"""The contract that every method keeps: a configuration, stages to train, and a detector ready to export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone

Preset = Literal["paper", "official", "fast"]


class AnomalyOutput(NamedTuple):
    """What a detector says of a batch of images: higher is more anomalous."""

    map: Float[Tensor, "batch height width"]
    score: Float[Tensor, " batch"]


class MethodConfig(BaseModel):
    """Fields that every method has; methods add the numbers of their papers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    image_size: tuple[int, int] = Field((256, 256), description="(height, width) of the network's input in pixels.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "squash",
        description="How an image is fitted into image_size; a centre crop leaves the rest uninspected.",
    )
    strides: tuple[int, ...] = Field(
        (8, 16),
        description="Backbone levels by stride in pixels, finest first; 8 and 16 are layer2 and layer3 of a ResNet.",
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true",
        description="Lightning's precision of the training steps; auto-selected bfloat16 is never used in inference.",
    )


class FeatureSource(Protocol):
    """Raw level maps of the training images, by row, as the frozen backbone gives them."""

    channels: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        """The level maps of some images, finest first: float32 (rows, channels, height, width) each."""
        ...


class TrainingData(Protocol):
    """The held-in good images and what can be made of them; every draw is a function of the seed."""

    seed: int
    image_size: tuple[int, int]

    def __len__(self) -> int: ...

    def features(self) -> FeatureSource:
        """Level maps of all training images from the frozen backbone, cached on disk."""
        ...


class EpochBatches(Protocol):
    """Batches that are a function of the epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[Any]: ...


class Run(Protocol):
    """Where a stage leaves what must survive a killed process, and the loop that trains modules."""

    def once(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that ``compute`` gives, computed at most once a run and kept in the run folder."""
        ...

    def fit(self, name: str, module: pl.LightningModule, batches: EpochBatches, *, epochs: int) -> None:
        """Train a module for a fixed number of epochs, resuming from its last checkpoint where there is one."""
        ...


class Stage(Protocol):
    """One step of training, in order; a loop over batches or a single pass over the data."""

    @property
    def name(self) -> str: ...

    def fit(self, data: TrainingData, run: Run) -> None: ...


@dataclass(frozen=True)
class SinglePass:
    """A stage that computes tensors in one pass over the data and hands them to the method."""

    name: str
    compute: Callable[[TrainingData], dict[str, Tensor]]
    accept: Callable[[dict[str, Tensor]], None]

    def fit(self, data: TrainingData, run: Run) -> None:
        self.accept(run.once(self.name, lambda: self.compute(data)))


@dataclass(frozen=True)
class LightningStage:
    """A stage that trains a LightningModule over batches that the module's own sampler draws."""

    name: str
    module: pl.LightningModule
    batches: Callable[[TrainingData], EpochBatches]
    epochs: int

    def fit(self, data: TrainingData, run: Run) -> None:
        run.fit(self.name, self.module, self.batches(data), epochs=self.epochs)


class Detector(nn.Module, ABC):
    """The trained thing: normalised images (batch, 3, height, width) to maps and scores."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput: ...

    def folded(self) -> Detector:
        """An equal detector with fewer operations, made for export; itself where there is nothing to fold."""
        return self


class Method(ABC):
    """A published method: built from its configuration, a frozen backbone and a seed."""

    name: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, MethodConfig]]

    @abstractmethod
    def __init__(self, config: Any, backbone: Backbone, seed: int) -> None: ...

    @abstractmethod
    def stages(self) -> list[Stage]:
        """What to train, in order."""

    @abstractmethod
    def network(self) -> Detector:
        """The trained detector, in evaluation mode."""
