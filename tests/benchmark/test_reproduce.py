"""The papers' tables by one command: every plan fits methods, data and printed tables, and some are run whole."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flawsmith.benchmark.executors import failed
from flawsmith.benchmark.experiment import RESULT, RunFiles, RunResult, Task
from flawsmith.benchmark.plan import Plan, categories_of, tasks
from flawsmith.benchmark.published import all_figures
from flawsmith.benchmark.reproduce import (
    chosen_plan,
    estimate,
    find_set,
    on_data,
    paper_plan,
    plan_names,
    reproduce,
    steps_of,
)
from flawsmith.benchmark.stand_in import draw_sets, made_small
from flawsmith.benchmark.tables import dataset_key
from flawsmith.benchmark.worker import run_task
from flawsmith.data.public_sets import OFFICIAL
from flawsmith.runtime.errors import FlawsmithError

OURS = {"glass": "GLASS", "pbas": "PBAS", "aand": "AAND", "slsg": "SLSG"}


class InlineExecutor:
    """Computes runs in this process, a part of them; one that was made for an earlier plan is taken from there.

    Args:
        folder: where runs work.
        chosen: of the runs that are asked for, those to compute.
        made: finished runs by their keys.
    """

    def __init__(
        self, folder: Path, chosen: Callable[[Sequence[Task]], Sequence[Task]], made: dict[str, RunResult]
    ) -> None:
        self.folder, self.chosen, self.made = folder, chosen, made

    def run(self, asked: Sequence[Task]) -> Generator[tuple[Task, RunFiles], None, None]:
        chosen = self.chosen(asked)
        for task in asked:
            result = self.result(task) if task in chosen else failed(task, "left out")
            yield task, {RESULT: result.model_dump_json().encode()}

    def result(self, task: Task) -> RunResult:
        earlier = self.made.get(task.run.key)
        if earlier is None or not earlier.covers(task.run):
            earlier = self.made[task.run.key] = run_task(task, Path(tempfile.mkdtemp(dir=self.folder)))
        further = [each for each in earlier.further if each.measurement in task.run.further]
        return earlier.model_copy(update={"run": task.run, "further": further})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every public set, drawn once for all plans."""
    return tmp_path_factory.mktemp("stand-in")


def small(name: str, drawn: Path) -> Plan:
    plan = paper_plan(name)
    draw_sets(drawn, plan)
    return made_small(plan, drawn)


@pytest.mark.parametrize("name", plan_names())
def test_every_plan_makes_runs_of_all_its_experiments_on_data_in_the_official_layouts(name: str, drawn: Path) -> None:
    plan = paper_plan(name)

    runs = [task.run for task in tasks(small(name, drawn))]

    assert plan.title
    sets = {path.name for path in plan.data}
    assert {dataset_key(run.dataset) for run in runs} == sets
    titles = {experiment.title for experiment in plan.experiments()}
    assert {run.experiment.title for run in runs} == titles
    assert {run.protocol for run in runs} == {"papers"}
    elsewhere = {dataset_key(each.dataset) for run in runs for each in run.further} - sets
    assert elsewhere == {path.name for path in plan.evaluate_on}
    assert all({each.protocol for each in run.further} >= {"clean"} for run in runs)
    assert {run.seed for run in runs} == set(plan.seeds)


@pytest.mark.parametrize("name", plan_names())
def test_rows_that_a_plan_names_are_printed_in_the_tables_that_it_names(name: str) -> None:
    plan = paper_plan(name)
    printed = [figure for figure in all_figures() if figure.table in plan.printed_in.get(figure.paper, ())]

    for experiment in plan.experiments():
        rows = [(experiment.published or "").replace("{seed}", str(seed)) for seed in plan.seeds]
        for row in filter(None, rows):
            names = {label for figure in printed for label in (figure.variant, figure.label)}
            assert row in names, f"{name}: {experiment.title} is set beside {row!r}, which no table has"
    assert {table for tables in plan.printed_in.values() for table in tables} <= {figure.table for figure in printed}


def test_every_printed_row_of_the_four_methods_is_made_by_a_plan() -> None:
    rows = {
        (figure.paper, figure.table, figure.variant)
        for figure in all_figures()
        if figure.kind in ("result", "ablation") and figure.method == OURS[figure.paper]
    }
    made = set()
    for name in plan_names():
        plan = paper_plan(name)
        for experiment in plan.experiments():
            names = {(experiment.published or "").replace("{seed}", str(seed)) for seed in plan.seeds}
            made |= {
                (figure.paper, figure.table, figure.variant)
                for figure in all_figures()
                if figure.table in plan.printed_in.get(figure.paper, ())
                and names & {figure.variant, figure.label, f"{figure.method}, {figure.variant}"}
            }

    missing = {row for row in rows - made if "other levels" not in row[2]}

    assert not missing


@pytest.mark.parametrize("key", [each.key for each in OFFICIAL])
def test_drawn_set_is_found_and_read_in_its_official_layout(key: str, tmp_path: Path) -> None:
    official = next(each for each in OFFICIAL if each.key == key)
    draw_sets(tmp_path, Plan.checked({"data": key, "methods": "padim"}, source="test"))

    datasets = categories_of(Plan.checked({"data": find_set(tmp_path, key), "methods": "padim"}, source="test"))

    assert {dataset.layout for dataset in datasets} == {official.layout}
    assert all(dataset.test_good and dataset.test_flawed for dataset in datasets)
    assert all(sample.masks for dataset in datasets for sample in dataset.test_flawed)
    assert all(bool(dataset.good_train) == (official.made_from is None) for dataset in datasets)


@pytest.mark.parametrize(("name", "sets"), [("glass-table-4", {"mvtec", "mad_man"}), ("aand-table-2", {"mvtec"})])
def test_chosen_category_is_drawn_though_not_every_set_of_the_plan_has_it(
    name: str, sets: set[str], tmp_path: Path
) -> None:
    plan = chosen_plan(name, categories=["bottle"])
    draw_sets(tmp_path, plan)

    runs = [task.run for task in tasks(made_small(plan, tmp_path))]

    assert {(dataset_key(run.dataset), run.category) for run in runs} == {("mvtec", "bottle")}
    assert {dataset_key(each.dataset) for run in runs for each in run.further} == sets


def test_category_that_no_set_of_a_plan_has_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="no category 'bolt' in the data: there are bottle, cable"):
        draw_sets(tmp_path, chosen_plan("glass-table-1", categories=["bottle", "bolt"]))

    assert not any(tmp_path.iterdir())


def test_hypothesis_as_decided_trains_nothing_that_the_other_two_have_not(drawn: Path) -> None:
    runs = [task.run for task in tasks(small("glass-table-1", drawn))]
    keys = {
        name: {run.category: run.key for run in runs if run.experiment.title == name}
        for name in ("GLASS-m", "GLASS-h", "GLASS-j")
    }

    assert keys["GLASS-j"]["carpet"] == keys["GLASS-m"]["carpet"] != keys["GLASS-h"]["carpet"]
    plan = chosen_plan("glass-table-1", categories=["bottle"])
    draw_sets(drawn, plan)
    runs = [task.run for task in tasks(made_small(plan, drawn)) if task.run.category == "bottle"]
    bottle = {run.experiment.title: run.key for run in runs}
    assert bottle["GLASS-j"] == bottle["GLASS-h"] != bottle["GLASS-m"]


WHOLE = {
    "glass-table-3": lambda run: run.category == "carpet" and run.experiment.method == "glass",
    "pbas-tables-5-6": lambda run: run.category == "grid" and run.experiment.title in ("ABL", "PBAS"),
}
"""Of these plans, runs that others do not have."""

ENGINES = {"pbas-tables-5-6": "torch"}
"""The others compute features as usual."""


@pytest.fixture(scope="module")
def shared_keys(drawn: Path) -> Counter[str]:
    """In how many plans each run of a paper's own method stands."""
    keys: Counter[str] = Counter()
    for name in plan_names():
        keys.update({task.run.key for task in tasks(small(name, drawn)) if is_of_paper(task, name)})
    return keys


@pytest.fixture(scope="module")
def made_runs() -> dict[str, RunResult]:
    """Runs that plans share, by their keys."""
    return {}


def is_of_paper(task: Task, plan: str) -> bool:
    return task.run.experiment.method == plan.split("-")[0]


@pytest.mark.xdist_group("plans")
@pytest.mark.parametrize("name", plan_names())
def test_plan_runs_through_on_drawn_data_and_is_set_beside_the_paper(
    name: str,
    drawn: Path,
    tmp_path: Path,
    shared_keys: Counter[str],
    made_runs: dict[str, RunResult],
    exported_once: None,
) -> None:
    """Of each plan the run that most plans share, from the drawn files to the printed page; all runs: below."""

    def chosen(asked: Sequence[Task]) -> list[Task]:
        if name in WHOLE:
            return [task for task in asked if WHOLE[name](task.run)]
        return [max((each for each in asked if is_of_paper(each, name)), key=lambda each: shared_keys[each.run.key])]

    executor = InlineExecutor(tmp_path, chosen, made_runs)

    made = reproduce(name, out=tmp_path / "out", stand_in=True, executor=executor, engine=ENGINES.get(name))

    finished = [result for result in made.results if result.finished]
    assert {result.run.experiment.engine for result in finished} == {ENGINES.get(name, "onnxruntime")}
    assert finished and {result.error for result in made.failed} <= {"left out"}
    page = made.files["md"].read_text(encoding="utf-8")
    assert "STAND-IN" in page.splitlines()[2]
    assert made.files["md"].parent == tmp_path / "out" / f"{name}-stand-in"
    for result in finished:
        assert len(result.further) == len(result.run.further) >= 1
        assert (result.costs.parameters or 0) > 1000 and (result.costs.flops or 0) > 1000
    if paper_plan(name).printed_in:
        section = page[page.index("## Beside the papers") :]
        assert "here, papers" in section and "here, clean" in section
    if name == "glass-table-3":
        sets = {dataset_key(view.run.dataset) for result in finished for view in result.views()}
        assert sets == {"mvtec", "mad_man", "mad_sys"}
        assert "MAD-sys, mean" in section and "MAD-man, MAD-sys, mean" in section
    if name == "aand-table-8":
        assert all(set(result.costs.images_per_second) == {1, 16} for result in finished)
        assert "images/s, batch 16" in page and "parameters, millions" in section


def test_finished_run_that_lacks_what_another_table_asks_for_is_computed_again(
    drawn: Path, tmp_path: Path, exported_once: None
) -> None:
    plan = small("aand-table-8", drawn).model_copy(update={"protocol": ("papers",), "batches": ()})
    (task,) = [t for t in tasks(plan) if t.run.category == "bagel" and t.run.experiment.method == "rd4ad"]
    (tmp_path / "run").mkdir()
    result = run_task(task, tmp_path / "run")

    assert result.covers(task.run)
    assert not result.covers(task.run.model_copy(update={"batches": (16,)}))
    richer = tasks(plan.model_copy(update={"protocol": ("papers", "clean")}))
    (asked,) = [t for t in richer if t.run.category == "bagel" and t.run.experiment.method == "rd4ad"]
    assert asked.run.key == task.run.key
    assert not result.covers(asked.run)


def test_data_is_found_under_its_usual_names_and_its_absence_is_told(drawn: Path, tmp_path: Path) -> None:
    draw_sets(tmp_path, paper_plan("glass-table-1"))
    (tmp_path / "mvtec").rename(tmp_path / "mvtec_anomaly_detection")

    plan = on_data(paper_plan("glass-table-1"), tmp_path)

    assert plan.data == (tmp_path / "mvtec_anomaly_detection",)
    assert plan.textures == str(tmp_path / "dtd")
    with pytest.raises(
        FlawsmithError, match=r"VisA is not in .*: put its folder there, called visa; `flawsmith download"
    ):
        on_data(paper_plan("aand-table-3"), tmp_path)


def test_subset_that_no_table_uses_is_left_out(tmp_path: Path) -> None:
    plan = paper_plan("glass-table-3")
    draw_sets(tmp_path, plan)
    (tmp_path / "mad_sys").rename(tmp_path / "MAD-sys")
    shutil.copytree(tmp_path / "MAD-sys" / "Beta_0.7", tmp_path / "MAD-sys" / "Beta_0.9")

    folders = on_data(plan, tmp_path).evaluate_on

    assert [folder.name for folder in folders] == ["mad_man", "Beta_0.1", "Beta_0.3", "Beta_0.5", "Beta_0.7"]
    runs = [task.run for task in tasks(on_data(plan, tmp_path))]
    sets = {each.dataset for run in runs for each in run.further if each.dataset.startswith("MAD-sys")}
    assert sets == {f"MAD-sys/Beta_0.{n}" for n in (1, 3, 5, 7)}


def test_estimate_scales_a_short_training_to_the_images_of_each_category(
    drawn: Path, tmp_path: Path, exported_once: None
) -> None:
    plan = small("slsg-table-2", drawn).model_copy(update={"protocol": ("clean",)})
    planned = [task for task in tasks(plan) if task.run.experiment.method == "padim"]
    tried: list[str] = []

    made = estimate(planned, tmp_path, on_probe=tried.append)

    assert tried == ["PaDiM"]
    assert made.runs == len(planned) == 2 and made.finished == 0
    assert 0 < made.seconds < 600 and made.model_bytes > 0 and made.cache_bytes > 0
    assert "factor of two" in made.in_words() and "PaDiM: about" in made.in_words()


def test_steps_of_every_stage_count_towards_an_estimate() -> None:
    config: dict[str, Any] = {"epochs": 120, "batch_size": 16, "steps_per_epoch": None}
    first = {"amplification": "both", "amplification_epochs": 100, "amplification_steps": None}

    assert steps_of(config, 160) == 1200
    assert steps_of({**config, **first}, 160) == 2200
    assert steps_of({**config, **first, "amplification": "none"}, 160) == 1200


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", plan_names())
def test_every_experiment_of_every_plan_runs_through_on_drawn_data(
    name: str, tmp_path: Path, exported_once: None
) -> None:
    """A category of each data set, all experiments, a step a stage, from the drawn files to the printed tables."""
    plan = paper_plan(name)
    sets = [set(next(each for each in OFFICIAL if each.key == path.name).categories) for path in plan.data]
    one_each = {(plan.categories or sorted(names))[0] for names in sets}
    executor = InlineExecutor(tmp_path, lambda asked: [task for task in asked if task.run.seed == plan.seeds[0]], {})

    made = reproduce(name, out=tmp_path / "out", categories=sorted(one_each), stand_in=True, executor=executor)

    assert {result.error for result in made.failed} <= {"left out"}
    finished = [result for result in made.results if result.finished]
    assert {result.run.experiment.title for result in finished} == {each.title for each in plan.experiments()}
    assert "STAND-IN" in made.files["md"].read_text(encoding="utf-8").splitlines()[2]


def test_plans_compute_features_in_torch_where_it_is_asked_for(drawn: Path) -> None:
    plan = chosen_plan("glass-table-3", engine="torch")
    draw_sets(drawn, plan)

    runs = [task.run for task in tasks(made_small(plan, drawn))]

    assert {run.experiment.engine for run in runs} == {"torch"}
    assert {run.experiment.title for run in runs} == {each.title for each in paper_plan("glass-table-3").experiments()}
    usual = {run.key for run in (task.run for task in tasks(small("glass-table-3", drawn)))}
    assert not usual & {run.key for run in runs}
    with pytest.raises(FlawsmithError, match="engine='cudnn' is not possible"):
        chosen_plan("glass-table-3", engine="cudnn")  # type: ignore[arg-type]
