"""Runs on a Ray cluster: workers that are killed, runs that are left, nodes that lack something."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from flawsmith.benchmark.experiment import RESULT, SCORES, BenchmarkRun, ResultStore, RunFiles, RunResult, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.run import run_benchmark
from flawsmith.cli.main import main
from flawsmith.extras.ray import RayExecutor

PATIENCE = 120  # seconds; only a machine that is busy needs them

TINY = [
    "image_size=[[64,96]]",
    "precision=32-true",
    "level_width=32",
    "width=32",
    "hidden=16",
    "epochs=1",
    "steps_per_epoch=2",
    "patches_per_step=64",
    "batch_size=4",
]

# A run's process: it starts a child, says who it is, and goes on until there is a file `go` for it.
CELL = """
import os, pathlib, subprocess, sys, time
folder, seed, worker = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / f"new-{os.getpid()}").write_text(f"{seed} {worker} {os.getpid()} {child.pid}")
(folder / f"new-{os.getpid()}").rename(folder / f"run-{os.getpid()}")
while not ((folder / "go").exists() or (folder / f"go-{seed}").exists()):
    time.sleep(0.05)
child.kill()
child.wait()
"""


class Started(NamedTuple):
    """A run that has begun: its seed and the processes behind it."""

    seed: int
    worker: int
    process: int
    child: int


def stand_in(folder: Path) -> Callable[..., RunFiles]:
    """Computes a run by a process that waits; nested, so that Ray sends it by value to where no tests are."""
    script, where = CELL, str(folder)

    def computed(task: Task, *, jobs: int) -> RunFiles:
        from flawsmith.benchmark.executors import run_measured

        run_measured([sys.executable, "-c", script, where, str(task.run.seed), str(os.getpid())])
        result = RunResult(run=task.run, status="finished")
        return {"result.json": result.model_dump_json().encode()}

    return computed


def started(folder: Path) -> list[Started]:
    return [Started(*map(int, file.read_text().split())) for file in sorted(folder.glob("run-*"))]


def alive(*pids: int) -> list[int]:
    """Those that run; a process that nobody has collected yet does not."""
    running = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                running.append(pid)
        except psutil.NoSuchProcess:
            continue
    return running


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, draw_parts: Callable[..., Path]) -> Plan:
    bolt = draw_parts(tmp_path_factory.mktemp("data") / "bolt", good=8)
    return Plan.checked({"data": bolt, "methods": "pbas", "seeds": [*range(5)], "resamples": 20}, source="test")


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each run's result is saved."""
    counted: Counter[str] = Counter()
    save = ResultStore.save

    def counting(store: ResultStore, run: BenchmarkRun, files: RunFiles) -> RunResult:
        counted[run.label] += 1
        return save(store, run, files)

    monkeypatch.setattr(ResultStore, "save", counting)
    return counted


def test_run_of_a_killed_worker_is_computed_again_and_every_result_is_saved_once(
    on_ray: Any, plan: Plan, tmp_path: Path, saves: Counter[str]
) -> None:
    executor = RayExecutor("auto", jobs=2, compute=stand_in(tmp_path))
    seen: dict[str, Any] = {}

    def kill_one_of_two() -> None:
        try:
            wait_until(lambda: len(started(tmp_path)) == 2, "two runs go on at a time")
            seen["at once"] = started(tmp_path)
            seen["killed"] = killed = seen["at once"][0]
            os.kill(killed.worker, signal.SIGKILL)
            wait_until(lambda: not alive(killed.process, killed.child), "the run's processes followed their worker")
        finally:
            (tmp_path / "go").touch()  # or the runs would wait for ever

    killer = threading.Thread(target=kill_one_of_two)
    killer.start()
    result = run_benchmark(plan, tmp_path / "out", executor=executor)
    killer.join()

    runs = Counter(one.seed for one in started(tmp_path))
    assert len({one.worker for one in seen["at once"]}) == 2
    assert runs == Counter([*range(5), seen["killed"].seed])
    assert saves == Counter(task.run.label for task in tasks(plan))
    assert [one.finished for one in result.results] == [True] * 5
    assert not alive(*(pid for one in started(tmp_path) for pid in (one.process, one.child)))


def test_leaving_early_keeps_what_was_finished_and_leaves_no_process(on_ray: Any, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "go-0").touch()
    running = RayExecutor("auto", jobs=2, compute=stand_in(tmp_path)).run(tasks(plan))
    first, files = next(running)
    wait_until(lambda: len(started(tmp_path)) >= 3, "other runs run")

    running.close()

    assert first.run.seed == 0
    assert RunResult.model_validate_json(files[RESULT]).finished
    wait_until(
        lambda: not alive(*(pid for one in started(tmp_path) for pid in (one.process, one.child))), "all have ended"
    )
    assert {one.seed for one in started(tmp_path)} < set(range(5))


def test_run_that_always_takes_its_worker_along_fails_and_the_rest_goes_on(on_ray: Any, plan: Plan) -> None:
    def deadly(task: Task, *, jobs: int) -> RunFiles:
        if task.run.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"result.json": RunResult(run=task.run, status="finished").model_dump_json().encode()}

    given = RayExecutor("auto", jobs=2, compute=deadly).run(tasks(plan)[:3])
    results = [RunResult.model_validate_json(files[RESULT]) for _, files in given]

    failed = [one for one in results if not one.finished]
    assert sorted(one.run.seed for one in results) == [0, 1, 2]
    assert [one.run.seed for one in failed] == [1]
    assert failed[0].error
    assert "\n" not in failed[0].error


def test_run_asks_for_its_share_of_the_smallest_node(on_ray: Any, plan: Plan) -> None:
    def told(task: Task, *, jobs: int) -> RunFiles:
        result = RunResult(run=task.run, status="finished", machine=f"{task.threads} {jobs} {task.memory_bytes}")
        return {"result.json": result.model_dump_json().encode()}

    def words(jobs: int) -> list[str]:
        ((_, files),) = RayExecutor("auto", jobs=jobs, compute=told).run(tasks(plan)[:1])
        return RunResult.model_validate_json(files[RESULT]).machine.split()

    share = int(words(2)[2])
    assert words(1)[:2] == ["2", "1"]
    assert words(2)[:2] == ["1", "2"]
    assert 0 < 2 * share <= psutil.virtual_memory().total


def test_real_run_of_a_relative_folder_ends_in_the_tables(
    on_ray: Any, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(plan.data[0].parent)
    settings = [part for setting in TINY for part in ("--vary", setting)]

    model = ["--methods", "pbas", "--backbones", "test_efficientnet@random", *settings]
    code = main(["benchmark", "bolt", *model, "--out", str(tmp_path), "--jobs", "2", "--ray", "auto"])

    (result,) = ResultStore(tmp_path).results()
    assert code == 0, capsys.readouterr().err
    assert result.evaluations["whole"].image_auroc is not None
    assert (result.costs.threads, result.costs.jobs) == (1, 2)
    assert (ResultStore(tmp_path).folder(result.run) / SCORES).is_file()
    assert "pbas" in capsys.readouterr().out


def test_nothing_to_compute_needs_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawsmith.extras.ray.check_address", lambda address: None)

    assert list(RayExecutor("nowhere:1").run([])) == []


def test_node_that_does_not_see_the_data_says_so(on_ray: Any, plan: Plan) -> None:
    task = tasks(plan)[0].model_copy(update={"data": Path("/nowhere/bolt")})

    ((_, files),) = RayExecutor("auto", jobs=2).run([task])

    result = RunResult.model_validate_json(files[RESULT])
    assert not result.finished
    assert "does not see" in str(result.error)
    assert "/nowhere/bolt: nodes must see the same paths" in str(result.error)


def test_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """Without Ray: any process that computes a run may be killed."""
    starter = (
        "import os, sys; from flawsmith.benchmark.executors import run_measured; "
        "run_measured([sys.executable, '-c', sys.argv[1], sys.argv[2], '0', str(os.getpid())])"
    )
    process = psutil.Popen([sys.executable, "-c", starter, CELL, str(tmp_path)])
    wait_until(lambda: started(tmp_path), "the run runs")
    (run,) = started(tmp_path)
    assert alive(run.process, run.child) == [run.process, run.child]

    process.kill()
    process.wait()

    wait_until(lambda: not alive(run.process, run.child), "the run has ended")


@pytest.fixture(autouse=True)
def no_run_left(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no process that waits."""
    yield
    (tmp_path / "go").touch()
