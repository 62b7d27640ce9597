"""Maps of the images behind a model's first limits, kept in its run folder: another region needs no image then."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.bundle import Bundle, read_arrays, write_arrays
from flawsmith.runtime.decision import LARGEST_SCORE, Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.runtime.image import MAX_PIXELS

MAPS = "held_out_maps.npz"
LARGEST_MAPS = 2**28
"""Bytes: of more images no maps are kept, and a new region needs the images again."""
_LONGEST_SIDE = 10**6


def levels_of(
    bundle: Bundle, setting: Decision, maps: NDArray[np.float32], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n, zones + 1) `Decision.zone_levels` of maps as the network gave them, as if the images were inspected again."""
    geometry = bundle.spec.geometry
    levels = []
    for network_map, (height, width) in zip(maps, sizes.tolist(), strict=True):
        inspected = geometry.valid_mask((height, width))
        not_inspected = None if inspected is None else ~inspected
        levels.append(setting.zone_levels(geometry.invert(network_map, (height, width)), not_inspected))
    return np.array(levels, np.float64)


def save_maps(
    folder: Path,
    model: bytes,
    scores: NDArray[np.float64],
    maps: NDArray[np.float32],
    sizes: NDArray[np.int64],
) -> None:
    """Write the maps beside a model; nothing where they are too many.

    Args:
        model: the ONNX graph that gave them.
        scores: (n,) image scores of the images behind the limits.
        maps: (n, h, w) as the network gave them.
        sizes: (n, 2) height and width of the images.

    Raises:
        FlawsmithError: the file cannot be written.
    """
    if maps.nbytes > LARGEST_MAPS:
        return
    digest = np.frombuffer(hashlib.sha256(model).digest(), np.uint8)
    content = write_arrays({"scores": scores, "maps": maps, "sizes": sizes, "model_sha256": digest})
    with replacing(folder / MAPS) as temporary:
        temporary.write_bytes(content)


def load_maps(bundle: Bundle) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]] | None:
    """Scores, maps and sizes that lie beside a model file; None where there are none of this model.

    Raises:
        FlawsmithError: they are damaged.
    """
    file = None if bundle.path is None else bundle.path.parent / MAPS
    if file is None or not file.is_file():
        return None
    try:
        arrays = read_arrays(file.read_bytes())
        same = arrays.pop("model_sha256").tobytes() == hashlib.sha256(bundle.model).digest()
        _check(**arrays, size=bundle.spec.geometry.size)
    except Exception as error:  # the readers of zip and arrays answer odd bytes with nearly every exception
        raise FlawsmithError(f"{file} is damaged: remove it, and give good images") from error
    return (arrays["scores"], arrays["maps"], arrays["sizes"]) if same else None


def _check(scores: NDArray[Any], maps: NDArray[Any], sizes: NDArray[Any], size: tuple[int, int]) -> None:
    """Raises:
    ValueError: arrays of other shapes, types or values than those of `save_maps`.
    """
    shapes = scores.shape, maps.shape, sizes.shape
    if scores.ndim != 1 or shapes != ((scores.size,), (scores.size, *size), (scores.size, 2)):
        raise ValueError("arrays of other shapes")
    if maps.dtype != np.float32 or sizes.dtype != np.int64:
        raise ValueError("arrays of other types")
    if not ((sizes >= 1) & (sizes <= _LONGEST_SIDE)).all() or (sizes.prod(axis=1) > MAX_PIXELS).any():
        raise ValueError("images of impossible sizes")
    if max(-maps.min(), maps.max()) > LARGEST_SCORE:
        raise ValueError("values beyond those of a score")
