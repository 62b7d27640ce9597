"""A fixed set of synthetic flaws on held-out good images: the yardstick of selection, and of what calibration says.

The flaws are of mixed recipes and of strengths spread evenly from weak to strong, so that a model is not chosen for
finding the one kind of flaw that it was trained on; and they are always there to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.seeding import generator
from flawsmith.synthesis.blend import FixedWeight, blend
from flawsmith.synthesis.masks import Acceptance
from flawsmith.synthesis.procedural import ProceduralTextures
from flawsmith.synthesis.recipes import RECIPES, Recipe
from flawsmith.synthesis.synthesizer import AnomalySample, AnomalySynthesizer, to_8_bit, to_float

Rgb = NDArray[np.uint8]
"""(height, width, 3)."""

HELD_OUT_RECIPES = ("glass", "aand", "slsg-structural", "slsg-logical")
"""The recipes that take turns. Calibrations of stored models rest on this mixture: a new recipe does not join it."""

WEIGHTS = (0.1, 0.8)
"""Range of the good image's weight inside the mask: from a strong flaw to a weak one."""

FALLBACK = "ellipse"
"""Stands for a recipe's name where no recipe made a flaw that counts."""

_TRIES = 12
_MASKS_A_TRY = 4
_MIN_AREA = 2e-4
"""Least share of the image that a flaw covers; smaller ones say nothing about a model."""
_MIN_PIXELS = 4
_MIN_CHANGE = 4.0
"""Least mean absolute change inside the mask, in grey levels of 255; a flaw nobody can see is none."""
_WINDOW = 2048
"""A flaw lies in a window of at most this many pixels a side, so that memory is bounded on images of any size."""
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def held_out_flaws(images: Iterable[Rgb], seed: int) -> Iterator[AnomalySample]:
    """One flaw on every image; each image serves the next one as the other good image that some recipes ask for.

    Args:
        images: (height, width, 3) uint8 each, of any size; two are held at a time.
        seed: of all draws.
    """
    previous = None
    for index, image in enumerate(images):
        yield held_out_flaw(image, seed=seed, index=index, other=previous)
        previous = image


def held_out_flaw(image: Rgb, *, seed: int, index: int, other: Rgb | None = None) -> AnomalySample:
    """Put one flaw on a good image, large and visible enough to count.

    The recipes take turns by index. Where a recipe's flaws cannot be seen (cells of an even surface, shuffled),
    ``glass`` takes over; where that fails too (a tiny image), the fall-back is an ellipse near the middle, blended
    with the inverted image, or with white where inverting mid-grey would change nothing.

    The sample's images are uint8, its mask is never empty, and ``recipe`` says which one made it, or ``ellipse``.

    Args:
        image: (height, width, 3) uint8; left as it is.
        seed: with ``index`` the seed of all draws.
        index: number of the flaw.
        other: another good image, of any size, for recipes that blend one in; None: the image itself.

    Raises:
        ValueError: not an image of the stated form.
    """
    for picture in (image,) if other is None else (image, other):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"expected a uint8 image (h, w, 3), not {picture.dtype} {picture.shape}")
    rng = generator(seed, "held-out flaw", index)
    weight = strength(seed, index)
    least = max(_MIN_PIXELS, math.ceil(_MIN_AREA * image.shape[0] * image.shape[1]))
    turn = HELD_OUT_RECIPES[index % len(HELD_OUT_RECIPES)]
    for attempt in range(_TRIES):
        name = turn if attempt < _TRIES // 2 else "glass"
        flaw = _synthetic(image, other, _variant(RECIPES[name], weight, least), rng)
        if flaw is not None:
            return flaw
    return _ellipse(image, rng)


def strength(seed: int, index: int) -> float:
    """The weight of a numbered flaw: multiples of the golden ratio, which fill the range evenly at every count."""
    low, high = WEIGHTS
    start = generator(seed, "strengths of held-out flaws").random()
    return low + (high - low) * ((start + index * _GOLDEN_RATIO) % 1)


def _variant(recipe: Recipe, weight: float, min_pixels: int) -> Recipe:
    changes = {"acceptance": Acceptance(min_pixels=min_pixels), "max_tries": _MASKS_A_TRY, "normal_share": 0.0}
    return recipe.with_weight(FixedWeight(value=weight)).model_copy(update=changes)


def _synthetic(image: Rgb, other: Rgb | None, recipe: Recipe, rng: np.random.Generator) -> AnomalySample | None:
    """A flaw in a window of the image; None where it is too small or cannot be seen."""
    window = tuple(_span(length, rng) for length in image.shape[:2])
    good = image[window]
    others = () if other is None else (to_float(other[window] if other.shape == image.shape else other),)
    synthetic = AnomalySynthesizer(recipe, ProceduralTextures(), others=others).synthesize(to_float(good), rng)
    if not synthetic.mask.any():
        return None
    changed = to_8_bit(synthetic.image)
    if np.abs(changed[synthetic.mask].astype(np.int16) - good[synthetic.mask]).mean() < _MIN_CHANGE:
        return None
    out, mask = image.copy(), np.zeros(image.shape[:2], bool)
    out[window], mask[window] = changed, synthetic.mask
    return AnomalySample(out, mask, image, weight=synthetic.weight, recipe=recipe.name)


def _span(length: int, rng: np.random.Generator) -> slice:
    start = int(rng.integers(max(1, length - _WINDOW + 1)))
    return slice(start, start + min(length, _WINDOW))


def _ellipse(image: Rgb, rng: np.random.Generator) -> AnomalySample:
    """An ellipse around a pixel near the middle; always holds that pixel."""
    shape = image.shape[:2]
    centre = [int(side * rng.uniform(0.3, 0.7)) for side in shape]
    radius = [max(1.0, side * rng.uniform(0.05, 0.15)) for side in shape]
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1
    inverted = 255 - image
    nearly_same = np.abs(inverted.astype(np.int16) - image) < 64
    texture = np.where(nearly_same, np.uint8(255), inverted)
    synthetic = to_8_bit(blend(to_float(image), to_float(texture), mask, 0.5))
    return AnomalySample(synthetic, mask, image, weight=0.5, recipe=FALLBACK)
