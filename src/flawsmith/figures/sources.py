"""What finished runs leave behind, recognised by what lies in the folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flawsmith.benchmark.experiment import MODEL, SCORES, ResultStore, RunResult
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError

EVALUATION = "evaluation"
_RUNS = "runs"


@dataclass(frozen=True)
class ImageScore:
    """One image of a test set."""

    image: str
    defect: str
    score: float
    verdict: str

    @property
    def flawed(self) -> bool:
        return self.defect != "good"


@dataclass(frozen=True)
class ModelScores:
    """The image scores of one model on one test set.

    Attributes:
        category: name of the category.
        experiment: name of the model or of the benchmark's experiment.
        images: every image of the test set.
        limit: reject limit on the score; None where no model file tells it.
        review_limit: review limit, or None.
    """

    category: str
    experiment: str
    images: tuple[ImageScore, ...]
    limit: float | None = None
    review_limit: float | None = None


@dataclass(frozen=True)
class NamedModel:
    """A model file with what a figure calls it."""

    path: Path
    name: str
    category: str
    bundle: Bundle


def is_benchmark(source: Path) -> bool:
    """Whether a folder is that of a benchmark."""
    return (source / _RUNS).is_dir()


def benchmark_results(sources: Sequence[Path]) -> list[RunResult]:
    """Finished runs of benchmark folders, each once.

    Raises:
        FlawsmithError: a folder is none of a benchmark, or no run has finished.
    """
    results: dict[str, RunResult] = {}
    for source in sources:
        if not is_benchmark(source):
            raise FlawsmithError(
                f"{source}: is no benchmark's folder (it has no {_RUNS}/): make one with "
                "`flawsmith benchmark DATA --methods ... --out FOLDER`"
            )
        results |= {result.run.key: result for result in ResultStore(source).results() if result.finished}
    if not results:
        raise FlawsmithError(f"{sources[0]}: no run has finished; run `flawsmith benchmark` with this --out again")
    return sorted(results.values(), key=_reading_order)


def _reading_order(result: RunResult) -> tuple[Hashable, ...]:
    """Categories and experiments by name, numbers in names by their size."""
    run = result.run
    words = re.split(r"(\d+(?:\.\d+)?)", run.experiment.title)
    title = tuple((float(word), "") if number % 2 else (0.0, word) for number, word in enumerate(words))
    return run.dataset, run.category, title, run.seed


def scored(sources: Sequence[Path], *, seed: int | None = None) -> list[ModelScores]:
    """The scores in benchmark folders, run folders and evaluation folders.

    Args:
        sources: folders; a model file stands for the run folder it lies in.
        seed: of a benchmark's runs; the lowest of every experiment and category by default.

    Raises:
        FlawsmithError: a source holds no scores; the message says which command makes them.
    """
    return [scores for source in sources for scores in _scored(source, seed)]


def _scored(source: Path, seed: int | None) -> list[ModelScores]:
    if is_benchmark(source):
        store = ResultStore(source)
        runs = [_scored_run(store, result) for result in _of_seed(benchmark_results([source]), seed)]
        return [scores for scores in runs if scores is not None] or _no_scores(source)
    folder = source.parent if source.is_file() else source
    inner = folder / EVALUATION
    folder = inner if (inner / SCORES).is_file() else folder
    if not (folder / SCORES).is_file():
        _no_scores(source)
    model = folder.parent / MODEL
    scores = ModelScores(folder.name, "", _read_scores(folder / SCORES))
    if not model.is_file():
        return [scores]
    spec = Bundle.load(model).spec
    scores = replace(scores, category=spec.training.category, experiment=f"{spec.method} {spec.preset}")
    return [replace(scores, limit=spec.decision.limit, review_limit=spec.decision.review_limit)]


def _no_scores(source: Path) -> list[ModelScores]:
    raise FlawsmithError(
        f"{source}: holds no {SCORES}: make it with `flawsmith evaluate {source / MODEL} DATA`, or give a benchmark's "
        "folder"
    )


def _of_seed(results: Sequence[RunResult], seed: int | None) -> list[RunResult]:
    """One run of every experiment and category: that of the seed, or of the lowest one."""
    if seed is not None and all(result.run.seed != seed for result in results):
        known = ", ".join(map(str, sorted({result.run.seed for result in results})))
        raise FlawsmithError(f"no run has the seed {seed}: there are {known}; choose with --seed")
    chosen: dict[tuple[str, str, str], RunResult] = {}
    for result in results:  # the lowest seed comes first
        if seed in (None, result.run.seed):
            chosen.setdefault((result.run.dataset, result.run.category, result.run.experiment.title), result)
    return list(chosen.values())


def _scored_run(store: ResultStore, result: RunResult) -> ModelScores | None:
    folder, run = store.folder(result.run), result.run
    if not (folder / SCORES).is_file():
        return None
    scores = ModelScores(run.category, run.experiment.title, _read_scores(folder / SCORES))
    if not (folder / MODEL).is_file():
        return scores
    decision = Bundle.load(folder / MODEL).spec.decision
    return replace(scores, limit=decision.limit, review_limit=decision.review_limit)


def _read_scores(path: Path) -> tuple[ImageScore, ...]:
    """Every row of a scores.csv."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(
                ImageScore(row["image"], row["defect"], float(row["score"]), row["verdict"])
                for row in csv.DictReader(file)
            )
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise FlawsmithError(f"{path}: is no intact {SCORES} ({error}); evaluate the model again") from None


def models(sources: Sequence[Path], *, seed: int | None = None) -> list[NamedModel]:
    """The models in files, run folders and benchmark folders, named by method and preset or by experiment.

    Args:
        sources: model files, run folders, or benchmark folders whose models were kept.
        seed: of a benchmark's runs; the lowest of every experiment and category by default.

    Raises:
        FlawsmithError: a source holds no model; the message says which command makes one.
    """
    return [model for source in sources for model in _models(source, seed)]


def told_apart(models: Sequence[NamedModel], key: Callable[[NamedModel], Hashable]) -> list[NamedModel]:
    """The models, where several share a key with the name of their folder behind their own, or else with a number."""
    keys = [key(model) for model in models]
    folders = [model.path.absolute().parent.name for model in models]
    names = []
    for number, (model, its_key, folder) in enumerate(zip(models, keys, folders, strict=True)):
        alike = [place for place, other in enumerate(keys) if other == its_key]
        if len(alike) == 1:
            names.append(model.name)
        elif len({folders[place] for place in alike}) == len(alike):
            names.append(f"{model.name}, {folder}")
        else:
            names.append(f"{model.name}, {alike.index(number) + 1}")
    return [replace(model, name=name) for model, name in zip(models, names, strict=True)]


def _models(source: Path, seed: int | None) -> Iterator[NamedModel]:
    if is_benchmark(source):
        store, some = ResultStore(source), False
        for result in _of_seed(benchmark_results([source]), seed):
            path = store.folder(result.run) / MODEL
            if path.is_file():
                some = True
                yield NamedModel(path, result.run.experiment.title, result.run.category, Bundle.load(path))
        if not some:
            raise FlawsmithError(f"{source}: keeps no model: run the benchmark with --keep-models --fresh")
        return
    path = source / MODEL if source.is_dir() else source
    if source.is_dir() and not path.is_file():
        raise FlawsmithError(f"{source}: holds no {MODEL}: make one with `flawsmith train DATA --out {source}`")
    bundle = Bundle.load(path)
    yield NamedModel(path, f"{bundle.spec.method} {bundle.spec.preset}", bundle.spec.training.category, bundle)
