"""The papers' tables and sweeps as plans that are shipped, found by name, and run on the public data or a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

import yaml

from flawsmith.benchmark.estimate import Estimate, estimate
from flawsmith.benchmark.executors import Executor, LocalExecutor
from flawsmith.benchmark.experiment import RunResult, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.run import BenchmarkResult, run_tasks
from flawsmith.benchmark.stand_in import draw_sets, made_small, official_set
from flawsmith.data.layouts.base import subfolders
from flawsmith.data.public_sets import plain
from flawsmith.runtime.bundle import TrainingEngine
from flawsmith.runtime.errors import FlawsmithError

STAND_IN = "stand-in"
STAND_IN_CAUTION = (
    "STAND-IN: drawn images, a step a stage, a small untrained backbone. These tables show that the plan runs through; "
    "their figures mean nothing."
)
_FOLDER = "papers"
LEFT_OUT = {"mad_sys": ("beta_0.9",)}
"""Subsets that are released and in no table: the flaws of this one are too weak, its authors say."""


def plan_names() -> tuple[str, ...]:
    """Names of the plans, as :func:`reproduce` takes them.

    Example:
        >>> "glass-table-2" in plan_names()
        True
    """
    folder = files("flawsmith.benchmark") / _FOLDER
    return tuple(sorted(Path(each.name).stem for each in folder.iterdir() if each.name.endswith(".yaml")))


def paper_plan(name: str) -> Plan:
    """A plan by its name, with data sets and textures by their keys.

    Raises:
        FlawsmithError: there is none, with the closest name.

    Example:
        >>> paper_plan("slsg-table-1").title
        'SLSG, Table 1: BTAD by category'
    """
    if name not in plan_names():
        close = get_close_matches(name, plan_names(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise FlawsmithError(f"no plan is called {name!r}; {hint}`flawsmith reproduce --list` shows all")
    text = (files("flawsmith.benchmark") / _FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return Plan.checked(yaml.safe_load(text), source=name)


def on_data(plan: Plan, data: Path) -> Plan:
    """A plan with the folders of its data sets and textures.

    Args:
        plan: with keys.
        data: the folder that holds those of the data sets, in any usual spelling, or the only one itself.

    Raises:
        FlawsmithError: one is not there.
    """
    changes = {
        name: tuple(folder for path in getattr(plan, name) for folder in _used(find_set(data, path.name), path.name))
        for name in ("data", "evaluate_on")
    }
    textures = None if plan.textures is None else str(_find_textures(data, plan.textures))
    return plan.model_copy(update={**changes, "textures": textures})


def find_set(data: Path, key: str) -> Path:
    """The folder of a public data set.

    Args:
        data: the folder that holds it, or itself.
        key: of the data set.

    Raises:
        FlawsmithError: it is not there.
    """
    official = official_set(key)
    folders = [data, *(subfolders(data) if data.is_dir() else [])]
    for folder in folders:
        if official.is_called(folder.name) and folder.is_dir():
            return folder
    raise FlawsmithError(
        f"{official.name} is not in {data}: put its folder there, called {key}; `flawsmith download {key} --to {data}` "
        "gets it or says where it is"
    )


def _used(folder: Path, key: str) -> list[Path]:
    """The folders of a data set that the papers use: itself, or its subsets without those that they leave out."""
    if key not in LEFT_OUT:
        return [folder]
    return [subset for subset in subfolders(folder) if subset.name.casefold() not in LEFT_OUT[key]]


def _find_textures(data: Path, name: str) -> Path:
    for folder in subfolders(data) if data.is_dir() else []:
        if plain(folder.name).startswith(plain(name)):
            return folder
    raise FlawsmithError(
        f"the textures {name} are not in {data}: put their folder there, called {name}; `flawsmith download {name} "
        f"--to {data}` gets them"
    )


def reproduce(
    name: str,
    data: str | Path | None = None,
    out: str | Path = "reproduced",
    *,
    categories: Sequence[str] = (),
    seeds: Sequence[int] = (),
    oracle: bool = False,
    engine: TrainingEngine | None = None,
    stand_in: bool = False,
    executor: Executor | None = None,
    jobs: int = 1,
    memory_bytes: int | None = None,
    keep_models: bool = False,
    fresh: bool = False,
    on_start: Callable[[int, int], object] = lambda total, pending: None,
    on_result: Callable[[RunResult], object] = lambda result: None,
) -> BenchmarkResult:
    """Make a table of the papers: train and measure all of it, and set it beside the printed one.

    Plans in one folder share what they have in common: a model that two tables need is trained once.

    Args:
        name: of the plan, such as ``glass-table-2``; :func:`plan_names` has all.
        data: the folder that holds the public data sets; not needed for a stand-in.
        out: folder of the results; the tables go into a folder of the plan's name in it.
        categories: only these categories.
        seeds: these seeds in place of the plan's.
        oracle: choose checkpoints on test data, as the released codes do, and say so on every table.
        engine: what computes the features, as ``flawsmith train --engine``; by default torch where it has a GPU, which
            then evaluates too.
        stand_in: on drawn data, in seconds a run: to see that all fits together.
        executor, jobs, memory_bytes, keep_models, fresh, on_start, on_result: as in
            :func:`flawsmith.benchmark.run.run_benchmark`.

    Raises:
        FlawsmithError: no such plan, data that is not there, or a folder that cannot be written.
    """
    plan = chosen_plan(name, categories=categories, seeds=seeds, oracle=oracle, engine=engine)
    out = Path(out)
    planned = _planned(plan, data, out, stand_in=stand_in)
    changes = {"memory_bytes": memory_bytes, "keep_model": keep_models}
    return run_tasks(
        [task.model_copy(update=changes) for task in planned],
        out,
        executor=executor or LocalExecutor(jobs),
        fresh=fresh,
        tables=out / (f"{name}-{STAND_IN}" if stand_in else name),
        printed_in=plan.printed_in,
        caution=STAND_IN_CAUTION if stand_in else "",
        on_start=on_start,
        on_result=on_result,
    )


def chosen_plan(
    name: str,
    *,
    categories: Sequence[str] = (),
    seeds: Sequence[int] = (),
    oracle: bool = False,
    engine: TrainingEngine | None = None,
) -> Plan:
    """A plan with what a user changes of it; the arguments are those of :func:`reproduce`.

    Raises:
        FlawsmithError: no such plan, no such engine, or a seed below zero.
    """
    plan, computes = paper_plan(name), engine or engine_here()
    changes = {
        "categories": list(categories),
        "seeds": list(seeds),
        "select": "oracle" if oracle else None,
        "methods": [{**experiment.model_dump(exclude_unset=True), "engine": computes} for experiment in plan.methods],
    }
    replaced = {field: value for field, value in changes.items() if value}
    return Plan.checked({**{field: getattr(plan, field) for field in plan.model_fields_set}, **replaced}, source=name)


def engine_here() -> TrainingEngine:
    """What computes features where the user does not say: torch where it has a GPU."""
    import torch

    return "torch" if torch.cuda.is_available() else "onnxruntime"


def estimate_plan(
    name: str,
    data: str | Path | None = None,
    out: str | Path = "reproduced",
    *,
    categories: Sequence[str] = (),
    seeds: Sequence[int] = (),
    oracle: bool = False,
    engine: TrainingEngine | None = None,
    stand_in: bool = False,
    on_probe: Callable[[str], object] = lambda title: None,
) -> Estimate:
    """How long :func:`reproduce` will take with the same arguments, and how much disk, before it is begun.

    Args:
        name, data, out, categories, seeds, oracle, engine, stand_in: as there.
        on_probe: is told the experiment that is tried next.

    Raises:
        FlawsmithError: as there.
    """
    plan = chosen_plan(name, categories=categories, seeds=seeds, oracle=oracle, engine=engine)
    return estimate(_planned(plan, data, Path(out), stand_in=stand_in), Path(out), on_probe=on_probe)


def _planned(plan: Plan, data: str | Path | None, out: Path, *, stand_in: bool) -> list[Task]:
    if stand_in:
        drawn = out / f"{STAND_IN}-data"
        draw_sets(drawn, plan)
        return tasks(made_small(plan, drawn))
    if data is None:
        raise FlawsmithError("give the folder that holds the data sets with --data, or --stand-in for drawn ones")
    return tasks(on_data(plan, Path(data)))
