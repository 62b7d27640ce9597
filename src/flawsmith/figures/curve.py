"""Accuracy against a varied quantity: data fraction, neighbourhood, anomaly degree, memories, hard positions.

As in PBAS (Figs. 12 and 13), AAND (Fig. 7) and GLASS (Fig. 8), with the spread over seeds as a band; and against how
weak a flaw is, from the test sets of `flawsmith synthesize --test-set` (GLASS, Table 3).
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from flawsmith.benchmark.experiment import Experiment, RunResult, SplitPart
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset
from flawsmith.figures.sources import NamedModel, told_apart
from flawsmith.figures.style import PaperFigure, legend_below, look, panels
from flawsmith.metrics.results import LABELS, LOCO_LABELS, Evaluation
from flawsmith.pipeline.evaluate import evaluate
from flawsmith.report.style import DASHES, PALETTE, PRINT, plot_style, short_label
from flawsmith.runtime.errors import FlawsmithError

METRICS: Mapping[str, str] = {**LABELS, **LOCO_LABELS}
"""Figures of accuracy with their names in words."""

SHOWN = ("image_auroc", "pixel_auroc", "aupro")
FRACTION = "fraction"
_EXPERIMENT_FIELDS = (FRACTION, "preset", "backbone", "textures", "select", "engine", "precision")
MEAN = "mean over categories"


@dataclass(frozen=True)
class Measurement:
    """One figure of one run.

    Attributes:
        line: what belongs together, such as a method with all of its settings but the varied one.
        category: name of the category, with its data set where names alone are not clear.
        x: value of the varied quantity.
        seed: seed of the run.
        value: the figure, in [0, 1].
    """

    line: str
    category: str
    x: Any
    seed: int
    value: float


@dataclass(frozen=True)
class Point:
    """A place on a line.

    Attributes:
        x: value of the varied quantity.
        mean: mean over seeds.
        low: lower end of the spread; ``mean`` where there is none.
        high: upper end of it.
        n: seeds behind it.
    """

    x: Any
    mean: float
    low: float
    high: float
    n: int


def check_metrics(names: Sequence[str]) -> None:
    """Refuse an unknown figure of accuracy.

    Raises:
        FlawsmithError: naming the known ones and the closest.
    """
    for name in names:
        if name not in METRICS:
            close = [known for known in METRICS if name in known] or get_close_matches(name, METRICS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise FlawsmithError(f"--metric {name}: no such figure: {hint}known are {', '.join(METRICS)}")


def shown_metrics(evaluations: Sequence[Evaluation], asked: Sequence[str] = ()) -> list[str]:
    """The figures to draw: those asked for, or the usual ones that the data can give.

    Raises:
        FlawsmithError: an unknown figure, or one that no evaluation has.
    """
    check_metrics(asked)
    for name in asked:
        if all(getattr(evaluation, name) is None for evaluation in evaluations):
            raise FlawsmithError(f"--metric {name}: no result has it; pixel figures need masks in the test split")
    return list(asked) or [
        name for name in SHOWN if any(getattr(evaluation, name) is not None for evaluation in evaluations)
    ]


def part_of(results: Sequence[RunResult], part: str | None) -> SplitPart:
    """The part of the test set to report: the one asked for, or the first that was measured.

    Raises:
        FlawsmithError: it was not measured.
    """
    known = list(dict.fromkeys(name for result in results for name in result.evaluations))
    for name in known:
        if part in (None, name):
            return name
    raise FlawsmithError(f"--part {part}: was not measured, there is {', '.join(known) or 'none'}")


def varied(results: Sequence[RunResult]) -> str:
    """The one quantity that was varied in a benchmark.

    Raises:
        FlawsmithError: none was, or several were.
    """
    experiments = [result.run.experiment for result in results]
    settings = sorted({name for experiment in experiments for name in experiment.set})
    values: dict[str, set[str]] = defaultdict(set)
    for result in results:
        for name in (FRACTION, *settings):
            value = value_of(result, name)
            if value is not None:
                values[name].add(text_of(value))
    several = [name for name in (FRACTION, *settings) if len(values[name]) > 1]
    if len(several) == 1:
        return several[0]
    if several:
        raise FlawsmithError(f"several quantities were varied, {', '.join(several)}: choose one with --x")
    raise FlawsmithError(
        "no quantity was varied in this benchmark: run it with --fractions 0.1 0.5 1 or --vary patch_size=[1,3,5], or "
        "choose what differs with --x"
    )


def value_of(result: RunResult, x: str) -> Any:
    """The value of a quantity in a run; None where its method has no such setting."""
    if x == "backbone":
        return result.run.backbone
    if x in _EXPERIMENT_FIELDS and x in Experiment.model_fields:
        return getattr(result.run.experiment, x)
    return result.run.config.get(x)


def _without(experiment: Experiment, x: str) -> Experiment:
    """The experiment as if its varied quantity had never been set."""
    if x == FRACTION:
        return experiment.model_copy(update={"fraction": 1.0})
    if x in _EXPERIMENT_FIELDS:
        return experiment.model_copy(update={x: Experiment.model_fields[x].default})
    return experiment.model_copy(update={"set": {name: value for name, value in experiment.set.items() if name != x}})


def measurements(results: Sequence[RunResult], x: str, metric: str, part: SplitPart) -> list[Measurement]:
    """A figure of all runs that have it, and the quantity.

    Raises:
        FlawsmithError: no run has the quantity.
    """
    name = category_names(results)
    entries = [
        Measurement(_without(result.run.experiment, x).title, name(result), value, result.run.seed, figure)
        for result in results
        if (value := value_of(result, x)) is not None
        and part in result.evaluations
        and (figure := getattr(result.evaluations[part], metric)) is not None
    ]
    if not entries and all(value_of(result, x) is None for result in results):
        known = sorted({name for result in results for name in result.run.config})
        close = get_close_matches(x, [*known, *_EXPERIMENT_FIELDS], 1)
        hint = f": did you mean {close[0]}?" if close else f": settings are {', '.join(known)}, and {FRACTION}"
        raise FlawsmithError(f"--x {x}: no run has such a setting{hint}")
    return entries


def category_names(results: Sequence[RunResult]) -> Callable[[RunResult], str]:
    """How a figure names categories: with the data set only where there are several."""
    several = len({result.run.dataset for result in results}) > 1
    return lambda result: f"{result.run.dataset}/{result.run.category}" if several else result.run.category


def lines(measurements: Sequence[Measurement]) -> tuple[dict[str, list[Point]], list[str]]:
    """Points by line: means over categories of every seed, then mean and standard deviation over the seeds.

    Means compare only over the same categories: those that every line has are counted, and a seed counts at a place
    where it has all of them.

    Returns:
        The lines, each in ascending order of the quantity, and what was left out, in sentences.
    """
    drawn: dict[str, list[Point]] = {}
    names = list(dict.fromkeys(entry.line for entry in measurements))
    everything = {entry.category for entry in measurements}
    categories = everything.intersection(
        *({entry.category for entry in measurements if entry.line == name} for name in names)
    )
    alone = sorted(everything - categories)
    notes = [f"not all lines have {', '.join(alone)}: left out of the means"] if alone else []
    for line in names:
        of_line = [entry for entry in measurements if entry.line == line and entry.category in categories]
        by_place: dict[str, list[float]] = defaultdict(list)
        values = {text_of(entry.x): entry.x for entry in of_line}
        for place, seed in dict.fromkeys((text_of(entry.x), entry.seed) for entry in of_line):
            by_category = {
                entry.category: entry.value for entry in of_line if (text_of(entry.x), entry.seed) == (place, seed)
            }
            if set(by_category) == categories:
                by_place[place].append(statistics.mean(by_category.values()))
            else:
                missing = ", ".join(sorted(categories - set(by_category)))
                notes.append(f"{line} at {place}, seed {seed}: left out, for it lacks {missing}")
        points = [_point(values[place], known) for place, known in by_place.items()]
        if points:
            drawn[line] = sorted(points, key=lambda point: sort_key(point.x))
    return drawn, notes


def _point(x: Any, values: Sequence[float]) -> Point:
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Point(x, mean, mean - spread, mean + spread, len(values))


def sort_key(value: Any) -> tuple[int, tuple[float, ...], str]:
    """Numbers in their order, then lists of numbers, short ones first, then everything else in that of its text."""
    if is_number(value):
        return 0, (float(value),), ""
    if isinstance(value, (list, tuple)) and all(map(is_number, value)):
        return 1, (float(len(value)), *map(float, value)), ""
    return 2, (), text_of(value)


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis of numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def text_of(value: Any) -> str:
    """A value as ticks and tables write it."""
    return str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


_NAMES = {
    FRACTION: "share of the training images (%)",
    "patch_size": "neighbourhood (patch_size)",
    "anomaly_degree": "anomaly degree α",
    "memories": "memory items L",
    "hard_positions": "hard positions K_h",
    "weakness": "weight of the good image in the flaw",
}
_LOGARITHMIC_FROM = 8.0
"""Ratio of the largest to the smallest place from which a logarithmic axis keeps them apart."""
_CHARACTER = 0.06
"""Width of a character of a tick's label in inches, at most."""


def curve(
    results: Sequence[RunResult],
    *,
    x: str | None = None,
    metrics: Sequence[str] = (),
    by_category: bool = False,
    part: str | None = None,
) -> PaperFigure:
    """A figure of accuracy against a quantity that a benchmark varied: a panel a metric, a line a method.

    Args:
        x: the quantity: ``fraction`` or a setting; by default the one that was varied.
        metrics: figures of accuracy; the usual ones by default.
        by_category: a row of panels for each category, in place of their mean.
        part: of the test set; by default the first that was measured.

    Raises:
        FlawsmithError: no such quantity or metric, or nothing was varied.
    """
    quantity, chosen = x or varied(results), part_of(results, part)
    evaluations = [result.evaluations[chosen] for result in results if chosen in result.evaluations]
    names = shown_metrics(evaluations, metrics)
    by_metric = {name: measurements(results, quantity, name, chosen) for name in names}
    return draw_lines(by_metric, quantity, by_category=by_category)


def draw_lines(
    measurements: Mapping[str, Sequence[Measurement]], quantity: str, *, by_category: bool = False
) -> PaperFigure:
    """The same from measurements by metric.

    Raises:
        FlawsmithError: there is none.
    """
    categories = list(dict.fromkeys(entry.category for of_metric in measurements.values() for entry in of_metric))
    if not categories:
        raise FlawsmithError("there is nothing to draw: no run has the figures asked for; choose with --metric")
    groups = categories if by_category else [categories[0] if len(categories) == 1 else MEAN]
    every_line = (entry.line for of_metric in measurements.values() for entry in of_metric)
    styles = {line: number for number, line in enumerate(dict.fromkeys(every_line))}
    rows, notes = list[dict[str, Any]](), list[str]()
    with plot_style(PRINT):
        figure, axes = panels(len(groups), len(measurements), height=1.9 if len(measurements) == 1 else 1.7)
        for (down, group), (across, (metric, of_metric)) in (
            (place, item) for place in enumerate(groups) for item in enumerate(measurements.items())
        ):
            part = [entry for entry in of_metric if group in (entry.category, MEAN)]
            drawn, left_out = lines(part)
            notes += left_out
            axis = axes[down, across]
            _draw(axis, drawn, styles, quantity)
            axis.set_ylabel(f"{METRICS[metric]} (%)")
            if by_category or len(categories) > 1:
                axis.set_title(f"mean of {len(categories)} categories" if group == MEAN else short_label(group), pad=3)
            if down == len(groups) - 1:
                axis.set_xlabel(_NAMES.get(quantity, quantity.replace("_", " ")))
            rows += _rows(metric, group, quantity, drawn)
        handles = [Line2D([], [], label=short_label(line), **_look(number)) for line, number in styles.items()]
        legend_below(figure, handles)
    return PaperFigure(figure, rows, list(dict.fromkeys(notes)))


def _draw(axis: Axes, drawn: Mapping[str, Sequence[Point]], styles: Mapping[str, int], quantity: str) -> None:
    values = sorted(
        {text_of(point.x): point.x for points in drawn.values() for point in points}.values(),
        key=sort_key,
    )
    numeric = all(map(is_number, values))
    factor = 100.0 if quantity == FRACTION else 1.0
    places = {text_of(value): factor * value if numeric else n for n, value in enumerate(values)}
    for line, points in drawn.items():
        at = [places[text_of(point.x)] for point in points]
        means, lows, highs = (
            100 * np.array([getattr(point, end) for point in points]) for end in ("mean", "low", "high")
        )
        colour = PALETTE[styles[line] % len(PALETTE)]
        axis.plot(at, means, **_look(styles[line]))
        if len(points) == 1:
            axis.errorbar(at, means, [means - lows, highs - means], color=colour, lw=0.8, capsize=1.5)
        elif (highs > lows).any():
            axis.fill_between(at, lows, highs, color=colour, alpha=0.16, lw=0)
    _ticks(axis, values, list(places.values()), numeric=numeric)


def _ticks(axis: Axes, values: Sequence[Any], places: Sequence[float], *, numeric: bool) -> None:
    """Ticks at the values that were measured; a label that would run into its neighbour is left out."""
    logarithmic = numeric and min(places) > 0 and max(places) >= max(1.0, _LOGARITHMIC_FROM * min(places))
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    labels = [f"{place:g}" for place in places] if numeric else [short_label(text_of(v), 16) for v in values]
    axis.set_xticks(list(places), labels_with_room(labels, np.log(places) if logarithmic else places, _inches(axis)))
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]


def _inches(axis: Axes) -> float:
    """About the width of a panel without the labels at its side."""
    spec = axis.get_subplotspec()
    assert spec is not None and axis.figure is not None
    return float(axis.get_figure().get_figwidth()) / spec.get_gridspec().ncols - 0.6  # type: ignore[union-attr]


def labels_with_room(labels: Sequence[str], places: npt.ArrayLike, inches: float) -> list[str]:
    """The labels of an axis, empty where the one before reaches.

    Args:
        labels: of the ticks.
        places: where they are, ascending.
        inches: width of the axis.

    Example:
        >>> labels_with_room(["0.1", "0.8", "0.81", "0.9"], [0.1, 0.8, 0.81, 0.9], 3.0)
        ['0.1', '0.8', '', '0.9']
    """
    at = np.asarray(places, dtype=float)
    at = (at - at.min()) / (np.ptp(at) or 1.0) * inches
    shown, end = list[str](), -np.inf
    for label, middle in zip(labels, at, strict=True):
        half = 0.5 * _CHARACTER * len(label)
        free = middle - half > end
        shown.append(label if free else "")
        end = middle + half + 0.6 * _CHARACTER if free else end
    return shown


def _look(number: int) -> dict[str, Any]:
    return look(number, linestyle=DASHES[number % len(DASHES)], markeredgecolor="white", markeredgewidth=0.4)


def _rows(metric: str, group: str, quantity: str, drawn: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric,
            "category": group,
            "line": line,
            quantity: text_of(point.x),
            "mean": repr(point.mean),
            "low": repr(point.low),
            "high": repr(point.high),
            "n": point.n,
        }
        for line, points in drawn.items()
        for point in points
    ]


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
    return _weakness_drawn(rows, metrics, by_category=by_category)


def weakness_of_benchmark(
    results: Sequence[RunResult], *, metrics: Sequence[str] = (), by_category: bool = False, part: str | None = None
) -> PaperFigure:
    """The same from a benchmark over the folders of such test sets, a line an experiment, with the spread over seeds.

    Raises:
        FlawsmithError: no run is of such a test set.
    """
    chosen = part_of(results, part)
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
    return _weakness_drawn(rows, metrics, by_category=by_category)


def _weakness_drawn(
    rows: Sequence[tuple[str, str, float, int, Evaluation]], metrics: Sequence[str], *, by_category: bool
) -> PaperFigure:
    """Rows of line, category, weight, seed and figures, a panel a metric."""
    measurements = {
        name: [
            Measurement(line, category, weight, seed, value)
            for line, category, weight, seed, evaluation in rows
            if (value := getattr(evaluation, name)) is not None
        ]
        for name in shown_metrics([evaluation for *_, evaluation in rows], metrics)
    }
    return draw_lines(measurements, WEAKNESS, by_category=by_category)
