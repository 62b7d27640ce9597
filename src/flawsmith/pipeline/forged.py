"""Flaws forged on held-out good images: a yardstick that needs no flawed part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.samples import Sample
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode


def forged_images(samples: Sequence[Sample], geometry: Geometry, seed: int) -> Iterator[NDArray[np.uint8]]:
    """One forged flaw on every image, of mixed recipes and strengths: a function of the images and the seed.

    Args:
        samples: held-out good images, in the order that numbers their flaws.
        geometry: declares the range of sources deeper than 8 bits.
        seed: of all draws.

    Returns:
        (height, width, 3) uint8 each, in the size of the file.
    """
    # Evaluation imports this module for `to_8_bit` and works where the packages that forging needs are missing.
    from flawsmith.synthesis.held_out import held_out_flaws

    good = (to_8_bit(decode(sample.image), geometry) for sample in samples)
    return (flaw.image for flaw in held_out_flaws(good, seed))


def to_8_bit(image: NDArray[np.uint8] | NDArray[np.uint16], geometry: Geometry) -> NDArray[np.uint8]:
    """An image of a deeper source in 8 bits, by the range that the geometry declares."""
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    low, high = geometry.value_range or (0.0, 65535.0)
    scaled = (image.astype(np.float32) - low) * (255.0 / (high - low))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
