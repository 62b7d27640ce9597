"""A data set with all that is needed to forge flaws on its images: recipe, textures, foreground, reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import generator
from flawsmith.data.splits import good_images
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import ImageArray, decode
from flawsmith.synthesis.foreground import Foreground, ForegroundProvider, provider
from flawsmith.synthesis.forge import Forger
from flawsmith.synthesis.overlay import Image
from flawsmith.synthesis.recipes import Recipe, find_recipe
from flawsmith.synthesis.textures import texture_source

_FITTED_ON = 10
"""Good images by which an automatic foreground is decided for a whole data set."""


@dataclass(frozen=True)
class Ingredients:
    """What flaws are made of.

    Attributes:
        recipe: name of a recipe, such as ``glass``.
        textures: ``procedural`` (also None), ``self``, or a folder of pictures.
        foreground: where flaws may lie: ``none`` (anywhere), ``auto``, or a folder of masks named like the images.
        seed: seed of every draw, at least 0.
        bits: significant bits of a camera stored in 16-bit files, 9 to 16; None: 16.
    """

    recipe: str = "glass"
    textures: str | Path | None = None
    foreground: str | Path = "none"
    seed: int = 0
    bits: int | None = None

    @property
    def texture_kind(self) -> str:
        """The texture source in a word: a folder's place is nobody's business."""
        kind = "procedural" if self.textures is None else self.textures
        return str(kind) if kind in ("procedural", "self") else "folder"

    @property
    def foreground_kind(self) -> str:
        """The foreground in a word."""
        return str(self.foreground) if self.foreground in ("none", "auto") else "folder"

    @property
    def value_range(self) -> tuple[float, float]:
        """Values of a deeper source that become 0 and 1.

        Raises:
            FlawsmithError: no camera has so many bits.
        """
        try:
            return Geometry.range_of_bits(16 if self.bits is None else self.bits)
        except ValueError as error:
            raise FlawsmithError(f"--bits {self.bits}: {error}") from None


@dataclass(frozen=True)
class GoodImages:
    """Reads good images as the forger wants them. Called with a generator, it draws one. Picklable.

    Attributes:
        files: the images.
        value_range: values of a source deeper than 8 bits that become 0 and 1.
        geometry: the size to bring them to; None: as they are.
    """

    files: tuple[Path, ...]
    value_range: tuple[float, float]
    geometry: Geometry | None = None

    def __call__(self, rng: np.random.Generator) -> Image:
        """One of the images, (height, width, 3) float32 in [0, 1]."""
        return self.as_float(decode(self.files[int(rng.integers(len(self.files)))]))

    def as_float(self, image: ImageArray) -> Image:
        """A decoded image in [0, 1], in the size that the geometry wants."""
        if self.geometry is not None:
            return np.ascontiguousarray(self.geometry.apply(image).transpose(1, 2, 0))
        low, high = (0.0, 255.0) if image.dtype == np.uint8 else self.value_range
        return np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


@dataclass(frozen=True)
class Workshop:
    """A data set and all that is needed to forge flaws on its images.

    Attributes:
        dataset: the data.
        recipe: how flaws are made.
        reader: reads its good images.
        forger: makes the flaws.
        seed: seed of every draw.
    """

    dataset: Dataset
    recipe: Recipe
    reader: GoodImages
    forger: Forger
    seed: int

    def order(self, samples: tuple[Sample, ...], number: int) -> list[Sample]:
        """So many of the samples in seeded order; all of them before any comes again."""
        order = generator(self.seed, "synthesize order").permutation(len(samples))
        return [samples[order[index % len(samples)]] for index in range(number)]


def open_workshop(
    data: str | Path | Dataset,
    ingredients: Ingredients,
    *,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    told: Callable[[str], object] = lambda _: None,
) -> Workshop:
    """Prepare to forge flaws on a data set.

    Args:
        data: a category folder of a known layout, a folder of good images, or a loaded data set.
        ingredients: what flaws are made of.
        layout: name of the layout; detected by default.
        size: (height, width) to which images are squashed, as for training; None: as they are.
        told: is told what the user should know, a line at a time.

    Raises:
        FlawsmithError: an unknown recipe or layout, no such folder, a setting out of range, an unreadable image.
    """
    recipe = find_recipe(ingredients.recipe)
    if ingredients.seed < 0:
        raise FlawsmithError(f"the seed must not be negative, not {ingredients.seed}: give another with --seed")
    if size is not None and not all(8 <= side <= 8192 for side in size):
        raise FlawsmithError(f"the size {size[0]} x {size[1]} is not possible: give 8 to 8192 pixels with --size")
    value_range = ingredients.value_range
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    files = tuple(sample.image for sample in good_images(dataset))
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "value_range": value_range}
    geometry = None if size is None else Geometry(size=size, **plain)
    reader = GoodImages(files, value_range, geometry)
    forger = Forger(
        recipe,
        texture_source(ingredients.textures, files, fit=recipe.fit, value_range=value_range),
        foreground_provider=_foreground(ingredients, reader, told),
        geometry=geometry,
        others=reader,
    )
    return Workshop(dataset, recipe, reader, forger, ingredients.seed)


def _foreground(
    ingredients: Ingredients, reader: GoodImages, told: Callable[[str], object]
) -> ForegroundProvider | None:
    kind = ingredients.foreground_kind
    if kind == "none":
        return None
    if kind == "folder":
        return provider(Foreground(mode="files"), Path(ingredients.foreground).expanduser())
    some = generator(ingredients.seed, "synthesize foreground").permutation(len(reader.files))[:_FITTED_ON]
    found = provider(Foreground(mode="auto")).fit(reader.as_float(decode(reader.files[number])) for number in some)
    if found.reason is not None:
        told(f"no foreground: {found.reason}; flaws lie anywhere")
    return found
