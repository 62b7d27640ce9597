"""The report's plots, as SVG in data URIs: no date, fixed identifiers, so the same data give the same
bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawsmith.evaluation.curves import Curve
from flawsmith.report.data import ScoreGroup, ScoreKind

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


def _legend_above(axis: Axes, title: str) -> None:
    """The panel's title at the left and its legend in rows above the plot, where no data can lie under it."""
    axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
    columns = 2 if title else 3
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, borderaxespad=0.2, handlelength=1.6)


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
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if "loss" in name.lower()]
    x_name, x = _abscissa(rows)
    lines = {}
    for name in names:
        values = np.array([_number(row.get(name)) for row in rows])
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            kept = known[np.unique(np.linspace(0, known.size - 1, _MAX_POINTS).astype(int))]
            lines[name] = (x[kept], values[kept])
    if not lines:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axis = figure.subplots()
        for index, (name, (steps, values)) in enumerate(lines.items()):
            marker = "o" if len(values) == 1 else None
            label = _plain(name)
            axis.plot(steps, values, color=_LINES[index % len(_LINES)], label=label, marker=marker)
        positive = np.concatenate([values for _, values in lines.values()])
        if positive.min() > 0 and positive.max() > 100 * positive.min():
            axis.set_yscale("log")
        axis.set(xlabel=x_name, ylabel="loss")
        _legend_above(axis, "")
        return _data_uri(figure)


def _abscissa(rows: Sequence[Mapping[str, object]]) -> tuple[str, npt.NDArray[np.floating]]:
    for name in ("step", "epoch"):
        values = np.array([_number(row.get(name)) for row in rows])
        if len(values) and np.isfinite(values).all() and np.all(np.diff(values) >= 0):
            return name, values
    return "record", np.arange(1.0, len(rows) + 1)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def _plain(name: str) -> str:
    """A label that matplotlib neither reads as mathematics nor hides (a leading underscore)."""
    return name.replace("_", " ").replace("$", r"\$").strip()[:40] or "loss"
