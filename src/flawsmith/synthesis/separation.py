"""Does a part stand out from the border of its image, and where is it?

The idea is Otsu's, on another quantity than grey: the distance of a pixel's colour to that of the image's border, in
units of the border's own spread, on a logarithmic scale. The border decides what is background, so a light part on a
dark mat and a dark part on a light one need no setting; the logarithm keeps a dark bottle with a white label in one
piece, where Otsu's level on grey would cut out the label; and the border's spread refuses textures, whose middle is no
stranger to their border than the border is to itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.synthesis.blend import FloatImage, Mask

Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""

SIGMA = 8.0
"""Gaussian in pixels of an image with a shorter side of 1024 (the released script of AAND: 8)."""

_RING = 0.04
"""Width of the border that counts as background, as a share of the shorter side."""
_LEAST_SPREAD = 0.07
"""Colour distance (of √3 between black and white) below which shadows and uneven light are not told from the mat."""
_LEAST_GAP = 1.2
"""Least distance between the means of the two classes, in e-folds. Measured on ten images each at 256 pixels: textures
of DTD and magnetic tiles reach 1.1 at most; screws, bottles, rendered brackets and gears 1.4 at least."""
_LEAST_SEPARABILITY = 0.7
"""Least share of the variance that lies between the two classes (Otsu's η)."""
_AREA = (0.01, 0.85)
"""A part smaller is taken for dirt, one larger leaves nothing to tell apart."""
_MOST_BORDER = 0.4
"""Largest share of the border that the part may cover."""
_FRAGMENT = 0.002
"""Islands, and holes, smaller than this share of the image are closed."""
_SAMPLE = 4_000
"""Border pixels of an image that vote on the background's colour; more decide nothing."""


def background_of(images: Sequence[FloatImage]) -> Colour:
    """The median colour of the borders of smoothed images, each (height, width, 3); sizes may differ.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("no image to find a background in")
    medians = np.array([np.median(_some(image[_ring(image)]), axis=0) for image in images])
    red, green, blue = np.median(medians, axis=0).tolist()
    return red, green, blue


def blurred(image: FloatImage, sigma: float) -> FloatImage:
    """A Gaussian whose width follows the image.

    Args:
        sigma: in pixels of an image with a shorter side of 1024.
    """
    scaled = sigma * min(image.shape[:2]) / 1024
    if scaled < 0.1:  # the kernel is a single pixel
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), scaled, borderType=cv2.BORDER_REPLICATE), np.float32)


def separate(image: FloatImage, background: Colour) -> tuple[Mask, str | None]:
    """Tell a part from its background, and say whether that can be trusted.

    Args:
        image: (height, width, 3) RGB in [0, 1], smoothed.
        background: of this image, or of the sample it belongs to.

    Returns:
        (height, width) the part, also where the evidence speaks against it; and why it should not be trusted, None
        where it may.
    """
    ring = _ring(image)
    border = _some(image[ring])
    # The light of this image: the half of its border that is nearest to the common colour.
    offset = np.linalg.norm(border - np.asarray(background, np.float32), axis=1)
    colour = border[offset <= np.median(offset)].mean(axis=0)
    spread = 2 * float(np.median(np.linalg.norm(border - colour, axis=1)))
    difference = image - colour
    distance = cv2.sqrt(np.einsum("ijk,ijk->ij", difference, difference))
    novelty = np.asarray(cv2.log(1 + distance / np.float32(max(spread, _LEAST_SPREAD))), np.float32)
    level, separability = otsu(novelty)
    above = novelty > level
    both = above.any() and not above.all()
    gap = float(novelty[above].mean() - novelty[~above].mean()) if both else 0.0
    mask = _tidied(above)
    return mask, _refusal(gap, separability, float(mask.mean()), float(mask[ring].mean()))


def otsu(values: NDArray[np.float32], bins: int = 256) -> tuple[float, float]:
    """Otsu's level and how well it separates.

    Args:
        values: any shape.
        bins: of the histogram between the extremes.

    Returns:
        The level, above which the upper class lies; and η, the variance between the classes over the whole
        variance, 0 for constant values.

    Source:
        N. Otsu, A threshold selection method from gray-level histograms, 1979: Eqs. 12 and 18.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return high, 0.0
    edges = np.linspace(low, high, bins + 1)
    number = np.minimum((values.ravel() - np.float32(low)) * np.float32(bins / (high - low)), bins - 1)
    share = np.bincount(number.astype(np.intp), minlength=bins) / values.size
    centres = (edges[1:] + edges[:-1]) / 2
    below, moment = np.cumsum(share)[:-1], np.cumsum(share * centres)
    mean = moment[-1]
    inside = below * (1 - below)
    # Two empty bins in a row give the same split twice; a class without members separates nothing.
    between = np.divide((mean * below - moment[:-1]) ** 2, inside, out=np.zeros(bins - 1), where=inside > 1e-12)
    best = int(between.argmax())
    total = float((share * (centres - mean) ** 2).sum())
    return float(edges[best + 1]), float(between[best] / total) if total > 0 else 0.0


def _refusal(gap: float, separability: float, area: float, border: float) -> str | None:
    low, high = _AREA
    if gap < _LEAST_GAP or separability < _LEAST_SEPARABILITY:
        return f"nothing stands out from the border (gap {gap:.2f}, separability {separability:.2f})"
    if not low <= area <= high:
        return f"what stands out covers {100 * area:.1f} % of the image"
    if border > _MOST_BORDER:
        return f"what stands out covers {100 * border:.0f} % of the border"
    return None


def _ring(image: FloatImage) -> Mask:
    """(height, width): the border, at least one pixel wide."""
    height, width = image.shape[:2]
    wide = max(1, round(_RING * min(height, width)))
    ring = np.ones((height, width), bool)
    ring[wide : height - wide, wide : width - wide] = False
    return ring


def _some(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 3): evenly spaced pixels of many."""
    return pixels[:: max(1, len(pixels) // _SAMPLE)]


def _tidied(mask: Mask) -> Mask:
    """Without islands and holes too small to matter."""
    least = _FRAGMENT * mask.size
    for inside in (True, False):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((mask == inside).astype(np.uint8))
        small = stats[:, cv2.CC_STAT_AREA] < least
        small[0] = False  # what is not inside
        if small.any():
            mask = np.where(small[labels], not inside, mask)
    return mask
