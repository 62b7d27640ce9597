"""Synthesis: one flaw on one good image, by a recipe.

``AnomalySynthesizer`` carries what a data set shares (recipe, textures, foreground) and travels to worker processes;
every draw comes from the generator of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.augment import augment
from flawsmith.synthesis.blend import FloatImage, Mask, blend, faded, visible
from flawsmith.synthesis.foreground import ForegroundProvider
from flawsmith.synthesis.masks import Acceptance, MaskRule, mask_field, random_rectangle
from flawsmith.synthesis.perlin import NoiseField, draw_lattice, noise_field
from flawsmith.synthesis.recipes import Branch, Grid, Recipe, max_pool_cells
from flawsmith.synthesis.textures import TextureSource

Attempt = tuple[float, Iterable[NoiseField]]
"""A uniform draw in [0, 1) and noise fields, as many as the draw asks for; a lazy iterable computes no more."""


@dataclass(frozen=True)
class FoundMask:
    """What a search for a mask came to.

    Attributes:
        mask: (height, width); empty where none was accepted.
        cells: (rows, columns), the mask by cells; None without a grid.
        tries: masks that were looked at.
        accepted: whether the mask counts.
    """

    mask: Mask
    cells: Mask | None
    tries: int
    accepted: bool


def find_mask(
    attempts: Iterable[Attempt],
    rule: MaskRule,
    acceptance: Acceptance,
    *,
    foreground: Mask | None = None,
    grid: Grid | None = None,
) -> FoundMask:
    """The first mask that counts.

    Args:
        attempts: draws and turned noise fields, one entry a try; where they end, the search ends.
        rule: how a mask is cut from them.
        acceptance: when it counts.
        foreground: (height, width), where flaws may be; None: everywhere.
        grid: cells for the pooled mask; None: pixels alone decide.

    Raises:
        ValueError: no attempt at all, or more cells than pixels.

    Source:
        GLASS: both noises and the combination are drawn again until the pooled mask is not empty, without an
        end in the released code. AAND: at most 11 tries. SLSG: until 49 pixels are set, without an end.
    """
    mask, tries = None, 0
    for tries, (draw, fields) in enumerate(attempts, 1):
        mask = rule.mask(float(draw), fields)
        if foreground is not None:
            mask &= foreground
        cells = None if grid is None else max_pool_cells(mask, grid)
        if acceptance.holds(mask, cells):
            return FoundMask(mask, cells, tries, accepted=True)
    if mask is None:
        raise ValueError("no attempt to find a mask in")
    return FoundMask(np.zeros_like(mask), None if grid is None else np.zeros(grid, bool), tries, accepted=False)


FallBack = Literal["foreground ignored", "left normal"]
"""What was done when no mask counted within the recipe's tries: first the foreground is given up, then the flaw."""

Others = Sequence[FloatImage] | Callable[[np.random.Generator], FloatImage]
"""Other good images in [0, 1], of any size; or a picklable function that draws one."""

GREY_TOLERANCE = 2e-3
"""Half a grey level of 8 bits."""

_VISIBLE_TRIES = 8
"""Flaws drawn until one can be seen, where a recipe asks for that."""
_OTHER_TRIES = 16
"""Draws of another good image before the image itself is accepted: it may be the only one."""


@dataclass(frozen=True)
class SyntheticAnomaly:
    """A synthetic sample.

    Attributes:
        image: (height, width, 3) float32; outside the mask the very values of the good image, but for changes
            too small to count where the recipe asks for visible ones.
        good: the same shape, the good image as the flaw was put on it: in jittered colours where the recipe
            jitters, else the very image that was given.
        mask: (height, width); empty where the sample was left normal.
        cells: (rows, columns), the mask by cells; None without a grid.
        texture: (height, width, 3) as it was blended; None where the sample was left normal.
        weight: of the good image inside the mask; 1 where the sample was left normal.
        tries: masks that were looked at; 0 where the recipe keeps a share of samples normal.
        fell_back: None where a mask counted, else what was done instead: for callers to count.
    """

    image: FloatImage
    good: FloatImage
    mask: Mask
    cells: Mask | None
    texture: FloatImage | None
    weight: float
    tries: int
    fell_back: FallBack | None


@dataclass(frozen=True)
class AnomalySynthesizer:
    """Synthesizes flaws by one recipe. Picklable where its parts are.

    Attributes:
        recipe: how flaws are made.
        textures: where textures come from.
        foreground_provider: asked for the foreground of images that come without; None: flaws lie anywhere.
        geometry: how files became images, for foregrounds from files.
        others: other good images, for recipes that blend one in; the image itself serves where there are none.
        grid: (rows, columns) of the cells that a network scores; None: pixels alone decide what is a flaw.
        match_grey: make the texture grey where the image is grey: no camera that sees grey shows a coloured
            flaw. The published methods do not: switch it off to repeat them.
    """

    recipe: Recipe
    textures: TextureSource
    foreground_provider: ForegroundProvider | None = None
    geometry: Geometry | None = None
    others: Others = ()
    grid: Grid | None = None
    match_grey: bool = True

    def synthesize(
        self, image: FloatImage, rng: np.random.Generator, *, foreground: Mask | None = None, path: Path | None = None
    ) -> SyntheticAnomaly:
        """Put one flaw on a good image.

        The order of the draws is: whether the sample stays normal, the branch, the jitter of the good image,
        whether the foreground counts, the mask, the texture, the weight; so recipes that differ in their
        weight alone make the same flaws in other strengths. What a recipe does not ask for is not drawn.

        Args:
            image: (height, width, 3) RGB in [0, 1]; left as it is.
            rng: source of all draws.
            foreground: (height, width), where flaws may lie; None asks the provider, before any jitter.
            path: the image's file, for a provider that reads mask files.

        Raises:
            ValueError: not an image, or a foreground, of the stated form.
            FlawsmithError: the provider finds no mask file.
        """
        _check(image, foreground)
        if self.recipe.normal_share and self.recipe.keeps_normal(float(rng.random())):
            return self._unchanged(self._jittered(image, rng), 0, None)
        if foreground is None:
            foreground = self.foreground(image, path)
        branch = self.recipe.branch(float(rng.random()))
        good = self._jittered(image, rng)
        if not branch.keeps_foreground(rng):
            foreground = None
        tries = 0
        for _ in range(_VISIBLE_TRIES if self.recipe.least_change else 1):
            flaw = self._flaw(image, good, branch, foreground, rng)
            tries += flaw.tries
            if self.recipe.acceptance.holds(flaw.mask, flaw.cells):
                return replace(flaw, tries=tries)
        return self._unchanged(good, tries, "left normal")

    def _flaw(
        self, image: FloatImage, good: FloatImage, branch: Branch, foreground: Mask | None, rng: np.random.Generator
    ) -> SyntheticAnomaly:
        """One flaw by the draws of mask, texture and weight; with an empty mask where none was found."""
        recipe = self.recipe
        found, fell_back = self._mask(image.shape[:2], branch, foreground, rng)
        if not found.accepted:
            return self._unchanged(good, found.tries, "left normal")
        texture = self._texture(image, good, branch, rng)
        if self.match_grey and is_grey(good):
            texture = greyed(texture)
        weight = branch.weight.draw(rng)
        synthetic, mask, cells = blend(good, texture, found.mask, weight), found.mask, found.cells
        if recipe.feather:
            synthetic = faded(good, synthetic, mask, recipe.feather)
        if recipe.least_change:
            mask = visible(good, synthetic, mask, recipe.least_change)
            cells = None if self.grid is None else max_pool_cells(mask, self.grid)
        return SyntheticAnomaly(synthetic, good, mask, cells, texture, weight, found.tries, fell_back)

    def foreground(self, image: FloatImage, path: Path | None = None) -> Mask | None:
        """Where flaws may lie on an image, (height, width), as the provider says; None: everywhere."""
        return None if self.foreground_provider is None else self.foreground_provider(image, path, self.geometry)

    def _jittered(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        return self.recipe.jitter_strength.jitter(image, rng) if self.recipe.jitter else image

    def _unchanged(self, good: FloatImage, tries: int, fell_back: FallBack | None) -> SyntheticAnomaly:
        cells = None if self.grid is None else np.zeros(self.grid, bool)
        return SyntheticAnomaly(good, good, np.zeros(good.shape[:2], bool), cells, None, 1.0, tries, fell_back)

    def _mask(
        self, shape: tuple[int, int], branch: Branch, foreground: Mask | None, rng: np.random.Generator
    ) -> tuple[FoundMask, FallBack | None]:
        """A mask that counts, if need be beside the foreground; at most twice the recipe's tries."""
        tries = 0
        if foreground is None or foreground.any():
            found = self._search(shape, branch, foreground, rng)
            if found.accepted or foreground is None:
                return found, None
            tries = found.tries
        found = self._search(shape, branch, None, rng)
        return FoundMask(found.mask, found.cells, tries + found.tries, found.accepted), "foreground ignored"

    def _search(
        self, shape: tuple[int, int], branch: Branch, foreground: Mask | None, rng: np.random.Generator
    ) -> FoundMask:
        # A flaw that is the whole image would have no good surroundings to differ from.
        if branch.mask_is_foreground and foreground is not None and not foreground.all():
            attempts: Iterable[Attempt] = [(0.0, [mask_field(foreground)])]
        else:
            attempts = _attempts(shape, branch.rule, self.recipe, rng)
        return find_mask(attempts, branch.rule, self.recipe.acceptance, foreground=foreground, grid=self.grid)

    def _texture(self, image: FloatImage, good: FloatImage, branch: Branch, rng: np.random.Generator) -> FloatImage:
        """(height, width, 3) in [0, 1]: what is blended in."""
        size = (image.shape[0], image.shape[1])
        if branch.texture == "source":
            return to_float(augment(self.textures.draw(size, rng), rng, branch.operations))
        source = good if branch.texture == "self" else resized(self._other(image, branch, rng), size)
        for transform in branch.transforms:
            source = transform(source, rng)
        if branch.operations == "none":
            return np.ascontiguousarray(source)
        return to_float(augment(to_8_bit(source), rng, branch.operations))

    def _other(self, image: FloatImage, branch: Branch, rng: np.random.Generator) -> FloatImage:
        other = self._any(image, rng)
        for _ in range(_OTHER_TRIES):
            if not branch.excludes_self or not np.array_equal(other, image):
                break
            other = self._any(image, rng)
        return other

    def _any(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        if callable(self.others):
            return self.others(rng)
        return self.others[int(rng.integers(len(self.others)))] if len(self.others) else image


def _attempts(shape: tuple[int, int], rule: MaskRule, recipe: Recipe, rng: np.random.Generator) -> Iterator[Attempt]:
    """As many attempts as the recipe allows; a second field is computed only where the combination asks for it."""
    kept = [draw_lattice(rng, rule.exponents) for _ in range(2)] if recipe.redraw == "noise" else [None, None]

    def fields() -> Iterator[NoiseField]:
        for lattice in kept:
            if rule.shape == "rectangle":
                yield mask_field(random_rectangle(shape, rng))
            else:
                yield noise_field(shape, rng, exponents=rule.exponents, lattice=lattice, max_rotation=rule.max_rotation)

    for _ in range(recipe.max_tries):
        draw = float(rng.random()) if rule.combination == "thirds" else 0.0
        yield draw, fields()


def resized(image: FloatImage, size: tuple[int, int]) -> FloatImage:
    """An image, (height, width, 3), in the given (height, width): area-averaged; itself where it has that size."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


def is_grey(image: FloatImage) -> bool:
    """Whether the three channels are equal, up to what keeping images in half precision makes of equal channels."""
    # Colour shows in a few pixels already, so most colour images are not read to the end.
    some = image[:: max(1, len(image) // 8)]
    pairs = ((part[:, :, 0], part[:, :, channel]) for part in (some, image) for channel in (1, 2))
    return all(float(np.abs(one - other).max(initial=0)) <= GREY_TOLERANCE for one, other in pairs)


def greyed(texture: FloatImage) -> FloatImage:
    """The texture's luminance in all three channels."""
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.float32)


def to_8_bit(image: FloatImage) -> NDArray[np.uint8]:
    """Values in [0, 1] as uint8, rounded."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def to_float(image: NDArray[np.uint8]) -> FloatImage:
    """uint8 as values in [0, 1]."""
    return image * np.float32(1 / 255)


def _check(image: FloatImage, foreground: Mask | None) -> None:
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected a float32 image (h, w, 3), not {image.dtype} {image.shape}")
    if foreground is not None and (foreground.dtype != bool or foreground.shape != image.shape[:2]):
        raise ValueError(f"expected a bool foreground {image.shape[:2]}, not {foreground.dtype} {foreground.shape}")
