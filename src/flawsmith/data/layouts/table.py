"""A table of your own: one CSV file says what each image is, wherever the images lie.

::

    image,label,split,defect,mask
    images/0001.png,good,train,,
    images/0002.png,good,validation,,
    images/0003.png,good,test,,
    images/0004.png,flawed,test,scratch,masks/0004_a.png;masks/0004_b.png

============  =====================================================================================================
image         path of the image, from the folder of the table on, or absolute
label         ``good`` or ``flawed``
split         ``train``, ``validation`` (or ``val``) or ``test``; flawed images stand in ``test`` alone
defect        optional: the defect type of a flawed image
mask          optional: masks of a flawed image, several separated by ``;``
group         optional: the day, camera, lot or cavity of an image; whole groups are held out to set the limit
============  =====================================================================================================

Columns may stand in any order; others are read for ``--group column:NAME`` alone. Cells are separated by commas,
semicolons or tabs; where by semicolons, several masks stand in quotation marks. The file is UTF-8, with or without a
byte order mark.

DATA is the file, or a folder with it. The category bears the name of the folder, or that of the file where the folder
has several such tables; then DATA must be one of the files.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

from flawsmith.data.layouts.base import (
    Collector,
    Layout,
    count,
    register,
)
from flawsmith.data.layouts.names import nfc, on_disk
from flawsmith.data.samples import GOOD, Dataset, Split
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder

COLUMNS = ("image", "label", "split", "defect", "mask")
_GROUP = "group"
_KNOWN = (*COLUMNS, _GROUP)
_REQUIRED = COLUMNS[:3]
_SEPARATORS = (",", ";", "\t")
_UNNAMED_DEFECT = "defect"
_FIRST_BYTES = 1 << 14
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEADER = ",".join(COLUMNS)


class Row(NamedTuple):
    """One image, as the table has it.

    Attributes:
        line: number of the line in the file, from 1.
        image: path as written.
        label: in lower case.
        split: in lower case.
        defect: ``good`` where a good image has no entry, ``defect`` where a flawed one has none.
        masks: paths as written.
        cells: all cells, by the names of their columns in lower case.
    """

    line: int
    image: str
    label: str
    split: str
    defect: str
    masks: tuple[str, ...]
    cells: Mapping[str, str]


def first_line(table: Path) -> list[str]:
    """The cells of the first line, in lower case; empty where the file cannot be read or has none."""
    try:
        if not table.is_file():
            return []
        with table.open("rb") as stream:
            start = stream.read(_FIRST_BYTES)
    except OSError:
        return []
    encoding = "utf-16" if start.startswith(_WIDE) else "utf-8-sig"
    return _cells_of_first(start.decode(encoding, errors="replace"))[0]


def read_rows(table: Path) -> list[Row]:
    """The rows of a table, without its blank ones.

    Raises:
        FlawsmithError: the file cannot be read, is empty or not UTF-8; it lacks a column or has one twice; a line has
            more cells than the first one, or names no image.
    """
    text = _text(table)
    columns, separator = _cells_of_first(text)
    _check_columns(table, columns)
    rows, reader = [], csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = True
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header:
                header = False
                continue
            rows.append(_row(table, reader.line_num, columns, cells))
    except csv.Error as error:
        raise FlawsmithError(f"{table}, line {reader.line_num}: {error}; check its quotation marks") from error
    if not rows:
        raise FlawsmithError(f"{table} has a first line, but names no image; write a line for each")
    return rows


def _text(table: Path) -> str:
    try:
        if not table.is_file():
            raise FlawsmithError(f"there is no table {table}; check the path")
        content = table.read_bytes()
    except OSError as error:
        raise FlawsmithError(f"cannot read {table} ({error.strerror}); check the rights to it") from error
    if content.startswith(_WIDE):
        raise FlawsmithError(f"{table} is in UTF-16, not in UTF-8; save it as CSV UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FlawsmithError(
            f"{table}, line {line}, is not in UTF-8 (byte 0x{content[error.start]:02x}); save it as CSV UTF-8"
        ) from error
    if not text.strip():
        raise FlawsmithError(f"{table} is empty; write a first line {_HEADER} and a line for each image")
    return text


def _cells_of_first(text: str) -> tuple[list[str], str]:
    """The cells of the first line that is not blank, in lower case, and what separates them."""
    line = next((line for line in text.splitlines() if line.strip()), "")[:_FIRST_BYTES].replace("\0", "")
    split = {separator: next(csv.reader([line], delimiter=separator), []) for separator in _SEPARATORS}
    named = {key: [cell.strip().casefold() for cell in cells] for key, cells in split.items()}
    # Most cells with a known name, and where none is known most cells.
    best = max(_SEPARATORS, key=lambda key: (len({*_KNOWN} & {*named[key]}), len(named[key])))
    return named[best], best


def _check_columns(table: Path, columns: list[str]) -> None:
    lacking = [name for name in _REQUIRED if name not in columns]
    if lacking:
        plural, names = ("s", " and ".join(lacking)) if len(lacking) > 1 else ("", lacking[0])
        raise FlawsmithError(f"{table} has no column{plural} {names}; its first line must be like {_HEADER}")
    twice = [name for name in _KNOWN if columns.count(name) > 1]
    if twice:
        raise FlawsmithError(f"{table} has the column {twice[0]} twice; remove one of them")


def _row(table: Path, line: int, columns: list[str], cells: list[str]) -> Row:
    values = [cell.strip() for cell in cells]
    if any(values[len(columns) :]):
        raise FlawsmithError(
            f"{table}, line {line}, has {len(values)} cells, the first line {len(columns)}; put cells that hold the "
            "separator into quotation marks"
        )
    row = dict(zip(columns, values, strict=False))
    if not row.get("image"):
        raise FlawsmithError(f"{table}, line {line}, names no image; write its path, or remove the line")
    label = row.get("label", "").casefold()
    missing = GOOD if label == GOOD else _UNNAMED_DEFECT
    masks = tuple(name.strip() for name in row.get("mask", "").split(";") if name.strip())
    return Row(line, row["image"], label, row.get("split", "").casefold(), row.get("defect") or missing, masks, row)


def cells_by_image(dataset: Dataset, column: str) -> dict[Path, str]:
    """What a column of the table says of each image.

    Args:
        column: its name; case does not count.

    Raises:
        FlawsmithError: the table has no such column, naming those it has; or it cannot be read any more.
    """
    table = next((path for path in _tables(dataset.root) if nfc(path.stem) == dataset.category), None)
    table = table or _table_of(dataset.root)
    name, known = column.strip().casefold(), [cell for cell in first_line(table) if cell]
    if name not in known:
        close = get_close_matches(name, known, 1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise FlawsmithError(f"{table} has no column {column!r}{hint or ';'} it has {', '.join(known)}")
    files = _Files(table)
    return {files.image(row): row.cells.get(name, "") for row in read_rows(table)}


ENDING = ".csv"
_LABELS = (GOOD, "flawed")
_SPLITS: dict[str, Split] = {"train": "train", "validation": "val", "val": "val", "test": "test"}


@register
class CsvLayout(Layout):
    """See the module's docstring."""

    name = "csv"
    expects = f"a table *{ENDING} with the columns {', '.join(COLUMNS[:3])}"
    priority = 80
    place_of_masks = "in the column mask"

    def recognise(self, root: Path) -> str | None:
        tables = _tables(root) if is_folder(root) else [root] if is_table(root) else []
        if not tables:
            return None
        seen = [column for column in _KNOWN if column in first_line(tables[0])]
        return f"{self.name} layout, because {tables[0].name} has the columns {', '.join(seen)}"

    def near_miss(self, root: Path) -> str | None:
        for path in _files(root):
            cells = first_line(path)
            if not any(cells):
                return f"{path.name} is empty"
            lacking = [name for name in COLUMNS[1:3] if name not in cells]
            if "image" in cells and lacking:
                return f"{path.name} has the column image, but no column {' and '.join(lacking)}"
        return None

    def load(self, root: Path) -> Dataset:
        table = _table_of(root)
        rows = read_rows(table)
        collector = Collector(table.parent, **_names(table))
        files = _Files(table)
        checked = [(row, _split(table, row), files.image(row), files.masks(row)) for row in rows]
        for split in ("train", "val", "test"):
            mine = sorted((image, row.defect, masks) for row, where, image, masks in checked if where == split)
            collector.add_good((image for image, defect, _ in mine if defect == GOOD), split)
            for image, defect, masks in mine:
                if defect != GOOD:
                    collector.add_flawed(image, defect, masks)
        superfluous = sum(bool(row.masks) for row in rows if row.label == GOOD)
        if superfluous:
            collector.notes.append(f"left out: masks that the table gives to {count(superfluous, 'good image')}")
        seen = ", ".join(column for column in _KNOWN if column in first_line(table))
        dataset = collector.dataset(self.name, f"{self.name} layout, because {table.name} has the columns {seen}")
        groups = {image: row.cells.get(_GROUP, "") for row, _, image, _ in checked}
        if not any(groups.values()):
            return dataset
        samples = tuple(replace(sample, group=groups[sample.image]) for sample in dataset.samples)
        return replace(dataset, samples=samples, grouped_by=f"column {_GROUP}")


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is a CSV table."""
    return path.suffix.lower() == ENDING and not is_folder(path)


def _files(folder: Path) -> list[Path]:
    if not is_folder(folder):
        return []
    return sorted(path for path in folder.iterdir() if is_table(path) and not path.name.startswith("."))


def _tables(folder: Path) -> list[Path]:
    """The files whose first line names images and something that is known of them: not every CSV is such a table."""
    return [path for path in _files(folder) if _is_meant(first_line(path))]


def _is_meant(cells: Iterable[str]) -> bool:
    return "image" in cells and not {*COLUMNS[1:]}.isdisjoint(cells)


def _table_of(root: Path) -> Path:
    """The table itself, where a folder is given."""
    if not is_folder(root):
        return root
    tables = _tables(root) or _files(root)
    if not tables:
        raise FlawsmithError(f"{root} is not in csv layout; expected {CsvLayout.expects}")
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise FlawsmithError(f"{root} has {len(tables)} tables ({names}); give one of them, such as {tables[0]}")
    return tables[0]


def _names(table: Path) -> dict[str, str]:
    """Category and dataset: tables that share a folder are told apart by their own names."""
    several = len(_tables(table.parent)) > 1
    return {"category": table.stem, "dataset": table.parent.name} if several else {}


def _split(table: Path, row: Row) -> Split:
    """The split of a row.

    Raises:
        FlawsmithError: its label, split or defect is unknown, or they contradict each other.
    """
    where = f"{table}, line {row.line},"
    if row.label not in _LABELS:
        raise FlawsmithError(f"{where} has the label {row.cells.get('label', '')!r}; write good or flawed")
    if row.split not in _SPLITS:
        raise FlawsmithError(f"{where} has the split {row.split!r}; write train, validation or test")
    split = _SPLITS[row.split]
    if row.label != GOOD and split != "test":
        raise FlawsmithError(
            f"{where} puts a flawed image into {row.split}, but good images alone are learned from and calibrate; "
            "move it to test, or remove the line"
        )
    if (row.defect == GOOD) != (row.label == GOOD):
        raise FlawsmithError(f"{where} calls an image {row.label} and its defect {row.defect!r}; fix one of them")
    return split


class _Files:
    """The files that a table names.

    Args:
        table: the table, absolute.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._taken: dict[str, Row] = {}

    def image(self, row: Row) -> Path:
        """The image of a row.

        Raises:
            FlawsmithError: there is no such file, or an earlier row names it too.
        """
        path = self._file(row, row.image, "image")
        earlier = self._taken.setdefault(os.path.realpath(path), row)
        if earlier is not row:
            raise FlawsmithError(
                f"{self._table}, line {row.line}, names {row.image!r} for {row.split}, as line {earlier.line} does for "
                f"{earlier.split}; remove one of them"
            )
        return path

    def masks(self, row: Row) -> tuple[Path, ...]:
        """The masks of a row.

        Raises:
            FlawsmithError: there is no such file.
        """
        return tuple(self._file(row, name, "mask") for name in row.masks)

    def _file(self, row: Row, name: str, kind: Literal["image", "mask"]) -> Path:
        # Tables written on Windows have backslashes.
        for spelled in (name, name.replace("\\", "/")):
            written = Path(os.path.normpath(self._table.parent / spelled))
            path = written if os.path.lexists(written) else on_disk(written)
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
                return path
        raise FlawsmithError(
            f"{self._table}, line {row.line}, names the {kind} {name!r}, but there is no file {path}; "
            "paths start at the folder of the table"
        )
