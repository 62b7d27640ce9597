"""Groups of images: those of one day, camera, lot, cavity or burst, which are more alike than images of two groups.

A limit that rests on images of one day holds for that day. Whole groups are therefore held out of training
(:func:`flawsmith.data.splits.hold_out`), and rates are stated by group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from flawsmith.data.bursts import Thumbnails, find_scenes, read_thumbnails
from flawsmith.data.layouts.base import count, is_set_apart, same_name
from flawsmith.data.layouts.names import has_another_role, meaning, say_when_or_where, says_when_or_where
from flawsmith.data.layouts.table import CsvLayout, cells_by_image
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import HoldOut
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import open_regular, printable
from flawsmith.runtime.formats import open_image
from flawsmith.runtime.image import MAX_PIXELS

BURSTS = "bursts of nearly equal images"
SUB_FOLDER = "sub-folder"
_WORDS = ("auto", "none", "folder", "date")
_WITH_ARGUMENT = ("name:", "column:")
_POSSIBLE = "auto, none, folder, date, name:REGEX or column:NAME"
_EXIF, _DATE_TAKEN = 0x8769, 0x9003
_THREADS = 4


def with_groups(dataset: Dataset, by: str = "auto", thumbnails: Thumbnails = read_thumbnails) -> Dataset:
    """The data set with the group of every image, and in ``grouped_by`` how the groups were told.

    Good images to learn from and to calibrate on must have a group where ``by`` asks for one; test images for which
    nothing says it have none. Bursts are looked for among good images that are not test images.

    Args:
        by: ``auto``: the column ``group`` of a CSV table, else sub-folders of the good images whose names say when or
            where, else bursts of nearly equal images, else none; ``none``; ``folder``: the first sub-folder;
            ``name:REGEX``: what the only group of a regular expression matches in the file name; ``date``: the day
            of exposure (EXIF); ``column:NAME``: a column of a CSV table.

    Raises:
        FlawsmithError: ``by`` is none of these, or does not fit the data.
    """
    rule, argument = _parsed(by)
    if rule == "none":
        return _grouped(dataset, {}, "")
    if rule == "column":
        return _by_column(dataset, argument)
    if rule == "auto" and any(sample.group for sample in dataset.samples):
        return dataset
    usual = [sample for sample in dataset.samples if not sample.is_flawed and sample.split != "test"]
    images = list(dict.fromkeys(sample.image for sample in usual))
    names, words = _told(images, dataset.root, rule, argument, thumbnails)
    groups = dict(zip(images, names, strict=True))
    if words and words != BURSTS:
        for sample in dataset.samples:
            groups.setdefault(sample.image, _of_another(sample, dataset, rule, argument))
    return _grouped(dataset, groups, words)


def groups_in_words(dataset: Dataset, split: HoldOut) -> str:
    """What groups were recognised and how many stand behind the limit, in a line; empty where there are none."""
    if not dataset.grouped_by:
        return ""
    learned, calibration = _groups_of(split.train), _groups_of(split.calibration)
    number = len(learned | calibration)
    line = f"{count(number, 'group')} by {dataset.grouped_by}"
    if split.source == "validation":
        return f"{line}: {len(calibration)} in the validation folder, which sets the limit"
    if split.source == "training":
        return line
    if split.folds and all(not _groups_of(fold.train) & _groups_of(fold.calibration) for fold in split.folds):
        return f"{line}: held out whole, in turn"
    if learned & calibration:
        return f"{line}, held out image by image"
    return f"{line}: {len(calibration)} of them held out"


def _groups_of(samples: Iterable[Sample]) -> set[str]:
    return {sample.group for sample in samples} - {""}


def one_group_warning(split: HoldOut) -> str:
    """What to know where one group alone stands behind the limit; empty elsewhere."""
    groups = {sample.group for sample in split.calibration}
    if len(groups) != 1 or not any(groups):
        return ""
    return (
        f"the limit rests on images of one group alone ({printable(groups.pop())}) and may reject many more good parts "
        "of another day or lot: add images of several"
    )


def _parsed(by: str) -> tuple[str, str]:
    """``auto``, ``none``, ``folder``, ``date``, ``name`` or ``column``; and the argument of the last two."""
    if by in _WORDS:
        return by, ""
    word, colon, argument = by.partition(":")
    if f"{word}{colon}" in _WITH_ARGUMENT:
        if not argument:
            example = "name:_([0-9]+)_" if word == "name" else "column:day"
            raise FlawsmithError(f"--group {by} says nothing after the colon: write for example {example}")
        return word, argument
    close = get_close_matches(word, [*_WORDS, "name", "column"], 1)
    known = {"name": "name:REGEX", "column": "column:NAME"}
    hint = f", did you mean {known.get(close[0], close[0])}?" if close else ""
    raise FlawsmithError(f"--group {printable(by)} is not possible{hint or ':'} write {_POSSIBLE}")


def _told(paths: list[Path], root: Path, rule: str, argument: str, thumbnails: Thumbnails) -> tuple[list[str], str]:
    """The group of each image, and how it was told; nothing for both where there is none."""
    nothing = [""] * len(paths), ""
    if rule == "none" or not paths:
        return nothing
    if rule == "column":
        raise FlawsmithError(
            f"--group column:{printable(argument)} needs a CSV table, and {root} is none: give the table, or "
            "another --group"
        )
    if rule in ("folder", "auto"):
        names = _sub_folders(paths, root)
        folders = [Path(name) for name in dict.fromkeys(names)]
        if rule == "folder":
            if not any(names):
                raise FlawsmithError(
                    f"--group folder: the good images in {root} lie in no sub-folders; put those of each day or lot "
                    "into one, or choose another --group"
                )
            return names, SUB_FOLDER
        if all(names) and (len(folders) > 1 or says_when_or_where(folders[0].name)) and say_when_or_where(folders):
            return names, SUB_FOLDER
        scenes = find_scenes(paths, thumbnails)
        return nothing if scenes is None else ([f"scene {number + 1}" for number in scenes], BURSTS)
    if rule == "date":
        with ThreadPoolExecutor(_THREADS) as pool:
            days = list(pool.map(day_taken, paths))
        _refuse_lack(paths, days, root, "--group date", "no date of exposure (EXIF DateTimeOriginal)")
        return days, "date of exposure"
    matched = name_rule(argument)
    names = [matched(path) for path in paths]
    _refuse_lack(paths, names, root, f"--group name:{printable(argument)}", "no match in the file name")
    return names, "file name"


def _refuse_lack(paths: Sequence[Path], names: Sequence[str], root: Path, option: str, lack: str) -> None:
    without = [path for path, name in zip(paths, names, strict=True) if not name]
    if without:
        raise FlawsmithError(
            f"{option}: {count(len(without), 'image')} of {len(paths)} in {root} with {lack}, the first is "
            f"{printable(without[0].name)}; choose another --group, or --group none"
        )


def name_rule(pattern: str) -> Callable[[Path], str]:
    """The group of a file by its name: what the only group of a regular expression matches; empty where nothing does.

    Raises:
        FlawsmithError: it is no regular expression, or has not one group.
    """
    option = f"--group name:{printable(pattern)}"
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise FlawsmithError(
            f"{option} is no regular expression: {error}; write one such as name:_([0-9]+)_"
        ) from error
    if compiled.groups != 1:
        raise FlawsmithError(
            f"{option} has {count(compiled.groups, 'capture group')} and needs one: put what names the group into "
            "parentheses, such as name:_([0-9]+)_, and others into (?:...)"
        )

    def of_name(path: Path) -> str:
        match = compiled.search(path.name)
        return (match[1] or "") if match else ""

    return of_name


def day_taken(path: Path) -> str:
    """The day a picture was taken, such as ``2026-11-30``; empty where the file does not say."""
    try:
        with open_regular(path) as stream, open_image(stream, str(path), MAX_PIXELS) as image:
            taken = str(image.getexif().get_ifd(_EXIF).get(_DATE_TAKEN, ""))
    except Exception:  # Pillow answers odd bytes with nearly every exception there is
        return ""
    day = re.match(r"(\d{4})\D(\d{2})\D(\d{2})", taken)
    return "-".join(day.groups()) if day and day[1] != "0000" else ""


def _sub_folders(paths: Sequence[Path], root: Path) -> list[str]:
    """The first folder below that of the good images, for each image; empty for those that lie directly in it."""
    places = [_place(path, root) for path in paths]
    while all(places) and len({place[0] for place in places}) == 1:
        inner = [place[1:] for place in places]
        # What all share says nothing, but a day is a day.
        if says_when_or_where(places[0][0]) or not any(inner):
            break
        places = inner
    return [place[0] if place else "" for place in places]


def _place(path: Path, root: Path, defect: str = "") -> tuple[str, ...]:
    """The folders between that of the good images, or of a defect, and an image."""
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else (path.parent.name,)
    roles = [
        number
        for number, name in enumerate(folders, 1)
        if is_set_apart(name) or has_another_role(name) or meaning(name) or same_name(name) == same_name(defect)
    ]
    return folders[max(roles, default=0) :]


def _of_another(sample: Sample, dataset: Dataset, rule: str, argument: str) -> str:
    """The group of a test image, by the same rule; empty where nothing says it."""
    if rule == "date":
        return day_taken(sample.image)
    if rule == "name":
        return name_rule(argument)(sample.image)
    place = _place(sample.image, dataset.root, sample.defect)
    return place[0] if place else ""


def _by_column(dataset: Dataset, column: str) -> Dataset:
    if dataset.layout != CsvLayout.name:
        raise FlawsmithError(
            f"--group column:{printable(column)} needs a CSV table, and {dataset.root} is in {dataset.layout} layout: "
            "leave it out, or choose another --group"
        )
    groups = cells_by_image(dataset, column)
    if not any(groups[sample.image] for sample in dataset.samples if sample.split != "test"):
        raise FlawsmithError(
            f"--group column:{printable(column)}: the column is empty for all images to learn from in {dataset.root}; "
            "fill it in, or choose another --group"
        )
    return _grouped(dataset, groups, f"column {printable(column)}")


def _grouped(dataset: Dataset, groups: dict[Path, str], words: str) -> Dataset:
    samples = tuple(replace(sample, group=groups.get(sample.image, "")) for sample in dataset.samples)
    return replace(dataset, samples=samples, grouped_by=words)
