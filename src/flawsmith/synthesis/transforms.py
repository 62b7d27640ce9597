"""Transforms that make a texture of a good image, the image itself or another one: what SLSG calls homologous sources.

A branch of a recipe lists them in the order in which they apply. Each is applied with a probability of its own, and
every draw comes from the generator of the call. Sizes in pixels are those of an image with a shorter side of 256, as
SLSG has it, and follow the image.

Source: SLSG (Yang et al., 2023), Section 3.2, and its released simulation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from flawsmith.synthesis.colour import JitterStrength
from flawsmith.synthesis.overlay import Image
from flawsmith.synthesis.separation import blurred

SIDE = 256
"""Shorter side of the images to which sizes in pixels refer."""

_SIGMA_SIDE = 1024
"""Shorter side to which :func:`flawsmith.synthesis.separation.blurred` refers."""


class _Transform(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, gt=0, le=1, description="Probability that it is applied.")

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """The image, transformed with probability ``share``; (height, width, 3) in [0, 1], the same size."""
        if self.share < 1 and rng.random() >= self.share:
            return image
        return self.apply(image, rng)

    @abstractmethod
    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        """The transformed image; ``image`` is left as it is."""


class HalfTurn(_Transform):
    """Turn by 180°."""

    kind: Literal["half_turn"] = "half_turn"

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        return np.rot90(image, 2)


class Pose(_Transform):
    """Turn a little and flip along each axis with probability 1/2 (SLSG's paper: another image is turned at random)."""

    kind: Literal["pose"] = "pose"
    max_turn: float = Field(10.0, ge=0, le=180, description="The angle is uniform in ± this, degrees.")

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        return moved(image, self.max_turn, rng)


class Flip(_Transform):
    """Mirror along one axis."""

    kind: Literal["flip"] = "flip"
    axis: Literal["vertical", "horizontal", "either"] = Field(
        description="vertical: upside down; horizontal: left to right; either: one of the two, equally likely."
    )

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        vertical = rng.random() < 0.5 if self.axis == "either" else self.axis == "vertical"
        return image[::-1] if vertical else image[:, ::-1]


class Shuffle(_Transform):
    """Cut into a grid and put the cells back in random order."""

    kind: Literal["shuffle"] = "shuffle"
    cells: tuple[PositiveInt, PositiveInt] = Field((4, 8), description="Rows and columns (SLSG: 4 x 8).")

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        return shuffle_cells(image, self.cells, rng)


class BandCopy(_Transform):
    """Copy the two inner quarters of the rows over the outer ones (SLSG's splicing connectors: bands of 64 rows)."""

    kind: Literal["band_copy"] = "band_copy"

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
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

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        limits = np.cumsum([strength.share for strength in self.strengths])
        number = int(np.searchsorted(limits, rng.random(), side="right")) if len(limits) > 1 else 0
        return self.strengths[min(number, len(limits) - 1)].jitter(image, rng)


class Blur(_Transform):
    """A Gaussian blur."""

    kind: Literal["blur"] = "blur"
    sigma: float = Field(2.0, gt=0, description="In pixels of an image with a shorter side of 256 (SLSG: 2).")

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        return blurred(np.ascontiguousarray(image), self.sigma * _SIGMA_SIDE / SIDE)


Transform = Annotated[
    HalfTurn | Pose | Flip | Shuffle | BandCopy | ColourJitter | Blur,
    Field(discriminator="kind"),
]
"""One of the transforms; called with an image in [0, 1] and a generator, it gives one of the same size."""


def shuffle_cells(image: Image, grid: tuple[int, int], rng: np.random.Generator) -> Image:
    """Cut an image into a grid and put the cells back in random order (SLSG, homologous source: 4 x 8).

    Args:
        image: (height, width, 3), any size. Where it is no multiple of the grid, cells differ by a pixel, and
            each place takes as many pixels as it needs; axes shorter than the grid have fewer cells.
        grid: (rows, columns).
        rng: source of the order.

    Returns:
        The same shape.
    """
    height, width = image.shape[:2]
    rows, columns = min(grid[0], height), min(grid[1], width)
    tops, lefts = np.arange(rows + 1) * height // rows, np.arange(columns + 1) * width // columns
    out = np.empty_like(image)
    for place, source in enumerate(rng.permutation(rows * columns).tolist()):
        row, column = divmod(place, columns)
        down, across = tops[row + 1] - tops[row], lefts[column + 1] - lefts[column]
        from_row, from_column = divmod(source, columns)
        top, left = min(tops[from_row], height - down), min(lefts[from_column], width - across)
        out[tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]] = image[
            top : top + down, left : left + across
        ]
    return out


def moved(image: Image, max_turn: float, rng: np.random.Generator) -> Image:
    """An image in another pose: turned a little, and flipped along each axis with probability 1/2.

    Args:
        image: (height, width, 3), any size.
        max_turn: the angle is uniform in ± this many degrees; what comes in at the borders is mirrored.
        rng: source of all draws.

    Returns:
        The same shape.
    """
    height, width = image.shape[:2]
    angle = float(rng.uniform(-max_turn, max_turn))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = cv2.warpAffine(
        np.ascontiguousarray(image), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    down, across = (1 if rng.random() < 0.5 else -1 for _ in range(2))
    return np.ascontiguousarray(turned.reshape(height, width, 3)[::down, ::across], dtype=np.float32)
