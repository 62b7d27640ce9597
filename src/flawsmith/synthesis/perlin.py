"""Gradient noise (Perlin) and the random masks cut from it, shared by every method that synthesizes flaws.

Source: the generator of DRAEM, which GLASS, AAND and SLSG use as released.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

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
