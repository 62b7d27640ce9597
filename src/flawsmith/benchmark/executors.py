"""Where runs are computed: the contract of an executor, and the one that uses this machine's own processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from flawsmith.benchmark.experiment import KEPT, RESULT, RunFiles, RunResult, Task
from flawsmith.runtime import system
from flawsmith.runtime.errors import FlawsmithError

SAMPLING_SECONDS = 1.0  # the kernel walks all pages for a sample: five a second took a quarter of a core
STDERR_BYTES = 8000
Stop = threading.Event


@dataclass(frozen=True)
class FinishedProcess:
    """A finished process.

    Attributes:
        returncode: its exit code; negative: the signal that ended it.
        seconds: wall time from its start to its end.
        peak_bytes: largest anonymous memory of the process and its children together, sampled: what no file on disk
            backs, so that memory-mapped features do not count.
        stderr: the end of what it wrote to stderr.
        over_cap: whether it was ended for its memory.
    """

    returncode: int
    seconds: float
    peak_bytes: int
    stderr: str
    over_cap: bool = False


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process and its children, in bytes.

    On Linux pages that forked workers share with their parent are counted once (proportional set size); elsewhere it is
    the resident memory that psutil knows.
    """
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                private = system.anonymous_bytes(member.pid)
                total += int(member.memory_info().rss) if private is None else private
    return total


def run_measured(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
    stop: Stop | None = None,
) -> FinishedProcess:
    """Run a command to its end, watch its memory, and end it with its children where it must be.

    Neither outlives this process, even where that is killed, but on Windows: the kernel closes its end of a pipe, and
    who waits at the other end for that ends them.

    Args:
        command: program and arguments.
        env: added to the environment of this process.
        memory_bytes: anonymous memory at which it is ended; None: no cap.
        stop: ends it when set.
    """
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        # A group of its own: Ctrl-C reaches the benchmark alone, which then ends the process and all its children.
        process = system.start_group(
            system.guarded(command),
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            stdin=subprocess.PIPE,
        )
        assert process.stdin is not None
        peak, over_cap = 0, False
        try:
            while True:
                try:
                    returncode = process.wait(timeout=SAMPLING_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    peak = max(peak, anonymous_bytes(process.pid))
                over_cap = memory_bytes is not None and peak > memory_bytes
                if over_cap or (stop is not None and stop.is_set()):
                    system.end_group(process.pid)
        finally:
            if process.poll() is None:
                system.end_group(process.pid)
                process.wait()
            process.stdin.close()
        seconds = time.perf_counter() - start
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
        return FinishedProcess(returncode, seconds, peak, stderr.read().decode("utf-8", errors="replace"), over_cap)


TASK = "task.json"
WORKER = (sys.executable, "-m", "flawsmith.benchmark.worker")
"""The command that computes the task in the folder given to it."""
MEMORY_SHARE = 0.9


class Executor(Protocol):
    """Computes runs somewhere."""

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, RunFiles], None, None]:
        """Compute runs and give each one's files as soon as it has ended, in any order.

        A run that fails is given too, as a result that says why; an executor raises only where no further run can be
        computed. Closing the generator early stops what runs.
        """
        ...


class LocalExecutor:
    """Runs in processes of their own on this machine.

    Args:
        jobs: runs at a time, at least 1.
        worker: the command that computes the task in a folder.

    Raises:
        FlawsmithError: jobs is below 1.
    """

    def __init__(self, jobs: int = 1, *, worker: Sequence[str] = WORKER) -> None:
        if jobs < 1:
            raise FlawsmithError(f"jobs must be at least 1, not {jobs}")
        self.jobs, self.worker = jobs, worker

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, RunFiles], None, None]:
        """Compute runs in order, several at a time; leaving the iterator early stops the running ones."""
        stop = Stop()
        pool = ThreadPoolExecutor(self.jobs)
        pending: dict[Future[RunFiles], Task] = {}
        try:
            for task in tasks:
                shared = with_share(task, self.jobs)
                future = pool.submit(compute, shared, jobs=self.jobs, worker=self.worker, stop=stop)
                pending[future] = task
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


def compute(task: Task, *, jobs: int = 1, worker: Sequence[str] = WORKER, stop: Stop | None = None) -> RunFiles:
    """Compute one run in a new process, with an empty feature cache, and watch its memory.

    Args:
        task: the run and where its data is.
        jobs: runs on this machine at a time, for the record.
        worker: the command that computes the task in a folder.
        stop: ends the process when it is set.

    Returns:
        The run's files; a failure is a result that says why.
    """
    with tempfile.TemporaryDirectory(prefix="flawsmith-run-") as folder:
        scratch = Path(folder)
        (scratch / TASK).write_text(task.model_dump_json(), encoding="utf-8")
        environment = {"FLAWSMITH_CACHE": str(scratch / "cache")}
        if task.threads is not None:
            environment["OMP_NUM_THREADS"] = str(task.threads)
        measured = run_measured(
            [*worker, str(scratch)],
            env=environment,
            memory_bytes=task.memory_bytes,
            stop=stop,
        )
        files = {name: (scratch / name).read_bytes() for name in KEPT if (scratch / name).exists()}
        if RESULT in files and measured.returncode == 0:
            result = RunResult.model_validate_json(files[RESULT])
        else:
            result, files = failed(task, _reason(measured, task)), {}
    costs = {"peak_bytes": measured.peak_bytes, "threads": task.threads, "jobs": jobs}
    result = result.model_copy(update={"costs": result.costs.model_copy(update=costs)})
    return {**files, RESULT: result.model_dump_json(indent=1).encode()}


def failed(task: Task, reason: str) -> RunResult:
    """The result of a run that could not be computed."""
    return RunResult(run=task.run, status="failed", error=reason)


def _reason(measured: FinishedProcess, task: Task) -> str:
    if measured.over_cap:
        assert task.memory_bytes is not None
        return f"stopped at {task.memory_bytes / 1e9:.1f} GB of memory: give more with --memory, or fewer --jobs"
    if measured.returncode < 0:
        return f"killed by signal {-measured.returncode}, perhaps for want of memory"
    lines = [line for line in measured.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with exit code {measured.returncode} and without a word"
