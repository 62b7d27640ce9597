"""The papers' tables and sweeps as plans that are shipped: found by name, run on the public data or a stand-in, and how
long that will take, from short trainings of each experiment on this machine."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flawsmith.benchmark.executors import Executor, LocalExecutor
from flawsmith.benchmark.experiment import ResultStore, RunResult, Task
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.run import BenchmarkResult, run_tasks
from flawsmith.benchmark.stand_in import draw_category, draw_sets, made_small, official_set
from flawsmith.data.layouts import load
from flawsmith.data.layouts.base import subfolders
from flawsmith.data.public_sets import plain
from flawsmith.data.samples import Dataset
from flawsmith.features.backbones import users_file
from flawsmith.pipeline.train import TrainResult, train
from flawsmith.runtime.bundle import TrainingEngine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector
from flawsmith.training.run import RECORD

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


_IMAGES, _MORE_STEPS = 24, 3
_LOOPS = {"": ("steps_per_epoch", "batch_size"), "amplification_": ("amplification_steps", "batch_size")} | {
    "pretraining_": ("pretraining_steps", "pretraining_batch_size")
}
"""By prefix of a setting for epochs: the settings of an epoch's steps and of a step's images."""
_RESULT_BYTES = 100_000
"""Of a run's figures and scores, roughly."""


@dataclass(frozen=True)
class Probe:
    """What two short trainings of an experiment say of a long one.

    Attributes:
        images: they learned from.
        fixed: seconds of what does not grow with images or steps: loading, export, limits, report.
        passes: seconds of what is done once with every image: features, and what stages do besides their steps.
        step: seconds of a step, over all loops; 0 without a loop.
        inspect: seconds an image from file to map.
        cache_bytes: features on disk, of all images.
        model_bytes: size of the model file.
    """

    images: int
    fixed: float
    passes: float
    step: float
    inspect: float
    cache_bytes: int
    model_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a benchmark will take.

    Attributes:
        runs: of the plan that are not finished.
        finished: that are.
        seconds: of the unfinished ones, one after the other.
        cache_bytes: largest folder of features that a run needs while it trains; removed when it ends.
        kept_bytes: of results, without model files.
        model_bytes: of the model files besides, where they are kept.
        by_experiment: seconds by title.
    """

    runs: int
    finished: int
    seconds: float
    cache_bytes: int
    kept_bytes: int
    model_bytes: int
    by_experiment: Mapping[str, float]

    def in_words(self) -> str:
        """The estimate as lines, with what it rests on."""
        lines = [f"{self.runs} runs to compute, {self.finished} finished before"]
        lines += [f"{title}: about {duration(seconds)}" for title, seconds in self.by_experiment.items()]
        lines += [
            f"in all about {duration(self.seconds)} one after the other on this machine",
            f"disk: {self.kept_bytes / 1e6:.0f} MB of results, up to {self.cache_bytes / 1e9:.1f} GB of features while "
            f"a run trains, and {self.model_bytes / 1e9:.1f} GB of model files with --keep-models",
            "This rests on two short trainings of each experiment just now, of a few steps on drawn images, scaled to "
            "the images, epochs and steps of each category. A memory bank grows faster than the number of images, "
            "images larger than the drawn ones take longer to decode, and other work on the machine counts: expect it "
            "to be off by a factor of two either way.",
        ]
        return "\n".join(lines)


def duration(seconds: float) -> str:
    """A duration as people say it.

    Example:
        >>> duration(40), duration(5400), duration(400_000)
        ('40 seconds', '1.5 hours', '4.6 days')
    """
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def estimate(planned: Sequence[Task], out: Path, *, on_probe: Callable[[str], object] = lambda title: None) -> Estimate:
    """Try every experiment of a plan once, and scale.

    Args:
        planned: its runs.
        out: folder of the results, where finished runs may be.
        on_probe: is told the experiment that is tried next.

    Raises:
        FlawsmithError: an experiment cannot be trained.
    """
    store = ResultStore(out)
    once = list({task.run.key: task for task in planned}.values())
    pending = [task for task in once if store.result(task.run) is None]
    datasets: dict[Path, Dataset] = {}
    probes: dict[str, Probe] = {}
    by_experiment: dict[str, float] = {}
    cache = models = 0
    for task in pending:
        title = task.run.experiment.title
        if title not in probes:
            on_probe(title)
            probes[title] = probe(task)
        for folder in (task.data, *task.further_data):
            if folder not in datasets:
                datasets[folder] = load(folder, task.layout if folder == task.data else None)
        images = max(1, round(len(datasets[task.data].good_train) * task.run.experiment.fraction))
        inspected = len(datasets[task.data].test) + sum(len(datasets[folder].test) for folder in task.further_data)
        by_experiment[title] = by_experiment.get(title, 0.0) + scaled(probes[title], task.run.config, images, inspected)
        cache = max(cache, probes[title].cache_bytes * images // probes[title].images)
        models += probes[title].model_bytes
    return Estimate(
        runs=len(pending),
        finished=len(once) - len(pending),
        seconds=sum(by_experiment.values()),
        cache_bytes=cache,
        kept_bytes=_RESULT_BYTES * len(pending),
        model_bytes=models,
        by_experiment=by_experiment,
    )


def scaled(tried: Probe, config: Mapping[str, Any], images: int, inspected: int) -> float:
    """Seconds of a run.

    Args:
        tried: the short training.
        config: of the run.
        images: it learns from.
        inspected: images that are inspected afterwards.

    Example:
        >>> tried = Probe(10, fixed=5.0, passes=1.0, step=2.0, inspect=0.5, cache_bytes=0, model_bytes=0)
        >>> scaled(tried, {"epochs": 3, "batch_size": 8, "steps_per_epoch": None}, images=80, inspected=4)
        75.0
    """
    loops = tried.step * steps_of(config, images)
    return tried.fixed + tried.passes * images / tried.images + loops + tried.inspect * inspected


def steps_of(config: Mapping[str, Any], images: int) -> int:
    """Training steps of all loops that a configuration asks for.

    Example:
        >>> steps_of({"epochs": 2, "batch_size": 8, "steps_per_epoch": None, "most_steps_per_epoch": 50}, 1000)
        100
    """
    total = int(config["iterations"]) if config.get("iterations") else _steps(config, "", images)
    others = [prefix for prefix in _LOOPS if prefix and f"{prefix}epochs" in config]
    active = [prefix for prefix in others if config.get(prefix.rstrip("_")) not in (False, "none")]
    return total + sum(_steps(config, prefix, images) for prefix in active)


def _steps(config: Mapping[str, Any], prefix: str, images: int) -> int:
    if f"{prefix}epochs" not in config:
        return 0
    steps, batch = _LOOPS[prefix]
    in_an_epoch = config.get(steps) or math.ceil(images / config.get(batch, 1))
    return int(config[f"{prefix}epochs"] * min(in_an_epoch, config.get("most_steps_per_epoch") or in_an_epoch))


class _Tried(NamedTuple):
    """A short training: its folder, its seconds in all, in loops and in features, and its steps."""

    trained: TrainResult
    seconds: float
    loops: float
    features: float
    steps: int


def probe(task: Task) -> Probe:
    """Train a run's experiment twice on drawn images, for one step a loop and for some more, and inspect a few.

    What a step takes is the difference, for the first is slow. Settings are those of the run but for the number of
    steps. Weights are random, which takes as long: nothing is downloaded for an estimate.

    Raises:
        FlawsmithError: it cannot be trained.
    """
    with tempfile.TemporaryDirectory(prefix="flawsmith-estimate-") as scratch, _cache(Path(scratch) / "cache") as cache:
        category = draw_category(Path(scratch) / "drawn" / "part", good=_IMAGES)
        first = _try(task, category, Path(scratch) / "once", steps=1)
        cache_bytes = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        step = 0.0
        if first.steps:
            again = _try(task, category, Path(scratch) / "again", steps=1 + _MORE_STEPS)
            step = max(0.0, (again.loops - first.loops) / (again.steps - first.steps))
        inspector, pictures = Inspector.load(first.trained.model), [sample.image for sample in load(category).test]
        inspector.inspect(pictures[0])
        start = time.perf_counter()
        for picture in pictures:
            inspector.inspect(picture)
        passes = first.features + max(0.0, first.loops - step * first.steps)
        return Probe(
            images=first.trained.bundle.spec.training.n_train,
            fixed=max(0.0, first.seconds - passes - step * first.steps),
            passes=passes,
            step=step,
            inspect=(time.perf_counter() - start) / len(pictures),
            cache_bytes=cache_bytes,
            model_bytes=first.trained.model.stat().st_size,
        )


def _try(task: Task, category: Path, out: Path, *, steps: int) -> _Tried:
    experiment, changes = task.run.experiment, _few_steps(task.run.config, steps)
    start = time.perf_counter()
    trained = train(
        category,
        out=out,
        quiet=True,
        baseline="none",
        method=experiment.method,
        preset=experiment.preset,
        backbone=_untrained(task),
        set={**experiment.set, **changes},
        textures=task.textures,
        engine=experiment.engine,
        precision=experiment.precision,
    )
    whole = time.perf_counter() - start
    seconds = json.loads((out / RECORD).read_text(encoding="utf-8"))["seconds"]
    return _Tried(
        trained,
        whole,
        loops=sum(spent for name, spent in seconds.items() if name.startswith("stage ")),
        features=seconds.get("features", 0.0),
        steps=steps_of({**task.run.config, **changes}, _IMAGES),
    )


def _few_steps(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Settings that leave so many steps a loop."""
    changes: dict[str, Any] = {"iterations": None} if "iterations" in config else {}
    for prefix, (name, _) in _LOOPS.items():
        if f"{prefix}epochs" in config:
            changes |= {f"{prefix}epochs": 1, name: steps}
    return changes


def _untrained(task: Task) -> str | None:
    """The run's backbone with random weights, where it has one."""
    name = task.run.backbone
    if task.backbone is not None and users_file(task.backbone) is not None:
        return task.backbone
    return None if name == "its own" else f"{name.partition('@')[0].partition('.')[0]}@random"


@contextmanager
def _cache(folder: Path) -> Iterator[Path]:
    """A feature cache of this block's own, so that features are computed and their size is seen."""
    before = os.environ.get("FLAWSMITH_CACHE")
    folder.mkdir(parents=True)
    os.environ["FLAWSMITH_CACHE"] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["FLAWSMITH_CACHE"]
        else:
            os.environ["FLAWSMITH_CACHE"] = before
