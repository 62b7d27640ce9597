"""metrics.jsonl: what training recorded, a row an epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flawsmith.runtime.files import replacing


class MetricsFile:
    """Rows of one stage in metrics.jsonl, one an epoch; epochs that are trained again replace their rows."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def restart(self, epoch: int) -> None:
        """Drop this stage's rows from an epoch on: they come after the checkpoint that is resumed."""
        kept = [row for row in read_rows(self._path) if row["stage"] != self._stage or row["epoch"] < epoch]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def append(self, epoch: int, values: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "epoch": epoch, **values}) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a metrics file; the last line of a killed run may be cut off and is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
