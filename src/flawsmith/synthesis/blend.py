"""How a texture is laid over a good image inside a mask, and how strongly.

All three methods that synthesize flaws in images use one formula and differ in the law of its weight.
"""

from __future__ import annotations

from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

FloatImage = NDArray[np.float32]
"""(height, width, 3) RGB in [0, 1], before normalisation, which is affine, so that blending commutes with it."""

Mask = NDArray[np.bool_]
"""(height, width), True inside the flaw."""

CHANGE_SMOOTHING = 2.0
"""Pixels over which a change is smoothed before it counts as seen."""

Share = Annotated[float, Field(ge=0, le=1)]


class _Law(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FixedWeight(_Law):
    """Always the same weight: the strength of a weak-flaw test set (MAD-sys of GLASS)."""

    kind: Literal["fixed"] = "fixed"
    value: Share = Field(description="Weight of the good image inside the mask, 0..1; near 1 the flaw is weak.")

    def draw(self, rng: np.random.Generator) -> float:
        """The weight; draws nothing, so that other strengths share masks and textures."""
        return self.value


class NormalWeight(_Law):
    """A normal draw, clipped, not drawn again, to a range (GLASS, Eq. 4: β)."""

    kind: Literal["normal"] = "normal"
    mean: Share = Field(0.5, description="Mean before clipping (GLASS: 0.5).")
    std: float = Field(0.1, ge=0, description="Standard deviation before clipping (GLASS: 0.1).")
    low: Share = Field(0.2, description="Least weight (GLASS: 0.2).")
    high: Share = Field(0.8, description="Largest weight (GLASS: 0.8).")

    @model_validator(mode="after")
    def _ordered(self) -> NormalWeight:
        _check_range(self.low, self.high)
        return self

    def clip(self, value: float) -> float:
        """A normal draw within the law's range."""
        return min(max(value, self.low), self.high)

    def draw(self, rng: np.random.Generator) -> float:
        """A weight in [low, high]."""
        return self.clip(float(rng.normal(self.mean, self.std)))


class UniformWeight(_Law):
    """A uniform draw from a range (AAND: 0 to 0.8; SLSG: 0 to 0.25 for homologous sources)."""

    kind: Literal["uniform"] = "uniform"
    low: Share = Field(0.0, description="Least weight.")
    high: Share = Field(description="Largest weight.")

    @model_validator(mode="after")
    def _ordered(self) -> UniformWeight:
        _check_range(self.low, self.high)
        return self

    def at(self, draw: float) -> float:
        """The weight that a uniform draw in [0, 1) means."""
        return self.low + (self.high - self.low) * draw

    def draw(self, rng: np.random.Generator) -> float:
        """A weight in [low, high)."""
        return self.at(float(rng.random()))


class MixtureWeight(_Law):
    """One weight with some probability, else a uniform draw (SLSG, texture branch: 0.75 in a quarter, else 0 to
    0.9)."""

    kind: Literal["mixture"] = "mixture"
    share: Share = Field(description="Probability of the one weight.")
    value: Share = Field(description="That weight.")
    otherwise: UniformWeight = Field(description="Law of all other draws.")

    def draw(self, rng: np.random.Generator) -> float:
        """A weight."""
        return self.value if rng.random() < self.share else self.otherwise.draw(rng)


WeightLaw = Annotated[FixedWeight | NormalWeight | UniformWeight | MixtureWeight, Field(discriminator="kind")]
"""Law of the weight w of the good image inside the mask; ``draw(rng)`` gives one in [0, 1]."""


def blurred(image: FloatImage, sigma: float) -> FloatImage:
    """A Gaussian whose width follows the image.

    Args:
        sigma: in pixels of an image with a shorter side of 1024.
    """
    scaled = sigma * min(image.shape[:2]) / 1024
    if scaled < 0.1:  # the kernel is a single pixel
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), scaled, borderType=cv2.BORDER_REPLICATE), np.float32)


def faded(image: FloatImage, synthetic: FloatImage, mask: Mask, feather: float) -> FloatImage:
    """A synthetic image whose flaw fades in from the edge of its mask inwards, so that there is no seam to learn from.

    The share of the synthetic image rises with a Gaussian-smoothed mask, from 0 at its edge to 1 where none of its
    surroundings are near; in no paper.

    Args:
        image: the good image, (height, width, 3) float32.
        synthetic: the same with a flaw.
        mask: (height, width).
        feather: standard deviation of the Gaussian in pixels, above 0.

    Returns:
        (height, width, 3); outside the mask the very values of ``image``.
    """
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), feather, borderType=cv2.BORDER_REPLICATE)
    share = np.where(mask, np.clip(2 * smooth - 1, 0, 1), np.float32(0))[:, :, None]
    return np.where(share > 0, image + share * (synthetic - image), image).astype(np.float32)


def visible(image: FloatImage, synthetic: FloatImage, mask: Mask, least: float) -> Mask:
    """The pixels of a mask that a flaw has changed: what is as before is no anomaly, and only confuses who learns it.

    Args:
        image: the good image, (height, width, 3) float32 in [0, 1].
        synthetic: the same with a flaw.
        mask: (height, width).
        least: least change of a pixel's most changed channel, smoothed over a few pixels, in [0, 1].

    Returns:
        (height, width), within the mask.
    """
    change = cv2.GaussianBlur(np.abs(synthetic - image).max(axis=2), (0, 0), CHANGE_SMOOTHING)
    return np.asarray(mask & (change > least))


def _check_range(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"the least weight {low} is above the largest {high}")


def blend(image: FloatImage, texture: FloatImage, mask: Mask, weight: float) -> FloatImage:
    """out = x(1 − m) + m(w·x + (1 − w)t).

    Args:
        image: x, (height, width, 3) or (3, height, width), any scale, float32 or float64.
        texture: t, the same shape.
        mask: m, (height, width).
        weight: w in [0, 1], the weight of the image inside the mask.

    Returns:
        The same shape and type as ``image``; outside the mask the very values of ``image``.

    Raises:
        ValueError: shapes that do not belong together.

    Source:
        GLASS Eq. 4 (β = w), AAND, SLSG (δ = 1 − w). One released implementation spoils the outside by
        normalising the masked texture and corrects it in a later line; here it is never touched.

    Example:
        >>> mask = np.array([[True, False]])
        >>> image, texture = np.zeros((1, 2, 3), np.float32), np.ones((1, 2, 3), np.float32)
        >>> blend(image, texture, mask, 0.25)[..., 0].tolist()
        [[0.75, 0.0]]
    """
    last, first = (*mask.shape, 3), (3, *mask.shape)
    if image.shape not in (last, first) or texture.shape != image.shape:
        raise ValueError(f"image {image.shape}, texture {texture.shape} and mask {mask.shape} do not belong together")
    # OpenCV wants few columns' channels: planes of a (3, height, width) image go one below the other.
    rows = mask if image.shape == last else np.tile(mask, (3, 1))
    plane = (*rows.shape, 3) if image.shape == last else rows.shape
    out = np.array(image, order="C")
    good, other = out.reshape(plane), np.ascontiguousarray(texture, dtype=image.dtype).reshape(plane)
    mixed = cv2.addWeighted(good, weight, other, 1.0 - weight, 0.0).reshape(plane)
    cv2.copyTo(mixed, np.ascontiguousarray(rows).view(np.uint8), good)
    return out
