"""MVTec 3D-AD's layout, of which the photographs alone are read.

::

    <category>/train/good/{rgb,xyz}/                  good images to learn from
    <category>/validation/good/{rgb,xyz}/             good images to calibrate on
    <category>/test/good/{rgb,xyz,gt}/                the masks of good images are black
    <category>/test/<defect>/{rgb,xyz,gt}/

A photograph rgb/000.png has its mask in gt/000.png beside it. The heights in xyz/000.tiff are left alone.

Source: Bergmann et al., The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and Localization, VISAPP 2022.
"""

from __future__ import annotations

from pathlib import Path

from flawsmith.data.layouts.files import (
    VALIDATION_FOLDERS,
    Collector,
    MaskFolder,
    below,
    count,
    direct_images,
    subfolder,
    subfolders,
)
from flawsmith.data.samples import GOOD, Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import find_images

PHOTOGRAPHS = "rgb"
MASKS = "gt"


class Mvtec3dLayout:
    """See the module's docstring."""

    name = "mvtec_3d"
    expects = "train/good/rgb/, optional validation/good/rgb/, test/{good,<defect>}/rgb/ and masks in test/<defect>/gt/"

    def recognise(self, root: Path) -> str | None:
        learned = below(root, "train", GOOD, PHOTOGRAPHS)
        if learned is None:
            return None
        folders = (learned, subfolder(root, *VALIDATION_FOLDERS), subfolder(root, "test"))
        found = [f.relative_to(root).as_posix() + "/" for f in folders if f is not None]
        return f"{self.name} layout, because it has {', '.join(found)}"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        test = subfolder(root, "test")
        kinds = [f for f in subfolders(test) if subfolder(f, PHOTOGRAPHS)] if test is not None else []
        return f"test/{kinds[0].name}/{PHOTOGRAPHS}/ is there, but no train/{GOOD}/{PHOTOGRAPHS}/" if kinds else None

    def load(self, root: Path) -> Dataset:
        recognised, train = self.recognise(root), below(root, "train", GOOD, PHOTOGRAPHS)
        if recognised is None or train is None:
            raise FlawsmithError(f"{root} is not in {self.name} layout; expected {self.expects}")
        found = Collector(root)
        learned = _photographs(found, train.parent)
        if not learned:
            raise FlawsmithError(f"no good images to train on in {train}; put images of good parts there")
        found.add_good(learned, "train")
        validation, test = subfolder(root, *VALIDATION_FOLDERS), subfolder(root, "test")
        if validation is not None:
            found.add_good(_photographs(found, subfolder(validation, GOOD) or validation), "val")
        if test is not None:
            _pass_over(found, test, f"test/<defect>/{PHOTOGRAPHS}/")
            for folder in subfolders(test):
                _add_test(found, folder)
        return found.dataset(self.name, recognised)


def _add_test(found: Collector, folder: Path) -> None:
    """Add the test images of one defect type, or the good ones."""
    images, masks = _photographs(found, folder), MaskFolder(subfolder(folder, MASKS))
    if folder.name.casefold() == GOOD:
        found.add_good(images, "test")
    else:
        for image in images:
            _, *names = image.relative_to(folder).parts
            found.add_flawed(image, folder.name, masks.masks_of(Path(*names)))
    found.unused_masks += masks.unused()


def _photographs(found: Collector, folder: Path) -> list[Path]:
    """The images in rgb/ of a folder; those that lie beside it are noted."""
    _pass_over(found, folder, f"{folder.relative_to(found.root).as_posix()}/{PHOTOGRAPHS}/")
    photographs = subfolder(folder, PHOTOGRAPHS)
    return find_images(photographs) if photographs is not None else []


def _pass_over(found: Collector, folder: Path, place: str) -> None:
    """Note the images that lie directly in a folder, and where they belong."""
    stray = direct_images(folder)
    if stray:
        where = folder.relative_to(found.root).as_posix()
        found.notes.append(f"not used: {count(len(stray), 'image')} directly in {where}/; move them to {place}")
