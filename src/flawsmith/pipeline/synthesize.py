"""Flaws forged on a data set's good images, to look at before anything is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import generator
from flawsmith.pipeline.picture_files import Rgb, mask_picture, new_folder, thumbnail, write_png
from flawsmith.pipeline.workshop import Ingredients, Workshop, open_workshop
from flawsmith.report.contact_sheet import SheetRow, contact_sheet
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.synthesis.foreground import preview
from flawsmith.synthesis.forge import Forged, to_8_bit
from flawsmith.synthesis.overlay import Image

SHEET, PICTURES = "sheet.png", "pictures"


@dataclass(frozen=True)
class PreviewFiles:
    """What a preview leaves behind.

    Attributes:
        sheet: the contact sheet.
        pictures: folder of single pictures; None where none were asked for.
        n: number of samples.
        mean_tries: masks that were looked at a sample, on average.
        fell_back: samples for which no mask counted within the recipe's tries.
    """

    sheet: Path
    pictures: Path | None
    n: int
    mean_tries: float
    fell_back: int


def synthesize(
    data: str | Path | Dataset,
    out: str | Path,
    ingredients: Ingredients | None = None,
    *,
    n: int = 16,
    size: tuple[int, int] | None = None,
    pictures: bool = False,
    layout: str | None = None,
    told: Callable[[str], object] = lambda _: None,
    done: Callable[[], object] = lambda: None,
) -> PreviewFiles:
    """Forge flaws on good training images and write a contact sheet: image, mask, texture, result.

    Args:
        data: a category folder of a known layout, a folder of good images, or a loaded data set.
        out: folder to write; must not exist, and appears when all is written.
        ingredients: what flaws are made of.
        n: number of samples, at least 1.
        size: (height, width) to which images are squashed; None: as they are.
        pictures: write the single pictures too.
        layout: name of the layout; detected by default.
        told: is told what the user should know, a line at a time.
        done: called after each sample.

    Raises:
        FlawsmithError: as :func:`~flawsmith.pipeline.workshop.open_workshop`; ``out`` exists or cannot be made.
    """
    ingredients = ingredients or Ingredients()
    if n < 1:
        raise FlawsmithError(f"the number of samples must be at least 1, not {n}: give another with --n")
    with new_folder(out) as (folder, final):
        workshop = open_workshop(data, ingredients, layout=layout, size=size, told=told)
        shows_foreground = workshop.forger.foreground_provider is not None
        heads = ["image", *(["foreground"] if shows_foreground else []), "mask", "texture", "result"]
        rows, tries, fell_back = [], 0, 0
        for index, sample in enumerate(workshop.order(workshop.dataset.good_train, n)):
            image = workshop.reader.as_float(decode(sample.image))
            forged = workshop.forger.forge(image, generator(workshop.seed, "synthesize", index), path=sample.image)
            shown = _shown(workshop, sample, image, forged)
            if pictures:
                for name, picture in zip(heads, shown, strict=True):
                    write_png(folder / PICTURES / f"{index:03d}_{name}.png", picture)
            rows.append(SheetRow([thumbnail(picture) for picture in shown], _caption(sample, forged)))
            tries, fell_back = tries + forged.tries, fell_back + (forged.fell_back is not None)
            done()
        write_png(folder / SHEET, contact_sheet(heads, rows))
    return PreviewFiles(final / SHEET, final / PICTURES if pictures else None, n, tries / n, fell_back)


def _shown(workshop: Workshop, sample: Sample, image: Image, forged: Forged) -> list[Rgb]:
    shown = [to_8_bit(image)]
    if (find := workshop.forger.foreground_provider) is not None:
        shown.append(preview(image, find(image, sample.image, workshop.forger.geometry)))
    texture = np.full_like(image, 1.0) if forged.texture is None else forged.texture
    return [*shown, mask_picture(forged.mask), to_8_bit(texture), to_8_bit(forged.image)]


def _caption(sample: Sample, forged: Forged) -> str:
    tries = f"{forged.tries} {'try' if forged.tries == 1 else 'tries'}"
    fact = "left normal" if forged.texture is None else f"weight {forged.weight:.2f}, {tries}"
    if forged.fell_back == "foreground ignored":
        fact += ", foreground ignored"
    return f"{sample.image.name}: {fact}"
