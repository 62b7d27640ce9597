"""Forging: one flaw on one good image, by a recipe.

``Forger`` carries what a data set shares (recipe, textures, foreground) and travels to worker processes; every
draw comes from the generator of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import ForegroundProvider
from flawsmith.synthesis.operations import augment
from flawsmith.synthesis.overlay import Image, Mask, blend
from flawsmith.synthesis.perlin import Field, draw_lattice, noise_field
from flawsmith.synthesis.recipes import Branch, Grid, MaskRule, Recipe
from flawsmith.synthesis.search import Attempt, FoundMask, find_mask
from flawsmith.synthesis.textures import TextureSource

FallBack = Literal["foreground ignored", "left normal"]
"""What was done when no mask counted within the recipe's tries: first the foreground is given up, then the flaw."""

Others = Sequence[Image] | Callable[[np.random.Generator], Image]
"""Other good images in [0, 1], of any size; or a picklable function that draws one."""

GREY_TOLERANCE = 2e-3
"""Half a grey level of 8 bits."""


@dataclass(frozen=True)
class Forged:
    """A forged sample.

    Attributes:
        image: (height, width, 3) float32; outside the mask the very values of the good image.
        mask: (height, width); empty where the sample was left normal.
        cells: (rows, columns), the mask by cells; None without a grid.
        texture: (height, width, 3) as it was blended; None where the sample was left normal.
        weight: of the good image inside the mask; 1 where the sample was left normal.
        tries: masks that were looked at; 0 where the recipe keeps a share of samples normal.
        fell_back: None where a mask counted, else what was done instead: for callers to count.
    """

    image: Image
    mask: Mask
    cells: Mask | None
    texture: Image | None
    weight: float
    tries: int
    fell_back: FallBack | None


@dataclass(frozen=True)
class Forger:
    """Forges flaws by one recipe. Picklable where its parts are.

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

    def forge(
        self, image: Image, rng: np.random.Generator, *, foreground: Mask | None = None, path: Path | None = None
    ) -> Forged:
        """Put one flaw on a good image.

        The order of the draws is: whether the sample stays normal, the branch, the mask, the texture, the
        weight; so recipes that differ in their weight alone make the same flaws in other strengths.

        Args:
            image: (height, width, 3) RGB in [0, 1]; left as it is.
            rng: source of all draws.
            foreground: (height, width), where flaws may lie; None asks the provider.
            path: the image's file, for a provider that reads mask files.

        Raises:
            ValueError: not an image, or a foreground, of the stated form.
            FlawsmithError: the provider finds no mask file.
        """
        _check(image, foreground)
        if self.recipe.normal_share and self.recipe.keeps_normal(float(rng.random())):
            return self._unchanged(image, 0, None)
        if foreground is None:
            foreground = self.foreground(image, path)
        branch = self.recipe.branch(float(rng.random()))
        found, fell_back = self._mask(image.shape[:2], branch.rule, foreground, rng)
        if not found.accepted:
            return self._unchanged(image, found.tries, "left normal")
        texture = self._texture(image, branch, rng)
        if self.match_grey and is_grey(image):
            texture = greyed(texture)
        weight = branch.weight.draw(rng)
        forged = blend(image, texture, found.mask, weight)
        return Forged(forged, found.mask, found.cells, texture, weight, found.tries, fell_back)

    def foreground(self, image: Image, path: Path | None = None) -> Mask | None:
        """Where flaws may lie on an image, (height, width), as the provider says; None: everywhere."""
        return None if self.foreground_provider is None else self.foreground_provider(image, path, self.geometry)

    def _unchanged(self, image: Image, tries: int, fell_back: FallBack | None) -> Forged:
        cells = None if self.grid is None else np.zeros(self.grid, bool)
        return Forged(image, np.zeros(image.shape[:2], bool), cells, None, 1.0, tries, fell_back)

    def _mask(
        self, shape: tuple[int, int], rule: MaskRule, foreground: Mask | None, rng: np.random.Generator
    ) -> tuple[FoundMask, FallBack | None]:
        """A mask that counts, if need be beside the foreground; at most twice the recipe's tries."""
        tries = 0
        if foreground is None or foreground.any():
            found = self._search(shape, rule, foreground, rng)
            if found.accepted or foreground is None:
                return found, None
            tries = found.tries
        found = self._search(shape, rule, None, rng)
        return FoundMask(found.mask, found.cells, tries + found.tries, found.accepted), "foreground ignored"

    def _search(
        self, shape: tuple[int, int], rule: MaskRule, foreground: Mask | None, rng: np.random.Generator
    ) -> FoundMask:
        attempts = _attempts(shape, rule, self.recipe, rng)
        return find_mask(attempts, rule, self.recipe.acceptance, foreground=foreground, grid=self.grid)

    def _texture(self, image: Image, branch: Branch, rng: np.random.Generator) -> Image:
        """(height, width, 3) in [0, 1]: what is blended in."""
        size = (image.shape[0], image.shape[1])
        if branch.texture == "source":
            drawn = self.textures.draw(size, rng)
        elif branch.texture == "self":
            own = np.rot90(image, 2) if rng.random() < 0.5 else image
            shuffled = shuffle_cells(own, branch.cells, rng)
            if branch.operations == "none":
                return shuffled
            drawn = to_8_bit(shuffled)
        else:
            other = moved(self._other(image, rng), size, branch.max_turn, rng)
            if branch.operations == "none":
                return other
            drawn = to_8_bit(other)
        return to_float(augment(drawn, rng, branch.operations))

    def _other(self, image: Image, rng: np.random.Generator) -> Image:
        if callable(self.others):
            return self.others(rng)
        return self.others[int(rng.integers(len(self.others)))] if len(self.others) else image


def _attempts(shape: tuple[int, int], rule: MaskRule, recipe: Recipe, rng: np.random.Generator) -> Iterator[Attempt]:
    """As many attempts as the recipe allows; a second field is computed only where the combination asks for it."""
    kept = [draw_lattice(rng, rule.exponents) for _ in range(2)] if recipe.redraw == "noise" else [None, None]

    def fields() -> Iterator[Field]:
        for lattice in kept:
            yield noise_field(shape, rng, exponents=rule.exponents, lattice=lattice, max_rotation=rule.max_rotation)

    for _ in range(recipe.max_tries):
        draw = float(rng.random()) if rule.combination == "thirds" else 0.0
        yield draw, fields()


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


def moved(image: Image, size: tuple[int, int], max_turn: float, rng: np.random.Generator) -> Image:
    """Another good image in another pose: turned a little, and flipped along each axis with probability 1/2.

    Args:
        image: (height, width, 3), any size.
        size: (height, width) of the result.
        max_turn: the angle is uniform in ± this many degrees; what comes in at the borders is mirrored.
        rng: source of all draws.

    Returns:
        (height, width, 3) of the given size.
    """
    height, width = size
    if image.shape[:2] != size:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    angle = float(rng.uniform(-max_turn, max_turn))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    down, across = (1 if rng.random() < 0.5 else -1 for _ in range(2))
    return np.ascontiguousarray(turned.reshape(height, width, 3)[::down, ::across], dtype=np.float32)


def is_grey(image: Image) -> bool:
    """Whether the three channels are equal, up to what keeping images in half precision makes of equal channels."""
    # Colour shows in a few pixels already, so most colour images are not read to the end.
    some = image[:: max(1, len(image) // 8)]
    pairs = ((part[:, :, 0], part[:, :, channel]) for part in (some, image) for channel in (1, 2))
    return all(float(np.abs(one - other).max(initial=0)) <= GREY_TOLERANCE for one, other in pairs)


def greyed(texture: Image) -> Image:
    """The texture's luminance in all three channels."""
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.float32)


def to_8_bit(image: Image) -> NDArray[np.uint8]:
    """Values in [0, 1] as uint8, rounded."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def to_float(image: NDArray[np.uint8]) -> Image:
    """uint8 as values in [0, 1]."""
    return image * np.float32(1 / 255)


def _check(image: Image, foreground: Mask | None) -> None:
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected a float32 image (h, w, 3), not {image.dtype} {image.shape}")
    if foreground is not None and (foreground.dtype != bool or foreground.shape != image.shape[:2]):
        raise ValueError(f"expected a bool foreground {image.shape[:2]}, not {foreground.dtype} {foreground.shape}")
