"""Accuracy against how weak a flaw is, from the test sets of `flawsmith synthesize --test-set` (GLASS, Table 3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flawsmith.benchmark.experiment import RunResult
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset
from flawsmith.figures import curve
from flawsmith.figures.curve import Measurement, draw_lines
from flawsmith.figures.sources import NamedModel, told_apart
from flawsmith.figures.style import PaperFigure
from flawsmith.metrics.results import Evaluation
from flawsmith.pipeline.evaluate import evaluate
from flawsmith.runtime.errors import FlawsmithError

WEAKNESS = "weakness"
_MANIFEST = "manifest.json"
_NAME = re.compile(r"weakness_(\d+(?:\.\d+)?(?:e-?\d+)?)$")
_MAKE = "`flawsmith synthesize DATA --out FOLDER --test-set --weakness 0.1 0.3 0.5 0.7`"


@dataclass(frozen=True)
class WeakSet:
    """A labelled test set of flaws of one strength.

    Attributes:
        weakness: weight of the good image in the flaws.
        dataset: its images.
    """

    weakness: float
    dataset: Dataset


@dataclass(frozen=True)
class WeakFlawResult:
    """One model on one test set."""

    model: str
    category: str
    seed: int
    weakness: float
    evaluation: Evaluation


def weak_sets(folders: Sequence[Path]) -> list[WeakSet]:
    """The test sets in folders that ``flawsmith synthesize --test-set`` has written.

    Raises:
        FlawsmithError: a folder holds none; the message says which command makes them.
    """
    sets = [weak_set for folder in folders for weak_set in _weak_sets(folder)]
    return sorted(sets, key=lambda weak_set: (weak_set.dataset.category, weak_set.weakness))


def _weak_sets(folder: Path) -> Iterator[WeakSet]:
    manifests = sorted(folder.glob(f"weakness_*/{_MANIFEST}"))
    if not manifests:
        raise FlawsmithError(f"{folder}: holds no weakness_*/{_MANIFEST}: make test sets with {_MAKE}")
    for path in manifests:
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            weakness, category = float(facts[WEAKNESS]), str(facts["category"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FlawsmithError(f"{path}: is damaged ({error}): make the test sets anew with {_MAKE}") from None
        yield WeakSet(weakness, load(path.parent / category))


def measure(
    models: Sequence[NamedModel], sets: Sequence[WeakSet], *, on_step: Callable[[], object] = lambda: None
) -> list[WeakFlawResult]:
    """Every model on the test sets of its category.

    Args:
        models: the models; equal but for their seed, they are one line with a spread.
        sets: the test sets.
        on_step: called after each evaluation.

    Raises:
        FlawsmithError: a model has no test set of its category.
    """
    results = []
    for model in told_apart(models, lambda model: (model.name, model.category, model.bundle.spec.seed)):
        of_category = [weak_set for weak_set in sets if weak_set.dataset.category == model.category]
        if not of_category:
            names = ", ".join(sorted({weak_set.dataset.category for weak_set in sets}))
            raise FlawsmithError(f"{model.path}: learned {model.category}, the test sets are of {names}: {_MAKE}")
        for weak_set in of_category:
            evaluation = evaluate(model.path, weak_set.dataset, n_resamples=0)
            seed = model.bundle.spec.seed
            results.append(WeakFlawResult(model.name, model.category, seed, weak_set.weakness, evaluation))
            on_step()
    return results


def weakness(
    results: Sequence[WeakFlawResult], *, metrics: Sequence[str] = (), by_category: bool = False
) -> PaperFigure:
    """Accuracy against the weight of the good image in the flaws, a line a model: mean over categories.

    Args:
        results: models on test sets of several strengths.
        metrics: figures of accuracy; the usual ones by default.
        by_category: a row of panels for each category, in place of their mean.

    Raises:
        FlawsmithError: no such metric.
    """
    names = curve.shown_metrics([result.evaluation for result in results], metrics)
    measurements = {
        name: [
            Measurement(result.model, result.category, result.weakness, result.seed, value)
            for result in results
            if (value := getattr(result.evaluation, name)) is not None
        ]
        for name in names
    }
    return draw_lines(measurements, WEAKNESS, by_category=by_category)


def weakness_of_benchmark(
    results: Sequence[RunResult], *, metrics: Sequence[str] = (), by_category: bool = False, part: str | None = None
) -> PaperFigure:
    """The same from a benchmark over the folders of such test sets, a line an experiment, with the spread over seeds.

    Raises:
        FlawsmithError: no run is of such a test set.
    """
    chosen = curve.part_of(results, part)
    weak = [(result, float(match.group(1))) for result in results if (match := _NAME.match(result.run.dataset))]
    weak = [(result, weight) for result, weight in weak if chosen in result.evaluations]
    if not weak:
        raise FlawsmithError(
            f"no run of the benchmark is of a test set of weak flaws: make them with {_MAKE} for `flawsmith "
            "benchmark`, or give models and --sets FOLDER"
        )
    names = curve.shown_metrics([result.evaluations[chosen] for result, _ in weak], metrics)
    measurements = {
        name: [
            Measurement(result.run.experiment.title, result.run.category, weight, result.run.seed, value)
            for result, weight in weak
            if (value := getattr(result.evaluations[chosen], name)) is not None
        ]
        for name in names
    }
    return draw_lines(measurements, WEAKNESS, by_category=by_category)
