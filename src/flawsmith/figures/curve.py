"""Accuracy against a varied quantity: data fraction, neighbourhood, anomaly degree, memories, hard positions.

As in PBAS (Figs. 12 and 13), AAND (Fig. 7) and GLASS (Fig. 8), with the spread over seeds as a band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from flawsmith.benchmark.cell import CellResult
from flawsmith.figures import comparison
from flawsmith.figures.comparison import MEAN, METRICS, Measurement, Point
from flawsmith.figures.style import DASHES, MARKERS, PALETTE, Drawn, legend_below, panels, paper_style, short
from flawsmith.runtime.errors import FlawsmithError

_NAMES = {
    comparison.FRACTION: "share of the training images (%)",
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
    quantity, chosen = x or comparison.varied(results), comparison.part_of(results, part)
    evaluations = [one.evaluations[chosen] for one in results if chosen in one.evaluations]
    names = comparison.shown_metrics(evaluations, metrics)
    found = {name: comparison.measurements(results, quantity, name, chosen) for name in names}
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
            drawn, left_out = comparison.lines(part)
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
        {comparison.text_of(point.x): point.x for own in drawn.values() for point in own}.values(),
        key=comparison.sort_key,
    )
    numeric = all(map(comparison.is_number, values))
    factor = 100.0 if quantity == comparison.FRACTION else 1.0
    places = {comparison.text_of(value): factor * value if numeric else n for n, value in enumerate(values)}
    for line, points in drawn.items():
        at = [places[comparison.text_of(point.x)] for point in points]
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
    labels = [f"{place:g}" for place in places] if numeric else [short(comparison.text_of(v), 16) for v in values]
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
            quantity: comparison.text_of(point.x),
            "mean": repr(point.mean),
            "low": repr(point.low),
            "high": repr(point.high),
            "n": point.n,
        }
        for line, points in drawn.items()
        for point in points
    ]
