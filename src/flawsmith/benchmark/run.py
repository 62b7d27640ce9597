"""A benchmark from plan to tables: what is finished is read, the rest is computed and kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawsmith.benchmark.executors import Executor, LocalExecutor
from flawsmith.benchmark.experiment import ResultStore, RunResult, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.tables import table_files, write_tables
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder
from flawsmith.runtime.outputs import refuse_irreplaceable


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark leaves behind.

    Attributes:
        results: every run of the plan, in its order; failed ones too.
        computed: how many of them were computed now; the others had been finished before.
        files: the tables, by name of the format.
    """

    results: list[RunResult]
    computed: int
    files: dict[str, Path]

    @property
    def failed(self) -> list[RunResult]:
        return [result for result in self.results if not result.finished]


def run_benchmark(
    plan: Plan | Mapping[str, Any],
    out: str | Path,
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    memory_bytes: int | None = None,
    keep_models: bool = False,
    fresh: bool = False,
    on_start: Callable[[int, int], object] = lambda total, pending: None,
    on_result: Callable[[RunResult], object] = lambda result: None,
) -> BenchmarkResult:
    """Compute the runs of a plan that are not finished yet, and write the tables of all.

    A run is finished when a result with the same key is in the folder; anything that changes the result (settings, the
    content of the images, seed, rules) changes the key. A failed run is recorded, the rest goes on, and it is tried
    again the next time. Results are kept as they come: an interrupted benchmark goes on where it was.

    Args:
        plan: what to compare: a plan, or its fields, such as ``{"data": "parts", "methods": ["pbas", "glass"]}``.
        out: the benchmark's folder.
        executor: where runs are computed; by default in processes on this machine.
        jobs: runs at a time on this machine, which share its cores; an executor that is given knows its own.
        memory_bytes: anonymous memory at which a run is stopped; by default an even share of nine tenths of it all.
        keep_models: keep the model file of every run.
        fresh: compute all runs, finished ones too.
        on_start: called with the number of runs and of those to compute.
        on_result: called with each run that was computed.

    Raises:
        FlawsmithError: data or settings that cannot be used, or a folder that cannot be written.
    """
    executor = executor or LocalExecutor(jobs)
    changes = {"memory_bytes": memory_bytes, "keep_model": keep_models}
    checked = plan if isinstance(plan, Plan) else Plan.checked(plan, source="benchmark")
    planned = [task.model_copy(update=changes) for task in tasks(checked)]
    return run_tasks(
        planned,
        Path(out),
        executor=executor,
        fresh=fresh,
        printed_in=checked.printed_in or None,
        on_start=on_start,
        on_result=on_result,
    )


def run_tasks(
    planned: Sequence[Task],
    out: Path,
    *,
    executor: Executor,
    fresh: bool = False,
    tables: Path | None = None,
    printed_in: Mapping[str, Sequence[str]] | None = None,
    caution: str = "",
    on_start: Callable[[int, int], object] = lambda total, pending: None,
    on_result: Callable[[RunResult], object] = lambda result: None,
) -> BenchmarkResult:
    """:func:`run_benchmark` of tasks that are planned already; takes the same arguments and raises the same.

    Args:
        tables: folder of the tables, where it is not that of the results.
        printed_in: the papers' tables beside which the results are set, by paper; None: all of each method.
        caution: what must stand above all tables.
    """
    if any(task.memory_bytes is not None and task.memory_bytes < 1 for task in planned):
        raise FlawsmithError("memory_bytes must be above 0: leave it out for an even share of the memory there is")
    store, shown_in = ResultStore(out), out if tables is None else tables
    with store.claimed():
        make_folder(shown_in)
        refuse_irreplaceable(table_files(shown_in).values())
        computed_once = {task.run.key: task for task in planned}.values()
        pending = [task for task in computed_once if fresh or store.result(task.run) is None]
        on_start(len(computed_once), len(pending))
        failed: dict[str, RunResult] = {}
        with closing(executor.run(pending)) as computed:
            for task, files in computed:
                result = store.save(task.run, files)
                if not result.finished:
                    failed[task.run.key] = result
                on_result(result)
        # Under the names that this plan gives the experiments.
        kept = [store.result(task.run) or failed[task.run.key] for task in planned]
        results = [result.model_copy(update={"run": task.run}) for result, task in zip(kept, planned, strict=True)]
        return BenchmarkResult(
            results, len(pending), write_tables(results, shown_in, printed_in=printed_in, caution=caution)
        )
