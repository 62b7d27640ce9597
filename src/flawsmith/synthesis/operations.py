"""Operations that make three textures out of one: the nine of GLASS, and the ten that AAND and SLSG share.

Everything is uint8 RGB in, uint8 RGB out, the same size, and every parameter comes from the generator passed in.
Pillow computes what the released pipelines compute with it; OpenCV steps in where Pillow is ten times slower (hue,
bilinear rotation).

Source: GLASS (ECCV 2024), released data pipeline: three different ones of nine, in random order. AAND and SLSG take
three of ten from DRAEM's list, as released there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Texture = NDArray[np.uint8]
"""(height, width, 3) RGB."""

Family = Literal["glass", "classic", "none"]
Operation = Callable[[Texture, np.random.Generator], Texture]

PER_TEXTURE = 3
"""Different operations applied to one texture."""


def augment(texture: Texture, rng: np.random.Generator, family: Family) -> Texture:
    """Apply three different operations of a family in random order.

    Args:
        texture: (height, width, 3) uint8 RGB; left as it is.
        rng: source of all draws.
        family: ``glass``, ``classic`` (AAND, SLSG) or ``none``.

    Returns:
        (height, width, 3) uint8, C-contiguous; ``texture`` itself for ``none``.

    Example:
        >>> augment(np.zeros((4, 6, 3), np.uint8), np.random.default_rng(0), "glass").shape
        (4, 6, 3)
    """
    operations = OPERATIONS[family]
    for name in draw_operations(rng, family):
        texture = operations[name](texture, rng)
    return np.ascontiguousarray(texture)


def draw_operations(rng: np.random.Generator, family: Family) -> tuple[str, ...]:
    """Names of three different operations in the order in which they apply; none for the family ``none``."""
    names = tuple(OPERATIONS[family])
    return tuple(names[number] for number in rng.permutation(len(names))[:PER_TEXTURE])


def contrast(texture: Texture, factor: float) -> Texture:
    """Distances from the mean grey level times a factor."""
    return _array(ImageEnhance.Contrast(Image.fromarray(texture)).enhance(factor))


def brightness(texture: Texture, factor: float) -> Texture:
    """Values times a factor."""
    return _array(ImageEnhance.Brightness(Image.fromarray(texture)).enhance(factor))


def saturation(texture: Texture, factor: float) -> Texture:
    """Distances from the pixel's own grey times a factor: 0 is grey, 1 the texture itself."""
    return _array(ImageEnhance.Color(Image.fromarray(texture)).enhance(factor))


def sharpness(texture: Texture, factor: float) -> Texture:
    """Distances from the smoothed texture times a factor: 0 is smooth, 1 the texture itself, 2 crisp."""
    return _array(ImageEnhance.Sharpness(Image.fromarray(texture)).enhance(factor))


def shift_hue_and_saturation(texture: Texture, hue: int, saturation: int) -> Texture:
    """Add to hue (a full turn is 256 steps, wraps around) and saturation (0..255, is clipped)."""
    planes = cv2.cvtColor(texture, cv2.COLOR_RGB2HSV_FULL)
    steps = np.arange(256)
    tables = np.stack([(steps + hue) % 256, np.clip(steps + saturation, 0, 255), steps], axis=1)
    return _uint8(cv2.cvtColor(cv2.LUT(planes, tables.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB_FULL))


def grey(texture: Texture) -> Texture:
    """Luma (0.299 R + 0.587 G + 0.114 B) in all three channels."""
    return _array(Image.fromarray(texture).convert("L").convert("RGB"))


def autocontrast(texture: Texture, cutoff: int = 0) -> Texture:
    """Stretch each channel to 0..255, ignoring ``cutoff`` percent of its values at either end."""
    return _array(ImageOps.autocontrast(Image.fromarray(texture), cutoff=cutoff))


def equalize(texture: Texture) -> Texture:
    """Equalise the histogram of each channel."""
    return _array(ImageOps.equalize(Image.fromarray(texture)))


def rotate_nearest(texture: Texture, degrees: float) -> Texture:
    """Turn counter-clockwise about the centre, nearest neighbour, black corners."""
    return _array(Image.fromarray(texture).rotate(degrees, Image.Resampling.NEAREST, fillcolor=(0, 0, 0)))


def rotate_bilinear(texture: Texture, degrees: float) -> Texture:
    """Turn clockwise about the centre, bilinear, black corners."""
    height, width = texture.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    return _uint8(cv2.warpAffine(texture, turn, (width, height), flags=cv2.INTER_LINEAR))


def gamma_contrast(texture: Texture, exponents: NDArray[np.float64]) -> Texture:
    """255 (v / 255)^γ with one exponent γ a channel, (3,)."""
    tables = np.rint(255 * (np.arange(256)[:, None] / 255) ** exponents)
    return _uint8(cv2.LUT(texture, tables.astype(np.uint8)[None]))


def change_brightness(texture: Texture, factor: float, offset: float, *, multiply_first: bool) -> Texture:
    """Luma times a factor and plus an offset, in either order; the colour differences stay."""
    luma = np.arange(256)
    wanted = factor * luma + offset if multiply_first else factor * (luma + offset)
    change = (np.clip(np.rint(wanted), 0, 255) - luma).astype(np.int16)
    changes = change[cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)]
    return np.clip(texture + changes[:, :, None], 0, 255).astype(np.uint8)


def solarize(texture: Texture, threshold: int) -> Texture:
    """Invert the values at or above a threshold."""
    return _array(ImageOps.solarize(Image.fromarray(texture), threshold))


def posterize(texture: Texture, bits: int) -> Texture:
    """Keep the upper 1 to 8 bits of each value."""
    return texture & np.uint8(0xFF << (8 - bits) & 0xFF)


def invert(texture: Texture) -> Texture:
    """255 − v."""
    return 255 - texture


def _array(picture: Image.Image) -> Texture:
    return np.array(picture)


def _uint8(array: NDArray[np.generic]) -> Texture:
    return array.astype(np.uint8, copy=False)


def _saturation_and_hue(texture: Texture, rng: np.random.Generator) -> Texture:
    factor, hue = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
    # torchvision's colour jitter shuffles its parts, and takes hue in turns at 255 steps a turn, truncated.
    saturate_first = rng.random() < 0.5
    if saturate_first:
        texture = saturation(texture, factor)
    texture = shift_hue_and_saturation(texture, int(hue * 255), 0)
    return texture if saturate_first else saturation(texture, factor)


def _brightness_of_classic(texture: Texture, rng: np.random.Generator) -> Texture:
    factor, offset = rng.uniform(0.8, 1.2), rng.uniform(-30, 30)
    return change_brightness(texture, factor, offset, multiply_first=rng.random() < 0.5)


def _shift_of_classic(texture: Texture, rng: np.random.Generator) -> Texture:
    hue, saturation_ = rng.integers(-50, 50, size=2, endpoint=True).tolist()
    return shift_hue_and_saturation(texture, hue, saturation_)


def _solarize_of_classic(texture: Texture, rng: np.random.Generator) -> Texture:
    threshold = int(rng.integers(32, 128, endpoint=True))
    return solarize(texture, threshold) if rng.random() < 0.5 else texture


OPERATIONS: Mapping[Family, Mapping[str, Operation]] = {
    "glass": {
        "contrast": lambda texture, rng: contrast(texture, rng.uniform(0.8, 1.2)),
        "brightness": lambda texture, rng: brightness(texture, rng.uniform(0.8, 1.2)),
        "saturation and hue": _saturation_and_hue,
        "horizontal flip": lambda texture, _: texture[:, ::-1],
        "vertical flip": lambda texture, _: texture[::-1],
        "grey": lambda texture, _: grey(texture),
        "autocontrast": lambda texture, _: autocontrast(texture),
        "equalize": lambda texture, _: equalize(texture),
        "rotation": lambda texture, rng: rotate_nearest(texture, rng.uniform(-45, 45)),
    },
    "classic": {
        "gamma contrast": lambda texture, rng: gamma_contrast(texture, rng.uniform(0.5, 2.0, 3)),
        "brightness": _brightness_of_classic,
        "sharpness": lambda texture, rng: sharpness(texture, rng.uniform(0.0, 2.0)),
        "hue and saturation": _shift_of_classic,
        "solarize": _solarize_of_classic,
        "posterize": lambda texture, rng: posterize(texture, int(rng.integers(1, 8, endpoint=True))),
        "invert": lambda texture, _: invert(texture),
        "autocontrast": lambda texture, rng: autocontrast(texture, int(rng.integers(0, 20, endpoint=True))),
        "equalize": lambda texture, _: equalize(texture),
        "rotation": lambda texture, rng: rotate_bilinear(texture, rng.uniform(-45, 45)),
    },
    "none": {},
}
"""The operations of each family by name, with the parameter ranges of the released code.

Where ``classic`` has ranges that the papers leave out, they are the defaults of the library that the released code
calls: sharpness 0 to 2, posterising to 1 to 8 bits, autocontrast cutting 0 to 20 percent.
"""
