"""Benchmarks that are run: resumed, with runs that fail, stopped for their memory."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from flawsmith.benchmark.executors import LocalExecutor, compute, run_measured
from flawsmith.benchmark.experiment import MODEL, RESULT, SCORES, ResultStore, RunFiles, RunResult, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.run import run_benchmark
from flawsmith.runtime.errors import FlawsmithError

QUICK = {
    "image_size": [64, 96],
    "precision": "32-true",
    "level_width": 32,
    "width": 32,
    "hidden": 16,
    "epochs": 1,
    "steps_per_epoch": 2,
    "patches_per_step": 64,
    "batch_size": 4,
}


class PretendExecutor:
    """Gives every run the same figures without computing them; fails those of some seeds."""

    def __init__(self, figures: RunResult, failing: Sequence[int] = ()) -> None:
        self.figures, self.failing = figures, failing
        self.asked: list[str] = []

    def run(self, wanted: Sequence[Task]) -> Generator[tuple[Task, RunFiles], None, None]:
        for task in wanted:
            self.asked.append(task.run.label)
            changes: dict[str, Any] = {"run": task.run}
            if task.run.seed in self.failing:
                changes |= {"status": "failed", "error": "no luck", "evaluations": {}}
            yield task, {RESULT: self.figures.model_copy(update=changes).model_dump_json().encode(), SCORES: b"image\n"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, draw_parts: Callable[..., Path]) -> Path:
    """A data set with a category that is sound and one whose training images are damaged."""
    root = tmp_path_factory.mktemp("data") / "line"
    draw_parts(root / "bolt", good=8)
    draw_parts(root / "nut", good=8)
    for image in (root / "nut" / "train" / "good").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def plan(data: Path) -> Plan:
    method = {"method": "pbas", "backbone": "test_efficientnet@random", "set": QUICK}
    return Plan.checked({"data": data, "methods": method, "resamples": 20}, source="test")


@pytest.fixture(scope="module")
def computed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A benchmark of real runs, one of which fails."""
    out = tmp_path_factory.mktemp("benchmark")
    return out, run_benchmark(plan, out, keep_models=True)


@pytest.fixture(scope="module")
def finished(computed: tuple[Path, Any]) -> RunResult:
    (one,) = [result for result in computed[1].results if result.finished]
    return one


def test_finished_run_has_figures_costs_scores_and_model(computed: tuple[Path, Any], finished: RunResult) -> None:
    folder = ResultStore(computed[0]).folder(finished.run)

    assert finished.run.category == "bolt"
    assert finished.evaluations["whole"].image_auroc is not None
    assert (finished.n_train, finished.n_calibration) == (4, 4)
    assert all(value is not None for name, value in finished.costs.model_dump().items() if name != "threads")
    assert (finished.costs.latency_p95_ms or 0) >= (finished.costs.latency_p50_ms or 1)
    assert len((folder / SCORES).read_text().splitlines()) == 5
    assert (folder / MODEL).stat().st_size == finished.costs.model_bytes


def test_run_that_fails_is_recorded_with_one_line_and_the_rest_goes_on(computed: tuple[Path, Any]) -> None:
    (failed,) = computed[1].failed

    assert failed.run.category == "nut"
    assert "damaged" in failed.error or "truncated" in failed.error
    assert "\n" not in failed.error
    assert "nut" in computed[1].files["md"].read_text()


def test_finished_runs_are_not_computed_again_and_failed_ones_are(computed: tuple[Path, Any], plan: Plan) -> None:
    executor = PretendExecutor(computed[1].results[0])

    again = run_benchmark(plan, computed[0], executor=executor)

    assert again.computed == 1
    assert [label.split("-")[0] for label in executor.asked] == ["nut"]


def test_changed_run_is_computed(finished: RunResult, plan: Plan, tmp_path: Path) -> None:
    first, second = PretendExecutor(finished), PretendExecutor(finished)
    run_benchmark(plan.model_copy(update={"seeds": (0,)}), tmp_path, executor=first)

    run_benchmark(plan.model_copy(update={"seeds": (0, 1)}), tmp_path, executor=second)

    assert len(first.asked) == len(second.asked) == 2
    assert not set(first.asked) & set(second.asked)


def test_fresh_computes_all_runs(finished: RunResult, plan: Plan, tmp_path: Path) -> None:
    run_benchmark(plan, tmp_path, executor=PretendExecutor(finished))

    assert run_benchmark(plan, tmp_path, executor=PretendExecutor(finished), fresh=True).computed == 2


def test_interrupted_benchmark_keeps_what_was_finished(finished: RunResult, plan: Plan, tmp_path: Path) -> None:
    class Interrupted(PretendExecutor):
        def run(self, wanted: Sequence[Task]) -> Generator[tuple[Task, RunFiles], None, None]:
            yield next(super().run(wanted))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(plan, tmp_path, executor=Interrupted(finished))

    assert run_benchmark(plan, tmp_path, executor=PretendExecutor(finished)).computed == 1


def test_two_benchmarks_do_not_write_into_one_folder(plan: Plan, tmp_path: Path) -> None:
    with (
        ResultStore(tmp_path).claimed(),
        pytest.raises(FlawsmithError, match="another flawsmith command is writing there"),
    ):
        run_benchmark(plan, tmp_path)


def test_damaged_result_counts_as_never_computed(finished: RunResult, plan: Plan, tmp_path: Path) -> None:
    run_benchmark(plan, tmp_path, executor=PretendExecutor(finished))
    (tmp_path / "runs" / tasks(plan)[0].run.label / RESULT).write_text("{")

    assert run_benchmark(plan, tmp_path, executor=PretendExecutor(finished)).computed == 1


def test_result_of_another_schema_counts_as_never_computed(finished: RunResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    content = {**finished.model_dump(mode="json"), "schema_version": 1}
    (store.folder(finished.run)).mkdir(parents=True)
    (store.folder(finished.run) / "result.json").write_text(json.dumps(content))

    assert store.results() == []


@pytest.mark.parametrize(
    ("options", "words"), [({"jobs": 0}, "jobs must be at least 1"), ({"memory_bytes": -1}, "must be above 0")]
)
def test_senseless_bounds_are_refused_in_a_line(
    plan: Plan, tmp_path: Path, options: dict[str, int], words: str
) -> None:
    with pytest.raises(FlawsmithError, match=words):
        run_benchmark(plan, tmp_path, **options)


def test_run_over_its_memory_is_stopped_and_says_so(plan: Plan) -> None:
    task = tasks(plan)[0].model_copy(update={"memory_bytes": 50 * 10**6})

    result = RunResult.model_validate_json(compute(task)[RESULT])

    assert not result.finished
    assert "stopped at 0.1 GB of memory: give more with --memory" in (result.error or "")
    assert (result.costs.peak_bytes or 0) > 50 * 10**6


def test_leaving_an_executor_early_ends_its_processes(plan: Plan, tmp_path: Path) -> None:
    """The first run, whose images are gone, ends soon; the one beside it is at work then."""
    first, *others = tasks(plan.model_copy(update={"seeds": tuple(range(6)), "categories": ("bolt",)}))
    running = LocalExecutor(jobs=2).run([first.model_copy(update={"data": tmp_path / "gone"}), *others])
    _, files = next(running)
    assert RunResult.model_validate_json(files[RESULT]).status == "failed"

    running.close()

    assert not [child for child in psutil.Process().children() if "flawsmith.benchmark.worker" in child.cmdline()]


def marked_processes(mark: str) -> list[psutil.Process]:
    """Running processes whose command line has the mark; one that has ended and waits for its parent has none."""
    return [process for process in psutil.process_iter(["cmdline"]) if mark in " ".join(process.info["cmdline"] or [])]


def test_stopped_process_takes_its_children_along() -> None:
    mark = f"of {os.getpid()}"  # other test sessions on this machine have sleepers of their own
    child = f"import time; time.sleep(600)  # {mark}"
    sleeper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    start = time.perf_counter()

    measured = run_measured([sys.executable, "-c", sleeper], stop=stop)

    assert measured.returncode < 0
    assert time.perf_counter() - start < 60
    deadline = time.monotonic() + 10  # all have the signal; the system ends them in its own time
    while marked_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marked_processes(mark)
