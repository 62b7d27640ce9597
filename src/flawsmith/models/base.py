"""What every method keeps: a configuration, a model that maps images to maps and scores, and stages to train it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from flawsmith.data.public_sets import known_dataset, plain
from flawsmith.data.seeding import Shard
from flawsmith.features.backbones import PACKAGED, Backbone, load_backbone
from flawsmith.models.diagnostics import Diagnostic
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import Recipe
from flawsmith.synthesis.views import View

ALONE = Shard()
_BACKBONE = "backbone."
LARGEST_FILE = 1_900_000_000
"""Bytes of a model file that is surely possible: an ONNX graph ends at 2 GiB."""
Side = Annotated[int, Field(ge=16, le=8192)]
_CROPPED = frozenset({("mvtec", "wood"), ("mvtec", "toothbrush")})
"""Categories that the released code of GLASS and PBAS enlarges before the cut."""


class AnomalyOutput(NamedTuple):
    """What a model says of a batch of images: higher is more anomalous.

    Attributes:
        map: a value a pixel of the network's input.
        score: a value an image.
    """

    map: Float[Tensor, "batch height width"]
    score: Float[Tensor, " batch"]


class ModelConfig(BaseModel):
    """Fields that every method has; methods add the numbers of their papers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    image_size: tuple[Side, Side] = Field((256, 256), description="(height, width) of the network's input in pixels.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "squash",
        description="How an image is fitted into image_size; a centre crop leaves the rest uninspected.",
    )
    resize: Side | Literal["published"] | None = Field(
        None,
        description="policy=crop alone: the shorter side in pixels before the cut; null: the larger of image_size; "
        "published: 329 for 288 pixels of wood and toothbrush of MVTec AD, as the released code of GLASS and PBAS has "
        "it, null for all others.",
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
    def _crop_fits(self) -> ModelConfig:
        if not isinstance(self.resize, int):
            return self
        if self.policy != "crop":
            raise ValueError("resize has a meaning for policy=crop alone")
        if self.resize < max(self.image_size):
            raise ValueError(f"resize={self.resize} is smaller than image_size, {max(self.image_size)}")
        return self

    @model_validator(mode="after")
    def _finest_first(self) -> ModelConfig:
        if not self.strides or min(self.strides) < 1 or list(self.strides) != sorted(self.strides):
            raise ValueError("strides needs a positive number for each level, finest first, such as [8,16]")
        return self

    @property
    def synthesizes(self) -> bool:
        """Whether the method learns from flaws synthesized on good images, with textures and foregrounds."""
        return False

    @property
    def foreground_files(self) -> bool:
        """Whether foregrounds of good images are read from mask files."""
        return False

    @classmethod
    def implied(cls, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that follow from changed ones where they are not changed themselves."""
        return {}

    def of_category(self, dataset: str, category: str) -> Self:
        """The settings with all that is published by category written out, as far as training needs it beforehand.

        Args:
            dataset: name of the data set or of its folder.
            category: name of the category.
        """
        if self.resize != "published":
            return self
        cropped = self.policy == "crop" and (known_dataset(dataset), plain(category)) in _CROPPED
        return self.model_copy(update={"resize": round(max(self.image_size) * 329 / 288) if cropped else None})

    @property
    def geometry(self) -> Geometry:
        """How an 8-bit image becomes the network's input, before a backbone says what normalises it."""
        resize = self.resize if isinstance(self.resize, int) else None
        return Geometry(policy=self.policy, size=self.image_size, resize=resize, interpolation=self.interpolation)

    @property
    def other_geometries(self) -> tuple[Geometry, ...]:
        """In which the method asks for images besides its own; they are made in the same decoding."""
        return ()

    @property
    def default_backbone(self) -> str:
        """The backbone where the user names none."""
        return PACKAGED

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone stays as it is; otherwise the method trains a copy of its own."""
        return True


@dataclass(frozen=True)
class Conditions:
    """What a preset's numbers go with. The defaults are ours; a published preset has those of its paper and code.

    Attributes:
        backbone: its name; None: the settings' default.
        textures: what flaws are synthesized from, where the settings synthesize any; ``dtd`` is a folder that the user
            has to name.
        holds_out: whether some good images are kept back to set the limit. Published methods learn from all.
        published: whether all of a published setting is meant, so that every change of it is named.

    Example:
        >>> Conditions().holds_out, PUBLISHED.holds_out, PUBLISHED.backbone
        (True, False, 'wide_resnet50_2.tv_in1k')
    """

    backbone: str | None = None
    textures: Literal["procedural", "dtd"] = "procedural"
    holds_out: bool = True
    published: bool = False


PUBLISHED = Conditions("wide_resnet50_2.tv_in1k", holds_out=False, published=True)
"""Conditions of the methods that synthesize no flaws from textures."""
WITH_DTD = replace(PUBLISHED, textures="dtd")
"""Conditions of those that draw their textures from DTD (Cimpoi et al., CVPR 2014)."""


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
        fallbacks: images whose flaw lies beside the foreground, or that have none, because no mask was accepted.
        normal: level maps of the good images as the flaws were put on them, in the form of ``levels``; None where
            they are the training images as they are, whose features are cached.
    """

    levels: list[Tensor]
    masks: Bool[np.ndarray, "images height width"]
    foregrounds: Bool[np.ndarray, "images height width"]
    fallbacks: int = 0
    normal: list[Tensor] | None = None

    @property
    def fallback_rate(self) -> float:
        """Share of the images that fell back, in [0, 1]."""
        return self.fallbacks / len(self.masks)


class SyntheticSource(Protocol):
    """Synthesizes flaws on training images, afresh every time; what it draws is a function of (seed, epoch, place)."""

    def batches(self, rows: Sequence[np.ndarray], epoch: int, shard: Shard = ALONE) -> Iterator[SyntheticImages]:
        """The synthetic images of a process's batches of an epoch.

        Args:
            rows: the images to synthesize on, of every batch of the epoch.
            epoch: from 0.
            shard: which of the batches are wanted.
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

    def views(self, views: Sequence[tuple[int, View]]) -> FeatureSource:
        """Level maps of training images seen otherwise, cached likewise.

        Args:
            views: which image, by row, and how it is seen; at least one.
        """
        ...

    def images(self, geometry: Geometry | None = None) -> Iterator[Float[np.ndarray, "3 height width"]]:
        """All training images, normalised, one at a time; in another geometry than the network's if asked."""
        ...

    def with_backbone(self, backbone: Backbone) -> TrainingData:
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

    def __len__(self) -> int:
        """Batches of an epoch, over all processes."""
        ...

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[Any]:
        """The batches that a process computes of an epoch: all of them where it trains alone."""
        ...


@dataclass(frozen=True)
class SinglePass:
    """A stage that learns in one pass over the data.

    Attributes:
        compute: leaves what it learns in the model's buffers.
    """

    name: str
    compute: Callable[[], object]


@dataclass(frozen=True)
class TrainingStage:
    """A stage that trains a LightningModule over batches that are functions of the epoch.

    Attributes:
        completes: whether the model inspects when this stage ends; only then can a checkpoint be chosen by it.
    """

    name: str
    module: pl.LightningModule
    batches: EpochBatches
    epochs: int
    completes: bool = True


Stage = SinglePass | TrainingStage


class AnomalyModel(nn.Module, ABC):
    """A method of anomaly detection: normalised images (batch, 3, height, width) to maps and scores.

    ``state_dict()`` is the whole trained model: what is learned without gradients (centres, memories, scales) lies in
    buffers. ``forward`` is the method's inference from the images to the smoothed map.

    Args:
        config: every number of the method.
        backbone: frozen feature extractor.
        seed: of the initial weights and of every draw.

    Attributes:
        name: by which the method is chosen.
        paper: authors, title, venue, year.
        licence: of the authors' released code; None where it states none.
        suits: when to choose it, in a few words.
        training_time: of preset ``fast`` on some hundred images and two CPU cores, in words.
        presets: ``paper`` (the text), ``official`` (the released code), ``fast`` (the default here).
        conditions: what the numbers of published presets go with, by the preset's name.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    suits: ClassVar[str] = ""
    training_time: ClassVar[str] = ""
    licence: ClassVar[str | None] = None
    Config: ClassVar[type[ModelConfig]]
    presets: ClassVar[Mapping[str, ModelConfig]]
    conditions: ClassVar[Mapping[str, Conditions]] = MappingProxyType({})

    def __init__(self, config: Any, backbone: Backbone, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.backbone = backbone
        self.register_load_state_dict_pre_hook(_adopt_shapes)  # type: ignore[no-untyped-call]

    @classmethod
    def from_preset(
        cls, preset: str = "fast", *, backbone: str | Backbone | None = None, seed: int = 0, **changes: Any
    ) -> Self:
        """A model as a preset has it.

        Args:
            preset: a name among ``presets``.
            backbone: a name or file as in :func:`flawsmith.features.backbones.load_backbone`, or a loaded backbone
                with the levels of ``strides``; None takes the preset's.
            seed: of the initial weights and of every draw.
            **changes: fields of ``Config`` that differ from the preset.

        Raises:
            FlawsmithError: no such preset or backbone.
            pydantic.ValidationError: no such field, or a value out of its range.
        """
        if preset not in cls.presets:
            raise FlawsmithError(f"{cls.name} has no preset called {preset!r}: choose {', '.join(cls.presets)}")
        config = cls.configure(preset, changes)
        if not isinstance(backbone, Backbone):
            published = cls.conditions_of(preset).backbone
            backbone = load_backbone(backbone or published or config.default_backbone, strides=config.strides)
        return cls(config, backbone, seed)

    @classmethod
    def configure(cls, preset: str, changes: Mapping[str, Any]) -> ModelConfig:
        """A preset's settings with changes, and with what follows from these.

        Raises:
            pydantic.ValidationError: no such field, or a value out of its range.
        """
        return cls.Config(**{**cls.presets[preset].model_dump(), **cls.Config.implied(changes), **changes})

    @classmethod
    def conditions_of(cls, preset: str) -> Conditions:
        """What a preset's numbers go with: ours, unless it is a published one."""
        return cls.conditions.get(preset, Conditions())

    @classmethod
    def trains(cls) -> bool:
        """Whether there is a loop over batches; a method without one counts or collects."""
        return "epochs" in cls.Config.model_fields

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        return self.from_levels(self.backbone(images))

    @abstractmethod
    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """Map and score from the backbone's level maps, finest first."""

    def learned_so_far(self) -> Self:
        """A copy on the CPU that inspects by what was trained until now, while training goes on."""
        return copy.deepcopy(self).cpu().eval()

    @abstractmethod
    def stages(self, data: TrainingData) -> Iterator[Stage]:
        """What to train, in order; a stage is asked for when the one before has been completed."""

    @property
    def geometry(self) -> Geometry:
        """How an 8-bit image becomes the model's input, with the mean and deviation that its backbone wants."""
        info = self.backbone.info
        return Geometry(**{**dict(self.config.geometry), "mean": info.mean, "std": info.std})

    @property
    def highest_score(self) -> float | None:
        """The largest image score there can be, above which a limit rejects nothing; None: there is no such number."""
        return None

    @property
    def continuous(self) -> bool:
        """Whether a difference in the last digit can only make a small difference of map and score.

        Where it cannot be relied on, as with a choice of nearest neighbours, trained and exported model are compared
        relative to the spread of held-out good scores.
        """
        return True

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """What the model looks at on the way to its map, to be drawn: (batch, channel, h, w) by name, in order.

        Nothing where the backbone's levels, which anyone can compute, tell all.
        """
        return {}

    def synthetic_features(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Mapping[str, Float[Tensor, "n channel"]]:
        """Anomalies that the method makes of the features of good images, a row each, by the name of a feature map."""
        return {}

    def training_flaws(self, data: TrainingData) -> SyntheticSource | None:
        """The flaws that the method learns from, drawn on training images; None where it learns from none."""
        return None

    def export_form(self) -> nn.Module:
        """An equal module with fewer operations, made for export; itself where there is nothing to simplify."""
        return self

    def findings(self) -> Mapping[str, str | float]:
        """What the model has found out about the data while it trained; stored in the model file and shown."""
        return {}

    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        """What the model shows of its training beside its losses."""
        return ()

    def start_epoch(self) -> None:
        """What has to happen before an epoch of training."""

    def trained_state(self) -> dict[str, Tensor]:
        """``state_dict()`` without the frozen backbone, which is known by its name and checksum."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_BACKBONE)}

    def load_trained_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a trained state, buffers of other sizes included.

        Raises:
            FlawsmithError: the state is another model's.
        """
        missing, unexpected = self.load_state_dict(dict(tensors), strict=False)
        foreign = [*unexpected, *(name for name in missing if not name.startswith(_BACKBONE))]
        if foreign:
            raise FlawsmithError(
                f"this state is of other settings or an earlier release of {self.name} ({foreign[0]} does not fit): "
                "train anew with another --out"
            )


def _adopt_shapes(model: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Give buffers the sizes that they have in a state: how many features a memory holds depends on the data."""
    for name, buffer in list(model.named_buffers()):
        stored = state.get(prefix + name)
        if stored is not None and stored.shape != buffer.shape:
            *path, leaf = name.split(".")
            setattr(model.get_submodule(".".join(path)), leaf, buffer.new_empty(stored.shape, dtype=stored.dtype))


class TrainingModule(pl.LightningModule):
    """Trains a model by losses and optimizers of its own; with several optimizers all step together.

    Args:
        model: what is trained; its frozen backbone stays out of checkpoints.
        losses: of a batch by name, ``loss`` their weighted sum; other figures are recorded beside them.
        optimizers: makes the optimizers.
        schedule: factor on all learning rates by the number of the epoch, from 0; None keeps them.
    """

    def __init__(
        self,
        model: AnomalyModel,
        losses: Callable[[Any], Mapping[str, Tensor]],
        optimizers: Callable[[], list[torch.optim.Optimizer]],
        *,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization, self.strict_loading = False, False
        self.model, self._losses, self._make_optimizers, self._schedule = model, losses, optimizers, schedule

    def configure_optimizers(self) -> Any:
        optimizers = self._make_optimizers()
        if self._schedule is None:
            return optimizers
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(each, self._schedule) for each in optimizers]

    def on_train_start(self) -> None:
        self.train()  # an earlier stage has left the model in evaluation mode

    def on_train_epoch_start(self) -> None:
        self.model.start_epoch()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        losses = self._losses(batch)
        optimizers = as_list(self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(losses["loss"])
        for optimizer in optimizers:
            optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def on_train_epoch_end(self) -> None:
        for schedule in as_list(self.lr_schedulers()):
            schedule.step()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state that training changes."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith(f"model.{_BACKBONE}")}


def as_list(value: Any) -> list[Any]:
    """Lightning gives one optimizer or schedule as itself, several as a list, none as None."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast inside, where training runs in a lower precision.

    Products of similarities that are compared, or enter a logarithm, need more than 8 bits.
    """
    if not torch.is_autocast_enabled(device.type):  # nothing to switch off, as when a graph is exported
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
