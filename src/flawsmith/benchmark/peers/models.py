"""What can be run of other packages, and with which settings; defaults are those of the package itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flawsmith.benchmark.cell import PEER_PRESET, Arm
from flawsmith.pipeline.settings import in_words
from flawsmith.runtime.errors import FlawsmithError

Side = Annotated[int, Field(ge=32)]


class PeerConfig(BaseModel):
    """Fields that every model of a peer has; models add the arguments of their class."""

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


class BackboneConfig(PeerConfig):
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


class EfficientAdConfig(PeerConfig):
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


@dataclass(frozen=True)
class Peer:
    """Another package.

    Attributes:
        models: settings of its models, by the name that follows the colon.
        runner: the script that runs them in its environment.
        install: what pip is asked for.
    """

    models: Mapping[str, type[PeerConfig]]
    runner: Path
    install: str


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "anomalib": Peer(
            models=MappingProxyType(
                {
                    "efficientad": EfficientAdConfig,
                    "glass": GlassConfig,
                    "padim": PadimConfig,
                    "patchcore": PatchcoreConfig,
                }
            ),
            runner=Path(__file__).with_name("anomalib_runner.py"),
            install="anomalib",
        )
    }
)


def peer_of(arm: Arm) -> Peer:
    """The package that a peer's arm is of.

    Raises:
        FlawsmithError: it is not known.
    """
    assert arm.peer is not None
    if arm.peer not in PEERS:
        raise FlawsmithError(f"there is no peer called {arm.peer!r} in {arm.method!r}: known are {', '.join(PEERS)}")
    return PEERS[arm.peer]


def peer_config(arm: Arm) -> PeerConfig:
    """All settings of a peer's arm.

    Raises:
        FlawsmithError: an unknown package, model or setting, a value out of range, or an option that it has not.
    """
    peer, model = peer_of(arm), model_name(arm)
    if model not in peer.models:
        close = get_close_matches(model, peer.models, 1)
        hint = f"did you mean '{arm.peer}:{close[0]}'? " if close else ""
        names = ", ".join(f"{arm.peer}:{name}" for name in peer.models)
        raise FlawsmithError(f"{arm.peer} has no model called {model!r} here: {hint}known are {names}")
    kind = peer.models[model]
    unknown = set(arm.set) - set(kind.model_fields)
    if unknown:
        name = min(unknown)
        close = get_close_matches(name, kind.model_fields, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(sorted(kind.model_fields))
        raise FlawsmithError(f"{arm.method} has no setting called {name!r}: {hint}known are {known}")
    _check_options(arm)
    try:
        return kind(**arm.set)
    except ValidationError as error:
        raise in_words(error, f"{arm.method}: ") from error


def plain_arm(arm: Arm, config: PeerConfig) -> Arm:
    """The arm without what it does not have: presets, and a backbone where the model has a teacher of its own."""
    backbone = arm.backbone if isinstance(config, BackboneConfig) else None
    return arm.model_copy(update={"preset": PEER_PRESET, "backbone": backbone})


def model_name(arm: Arm) -> str:
    """What follows the colon."""
    return arm.method.partition(":")[2]


def _check_options(arm: Arm) -> None:
    for field, usual in (("select", "last"), ("engine", "onnxruntime"), ("precision", "float32")):
        given = getattr(arm, field)
        if given != usual:
            raise FlawsmithError(f"{arm.method} has no {field} {given}: the option is for this package's own methods")
