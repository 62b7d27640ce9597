"""The report's plots, as SVG in data URIs: no date, fixed identifiers, so the same data give the same
bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawsmith.evaluation.curves import Curve
from flawsmith.report.data import LineChart, ScoreGroup, ScoreKind

INK, MUTED, GRID = "#1d2733", "#5b6875", "#e3e8ed"
# Blue and vermilion stay apart in every common colour blindness; the calibration's shades are their lighter
# kin.
COLOURS: dict[ScoreKind, str] = {
    "good": "#1f6f9c",
    "flawed": "#c4471f",
    "held_out": "#5f9cbf",
    "forged": "#e0913f",
}
NAMES: dict[ScoreKind, str] = {
    "good": "good",
    "flawed": "flawed",
    "held_out": "held-out good",
    "forged": "forged flaws",
}
_PANELS: tuple[tuple[str, tuple[ScoreKind, ...]], ...] = (
    ("test images", ("good", "flawed")),
    ("calibration", ("held_out", "forged")),
)
_LINES = ("#1f6f9c", "#c4471f", "#3f7d4e", "#7a5195", "#8a6d1d", "#46535f")
# Shapes tell the groups apart where colours do not.
_MARKERS = ("o", "^", "s", "D", "v", "P")
_Line = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "flawsmith",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa6b2",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "path.simplify_threshold": 0.5,
}
_MAX_POINTS = 600


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def score_histogram(groups: Sequence[ScoreGroup], limit: float | None, review_limit: float | None) -> str | None:
    """Histogram of image scores: a panel for test images, one for the calibration, limits drawn in both.

    Args:
        groups: scores by kind; empty groups and infinite scores are left out.
        limit: reject limit on the image score.
        review_limit: review limit on the image score.

    Returns:
        An SVG data URI, or None without a finite score.
    """
    finite: dict[ScoreKind, npt.NDArray[np.floating]] = {
        group.kind: values
        for group in groups
        if len(values := np.asarray(group.scores, dtype=float)[np.isfinite(group.scores)])
    }
    panels = [(title, kinds) for title, kinds in _PANELS if any(kind in finite for kind in kinds)]
    if not panels:
        return None
    marks = [value for value in (limit, review_limit) if value is not None and np.isfinite(value)]
    everything = np.concatenate([*finite.values(), np.asarray(marks, dtype=float)])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, 43)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 0.7 + 1.75 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, kinds) in zip(axes, panels, strict=True):
            for kind in (kind for kind in kinds if kind in finite):
                _bars(axis, finite[kind], kind, edges)
            _limit_lines(axis, limit, review_limit)
            axis.set_ylabel("share of group")
            axis.grid(visible=False, axis="x")
            _legend_above(axis, title)
        axes[-1].set_xlabel("image score")
        return _data_uri(figure)


def _bars(axis: Axes, scores: npt.NDArray[np.floating], kind: ScoreKind, edges: npt.NDArray[np.floating]) -> None:
    axis.hist(
        scores,
        bins=edges.tolist(),
        weights=np.full(len(scores), 1.0 / len(scores)),
        histtype="stepfilled",
        facecolor=(COLOURS[kind], 0.35),
        edgecolor=COLOURS[kind],
        linewidth=1.2,
        label=f"{NAMES[kind]} ({len(scores)})",
    )


def _limit_lines(axis: Axes, limit: float | None, review_limit: float | None) -> None:
    if limit is not None and np.isfinite(limit):
        axis.axvline(limit, color=INK, linewidth=1.4, label="reject limit")
    if review_limit is not None and np.isfinite(review_limit):
        axis.axvline(review_limit, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="review limit")


def _legend_above(axis: Axes, title: str, *, marker_scale: float = 1.0) -> None:
    """The panel's title at the left and its legend in rows above the plot, where no data can lie under it."""
    axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
    columns = 2 if title else 3
    place: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
    axis.legend(**place, ncols=columns, handlelength=1.6, markerscale=marker_scale)


def rate_curve(curve: Curve, x_label: str, y_label: str, *, shade_to: float | None = None) -> str:
    """One curve over false-positive rates, drawn in a square.

    Args:
        curve: the curve.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        shade_to: shades the area up to this rate, which is the area the figure measures.

    Returns:
        An SVG data URI.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 3.5), layout="constrained")
        axis = figure.subplots()
        if shade_to is not None:
            axis.axvspan(0, shade_to, color="#1f6f9c", alpha=0.07, linewidth=0)
        axis.plot([0, 1], [0, 1], color="#9aa6b2", linewidth=1, linestyle=(0, (2, 3)))
        axis.plot(curve.x, curve.y, color=COLOURS["good"])
        axis.set(xlim=(-0.01, 1.0), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
        return _data_uri(figure)


def training_curves(rows: Sequence[Mapping[str, object]]) -> str | None:
    """Losses over training, one line a column whose name holds ``loss``.

    Args:
        rows: rows of ``metrics.jsonl``; ``step`` or ``epoch`` gives the horizontal axis, and where neither
            runs forward (several stages) the row's number does.

    Returns:
        An SVG data URI, or None without a finite loss.
    """
    x_name, x = abscissa(rows)
    lines = _finite_lines(x, _losses(rows))
    if not lines:
        return None
    positive = np.concatenate([values for _, values in lines.values()])
    wide = positive.min() > 0 and positive.max() > 100 * positive.min()
    return _lines(lines, x_name, "loss", "log" if wide else "linear")


def _losses(rows: Sequence[Mapping[str, object]]) -> dict[str, list[float]]:
    """Columns whose name holds ``loss``; one that several stages record is a column a stage, for they measure
    different things."""
    stages: dict[str, dict[object, None]] = {}
    for row in rows:
        for name in row:
            if "loss" in name.lower():
                stages.setdefault(name, {})[row.get("stage")] = None
    return {
        f"{name} of {stage}" if len(found) > 1 else name: [
            as_number(row.get(name)) if row.get("stage") == stage else float("nan") for row in rows
        ]
        for name, found in stages.items()
        for stage in found
    }


def line_chart(chart: LineChart) -> str | None:
    """The lines of a chart.

    Args:
        chart: what to draw; of long lines evenly spaced points are drawn.

    Returns:
        An SVG data URI, or None without a finite value.

    Raises:
        ValueError: a line is not as long as the chart's axis.
    """
    for name, values in chart.lines.items():
        if len(values) != len(chart.x):
            raise ValueError(f"{chart.title}: {name} has {len(values)} values for {len(chart.x)} places")
    lines = _finite_lines(chart.x, chart.lines)
    return _lines(lines, chart.x_label, chart.y_label, "from zero") if lines else None


def _finite_lines(x: npt.ArrayLike, columns: Mapping[str, Sequence[float]]) -> dict[str, _Line]:
    """The finite points of every column, evenly thinned out where there are many; columns without any are left out."""
    places, lines = np.asarray(x, dtype=float), {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=float)
        known = np.flatnonzero(np.isfinite(values) & np.isfinite(places))
        if known.size:
            kept = known[np.unique(np.linspace(0, known.size - 1, _MAX_POINTS).astype(int))]
            lines[name] = (places[kept], values[kept])
    return lines


def _lines(lines: Mapping[str, _Line], x_label: str, y_label: str, scale: Literal["linear", "log", "from zero"]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axis = figure.subplots()
        for index, (name, (x, values)) in enumerate(lines.items()):
            marker = "o" if len(values) == 1 else None
            axis.plot(x, values, color=_LINES[index % len(_LINES)], label=plain(name), marker=marker)
        if scale == "log":
            axis.set_yscale("log")
        elif scale == "from zero":
            _start_at_zero(axis, np.concatenate([values for _, values in lines.values()]))
        axis.set(xlabel=plain(x_label), ylabel=plain(y_label))
        _legend_above(axis, "")
        return _data_uri(figure)


def _start_at_zero(axis: Axes, values: npt.NDArray[np.floating]) -> None:
    """Let the axis begin at zero where the values come near it; a line that is zero throughout lies on the axis."""
    low, high = float(values.min()), float(values.max())
    if low == high == 0.0:
        axis.set_ylim(-0.02, 1.0)
    elif 0 <= low <= 0.5 * high:
        axis.set_ylim(-0.02 * high, 1.05 * high)


def scatter(points: Mapping[str, npt.NDArray[np.floating]], x_label: str, y_label: str) -> str:
    """Points in the plane, a colour and a shape a group.

    Args:
        points: (points, 2) places by name of the group.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.

    Returns:
        An SVG data URI.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 4.1), layout="constrained")
        axis = figure.subplots()
        for index, (name, places) in enumerate(points.items()):
            colour, marker = _LINES[index % len(_LINES)], _MARKERS[index % len(_MARKERS)]
            style: Any = {"linestyle": "", "marker": marker, "markersize": 3.2, "markeredgewidth": 0.0}
            axis.plot(places[:, 0], places[:, 1], color=colour, alpha=0.55, label=plain(name), **style)
        axis.margins(0.04)
        axis.tick_params(labelsize=8)
        axis.set(xlabel=plain(x_label), ylabel=plain(y_label))
        _legend_above(axis, "", marker_scale=2.0)
        return _data_uri(figure)


def abscissa(rows: Sequence[Mapping[str, object]]) -> tuple[str, npt.NDArray[np.floating]]:
    """Name and values of the horizontal axis of some rows: the step or epoch where it runs forward, else the number."""
    for name in ("step", "epoch"):
        values = np.array([as_number(row.get(name)) for row in rows])
        if len(values) and np.isfinite(values).all() and np.all(np.diff(values) >= 0):
            return name, values
    return "record", np.arange(1.0, len(rows) + 1)


def as_number(value: object) -> float:
    """A recorded value as a number, NaN where it is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def plain(name: str) -> str:
    """A label that matplotlib neither reads as mathematics nor hides (a leading underscore)."""
    return name.replace("_", " ").replace("$", r"\$").strip()[:40] or "unnamed"
