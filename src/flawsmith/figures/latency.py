"""Accuracy against latency over methods (PBAS, Fig. 6): area by model size, with the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flawsmith.benchmark.experiment import RunResult
from flawsmith.figures import curve
from flawsmith.figures.curve import METRICS
from flawsmith.figures.style import PaperFigure, legend_below, look, panels
from flawsmith.report.style import INK, MUTED, PALETTE, PRINT, plot_style, short_label
from flawsmith.runtime.errors import FlawsmithError

_LARGEST, _SMALLEST = 120.0, 12.0
"""Areas of markers, square points."""


@dataclass(frozen=True)
class ExperimentCost:
    """An experiment of a benchmark.

    Attributes:
        name: its title.
        latency: median from file to verdict and map in milliseconds, mean over its runs.
        accuracy: mean over categories, then over seeds, in [0, 1].
        spread: standard deviation over seeds.
        size: of the model file in bytes, mean over its runs; None where unknown.
        best: no other experiment is at least as accurate and faster, or as fast and more accurate.
    """

    name: str
    latency: float
    accuracy: float
    spread: float
    size: float | None
    best: bool = False


def latency(results: Sequence[RunResult], *, metric: str = "image_auroc", part: str | None = None) -> PaperFigure:
    """Every experiment of a benchmark by how fast and how accurate it is.

    Raises:
        FlawsmithError: no such metric, or no run with both accuracy and latency.
    """
    chosen = curve.part_of(results, part)
    curve.shown_metrics([result.evaluations[chosen] for result in results if chosen in result.evaluations], [metric])
    costs, notes = experiment_costs(results, metric, chosen)
    if not costs:
        raise FlawsmithError("no run has both a latency and this figure: run `flawsmith benchmark` on labelled data")
    with plot_style(PRINT):
        figure, axes = panels(1, 1, height=2.2)
        axis = axes[0, 0]
        largest = max((cost.size or 0.0 for cost in costs), default=0.0)
        front = sorted((cost for cost in costs if cost.best), key=lambda cost: cost.latency)
        if len(front) > 1:
            x, y = [cost.latency for cost in front], [100 * cost.accuracy for cost in front]
            axis.step(x, y, where="post", color=MUTED, lw=0.9, ls="--", zorder=1)
        for number, cost in enumerate(costs):
            at, colour = (cost.latency, 100 * cost.accuracy), PALETTE[number % len(PALETTE)]
            if cost.spread:
                axis.errorbar(*at, yerr=100 * cost.spread, color=colour, lw=0.8, capsize=1.5, zorder=2)
            axis.scatter(
                *at,
                s=_area(cost.size, largest),
                edgecolors=INK if cost.best else "white",
                lw=0.6,
                zorder=3,
                **look(number),
            )
        _axes(axis, costs)
        axis.set(xlabel="latency p50 (ms, file to verdict)", ylabel=f"{METRICS[metric]} (%)")
        legend_below(figure, _legend(costs, front))
    return PaperFigure(figure, [_row(cost, metric) for cost in costs], notes)


def experiment_costs(results: Sequence[RunResult], metric: str, part: Any) -> tuple[list[ExperimentCost], list[str]]:
    """Latency, accuracy and size by experiment, over the categories that all have, and what a reader has to know.

    Raises:
        FlawsmithError: the experiments share no category.
    """
    known = [
        result
        for result in results
        if part in result.evaluations
        and getattr(result.evaluations[part], metric) is not None
        and result.costs.latency_p50_ms is not None
    ]
    name = curve.category_names(known)
    titles = list(dict.fromkeys(result.run.experiment.title for result in known))
    categories = [{name(result) for result in known if result.run.experiment.title == title} for title in titles]
    common, everything = set.intersection(*categories) if categories else set(), set().union(*categories)
    if categories and not common:
        raise FlawsmithError("the experiments have no category in common: run the benchmark with the same data for all")
    costs = [
        _cost(
            title,
            [result for result in known if result.run.experiment.title == title and name(result) in common],
            metric,
            part,
        )
        for title in titles
    ]
    notes = []
    if common != everything:
        notes.append(f"not all experiments have {', '.join(sorted(everything - common))}: left out")
    if any(result.costs.jobs > 1 for result in known):
        notes.append("runs shared the machine: latencies are longer than alone; measure with --jobs 1")
    if len({result.machine for result in known}) > 1:
        notes.append("several machines were used: their latencies do not compare")
    return sorted((_marked(cost, costs) for cost in costs), key=lambda cost: cost.latency), notes


def _cost(title: str, results: Sequence[RunResult], metric: str, part: Any) -> ExperimentCost:
    by_seed: dict[int, list[float]] = {}
    for result in results:
        by_seed.setdefault(result.run.seed, []).append(getattr(result.evaluations[part], metric))
    means = [statistics.mean(values) for values in by_seed.values()]
    sizes = [result.costs.model_bytes for result in results if result.costs.model_bytes is not None]
    return ExperimentCost(
        title,
        statistics.mean(result.costs.latency_p50_ms or 0.0 for result in results),
        statistics.mean(means),
        statistics.stdev(means) if len(means) > 1 else 0.0,
        statistics.mean(sizes) if sizes else None,
    )


def _marked(cost: ExperimentCost, costs: Sequence[ExperimentCost]) -> ExperimentCost:
    beaten = any(
        other.latency <= cost.latency
        and other.accuracy >= cost.accuracy
        and (other.latency, other.accuracy) != (cost.latency, cost.accuracy)
        for other in costs
    )
    return replace(cost, best=not beaten)


def _area(size: float | None, largest: float) -> float:
    return _SMALLEST if not size else max(_SMALLEST, _LARGEST * size / largest)


def _axes(axis: Any, costs: Sequence[ExperimentCost]) -> None:
    fast, slow = (edge(cost.latency for cost in costs) for edge in (min, max))
    if slow / fast >= 4:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.margins(0.14, 0.18)


def _legend(costs: Sequence[ExperimentCost], front: Sequence[ExperimentCost]) -> list[Line2D]:
    handles = []
    for number, cost in enumerate(costs):
        size = "" if cost.size is None else f" ({cost.size / 1e6:.3g} MB)"
        handles.append(Line2D([], [], label=short_label(cost.name) + size, **look(number, ls="")))
    if len(front) > 1:
        handles.append(Line2D([], [], color=MUTED, lw=0.9, ls="--", label="Pareto front"))
    return handles


def _row(cost: ExperimentCost, metric: str) -> dict[str, Any]:
    return {
        "experiment": cost.name,
        "latency_p50_ms": repr(cost.latency),
        metric: repr(cost.accuracy),
        "spread": repr(cost.spread),
        "model_bytes": "" if cost.size is None else round(cost.size),
        "pareto": cost.best,
    }
