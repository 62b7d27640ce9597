"""What several layouts need: finding sub-folders, pairing masks with images, and gathering samples."""

from __future__ import annotations

import difflib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import ClassVar, TypeVar

from flawsmith.data.layouts.names import companion_folders, has_another_role, meaning, nfc, split_said
from flawsmith.data.masks import read_mask_image
from flawsmith.data.public_sets import dataset_name
from flawsmith.data.samples import GOOD, Dataset, Sample, Split
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES, find_images, is_folder, is_stray, iter_images, once_a_file

MASK_FOLDERS = frozenset({"ground_truth", "groundtruth", "masks", "mask", "gt"})
VALIDATION_FOLDERS = ("validation", "val", "valid")


def subfolders(folder: Path) -> list[Path]:
    """The visible sub-folders, sorted by name, without those that systems and not people make.

    Raises:
        FlawsmithError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            folders = [folder / e.name for e in entries if not is_stray(e.name) and is_folder(folder / e.name)]
    except OSError as error:
        raise FlawsmithError(f"cannot read the folder {folder}: {error.strerror}; check its path and rights") from error
    return sorted(folders)


def subfolder(folder: Path, *names: str) -> Path | None:
    """The first sub-folder that bears one of the names, in the order of the names, whatever its case and form."""
    present = {same_name(p.name): p for p in reversed(subfolders(folder))}
    return next((present[same_name(n)] for n in names if same_name(n) in present), None)


def same_name(name: str) -> str:
    """What two names have in common that differ in case or in the form of accented letters alone."""
    return nfc(name).casefold()


def means_good(folder: Path) -> bool:
    """Whether a folder's name says that it holds images of good parts."""
    return meaning(folder.name) == "good"


TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "tests")


def is_set_apart(name: str) -> bool:
    """Whether a name promises something else than images of parts to learn from or to test on."""
    return same_name(name) in {*MASK_FOLDERS, *VALIDATION_FOLDERS, *TEST_FOLDERS} or has_another_role(name)


def holds_no_parts(name: str) -> bool:
    """Whether a name promises masks, overlays, labels and the like: no images of parts, of whatever split."""
    return same_name(name) in MASK_FOLDERS or (has_another_role(name) and split_said(name) is None)


def validation_folder(root: Path) -> Path | None:
    """The folder of good images to calibrate on; perhaps none. ``valid`` beside ``invalid`` speaks of parts."""
    return subfolder(root, *(name for name in VALIDATION_FOLDERS if name != "valid" or not _speaks_of_parts(root)))


def _speaks_of_parts(root: Path) -> bool:
    return subfolder(root, "invalid") is not None


def of_parts(root: Path) -> list[Path]:
    """The sub-folders with images of parts: not those of masks, test or validation images, nor ``good_mask``."""
    validation, folders = validation_folder(root), subfolders(root)
    companions = companion_folders(folders)
    return [
        folder
        for folder in folders
        if has_images(folder)
        and folder != validation
        and folder not in companions
        and (not is_set_apart(folder.name) or (same_name(folder.name) == "valid" and _speaks_of_parts(root)))
    ]


def below(folder: Path, *names: str) -> Path | None:
    """The folder reached by the names one after the other, whatever their case; None where one is missing."""
    reached: Path | None = folder
    for name in names:
        reached = subfolder(reached, name) if reached is not None else None
    return reached


def has_images(folder: Path) -> bool:
    """Whether any image lies in the folder or below it."""
    return next(iter_images(folder), None) is not None


def direct_images(folder: Path) -> list[Path]:
    """The images that lie in the folder itself, not below it, sorted."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not is_folder(p)
    )


class MaskFolder:
    """Masks of one defect type, paired with images by stem.

    An image ``crack/007.png`` is paired with the first of these that exists: ``007_mask.<ext>``,
    ``007.<ext>``, ``007.png.<ext>``, a name with another word for masks (``007-GT``, ``mask_007``) in any case, or all
    images of a folder ``007/`` (one file a defect, as in MVTec LOCO AD). Nested images are paired at the same depth.
    Composed and decomposed letters are the same.

    Args:
        root: the folder to look in, or None: then nothing is paired.
    """

    def __init__(self, root: Path | None) -> None:
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_parent: dict[str, list[Path]] = defaultdict(list)
        self._by_word: dict[str, Path] = {}
        self._used: set[Path] = set()
        self.root = root
        if root is None:
            return
        for path in find_images(root):
            relative = path.relative_to(root)
            self._by_stem[nfc(relative.with_suffix("").as_posix())].append(path)
            self._by_parent[nfc(relative.parent.as_posix())].append(path)
            match = _COMPANION.fullmatch(nfc(path.stem))
            if match and (match["word"] or match["words"] or "").casefold() in _MASK_WORDS:
                key = same_name(relative.with_name(match["name"]).as_posix())
                self._by_word.setdefault(key, path)

    def masks_of(self, relative: Path) -> tuple[Path, ...]:
        """Masks of an image, given by its path below the folder of its defect type; empty if none."""
        stem = nfc(relative.with_suffix("").as_posix())
        for key in (f"{stem}_mask", stem, nfc(relative.as_posix())):
            if key in self._by_stem:
                return self._take(self._by_stem[key][:1])
        if same_name(stem) in self._by_word:
            return self._take([self._by_word[same_name(stem)]])
        return self._take(self._by_parent.get(stem, ()))

    def unused(self) -> list[Path]:
        """Masks that no image asked for, sorted."""
        return sorted(p for paths in self._by_stem.values() for p in paths if p not in self._used)

    def _take(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        taken = tuple(paths)
        self._used.update(taken)
        return taken


_MASK_WORDS = ("mask", "masks", "gt", "groundtruth", "ground_truth", "seg", "segmentation", "maske")
_DRAWN_WORDS = ("overlay", "annotated", "annotation", "heatmap", "marked")
_COMPANION = re.compile(
    r"(?:(?P<word>{0})[ _.-])?(?P<name>.+?)(?:[ _.-](?P<words>{0}))?".format("|".join(_MASK_WORDS + _DRAWN_WORDS)), re.I
)


def companions_among(images: Sequence[PurePath]) -> set[PurePath]:
    """Masks and overlays among images of any folders: ``good_mask/7.png`` beside ``good/``, and ``7_mask.png``
    beside ``7.png``.

    Args:
        images: paths, relative to one folder.
    """
    stems = {(path.parent, nfc(path.stem)) for path in images}
    within: dict[PurePath, set[Path]] = defaultdict(set)
    for folder in {parent for path in images for parent in path.parents if parent.name}:
        within[folder.parent].add(Path(folder))
    folders = {companion for beside in within.values() for companion in companion_folders(sorted(beside))}
    companions = {path for path in images if any(Path(parent) in folders for parent in path.parents)}
    for path in images:
        match = _COMPANION.fullmatch(nfc(path.stem))
        if match and (match["word"] or match["words"]) and (path.parent, match["name"]) in stems:
            companions.add(path)
    return companions


class ImagesOf:
    """The images of parts in a folder, told from the masks and overlays that lie among them.

    ``007_mask.png`` and ``masks/007.png`` are no images of parts where there is a ``007.png``, nor is
    ``007_overlay.png``.

    Args:
        folder: where to look.
        paths: its images; all those in it and its sub-folders by default.

    Attributes:
        images: the images of parts, sorted.
        companions: masks and overlays, sorted.
    """

    def __init__(self, folder: Path, paths: Sequence[Path] | None = None) -> None:
        paths = find_images(folder) if paths is None else paths
        stems = {(path.parent, nfc(path.stem)) for path in paths}
        self.images: list[Path] = []
        self.companions: list[Path] = []
        self._masks: dict[str, Path] = {}
        for path in paths:
            apart = any(is_set_apart(name) for name in path.relative_to(folder).parts[:-1])
            is_mask = any(same_name(name) in MASK_FOLDERS for name in path.relative_to(folder).parts[:-1])
            name = nfc(path.stem)
            match = _COMPANION.fullmatch(name)
            word = match and (match["word"] or match["words"])
            if match and word and (apart or (path.parent, match["name"]) in stems):
                apart, name, is_mask = True, match["name"], is_mask or word.casefold() in _MASK_WORDS
            (self.companions if apart else self.images).append(path)
            if apart and is_mask:
                self._masks.setdefault(name, path)

    def mask_of(self, image: Path) -> tuple[Path, ...]:
        """The mask among the images that belongs to one of them; empty if none."""
        mask = self._masks.get(nfc(image.stem))
        return () if mask is None else (mask,)


class Collector:
    """The samples of one category as they are found, and on the way what deserves a note.

    Args:
        root: the category folder; its name becomes the category's.
        category: another name for the category.
        dataset: the dataset's name; by default that of the folder above, or of two where it is a subset.
    """

    def __init__(self, root: Path, *, category: str | None = None, dataset: str | None = None) -> None:
        self.root = root
        self.category = nfc(root.name if category is None else category)
        self.dataset_name = nfc(dataset_name(root) if dataset is None else dataset)
        self.unused_masks: list[Path] = []
        self.left_out: list[Path] = []
        self.notes: list[str] = []
        self._samples: list[Sample] = []

    def add_good_of(self, folder: Path, split: Split) -> None:
        """Add the images of a folder of good parts; masks, overlays and folders of flawed parts in it are noted."""
        files = ImagesOf(folder)
        flawed = {path: place for path in files.images if (place := _flawed_place(folder, path)) is not None}
        self.add_good((path for path in files.images if path not in flawed), split)
        for place, number in sorted(Counter(flawed.values()).items()):
            name = place.relative_to(self.root).as_posix()
            fix = f"its name says flawed, among good parts; put it beside {folder.name}/"
            self.notes.append(f"not used: {name}/ ({count(number, 'image')}): {fix}")
        self.note_companions(files.companions)

    def note_companions(self, paths: Sequence[Path]) -> None:
        """Note masks and overlays that lie among images of parts and are used for nothing."""
        if paths:
            number = f"{len(paths)} masks or overlays" if len(paths) > 1 else "1 mask or overlay"
            self.notes.append(f"not used: {number} among images ({naming(paths, self.root)}); keep them elsewhere")

    def add_good(self, images: Iterable[Path], split: Split) -> None:
        """Add images of good parts."""
        for image in images:
            self._samples.append(Sample(image, split, "good", GOOD, (), self.category, self.dataset_name))

    def has_train(self) -> bool:
        """Whether there is an image to learn from."""
        return any(sample.split == "train" for sample in self._samples)

    def add_validation(self) -> None:
        """Add the good images of the user's own validation folder, where there is one.

        Those are the images of its sub-folders whose names mean good; where none has images, those that lie directly
        in the validation folder.

        Raises:
            FlawsmithError: another sub-folder has images: nothing says that they are good.
        """
        validation = validation_folder(self.root)
        if validation is None:
            return
        good, direct = _labelled_good(validation), direct_images(validation)
        if good and direct:
            where = f"{validation.name}/, beside {good[0].relative_to(validation).parts[0]}/"
            self.notes.append(f"not used: {count(len(direct), 'image')} directly in {where}")
        self.add_good(good or direct, "val")

    def add_flawed(self, image: Path, defect: str, masks: tuple[Path, ...]) -> None:
        """Add a test image of a flawed part."""
        self._samples.append(Sample(image, "test", "flawed", nfc(defect), masks, self.category, self.dataset_name))

    def dataset(self, layout: str, recognised: str) -> Dataset:
        """All that was added, in its order; ``layout`` and ``recognised`` are handed through."""
        return Dataset(
            root=self.root,
            category=self.category,
            dataset=self.dataset_name,
            layout=layout,
            recognised=recognised,
            samples=tuple(self._samples),
            unused_masks=tuple(sorted(self.unused_masks)),
            notes=tuple(self.notes),
            left_out=tuple(self.left_out),
        )


def _flawed_place(folder: Path, image: Path) -> Path | None:
    """The folder between a folder of good parts and an image in it whose name says that its parts are flawed."""
    parts = image.relative_to(folder).parts[:-1]
    depth = next((depth for depth, part in enumerate(parts, 1) if meaning(part) == "flawed"), None)
    return None if depth is None else folder.joinpath(*parts[:depth])


def _labelled_good(validation: Path) -> list[Path]:
    """The images in the sub-folders whose names mean good, sorted.

    Raises:
        FlawsmithError: another sub-folder has images.
    """
    good: list[Path] = []
    for folder in subfolders(validation):
        images = ImagesOf(folder).images
        places = (_flawed_place(folder, path) if means_good(folder) else folder for path in images)
        for place, number in Counter(filter(None, places)).items():
            raise FlawsmithError(
                f"{place} has {count(number, 'image')}, but good parts alone set the limit: move them to "
                f"{validation.name}/{GOOD}/ if they are good, else out of {validation.name}/"
            )
        good += images
    return good


def count(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def naming(paths: Sequence[Path], root: Path) -> str:
    """The first few files by their path below the root: ``train/1.png, train/7.png and 5 more``."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(path.relative_to(root).as_posix() for path in paths[:_NAMED]) + more


_THREADS, _NAMED = 4, 3


def marked(masks: Sequence[Path]) -> dict[Path, bool | None]:
    """Whether each mask marks a pixel; None for one that cannot be read.

    Unchanged files are read once a process: a data set is loaded more than once in a run.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(masks, pool.map(_is_marked, masks), strict=True))


def _is_marked(mask: Path) -> bool | None:
    try:
        return _marks(mask)
    except (OSError, FlawsmithError):
        return None


@once_a_file(1 << 16)
def _marks(mask: Path) -> bool:
    return bool(read_mask_image(mask).marked.any())


class Layout(ABC):
    """A way of arranging one category's images on disk.

    A layout that keeps its labels in a table (VisA) or several masks an image (MVTec LOCO AD) fits as well as
    one that keeps them in folder names: only ``load`` knows where labels come from.

    Attributes:
        name: short lower-case name, as given to ``--layout``.
        expects: the arrangement in one line, for error messages.
        priority: layouts with a lower number are asked first, so the more specific ones have lower numbers; the
            last one, the plain folder, is asked where no other fits.
        place_of_masks: where masks lie, in words that follow "add masks".
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    priority: ClassVar[int] = 50
    place_of_masks: ClassVar[str] = "in ground_truth/"

    @abstractmethod
    def recognise(self, root: Path) -> str | None:
        """Say in words why ``root`` is one category of this layout, or None; looks at names and, in a table, at its
        first line alone."""

    def near_miss(self, root: Path) -> str | None:
        """Say what a folder lacks that has some marks of this layout but not all; None where it has none or all."""
        return None

    @abstractmethod
    def load(self, root: Path) -> Dataset:
        """Read the category.

        Raises:
            FlawsmithError: it is not this layout, or the place for good images to train on is empty.
        """


_LAYOUTS: dict[str, Layout] = {}
L = TypeVar("L", bound=type[Layout])


def register(layout: L) -> L:
    """Class decorator: make a layout known by its name; a name is taken once.

    Raises:
        ValueError: the name is taken.
    """
    if layout.name in _LAYOUTS:
        raise ValueError(f"a layout named {layout.name!r} is registered already")
    _LAYOUTS[layout.name] = layout()
    return layout


def known() -> tuple[Layout, ...]:
    """All layouts, in the order in which they are asked."""
    return tuple(sorted(_LAYOUTS.values(), key=lambda layout: (layout.priority, layout.name)))


def by_name(name: str) -> Layout:
    """The layout of that name.

    Raises:
        FlawsmithError: no such layout; the line lists the known ones and the closest match.
    """
    try:
        return _LAYOUTS[name]
    except KeyError:
        close = difflib.get_close_matches(name, _LAYOUTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        names = ", ".join(layout.name for layout in known())
        raise FlawsmithError(f"unknown layout {name!r}; known are {names}{hint}") from None
