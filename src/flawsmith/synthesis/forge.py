"""A simple forger: one flaw on a good image, for model selection and for what calibration says about misses.

It is deliberately plain: a Perlin mask, a texture made from good images or from noise, and the blend all
    methods share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.seeding import generator
from flawsmith.synthesis.perlin import fractal_noise, perlin_mask

_MAX_TRIES = 12
_MIN_AREA = 2e-4
"""Least share of the image that a flaw covers; smaller ones say nothing about a model."""
_MIN_CHANGE = 4.0
"""Least mean absolute change inside the mask, in grey levels of 255; a flaw nobody can see is none."""
_OWN_TEXTURE = 0.5
"""Probability that the texture comes from good images; else it is noise."""

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def forge(image: Rgb, *, seed: int, index: int, sources: Sequence[Rgb] = ()) -> tuple[Rgb, Mask]:
    """Put one flaw on a good image.

    Mask and texture are drawn until the flaw is large and visible enough, at most 12 times. If none was (a
    tiny or a very uniform image), the fall-back is an ellipse near the middle, blended with the inverted
    image, or with white where inverting mid-grey would change nothing.

    Args:
        image: (height, width, 3) uint8.
        seed: with ``index`` the seed of all draws.
        index: number of the forged image.
        sources: good images, of any size, whose patches serve as texture beside those of ``image`` itself.

    Returns:
        The forged image, (height, width, 3) uint8, equal to ``image`` outside the mask; and the mask,
        (height, width) bool, never empty.

    Raises:
        ValueError: not an image of the stated form.

    Source:
        Blend: out = x(1−m) + m(w·x + (1−w)t) with the weight w of the image normal(0.5, 0.1) clipped to [0.2,
            0.8]
        (GLASS).
    """
    for picture in (image, *sources):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"expected a uint8 image (h, w, 3), not {picture.dtype} {picture.shape}")
    rng = generator(seed, "forge", index)
    shape = image.shape[:2]
    for _ in range(_MAX_TRIES):
        mask = perlin_mask(shape, rng)
        if np.count_nonzero(mask) < max(4, _MIN_AREA * mask.size):
            continue
        weight = float(np.clip(rng.normal(0.5, 0.1), 0.2, 0.8))
        forged = blend(image, draw_texture(image, sources, rng), mask, weight)
        if np.abs(forged[mask].astype(np.int16) - image[mask]).mean() >= _MIN_CHANGE:
            return forged, mask
    mask = _ellipse(shape, rng)
    inverted = 255 - image
    nearly_same = np.abs(inverted.astype(np.int16) - image) < 64
    return blend(image, np.where(nearly_same, np.uint8(255), inverted), mask, 0.5), mask


def blend(image: Rgb, texture: Rgb, mask: Mask, weight: float) -> Rgb:
    """out = x(1−m) + m(w·x + (1−w)t), rounded to uint8.

    Args:
        image: x, (height, width, 3) uint8.
        texture: t, the same shape.
        mask: m, (height, width) bool.
        weight: w in [0, 1], the weight of the image inside the mask.

    Returns:
        (height, width, 3) uint8; outside the mask the very values of ``image``.
    """
    out = image.copy()
    inside = weight * image[mask] + (1 - weight) * texture[mask].astype(np.float64)
    out[mask] = np.rint(inside).astype(np.uint8)
    return out


def draw_texture(image: Rgb, sources: Sequence[Rgb], rng: np.random.Generator) -> Rgb:
    """A texture of the image's size: shuffled patches of a good image or coloured noise, equally likely.

    It is grey where the image is: no camera that sees grey shows a coloured flaw.
    """
    if rng.random() < _OWN_TEXTURE:
        pool = (image, *sources)
        texture = _jitter(_patches(pool[rng.integers(len(pool))], image.shape[:2], rng), rng)
    else:
        texture = _noise_texture(image.shape[:2], rng)
    if (image == image[:, :, :1]).all():
        texture = np.repeat(np.rint(texture.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    return texture


def _patches(source: Rgb, shape: tuple[int, int], rng: np.random.Generator) -> Rgb:
    """Square patches from random places of a source, each turned by a random quarter, side by side."""
    height, width = shape
    side = max(4, min(shape) // int(rng.choice((2, 4, 8))))
    if min(source.shape[:2]) < side:
        source = np.asarray(Image.fromarray(source).resize((max(width, side), max(height, side))))
    down, across = -(-height // side), -(-width // side)
    number = down * across
    top = rng.integers(source.shape[0] - side + 1, size=number)
    left = rng.integers(source.shape[1] - side + 1, size=number)
    span = np.arange(side)
    patches = source[(top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :]]
    turns = rng.integers(4, size=number)
    for quarter in range(1, 4):
        patches[turns == quarter] = np.rot90(patches[turns == quarter], quarter, axes=(1, 2))
    sheet = patches.reshape(down, across, side, side, 3).swapaxes(1, 2).reshape(down * side, across * side, 3)
    return sheet[:height, :width]


def _jitter(texture: Rgb, rng: np.random.Generator) -> Rgb:
    """Another contrast, brightness and a slight tint, so that patches of the same material become visible."""
    gain = rng.uniform(0.6, 1.4)
    offset = rng.normal(0, 30) + rng.normal(0, 8, 3)
    mean = texture.mean(axis=(0, 1))
    return np.clip(np.rint((texture - mean) * gain + mean + offset), 0, 255).astype(np.uint8)


def _noise_texture(shape: tuple[int, int], rng: np.random.Generator) -> Rgb:
    """Fractal noise between two random colours."""
    low, high = rng.uniform(0, 255, (2, 3))
    mixture = fractal_noise(shape, rng)[:, :, None]
    return np.rint(low + mixture * (high - low)).astype(np.uint8)


def _ellipse(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """An ellipse around a pixel near the middle; always holds that pixel."""
    centre = [int(side * rng.uniform(0.3, 0.7)) for side in shape]
    radius = [max(1.0, side * rng.uniform(0.05, 0.15)) for side in shape]
    y, x = np.ogrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1
