"""Accuracy against latency over methods (PBAS, Fig. 6): area by model size, with the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flawsmith.benchmark.cell import CellResult
from flawsmith.figures import curve
from flawsmith.figures.curve import METRICS
from flawsmith.figures.style import INK, MARKERS, MUTED, PALETTE, Drawn, legend_below, panels, paper_style, short
from flawsmith.runtime.errors import FlawsmithError

_LARGEST, _SMALLEST = 120.0, 12.0
"""Areas of markers, square points."""


@dataclass(frozen=True)
class ArmCost:
    """An arm of a benchmark.

    Attributes:
        name: its title.
        latency: median from file to verdict and map in milliseconds, mean over its cells.
        accuracy: mean over categories, then over seeds, in [0, 1].
        spread: standard deviation over seeds.
        size: of the model file in bytes, mean over its cells; None where unknown.
        best: no other arm is at least as accurate and faster, or as fast and more accurate.
    """

    name: str
    latency: float
    accuracy: float
    spread: float
    size: float | None
    best: bool = False


def latency(results: Sequence[CellResult], *, metric: str = "image_auroc", part: str | None = None) -> Drawn:
    """Every arm of a benchmark by how fast and how accurate it is.

    Args:
        results: finished cells.
        metric: figure of accuracy.
        part: of the test set; by default the first that was measured.

    Raises:
        FlawsmithError: no such metric, or no cell with both accuracy and latency.
    """
    chosen = curve.part_of(results, part)
    curve.shown_metrics([one.evaluations[chosen] for one in results if chosen in one.evaluations], [metric])
    arms, notes = arm_costs(results, metric, chosen)
    if not arms:
        raise FlawsmithError("no cell has both a latency and this figure: run `flawsmith benchmark` on labelled data")
    with paper_style():
        figure, axes = panels(1, 1, height=2.2)
        axis = axes[0, 0]
        largest = max((arm.size or 0.0 for arm in arms), default=0.0)
        front = sorted((arm for arm in arms if arm.best), key=lambda arm: arm.latency)
        if len(front) > 1:
            x, y = [arm.latency for arm in front], [100 * arm.accuracy for arm in front]
            axis.step(x, y, where="post", color=MUTED, lw=0.9, ls="--", zorder=1)
        for number, arm in enumerate(arms):
            look: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
            at = arm.latency, 100 * arm.accuracy
            if arm.spread:
                axis.errorbar(*at, yerr=100 * arm.spread, color=look["color"], lw=0.8, capsize=1.5, zorder=2)
            axis.scatter(
                *at, s=_area(arm.size, largest), edgecolors=INK if arm.best else "white", lw=0.6, zorder=3, **look
            )
        _axes(axis, arms)
        axis.set(xlabel="latency p50 (ms, file to verdict)", ylabel=f"{METRICS[metric]} (%)")
        legend_below(figure, _legend(arms, front))
    return Drawn(figure, [_row(arm, metric) for arm in arms], notes)


def arm_costs(results: Sequence[CellResult], metric: str, part: Any) -> tuple[list[ArmCost], list[str]]:
    """Latency, accuracy and size by arm, over the categories that all arms have, and what a reader has to know.

    Raises:
        FlawsmithError: the arms share no category.
    """
    known = [
        one
        for one in results
        if part in one.evaluations
        and getattr(one.evaluations[part], metric) is not None
        and one.costs.latency_p50_ms is not None
    ]
    name = curve.category_names(known)
    titles = list(dict.fromkeys(one.cell.arm.title for one in known))
    each = [{name(one) for one in known if one.cell.arm.title == title} for title in titles]
    common, everything = set.intersection(*each) if each else set(), {one for own in each for one in own}
    if each and not common:
        raise FlawsmithError("the arms have no category in common: run the benchmark with the same data for all")
    arms = [
        _arm(title, [o for o in known if o.cell.arm.title == title and name(o) in common], metric, part)
        for title in titles
    ]
    notes = []
    if common != everything:
        notes.append(f"not all arms have {', '.join(sorted(everything - common))}: left out")
    if any(one.costs.jobs > 1 for one in known):
        notes.append("cells shared the machine: latencies are longer than alone; measure with --jobs 1")
    if len({one.machine for one in known}) > 1:
        notes.append("cells ran on several machines: their latencies do not compare")
    return sorted((_marked(arm, arms) for arm in arms), key=lambda arm: arm.latency), notes


def _arm(title: str, cells: Sequence[CellResult], metric: str, part: Any) -> ArmCost:
    by_seed: dict[int, list[float]] = {}
    for one in cells:
        by_seed.setdefault(one.cell.seed, []).append(getattr(one.evaluations[part], metric))
    means = [statistics.mean(values) for values in by_seed.values()]
    sizes = [one.costs.model_bytes for one in cells if one.costs.model_bytes is not None]
    return ArmCost(
        title,
        statistics.mean(one.costs.latency_p50_ms or 0.0 for one in cells),
        statistics.mean(means),
        statistics.stdev(means) if len(means) > 1 else 0.0,
        statistics.mean(sizes) if sizes else None,
    )


def _marked(arm: ArmCost, arms: Sequence[ArmCost]) -> ArmCost:
    beaten = any(
        other.latency <= arm.latency
        and other.accuracy >= arm.accuracy
        and (other.latency, other.accuracy) != (arm.latency, arm.accuracy)
        for other in arms
    )
    return ArmCost(arm.name, arm.latency, arm.accuracy, arm.spread, arm.size, best=not beaten)


def _area(size: float | None, largest: float) -> float:
    return _SMALLEST if not size else max(_SMALLEST, _LARGEST * size / largest)


def _axes(axis: Any, arms: Sequence[ArmCost]) -> None:
    fast, slow = min(arm.latency for arm in arms), max(arm.latency for arm in arms)
    if slow / fast >= 4:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.margins(0.14, 0.18)


def _legend(arms: Sequence[ArmCost], front: Sequence[ArmCost]) -> list[Line2D]:
    handles = []
    for number, arm in enumerate(arms):
        size = "" if arm.size is None else f" ({arm.size / 1e6:.3g} MB)"
        look = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)], "ls": ""}
        handles.append(Line2D([], [], label=short(arm.name) + size, **look))  # type: ignore[arg-type]
    if len(front) > 1:
        handles.append(Line2D([], [], color=MUTED, lw=0.9, ls="--", label="Pareto front"))
    return handles


def _row(arm: ArmCost, metric: str) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "latency_p50_ms": repr(arm.latency),
        metric: repr(arm.accuracy),
        "spread": repr(arm.spread),
        "model_bytes": "" if arm.size is None else round(arm.size),
        "pareto": arm.best,
    }
