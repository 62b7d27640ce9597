"""Which layout a folder has, said in words; and one clear line where it has none."""

from __future__ import annotations

import os
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flawsmith.data.layouts.base import (
    MASK_FOLDERS,
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    Layout,
    by_name,
    count,
    direct_images,
    has_images,
    is_set_apart,
    known,
    subfolder,
    subfolders,
)
from flawsmith.data.layouts.folder import refuse_unclear_names, sorted_folders
from flawsmith.data.layouts.names import on_disk
from flawsmith.data.layouts.table import is_table
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES, expanded, find_images, is_folder

CATEGORIES_DEEP = 2
"""Categories of a data set, or of subsets of one."""
_LISTED = 12
_DEPTH = 3
"""Categories are looked for so far down: data set, subset, category."""
_TABLE = "csv"


def detect(path: str | Path) -> Layout:
    """The layout of one category.

    Args:
        path: folder of one category, or just of good images; or a CSV table.

    Returns:
        The first registered layout that recognises it; ``layout.recognise(path)`` says why.

    Raises:
        FlawsmithError: not a folder, an archive, empty, a data set's root with several categories, or nothing
            known. The line says what was seen and what is expected.

    Example:
        >>> import tempfile, pathlib
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> (root / "train" / "good").mkdir(parents=True)
        >>> detect(root).name
        'mvtec'
    """
    return _detect(_subject(path))


def _detect(root: Path) -> Layout:
    if is_table(root):
        return by_name(_TABLE)
    _refuse_part_of_a_category(root)
    layouts = known()
    specific, fallback = layouts[:-1], layouts[-1]
    for layout in specific:
        if layout.recognise(root) is not None:
            return layout
    # Before the fall-back, which would take all categories for one: is this the root of a whole data set?
    categories = _categories(root)
    if categories:
        raise FlawsmithError(_several_categories(root, categories))
    if fallback.recognise(root) is not None:
        _refuse_labelled_set(root)
        refuse_unclear_names(root)
        return fallback
    raise FlawsmithError(_nothing_known(root))


def _categories(root: Path, depth: int = _DEPTH) -> list[Path]:
    """The folders of labelled images below a folder: the categories of a data set, or of several data sets."""
    categories: list[Path] = []
    for folder in subfolders(root):
        if is_set_apart(folder.name):
            continue
        if _is_category(folder):
            categories.append(folder)
        elif depth > 1:
            categories += _categories(folder, depth - 1)
    return categories


def _is_category(folder: Path) -> bool:
    # A folder of tables is no category, and every folder of images would be one of the plain layout.
    if any(layout.recognise(folder) is not None for layout in known()[:-1] if layout.name != _TABLE):
        return True
    folders = sorted_folders(folder)
    return bool(folders.good and folders.flawed)


def load(path: str | Path, layout: str | None = None) -> Dataset:
    """Read one category.

    Args:
        path: folder of one category, or just of good images; or a CSV table.
        layout: name of its layout; None detects it.

    Returns:
        The samples, and in ``recognised``, ``near_misses`` and ``notes`` how they were understood.

    Raises:
        FlawsmithError: as :func:`detect`; an unknown layout's name; no good image where the layout keeps them.
    """
    root = _subject(path)
    if layout is None:
        reader = _detect(root)
        return replace(reader.load(root), near_misses=_near_misses(root, reader))
    reader = by_name(layout)
    if is_table(root) and reader.name != _TABLE:
        raise FlawsmithError(f"{root} is a table, which the layout {_TABLE} reads, not {layout}; leave --layout out")
    return reader.load(root)


def _near_misses(root: Path, chosen: Layout) -> tuple[str, ...]:
    """Why none of the other layouts was chosen, where the folder has marks of them."""
    lines = []
    for other in known()[:-1]:
        if other is chosen or not is_folder(root):
            continue
        if (lack := other.near_miss(root)) is not None:
            lines.append(f"not {other.name}: {lack}")
        elif other.recognise(root) is not None:
            lines.append(f"{other.name} would fit too, but is less specific; --layout {other.name} takes it")
    return tuple(lines)


def _subject(path: str | Path) -> Path:
    """The folder or the table as an absolute path, so that ``.`` has a name.

    Raises:
        FlawsmithError: it is missing, another file, or an empty folder.
    """
    subject = expanded(path)
    if not os.path.lexists(subject):
        subject = on_disk(subject)
    if not os.path.exists(subject):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        kind = "table" if is_table(subject) else "folder"
        raise FlawsmithError(f"there is no {kind} {subject}; check the path and the rights to it")
    if not is_table(subject) and not is_folder(subject):
        raise FlawsmithError(_what_file(subject))
    # Links are not followed: the category bears the name under which the user knows the folder.
    root = subject.resolve() if ".." in subject.parts else subject.absolute()
    if is_table(root):
        return root
    try:
        empty = not any(root.iterdir())
    except OSError as error:
        raise FlawsmithError(f"cannot read the folder {subject}: {error.strerror}; check the rights to it") from error
    if empty:
        raise FlawsmithError(f"the folder {subject} is empty; put images of good parts into it")
    return root


def _what_file(path: Path) -> str:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return f"{path} is one image, but a folder of images is expected; give the folder that holds it"
    if path.suffix.lower() == ".flaw":
        return f"{path} is a trained model, but a folder of images is expected"
    if _is_archive(path):
        return f"{path} is an archive, but a folder of images is expected; unpack it and give the folder"
    return f"{path} is a file, but a folder of images is expected"


def _is_archive(path: Path) -> bool:
    try:
        # A named pipe would be waited for, so only the content of regular files is looked at.
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except OSError:
        return False


def _refuse_part_of_a_category(root: Path) -> None:
    """Test images or masks, given by mistake, would be learned as good images."""
    part = root.name.casefold()
    others = (*TRAIN_FOLDERS, *(("ground_truth",) if part in TEST_FOLDERS else TEST_FOLDERS))
    if part in {*TEST_FOLDERS, *MASK_FOLDERS} and subfolder(root.parent, *others) is not None:
        raise FlawsmithError(f"{root} is only the {root.name}/ part of {root.parent}; give {root.parent}")


def _refuse_labelled_set(root: Path) -> None:
    """All sub-folders would be learned from as good, so marks of a layout that tells good from flawed weigh more.

    Raises:
        FlawsmithError: no image lies directly in the folder or in good/, and another layout is a near miss.
    """
    if direct_images(root) or sorted_folders(root).good:
        return
    for layout in known():
        if (lack := layout.near_miss(root)) is not None:
            raise FlawsmithError(
                f"{root} is almost in {layout.name} layout: {lack}; add what is missing, or give --layout folder if "
                "all of its images are good"
            )


def _several_categories(root: Path, categories: list[Path]) -> str:
    names = _listing([f.relative_to(root).as_posix() for f in categories])
    if others := _beside(root, categories):
        kind = "the category" if len(categories) == 1 else f"{len(categories)} categories"
        return (
            f"{root} holds {kind} {names}, and beside {'it' if len(categories) == 1 else 'them'} {_listing(others)}; "
            f"give {categories[0]} alone, or, if all are of one part, put all good images into good/ and all flawed "
            "ones into bad/"
        )
    if len(categories) == 1:
        return f"{root} holds the category {names} but is none itself; give {categories[0]}"
    one_set = len({category.parent for category in categories}) == 1
    kind = "is the root of a data set" if one_set else "holds several data sets"
    return f"{root} {kind} with {len(categories)} categories ({names}); pick one, such as {categories[0]}"


def _beside(root: Path, categories: list[Path]) -> list[str]:
    """What else has images of parts: folders with what their names say of them, and images that lie in no folder."""
    others: list[str] = []
    for folder in _uncategorised(root, categories):
        labelled = sorted_folders(folder)
        within = [f"{inner.name}/" for inner in labelled.good + labelled.flawed]
        images = count(len(find_images(folder)), "image")
        others.append(f"{folder.relative_to(root).as_posix()}/ ({_listing(within) or images})")
    direct = direct_images(root)
    return [*others, f"{count(len(direct), 'image')} in no folder"] if direct else others


def _uncategorised(folder: Path, categories: list[Path]) -> list[Path]:
    others: list[Path] = []
    for inner in subfolders(folder):
        if any(inner in category.parents for category in categories):
            others += _uncategorised(inner, categories)
        elif inner not in categories and not is_set_apart(inner.name) and has_images(inner):
            others.append(inner)
    return others


def _nothing_known(root: Path) -> str:
    folders = [f.name + "/" for f in subfolders(root)]
    files = sum(1 for p in root.iterdir() if os.path.isfile(p) and not p.name.startswith("."))  # noqa: PTH113
    seen = (_listing(folders) if folders else "no sub-folders") + f" and {count(files, 'file')}"
    # The plainest first: it is what most people have.
    expected = "; or ".join(f"{layout.name}: {layout.expects}" for layout in reversed(known()))
    near = [f"{layout.name} ({lack})" for layout in known() if (lack := layout.near_miss(root)) is not None]
    nearest = f"; nearest is {', '.join(near)}" if near else ""
    return f"found no good images in {root}: it has {seen}{nearest}; expected {expected}"


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def load_categories(folder: Path, layout: str | None = None, *, depth: int = CATEGORIES_DEEP) -> list[Dataset]:
    """The categories in a folder: itself, or those of its sub-folders.

    Args:
        folder: a category, or a folder of categories or of data sets.
        layout: name of the layout of all of them; None detects it.
        depth: how deep sub-folders are looked into.

    Raises:
        FlawsmithError: it holds none.
    """
    try:
        return [load(folder, layout)]
    except FlawsmithError:
        categories: list[Dataset] = []
        for inner in subfolders(folder) if depth and folder.is_dir() else []:
            with suppress(FlawsmithError):
                categories += load_categories(inner, layout, depth=depth - 1)
        if not categories:
            raise
        return categories
