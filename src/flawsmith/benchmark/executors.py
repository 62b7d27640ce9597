"""Where cells are computed: the contract of an executor, and the one that uses this machine's own processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import psutil

from flawsmith.benchmark.cell import CellResult, Task
from flawsmith.benchmark.process import Measured, Stop, run_measured
from flawsmith.benchmark.store import KEPT, RESULT, CellFiles

TASK = "task.json"
MEMORY_SHARE = 0.9


class Executor(Protocol):
    """Computes cells somewhere."""

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, CellFiles], None, None]:
        """Compute cells and give each one's files as soon as it has ended, in any order.

        A cell that fails is given too, as a result that says why; an executor raises only where no further cell can be
        computed. Closing the generator early stops what runs.
        """
        ...


class LocalExecutor:
    """Cells in processes of their own on this machine.

    Args:
        jobs: cells at a time.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, CellFiles], None, None]:
        """Compute cells in order, several at a time; leaving the iterator early stops the running ones."""
        stop = Stop()
        pool = ThreadPoolExecutor(self.jobs)
        pending: dict[Future[CellFiles], Task] = {}
        try:
            for task in tasks:
                pending[pool.submit(compute, with_share(task, self.jobs), jobs=self.jobs, stop=stop)] = task
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()
            pool.shutdown(wait=True)


def with_share(task: Task, jobs: int) -> Task:
    """A task with an even share of this machine's cores and memory, where it says nothing of them."""
    threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
    cap = int(MEMORY_SHARE * psutil.virtual_memory().total / jobs)
    return task.model_copy(update={"threads": task.threads or threads, "memory_bytes": task.memory_bytes or cap})


def compute(task: Task, *, jobs: int = 1, stop: Stop | None = None) -> CellFiles:
    """Compute one cell in a new process, with an empty feature cache, and watch its memory.

    Args:
        task: the cell and where its data is.
        jobs: cells that run on this machine at a time, for the record.
        stop: ends the process when it is set.

    Returns:
        The cell's files; a failure is a result that says why.
    """
    with tempfile.TemporaryDirectory(prefix="flawsmith-cell-") as folder:
        scratch = Path(folder)
        (scratch / TASK).write_text(task.model_dump_json())
        environment = {"FLAWSMITH_CACHE": str(scratch / "cache")}
        if task.threads is not None:
            environment["OMP_NUM_THREADS"] = str(task.threads)
        measured = run_measured(
            [sys.executable, "-m", "flawsmith.benchmark.worker", str(scratch)],
            env=environment,
            memory_bytes=task.memory_bytes,
            stop=stop,
        )
        files = {name: (scratch / name).read_bytes() for name in KEPT if (scratch / name).exists()}
        if RESULT in files and measured.returncode == 0:
            result = CellResult.model_validate_json(files[RESULT])
        else:
            result, files = failed(task, _reason(measured, task)), {}
    costs = {"peak_bytes": measured.peak_bytes, "threads": task.threads, "jobs": jobs}
    result = result.model_copy(update={"costs": result.costs.model_copy(update=costs)})
    return {**files, RESULT: result.model_dump_json(indent=1).encode()}


def failed(task: Task, reason: str) -> CellResult:
    """The result of a cell that could not be computed."""
    return CellResult(cell=task.cell, status="failed", error=reason)


def _reason(measured: Measured, task: Task) -> str:
    if measured.over_cap:
        assert task.memory_bytes is not None
        return f"stopped at {task.memory_bytes / 1e9:.1f} GB of memory: give more with --memory, or fewer --jobs"
    if measured.returncode < 0:
        return f"killed by signal {-measured.returncode}, perhaps for want of memory"
    lines = [line for line in measured.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with exit code {measured.returncode} and without a word"
