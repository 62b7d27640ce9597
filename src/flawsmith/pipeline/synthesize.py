"""Flaws synthesized on a data set's good images: a sheet to look at, and labelled test sets in several strengths.

Source of the sets: MAD-sys of GLASS (ECCV 2024), flaws synthesized on good images by the overlay of its Eq. 4, one set
for each weight β of the good image. Here all strengths have the same masks and textures, so that they compare image by
image. By its counts (320 good and 946 flawed of 1,266) MAD-sys was made of the training images of five textures of
MVTec AD, a quarter of them left good: ``base="training"``. Good test images, the default, are such as no model has
learned from.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

import flawsmith
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import generator
from flawsmith.data.splits import HELD_OUT_FRACTION, HELD_OUT_MINIMUM, good_images
from flawsmith.pipeline.settings import TrainSettings, check_settings, look_at_values
from flawsmith.report.contact_sheet import SheetRow, contact_sheet
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import expanded, printable
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import ImageArray, decode
from flawsmith.synthesis.blend import FixedWeight, FloatImage, Mask, blend
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
    try:
        if final.exists() or final.is_symlink():
            raise FlawsmithError(f"{final} is there already: give the name of a new folder with --out")
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")
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


MANIFEST = "manifest.json"
WEAKNESS = (0.1, 0.3, 0.5, 0.7)
"""Strengths of MAD-sys that the paper of GLASS reports."""

_LEAST_AREA = 2e-4
"""Least share of the image that a flaw covers: a label must mean something that can be seen."""
_LEAST_CHANGE = 1 / 255
"""Least mean change inside a flaw of the weakest strength, of values in [0, 1]: what 8 bits can hold."""
_MAX_TRIES = 32
_STRICT_TRIES = 16
"""Tries for which a flaw must lie on the foreground."""
_SHEET_ROWS = 8

_LEFT_GOOD = 0.25
"""Share of the training images that stays good in MAD-sys."""

Base = Literal["test", "validation", "training"]


@dataclass(frozen=True)
class WeakFlawSets:
    """What was written.

    Attributes:
        folder: the folder of all strengths.
        categories: weakness to the category folder in MVTec layout that ``evaluate`` takes.
        base: which good images the flaws were synthesized on.
        n_good: good test images of each set.
        n_synthetic: synthetic test images of each set.
    """

    folder: Path
    categories: dict[float, Path]
    base: Base
    n_good: int
    n_synthetic: int


def weak_flaw_sets(
    data: str | Path | Dataset,
    out: str | Path,
    settings: SynthesisSettings | None = None,
    *,
    weakness: Sequence[float] = WEAKNESS,
    n: int | None = None,
    per_image: int = 1,
    base: Literal["test", "training"] = "test",
    layout: str | None = None,
    on_message: Callable[[str], object] = lambda _: None,
    on_step: Callable[[], object] = lambda: None,
) -> WeakFlawSets:
    """Write ``out/weakness_<w>/<category>/`` in MVTec layout for each strength, and a manifest beside it.

    ``test/good`` holds all good test images as they are, ``test/forged`` flawed ones made of them, at their own
    size and depth; masks lie in ``ground_truth/forged``, training images in ``train/good``. Where the data have no
    good test images, validation images stand in; where they have none either, training images do, and are left
    out of ``train``. With ``base="training"`` all training images make the test set, as in MAD-sys: a quarter of them,
    drawn by seed, stays good, the others get flaws, and there is no ``train``.

    Args:
        data: a category folder of a known layout, a folder of good images, or a loaded data set.
        out: folder to write; must not exist, and appears when all is written.
        settings: what flaws are made of; the recipe's own law of the weight is put aside.
        weakness: weights of the good image inside the flaws, in [0, 1): near 1 a flaw is hard to see.
        n: synthetic images of each strength, of good ones in seeded order, again and again where they are fewer; None:
            one of each good image, with the same number.
        per_image: flaws on each synthetic image, at least 1.
        base: whether the sets are made of test or of training images; these a model has seen in their good form.
        layout: name of the layout; detected by default.
        on_message: is told what the user should know, a line at a time.
        on_step: called after each synthetic image.

    Raises:
        FlawsmithError: as :func:`~flawsmith.pipeline.synthesize.open_synthesis`; a setting out of range; too few good
            images; no visible flaw can be made; ``out`` exists or cannot be made.
    """
    settings = settings or SynthesisSettings()
    strengths = _checked(weakness, n, per_image)
    if base not in ("test", "training"):
        raise FlawsmithError(f"--base {base} is not possible: choose test or training")
    with new_folder(out) as (folder, final):
        context = open_synthesis(data, settings, layout=layout, on_message=on_message)
        images = _training_images(context) if base == "training" else _base(context)
        on_message(images.note)
        writer = _Writer(context, settings, strengths, per_image, folder)
        writer.copy_good(images.good, images.train)
        chosen = images.sources if n is None else context.order(images.sources, n)
        for index, sample in enumerate(chosen):
            writer.synthesize(index, sample)
            on_step()
        writer.finish(images.base)
    categories = {weight: final / _name(weight) / context.dataset.category for weight in strengths}
    return WeakFlawSets(final, categories, images.base, len(images.good), len(chosen))


class _Images(NamedTuple):
    """What a set is made of: images that stay good, those that get flaws, and those to learn from."""

    base: Base
    good: tuple[Sample, ...]
    sources: tuple[Sample, ...]
    train: tuple[Sample, ...]
    note: str


_NOTES: dict[Base, str] = {
    "test": "flaws are synthesized on the {count} good test images",
    "validation": "no good test images: flaws are synthesized on the {count} good validation images",
    "training": "no good test images: flaws are synthesized on {count} training images, left out of this "
    "set's train/good; "
    "a model that learned from them has seen their good form",
}


def _checked(weakness: Sequence[float], n: int | None, per_image: int) -> tuple[float, ...]:
    """The strengths, sorted."""
    if not weakness or not all(0 <= weight < 1 for weight in weakness):
        text = " ".join(f"{weight:g}" for weight in weakness) or "nothing"
        raise FlawsmithError(f"the weakness must be from 0 to below 1, not {text}: give --weakness 0.1 0.3 0.5 0.7")
    if len({_name(weight) for weight in weakness}) < len(weakness):
        raise FlawsmithError("the same weakness is given twice: give each once with --weakness")
    if n is not None and n < 1:
        raise FlawsmithError(f"the number of synthetic images must be at least 1, not {n}: give another with --n")
    if not 1 <= per_image <= 100:
        raise FlawsmithError(f"flaws on an image must be 1 to 100, not {per_image}: give another with --per-image")
    return tuple(sorted(weakness))


def _training_images(context: SynthesisContext) -> _Images:
    """All training images, a quarter of which stays good.

    Raises:
        FlawsmithError: there is but one.
    """
    images = context.dataset.good_train
    number = min(max(1, round(_LEFT_GOOD * len(images))), len(images) - 1)
    if number == 0:
        raise FlawsmithError(f"{context.dataset.root} has one training image alone: add more, or use --base test")
    drawn = generator(context.seed, "weak flaws left good").permutation(len(images))[:number]
    good = tuple(images[place] for place in sorted(drawn))
    sources = tuple(image for image in images if image not in good)
    note = (
        f"of {len(images)} training images {number} stay good and {len(sources)} get flaws, as in MAD-sys; a model "
        "that learned from them has seen their good form"
    )
    return _Images("training", good, sources, (), note)


def _base(context: SynthesisContext) -> _Images:
    """The good images to synthesize on, and those to learn from.

    Raises:
        FlawsmithError: one good image alone cannot serve both.
    """
    dataset = context.dataset
    if dataset.test_good:
        return _of_all("test", dataset.test_good, dataset.good_train)
    if dataset.good_val:
        return _of_all("validation", dataset.good_val, dataset.good_train)
    n_train = len(dataset.good_train)
    number = min(max(HELD_OUT_MINIMUM, round(HELD_OUT_FRACTION * n_train)), n_train // 2)
    if number == 0:
        raise FlawsmithError(f"{dataset.root} has one good image alone: add good test images in test/good")
    picked = generator(context.seed, "weak flaws base").permutation(n_train)[:number]
    good = tuple(dataset.good_train[place] for place in sorted(picked))
    return _of_all("training", good, tuple(sample for sample in dataset.good_train if sample not in good))


def _of_all(base: Base, good: tuple[Sample, ...], train: tuple[Sample, ...]) -> _Images:
    """Every good image is there as it is and with flaws."""
    return _Images(base, good, good, train, _NOTES[base].format(count=len(good)))


def _name(weight: float) -> str:
    return f"weakness_{weight:g}"


class _Writer:
    """Writes the sets of all strengths side by side, image by image."""

    def __init__(
        self,
        context: SynthesisContext,
        settings: SynthesisSettings,
        strengths: tuple[float, ...],
        per_image: int,
        folder: Path,
    ) -> None:
        self.context, self.settings, self.per_image, self.folder = context, settings, per_image, folder
        # The law of the weight draws nothing now, and no image of a flawed set is left normal.
        recipe = context.recipe.with_weight(FixedWeight(value=0.0)).model_copy(
            update={"normal_share": 0.0, "jitter": 0.0, "feather": 0.0, "least_change": 0.0}
        )
        self.synthesizer = replace(context.synthesizer, recipe=recipe)
        self.roots = {weight: folder / _name(weight) / context.dataset.category for weight in strengths}
        self.good: list[dict[str, str]] = []
        self.synthetic: list[dict[str, Any]] = []
        self.rows: list[SheetRow] = []

    def copy_good(self, good: tuple[Sample, ...], train: tuple[Sample, ...]) -> None:
        """Copy the images that no flaw is put on, once; further strengths link to the copies."""
        for split, samples in (("train/good", train), ("test/good", good)):
            for index, sample in enumerate(samples):
                name = f"{split}/{index:03d}{sample.image.suffix.lower()}"
                if split == "test/good":
                    self.good.append({"image": name, "source": self._source(sample)})
                first, *others = (root / name for root in self.roots.values())
                copy_file(sample.image, first)
                for other in others:
                    link_or_copy(first, other)

    def synthesize(self, index: int, sample: Sample) -> None:
        """One image in all strengths."""
        original = decode(sample.image)
        image = self.context.reader.as_float(original)
        flaws = [self._flaw(index, number, image, sample) for number in range(self.per_image)]
        mask = np.logical_or.reduce([flaw.mask for flaw in flaws])
        name = f"{index:03d}"
        shown = [to_8_bit(image), mask_picture(mask)]
        for weight, root in self.roots.items():
            synthetic = image
            for flaw in flaws:
                assert flaw.texture is not None
                synthetic = blend(synthetic, flaw.texture, flaw.mask, weight)
            write_png(root / "test" / "forged" / f"{name}.png", self._in_depth_of(original, synthetic, mask))
            write_png(root / "ground_truth" / "forged" / f"{name}_mask.png", mask_picture(mask))
            shown.append(to_8_bit(synthetic))
        if index < _SHEET_ROWS:
            self.rows.append(([thumbnail(picture) for picture in shown], sample.image.name))
        self.synthetic.append(
            {
                "image": f"test/forged/{name}.png",
                "mask": f"ground_truth/forged/{name}_mask.png",
                "source": self._source(sample),
                "mask_area": int(np.count_nonzero(mask)),
                "flaws": [
                    {
                        "mask_area": int(np.count_nonzero(flaw.mask)),
                        "texture": self._kind(flaw),
                        "beside_foreground": flaw.fallback is not None,
                    }
                    for flaw in flaws
                ],
            }
        )

    def finish(self, base: Base) -> None:
        """Write a manifest beside each category, and a sheet of the first images in all strengths."""
        for weight, root in self.roots.items():
            manifest = {
                "made_by": f"flawsmith {flawsmith.__version__}",
                "category": self.context.dataset.category,
                # The law that synthetic is a stand-in: the set's own weight belongs in its record.
                "recipe": self.synthesizer.recipe.with_weight(FixedWeight(value=weight)).model_dump(mode="json"),
                "textures": self.settings.texture_kind,
                "foreground": self.settings.foreground_kind,
                "seed": self.settings.seed,
                "weakness": weight,
                "per_image": self.per_image,
                "base": base,
                "good": self.good,
                "forged": [{**record, "weight": weight} for record in self.synthetic],
            }
            text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
            (root.parent / MANIFEST).write_text(text, encoding="utf-8")
        heads = ["image", "mask", *(f"weakness {weight:g}" for weight in self.roots)]
        write_png(self.folder / SHEET, contact_sheet(heads, self.rows))

    def _flaw(self, index: int, number: int, image: FloatImage, sample: Sample) -> AnomalySample:
        """A flaw that can be seen in the weakest strength."""
        weakest = max(self.roots)
        for attempt in range(_MAX_TRIES):
            rng = generator(self.context.seed, "weak flaws", index, number, attempt)
            flaw = self.synthesizer.synthesize(image, rng, path=sample.image)
            if flaw.texture is None or (flaw.fallback is not None and attempt < _STRICT_TRIES):
                continue
            change = (1 - weakest) * float(np.abs(flaw.texture - image)[flaw.mask].mean())
            if np.count_nonzero(flaw.mask) >= _LEAST_AREA * flaw.mask.size and change >= _LEAST_CHANGE:
                return flaw
        raise FlawsmithError(
            f"{sample.image}: no visible flaw in {_MAX_TRIES} tries: give other --textures or a lower --weakness"
        )

    def _kind(self, flaw: AnomalySample) -> str:
        """Where the texture of a flaw came from, in a word."""
        assert flaw.branch is not None
        return self.settings.texture_kind if flaw.branch.texture == "source" else flaw.branch.texture

    def _in_depth_of(self, original: ImageArray, synthetic: FloatImage, mask: Mask) -> ImageArray:
        """The synthetic image in the values of its file; outside the mask the very values of the file."""
        low, high = (0.0, 255.0) if original.dtype == np.uint8 else self.context.reader.value_range
        result = original.copy()
        result[mask] = np.rint(np.clip(synthetic[mask], 0, 1) * np.float64(high - low) + low).astype(original.dtype)
        return result

    def _source(self, sample: Sample) -> str:
        return printable(self.context.dataset.name_of(sample.image))
