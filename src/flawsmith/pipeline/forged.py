"""Flaws forged on held-out good images: a yardstick that needs no flawed part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.samples import Sample
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.synthesis.held_out import held_out_flaws


def forged_images(samples: Sequence[Sample], geometry: Geometry, seed: int) -> Iterator[NDArray[np.uint8]]:
    """One forged flaw on every image, of mixed recipes and strengths: a function of the images and the seed.

    Args:
        samples: held-out good images, in the order that numbers their flaws.
        geometry: declares the range of sources deeper than 8 bits.
        seed: of all draws.

    Returns:
        (height, width, 3) uint8 each, in the size of the file.
    """
    good = (as_8_bit(decode(sample.image), geometry.value_range) for sample in samples)
    return (flaw.image for flaw in held_out_flaws(good, seed))
