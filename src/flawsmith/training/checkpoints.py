"""Lightning's checkpoints as safetensors: whole or not there, and nothing in them can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing

_STRUCTURE = "structure"
_PLAIN = (str, int, float, bool, type(None))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, structure: str = "{}") -> None:
    """Write tensors to a temporary name and rename; on failure an earlier file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(contiguous, metadata={_STRUCTURE: structure}))  # its own writer hides a full disk


def load_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a file written by ``save_tensors``, and the structure given then.

    Raises:
        FlawsmithError: when the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a handle is no mapping
            return tensors, (file.metadata() or {}).get(_STRUCTURE, "{}")
    except Exception as error:
        raise FlawsmithError(f"the checkpoint {path} is damaged ({error}): delete it and resume again") from error


class SafeCheckpointIO(CheckpointIO):
    """Keeps a checkpoint's tensors as safetensors and its structure as JSON in the same file's header."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(_describe(checkpoint, tensors))
        save_tensors(tensors, Path(path), structure)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        tensors, structure = load_tensors(Path(path))
        return _rebuild(json.loads(structure), tensors)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _describe(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON that stands for a nested value; its tensors go into ``tensors`` under running numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[_describe(key, tensors), _describe(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_describe(inner, tensors) for inner in value]}
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


def _rebuild(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {_rebuild(key, tensors): _rebuild(inner, tensors) for key, inner in content}
    rebuilt = [_rebuild(inner, tensors) for inner in content]
    return tuple(rebuilt) if kind == "tuple" else rebuilt
