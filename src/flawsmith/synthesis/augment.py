"""Operations that make three textures out of one: the nine of GLASS, and the ten that AAND and SLSG share.

Everything is uint8 RGB in, uint8 RGB out, the same size, and every parameter comes from the generator passed in.
Pillow computes what the released pipelines compute with it; OpenCV computes what they compute with that.

Source: GLASS (ECCV 2024), released data pipeline: three different ones of nine, in random order. AAND and SLSG take
three of ten from DRAEM's list, as released there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from flawsmith.synthesis.blend import FloatImage, blurred

Texture = NDArray[np.uint8]
"""(height, width, 3) RGB."""

Family = Literal["glass", "glass-official", "classic", "none"]
Operation = Callable[[Texture, np.random.Generator], Texture]

PER_TEXTURE = 3
"""Different operations applied to one texture."""


def augment(texture: Texture, rng: np.random.Generator, family: Family) -> Texture:
    """Apply three different operations of a family in random order.

    Args:
        texture: (height, width, 3) uint8 RGB; left as it is.
        rng: source of all draws.
        family: ``glass-official``, ``glass`` (the same with a faster hue), ``classic`` (AAND, SLSG) or ``none``.

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


def shift_hue(texture: Texture, hue: int) -> Texture:
    """Add to hue (a full turn is 256 steps, wraps around), as Pillow's HSV has it.

    Pillow rounds otherwise than OpenCV and takes ten times as long: of 20 pictures of DTD 22 % of the values differ, by
    12 grey levels at most.

    Example:
        >>> shift_hue(np.full((1, 1, 3), (200, 100, 100), np.uint8), 85)[0, 0].tolist()
        [100, 200, 100]
    """
    angle, *others = Image.fromarray(texture).convert("HSV").split()
    turned = Image.fromarray(np.asarray(angle) + np.uint8(hue % 256))
    return _array(Image.merge("HSV", (turned, *others)).convert("RGB"))


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
    target = factor * luma + offset if multiply_first else factor * (luma + offset)
    change = (np.clip(np.rint(target), 0, 255) - luma).astype(np.int16)
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


def _saturation_and_hue(
    texture: Texture, rng: np.random.Generator, shift: Callable[[Texture, int], Texture] = shift_hue
) -> Texture:
    factor, hue = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
    # torchvision's colour jitter shuffles its parts, and takes hue in turns at 255 steps a turn, truncated.
    saturate_first = rng.random() < 0.5
    if saturate_first:
        texture = saturation(texture, factor)
    texture = shift(texture, int(hue * 255))
    return texture if saturate_first else saturation(texture, factor)


def _saturation_and_fast_hue(texture: Texture, rng: np.random.Generator) -> Texture:
    return _saturation_and_hue(texture, rng, lambda saturated, hue: shift_hue_and_saturation(saturated, hue, 0))


def _brightness_of_classic(texture: Texture, rng: np.random.Generator) -> Texture:
    factor, offset = rng.uniform(0.8, 1.2), rng.uniform(-30, 30)
    return change_brightness(texture, factor, offset, multiply_first=rng.random() < 0.5)


def _shift_of_classic(texture: Texture, rng: np.random.Generator) -> Texture:
    hue, saturation_ = rng.integers(-50, 50, size=2, endpoint=True).tolist()
    return shift_hue_and_saturation(texture, hue, saturation_)


def _solarize_of_classic(texture: Texture, rng: np.random.Generator) -> Texture:
    threshold = int(rng.integers(32, 128, endpoint=True))
    return solarize(texture, threshold) if rng.random() < 0.5 else texture


_GLASS: Mapping[str, Operation] = {
    "contrast": lambda texture, rng: contrast(texture, rng.uniform(0.8, 1.2)),
    "brightness": lambda texture, rng: brightness(texture, rng.uniform(0.8, 1.2)),
    "saturation and hue": _saturation_and_hue,
    "horizontal flip": lambda texture, _: texture[:, ::-1],
    "vertical flip": lambda texture, _: texture[::-1],
    "grey": lambda texture, _: grey(texture),
    "autocontrast": lambda texture, _: autocontrast(texture),
    "equalize": lambda texture, _: equalize(texture),
    "rotation": lambda texture, rng: rotate_nearest(texture, rng.uniform(-45, 45)),
}
OPERATIONS: Mapping[Family, Mapping[str, Operation]] = {
    "glass-official": _GLASS,
    "glass": {**_GLASS, "saturation and hue": _saturation_and_fast_hue},
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


def adjust_brightness(image: FloatImage, factor: float) -> FloatImage:
    """Values times a factor, clipped; (height, width, 3) in [0, 1], as in the other functions here."""
    return _clipped(image * np.float32(factor))


def adjust_contrast(image: FloatImage, factor: float) -> FloatImage:
    """Distances from the image's mean grey times a factor, clipped: 0 is even grey, 1 the image itself."""
    return _mixed(image, _grey(image).mean(keepdims=True)[..., None], factor)


def adjust_saturation(image: FloatImage, factor: float) -> FloatImage:
    """Distances from each pixel's own grey times a factor, clipped: 0 is grey, 1 the image itself."""
    return _mixed(image, _grey(image)[..., None], factor)


def adjust_hue(image: FloatImage, turns: float) -> FloatImage:
    """Hues moved by a part of the colour circle, in [−0.5, 0.5]; value and saturation stay."""
    planes = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    planes[:, :, 0] = (planes[:, :, 0] + np.float32(360 * turns)) % 360
    return _clipped(cv2.cvtColor(planes, cv2.COLOR_HSV2RGB))


def _grey(image: FloatImage) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.float32)


def _mixed(image: FloatImage, grey: NDArray[np.float32], factor: float) -> FloatImage:
    return _clipped(grey + np.float32(factor) * (image - grey))


def _clipped(image: NDArray[np.generic]) -> FloatImage:
    return np.clip(np.asarray(image, np.float32), 0, 1)


class JitterStrength(BaseModel):
    """How far colours may go. Parts of strength 0 are left alone, and nothing is drawn for them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, gt=0, le=1, description="Among several strengths: probability of this one.")
    brightness: float = Field(0.0, ge=0, le=1, description="The factor is uniform in 1 ± this.")
    contrast: float = Field(0.0, ge=0, le=1, description="The factor is uniform in 1 ± this.")
    saturation: float = Field(0.0, ge=0, le=1, description="The factor is uniform in 1 ± this.")
    hue: float = Field(0.0, ge=0, le=0.5, description="The shift is uniform in ± this, in turns of the colour circle.")

    def jitter(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """The image in other colours.

        Args:
            image: (height, width, 3) in [0, 1]; left as it is.
            rng: source of all draws: the order of the parts, then one number a part.

        Returns:
            (height, width, 3) in [0, 1]; ``image`` itself where all strengths are 0.
        """
        parts = [
            (adjust, neutral, strength)
            for adjust, neutral, strength in (
                (adjust_brightness, 1.0, self.brightness),
                (adjust_contrast, 1.0, self.contrast),
                (adjust_saturation, 1.0, self.saturation),
                (adjust_hue, 0.0, self.hue),
            )
            if strength
        ]
        for number in rng.permutation(len(parts)) if parts else ():
            adjust, neutral, strength = parts[number]
            image = adjust(image, float(rng.uniform(neutral - strength, neutral + strength)))
        return image


SIDE = 256
"""Shorter side of the images to which sizes in pixels refer."""

_SIGMA_SIDE = 1024
"""Shorter side to which :func:`flawsmith.synthesis.blend.blurred` refers."""


class _Transform(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, gt=0, le=1, description="Probability that it is applied.")

    def __call__(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """The image, transformed with probability ``share``; (height, width, 3) in [0, 1], the same size."""
        if self.share < 1 and rng.random() >= self.share:
            return image
        return self.apply(image, rng)

    @abstractmethod
    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        """The transformed image; ``image`` is left as it is."""


class HalfTurn(_Transform):
    """Turn by 180°."""

    kind: Literal["half_turn"] = "half_turn"

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        return np.rot90(image, 2)


class Pose(_Transform):
    """Turn a little, what comes in at the borders mirrored, and flip along each axis with probability 1/2.

    SLSG has a random rotation alone.
    """

    kind: Literal["pose"] = "pose"
    max_turn: float = Field(10.0, ge=0, le=180, description="The angle is uniform in ± this, degrees.")
    flips: bool = Field(True, description="Whether the image is flipped as well.")

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        height, width = image.shape[:2]
        angle = float(rng.uniform(-self.max_turn, self.max_turn))
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        turned = cv2.warpAffine(
            np.ascontiguousarray(image), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        down, across = (1 if not self.flips or rng.random() < 0.5 else -1 for _ in range(2))
        return np.ascontiguousarray(turned.reshape(height, width, 3)[::down, ::across], dtype=np.float32)


class Flip(_Transform):
    """Mirror along one axis."""

    kind: Literal["flip"] = "flip"
    axis: Literal["vertical", "horizontal", "either"] = Field(
        description="vertical: upside down; horizontal: left to right; either: one of the two, equally likely."
    )

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        vertical = rng.random() < 0.5 if self.axis == "either" else self.axis == "vertical"
        return image[::-1] if vertical else image[:, ::-1]


class Shuffle(_Transform):
    """Cut into a grid and put the cells back in random order.

    Where the image is no multiple of the grid, cells differ by a pixel, and each place takes as many pixels as it
    needs; axes shorter than the grid have fewer cells.
    """

    kind: Literal["shuffle"] = "shuffle"
    cells: tuple[PositiveInt, PositiveInt] = Field((4, 8), description="Rows and columns (SLSG: 4 x 8).")

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        height, width = image.shape[:2]
        rows, columns = min(self.cells[0], height), min(self.cells[1], width)
        tops, lefts = np.arange(rows + 1) * height // rows, np.arange(columns + 1) * width // columns
        out = np.empty_like(image)
        for place, source in enumerate(rng.permutation(rows * columns).tolist()):
            row, column = divmod(place, columns)
            down, across = tops[row + 1] - tops[row], lefts[column + 1] - lefts[column]
            from_row, from_column = divmod(source, columns)
            top, left = min(tops[from_row], height - down), min(lefts[from_column], width - across)
            cell = image[top : top + down, left : left + across]
            out[tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]] = cell
        return out


class BandCopy(_Transform):
    """Copy the two inner quarters of the rows over the outer ones (SLSG's splicing connectors: bands of 64 rows)."""

    kind: Literal["band_copy"] = "band_copy"

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        height, band = len(image), len(image) // 4
        out = image.copy()
        out[:band] = image[band : 2 * band]
        out[height - band :] = image[height - 2 * band : height - band]
        return out


class ColourJitter(_Transform):
    """Other colours, in one of several strengths."""

    kind: Literal["colour_jitter"] = "colour_jitter"
    strengths: tuple[JitterStrength, ...] = Field(min_length=1, description="Their shares sum to 1.")

    @model_validator(mode="after")
    def _shares(self) -> ColourJitter:
        total = sum(strength.share for strength in self.strengths)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares of the strengths sum to {total:g}, not 1")
        return self

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        limits = np.cumsum([strength.share for strength in self.strengths])
        number = int(np.searchsorted(limits, rng.random(), side="right")) if len(limits) > 1 else 0
        return self.strengths[min(number, len(limits) - 1)].jitter(image, rng)


class Blur(_Transform):
    """A Gaussian blur."""

    kind: Literal["blur"] = "blur"
    sigma: float = Field(2.0, gt=0, description="In pixels of an image with a shorter side of 256 (SLSG: 2).")

    def apply(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        return blurred(np.ascontiguousarray(image), self.sigma * _SIGMA_SIDE / SIDE)


Transform = Annotated[
    HalfTurn | Pose | Flip | Shuffle | BandCopy | ColourJitter | Blur,
    Field(discriminator="kind"),
]
"""One of the transforms; called with an image in [0, 1] and a generator, it gives one of the same size."""
