"""Finished cells on disk: one folder a cell, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from flawsmith.benchmark.cell import Cell, CellResult
from flawsmith.pipeline.names import make_folder
from flawsmith.runtime.errors import FlawsmithError

RESULT, SCORES, MODEL = "result.json", "scores.csv", "model.flaw"
KEPT = (RESULT, SCORES, MODEL)
_CELLS, _LOCK = "cells", ".lock"

CellFiles = Mapping[str, bytes]
"""A cell's files by name: ``result.json`` always, ``scores.csv`` of a finished one, ``model.flaw`` where it is kept."""


class ResultStore:
    """The folder of a benchmark: ``cells/<label>/`` with ``result.json``, ``scores.csv`` and perhaps ``model.flaw``.

    Args:
        root: the benchmark's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from writing into the same folder.

        Raises:
            FlawsmithError: another benchmark is writing there.
        """
        make_folder(self.root)
        with (self.root / _LOCK).open("w") as lock:
            if not _locked(lock):
                raise FlawsmithError(f"{self.root}: another benchmark writes here; wait for it, or give another --out")
            yield

    def folder(self, cell: Cell) -> Path:
        """Where a cell's files are, whether or not they are there."""
        return self.root / _CELLS / cell.label

    def result(self, cell: Cell) -> CellResult | None:
        """What is kept of a cell; None where it was never computed, or failed."""
        found = self._read(self.folder(cell) / RESULT)
        return found if found is not None and found.finished else None

    def results(self) -> list[CellResult]:
        """All that is kept, failed cells included, in the order of labels."""
        read = [self._read(path) for path in sorted((self.root / _CELLS).glob(f"*/{RESULT}"))]
        return [one for one in read if one is not None]

    def save(self, cell: Cell, files: CellFiles) -> CellResult:
        """Keep a cell's files; a folder of an earlier attempt is replaced.

        Raises:
            FlawsmithError: the folder cannot be written.
        """
        target = self.folder(cell)
        make_folder(target.parent)
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
                fresh = Path(scratch) / target.name
                fresh.mkdir()
                for name in KEPT:
                    if name in files:
                        (fresh / name).write_bytes(files[name])
                shutil.rmtree(target, ignore_errors=True)
                fresh.rename(target)
        except OSError as error:
            raise FlawsmithError(f"{target}: cannot be written ({error.strerror}); free some space") from None
        return CellResult.model_validate_json(files[RESULT])

    def _read(self, path: Path) -> CellResult | None:
        """A result; one that is damaged or of another schema counts as never computed."""
        try:
            return CellResult.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None


def _locked(file: IO[Any]) -> bool:
    try:
        import fcntl
    except ImportError:  # elsewhere than on POSIX nothing keeps two benchmarks apart
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
