"""Images to compare engines, devices and programs with, and by how much these may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from flawsmith.data.seeding import generator
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.image import ImageArray, decode

_FLOAT32_SHARE = 1e-4
_FLOAT32_MAP_SHARE = 1e-3
_SPREAD_SHARE = 0.1
"""Of the spread of good scores: what another machine may add in fewer bits. ONNX Runtime and OpenVINO, which round
otherwise at every layer, differed by 0.02 to 0.07 of it on four graphs of 8 bits (PatchCore of screw, 40 images)."""
GATE_SHARE = 0.25
"""Of the spread of good scores: what a device may differ by from the CPU, if it has limits of its own."""
_DRAWN = 3
_OF_FILES = 2
_MOST_PIXELS = 2**22
"""Of an image that becomes a test vector."""


def allowed_in_float32(bundle: Bundle) -> dict[str, float]:
    """What score and map may differ by between machines in float32: ``score_allowed``, ``map_allowed``.

    They hold for scores and maps up to ``size``; see `room_for`. A model file says what its own export allowed.
    """
    parity, good = bundle.spec.parity, np.abs(np.asarray(bundle.calibration.get("good", ()), np.float64))
    size = float(good.max()) if good.size else max(abs(bundle.spec.decision.deciding_limit), 1e-30)
    return {
        "score_allowed": parity.get("score_allowed", _FLOAT32_SHARE * size),
        "map_allowed": parity.get("map_allowed", _FLOAT32_MAP_SHARE * size),
        "size": parity.get("score_allowed", _FLOAT32_SHARE * size) / _FLOAT32_SHARE,
    }


def allowed_in_other_precision(good: ArrayLike) -> float:
    """What score and map may differ by between machines in fewer bits: a tenth of the spread of good scores.

    Args:
        good: (n,) their scores.
    """
    return _SPREAD_SHARE * spread(good)


def spread(good: ArrayLike) -> float:
    """From the 5th to the 95th percentile of scores; 0 of none.

    Example:
        >>> round(spread(range(101)), 6)
        90.0
    """
    values = np.asarray(good, np.float64)
    return float(np.ptp(np.quantile(values, [0.05, 0.95]))) if values.size else 0.0


def room_for(allowed: Mapping[str, float], score: float, anomaly_map: NDArray[np.float32]) -> tuple[float, float]:
    """What the score and the map of one image may differ by: what exceeds the size of scores is rounded the more.

    Args:
        allowed: as `allowed_in_float32` gives it.
    """
    largest = max(abs(score), float(np.abs(anomaly_map).max()))
    factor = max(1.0, largest / max(allowed["size"], 1e-30))
    return factor * allowed["score_allowed"], factor * allowed["map_allowed"]


def vector_images(bundle: Bundle, files: Sequence[Path] = (), flaws: Sequence[ImageArray] = ()) -> list[ImageArray]:
    """Images to compare engines and programs with: some of those given, else drawn ones that are always the same.

    Args:
        bundle: the model that sees them.
        files: good images.
        flaws: images with flaws.

    Returns:
        (height, width, 3) uint8 each, of other shapes than the network's input where they are drawn.
    """
    tiling = bundle.spec.tiling
    images = [image for image in (decode(file) for file in files[:_OF_FILES]) if image.dtype == np.uint8]
    images += list(flaws[:_OF_FILES]) if images else []
    images = [image if tiling is None else tiling.middle(image) for image in images]
    images = [image for image in images if image.shape[0] * image.shape[1] <= _MOST_PIXELS]
    return images or [_drawn(bundle, number) for number in range(_DRAWN)]


def _drawn(bundle: Bundle, number: int) -> ImageArray:
    """Smooth colours, fine grain and a bright bar."""
    height, width = bundle.spec.geometry.size
    size = ((height * 5) // 4 + 3, width + 7) if number % 2 else (height - height // 8, (width * 3) // 2 + 1)
    rng = generator(0, "test vector", number)
    coarse = Image.fromarray(rng.integers(60, 200, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.int16)
    image = np.clip(smooth + rng.integers(-12, 13, (*size, 3)), 0, 255).astype(np.uint8)
    image[size[0] // 3 : size[0] // 3 + 3, size[1] // 4 : size[1] // 2] = 250
    return image
