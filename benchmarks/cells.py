"""Cells of a benchmark: each in a process of its own, measured from outside, kept on disk and never run twice."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flawsmith.benchmark.executors import run_measured
from flawsmith.runtime.files import replacing

Cell = dict[str, Any]


def cell_result(folder: Path, script: str, cell: Cell, *, threads: int | None = None) -> Cell:
    """The result of a cell: read where it was finished before, else computed by ``script --cell`` in a new process.

    Args:
        folder: where results are kept, one JSON file a cell.
        script: the benchmark's own file; called with ``--cell`` it hands the cell to :func:`serve_cell`.
        cell: all that the result depends on, ready for JSON.
        threads: OpenMP threads of the process; None: one a core.

    Raises:
        SystemExit: the cell failed; the end of its stderr is shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{cell['category']}-{cell['preset']}-seed{cell['seed']}-{_key(cell)}.json"
    if not file.exists():
        print(f"{file.stem}: running", file=sys.stderr, flush=True)
        with _scratch(folder / f"unfinished-{file.stem}") as scratch:
            answer = scratch / "answer.json"
            command = [
                sys.executable,
                script,
                "--cell",
                json.dumps(cell),
                str(answer),
                str(scratch),
                str(time.monotonic()),
            ]
            limited = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
            measured = run_measured(command, env={"FLAWSMITH_CACHE": str(scratch / "cache"), **limited})
            if measured.returncode:
                print(f"{file.stem}: failed", file=sys.stderr, flush=True)  # others may run for hours yet
                raise SystemExit(f"{file.stem} failed ({measured.returncode}):\n{measured.stderr}")
            result = json.loads(answer.read_text())
        result |= {"cell": cell, "process_seconds": measured.seconds, "private_bytes": measured.peak_bytes}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(result, indent=1))
    result = json.loads(file.read_text())
    print(f"{file.stem}: {result.get('summary', 'done')}", file=sys.stderr, flush=True)
    return result


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder to work in, removed when all went well: what a failure or a kill leaves is found again."""
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def _key(cell: Cell) -> str:
    """Identity of a cell: what it says, and what its preset means; a preset that was changed is computed anew."""
    from flawsmith.models.registry import find_method

    preset = find_method(cell.get("method", "pbas")).presets[cell["preset"]]
    given = {"cell": cell, "preset": preset.model_dump(mode="json", exclude_defaults=True)}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:10]


def add_jobs(arguments: argparse.ArgumentParser) -> None:
    """Give a benchmark of cells the option ``--jobs``."""
    arguments.add_argument(
        "--jobs", type=int, default=1, help="cells at a time, which share the cores: accuracy sooner, each cell slower"
    )


def cell_results(folder: Path, script: str, cells: Sequence[Cell], *, jobs: int) -> list[Cell]:
    """:func:`cell_result` of many cells, in order; several at a time share the cores evenly.

    Where one fails, those that run are finished and kept, and no other begins.
    """
    with ThreadPoolExecutor(jobs) as pool:
        threads = thread_share(jobs)
        pending = [pool.submit(cell_result, folder, script, cell, threads=threads) for cell in cells]
        wait(pending, return_when=FIRST_EXCEPTION)
        for one in pending:
            one.cancel()
        return [one.result() for one in pending]


def thread_share(jobs: int) -> int | None:
    """OpenMP threads of each of several cells at a time; None where there is one, which takes what it likes."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def serve_cell(compute: Callable[[Cell, Path, float], Cell]) -> bool:
    """Compute the cell that this process was started for; False where it was started by hand.

    Args:
        compute: given the cell, a folder to work in, where an interrupted run of the same cell may lie to go on with,
            and the system's monotonic clock when this process was started, returns the result, ready for JSON.
    """
    if sys.argv[1:2] != ["--cell"]:
        return False
    cell, answer, scratch, started = sys.argv[2:6]
    Path(answer).write_text(json.dumps(compute(json.loads(cell), Path(scratch), float(started))))
    return True


def settings_from(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs as method settings, values read as YAML.

    Raises:
        SystemExit: a pair without an equals sign.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SystemExit(f"--set {pair}: write key=value")
        settings[name] = yaml.safe_load(value)
    return settings


def linked_subset(source: Path, number: int, folder: Path) -> Path:
    """A category with the same test split, whose training part is the first images of the hold-out split.

    The images come in the split's own order, which depends on their content alone (seed 0); what that split holds out
    becomes the validation folder, so that every model learns from the same images and is calibrated on the same ones.

    Args:
        source: the whole category, in MVTec layout.
        number: training images.
        folder: where to build it, from links.

    Returns:
        The category's folder of links, called as the source is.

    Raises:
        SystemExit: the split has fewer images.
    """
    from flawsmith.data.layouts import load
    from flawsmith.data.splits import hold_out

    split = hold_out(load(source).good_train, 0)
    if number > len(split.train):
        raise SystemExit(f"{source.name} has {len(split.train)} training images after the hold-out, not {number}")
    root = folder / source.parent.name / source.name
    for part, samples in (("train", split.train[:number]), ("validation", split.calibration)):
        good = root / part / "good"
        good.mkdir(parents=True)
        for place, sample in enumerate(samples):
            (good / f"{place:05d}{sample.image.suffix}").symlink_to(sample.image.resolve())
    for part in ("test", "ground_truth"):
        (root / part).symlink_to((source / part).resolve())
    return root
