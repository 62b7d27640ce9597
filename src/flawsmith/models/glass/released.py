"""Weights as the authors of GLASS release them: the feature adaptor and the discriminator of a category.

A released checkpoint is a table ``{"pre_projection": ..., "discriminator": ...}`` of tensors by name, saved by torch.
The backbone is not in it: torchvision's WideResNet-50 as ImageNet's first weights have it. Nor are settings: they are
those of the released scripts, preset ``official``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flawsmith.features.backbones import Backbone, first_line, load_backbone
from flawsmith.models.glass.config import PRESETS, GLASSConfig
from flawsmith.models.glass.model import GLASS
from flawsmith.runtime.errors import FlawsmithError

RELEASED_BACKBONE = "wide_resnet50_2.tv_in1k"
_PROJECTOR, _DISCRIMINATOR = "pre_projection", "discriminator"
_LAYERS = {"0": "linear", "1": "norm"}


def read_released(path: Path) -> dict[str, dict[str, Tensor]]:
    """The two tables of a released checkpoint; a file that would run code on loading is refused.

    Raises:
        FlawsmithError: it cannot be read, or is no such checkpoint.
    """
    if not path.is_file():
        raise FlawsmithError(f"no checkpoint at {path}: give the authors' ckpt_best_NUMBER.pth of a category")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FlawsmithError(
            f"{path} is no file of tensors ({first_line(error)}): give the authors' ckpt_best_NUMBER.pth"
        ) from None
    if not isinstance(content, dict) or _DISCRIMINATOR not in content:
        raise FlawsmithError(f"{path} has no table {_DISCRIMINATOR!r}: it is no released checkpoint of GLASS")
    return {name: dict(content[name]) for name in (_PROJECTOR, _DISCRIMINATOR) if name in content}


def load_released(path: str | Path, *, backbone: str | Backbone | None = None, **changes: Any) -> GLASS:
    """GLASS with the authors' weights of a category, in evaluation mode.

    Args:
        path: their checkpoint.
        backbone: a name or file as in :func:`flawsmith.features.backbones.load_backbone`, or a loaded backbone with the
            levels of stride 8 and 16; by default the one that they use.
        **changes: fields of the configuration that differ from preset ``official``, such as ``resize``.

    Raises:
        FlawsmithError: the file is no such checkpoint, its tensors do not fit, or the backbone cannot be had.
    """
    file = Path(path)
    tables = read_released(file)
    projector = _renamed(tables.get(_PROJECTOR, {}), r"layers\.(\d+)fc\.(\w+)", r"\1.\2")
    sizes = _sizes(tables[_DISCRIMINATOR], file)
    # Which categories are enlarged before the cut depends on the data, which is not known here.
    official = {**PRESETS["official"].model_dump(), "resize": None}
    config = GLASSConfig(**{**official, "projector_depth": len(projector) // 2, **sizes, **changes})
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone or RELEASED_BACKBONE, strides=config.strides)
    model = GLASS(config, backbone)
    discriminator = _renamed(tables[_DISCRIMINATOR], r"tail\.0\.(\w+)", r"out.\1")
    discriminator = {_block_name(name): tensor for name, tensor in discriminator.items()}
    try:
        model.projector.load_state_dict(projector)
        model.discriminator.load_state_dict(discriminator)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FlawsmithError(f"{file} does not fit GLASS with one hidden layer: {reason[:300]}") from None
    return model.eval()


def _sizes(discriminator: dict[str, Tensor], file: Path) -> dict[str, int]:
    """Width of the embedding and of the hidden layer.

    Raises:
        FlawsmithError: the discriminator's first layer is missing.
    """
    first = discriminator.get("body.block1.0.weight")
    if first is None or first.ndim != 2:
        raise FlawsmithError(f"{file} has no first layer body.block1.0.weight: it is no released checkpoint of GLASS")
    return {"hidden": int(first.shape[0]), "width": int(first.shape[1]), "level_width": int(first.shape[1])}


def _renamed(table: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {re.sub(f"^{theirs}$", ours, name): tensor for name, tensor in table.items()}


def _block_name(name: str) -> str:
    """The name of a tensor of a hidden block here.

    Example:
        >>> _block_name("body.block1.1.running_mean")
        '_blocks.0.norm.running_mean'
    """
    parts = re.match(r"^body\.block(\d+)\.([01])\.(\w+)$", name)
    return name if parts is None else f"_blocks.{int(parts[1]) - 1}.{_LAYERS[parts[2]]}.{parts[3]}"
