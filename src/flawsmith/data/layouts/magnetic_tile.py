"""The magnetic tile set as its authors released it: one folder a defect type, masks beside the images.

::

    <category>/MT_Free/Imgs/exp1_num_4727.jpg        good; its black .png is not needed
    <category>/MT_Blowhole/Imgs/exp1_num_3667.jpg    flawed, as in MT_Break, MT_Crack, MT_Fray and MT_Uneven
    <category>/MT_Blowhole/Imgs/exp1_num_3667.png    its mask
    <category>/validation/good/                      optional, not part of the set: good images to calibrate on

The set has no official split. Ours: of the good images, sorted by name, the first and every fifth after it are test
images, the others are learned from (191 and 761 of 952). All flawed images are test images, but for those whose mask
marks nothing (four of MT_Uneven): they are left out, because no pixel of them counts as flawed.

Source: Huang, Qiu and Yuan, Surface defect saliency of magnetic tile, The Visual Computer 2020 (CASE 2018).
"""

from __future__ import annotations

from pathlib import Path

from flawsmith.data.layouts.files import Collector, below, count, direct_images, naming, subfolders
from flawsmith.data.layouts.marks import marked
from flawsmith.data.samples import GOOD, Dataset
from flawsmith.runtime.errors import FlawsmithError

PREFIX, GOOD_PART, IMAGES = "mt_", "MT_Free", "Imgs"
TEST_EVERY = 5
"""Of the sorted good images, the first and every so many after it are test images."""
_MASK = ".png"


class MagneticTileLayout:
    """See the module's docstring."""

    name = "magnetic_tile"
    expects = f"{GOOD_PART}/{IMAGES}/*.jpg and MT_<defect>/{IMAGES}/ with images *.jpg and masks *.png of the same name"

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
        found = Collector(root)
        found.add_good(learned, "train")
        found.add_validation(GOOD)
        found.add_good(test, "test")
        for folder in _flawed(root):
            _add_flawed(found, folder)
        if found.left_out:
            what = f"{count(len(found.left_out), 'flawed image')} whose mask marks nothing"
            found.notes.append(f"left out: {what} ({naming(found.left_out, root)})")
        return found.dataset(self.name, recognised)


def _flawed(root: Path) -> list[Path]:
    """The folders of flawed images, sorted by name."""
    named = [f for f in subfolders(root) if f.name.casefold().startswith(PREFIX)]
    folders = [below(f, IMAGES) for f in named if f.name.casefold() != GOOD_PART.casefold()]
    return [folder for folder in folders if folder is not None]


def _images_and_masks(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The images, sorted, and the masks by stem."""
    files = direct_images(folder)
    masks = {path.stem: path for path in files if path.suffix.lower() == _MASK}
    return [path for path in files if path.suffix.lower() != _MASK], masks


def _add_flawed(found: Collector, folder: Path) -> None:
    defect = folder.parent.name[len(PREFIX) :].lower()
    images, masks = _images_and_masks(folder)
    marks = marked([masks[image.stem] for image in images if image.stem in masks])
    for image in images:
        mask = masks.pop(image.stem, None)
        if mask is None:
            found.add_flawed(image, defect, ())
        elif marks[mask] is False:
            found.left_out.append(image)
        else:  # one that cannot be read stays with its image, and whoever needs it learns what is wrong
            found.add_flawed(image, defect, (mask,))
    found.unused_masks += masks.values()
