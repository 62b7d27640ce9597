"""How a mask is cut from noise, or drawn instead, and when it counts as a flaw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from flawsmith.synthesis.blend import Mask
from flawsmith.synthesis.perlin import EXPONENTS, MAX_ROTATION, THRESHOLD, NoiseField
from flawsmith.synthesis.perlin import NoiseField as Noise

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

    def mask(self, draw: float, fields: Iterable[Noise]) -> Mask:
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
