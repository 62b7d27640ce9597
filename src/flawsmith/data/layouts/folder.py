"""Just a folder of good images, and the ways in which people usually sort one.

::

    <category>/*.png                                 every image is a good one to learn from
    <category>/good/                                 the same, with room beside it for:
    <category>/bad/                                  flawed images to test on; sub-folders name defect types
    <category>/good/{train,test,val}/                good images by what they are for; bad/test/ likewise
    <category>/{val,validation}/                     good images to calibrate on, directly or in good/
    <category>/{ground_truth,masks}/                 masks of the flawed images, paired by stem

good/ and bad/ may be called otherwise, as ``OK`` and ``NG``, ``pass`` and ``fail``, ``gut`` and ``schlecht``; see
:mod:`flawsmith.data.layouts.names`. Names that may mean either, as ``0`` and ``1``, are refused unless the layout is
named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flawsmith.data.layouts.base import (
    MASK_FOLDERS,
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    VALIDATION_FOLDERS,
    Collector,
    ImagesOf,
    Layout,
    MaskFolder,
    count,
    direct_images,
    has_images,
    is_set_apart,
    of_parts,
    register,
    same_name,
    subfolder,
    subfolders,
)
from flawsmith.data.layouts.names import (
    Sorted,
    companion_folders,
    has_another_role,
    meaning,
    say_when_or_where,
    says_when_or_where,
    sort_folders,
    speaks_of_masks,
    split_said,
)
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images

UNLABELLED = "learned from as good"
"""Begins the note on sub-folders whose names do not say that the parts in them are good."""
SAYS_NOTHING = "whose names say nothing of the parts"
"""Ends its first part where the names do not look like days, cameras or lots either."""
_LISTED = 6
_SPLIT_FOLDERS = frozenset({*TRAIN_FOLDERS, *VALIDATION_FOLDERS, *TEST_FOLDERS})


@register
class FolderLayout(Layout):
    """See the module's docstring."""

    name = "folder"
    expects = "images of good parts, directly or in good/, and optionally bad/<defect>/, val/ and ground_truth/"
    priority = 100

    def recognise(self, root: Path) -> str | None:
        folders = sorted_folders(root)
        if folders.good:
            return f"folder layout, because it has {_listing(folders.good)} with images and no train/good/"
        direct = direct_images(root)
        if direct:
            return f"folder layout, because {count(len(direct), 'image')} lie directly in it"
        nested = folders.unknown + folders.unclear
        if nested:
            return f"folder layout, because images lie in {count(len(nested), 'sub-folder')} of no known meaning"
        return None

    def load(self, root: Path) -> Dataset:
        recognised = self.recognise(root)
        if recognised is None:
            raise FlawsmithError(f"no good images to train on in {root}; expected {self.expects}")
        collector, folders = Collector(root), sorted_folders(root)
        _add_train(collector, folders)
        collector.add_validation()
        _add_flawed(collector, folders.flawed)
        for companion, folder in companion_folders(subfolders(root)).items():
            if folder not in folders.flawed or not speaks_of_masks(companion.name):
                collector.note_companions(find_images(companion))
        for folder in subfolders(root):
            if has_another_role(folder.name) and has_images(folder):
                fix = "a test split needs the mvtec layout, with good images in train/good/"
                is_test = folder.name.casefold() in TEST_FOLDERS
                collector.notes.append(_passed_over(folder, fix if is_test else "nothing"))
        if meaning(root.name) == "flawed" and not folders.good:
            called = f"all images of a folder called {root.name}/, {SAYS_NOTHING}"
            collector.notes.append(f"{UNLABELLED}: {called}; give the folder of good parts if these are flawed")
        return collector.dataset(self.name, recognised)


def sorted_folders(root: Path) -> Sorted:
    """The sub-folders with images of parts, by what their names say: not those of masks, test or validation images."""
    return sort_folders(of_parts(root))


def refuse_unclear_names(root: Path) -> None:
    """Refuse sub-folders of which one may hold good and another flawed parts, where nothing says which.

    Raises:
        FlawsmithError: naming the folders and the ways out.
    """
    folders = sorted_folders(root)
    masks = subfolder(root, "gt")
    if masks is not None and has_images(masks) and not folders.good and not folders.flawed and folders.unknown:
        raise FlawsmithError(
            f"{root}: nothing says whether {masks.name}/ holds good parts (Gutteile) or masks (ground truth); rename "
            f"it to good/ and {_listing(folders.unknown)} to bad/, or it to ground_truth/"
        )
    if folders.unclear and not folders.good:
        names = _listing(folders.unclear)
        raise FlawsmithError(
            f"{root}: nothing says whether {names} {hold(folders.unclear)} good or flawed parts; rename them to good/ "
            "and bad/, give the folder of the good ones, write a CSV table, or add --layout folder if all are good"
        )


def hold(folders: list[Path]) -> str:
    """The verb for one folder or several."""
    return "holds" if len(folders) == 1 else "hold"


def _add_train(collector: Collector, folders: Sorted) -> None:
    root, notes = collector.root, collector.notes
    direct = direct_images(root)
    if folders.good:
        for other in folders.unknown + folders.unclear:
            notes.append(_passed_over(other, "put flawed images under bad/, good ones under good/"))
        if direct:
            notes.append(f"not used: {count(len(direct), 'image')} directly in {root}, beside {folders.good[0].name}/")
        _add_good(collector, folders.good)
        return
    unlabelled = folders.unknown + folders.unclear
    if len(unlabelled) > 1 or (unlabelled and (direct or folders.flawed)):
        # One folder beside flawed parts holds the good ones; one beside other images may hold what was sorted out.
        alone = len(unlabelled) == 1 and not folders.flawed
        places = says_when_or_where(unlabelled[0].name) if alone else say_when_or_where(unlabelled)
        kind = "" if places and not folders.unclear else f", {SAYS_NOTHING}"
        fix = "if any of them holds flawed parts, rename it to bad/"
        notes.append(f"{UNLABELLED}: all images in {_listing(unlabelled)}{kind}; {fix}")
    _refuse_labels_below(root, unlabelled)
    nested = [image for folder in unlabelled for image in find_images(folder)]
    files = ImagesOf(root, sorted(direct + nested))
    collector.add_good(files.images, "train")
    collector.note_companions(files.companions)


def _add_good(collector: Collector, folders: Sequence[Path]) -> None:
    """Add folders of good parts: to learn from, or to the split that their names or those of folders in them speak of.

    Raises:
        FlawsmithError: nothing is left to train on.
    """
    places = [inner for folder in folders for inner in _splits_of(folder) or [folder]]
    splits = {place: split_said(place.name) for place in places}
    if "train" not in splits.values():
        splits = dict.fromkeys(folders)
    for place, split in splits.items():
        collector.add_good_of(place, split or "train")
    for folder in set(folders).difference(splits):
        beside = len(find_images(folder)) - sum(len(find_images(inner)) for inner in _splits_of(folder))
        if beside:
            collector.notes.append(f"not used: {count(beside, 'image')} in {folder.name}/, beside {folder.name}/train/")
    if not collector.has_train():
        raise FlawsmithError(
            f"no good images to train on in {folders[0]}; put images of good parts there, or into "
            f"{folders[0] / 'train'}"
        )


def _splits_of(folder: Path) -> list[Path]:
    """The folders named train, test and so on in a folder of good or flawed parts."""
    return [inner for inner in subfolders(folder) if same_name(inner.name) in _SPLIT_FOLDERS and has_images(inner)]


def _refuse_labels_below(root: Path, folders: Sequence[Path]) -> None:
    """Refuse sub-folders whose names mean nothing where names below them tell of a labelled set.

    Raises:
        FlawsmithError: training on all of it would learn flawed images or masks as good.
    """
    labelled: dict[str, None] = {}  # in their order, once
    for path in (path for folder in folders for path in find_images(folder)):
        parts = path.relative_to(root).parts[:-1]
        for depth, part in enumerate(parts):
            if depth and (is_set_apart(part) or meaning(part) is not None):
                labelled["/".join(parts[: depth + 1])] = None
                break
    if labelled:
        look = "looks like part" if len(labelled) == 1 else "look like parts"
        raise FlawsmithError(
            f"{root} is not a folder of good images alone: {_listed([*labelled])} {look} of a labelled set; give the "
            "folder that holds the good images, or put the good ones of all into good/ and the flawed ones into bad/"
        )


def _add_flawed(collector: Collector, flawed: list[Path]) -> None:
    truth = next((f for f in subfolders(collector.root) if f.name.casefold() in MASK_FOLDERS), None)
    unused: set[Path] = set(find_images(truth)) if truth is not None else set()
    beside = {
        folder: companion
        for companion, folder in companion_folders(subfolders(collector.root)).items()
        if speaks_of_masks(companion.name)
    }
    for folder in flawed:
        # Masks lie in ground_truth/<bad>/, or in ground_truth/ itself where all flawed images are in one
        # folder; or in <bad>_mask/.
        masks = MaskFolder((subfolder(truth, folder.name) or truth) if truth is not None else beside.get(folder))
        splits = _splits_of(folder)
        places = {place: find_images(place) for place in splits}
        places[folder] = [path for path in find_images(folder) if not any(place in path.parents for place in splits)]
        for place, paths in places.items():
            files = ImagesOf(place, paths)
            companions = set(files.companions)
            for path in files.images:
                relative = path.relative_to(place)
                defect = relative.parts[0] if len(relative.parts) > 1 else folder.name
                paired = masks.masks_of(relative) or files.mask_of(path)
                companions.difference_update(paired)
                unused.difference_update(paired)
                collector.add_flawed(path, defect, paired)
            collector.note_companions(sorted(companions))
        if truth is None:
            unused.update(masks.unused())
    collector.unused_masks += sorted(unused)


def _listing(folders: list[Path]) -> str:
    return _listed([folder.name for folder in folders])


def _listed(folders: list[str]) -> str:
    names = [f"{folder}/" for folder in folders[:_LISTED]]
    if len(folders) > _LISTED:
        return f"{', '.join(names)} and {len(folders) - _LISTED} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _passed_over(folder: Path, fix: str) -> str:
    return f"not used: {folder.name}/ ({count(len(find_images(folder)), 'image')}); {fix}"
