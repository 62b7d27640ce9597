"""Whether a model gives here the numbers that it gave where it was made: on small images that its file holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.bundle import SELF_TEST, Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import ImageArray
from flawsmith.runtime.inspector import Inspector

SELF_TEST_IMAGES = 2
"""Images that a model file holds for the test: each takes as many bytes as the network sees pixels, times three."""
_BOTH_MACHINES = 2.0
"""Either machine may differ from the trained model by the tolerance that the file states."""
_ROUNDING = 1e-4


def self_test_arrays(inspector: Inspector, images: Iterable[ImageArray]) -> dict[str, NDArray[Any]]:
    """What a model file has to hold for `self_test`: images at the size of the network's input, and their numbers.

    Args:
        inspector: the model, with the engine that its limits are made with.
        images: (height, width, 3) RGB, uint8 or uint16; the first few are taken.

    Returns:
        Arrays for `Bundle.calibration`: ``self_test_1``, ... (h, w, 3) uint8, and ``self_test`` (k, 2): score and
        mean of the map of each.
    """
    spec = inspector.spec
    arrays: dict[str, NDArray[Any]] = {}
    numbers: list[tuple[float, float]] = []
    for number, image in zip(range(1, SELF_TEST_IMAGES + 1), images, strict=False):
        tile = image if spec.tiling is None else spec.tiling.middle(image)
        pixels = spec.geometry.fit(tile)
        small = np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255), np.uint8)
        arrays[f"{SELF_TEST}_{number}"] = small
        numbers.append(_numbers(inspector, small))
    return {**arrays, SELF_TEST: np.array(numbers, np.float64)} if arrays else {}


def self_test(inspector: Inspector, bundle: Bundle) -> int:
    """Inspect the images that a model file holds for it, or a black one where it holds none, as older files do.

    Args:
        inspector: the model as it is going to work.
        bundle: its file.

    Returns:
        Number of images whose numbers were compared.

    Raises:
        FlawsmithError: a number differs from that of the machine that made the file by more than the file allows.
    """
    expected = bundle.calibration.get(SELF_TEST, np.zeros((0, 2)))
    if not len(expected):
        inspector.measure(np.zeros((*bundle.spec.geometry.size, 3), np.uint8))
    decision, parity = bundle.spec.decision, bundle.spec.parity
    limits = (decision.limit, "score"), (decision.map_limit, "map")
    for number, row in enumerate(expected, 1):
        values = _numbers(inspector, bundle.calibration[f"{SELF_TEST}_{number}"])
        for value, told, (limit, name) in zip(values, row.tolist(), limits, strict=True):
            size = max(abs(limit), float(np.finfo(np.float32).tiny))
            allowed = parity.get(f"{name}_allowed", _ROUNDING * size) * max(1.0, abs(told) / size) * _BOTH_MACHINES
            if not abs(value - told) <= allowed:
                raise FlawsmithError(
                    f"the model gives another {name} here than where it was made: {value:.6g}, not {told:.6g} (allowed "
                    f"is a difference of {allowed:.2g}); use the engine {bundle.spec.engine}, or export it anew"
                )
    return len(expected)


def _numbers(inspector: Inspector, image: NDArray[np.uint8]) -> tuple[float, float]:
    measured = inspector.measure(image)
    return measured.score, float(measured.map.mean())
