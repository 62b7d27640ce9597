"""The contract that every method keeps: a configuration, stages to train, and a detector ready to export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from flawsmith.features.backbones import PACKAGED, Backbone
from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import Recipe


@dataclass(frozen=True)
class MetricChart:
    """Recorded figures over the epochs.

    Attributes:
        title: heading.
        caption: what is seen.
        y_label: name and unit of the vertical axis.
        metrics: the name of each line by the name under which the training step returns the figure.
    """

    title: str
    caption: str
    y_label: str
    metrics: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class FeatureCloud:
    """Samples of features in groups, to be looked at in two dimensions.

    Attributes:
        title: heading.
        caption: what is seen.
        groups: (samples, width) by name.
    """

    title: str
    caption: str
    groups: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in a row.

    Attributes:
        title: heading.
        caption: what is seen.
        pictures: label and (height, width[, 3]) uint8 picture.
        group: so many successive pictures belong together.
    """

    title: str
    caption: str
    pictures: Sequence[tuple[str, NDArray[np.uint8]]]
    group: int = 1


def synthetic_flaws(examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]) -> Pictures:
    """Synthetic flaws as training sees them: good image, mask and synthetic image of each."""
    labels = ("good image", "mask", "synthetic flaw")
    pictures = [pair for example in examples for pair in zip(labels, example, strict=True)]
    return Pictures("Synthetic flaws", "Good training images, masks, and what becomes of them.", pictures, group=3)


Diagnostic = MetricChart | FeatureCloud | Pictures


Side = Annotated[int, Field(ge=16, le=8192)]


class AnomalyOutput(NamedTuple):
    """What a detector says of a batch of images: higher is more anomalous."""

    map: Float[Tensor, "batch height width"]
    score: Float[Tensor, " batch"]


class MethodConfig(BaseModel):
    """Fields that every method has; methods add the numbers of their papers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    image_size: tuple[Side, Side] = Field((256, 256), description="(height, width) of the network's input in pixels.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "squash",
        description="How an image is fitted into image_size; a centre crop leaves the rest uninspected.",
    )
    resize: Side | None = Field(
        None,
        description="policy=crop alone: the shorter side in pixels before the cut; null: the larger of image_size. The "
        "released code of GLASS and PBAS takes 329 for two categories of MVTec AD.",
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="How an image is resized to image_size, antialiased."
    )
    strides: tuple[int, ...] = Field(
        (8, 16),
        description="Backbone levels by stride in pixels, finest first; 8 and 16 are layer2 and layer3 of a ResNet.",
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "32-true",
        description="Lightning's precision of the training steps; auto takes bf16-mixed where the hardware computes in "
        "bfloat16, and is recorded as what it took. Inspection has a precision of its own.",
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> MethodConfig:
        if self.resize is not None and self.policy != "crop":
            raise ValueError("resize has a meaning for policy=crop alone")
        if self.resize is not None and self.resize < max(self.image_size):
            raise ValueError(f"resize={self.resize} is smaller than image_size, {max(self.image_size)}")
        return self

    @property
    def synthesizes(self) -> bool:
        """Whether the method learns from flaws synthesized on good images, with textures and foregrounds."""
        return False

    @property
    def foreground_files(self) -> bool:
        """Whether foregrounds of good images are read from mask files."""
        return False

    @property
    def default_backbone(self) -> str:
        """The backbone where the user names none."""
        return PACKAGED

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone stays as it is; otherwise the method trains a copy of its own."""
        return True


class FeatureSource(Protocol):
    """Raw level maps of the training images, by row, as the frozen backbone gives them."""

    channels: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        """The level maps of some images, finest first: float32 (rows, channels, height, width) each."""
        ...


@dataclass(frozen=True)
class SyntheticImages:
    """Good images with synthetic flaws, as the frozen backbone sees them.

    Attributes:
        levels: level maps, finest first: float32 (images, channels, height, width) each.
        masks: where the flaws are, (images, height, width) bool at the network's input size.
        foregrounds: where flaws might have been, in the same form; everywhere for an image without a foreground.
        fell_back: images whose flaw lies beside the foreground, or that have none, because no mask was accepted.
        normal: level maps of the good images as the flaws were put on them, in the form of ``levels``; None where
            they are the training images as they are, whose features are cached.
        batch: images of the whole batch, where several processes synthesize it; None: these.
    """

    levels: list[Tensor]
    masks: Bool[np.ndarray, "images height width"]
    foregrounds: Bool[np.ndarray, "images height width"]
    fell_back: int = 0
    normal: list[Tensor] | None = None
    batch: int | None = None

    @property
    def share_fell_back(self) -> float:
        """Images that fell back as a share of the whole batch; over processes, the shares add up."""
        return self.fell_back / (len(self.masks) if self.batch is None else self.batch)


class SyntheticSource(Protocol):
    """Synthesizes flaws on training images, afresh every time; what it draws is a function of (seed, epoch, place)."""

    def batches(self, rows: Sequence[np.ndarray], epoch: int) -> Iterator[SyntheticImages]:
        """The synthetic images of every batch of an epoch, given the rows of the images to synthesize on.

        Processes that train together give the rows of all of them, and get their own share of every batch.
        """
        ...

    def examples(self, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Good image, mask and synthetic image of some flaws, as uint8 pictures."""
        ...


class TrainingData(Protocol):
    """The held-in good images and what can be made of them; every draw is a function of the seed."""

    seed: int
    image_size: tuple[int, int]
    dataset: str
    category: str

    def __len__(self) -> int: ...

    def features(self) -> FeatureSource:
        """Level maps of all training images from the frozen backbone, cached on disk."""
        ...

    def images(self, geometry: Geometry | None = None) -> Iterator[Float[np.ndarray, "3 height width"]]:
        """All training images, normalised, one at a time; in another geometry than the network's if asked."""
        ...

    def through(self, backbone: Backbone) -> TrainingData:
        """The same images through another frozen backbone, such as one that a stage has trained."""
        ...

    def synthetic(
        self, recipe: Recipe, foreground: Foreground, grid: tuple[int, int], *, match_grey: bool
    ) -> SyntheticSource:
        """Flaws synthesized on the training images.

        Args:
            recipe: how masks, textures and blending are drawn.
            foreground: where flaws may lie.
            grid: (h, w) of the finest level, on which a mask must leave a trace.
            match_grey: make textures grey where the image is.
        """
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

    def fit(self, name: str, module: pl.LightningModule, batches: EpochBatches, *, epochs: int, selects: bool) -> None:
        """Train a module for a fixed number of epochs, resuming from its last checkpoint where there is one.

        With ``selects`` the run may choose among its checkpoints by what the detector is worth.
        """
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
    """A stage that trains a LightningModule over batches that the module's own sampler draws.

    Attributes:
        name: of the stage.
        module: what is trained.
        batches: makes its batches of the training data.
        epochs: how long.
        completes: whether this stage completes the detector; only then can a checkpoint be chosen by it.
    """

    name: str
    module: pl.LightningModule
    batches: Callable[[TrainingData], EpochBatches]
    epochs: int
    completes: bool = True

    def fit(self, data: TrainingData, run: Run) -> None:
        run.fit(self.name, self.module, self.batches(data), epochs=self.epochs, selects=self.completes)


class Detector(nn.Module, ABC):
    """The trained thing: normalised images (batch, 3, height, width) to maps and scores."""

    @property
    def highest_score(self) -> float | None:
        """The largest image score there can be: a limit above it rejects nothing. None: there is no such number."""
        return None

    @property
    def continuous(self) -> bool:
        """Whether a difference in the last digit can only make a small difference of map and score.

        Where it cannot be relied on, as with a choice of nearest neighbours, trained and exported model are compared
        relative to the spread of held-out good scores.
        """
        return True

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput: ...

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """What the detector looks at on the way to its map, to be drawn: (batch, channel, h, w) by name, in order.

        Nothing where the backbone's levels, which anyone can compute, tell all.
        """
        return {}

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

    def findings(self) -> Mapping[str, str | float]:
        """What the method found out about the data while it trained; stored in the model file and shown."""
        return {}

    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        """What the method shows of its training beside its losses."""
        return ()
