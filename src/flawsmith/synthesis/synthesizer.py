"""Synthesis: one anomaly on one good image, by a recipe.

``AnomalySynthesizer`` carries what a data set shares (recipe, textures, foreground) and travels to worker processes;
every draw comes from the generator of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.augment import JitterStrength, augment
from flawsmith.synthesis.blend import FloatImage, Mask, blend, faded, visible
from flawsmith.synthesis.foreground import Foreground, ForegroundProvider, provider
from flawsmith.synthesis.masks import (
    Acceptance,
    MaskRule,
    NoiseField,
    draw_lattice,
    mask_field,
    noise_field,
    random_rectangle,
)
from flawsmith.synthesis.recipes import Branch, Grid, Recipe, find_recipe, max_pool_cells
from flawsmith.synthesis.textures import TextureSource, texture_source

Attempt = tuple[float, Iterable[NoiseField]]
"""A uniform draw in [0, 1) and noise fields, as many as the draw asks for; a lazy iterable computes no more."""


def find_mask(
    attempts: Iterable[Attempt],
    rule: MaskRule,
    acceptance: Acceptance,
    *,
    foreground: Mask | None = None,
    grid: Grid | None = None,
) -> tuple[Mask, Mask | None, int]:
    """The first mask that counts.

    Args:
        attempts: draws and turned noise fields, one entry a try; where they end, the search ends.
        rule: how a mask is cut from them.
        acceptance: when it counts.
        foreground: (height, width), where flaws may be; None: everywhere.
        grid: cells for the pooled mask; None: pixels alone decide.

    Returns:
        The mask (height, width), empty where none counted; the same by cells (rows, columns), None without a grid;
        and the number of masks that were looked at.

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
            return mask, cells, tries
    if mask is None:
        raise ValueError("no attempt to find a mask in")
    return np.zeros_like(mask), None if grid is None else np.zeros(grid, bool), tries


Fallback = Literal["foreground ignored", "left normal"]
"""What was done when no mask counted within the recipe's tries: first the foreground is given up, then the flaw."""

Image = NDArray[np.floating[Any]]
"""(height, width, 3) RGB in [0, 1]."""

Others = Sequence[FloatImage] | Callable[[np.random.Generator], FloatImage]
"""Other good images in [0, 1], of any size; or a picklable function that draws one."""

GREY_TOLERANCE = 2e-3
"""Half a grey level of 8 bits."""

_VISIBLE_TRIES = 8
"""Flaws drawn until one can be seen, where a recipe asks for that."""
_OTHER_TRIES = 16
"""Draws of another good image before the image itself is accepted: it may be the only one."""


@dataclass(frozen=True, eq=False)
class AnomalySample:
    """A good image with a synthetic anomaly: what is carried from a recipe to a method.

    Attributes:
        image: (height, width, 3), float32 in [0, 1], or uint8 where the good image was; outside the mask the very
            values of the good image, but for changes too small to count where the recipe asks for visible ones.
        mask: (height, width) bool; empty where the sample was left normal.
        normal: the good image as the flaw was put on it, in the form of ``image``: in jittered colours where the
            recipe jitters, else the very image that was given.
        foreground: (height, width) bool, where the flaw was to lie; None: anywhere.
        cells: (rows, columns) bool, the mask by cells; None without a grid.
        texture: as it was blended, in the form of ``image``; None where the sample was left normal.
        weight: of the good image inside the mask; 1 where the sample was left normal.
        tries: masks that were looked at; 0 where the recipe keeps a share of samples normal.
        fallback: None where a mask counted, else what was done instead: for callers to count.
        recipe: its name.
        branch: the branch of the recipe; None where the recipe keeps a share of samples normal.
    """

    image: NDArray[Any]
    mask: Mask
    normal: NDArray[Any]
    foreground: Mask | None = None
    cells: Mask | None = None
    texture: NDArray[Any] | None = None
    weight: float = 1.0
    tries: int = 0
    fallback: Fallback | None = None
    recipe: str = ""
    branch: Branch | None = None


@dataclass(frozen=True)
class AnomalySynthesizer:
    """Synthesizes anomalies by one recipe, on plain arrays. Picklable where its parts are.

    Attributes:
        recipe: how flaws are made.
        textures: where textures come from.
        foreground_provider: asked for the foreground of images that come without; None: flaws lie anywhere.
        geometry: how files became images, for foregrounds from files.
        others: other good images, for recipes that blend one in; the image itself serves where there are none.
        grid: (rows, columns) of the cells that a network scores; None: pixels alone decide what is a flaw.
        match_grey: make the texture grey where the image is grey: no camera that sees grey shows a coloured
            flaw. The published methods do not: switch it off to repeat them.

    Example:
        >>> synthesize = AnomalySynthesizer.from_recipe("glass")
        >>> sample = synthesize(np.full((64, 96, 3), 0.5, np.float32), np.random.default_rng(0))
        >>> sample.image.shape, sample.mask.shape, bool(sample.mask.any())
        ((64, 96, 3), (64, 96), True)
        >>> bool((sample.image[~sample.mask] == sample.normal[~sample.mask]).all())
        True
    """

    recipe: Recipe
    textures: TextureSource
    foreground_provider: ForegroundProvider | None = None
    geometry: Geometry | None = None
    others: Others = ()
    grid: Grid | None = None
    match_grey: bool = True

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Recipe,
        textures: str | Path | TextureSource = "procedural",
        *,
        good: Sequence[str | Path] = (),
        foreground: str | Foreground = "none",
        others: Others = (),
        grid: Grid | None = None,
        match_grey: bool = True,
    ) -> AnomalySynthesizer:
        """A synthesizer by names.

        Args:
            recipe: name of a recipe, such as ``glass``, ``aand`` or ``slsg``; or one of your own.
            textures: ``procedural``, ``self``, a folder of pictures such as DTD, or a source of your own.
            good: paths of good images, for the textures ``self``.
            foreground: where flaws may lie: ``none`` (anywhere), ``auto``, ``disc``, ``box``, or its settings.
            others: other good images, for recipes that blend one in.
            grid: (rows, columns) of cells in which a mask must leave a trace; None: pixels alone decide.
            match_grey: make the texture grey where the image is grey.

        Raises:
            FlawsmithError: an unknown recipe, or no such textures.

        Example:
            >>> AnomalySynthesizer.from_recipe("aand", textures="procedural", foreground="disc").recipe.max_tries
            11
        """
        settings = Foreground.model_validate(foreground)
        named = find_recipe(recipe) if isinstance(recipe, str) else recipe
        source = texture_source(textures, good, fit=named.fit) if isinstance(textures, (str, Path)) else textures
        place = None if settings.mode == "none" else provider(settings)
        return cls(named, source, place, others=others, grid=grid, match_grey=match_grey)

    def __call__(self, image: Image, rng: np.random.Generator) -> AnomalySample:
        """Put one flaw on a good image.

        Args:
            image: (height, width, 3) RGB in [0, 1], of any float type; left as it is.
            rng: source of all draws: the same state gives the same sample.

        Raises:
            ValueError: not an image of the stated form.
        """
        return self.synthesize(_as_float32(image), rng)

    def batch(self, images: Image | Sequence[Image], rng: np.random.Generator) -> list[AnomalySample]:
        """Put one flaw on each of several good images, which are each other's other images where none were given.

        Args:
            images: (images, height, width, 3) RGB in [0, 1], or a sequence of images of any sizes.
            rng: source of all draws.

        Raises:
            ValueError: not images of the stated form.

        Example:
            >>> images = np.random.default_rng(0).random((3, 64, 64, 3))
            >>> samples = AnomalySynthesizer.from_recipe("slsg", grid=(8, 8)).batch(images, np.random.default_rng(0))
            >>> [sample.cells.shape for sample in samples]
            [(8, 8), (8, 8), (8, 8)]
        """
        goods = [_as_float32(image) for image in images]
        alone = isinstance(self.others, Sequence) and not len(self.others)
        synthesizer = replace(self, others=goods) if alone else self
        return [synthesizer.synthesize(image, rng) for image in goods]

    def synthesize(
        self, image: FloatImage, rng: np.random.Generator, *, foreground: Mask | None = None, path: Path | None = None
    ) -> AnomalySample:
        """Put one flaw on a good image.

        The order of the draws is: whether the sample stays normal, the branch, the jitter of the good image,
        whether the foreground counts, the mask, the texture, the weight; so recipes that differ in their
        weight alone make the same flaws in other strengths. Where the texture's own foreground counts, it is drawn
        before the mask. What a recipe does not ask for is not drawn.

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
            return replace(self._unchanged(self._jittered(image, rng)), foreground=foreground)
        if foreground is None:
            foreground = self.foreground(image, path)
        branch = self.recipe.branch(float(rng.random()))
        normal = self._jittered(image, rng)
        region = foreground if branch.keeps_foreground(rng) else None
        tries = 0
        for _ in range(_VISIBLE_TRIES if self.recipe.least_change else 1):
            sample = self._flaw(image, normal, branch, region, rng)
            tries += sample.tries
            if self.recipe.acceptance.holds(sample.mask, sample.cells):
                break
        else:
            sample = replace(self._unchanged(normal), fallback="left normal")
        return replace(sample, tries=tries, foreground=foreground, branch=branch)

    def _flaw(
        self, image: FloatImage, normal: FloatImage, branch: Branch, foreground: Mask | None, rng: np.random.Generator
    ) -> AnomalySample:
        """One flaw by the draws of mask, texture and weight; with an empty mask where none counted."""
        recipe = self.recipe
        texture: FloatImage | None = None
        if branch.foreground_of == "texture" and foreground is not None:
            texture = self._texture(image, normal, branch, rng)
            foreground = None if self.foreground_provider is None else self.foreground_provider(texture)
        mask, cells, tries, fallback = self._mask(image.shape[:2], branch, foreground, rng)
        if not mask.any():
            return replace(self._unchanged(normal), tries=tries)
        if texture is None:
            texture = self._texture(image, normal, branch, rng)
        if self.match_grey and is_grey(normal):
            texture = greyed(texture)
        weight = branch.weight.draw(rng)
        synthetic = blend(normal, texture, mask, weight)
        if recipe.feather:
            synthetic = faded(normal, synthetic, mask, recipe.feather)
        if recipe.least_change:
            mask = visible(normal, synthetic, mask, recipe.least_change)
            cells = None if self.grid is None else max_pool_cells(mask, self.grid)
        return AnomalySample(
            synthetic,
            mask,
            normal,
            cells=cells,
            texture=texture,
            weight=weight,
            tries=tries,
            fallback=fallback,
            recipe=recipe.name,
        )

    def foreground(self, image: FloatImage, path: Path | None = None) -> Mask | None:
        """Where flaws may lie on an image, (height, width), as the provider says; None: everywhere."""
        return None if self.foreground_provider is None else self.foreground_provider(image, path, self.geometry)

    def _jittered(self, image: FloatImage, rng: np.random.Generator) -> FloatImage:
        jitter = self.recipe.jitter
        return JitterStrength(brightness=jitter, saturation=jitter).jitter(image, rng) if jitter else image

    def _unchanged(self, normal: FloatImage) -> AnomalySample:
        cells = None if self.grid is None else np.zeros(self.grid, bool)
        return AnomalySample(normal, np.zeros(normal.shape[:2], bool), normal, cells=cells, recipe=self.recipe.name)

    def _mask(
        self, shape: tuple[int, int], branch: Branch, foreground: Mask | None, rng: np.random.Generator
    ) -> tuple[Mask, Mask | None, int, Fallback | None]:
        """A mask that counts, if need be beside the foreground; at most twice the recipe's tries."""
        tries = 0
        if foreground is None or foreground.any():
            mask, cells, tries = self._search(shape, branch, foreground, rng)
            if mask.any() or foreground is None:
                return mask, cells, tries, None
        mask, cells, more = self._search(shape, branch, None, rng)
        return mask, cells, tries + more, "foreground ignored"

    def _search(
        self, shape: tuple[int, int], branch: Branch, foreground: Mask | None, rng: np.random.Generator
    ) -> tuple[Mask, Mask | None, int]:
        # A flaw that is the whole image would have no good surroundings to differ from.
        if branch.mask_is_foreground and foreground is not None and not foreground.all():
            attempts: Iterable[Attempt] = [(0.0, [mask_field(foreground)])]
        else:
            attempts = _attempts(shape, branch.rule, self.recipe, rng)
        return find_mask(attempts, branch.rule, self.recipe.acceptance, foreground=foreground, grid=self.grid)

    def _texture(self, image: FloatImage, normal: FloatImage, branch: Branch, rng: np.random.Generator) -> FloatImage:
        """(height, width, 3) in [0, 1]: what is blended in."""
        size = (image.shape[0], image.shape[1])
        if branch.texture == "source":
            return to_float(augment(self.textures.draw(size, rng), rng, branch.operations))
        source = normal if branch.texture == "self" else resized(self._other(image, branch, rng), size)
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
    lattices = [draw_lattice(rng, rule.exponents) for _ in range(2)] if recipe.redraw == "noise" else [None, None]

    def fields() -> Iterator[NoiseField]:
        for lattice in lattices:
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
    """Whether the three channels are equal, up to half a grey level of 8 bits."""
    # Colour shows in a few pixels already, so most colour images are not read to the end.
    some = image[:: max(1, len(image) // 8)]
    pairs = ((part[:, :, 0], part[:, :, channel]) for part in (some, image) for channel in (1, 2))
    return all(float(np.abs(first - other).max(initial=0)) <= GREY_TOLERANCE for first, other in pairs)


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


def _as_float32(image: Image) -> FloatImage:
    """An image of any float type.

    Raises:
        ValueError: its values are whole numbers, of which nobody says what is white.
    """
    array = np.asarray(image)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected values in [0, 1], not {array.dtype}: divide 8-bit images by 255")
    return array.astype(np.float32, copy=False)


def _check(image: FloatImage, foreground: Mask | None) -> None:
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected a float32 image (h, w, 3), not {image.dtype} {image.shape}")
    if foreground is not None and (foreground.dtype != bool or foreground.shape != image.shape[:2]):
        raise ValueError(f"expected a bool foreground {image.shape[:2]}, not {foreground.dtype} {foreground.shape}")
