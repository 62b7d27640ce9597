"""KolektorSDD2's layout: numbered images with their masks beside them, good and flawed ones mixed.

::

    <category>/train/10000.png       an image
    <category>/train/10000_GT.png    its mask; the image is flawed where any pixel is not black
    <category>/test/20000.png, 20000_GT.png
    <category>/validation/good/      optional, not part of the set: good images to calibrate on

A mask says whether its image is good, so the masks are read, and an image without one is not used. The training split
was made for supervised methods: its flawed images (246 of 2331) are left out, since models here learn from good images
alone.

Source: Bozic, Tabernik and Skocaj, Mixed supervision for surface-defect detection, Computers in Industry 2021.
"""

from __future__ import annotations

from pathlib import Path

from flawsmith.data.layouts.base import (
    Collector,
    Layout,
    below,
    count,
    direct_images,
    marked,
    naming,
    register,
    subfolder,
    subfolders,
)
from flawsmith.data.layouts.names import nfc
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError

SUFFIX = "_GT"
DEFECT = "defect"


@register
class Ksdd2Layout(Layout):
    """See the module's docstring."""

    name = "ksdd2"
    expects = f"train/ and test/, each with images NNNNN.png and masks NNNNN{SUFFIX}.png beside them"
    priority = 70

    def recognise(self, root: Path) -> str | None:
        paired = [folder for folder in _splits(root).values() if _pairs(folder)]
        if subfolder(root, "train") not in paired:
            return None
        names = " and ".join(f"{folder.name}/" for folder in paired)
        return f"{self.name} layout, because in {names} images have a mask <name>{SUFFIX} beside them"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        splits = _splits(root)
        numbered = [f for f in splits.values() if any(p.stem.isdecimal() for p in direct_images(f))]
        if not numbered:
            return None
        if "train" not in splits:
            return f"{numbered[0].name}/ has numbered images, but there is no train/"
        return f"{numbered[0].name}/ has numbered images, but train/ none with a mask <name>{SUFFIX}.png"

    def load(self, root: Path) -> Dataset:
        recognised = self.recognise(root)
        if recognised is None:
            raise FlawsmithError(f"{root} is not in {self.name} layout; expected {self.expects}")
        collector, splits, unknown = Collector(root), _splits(root), list[Path]()
        good, collector.left_out = _divide(collector, splits["train"], unknown)
        if not good:
            raise FlawsmithError(f"no good images to train on in {splits['train']}: no image has a black mask")
        collector.add_good(good, "train")
        collector.add_validation()
        if "test" in splits:
            good, flawed = _divide(collector, splits["test"], unknown)
            collector.add_good(good, "test")
            masks = _pairs(splits["test"])
            for image in flawed:
                collector.add_flawed(image, DEFECT, (masks[image],))
        if collector.left_out:
            number = count(len(collector.left_out), "flawed image")
            collector.notes.append(f"left out: {number} of train/, since good images alone are learned from")
        if unknown:
            number = f"{count(len(unknown), 'image')} without a readable mask to tell good from flawed"
            fix = f"copy the masks <name>{SUFFIX}.png anew"
            collector.notes.append(f"not used: {number} ({naming(unknown, root)}); {fix}")
        return collector.dataset(self.name, recognised)


def _splits(root: Path) -> dict[str, Path]:
    folders = {name: subfolder(root, name) for name in ("train", "test")}
    return {name: folder for name, folder in folders.items() if folder is not None}


def _pairs(folder: Path) -> dict[Path, Path]:
    """The mask of each image that has one."""
    files = direct_images(folder)
    masks = {nfc(path.stem): path for path in files}
    stems = {path: nfc(path.stem) + SUFFIX for path in files}
    return {path: masks[stem] for path, stem in stems.items() if stem in masks}


def _divide(collector: Collector, folder: Path, unknown: list[Path]) -> tuple[list[Path], list[Path]]:
    """The good and the flawed images of a split; those whose mask is missing or unreadable go to ``unknown``."""
    pairs = _pairs(folder)
    marks = marked(list(pairs.values()))
    images = [path for path in direct_images(folder) if SUFFIX not in path.stem]
    unknown += [image for image in images if image not in pairs or marks[pairs[image]] is None]
    paired = {pairs[image] for image in images if image in pairs and marks[pairs[image]] is not None}
    collector.unused_masks += [path for path in direct_images(folder) if SUFFIX in path.stem and path not in paired]
    known = [(image, marks[pairs[image]]) for image in images if image in pairs]
    return [image for image, mark in known if mark is False], [image for image, mark in known if mark is True]


PREFIX, GOOD_PART, IMAGES = "mt_", "MT_Free", "Imgs"
TEST_EVERY = 5
"""Of the sorted good images, the first and every so many after it are test images."""
_MASK = ".png"


@register
class MagneticTileLayout(Layout):
    """See the module's docstring."""

    name = "magnetic_tile"
    expects = f"{GOOD_PART}/{IMAGES}/*.jpg and MT_<defect>/{IMAGES}/ with images *.jpg and masks *.png of the same name"
    priority = 60
    place_of_masks = "as <name>.png beside the images"

    def recognise(self, root: Path) -> str | None:
        good, flawed = below(root, GOOD_PART, IMAGES), _flawed(root)
        if good is None or not flawed:
            return None
        names = ", ".join(f"{folder.parent.name}/{folder.name}/" for folder in (good, *flawed))
        return f"{self.name} layout, because it has {names}"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        good, flawed = below(root, GOOD_PART, IMAGES), _flawed(root)
        if good is None and flawed:
            return f"{flawed[0].parent.name}/ is there, but no {GOOD_PART}/{IMAGES}/"
        return f"{GOOD_PART}/{IMAGES}/ is there, but no folder of a defect type" if good is not None else None

    def load(self, root: Path) -> Dataset:
        recognised, good = self.recognise(root), below(root, GOOD_PART, IMAGES)
        if recognised is None or good is None:
            raise FlawsmithError(f"{root} is not in {self.name} layout; expected {self.expects}")
        images, _ = _images_and_masks(good)
        test = images[::TEST_EVERY]
        learned = [image for image in images if image not in set(test)]
        if not learned:
            raise FlawsmithError(f"no good images to train on in {good}; put the .jpg files of the set there")
        collector = Collector(root)
        collector.add_good(learned, "train")
        collector.add_validation()
        collector.add_good(test, "test")
        for folder in _flawed(root):
            _add_flawed(collector, folder)
        if collector.left_out:
            number = f"{count(len(collector.left_out), 'flawed image')} whose mask marks nothing"
            collector.notes.append(f"left out: {number} ({naming(collector.left_out, root)})")
        return collector.dataset(self.name, recognised)


def _flawed(root: Path) -> list[Path]:
    """The folders of flawed images, sorted by name."""
    named = [f for f in subfolders(root) if f.name.casefold().startswith(PREFIX)]
    folders = [below(f, IMAGES) for f in named if f.name.casefold() != GOOD_PART.casefold()]
    return [folder for folder in folders if folder is not None]


def _images_and_masks(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The images, sorted, and the masks by stem."""
    files = direct_images(folder)
    masks = {nfc(path.stem): path for path in files if path.suffix.lower() == _MASK}
    return [path for path in files if path.suffix.lower() != _MASK], masks


def _add_flawed(collector: Collector, folder: Path) -> None:
    defect = folder.parent.name[len(PREFIX) :].lower()
    images, masks = _images_and_masks(folder)
    marks = marked([masks[nfc(image.stem)] for image in images if nfc(image.stem) in masks])
    for image in images:
        mask = masks.pop(nfc(image.stem), None)
        if mask is None:
            collector.add_flawed(image, defect, ())
        elif marks[mask] is False:
            collector.left_out.append(image)
        else:  # one that cannot be read stays with its image, and whoever needs it learns what is wrong
            collector.add_flawed(image, defect, (mask,))
    collector.unused_masks += masks.values()
