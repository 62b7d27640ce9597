"""Gradient noise (Perlin), the masks cut from it or drawn instead, and when one counts as a flaw.

Source of the noise: the generator of DRAEM, which GLASS, AAND and SLSG use as released.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from flawsmith.synthesis.blend import Mask

EXPONENTS = (0, 6)
"""Range [low, high) of the exponents e of the lattice resolutions 2^e: scales 1 to 32 (GLASS, AAND)."""

THRESHOLD = 0.5
"""Noise above this value belongs to the mask (GLASS, AAND, SLSG's texture branch)."""

MAX_ROTATION = 90.0
"""The noise is turned by a uniform angle within ± this many degrees (GLASS, AAND, SLSG)."""

NoiseField = NDArray[np.float32]
"""(height, width) noise."""

Lattice = tuple[int, int]
"""Cells of the lattice along rows and columns."""

_Float = TypeVar("_Float", np.float32, np.float64)


def gradient_noise(shape: tuple[int, int], angles: NDArray[_Float]) -> NDArray[_Float]:
    """Perlin's gradient noise over a lattice of unit gradients.

    With t the position of a pixel between its two lattice points along an axis, each of the four corners
    contributes the dot product of its gradient and the offset to it, blended by the quintic fade 6t⁵ − 15t⁴ +
    10t³; the sum is multiplied by √2. Fade weights and offsets are separable, so the whole field is two small
    matrix products::

        noise = √2 (R' cos(angles) Cᵀ + R sin(angles) C'ᵀ)

    where R and C hold the fade weights of rows and columns and R', C' the same weights times the offsets.

    Args:
        shape: (height, width) in pixels; any size, not only multiples of the lattice.
        angles: (..., rows + 1, columns + 1) directions of the gradients in radians, gradient = (cos along
            rows, sin along columns). Leading axes are a batch. Their precision is that of the result.

    Returns:
        (..., height, width) noise, zero at lattice points, about in [−1, 1].

    Raises:
        ValueError: an empty shape, or fewer than two lattice points on an axis.

    Example:
        >>> gradient_noise((4, 6), np.zeros((3, 2, 2))).shape
        (3, 4, 6)
    """
    height, width = shape
    points_down, points_across = angles.shape[-2:]
    if min(height, width) < 1 or min(points_down, points_across) < 2:
        raise ValueError(f"no noise of shape {shape} on a lattice of {points_down} x {points_across} points")
    row_weights, row_offsets = _axis(height, points_down - 1, angles.dtype)
    column_weights, column_offsets = _axis(width, points_across - 1, angles.dtype)
    along_rows = row_offsets @ np.cos(angles) @ column_weights.T
    along_columns = row_weights @ np.sin(angles) @ column_offsets.T
    along_rows += along_columns
    along_rows *= math.sqrt(2)
    return along_rows


@lru_cache(maxsize=32)  # the twelve lattices of one image size, and of a second one
def _axis(length: int, cells: int, dtype: np.dtype) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fade weights, and weights times offsets, of each pixel for each lattice point: two (length, cells +
    1)."""
    # Whole numbers until the last division, so that lattice points fall on pixels exactly.
    cell, remainder = np.divmod(np.arange(length) * cells, length)
    t = remainder / length
    fade = t * t * t * (t * (6 * t - 15) + 10)
    pixel = np.arange(length)
    weights = np.zeros((length, cells + 1), dtype)
    offsets = np.zeros((length, cells + 1), dtype)
    weights[pixel, cell], weights[pixel, cell + 1] = 1 - fade, fade
    offsets[pixel, cell], offsets[pixel, cell + 1] = (1 - fade) * t, fade * (t - 1)
    weights.flags.writeable = offsets.flags.writeable = False
    return weights, offsets


def draw_lattice(rng: np.random.Generator, exponents: tuple[int, int] = EXPONENTS) -> Lattice:
    """A random lattice resolution, 2^e cells, drawn for rows and columns independently."""
    down, across = rng.integers(*exponents, size=2).tolist()
    return 2**down, 2**across


def rotate(field: NDArray[_Float], degrees: float) -> NDArray[_Float]:
    """Turn a field clockwise about ((width − 1) / 2, (height − 1) / 2): bilinear, zero outside, same size.

    The released code turns by the same OpenCV function in float64, where coordinates are rounded to 1/32 pixel;
    in float32 the interpolation is exact and the two differ by up to about 0.015.
    """
    height, width = field.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    turned = cv2.warpAffine(field, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return turned.reshape(height, width)  # type: ignore[return-value]


def noise_field(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    exponents: tuple[int, int] = EXPONENTS,
    lattice: Lattice | None = None,
    max_rotation: float = MAX_ROTATION,
) -> NoiseField:
    """One noise field, turned by a random angle: what masks are cut from.

    Args:
        shape: (height, width) in pixels.
        lattice: cells along rows and columns; None draws them.
        max_rotation: the angle is uniform in ± this many degrees.

    Returns:
        (height, width) float32, about in [−1, 1].
    """
    rows, columns = lattice or draw_lattice(rng, exponents)
    angles = rng.random((rows + 1, columns + 1), dtype=np.float32) * np.float32(2 * math.pi)
    noise = gradient_noise(shape, angles)
    return rotate(noise, rng.uniform(-max_rotation, max_rotation)) if max_rotation else noise


def fractal_noise(
    shape: tuple[int, int], rng: np.random.Generator, *, cells: tuple[int, ...] = (4, 8, 16, 32)
) -> NDArray[np.float64]:
    """Octaves of gradient noise, each finer and half as strong as the last: clouds, stains, rough surfaces.

    Args:
        shape: (height, width) in pixels.
        cells: lattice cells along the shorter side, one entry an octave.

    Returns:
        (height, width), scaled to [0, 1].
    """
    height, width = shape
    field = np.zeros(shape)
    for octave, count in enumerate(cells):
        rows, columns = (max(1, round(count * side / min(shape))) for side in (height, width))
        angles = rng.uniform(0, 2 * math.pi, (rows + 1, columns + 1))
        field += gradient_noise(shape, angles) / 2**octave
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, np.finfo(np.float64).tiny)


Box = tuple[float, float, float, float]
"""(top, left, bottom, right) as shares of the image's height and width."""


class MaskRule(BaseModel):
    """How a mask is cut from noise, before the foreground."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: Literal["noise", "rectangle"] = Field(
        "noise",
        description="noise: cut from it; rectangle: sides uniform up to half the image's, at a uniform place (SLSG, "
        "Table 5), with neither lattice nor rotation.",
    )

    exponents: tuple[NonNegativeInt, PositiveInt] = Field(
        EXPONENTS, description="Range [low, high) of e; the noise lattice has 2^e cells on an axis."
    )
    threshold: float = Field(THRESHOLD, ge=-1, le=1, description="Noise above it belongs to the mask.")
    max_rotation: float = Field(MAX_ROTATION, ge=0, le=180, description="The noise turns within ± this, degrees.")
    combination: Literal["single", "thirds"] = Field(
        "single",
        description="single: one noise mask; thirds: union, intersection or one of two, each with probability 1/3.",
    )
    box: Box | None = Field(
        None,
        description="Belongs to every mask: (top, left, bottom, right) as shares of the image (SLSG, breakfast box).",
    )

    @model_validator(mode="after")
    def _not_empty(self) -> MaskRule:
        if self.exponents[0] >= self.exponents[1]:
            raise ValueError(f"exponents {self.exponents}: the range [low, high) is empty")
        if self.box is not None and not (0 <= self.box[0] < self.box[2] <= 1 and 0 <= self.box[1] < self.box[3] <= 1):
            raise ValueError(f"the box {self.box} is empty or reaches beyond the image")
        return self

    def mask(self, draw: float, fields: Iterable[NoiseField]) -> Mask:
        """The mask of one attempt.

        Args:
            draw: u in [0, 1): above 2/3 the union, above 1/3 the intersection, else the first mask alone;
                without meaning for ``single``.
            fields: (height, width) noise, turned already, or what stands for it where the shape is another; the
                second is asked for only where it counts.

        Returns:
            (height, width), with the box.

        Source:
            GLASS, released code: the paper's thirds in another order, which makes no difference.
        """
        noise = iter(fields)
        mask: Mask = next(noise) > self.threshold
        if self.combination == "thirds" and draw > 1 / 3:
            second = next(noise) > self.threshold
            mask = mask | second if draw > 2 / 3 else mask & second
        if self.box is not None:
            height, width = mask.shape
            top, left, bottom, right = (
                round(share * side) for share, side in zip(self.box, (height, width) * 2, strict=True)
            )
            mask[top:bottom, left:right] = True
        return mask


class Acceptance(BaseModel):
    """When a mask counts as a flaw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_pixels: PositiveInt = Field(1, description="Least pixels of the mask (AAND: 5; SLSG: 49).")
    min_cells: NonNegativeInt = Field(
        0, description="Least cells of the pooled mask, where a grid is given (GLASS: 1)."
    )

    def holds(self, mask: Mask, cells: Mask | None) -> bool:
        """Whether a mask, with its pooled form where there is a grid, is enough."""
        enough = cells is None or int(np.count_nonzero(cells)) >= self.min_cells
        return enough and int(np.count_nonzero(mask)) >= self.min_pixels


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


def mask_field(mask: Mask) -> NoiseField:
    """A mask as a field that is above every threshold inside and below every threshold outside.

    Returns:
        (height, width) float32, ±∞.
    """
    return np.where(mask, np.float32(np.inf), np.float32(-np.inf))
