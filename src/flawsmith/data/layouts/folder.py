"""Just a folder of good images, and the ways in which people usually sort one.

::

    <category>/*.png                                 every image is a good one to learn from
    <category>/good/                                 the same, with room beside it for:
    <category>/{bad,defect,defective,ng,...}/        flawed images to test on; sub-folders name defect types
    <category>/{val,validation}/                     good images to calibrate on, directly or in good/
    <category>/{ground_truth,masks}/                 masks of the flawed images, paired by stem
"""

from __future__ import annotations

from pathlib import Path

from flawsmith.data.layouts.base import (
    GOOD_FOLDERS,
    MASK_FOLDERS,
    VALIDATION_FOLDERS,
    Collector,
    Layout,
    MaskFolder,
    count,
    direct_images,
    has_images,
    register,
    subfolder,
    subfolders,
)
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import find_images

FLAWED_FOLDERS = frozenset(
    "bad defect defects defective ng nok ko flawed anomaly anomalies anomalous".split()  # noqa: SIM905
)
# Names that promise another role than "good image to learn from".
_RESERVED = FLAWED_FOLDERS | MASK_FOLDERS | {*VALIDATION_FOLDERS, "test", "train"}


@register
class FolderLayout(Layout):
    """See the module's docstring."""

    name = "folder"
    expects = "images of good parts, directly or in good/, and optionally bad/<defect>/, val/ and ground_truth/"
    priority = 100

    def recognise(self, root: Path) -> str | None:
        good = _good_folder(root)
        if good is not None and has_images(good):
            return f"folder layout, because it has {good.name}/ with images and no train/good/"
        direct = direct_images(root)
        if direct:
            return f"folder layout, because {count(len(direct), 'image')} lie directly in it"
        nested = [f for f in subfolders(root) if not _is_reserved(f.name) and has_images(f)]
        if nested:
            return f"folder layout, because images lie in {count(len(nested), 'sub-folder')} of no known meaning"
        return None

    def load(self, root: Path) -> Dataset:
        recognised = self.recognise(root)
        if recognised is None:
            raise FlawsmithError(f"no good images to train on in {root}; expected {self.expects}")
        collector = Collector(root)
        collector.add_good(self._train_images(root, collector.notes), "train")
        collector.add_validation(*GOOD_FOLDERS)
        _add_flawed(collector)
        test = subfolder(root, "test")
        if test is not None:
            fix = "a test split needs the mvtec layout, with good images in train/good/"
            collector.notes.append(_passed_over(test, fix))
        return collector.dataset(self.name, recognised)

    def _train_images(self, root: Path, notes: list[str]) -> list[Path]:
        good = _good_folder(root)
        if good is not None and has_images(good):
            for other in subfolders(root):
                if other != good and not _is_reserved(other.name) and has_images(other):
                    notes.append(_passed_over(other, "put flawed images under bad/, good ones under good/"))
            stray = direct_images(root)
            if stray:
                notes.append(f"not used: {count(len(stray), 'image')} directly in {root}, beside {good.name}/")
            return find_images(good)
        images = direct_images(root)
        for folder in subfolders(root):
            if not _is_reserved(folder.name):
                images += _unlabelled(root, folder)
        return sorted(images)


def _unlabelled(root: Path, folder: Path) -> list[Path]:
    """Images of a sub-folder whose name means nothing, unless names below it tell of a labelled set.

    Raises:
        FlawsmithError: training on all of it would learn flawed images or masks as good.
    """
    images = find_images(folder)
    for path in images:
        parts = path.relative_to(root).parts[1:-1]
        if any(_is_reserved(part) or part.casefold() in GOOD_FOLDERS for part in parts):
            raise FlawsmithError(
                f"{root} is not a folder of good images alone: {path.parent.relative_to(root)}/ looks like "
                "part of a labelled set; give the folder that holds the good images, or arrange it as "
                "train/good/ and test/<defect>/"
            )
    return images


def _add_flawed(collector: Collector) -> None:
    folders = subfolders(collector.root)
    truth = next((f for f in folders if f.name.casefold() in MASK_FOLDERS), None)
    unused: set[Path] = set(find_images(truth)) if truth is not None else set()
    for folder in folders:
        if folder.name.casefold() not in FLAWED_FOLDERS:
            continue
        # Masks lie in ground_truth/<bad>/, or in ground_truth/ itself where all flawed images are in one
        # folder.
        masks = MaskFolder((subfolder(truth, folder.name) or truth) if truth is not None else None)
        for path in find_images(folder):
            relative = path.relative_to(folder)
            defect = relative.parts[0] if len(relative.parts) > 1 else folder.name
            paired = masks.masks_of(relative)
            unused.difference_update(paired)
            collector.add_flawed(path, defect, paired)
    collector.unused_masks += unused


def _good_folder(root: Path) -> Path | None:
    return subfolder(root, *GOOD_FOLDERS)


def _is_reserved(name: str) -> bool:
    return name.casefold() in _RESERVED


def _passed_over(folder: Path, fix: str) -> str:
    return f"not used: {folder.name}/ ({count(len(find_images(folder)), 'image')}); {fix}"
