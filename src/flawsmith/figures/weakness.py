"""Accuracy against how weak a flaw is, from the test sets of `flawsmith synthesize --test-set` (GLASS, Table 3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
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
WeakSet = tuple[float, Dataset]
"""The weight of the good image in the flaws of a labelled test set, and the set."""

_MAKE = "`flawsmith synthesize DATA --out FOLDER --test-set --weakness 0.1 0.3 0.5 0.7`"


def weak_sets(folders: Sequence[Path]) -> list[WeakSet]:
    """The test sets in folders that ``flawsmith synthesize --test-set`` has written, by category and strength.

    Raises:
        FlawsmithError: a folder holds none; the message says which command makes them.
    """
    sets = [weak_set for folder in folders for weak_set in _weak_sets(folder)]
    return sorted(sets, key=lambda weak_set: (weak_set[1].category, weak_set[0]))


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
        yield weakness, load(path.parent / category)


def measure(
    models: Sequence[NamedModel], sets: Sequence[WeakSet], *, on_step: Callable[[], object] = lambda: None
) -> list[tuple[NamedModel, float, Evaluation]]:
    """Every model on the test sets of its category: the model, the weight of the good image, and the figures.

    Args:
        models: the models; equal but for their seed, they are one line with a spread.

    Raises:
        FlawsmithError: a model has no test set of its category.
    """
    results = []
    for model in told_apart(models, lambda model: (model.name, model.category, model.bundle.spec.seed)):
        of_category = [(weight, dataset) for weight, dataset in sets if dataset.category == model.category]
        if not of_category:
            names = ", ".join(sorted({dataset.category for _, dataset in sets}))
            raise FlawsmithError(f"{model.path}: learned {model.category}, the test sets are of {names}: {_MAKE}")
        for weight, dataset in of_category:
            results.append((model, weight, evaluate(model.path, dataset, n_resamples=0)))
            on_step()
    return results


def weakness(
    results: Sequence[tuple[NamedModel, float, Evaluation]],
    *,
    metrics: Sequence[str] = (),
    by_category: bool = False,
) -> PaperFigure:
    """Accuracy against the weight of the good image in the flaws, a line a model: mean over categories.

    Args:
        by_category: a row of panels for each category, in place of their mean.

    Raises:
        FlawsmithError: no such metric.
    """
    rows = [
        (model.name, model.category, weight, model.bundle.spec.seed, evaluation)
        for model, weight, evaluation in results
    ]
    return _drawn(rows, metrics, by_category=by_category)


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
    rows = [
        (result.run.experiment.title, result.run.category, weight, result.run.seed, result.evaluations[chosen])
        for result, weight in weak
    ]
    return _drawn(rows, metrics, by_category=by_category)


def _drawn(
    rows: Sequence[tuple[str, str, float, int, Evaluation]], metrics: Sequence[str], *, by_category: bool
) -> PaperFigure:
    """Rows of line, category, weight, seed and figures, a panel a metric."""
    measurements = {
        name: [
            Measurement(line, category, weight, seed, value)
            for line, category, weight, seed, evaluation in rows
            if (value := getattr(evaluation, name)) is not None
        ]
        for name in curve.shown_metrics([evaluation for *_, evaluation in rows], metrics)
    }
    return draw_lines(measurements, WEAKNESS, by_category=by_category)
