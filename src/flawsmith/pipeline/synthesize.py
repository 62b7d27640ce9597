"""Flaws synthesized on a data set's good images, to look at before anything is trained on them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import generator
from flawsmith.data.splits import good_images
from flawsmith.pipeline.settings import TrainSettings, check_settings, look_at_values
from flawsmith.report.contact_sheet import contact_sheet
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import expanded
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import ImageArray, decode
from flawsmith.synthesis.blend import FloatImage
from flawsmith.synthesis.foreground import Foreground, ForegroundProvider, preview, provider
from flawsmith.synthesis.recipes import Recipe, find_recipe
from flawsmith.synthesis.synthesizer import AnomalySample, AnomalySynthesizer, to_8_bit
from flawsmith.synthesis.textures import texture_source

_FITTED_ON = 10
"""Good images by which an automatic foreground is decided for a whole data set."""


@dataclass(frozen=True)
class SynthesisSettings:
    """What flaws are made of.

    Attributes:
        recipe: name of a recipe, such as ``glass``.
        textures: ``procedural`` (also None), ``self``, or a folder of pictures.
        foreground: where flaws may lie: ``none`` (anywhere), ``auto``, or a folder of masks named like the images.
        seed: seed of every draw, at least 0.
        bits: significant bits of a camera stored in 16-bit files, 9 to 16; None: 16.
        value_range: values of images deeper than 8 bits that become black and white, in place of ``bits``.
    """

    recipe: str = "glass"
    textures: str | Path | None = None
    foreground: str | Path = "none"
    seed: int = 0
    bits: int | None = None
    value_range: tuple[float, float] | None = None

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
    def declared(self) -> TrainSettings:
        """What is declared of images deeper than 8 bits, by the rules of a training.

        Raises:
            FlawsmithError: no camera has so many bits, the range is none, or both are given.
        """
        return check_settings({"bits": self.bits, "value_range": self.value_range})


@dataclass(frozen=True)
class ImageReader:
    """Reads good images as the synthesizer wants them. Called with a generator, it draws one. Picklable.

    Attributes:
        value_range: values of a source deeper than 8 bits that become 0 and 1.
        geometry: the size to bring them to; None: as they are.
    """

    files: tuple[Path, ...]
    value_range: tuple[float, float]
    geometry: Geometry | None = None

    def __call__(self, rng: np.random.Generator) -> FloatImage:
        """One of the images, (height, width, 3) float32 in [0, 1]."""
        return self.as_float(decode(self.files[int(rng.integers(len(self.files)))]))

    def as_float(self, image: ImageArray) -> FloatImage:
        """A decoded image in [0, 1], in the size that the geometry wants."""
        if self.geometry is not None:
            return self.geometry.to_float(self.geometry.fit(image))
        low, high = (0.0, 255.0) if image.dtype == np.uint8 else self.value_range
        return np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


@dataclass(frozen=True)
class SynthesisContext:
    """A data set and all that is needed to synthesize flaws on its images."""

    dataset: Dataset
    recipe: Recipe
    reader: ImageReader
    synthesizer: AnomalySynthesizer
    seed: int

    def order(self, samples: tuple[Sample, ...], number: int) -> list[Sample]:
        """So many of the samples in seeded order; all of them before any comes again."""
        order = generator(self.seed, "synthesize order").permutation(len(samples))
        return [samples[order[index % len(samples)]] for index in range(number)]


def open_synthesis(
    data: str | Path | Dataset,
    settings: SynthesisSettings,
    *,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    on_message: Callable[[str], object] = lambda _: None,
) -> SynthesisContext:
    """Prepare to synthesize flaws on a data set.

    Args:
        data: a category folder of a known layout, a folder of good images, or a loaded data set.
        size: (height, width) to which images are squashed, as for training; None: as they are.

    Raises:
        FlawsmithError: an unknown recipe or layout, no such folder, a setting out of range, an unreadable image.
    """
    recipe = find_recipe(settings.recipe)
    if settings.seed < 0:
        raise FlawsmithError(f"the seed must not be negative, not {settings.seed}: give another with --seed")
    if size is not None and not all(8 <= side <= 8192 for side in size):
        raise FlawsmithError(f"the size {size[0]} x {size[1]} is not possible: give 8 to 8192 pixels with --size")
    declared = settings.declared
    value_range = declared.source_range or (0.0, 65535.0)
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    good = good_images(dataset)
    _, advice = look_at_values(good, declared)
    if advice is not None:
        on_message(f"warning: {advice}")
    files = tuple(sample.image for sample in good)
    geometry = None if size is None else Geometry(size=size, value_range=value_range)
    reader = ImageReader(files, value_range, geometry)
    synthesizer = AnomalySynthesizer(
        recipe,
        texture_source(settings.textures, files, fit=recipe.fit, value_range=value_range),
        foreground_provider=_foreground(settings, reader, on_message),
        geometry=geometry,
        others=reader,
    )
    return SynthesisContext(dataset, recipe, reader, synthesizer, settings.seed)


def _foreground(
    settings: SynthesisSettings, reader: ImageReader, on_message: Callable[[str], object]
) -> ForegroundProvider | None:
    kind = settings.foreground_kind
    if kind == "none":
        return None
    if kind == "folder":
        return provider(Foreground(mode="files"), expanded(settings.foreground))
    some = generator(settings.seed, "synthesize foreground").permutation(len(reader.files))[:_FITTED_ON]
    automatic = provider(Foreground(mode="auto")).fit(reader.as_float(decode(reader.files[place])) for place in some)
    if automatic.reason is not None:
        on_message(f"no foreground: {automatic.reason}; flaws lie anywhere")
    return automatic


Rgb = NDArray[np.uint8]


@contextmanager
def new_folder(out: str | Path) -> Iterator[tuple[Path, Path]]:
    """A folder that appears under its name when the block ends well, and not at all otherwise.

    Yields:
        The temporary folder to write into, and the name that it will have.

    Raises:
        FlawsmithError: something stands there already, or the folder cannot be made.
    """
    final = expanded(out)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")
    try:
        if final.exists() or final.is_symlink():
            raise FlawsmithError(f"{final} is there already: give the name of a new folder with --out")
        temporary.mkdir(parents=True)
    except OSError as error:
        raise FlawsmithError(f"{final} cannot be made ({error.strerror}): give another folder with --out") from None
    try:
        yield temporary, final
        try:
            temporary.rename(final)
        except OSError as error:
            raise FlawsmithError(f"{final} cannot be made ({error.strerror}): give another folder with --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_png(path: Path, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write (height, width) or (height, width, 3) RGB, 8 or 16 bits deep; grey files where all channels are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.ndim == 3 and (picture == picture[:, :, :1]).all():
        picture = picture[:, :, 0]
    ordered = picture if picture.ndim == 2 else picture[:, :, ::-1]
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes())


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, into a folder that is made where it is missing.

    Raises:
        FlawsmithError: there is no such file, or it may not be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise FlawsmithError(f"{source}: no such file; check the path") from None
    except PermissionError:
        raise FlawsmithError(f"{source}: may not be read; check the file's permissions") from None


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def mask_picture(mask: NDArray[np.bool_]) -> Rgb:
    """(height, width), 255 inside."""
    return mask.astype(np.uint8) * np.uint8(255)


def thumbnail(picture: Rgb, side: int = 384) -> Rgb:
    """At most ``side`` pixels long: a sheet of large images must not hold them all."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    width, height = (max(1, round(length * scale)) for length in (picture.shape[1], picture.shape[0]))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


SHEET, PICTURES = "sheet.png", "pictures"


@dataclass(frozen=True)
class PreviewFiles:
    """What a preview leaves behind.

    Attributes:
        sheet: the contact sheet.
        pictures: folder of single pictures; None where none were asked for.
        n: number of samples.
        mean_tries: masks that were looked at a sample, on average.
        fallbacks: samples for which no mask counted within the recipe's tries.
    """

    sheet: Path
    pictures: Path | None
    n: int
    mean_tries: float
    fallbacks: int


def synthesize(
    data: str | Path | Dataset,
    out: str | Path,
    settings: SynthesisSettings | None = None,
    *,
    n: int = 16,
    size: tuple[int, int] | None = None,
    pictures: bool = False,
    layout: str | None = None,
    on_message: Callable[[str], object] = lambda _: None,
    on_step: Callable[[], object] = lambda: None,
) -> PreviewFiles:
    """Synthesize flaws on good training images and write a contact sheet: image, mask, texture, result.

    Args:
        data: a category folder of a known layout, a folder of good images, or a loaded data set.
        out: folder to write; must not exist, and appears when all is written.
        settings: what flaws are made of.
        n: number of samples, at least 1.
        size: (height, width) to which images are squashed; None: as they are.
        pictures: write the single pictures too.
        layout: name of the layout; detected by default.
        on_message: is told what the user should know, a line at a time.
        on_step: called after each sample.

    Raises:
        FlawsmithError: as :func:`~flawsmith.pipeline.synthesize.open_synthesis`; ``out`` exists or cannot be made.
    """
    settings = settings or SynthesisSettings()
    if n < 1:
        raise FlawsmithError(f"the number of samples must be at least 1, not {n}: give another with --n")
    with new_folder(out) as (folder, final):
        context = open_synthesis(data, settings, layout=layout, size=size, on_message=on_message)
        shows_foreground = context.synthesizer.foreground_provider is not None
        heads = ["image", *(["foreground"] if shows_foreground else []), "mask", "texture", "result"]
        rows, tries, fallbacks = [], 0, 0
        for index, sample in enumerate(context.order(context.dataset.good_train, n)):
            image = context.reader.as_float(decode(sample.image))
            synthetic = context.synthesizer.synthesize(
                image, generator(context.seed, "synthesize", index), path=sample.image
            )
            shown = _shown(context, sample, image, synthetic)
            if pictures:
                for name, picture in zip(heads, shown, strict=True):
                    write_png(folder / PICTURES / f"{index:03d}_{name}.png", picture)
            rows.append(([thumbnail(picture) for picture in shown], _caption(sample, synthetic)))
            tries, fallbacks = tries + synthetic.tries, fallbacks + (synthetic.fallback is not None)
            on_step()
        write_png(folder / SHEET, contact_sheet(heads, rows))
    return PreviewFiles(final / SHEET, final / PICTURES if pictures else None, n, tries / n, fallbacks)


def _shown(context: SynthesisContext, sample: Sample, image: FloatImage, synthetic: AnomalySample) -> list[Rgb]:
    shown = [to_8_bit(image)]
    if (find := context.synthesizer.foreground_provider) is not None:
        shown.append(preview(image, find(image, sample.image, context.synthesizer.geometry)))
    texture = np.full_like(image, 1.0) if synthetic.texture is None else synthetic.texture
    return [*shown, mask_picture(synthetic.mask), to_8_bit(texture), to_8_bit(synthetic.image)]


def _caption(sample: Sample, synthetic: AnomalySample) -> str:
    tries = f"{synthetic.tries} {'try' if synthetic.tries == 1 else 'tries'}"
    fact = "left normal" if synthetic.texture is None else f"weight {synthetic.weight:.2f}, {tries}"
    if synthetic.fallback == "foreground ignored":
        fact += ", foreground ignored"
    return f"{sample.image.name}: {fact}"
