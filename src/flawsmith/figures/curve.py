"""Accuracy against a varied quantity: data fraction, neighbourhood, anomaly degree, memories, hard positions.

As in PBAS (Figs. 12 and 13), AAND (Fig. 7) and GLASS (Fig. 8), with the spread over seeds as a band.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from flawsmith.benchmark.cell import Arm, CellResult, Part
from flawsmith.figures.style import DASHES, MARKERS, PALETTE, Drawn, legend_below, panels, paper_style, short
from flawsmith.metrics.results import LABELS, LOCO_LABELS, Evaluation
from flawsmith.runtime.errors import FlawsmithError

METRICS: Mapping[str, str] = {**LABELS, **LOCO_LABELS}
"""Figures of accuracy with their names in words."""

SHOWN = ("image_auroc", "pixel_auroc", "aupro")
FRACTION = "fraction"
_ARM_FIELDS = (FRACTION, "preset", "backbone", "textures", "select", "engine", "precision")
MEAN = "mean over categories"


@dataclass(frozen=True)
class Measurement:
    """One figure of one cell.

    Attributes:
        line: what belongs together, such as a method with all of its settings but the varied one.
        category: name of the category, with its data set where names alone are not clear.
        x: value of the varied quantity.
        seed: seed of the cell.
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


def shown_metrics(evaluations: Sequence[Evaluation], wanted: Sequence[str] = ()) -> list[str]:
    """The figures to draw: those asked for, or the usual ones that the data can give.

    Raises:
        FlawsmithError: an unknown figure, or one that no evaluation has.
    """
    check_metrics(wanted)
    for name in wanted:
        if all(getattr(one, name) is None for one in evaluations):
            raise FlawsmithError(f"--metric {name}: no result has it; pixel figures need masks in the test split")
    return list(wanted) or [name for name in SHOWN if any(getattr(one, name) is not None for one in evaluations)]


def part_of(results: Sequence[CellResult], part: str | None) -> Part:
    """The part of the test set to report: the one asked for, or the first that was measured.

    Raises:
        FlawsmithError: it was not measured.
    """
    known = list(dict.fromkeys(name for one in results for name in one.evaluations))
    for name in known:
        if part in (None, name):
            return name
    raise FlawsmithError(f"--part {part}: was not measured, there is {', '.join(known) or 'none'}")


def varied(results: Sequence[CellResult]) -> str:
    """The one quantity that was varied in a benchmark.

    Raises:
        FlawsmithError: none was, or several were.
    """
    arms = [one.cell.arm for one in results]
    settings = sorted({name for arm in arms for name in arm.set})
    values: dict[str, set[str]] = defaultdict(set)
    for result in results:
        for name in (FRACTION, *settings):
            value = value_of(result, name)
            if value is not None:
                values[name].add(_text(value))
    found = [name for name in (FRACTION, *settings) if len(values[name]) > 1]
    if len(found) == 1:
        return found[0]
    if found:
        raise FlawsmithError(f"several quantities were varied, {', '.join(found)}: choose one with --x")
    raise FlawsmithError(
        "no quantity was varied in this benchmark: run it with --fractions 0.1 0.5 1 or --vary patch_size=[1,3,5], or "
        "choose what differs with --x"
    )


def value_of(result: CellResult, x: str) -> Any:
    """The value of a quantity in a cell; None where its method has no such setting."""
    if x == "backbone":
        return result.cell.backbone
    if x in _ARM_FIELDS and x in Arm.model_fields:
        return getattr(result.cell.arm, x)
    return result.cell.config.get(x)


def _without(arm: Arm, x: str) -> Arm:
    """The arm as if its varied quantity had never been set."""
    if x == FRACTION:
        return arm.model_copy(update={"fraction": 1.0})
    if x in _ARM_FIELDS:
        return arm.model_copy(update={x: Arm.model_fields[x].default})
    return arm.model_copy(update={"set": {name: value for name, value in arm.set.items() if name != x}})


def measurements(results: Sequence[CellResult], x: str, metric: str, part: Part) -> list[Measurement]:
    """A figure of all cells that have it, and the quantity.

    Raises:
        FlawsmithError: no cell has the quantity.
    """
    name = category_names(results)
    found = [
        Measurement(_without(one.cell.arm, x).title, name(one), value, one.cell.seed, figure)
        for one in results
        if (value := value_of(one, x)) is not None
        and part in one.evaluations
        and (figure := getattr(one.evaluations[part], metric)) is not None
    ]
    if not found and all(value_of(one, x) is None for one in results):
        known = sorted({name for one in results for name in one.cell.config})
        close = get_close_matches(x, [*known, *_ARM_FIELDS], 1)
        hint = f": did you mean {close[0]}?" if close else f": settings are {', '.join(known)}, and {FRACTION}"
        raise FlawsmithError(f"--x {x}: no cell has such a setting{hint}")
    return found


def category_names(results: Sequence[CellResult]) -> Callable[[CellResult], str]:
    """How a figure names categories: with the data set only where there are several."""
    several = len({one.cell.dataset for one in results}) > 1
    return lambda one: f"{one.cell.dataset}/{one.cell.category}" if several else one.cell.category


def lines(found: Sequence[Measurement]) -> tuple[dict[str, list[Point]], list[str]]:
    """Points by line: means over categories of every seed, then mean and standard deviation over the seeds.

    Means compare only over the same categories: those that every line has are counted, and a seed counts at a place
    where it has all of them.

    Returns:
        The lines, each in ascending order of the quantity, and what was left out, in sentences.
    """
    drawn: dict[str, list[Point]] = {}
    names = list(dict.fromkeys(one.line for one in found))
    everything = {one.category for one in found}
    categories = everything.intersection(*({one.category for one in found if one.line == name} for name in names))
    alone = sorted(everything - categories)
    notes = [f"not all lines have {', '.join(alone)}: left out of the means"] if alone else []
    for line in names:
        own = [one for one in found if one.line == line and one.category in categories]
        by_place: dict[str, list[float]] = defaultdict(list)
        values = {_text(one.x): one.x for one in own}
        for place, seed in dict.fromkeys((_text(one.x), one.seed) for one in own):
            cell = {one.category: one.value for one in own if (_text(one.x), one.seed) == (place, seed)}
            if set(cell) == categories:
                by_place[place].append(statistics.mean(cell.values()))
            else:
                missing = ", ".join(sorted(categories - set(cell)))
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
    return 2, (), _text(value)


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis of numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


text_of = _text
"""A value as ticks and tables write it."""


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
    results: Sequence[CellResult],
    *,
    x: str | None = None,
    metrics: Sequence[str] = (),
    by_category: bool = False,
    part: str | None = None,
) -> Drawn:
    """A figure of accuracy against a quantity that a benchmark varied: a panel a metric, a line a method.

    Args:
        results: finished cells.
        x: the quantity: ``fraction`` or a setting; by default the one that was varied.
        metrics: figures of accuracy; the usual ones by default.
        by_category: a row of panels for each category, in place of their mean.
        part: of the test set; by default the first that was measured.

    Raises:
        FlawsmithError: no such quantity or metric, or nothing was varied.
    """
    quantity, chosen = x or varied(results), part_of(results, part)
    evaluations = [one.evaluations[chosen] for one in results if chosen in one.evaluations]
    names = shown_metrics(evaluations, metrics)
    found = {name: measurements(results, quantity, name, chosen) for name in names}
    return draw_lines(found, quantity, by_category=by_category)


def draw_lines(found: Mapping[str, Sequence[Measurement]], quantity: str, *, by_category: bool = False) -> Drawn:
    """The same from measurements by metric.

    Raises:
        FlawsmithError: there is none.
    """
    categories = list(dict.fromkeys(one.category for own in found.values() for one in own))
    if not categories:
        raise FlawsmithError("there is nothing to draw: no cell has the figures asked for; choose with --metric")
    groups = categories if by_category else [categories[0] if len(categories) == 1 else MEAN]
    styles = {line: number for number, line in enumerate(dict.fromkeys(one.line for v in found.values() for one in v))}
    rows, notes = list[dict[str, Any]](), list[str]()
    with paper_style():
        figure, axes = panels(len(groups), len(found), height=1.9 if len(found) == 1 else 1.7)
        for (down, group), (across, (metric, own)) in (
            (place, item) for place in enumerate(groups) for item in enumerate(found.items())
        ):
            part = [one for one in own if group in (one.category, MEAN)]
            drawn, left_out = lines(part)
            notes += left_out
            axis = axes[down, across]
            _draw(axis, drawn, styles, quantity)
            axis.set_ylabel(f"{METRICS[metric]} (%)")
            if by_category or len(categories) > 1:
                axis.set_title(f"mean of {len(categories)} categories" if group == MEAN else short(group), pad=3)
            if down == len(groups) - 1:
                axis.set_xlabel(_NAMES.get(quantity, quantity.replace("_", " ")))
            rows += _rows(metric, group, quantity, drawn)
        legend_below(figure, [_handle(line, number) for line, number in styles.items()])
    return Drawn(figure, rows, list(dict.fromkeys(notes)))


def _draw(axis: Axes, drawn: Mapping[str, Sequence[Point]], styles: Mapping[str, int], quantity: str) -> None:
    values = sorted(
        {text_of(point.x): point.x for own in drawn.values() for point in own}.values(),
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
    labels = [f"{place:g}" for place in places] if numeric else [short(text_of(v), 16) for v in values]
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
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def _handle(line: str, number: int) -> Line2D:
    return Line2D([], [], label=short(line), **_look(number))


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
