"""VisA's layout, as it is downloaded: one table for all categories says what each image is.

::

    <root>/<category>/Data/Images/Normal/0000.JPG
    <root>/<category>/Data/Images/Anomaly/000.JPG
    <root>/<category>/Data/Masks/Anomaly/000.png
    <root>/<category>/validation/good/               optional, not part of VisA: good images to calibrate on
    <root>/split_csv/1cls.csv                        object,split,label,image,mask; paths start at <root>

A category is its folder and the rows of the table that bear its name. Masks mark flaws with small numbers instead of
255: what is not black is marked.

Source: Zou et al., SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation, ECCV 2022.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from flawsmith.data.layouts.base import (
    Collector,
    Layout,
    below,
    count,
    register,
    same_name,
)
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images

TABLE = "split_csv/1cls.csv"
_FOLDERS = (("Data", "Images", "Normal"), ("Data", "Images", "Anomaly"))
_COLUMNS = ("object", "split", "label", "image", "mask")
_ROLES = (("train", "normal"), ("test", "normal"), ("test", "anomaly"))


@register
class VisaLayout(Layout):
    """See the module's docstring."""

    name = "visa"
    expects = f"Data/Images/{{Normal,Anomaly}}/, Data/Masks/Anomaly/, and {TABLE} beside the category"
    place_of_masks = "in the column mask of split_csv/1cls.csv"

    def recognise(self, root: Path) -> str | None:
        folders = [below(root, *names) for names in _FOLDERS]
        present = [f.relative_to(root).as_posix() + "/" for f in folders if f is not None]
        return f"{self.name} layout, because it has {' and '.join(present)}" if len(present) == len(_FOLDERS) else None

    def near_miss(self, root: Path) -> str | None:
        present = {"/".join(names): below(root, *names) is not None for names in _FOLDERS}
        lacking = [name for name, there in present.items() if not there]
        if len(lacking) != 1:
            return None
        there = next(name for name in present if name not in lacking)
        return f"{there}/ is there, but no {lacking[0]}/"

    def load(self, root: Path) -> Dataset:
        recognised = self.recognise(root)
        if recognised is None:
            raise FlawsmithError(f"{root} is not in {self.name} layout; expected {self.expects}")
        table = root.parent / TABLE
        files = _NamedFiles(root, table)
        named: dict[tuple[str, str], list[tuple[Path, tuple[Path, ...]]]] = {role: [] for role in _ROLES}
        for row in _rows_of(root.name, table):
            masked = row.mask and row.label == "anomaly"
            pair = files.take(row.image, row.line), (files.take(row.mask, row.line),) if masked else ()
            named[row.split, row.label].append(pair)
        learned, good, flawed = (sorted(named[role]) for role in _ROLES)
        if not learned:
            raise FlawsmithError(f"no good images to train on: {table} has no row {root.name},train,normal")
        collector = Collector(root)
        collector.add_good((image for image, _ in learned), "train")
        collector.add_validation()
        collector.add_good((image for image, _ in good), "test")
        for image, masks in flawed:
            collector.add_flawed(image, "anomaly", masks)
        collector.unused_masks += files.unused("Masks")
        unnamed = files.unused("Images")
        if unnamed:
            collector.notes.append(f"not used: {count(len(unnamed), 'image')} without a row in {table}; add the rows")
        return collector.dataset(self.name, recognised)


class _Row(NamedTuple):
    """An image of the category, as the table has it."""

    line: int
    split: str
    label: str
    image: str
    mask: str


def _rows_of(category: str, table: Path) -> list[_Row]:
    """The rows of one category."""
    rows = [
        _Row(line, *(cells[name].strip() for name in _COLUMNS[1:]))
        for line, cells in _read(table)
        if same_name(cells["object"].strip()) == same_name(category)
    ]
    if not rows:
        raise FlawsmithError(f"{table} has no row of the object {category}; give the folder the name it has there")
    for row in rows:
        if (row.split, row.label) not in _ROLES:
            roles = " or ".join(",".join(role) for role in _ROLES)
            raise FlawsmithError(f"{table}, line {row.line}, has {row.split!r},{row.label!r}; expected {roles}")
    return rows


def _read(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The cells of each row by column, and the number of its line."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            rows = [(reader.line_num, cells) for cells in reader]
    except FileNotFoundError:
        place = table.parents[1]
        raise FlawsmithError(f"there is no {table}, which splits VisA's images; copy {TABLE} to {place}") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise FlawsmithError(f"cannot read {table} ({error}); copy it anew from VisA's archive") from error
    if lacking:
        raise FlawsmithError(f"{table} has no column {lacking[0]}; expected {','.join(_COLUMNS)}")
    return rows


class _NamedFiles:
    """The category's image files by the paths that the table gives them, whatever their case and form of letters."""

    def __init__(self, root: Path, table: Path) -> None:
        self._root, self._table = root, table
        data = below(root, "Data")
        paths = find_images(data) if data is not None else []
        self._paths = {same_name(p.relative_to(root.parent).as_posix()): p for p in paths}
        self._unused = set(paths)

    def take(self, name: str, line: int) -> Path:
        """The file of that name.

        Raises:
            FlawsmithError: there is none, or it was taken before.
        """
        path = self._paths.get(same_name(PurePosixPath(name).as_posix()))
        if path is None or path not in self._unused:
            reason = "there is no such image" if path is None else "an earlier row names it too"
            raise FlawsmithError(
                f"{self._table}, line {line}, names {name!r}, but {reason}; unpack VisA anew, or remove the row"
            )
        self._unused.remove(path)
        return path

    def unused(self, part: str) -> list[Path]:
        """The files below Data/<part>/ that were not taken, sorted."""
        folder = below(self._root, "Data", part)
        return sorted(p for p in self._unused if folder in p.parents)
