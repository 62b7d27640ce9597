"""A benchmark from plan to tables: what is finished is read, the rest is computed and kept as it comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flawsmith.benchmark.cell import CellResult, ResultStore, Task
from flawsmith.benchmark.executors import Executor, LocalExecutor
from flawsmith.benchmark.peers.driver import check_environment
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.tables import write_tables


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark leaves behind.

    Attributes:
        results: every cell of the plan, in its order; failed ones too.
        computed: how many of them were computed now; the others had been finished before.
        files: the tables, by name of the format.
    """

    results: list[CellResult]
    computed: int
    files: dict[str, Path]

    @property
    def failed(self) -> list[CellResult]:
        return [one for one in self.results if not one.finished]


def run_benchmark(
    plan: Plan,
    out: Path,
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    memory_bytes: int | None = None,
    peer_python: Path | None = None,
    keep_models: bool = False,
    fresh: bool = False,
    started: Callable[[int, int], object] = lambda total, pending: None,
    done: Callable[[CellResult], object] = lambda result: None,
) -> BenchmarkResult:
    """Compute the cells of a plan that are not finished yet, and write the tables of all.

    A cell is finished when a result with the same key is in the folder; anything that changes the result (settings, the
    content of the images, seed, rules) changes the key. A failed cell is recorded, the rest goes on, and it is tried
    again the next time. Results are kept as they come: an interrupted benchmark goes on where it was.

    Args:
        plan: what to compare.
        out: the benchmark's folder.
        executor: where cells are computed; by default in processes on this machine.
        jobs: cells at a time on this machine, which share its cores; an executor that is given knows its own.
        memory_bytes: anonymous memory at which a cell is stopped; by default an even share of nine tenths of it all.
        peer_python: interpreter of the environment where the peer's models run.
        keep_models: keep the model file of every cell.
        fresh: compute all cells, finished ones too.
        started: told the number of cells and of those to compute.
        done: told of each cell that was computed.

    Raises:
        FlawsmithError: data or settings that cannot be used, a folder that cannot be written, or an environment where
            the peer's models cannot be run.
    """
    store = ResultStore(out)
    # A virtual environment's interpreter is a link, and is itself only under that name: it must not be resolved.
    python = None if peer_python is None else peer_python.expanduser().absolute()
    given = {"memory_bytes": memory_bytes, "peer_python": python, "keep_model": keep_models}
    with store.claimed():
        wanted = [task.model_copy(update=given) for task in tasks(plan)]
        pending = [task for task in wanted if fresh or store.result(task.cell) is None]
        check_environment(pending)
        started(len(wanted), len(pending))
        failed: dict[str, CellResult] = {}
        with closing((executor or LocalExecutor(jobs)).run(pending)) as computed:
            for task, files in computed:
                result = store.save(task.cell, files)
                if not result.finished:
                    failed[task.cell.key] = result
                done(result)
        results = [_named(store.result(task.cell) or failed[task.cell.key], task) for task in wanted]
        return BenchmarkResult(results, len(pending), write_tables(results, out))


def _named(result: CellResult, task: Task) -> CellResult:
    """The result under the name that this plan gives the arm."""
    return result.model_copy(update={"cell": task.cell})
