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

from flawsmith.data.layouts.files import Collector, count, direct_images, naming, subfolder
from flawsmith.data.layouts.marks import marked
from flawsmith.data.samples import GOOD, Dataset
from flawsmith.runtime.errors import FlawsmithError

SUFFIX = "_GT"
DEFECT = "defect"


class Ksdd2Layout:
    """See the module's docstring."""

    name = "ksdd2"
    expects = f"train/ and test/, each with images NNNNN.png and masks NNNNN{SUFFIX}.png beside them"

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
        found, splits, unknown = Collector(root), _splits(root), list[Path]()
        good, found.left_out = _divide(found, splits["train"], unknown)
        if not good:
            raise FlawsmithError(f"no good images to train on in {splits['train']}: no image has a black mask")
        found.add_good(good, "train")
        found.add_validation(GOOD)
        if "test" in splits:
            good, flawed = _divide(found, splits["test"], unknown)
            found.add_good(good, "test")
            masks = _pairs(splits["test"])
            for image in flawed:
                found.add_flawed(image, DEFECT, (masks[image],))
        if found.left_out:
            what = count(len(found.left_out), "flawed image")
            found.notes.append(f"left out: {what} of train/, since good images alone are learned from")
        if unknown:
            what = f"{count(len(unknown), 'image')} without a readable mask to tell good from flawed"
            mend = f"copy the masks <name>{SUFFIX}.png anew"
            found.notes.append(f"not used: {what} ({naming(unknown, root)}); {mend}")
        return found.dataset(self.name, recognised)


def _splits(root: Path) -> dict[str, Path]:
    folders = {name: subfolder(root, name) for name in ("train", "test")}
    return {name: folder for name, folder in folders.items() if folder is not None}


def _pairs(folder: Path) -> dict[Path, Path]:
    """The mask of each image that has one."""
    files = direct_images(folder)
    masks = {path.stem: path for path in files}
    return {path: masks[path.stem + SUFFIX] for path in files if path.stem + SUFFIX in masks}


def _divide(found: Collector, folder: Path, unknown: list[Path]) -> tuple[list[Path], list[Path]]:
    """The good and the flawed images of a split; those whose mask is missing or unreadable go to ``unknown``."""
    pairs = _pairs(folder)
    marks = marked(list(pairs.values()))
    images = [path for path in direct_images(folder) if SUFFIX not in path.stem]
    unknown += [image for image in images if image not in pairs or marks[pairs[image]] is None]
    paired = {pairs[image] for image in images if image in pairs and marks[pairs[image]] is not None}
    found.unused_masks += [path for path in direct_images(folder) if SUFFIX in path.stem and path not in paired]
    known = [(image, marks[pairs[image]]) for image in images if image in pairs]
    return [image for image, mark in known if mark is False], [image for image, mark in known if mark is True]
