"""Files: a line for each record, in another file each day."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from flawsmith.line.outputs.delivery import DeliveryError, Letter, Offline
from flawsmith.line.settings import FileOutput
from flawsmith.runtime.files import without_controls

COLUMNS = (
    *("delivery", "id", "received", "line", "station", "product", "part_id", "lot_id", "source", "name", "verdict"),
    *("score", "times_limit", "limit", "review_limit", "limits", "region_count", "error", "error_kind"),
    *("image_sha256", "model_sha256", "software"),
)
"""Columns of the CSV; the names are those of a record."""
_FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_TAIL_BYTES = 2**22
"""At the end of a file, in which the letters of one delivery are."""


class FileSink:
    """Appends records to a file, whole lines or nothing.

    What a kill left half written is cut off, and what is in the file already is not written again.

    Args:
        settings: of the output.
        line: its name.
    """

    def __init__(self, settings: FileOutput, line: str) -> None:
        self._settings, self._line = settings, line
        self._header = _row(COLUMNS) if settings.kind == "csv" else b""
        self._written: dict[Path, set[str]] = {}

    @property
    def target(self) -> str:
        """The folder."""
        return str(self._settings.folder)

    def tend(self, state: Offline) -> None:
        """Nothing to see to."""

    def close(self) -> None:
        """Nothing is open."""

    def deliver(self, letters: Sequence[Letter]) -> int:
        """Append those letters that belong into the same file as the first."""
        path = self._path(letters[0])
        count = next((at for at, letter in enumerate(letters) if self._path(letter) != path), len(letters))
        try:
            self._append(path, letters[:count])
        except OSError as error:
            self._written.pop(path, None)  # the file is looked at again
            raise DeliveryError(f"{path}: cannot be written ({error.strerror})") from None
        return count

    def _path(self, letter: Letter) -> Path:
        received = datetime.fromisoformat(letter.record.received)
        day = (received.astimezone() if self._settings.day == "local" else received).date()
        return self._settings.folder / f"{self._line}-{day.isoformat()}.{self._settings.kind}"

    def _append(self, path: Path, letters: Sequence[Letter]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            written = self._written.get(path)
            if written is None:
                written = self._repaired(file, path)
                self._written = {path: written}
            new = [letter for letter in letters if letter.delivery not in written]
            content = b"".join(map(self._text, new))
            size = file.seek(0, os.SEEK_END)
            content = content if size else self._header + content
            try:
                if os.write(file.fileno(), content) < len(content):
                    raise OSError(0, "the disk is full")
                os.fsync(file)
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
            # Only what was delivered and not remembered comes again, which is one batch.
            self._written = {path: {letter.delivery for letter in letters}}

    def _repaired(self, file: io.FileIO, path: Path) -> set[str]:
        """Cut off a line that was half written; returns the ids of the last lines.

        Raises:
            DeliveryError: the file is not one of ours.
        """
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = file.read(len(self._header))
        if header != self._header[: len(header)]:
            raise DeliveryError(f"{path}: has other columns; move the file away")
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        tail = file.read(size - start)
        whole = tail.rpartition(b"\n")[0] + b"\n" if b"\n" in tail else b""
        if len(whole) < len(tail):
            file.truncate(start + len(whole))
        lines = whole.decode("utf-8", "replace").split("\n")
        if self._settings.kind == "csv":
            return {line.partition(",")[0] for line in lines}
        return {_delivery_of(line) for line in lines}

    def _text(self, letter: Letter) -> bytes:
        message = letter.message()
        if self._settings.kind == "jsonl":
            return json.dumps(message, allow_nan=False).encode() + b"\n"
        return _row([message[name] for name in COLUMNS])


def _row(values: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object) -> object:
    """A value as a spreadsheet may have it: no text is a formula, and none breaks the line."""
    if not isinstance(value, str):
        return value
    text = without_controls(value)
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _delivery_of(line: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(line)["delivery"])
    return ""
