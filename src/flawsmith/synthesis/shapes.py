"""Masks that are not cut from noise: rectangles, and shapes given as masks."""

from __future__ import annotations

import numpy as np

from flawsmith.synthesis.overlay import Mask
from flawsmith.synthesis.perlin import Field


def random_rectangle(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """An upright rectangle somewhere on an image.

    Height and width are independent and uniform, from one pixel to half of the image's (rounded up); then every place
    where it lies within the image is equally likely. On average it covers a sixteenth of the image, as much as the
    noise masks of SLSG's texture branch.

    Args:
        shape: (height, width) of the image in pixels.
        rng: source of all draws.

    Returns:
        (height, width), True inside; never empty.

    Source:
        SLSG, Table 5, "Rect. Noise"; the paper says nothing of sides and places.

    Example:
        >>> mask = random_rectangle((40, 60), np.random.default_rng(0))
        >>> bool(mask.any(axis=1).sum() * mask.any(axis=0).sum() == mask.sum())
        True
    """
    mask = np.zeros(shape, bool)
    spans = []
    for side in shape:
        length = int(rng.integers(1, -(-side // 2), endpoint=True))
        start = int(rng.integers(side - length, endpoint=True))
        spans.append(slice(start, start + length))
    mask[spans[0], spans[1]] = True
    return mask


def mask_field(mask: Mask) -> Field:
    """A mask as a field that is above every threshold inside and below every threshold outside.

    Args:
        mask: (height, width).

    Returns:
        (height, width) float32, ±∞.
    """
    return np.where(mask, np.float32(np.inf), np.float32(-np.inf))
