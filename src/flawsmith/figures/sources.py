"""What finished runs leave behind, recognised by what lies in the folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flawsmith.benchmark.cell import MODEL, SCORES, CellResult, ResultStore
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError

EVALUATION = "evaluation"
_CELLS = "cells"


@dataclass(frozen=True)
class ScoredImage:
    """One image of a test set."""

    image: str
    defect: str
    score: float
    verdict: str

    @property
    def flawed(self) -> bool:
        return self.defect != "good"


@dataclass(frozen=True)
class Scored:
    """The image scores of one model on one test set.

    Attributes:
        category: name of the category.
        arm: name of the model or of the benchmark's arm.
        images: every image of the test set.
        limit: reject limit on the score; None where no model file tells it.
        review_limit: review limit, or None.
    """

    category: str
    arm: str
    images: tuple[ScoredImage, ...]
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
    return (source / _CELLS).is_dir()


def benchmark_results(sources: Sequence[Path]) -> list[CellResult]:
    """Finished cells of benchmark folders, each once.

    Raises:
        FlawsmithError: a folder is none of a benchmark, or no cell has finished.
    """
    found: dict[str, CellResult] = {}
    for source in sources:
        if not is_benchmark(source):
            raise FlawsmithError(
                f"{source}: is no benchmark's folder (it has no {_CELLS}/): make one with "
                "`flawsmith benchmark DATA --methods ... --out FOLDER`"
            )
        found |= {one.cell.key: one for one in ResultStore(source).results() if one.finished}
    if not found:
        raise FlawsmithError(f"{sources[0]}: no cell has finished; run `flawsmith benchmark` with this --out again")
    return sorted(found.values(), key=_reading_order)


def _reading_order(result: CellResult) -> tuple[Hashable, ...]:
    """Categories and arms by name, numbers in names by their size."""
    cell = result.cell
    words = re.split(r"(\d+(?:\.\d+)?)", cell.arm.title)
    title = tuple((float(word), "") if number % 2 else (0.0, word) for number, word in enumerate(words))
    return cell.dataset, cell.category, title, cell.seed


def scored(sources: Sequence[Path], *, seed: int | None = None) -> list[Scored]:
    """The scores in benchmark folders, run folders and evaluation folders.

    Args:
        sources: folders; a model file stands for the run folder it lies in.
        seed: of a benchmark's cells; the lowest of every arm and category by default.

    Raises:
        FlawsmithError: a source holds no scores; the message says which command makes them.
    """
    return [one for source in sources for one in _scored(source, seed)]


def _scored(source: Path, seed: int | None) -> list[Scored]:
    if is_benchmark(source):
        store = ResultStore(source)
        cells = [_scored_cell(store, result) for result in _of_seed(benchmark_results([source]), seed)]
        return [one for one in cells if one is not None] or _no_scores(source)
    folder = source.parent if source.is_file() else source
    inner = folder / EVALUATION
    folder = inner if (inner / SCORES).is_file() else folder
    if not (folder / SCORES).is_file():
        _no_scores(source)
    model = folder.parent / MODEL
    found = Scored(folder.name, "", _read_scores(folder / SCORES))
    if not model.is_file():
        return [found]
    spec = Bundle.load(model).spec
    found = replace(found, category=spec.training.category, arm=f"{spec.method} {spec.preset}")
    return [replace(found, limit=spec.decision.limit, review_limit=spec.decision.review_limit)]


def _no_scores(source: Path) -> list[Scored]:
    raise FlawsmithError(
        f"{source}: holds no {SCORES}: make it with `flawsmith evaluate {source / MODEL} DATA`, or give a benchmark's "
        "folder"
    )


def _of_seed(results: Sequence[CellResult], seed: int | None) -> list[CellResult]:
    """One cell of every arm and category: that of the seed, or of the lowest one."""
    if seed is not None and all(one.cell.seed != seed for one in results):
        known = ", ".join(map(str, sorted({one.cell.seed for one in results})))
        raise FlawsmithError(f"no cell has the seed {seed}: there are {known}; choose with --seed")
    found: dict[tuple[str, str, str], CellResult] = {}
    for one in results:  # the lowest seed comes first
        if seed in (None, one.cell.seed):
            found.setdefault((one.cell.dataset, one.cell.category, one.cell.arm.title), one)
    return list(found.values())


def _scored_cell(store: ResultStore, result: CellResult) -> Scored | None:
    folder, cell = store.folder(result.cell), result.cell
    if not (folder / SCORES).is_file():
        return None
    found = Scored(cell.category, cell.arm.title, _read_scores(folder / SCORES))
    if not (folder / MODEL).is_file():
        return found
    decision = Bundle.load(folder / MODEL).spec.decision
    return replace(found, limit=decision.limit, review_limit=decision.review_limit)


def _read_scores(path: Path) -> tuple[ScoredImage, ...]:
    """Every row of a scores.csv.

    Raises:
        FlawsmithError: it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(
                ScoredImage(row["image"], row["defect"], float(row["score"]), row["verdict"])
                for row in csv.DictReader(file)
            )
    except (OSError, UnicodeError, ValueError, KeyError, TypeError) as error:
        raise FlawsmithError(f"{path}: is no intact {SCORES} ({error}); evaluate the model again") from None


def models(sources: Sequence[Path], *, seed: int | None = None) -> list[NamedModel]:
    """The models in files, run folders and benchmark folders, named by method and preset or by the benchmark's arm.

    Args:
        sources: model files, run folders, or benchmark folders whose models were kept.
        seed: of a benchmark's cells; the lowest of every arm and category by default.

    Raises:
        FlawsmithError: a source holds no model; the message says which command makes one.
    """
    return [one for source in sources for one in _models(source, seed)]


def told_apart(found: Sequence[NamedModel], key: Callable[[NamedModel], Hashable]) -> list[NamedModel]:
    """The models, where several share a key with the name of their folder behind their own, or else with a number."""
    keys = [key(one) for one in found]
    folders = [one.path.absolute().parent.name for one in found]
    names = []
    for number, (one, own, folder) in enumerate(zip(found, keys, folders, strict=True)):
        alike = [place for place, other in enumerate(keys) if other == own]
        if len(alike) == 1:
            names.append(one.name)
        elif len({folders[place] for place in alike}) == len(alike):
            names.append(f"{one.name}, {folder}")
        else:
            names.append(f"{one.name}, {alike.index(number) + 1}")
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def _models(source: Path, seed: int | None) -> Iterator[NamedModel]:
    if is_benchmark(source):
        store, some = ResultStore(source), False
        for result in _of_seed(benchmark_results([source]), seed):
            path = store.folder(result.cell) / MODEL
            if path.is_file():
                some = True
                yield NamedModel(path, result.cell.arm.title, result.cell.category, Bundle.load(path))
        if not some:
            raise FlawsmithError(f"{source}: keeps no model: run the benchmark with --keep-models --fresh")
        return
    path = source / MODEL if source.is_dir() else source
    if source.is_dir() and not path.is_file():
        raise FlawsmithError(f"{source}: holds no {MODEL}: make one with `flawsmith train DATA --out {source}`")
    bundle = Bundle.load(path)
    yield NamedModel(path, f"{bundle.spec.method} {bundle.spec.preset}", bundle.spec.training.category, bundle)
