"""The text of a user's CSV table, cell by cell: encodings, separators and lines that are not as they should be."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path
from typing import NamedTuple

from flawsmith.data.samples import GOOD
from flawsmith.runtime.errors import FlawsmithError

COLUMNS = ("image", "label", "split", "defect", "mask")
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
    """

    line: int
    image: str
    label: str
    split: str
    defect: str
    masks: tuple[str, ...]


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
    best = max(_SEPARATORS, key=lambda key: (len({*COLUMNS} & {*named[key]}), len(named[key])))
    return named[best], best


def _check_columns(table: Path, columns: list[str]) -> None:
    lacking = [name for name in _REQUIRED if name not in columns]
    if lacking:
        plural, names = ("s", " and ".join(lacking)) if len(lacking) > 1 else ("", lacking[0])
        raise FlawsmithError(f"{table} has no column{plural} {names}; its first line must be like {_HEADER}")
    twice = [name for name in COLUMNS if columns.count(name) > 1]
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
    return Row(line, row["image"], label, row.get("split", "").casefold(), row.get("defect") or missing, masks)
