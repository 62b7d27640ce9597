"""Recipes: how each method's flaws are made, as parameters of the same few parts.

A recipe has branches, of which each sample takes one: where the texture comes from, how the mask is cut from noise, how
strongly the two are blended. What is common to all branches is when a mask counts and what is drawn again if not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.operations import Family
from flawsmith.synthesis.overlay import Mask, MixtureWeight, NormalWeight, UniformWeight, WeightLaw
from flawsmith.synthesis.perlin import EXPONENTS, MAX_ROTATION, THRESHOLD
from flawsmith.synthesis.perlin import Field as Noise
from flawsmith.synthesis.pictures import Fit

Grid = tuple[int, int]
"""(rows, columns) of the cells that a network scores."""


class MaskRule(BaseModel):
    """How a mask is cut from noise, before the foreground."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exponents: tuple[NonNegativeInt, PositiveInt] = Field(
        EXPONENTS, description="Range [low, high) of e; the noise lattice has 2^e cells on an axis."
    )
    threshold: float = Field(THRESHOLD, ge=-1, le=1, description="Noise above it belongs to the mask.")
    max_rotation: float = Field(MAX_ROTATION, ge=0, le=180, description="The noise turns within ± this, degrees.")
    combination: Literal["single", "thirds"] = Field(
        "single",
        description="single: one noise mask; thirds: union, intersection or one of two, each with probability 1/3.",
    )

    @model_validator(mode="after")
    def _some_lattice(self) -> MaskRule:
        if self.exponents[0] >= self.exponents[1]:
            raise ValueError(f"exponents {self.exponents}: the range [low, high) is empty")
        return self

    def mask(self, draw: float, fields: Iterable[Noise]) -> Mask:
        """The mask of one attempt.

        Args:
            draw: u in [0, 1): above 2/3 the union, above 1/3 the intersection, else the first mask alone;
                without meaning for ``single``.
            fields: (height, width) noise, turned already; the second is asked for only where it counts.

        Returns:
            (height, width).

        Source:
            GLASS, released code: the paper's thirds in another order, which makes no difference.
        """
        noise = iter(fields)
        first = next(noise) > self.threshold
        if self.combination == "single" or draw <= 1 / 3:
            return first
        second = next(noise) > self.threshold
        return first | second if draw > 2 / 3 else first & second


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


class Branch(BaseModel):
    """One way to make a flaw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, gt=0, le=1, description="Probability that a flaw is made this way.")
    rule: MaskRule = Field(default_factory=MaskRule, description="How the mask is cut.")
    weight: WeightLaw = Field(description="Law of the good image's weight inside the mask.")
    texture: Literal["source", "self", "other"] = Field(
        "source",
        description="source: a texture source; self: the image's own cells, shuffled; other: another good image.",
    )
    operations: Family = Field("none", description="Family of which three operations change the texture.")
    cells: tuple[PositiveInt, PositiveInt] = Field(
        (4, 8), description="self: rows and columns of the grid that is shuffled (SLSG: 4 x 8)."
    )
    max_turn: float = Field(10.0, ge=0, le=180, description="other: the image turns within ± this, degrees.")


class Recipe(BaseModel):
    """How flaws are forged. Frozen; ``recipe.model_copy(update=...)`` makes a variant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="What the recipe is called in commands and records.")
    branches: tuple[Branch, ...] = Field(min_length=1, description="Ways to make a flaw; their shares sum to 1.")
    redraw: Literal["everything", "noise"] = Field(
        "everything", description="After a mask that does not count: all draws again, or the noise on the same lattice."
    )
    acceptance: Acceptance = Field(default_factory=Acceptance, description="When a mask counts.")
    max_tries: PositiveInt = Field(32, description="Masks drawn before the fall-back (AAND: 11; GLASS, SLSG: no end).")
    normal_share: float = Field(0.0, ge=0, lt=1, description="Share of samples left as they are (AAND: 0.2).")
    fit: Fit = Field("crop", description="How pictures of a texture folder are brought to size (AAND: squash).")

    @model_validator(mode="after")
    def _shares(self) -> Recipe:
        total = sum(branch.share for branch in self.branches)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares of the branches sum to {total:g}, not 1")
        return self

    def branch(self, draw: float) -> Branch:
        """The branch that a uniform draw in [0, 1) means."""
        total = 0.0
        for branch in self.branches:
            total += branch.share
            if draw < total:
                return branch
        return self.branches[-1]

    def keeps_normal(self, draw: float) -> bool:
        """Whether a uniform draw in [0, 1) leaves the sample as it is (AAND: above 0.8)."""
        return draw > 1 - self.normal_share

    def with_weight(self, weight: WeightLaw) -> Recipe:
        """The same recipe with another strength in all branches, as for a weak-flaw test set."""
        branches = tuple(branch.model_copy(update={"weight": weight}) for branch in self.branches)
        return self.model_copy(update={"branches": branches})


_OWN_MASK = MaskRule(exponents=(0, 3), threshold=0.4)
_SLSG = {"acceptance": Acceptance(min_pixels=49)}

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="glass",
                branches=(Branch(rule=MaskRule(combination="thirds"), weight=NormalWeight(), operations="glass"),),
                acceptance=Acceptance(min_cells=1),
            ),
            Recipe(
                name="aand",
                branches=(Branch(weight=UniformWeight(high=0.8), operations="classic"),),
                redraw="noise",
                acceptance=Acceptance(min_pixels=5),
                max_tries=11,
                normal_share=0.2,
                fit="squash",
            ),
            Recipe(
                name="slsg-structural",
                branches=(
                    Branch(
                        share=0.5,
                        rule=MaskRule(exponents=(0, 4)),
                        weight=MixtureWeight(share=0.25, value=0.75, otherwise=UniformWeight(high=0.9)),
                        operations="classic",
                    ),
                    Branch(share=0.5, rule=_OWN_MASK, weight=UniformWeight(high=0.25), texture="self"),
                ),
                **_SLSG,
            ),
            Recipe(
                name="slsg-logical",
                branches=(Branch(rule=_OWN_MASK, weight=UniformWeight(high=0.25), texture="other"),),
                **_SLSG,
            ),
        )
    }
)
"""The recipes by name.

``glass`` and ``aand`` are those of the papers. SLSG's released code has a simulation of its own for each category; the
two recipes here are its generic parts: exponents, thresholds and weights of its texture and homologous branches, half
of the structural flaws from a texture source and half from the image's own cells, and logical flaws from another good
image, turned by up to 10° and flipped as the paper says.
"""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        FlawsmithError: for an unknown name, with the known ones and the closest match.
    """
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise FlawsmithError(f"no recipe is called {name!r}: {hint}known recipes are {', '.join(RECIPES)}")
    return RECIPES[name]


def max_pool_cells(mask: Mask, grid: Grid) -> Mask:
    """A cell belongs to the flaw if any of its pixels does (GLASS).

    Args:
        mask: (height, width).
        grid: (rows, columns). A cell is floor(height / rows) by floor(width / columns) pixels; what remains
            at the lower and right border belongs to none.

    Returns:
        (rows, columns).

    Raises:
        ValueError: more cells than pixels on an axis.

    Example:
        >>> max_pool_cells(np.eye(5, dtype=bool), (2, 2)).astype(int).tolist()
        [[1, 0], [0, 1]]
    """
    rows, columns = grid
    down, across = mask.shape[0] // rows, mask.shape[1] // columns
    if min(down, across) < 1:
        raise ValueError(f"a mask of {mask.shape} has no {rows} x {columns} cells")
    # The mean over whole pixels, above zero, is their maximum, and by far the fastest of the ways to it.
    pixels = np.ascontiguousarray(mask[: rows * down, : columns * across], dtype=np.float32)
    return cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA) > 0


def strided_cells(mask: Mask, grid: Grid, stride: int) -> Mask:
    """As :func:`max_pool_cells`, for the cells of a convolutional network's grid, whatever the image's size.

    Cell i begins at pixel i·stride. Where the network rounds its grid up, the last cell reaches beyond the image; where
    it rounds down, the last cell takes what remains.

    Args:
        mask: (height, width).
        grid: (rows, columns).
        stride: pixels a cell.

    Returns:
        (rows, columns).

    Example:
        >>> strided_cells(np.eye(5, dtype=bool), (3, 3), 2).astype(int).tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    if mask.shape == (grid[0] * stride, grid[1] * stride):
        return max_pool_cells(mask, grid)
    found = np.zeros(grid, bool)
    rows, columns = np.nonzero(mask)
    found[np.minimum(rows // stride, grid[0] - 1), np.minimum(columns // stride, grid[1] - 1)] = True
    return found
