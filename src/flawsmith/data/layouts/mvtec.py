"""MVTec AD's layout, which MPDD, WFDD and the MAD sets share.

::

    <category>/train/good/            good images to learn from
    <category>/validation/good/       optional (also val/good): good images to calibrate on
    <category>/test/good/             optional
    <category>/test/<defect>/         optional
    <category>/ground_truth/<defect>/<stem>_mask.<ext>, <stem>.<ext> or a folder <stem>/ of masks

A folder of good images may be called ok/, normal/, pass/ and so on as well (:mod:`flawsmith.data.layouts.names`).
A category without train/ is a test set for models that
were trained elsewhere, as in MAD-man and MAD-sys (``MAD-man/Person_1/<category>/``), known by test/good/ or
ground_truth/.

Source: Bergmann et al., MVTec AD, CVPR 2019; the folder of masks is that of MVTec LOCO AD.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flawsmith.data.layouts.base import (
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    VALIDATION_FOLDERS,
    Collector,
    ImagesOf,
    Layout,
    MaskFolder,
    below,
    count,
    direct_images,
    has_images,
    holds_no_parts,
    means_good,
    register,
    same_name,
    subfolder,
    subfolders,
)
from flawsmith.data.layouts.folder import hold
from flawsmith.data.layouts.names import companion_folders, sort_folders, speaks_of_masks
from flawsmith.data.samples import GOOD, Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images


@register
class MvtecLayout(Layout):
    """See the module's docstring."""

    name = "mvtec"
    expects = "train/good/, optional validation/good/, test/good/, test/<defect>/ and ground_truth/<defect>/"
    priority = 30

    def recognise(self, root: Path) -> str | None:
        folders = split_folders(root)
        return f"{self.name} layout, because it has {', '.join(folders)}{without_train(root)}" if folders else None

    def near_miss(self, root: Path) -> str | None:
        train, test = subfolder(root, *TRAIN_FOLDERS), subfolder(root, *TEST_FOLDERS)
        if train is not None and not _train_good(root) and (test is not None or ground_truth(root) is not None):
            return f"{train.name}/ is there, but no {train.name}/good/"
        if train is None and (test := subfolder(root, "test")) is not None and not split_folders(root):
            return f"{test.name}/ is there, but no train/good/"
        return None

    def load(self, root: Path) -> Dataset:
        return read_category(self, root)


def split_folders(root: Path) -> list[str]:
    """The folders by which this arrangement is known, as ``train/good/``; empty where ``root`` is not so arranged."""
    good, test = _train_good(root), subfolder(root, *TEST_FOLDERS)
    if not good and not _is_test_set(root):
        return []
    # rgb/ and xyz/ below train/good/ are MVTec 3D-AD, a layout of its own: depth maps are no images to learn from.
    if any(subfolder(folder, "rgb") is not None for folder in good or subfolders(test or root)):
        return []
    others = (subfolder(root, *VALIDATION_FOLDERS), test, ground_truth(root))
    folders = [*good, *(folder for folder in others if folder is not None)]
    return [folder.relative_to(root).as_posix() + "/" for folder in folders]


def without_train(root: Path) -> str:
    """What to add where there is nothing to learn from, else nothing."""
    return "" if _train_good(root) else "; without train/ it is a test set for models trained elsewhere"


def _is_test_set(root: Path) -> bool:
    """Whether there is a labelled test split, and nothing beside it that could be meant to be learned from."""
    test = subfolder(root, *TEST_FOLDERS)
    beside = [f for f in subfolders(root) if f.name.casefold() in TRAIN_FOLDERS or means_good(f)]
    if test is None or beside or direct_images(root):
        return False
    folders = sort_folders([folder for folder in subfolders(test) if has_images(folder)])
    labelled = bool(folders.flawed or folders.unclear or folders.unknown)
    return bool(folders.good) or (labelled and ground_truth(root) is not None)


_TRUTH = ("ground_truth", "groundtruth", "masks", "mask", "gt")


def ground_truth(root: Path) -> Path | None:
    """The folder that holds one folder of masks a defect type, or None."""
    return subfolder(root, *_TRUTH)


def read_category(layout: Layout, root: Path) -> Dataset:
    """Read a category in this arrangement for a layout that has recognised it.

    Args:
        layout: the layout that reads; its ``recognise`` has the say.

    Raises:
        FlawsmithError: the layout does not recognise the folder, or its folder of good images to train on is empty.
    """
    recognised, good = layout.recognise(root), _train_good(root)
    if recognised is None:
        raise FlawsmithError(f"{root} is not in {layout.name} layout; expected {layout.expects}")
    if good and not any(map(has_images, good)):
        raise FlawsmithError(f"no good images to train on in {good[0]}; put images of good parts there")
    collector = Collector(root)
    for folder in good:
        collector.add_good_of(folder, "train")
    collector.add_validation()
    test, train = subfolder(root, *TEST_FOLDERS), subfolder(root, *TRAIN_FOLDERS)
    for folder in subfolders(train) if train is not None else ():
        if folder not in good and has_images(folder):
            number = count(len(find_images(folder)), "image")
            collector.notes.append(
                f"not used: {folder.relative_to(root).as_posix()}/ ({number}), since good images alone are learned from"
            )
    if test is not None:
        _add_test(collector, test, ground_truth(root))
    return collector.dataset(layout.name, recognised)


def _add_test(collector: Collector, test: Path, truth: Path | None) -> None:
    every = subfolders(test)
    companions = companion_folders(every)
    apart = [folder for folder in every if folder in companions or holds_no_parts(folder.name)]
    folders = [folder for folder in every if folder not in apart]
    beside = {companions[folder]: folder for folder in companions if speaks_of_masks(folder.name)}
    truth = truth or subfolder(test, *_TRUTH)
    good = _good_of_test(collector, [folder for folder in folders if has_images(folder)])
    flat = truth if truth is not None and len(folders) - len(good) == 1 else None
    stray = len(find_images(test)) - sum(len(find_images(folder)) for folder in every)
    if stray > 0:
        number = count(stray, "image")
        collector.notes.append(
            f"not used: {number} directly in {test.name}/; move them to {test.name}/good/ or {test.name}/<defect>/"
        )
    used: set[Path] = set()
    for folder in folders:
        of_defect = subfolder(truth, folder.name) if truth else None
        masks = MaskFolder(of_defect or beside.get(folder) or (None if folder in good else flat))
        if folder in good:
            collector.add_good_of(folder, "test")
        else:
            files = ImagesOf(folder)
            within = set(files.companions)
            for image in files.images:
                paired = masks.masks_of(image.relative_to(folder)) or files.mask_of(image)
                within.difference_update(paired)
                used.update(paired)
                collector.add_flawed(image, folder.name, paired)
            collector.note_companions(sorted(within))
        if masks.root is not flat:
            collector.unused_masks += masks.unused()
    if truth is not None:
        collector.unused_masks += _masks_of_other_defects(truth, folders, used)
    for folder in apart:
        if folder != truth and folder not in beside.values():
            collector.note_companions(find_images(folder))


def _good_of_test(collector: Collector, folders: list[Path]) -> list[Path]:
    """The folders of good test images; the others are taken for defect types.

    Raises:
        FlawsmithError: none is called good, and the names of others may mean it.
    """
    named = sort_folders(folders)
    if named.unclear and not named.good:
        names = " and ".join(f"test/{folder.name}/" for folder in named.unclear)
        raise FlawsmithError(
            f"{collector.root}: nothing says whether {names} {hold(named.unclear)} good or flawed parts; "
            "rename the folder of good ones to good/, or write a CSV table"
        )
    if named.unknown and not named.good:
        number = count(sum(len(find_images(folder)) for folder in folders), "image")
        collector.notes.append(
            f"test/ has no folder of good images, so that {number} there count as flawed; if one of its folders "
            "holds good parts, rename it to good/"
        )
    return named.good


def _masks_of_other_defects(truth: Path, defects: list[Path], used: set[Path]) -> list[Path]:
    """Masks that lie in no folder of a defect type of the test split, and that no image has."""
    known = {same_name(folder.name) for folder in defects}
    others = [folder for folder in subfolders(truth) if same_name(folder.name) not in known]
    masks = [*direct_images(truth), *(mask for folder in others for mask in find_images(folder))]
    return [mask for mask in masks if mask not in used]


def _train_good(root: Path) -> list[Path]:
    """The folders of good images to learn from, sorted by name."""
    train = subfolder(root, *TRAIN_FOLDERS)
    folders = subfolders(train) if train is not None else []
    companions = companion_folders(folders)
    return [folder for folder in folders if means_good(folder) and folder not in companions]


GOOD_PARTS, FLAWED_PARTS = "ok", "ko"


@register
class BtadLayout(Layout):
    """See the module's docstring."""

    name = "btad"
    expects = "train/ok/, test/{ok,ko}/ and masks in ground_truth/ko/"
    priority = 20

    def recognise(self, root: Path) -> str | None:
        folders, truth = split_folders(root), ground_truth(root)
        marks = (below(root, "test", FLAWED_PARTS), below(truth, FLAWED_PARTS) if truth is not None else None)
        named = [folder.relative_to(root).as_posix() + "/" for folder in marks if folder is not None]
        if not folders or not named or below(root, "train", GOOD_PARTS) is None:
            return None
        return f"{self.name} layout, because it has train/{GOOD_PARTS}/ and {' and '.join(named)}"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        learned, flawed = below(root, "train", GOOD_PARTS), below(root, "test", FLAWED_PARTS)
        if learned is not None and flawed is None:
            return f"train/{learned.name}/ is there, but neither test/{FLAWED_PARTS}/ nor ground_truth/{FLAWED_PARTS}/"
        return f"test/{flawed.name}/ is there, but no train/{GOOD_PARTS}/" if flawed and learned is None else None

    def load(self, root: Path) -> Dataset:
        return read_category(self, root)


DEFECTS_CONFIG = "defects_config.json"
LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"


@register
class MvtecLocoLayout(Layout):
    """See the module's docstring."""

    name = "mvtec_loco"
    expects = (
        "train/good/, validation/good/, test/{good,logical_anomalies,structural_anomalies}/ and masks in "
        f"ground_truth/<defect>/<stem>/ or {DEFECTS_CONFIG}"
    )
    priority = 10

    def recognise(self, root: Path) -> str | None:
        folders, mark = split_folders(root), _mark(root)
        if not folders or mark is None:
            return None
        return f"{self.name} layout, because it has {', '.join(folders)} and {mark}{without_train(root)}"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        test = subfolder(root, "test")
        kind = subfolder(test, LOGICAL, STRUCTURAL) if test is not None else None
        if kind is None or not split_folders(root):
            return None
        return f"test/{kind.name}/ is there, but neither {DEFECTS_CONFIG} nor masks in ground_truth/<defect>/<stem>/"

    def load(self, root: Path) -> Dataset:
        return replace(read_category(self, root), defects_config=root / DEFECTS_CONFIG)


def _mark(root: Path) -> str | None:
    """What tells the folder from one of MVTec AD: the file that only this set has, or masks in folders of their own."""
    if (root / DEFECTS_CONFIG).is_file():
        return DEFECTS_CONFIG
    truth = ground_truth(root)
    if truth is None:
        return None
    for name in (LOGICAL, STRUCTURAL):
        masks = subfolder(truth, name)
        for nested in subfolders(masks) if masks is not None else ():
            if has_images(nested):
                return f"masks in {nested.relative_to(root).as_posix()}/"
    return None


PHOTOGRAPHS = "rgb"
MASKS = "gt"


@register
class Mvtec3dLayout(Layout):
    """See the module's docstring."""

    name = "mvtec_3d"
    expects = "train/good/rgb/, optional validation/good/rgb/, test/{good,<defect>}/rgb/ and masks in test/<defect>/gt/"
    priority = 40
    place_of_masks = "in gt/ beside rgb/"

    def recognise(self, root: Path) -> str | None:
        learned = below(root, "train", GOOD, PHOTOGRAPHS)
        if learned is None:
            return None
        folders = (learned, subfolder(root, *VALIDATION_FOLDERS), subfolder(root, "test"))
        names = [f.relative_to(root).as_posix() + "/" for f in folders if f is not None]
        return f"{self.name} layout, because it has {', '.join(names)}"

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
        collector = Collector(root)
        learned = _photographs(collector, train.parent)
        if not learned:
            raise FlawsmithError(f"no good images to train on in {train}; put images of good parts there")
        collector.add_good(learned, "train")
        validation, test = subfolder(root, *VALIDATION_FOLDERS), subfolder(root, "test")
        if validation is not None:
            collector.add_good(_photographs(collector, subfolder(validation, GOOD) or validation), "val")
        if test is not None:
            _pass_over(collector, test, f"test/<defect>/{PHOTOGRAPHS}/")
            for folder in subfolders(test):
                _add_3d_test(collector, folder)
        return collector.dataset(self.name, recognised)


def _add_3d_test(collector: Collector, folder: Path) -> None:
    """Add the test images of one defect type, or the good ones."""
    images, masks = _photographs(collector, folder), MaskFolder(subfolder(folder, MASKS))
    if folder.name.casefold() == GOOD:
        collector.add_good(images, "test")
    else:
        for image in images:
            _, *names = image.relative_to(folder).parts
            collector.add_flawed(image, folder.name, masks.masks_of(Path(*names)))
    collector.unused_masks += masks.unused()


def _photographs(collector: Collector, folder: Path) -> list[Path]:
    """The images in rgb/ of a folder; those that lie beside it are noted."""
    _pass_over(collector, folder, f"{folder.relative_to(collector.root).as_posix()}/{PHOTOGRAPHS}/")
    photographs = subfolder(folder, PHOTOGRAPHS)
    return find_images(photographs) if photographs is not None else []


def _pass_over(collector: Collector, folder: Path, place: str) -> None:
    """Note the images that lie directly in a folder, and where they belong."""
    stray = direct_images(folder)
    if stray:
        where = folder.relative_to(collector.root).as_posix()
        collector.notes.append(f"not used: {count(len(stray), 'image')} directly in {where}/; move them to {place}")
