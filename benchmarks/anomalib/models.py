"""What can be run of anomalib, and with which settings; defaults are those of the package itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flawsmith.benchmark.experiment import WORD_TEXTURES, Experiment
from flawsmith.benchmark.plan import Plan, ResolvedExperiment
from flawsmith.features.backbones import PACKAGED
from flawsmith.pipeline.settings import in_words
from flawsmith.runtime.errors import FlawsmithError

Side = Annotated[int, Field(ge=32)]


class AnomalibConfig(BaseModel):
    """Fields that every model has; models add the arguments of their class."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    synthesizes: ClassVar[bool] = False

    image_size: tuple[Side, Side] = Field((256, 256), description="(height, width) of the network's input in pixels.")
    policy: Literal["squash", "crop", "letterbox"] = Field(
        "squash", description="How an image is fitted into image_size, by this package's own code."
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="How an image is resized to image_size, antialiased."
    )
    batch_size: int = Field(32, ge=1, description="Training images a step.")
    max_epochs: int | None = Field(None, ge=1, description="Epochs at most; none: as many as the package sets.")
    max_steps: int | None = Field(None, ge=1, description="Steps at most; none: as many as the epochs have.")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the model's class."""
        return self.model_dump(mode="json", exclude=set(BackboneConfig.model_fields))


class BackboneConfig(AnomalibConfig):
    """Fields of the models that stand on a backbone, which is given to them."""

    strides: tuple[int, ...] = Field(
        (8, 16),
        min_length=1,
        description="Levels by stride in pixels; 8 and 16 are layer2 and layer3 of a ResNet.",
    )


class PatchcoreConfig(BackboneConfig):
    """anomalib's Patchcore."""

    coreset_sampling_ratio: float = Field(0.1, gt=0, le=1, description="Share of the patches that is kept.")
    num_neighbors: int = Field(9, ge=1, description="Neighbours that weight the image score; 1: the largest distance.")


class PadimConfig(BackboneConfig):
    """anomalib's Padim."""

    strides: tuple[int, ...] = Field((4, 8, 16), min_length=1, description="Levels; layer1 to layer3 of a ResNet.")
    n_features: int = Field(
        100,
        ge=1,
        description="Channels drawn from all levels: the package's number for ResNet-18; WideResNet-50 has 550.",
    )


class GlassConfig(BackboneConfig):
    """anomalib's Glass. Epochs and batch size are those of its own results; its class sets none."""

    synthesizes: ClassVar[bool] = True

    image_size: tuple[Side, Side] = Field((288, 288), description="(height, width) of the network's input in pixels.")
    batch_size: int = Field(8, ge=1, description="Training images a step.")
    max_epochs: int | None = Field(100, ge=1, description="Epochs at most.")
    pretrain_embed_dim: int = Field(1536, ge=1, description="Width of a level's embedding.")
    target_embed_dim: int = Field(1536, ge=1, description="Width of the embedding of all levels.")
    patchsize: int = Field(3, ge=1, description="Side of the neighbourhood.")
    patchstride: int = Field(1, ge=1, description="Step between neighbourhoods.")
    pre_projection: int = Field(1, ge=0, description="Layers of the adaptor.")
    discriminator_layers: int = Field(2, ge=1, description="Layers of the discriminator.")
    discriminator_hidden: int = Field(1024, ge=1, description="Width of the discriminator.")
    learning_rate: float = Field(1e-4, gt=0, description="Of the adaptor; the discriminator has twice that.")
    step: int = Field(20, ge=0, description="Steps of gradient ascent.")
    svd: Literal[0, 1] = Field(0, description="Hypothesis: 0 manifold, 1 hypersphere.")
    gaussian_noise_std: float = Field(0.015, ge=0, description="Noise of the global anomalies.")
    radius_quantile: float = Field(0.75, ge=0, le=1, description="Quantile behind the radius of projection.")
    focal_loss_quantile_threshold: float = Field(0.5, ge=0, le=1, description="Share of easy positions left out.")
    mining: bool = Field(True, description="Whether there is gradient ascent.")


class EfficientAdConfig(AnomalibConfig):
    """anomalib's EfficientAd, with the paper's number of steps; its class sets none. It has a teacher of its own."""

    batch_size: Literal[1] = Field(1, description="Training images a step; the package takes no other.")
    max_steps: int | None = Field(70_000, ge=1, description="Steps at most.")
    imagenet_dir: str = Field("datasets/imagenette", description="Folder of natural images, in class folders.")
    teacher_out_channels: int = Field(384, ge=1, description="Channels of the teacher.")
    model_size: Literal["small", "medium"] = Field("small", description="EfficientAD-S or EfficientAD-M.")
    lr: float = Field(1e-4, gt=0, description="Learning rate.")
    weight_decay: float = Field(1e-5, ge=0, description="Weight decay.")
    padding: bool = Field(False, description="Padding of the convolutions.")
    pad_maps: bool = Field(True, description="Whether maps are padded where convolutions are not.")


MODELS: Mapping[str, type[AnomalibConfig]] = MappingProxyType(
    {"efficientad": EfficientAdConfig, "glass": GlassConfig, "padim": PadimConfig, "patchcore": PatchcoreConfig}
)
PREFIX = "anomalib-"
"""What the names of its models begin with in plans and tables."""


def model_name(experiment: Experiment) -> str:
    """The model's name without what tells that it is anomalib's."""
    return experiment.method.removeprefix(PREFIX)


def model_config(experiment: Experiment) -> AnomalibConfig:
    """All settings of a model.

    Raises:
        FlawsmithError: an unknown model or setting, a value out of range, or an option that anomalib has not.
    """
    known = [PREFIX + name for name in MODELS]
    if experiment.method not in known:
        raise FlawsmithError(unknown("model", experiment.method, known))
    kind = MODELS[model_name(experiment)]
    for name in experiment.set:
        if name not in kind.model_fields:
            raise FlawsmithError(unknown(f"setting of {experiment.method}", name, sorted(kind.model_fields)))
    for option, usual in (("select", "last"), ("engine", "onnxruntime"), ("precision", "float32")):
        value = getattr(experiment, option)
        if value != usual:
            raise FlawsmithError(f"{experiment.method} has no {option} {value}: the option is for Flawsmith's methods")
    try:
        return kind(**experiment.set)
    except ValidationError as error:
        raise in_words(error, f"{experiment.method}: ") from error


def unknown(noun: str, name: str, known: Sequence[str]) -> str:
    """The line for a name that is not known, with the closest that is."""
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {noun} is called {name!r}: {hint}known are {', '.join(known)}"


def resolve(experiment: Experiment, plan: Plan) -> ResolvedExperiment:
    """What an experiment with a model of anomalib comes to: it has no presets, and EfficientAD no backbone.

    Raises:
        FlawsmithError: as :func:`model_config`; or textures that are no folder.
    """
    config = model_config(experiment)
    if experiment.textures in ("self", "procedural"):
        raise FlawsmithError(f"{experiment.method} takes its textures from a folder alone, not {experiment.textures!r}")
    textures = experiment.textures or (None if plan.textures in WORD_TEXTURES else plan.textures)
    has_backbone = isinstance(config, BackboneConfig)
    changes = {
        "preset": "fast",  # as it is called where nothing was chosen
        "backbone": experiment.backbone if has_backbone else None,
        "textures": textures if config.synthesizes else None,
    }
    backbone = (experiment.backbone or PACKAGED) if has_backbone else None
    return ResolvedExperiment(experiment.model_copy(update=changes), config.model_dump(mode="json"), backbone)
