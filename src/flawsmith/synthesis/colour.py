"""Colour jitter of images in [0, 1]: brightness, contrast, saturation and hue, as torchvision's ``ColorJitter`` has
them.

:mod:`flawsmith.synthesis.operations` has the same names for 8-bit textures, where rounding is part of the published
pipelines; here nothing is rounded.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flawsmith.synthesis.overlay import Image


def adjust_brightness(image: Image, factor: float) -> Image:
    """Values times a factor, clipped; (height, width, 3) in [0, 1], as in the other functions here."""
    return _clipped(image * np.float32(factor))


def adjust_contrast(image: Image, factor: float) -> Image:
    """Distances from the image's mean grey times a factor, clipped: 0 is even grey, 1 the image itself."""
    return _mixed(image, _grey(image).mean(keepdims=True)[..., None], factor)


def adjust_saturation(image: Image, factor: float) -> Image:
    """Distances from each pixel's own grey times a factor, clipped: 0 is grey, 1 the image itself."""
    return _mixed(image, _grey(image)[..., None], factor)


def adjust_hue(image: Image, turns: float) -> Image:
    """Hues moved by a part of the colour circle, in [−0.5, 0.5]; value and saturation stay."""
    planes = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    planes[:, :, 0] = (planes[:, :, 0] + np.float32(360 * turns)) % 360
    return _clipped(cv2.cvtColor(planes, cv2.COLOR_HSV2RGB))


def _grey(image: Image) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.float32)


def _mixed(image: Image, grey: NDArray[np.float32], factor: float) -> Image:
    return _clipped(grey + np.float32(factor) * (image - grey))


def _clipped(image: NDArray[np.generic]) -> Image:
    return np.clip(np.asarray(image, np.float32), 0, 1)


class JitterStrength(BaseModel):
    """How far colours may go. Parts of strength 0 are left alone, and nothing is drawn for them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, gt=0, le=1, description="Among several strengths: probability of this one.")
    brightness: float = Field(0.0, ge=0, le=1, description="The factor is uniform in 1 ± this.")
    contrast: float = Field(0.0, ge=0, le=1, description="The factor is uniform in 1 ± this.")
    saturation: float = Field(0.0, ge=0, le=1, description="The factor is uniform in 1 ± this.")
    hue: float = Field(0.0, ge=0, le=0.5, description="The shift is uniform in ± this, in turns of the colour circle.")

    def jitter(self, image: Image, rng: np.random.Generator) -> Image:
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
