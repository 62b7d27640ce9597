"""Recipes: how each method's flaws are made, as parameters of the same few parts.

A recipe has branches, of which each sample takes one: where the texture comes from, how the mask is cut from noise, how
strongly the two are blended. What is common to all branches is when a mask counts and what is drawn again if not.
A mixture within a branch, such as one of several ways to rearrange the image, is written as several branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.augment import Blur, ColourJitter, Family, HalfTurn, JitterStrength, Pose, Shuffle, Transform
from flawsmith.synthesis.blend import Mask, MixtureWeight, NormalWeight, UniformWeight, WeightLaw
from flawsmith.synthesis.masks import Acceptance, MaskRule
from flawsmith.synthesis.textures import Fit

Grid = tuple[int, int]
"""(rows, columns) of the cells that a network scores."""


class Branch(BaseModel):
    """One way to make a flaw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, gt=0, le=1, description="Probability that a flaw is made this way.")
    rule: MaskRule = Field(default_factory=MaskRule, description="How the mask is cut.")
    weight: WeightLaw = Field(description="Law of the good image's weight inside the mask.")
    foreground_share: float = Field(
        1.0, ge=0, le=1, description="Probability that the flaw has to lie on the foreground, where there is one."
    )
    foreground_of: Literal["image", "texture"] = Field(
        "image",
        description="Whose foreground it is: the good image's, or that of the good image it is blended with, as it "
        "comes out of the transforms (SLSG, pushpins and splicing connectors).",
    )
    mask_is_foreground: bool = Field(
        False,
        description="The mask is the foreground itself (SLSG, splicing connectors); where none, cut by the rule.",
    )
    texture: Literal["source", "self", "other"] = Field(
        "source", description="source: a texture source; self: the image itself; other: another good image."
    )
    excludes_self: bool = Field(
        False,
        description="other: never the image itself (SLSG's paper), or any image (its released code).",
    )
    transforms: tuple[Transform, ...] = Field(
        (), description="self, other: what is done to the good image to make it a texture, in this order."
    )
    operations: Family = Field("none", description="Family of which three operations change the texture, at last.")

    @model_validator(mode="after")
    def _transforms_have_an_image(self) -> Branch:
        if self.texture == "source" and self.transforms:
            raise ValueError("transforms are for good images: choose the texture self or other")
        if self.texture == "source" and self.foreground_of == "texture":
            raise ValueError("a texture has no foreground: choose the texture self or other")
        if self.texture == "self" and not self.transforms:
            raise ValueError("an image blended with itself has no flaw: give transforms")
        return self

    def keeps_foreground(self, rng: np.random.Generator) -> bool:
        """Whether this flaw has to lie on the foreground; nothing is drawn where all have to."""
        return self.foreground_share == 1 or float(rng.random()) < self.foreground_share


class Recipe(BaseModel):
    """How flaws are synthesized. Frozen; ``recipe.model_copy(update=...)`` makes a variant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="What the recipe is called in commands and records.")
    branches: tuple[Branch, ...] = Field(min_length=1, description="Ways to make a flaw; their shares sum to 1.")
    redraw: Literal["everything", "noise"] = Field(
        "everything", description="After a mask that does not count: all draws again, or the noise on the same lattice."
    )
    acceptance: Acceptance = Field(default_factory=Acceptance, description="When a mask counts.")
    max_tries: PositiveInt = Field(32, description="Masks drawn before the fall-back (AAND: 11; GLASS, SLSG: no end).")
    normal_share: float = Field(0.0, ge=0, lt=1, description="Share of samples left as they are (AAND: 0.2).")
    jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Brightness and saturation of the good image change by factors uniform in 1 ± this before the flaw "
        "is put on it, so that the good and the flawed image share them (SLSG, released code: 0.1).",
    )
    fit: Fit = Field("crop", description="How pictures of a texture folder are brought to size (AAND: squash).")

    feather: float = Field(
        0.0,
        ge=0,
        description="Flaws fade in from the edge of their mask, with a Gaussian of so many pixels; 0: an edge.",
    )
    least_change: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Only pixels that change by so much of the range belong to a flaw; 0: all of its mask does.",
    )

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


def _glass_branch(operations: Family) -> Branch:
    return Branch(rule=MaskRule(combination="thirds"), weight=NormalWeight(), operations=operations)


_OWN_MASK = MaskRule(exponents=(0, 3), threshold=0.4)
_SHUFFLED = (HalfTurn(share=0.5), Shuffle(cells=(4, 8)))
_OTHER_LIGHT = ColourJitter(strengths=(JitterStrength(brightness=0.2, contrast=0.2),))
_SLSG = {"acceptance": Acceptance(min_pixels=49)}
_SLSG_TEXTURE = Branch(
    rule=MaskRule(exponents=(0, 4)),
    weight=MixtureWeight(share=0.25, value=0.75, otherwise=UniformWeight(high=0.9)),
    operations="classic",
)
_SLSG_HOMOLOGOUS = {"rule": _OWN_MASK, "weight": UniformWeight(high=0.25)}

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="glass", branches=(_glass_branch("glass"),), acceptance=Acceptance(min_cells=1)),
            Recipe(
                name="glass-official", branches=(_glass_branch("glass-official"),), acceptance=Acceptance(min_cells=1)
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
                    _SLSG_TEXTURE.model_copy(update={"share": 0.5}),
                    Branch(share=0.5, texture="self", transforms=_SHUFFLED, **_SLSG_HOMOLOGOUS),
                ),
                **_SLSG,
            ),
            Recipe(
                name="slsg-logical",
                branches=(Branch(texture="other", transforms=(Pose(),), **_SLSG_HOMOLOGOUS),),
                **_SLSG,
            ),
            Recipe(
                name="slsg",
                branches=(
                    _SLSG_TEXTURE.model_copy(update={"share": 0.25}),
                    Branch(share=0.25, texture="self", transforms=(*_SHUFFLED, _OTHER_LIGHT), **_SLSG_HOMOLOGOUS),
                    Branch(
                        share=0.5,
                        texture="other",
                        excludes_self=True,
                        transforms=(Pose(max_turn=5, flips=False), _OTHER_LIGHT),
                        **_SLSG_HOMOLOGOUS,
                    ),
                ),
                **_SLSG,
            ),
            Recipe(
                name="slsg-aligned",
                branches=(
                    _SLSG_TEXTURE.model_copy(update={"share": 0.125}),
                    Branch(share=0.125, texture="self", transforms=(*_SHUFFLED, _OTHER_LIGHT), **_SLSG_HOMOLOGOUS),
                    Branch(share=0.75, texture="other", excludes_self=True, **_SLSG_HOMOLOGOUS),
                ),
                jitter=0.1,
                feather=3.0,
                least_change=0.05,
                **_SLSG,
            ),
            Recipe(
                name="slsg-official",
                branches=(
                    _SLSG_TEXTURE.model_copy(update={"share": 5 / 12}),
                    Branch(
                        share=7 / 12,
                        texture="self",
                        transforms=(
                            HalfTurn(share=0.5),
                            ColourJitter(
                                share=0.2,
                                strengths=(
                                    JitterStrength(share=0.7, brightness=0.4, saturation=0.4, hue=0.2),
                                    JitterStrength(share=0.3, brightness=0.2, saturation=0.2, hue=0.1),
                                ),
                            ),
                            Blur(share=0.2, sigma=2),
                            Shuffle(cells=(4, 8)),
                        ),
                        **_SLSG_HOMOLOGOUS,
                    ),
                ),
                jitter=0.1,
                **_SLSG,
            ),
        )
    }
)
"""The recipes by name.

``glass-official`` and ``aand`` are those of the papers; ``glass`` is ours for GLASS's ``fast``, and turns hues with
OpenCV in a tenth of the time, which moves a fifth of the values by some grey levels. ``slsg`` is SLSG's paper: half of
the flaws logical, from another good image turned by up to 5° (the paper names no angle; the released code holds one of
5°, unused), half structural, evenly from a texture source and from the image's own cells; all that comes from good
images also has another brightness and contrast (in 1 ± 0.2: the paper names the change and no number). Where the paper
is silent, exponents, thresholds and weights are those of the released code. ``slsg-structural`` and ``slsg-logical``
are its halves without that change; the latter turns by up to 10°, flips, and may draw the image itself, because
calibrations that are stored rest on it.

``slsg-aligned`` is ours, for SLSG's ``fast``: three quarters of the flaws are parts of other good images in their own
place, as a wrong label is on the right bottle. They fade in, and only what they change counts as anomalous; colours are
jittered as in the released code.

``slsg-official`` is the simulation that SLSG's released code has for categories without one of their own: 7/12 from the
image's own cells, 5/12 from a texture source, on images in slightly jittered colours.
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
    cells = np.zeros(grid, bool)
    rows, columns = np.nonzero(mask)
    cells[np.minimum(rows // stride, grid[0] - 1), np.minimum(columns // stride, grid[1] - 1)] = True
    return cells
