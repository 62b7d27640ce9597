"""Gradient noise (Perlin) and the random masks cut from it, shared by every method that forges flaws.

Source: the generator of DRAEM, which GLASS, AAND and SLSG use as released.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXPONENTS = (0, 6)
"""Range [low, high) of the exponents e of the lattice resolutions 2^e: scales 1 to 32 (GLASS, AAND)."""

THRESHOLD = 0.5
"""Noise above this value belongs to the mask (GLASS, AAND, SLSG's texture branch)."""


def gradient_noise(shape: tuple[int, int], angles: NDArray[np.float64]) -> NDArray[np.float64]:
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
            rows, sin along columns). Leading axes are a batch.

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
    row_weights, row_offsets = _axis(height, points_down - 1)
    column_weights, column_offsets = _axis(width, points_across - 1)
    along_rows = row_offsets @ np.cos(angles) @ column_weights.T
    along_columns = row_weights @ np.sin(angles) @ column_offsets.T
    return math.sqrt(2) * (along_rows + along_columns)


def _axis(length: int, cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fade weights, and weights times offsets, of each pixel for each lattice point: two (length, cells +
    1)."""
    # Whole numbers until the last division, so that lattice points fall on pixels exactly.
    cell, remainder = np.divmod(np.arange(length) * cells, length)
    t = remainder / length
    fade = t * t * t * (t * (6 * t - 15) + 10)
    pixel = np.arange(length)
    weights = np.zeros((length, cells + 1))
    offsets = np.zeros((length, cells + 1))
    weights[pixel, cell], weights[pixel, cell + 1] = 1 - fade, fade
    offsets[pixel, cell], offsets[pixel, cell + 1] = (1 - fade) * t, fade * (t - 1)
    return weights, offsets


def perlin_noise(
    shape: tuple[int, int], rng: np.random.Generator, *, exponents: tuple[int, int] = EXPONENTS
) -> NDArray[np.float64]:
    """One noise field on a lattice of random resolution, drawn for rows and columns independently.

    Args:
        shape: (height, width) in pixels.
        rng: source of all draws.
        exponents: range [low, high) of e; the lattice has 2^e cells on an axis.

    Returns:
        (height, width) noise, about in [−1, 1].
    """
    rows, columns = (2**e for e in rng.integers(*exponents, size=2).tolist())
    return gradient_noise(shape, rng.uniform(0, 2 * math.pi, (rows + 1, columns + 1)))


def rotate(field: NDArray[np.float64], degrees: float) -> NDArray[np.float32]:
    """Turn a field clockwise about its centre: bilinear, zero outside, same size.

    Args:
        field: (height, width).
        degrees: angle, clockwise positive.
    """
    image = Image.fromarray(field.astype(np.float32))
    return np.asarray(image.rotate(-degrees, Image.Resampling.BILINEAR, fillcolor=0))


def perlin_mask(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    exponents: tuple[int, int] = EXPONENTS,
    threshold: float = THRESHOLD,
    max_rotation: float = 90.0,
) -> NDArray[np.bool_]:
    """One random mask: noise, turned by a random angle, above a threshold. It may be empty.

    Args:
        shape: (height, width) in pixels.
        rng: source of all draws.
        exponents: as in :func:`perlin_noise`.
        threshold: the least noise that belongs to the mask, in [−1, 1].
        max_rotation: the angle is uniform in ± this many degrees.

    Returns:
        (height, width), True inside.
    """
    noise = perlin_noise(shape, rng, exponents=exponents)
    return rotate(noise, rng.uniform(-max_rotation, max_rotation)) > threshold


def fractal_noise(
    shape: tuple[int, int], rng: np.random.Generator, *, cells: tuple[int, ...] = (4, 8, 16, 32)
) -> NDArray[np.float64]:
    """Octaves of gradient noise, each finer and half as strong as the last: clouds, stains, rough surfaces.

    Args:
        shape: (height, width) in pixels.
        rng: source of all draws.
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
