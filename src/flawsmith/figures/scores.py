"""What limits cut off: histograms of image scores, good against flawed (GLASS, Fig. 5); false-positive rate and overlap
of a map against the threshold on it (SLSG, Fig. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flawsmith.data.samples import Dataset
from flawsmith.figures.sources import ModelScores, NamedModel, told_apart
from flawsmith.figures.style import PaperFigure, legend_below, panels, wrapped
from flawsmith.metrics.ranking import Curve
from flawsmith.pipeline.evaluate import measure_state
from flawsmith.report.style import DASHES, FLAWED, GOOD, INK, PALETTE, PRINT, plot_style, short_label
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

BINS = 32
_DEFECTS = PALETTE[1:]
# More defects than colours are told apart by their hatching.
_HATCHES = ("", "////", "....", "xxxx")
_WRAP = 4
_BAND = "#b7bec6"


def score_histograms(groups: Sequence[ModelScores]) -> PaperFigure:
    """A histogram a model and test set: by type of defect for one category, good against flawed for several.

    Where no model file tells the limit, the two scores are shown between which the verdicts say that it lies.

    Raises:
        FlawsmithError: a test set without a finite score.
    """
    categories = list(dict.fromkeys(test.category for test in groups))
    experiments = list(dict.fromkeys(test.experiment for test in groups))
    defects = sorted({image.defect for test in groups for image in test.images if image.flawed})
    kinds = defects if len(categories) == 1 else ["flawed"]
    places = _places(groups, categories, experiments)
    rows, columns = (1 + max(place[axis] for place in places) for axis in (0, 1))
    with plot_style(PRINT):
        figure, axes = panels(rows, columns, height=1.75 if rows * columns == 1 else 1.15)
        for axis in axes.flat:
            axis.set_axis_off()
        for test, place in zip(groups, places, strict=True):
            axis = axes[place]
            axis.set_axis_on()
            _histogram(axis, test, kinds)
            title = (
                [test.category]
                if len(experiments) == 1
                else [test.experiment]
                if len(categories) == 1
                else [test.category, test.experiment]
            )
            axis.set_title(wrapped(", ".join(filter(None, title)), 50 if columns == 1 else 100 // columns), pad=3)
        for axis in axes[:, 0]:
            axis.set_ylabel("share of images")
        for column in range(columns):
            axes[max(row for row, place in places if place == column), column].set_xlabel("image score")
        legend_below(figure, _legend(groups, kinds))
    return PaperFigure(figure, _rows(groups), _notes(groups))


def _places(groups: Sequence[ModelScores], categories: list[str], experiments: list[str]) -> list[tuple[int, int]]:
    """Row and column of every panel: categories down, experiments across; all in reading order where one is alone."""
    pairs = [(test.category, test.experiment) for test in groups]
    if len(categories) > 1 and 1 < len(experiments) <= _WRAP + 1 and len(set(pairs)) == len(pairs):
        table = {
            pair: place
            for place, pair in zip(
                np.ndindex(len(categories), len(experiments)), product(categories, experiments), strict=True
            )
        }
        return [table[pair] for pair in pairs]
    columns = min(len(groups), _WRAP)
    return [divmod(number, columns) for number in range(len(groups))]


def _histogram(axis: Axes, test: ModelScores, kinds: Sequence[str]) -> None:
    finite = [image for image in test.images if np.isfinite(image.score)]
    if not finite:
        raise FlawsmithError(
            f"{test.category} {test.experiment}: no score is a finite number; evaluate the model again"
        )
    good = np.array([image.score for image in finite if not image.flawed])
    flawed = [
        np.array([image.score for image in finite if image.flawed and kind in (image.defect, "flawed")])
        for kind in kinds
    ]
    marks = [value for value in (test.limit, test.review_limit) if value is not None and np.isfinite(value)]
    everything = np.concatenate([good, *flawed, np.array(marks)])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.03 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    _bars(axis, [good], edges, [{"facecolor": (GOOD, 0.45), "edgecolor": GOOD}])
    _bars(axis, flawed, edges, [_look(number) for number in range(len(kinds))])
    _limits(axis, test)
    axis.set_xlim(edges[0], edges[-1])
    axis.grid(visible=False, axis="x")
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.set_major_locator(MaxNLocator(3))


def _look(number: int) -> dict[str, Any]:
    colour = _DEFECTS[number % len(_DEFECTS)]
    return {"facecolor": (colour, 0.55), "edgecolor": colour, "hatch": _HATCHES[number // len(_DEFECTS) % 4]}


def _bars(
    axis: Axes,
    stacked: Sequence[npt.NDArray[np.floating]],
    edges: npt.NDArray[np.floating],
    looks: Sequence[dict[str, Any]],
) -> None:
    """Bars that stand on one another and add up to one."""
    total, base = sum(map(len, stacked)), np.zeros(len(edges) - 1)
    for scores, look in zip(stacked, looks, strict=True):
        share = np.histogram(scores, edges)[0] / max(total, 1)
        shown = share > 0
        axis.bar(edges[:-1][shown], share[shown], np.diff(edges)[shown], base[shown], align="edge", lw=0.4, **look)
        base = base + share


def limit_from_verdicts(test: ModelScores) -> tuple[float, float] | None:
    """The highest score that was not rejected and the lowest that was; the reject limit lies between them."""
    accepted = [image.score for image in test.images if image.verdict != "reject"]
    rejected = [image.score for image in test.images if image.verdict == "reject"]
    if not accepted or not rejected or max(accepted) >= min(rejected):
        return None
    return max(accepted), min(rejected)


def _limits(axis: Axes, test: ModelScores) -> None:
    if test.limit is not None:
        axis.axvline(test.limit, color=INK, lw=1.0)
        if test.review_limit is not None:
            axis.axvline(test.review_limit, color=INK, lw=0.9, ls=(0, (4, 3)))
        return
    between = limit_from_verdicts(test)
    if between is not None:
        axis.axvspan(*between, facecolor=_BAND, edgecolor=_BAND, alpha=0.7, lw=0.8, zorder=0.5)


def _legend(groups: Sequence[ModelScores], kinds: Sequence[str]) -> list[Any]:
    handles: list[Any] = [Patch(facecolor=(GOOD, 0.45), edgecolor=GOOD, label="good")]
    handles += [Patch(label=short_label(kind), **_look(number)) for number, kind in enumerate(kinds)]
    if any(test.limit is not None for test in groups):
        handles.append(Line2D([], [], color=INK, lw=1.0, label="reject limit"))
    if any(test.review_limit is not None for test in groups):
        handles.append(Line2D([], [], color=INK, lw=0.9, ls=(0, (4, 3)), label="review limit"))
    if any(test.limit is None and limit_from_verdicts(test) for test in groups):
        handles.append(Patch(facecolor=_BAND, label="the limit lies here"))
    return handles


def _rows(groups: Sequence[ModelScores]) -> list[dict[str, Any]]:
    return [
        {
            "category": test.category,
            "experiment": test.experiment,
            "image": image.image,
            "defect": image.defect,
            "score": repr(image.score),
            "verdict": image.verdict,
            "limit": "" if test.limit is None else repr(test.limit),
        }
        for test in groups
        for image in test.images
    ]


def _notes(groups: Sequence[ModelScores]) -> list[str]:
    lost = sum(not np.isfinite(image.score) for test in groups for image in test.images)
    return [f"{lost} scores are no finite numbers and are not shown"] if lost else []


_ACROSS = 3
_WITHOUT_SATURATION = "the data set does not say when a defect counts as found, so regions count by their area (PRO)"


class ThresholdCurve(NamedTuple):
    """What a model's map gives at every threshold.

    Attributes:
        model: whose map it is.
        curve: false-positive rates and overlaps by descending threshold.
        saturated: whether the overlap is sPRO; else it is that of connected regions, PRO.
    """

    model: NamedModel
    curve: Curve
    saturated: bool


def measure(
    models: Sequence[NamedModel], dataset: Dataset, *, on_step: Callable[[], object] = lambda: None
) -> list[ThresholdCurve]:
    """Inspect a test split with every model.

    Args:
        dataset: labelled images of their category, with masks.

    Raises:
        FlawsmithError: the test split has no annotated flaw or no good pixel, or an image cannot be read.
    """
    curves = []
    for model in told_apart(models, lambda model: model.name):
        state = measure_state(Inspector.load(model.path), dataset, on_step=on_step)
        saturated = state.spro_curve()
        curve = saturated or state.pro_curve()
        if curve is None:
            raise FlawsmithError(
                f"{dataset.category}: has no annotated flaw to measure an overlap with; give data with masks"
            )
        curves.append(ThresholdCurve(model, curve, saturated is not None))
    return curves


def threshold_curves(curves: Sequence[ThresholdCurve]) -> PaperFigure:
    """A panel a model: false-positive rate and mean overlap against the threshold on its map, with its limit.

    Maps of different methods have different units, so each panel has an axis of its own.
    """
    rows = list[dict[str, Any]]()
    with plot_style(PRINT):
        across = min(len(curves), _ACROSS)
        figure, axes = panels(-(-len(curves) // across), across, height=1.8)
        for axis in axes.flat[len(curves) :]:
            axis.set_axis_off()
        for axis, (model, curve, saturated) in zip(axes.flat, curves, strict=False):
            inner = np.isfinite(curve.thresholds)
            thresholds, rates, overlaps = curve.thresholds[inner], curve.x[inner], curve.y[inner]
            overlap = "sPRO" if saturated else "PRO"
            axis.plot(thresholds, 100 * rates, color=GOOD, ls=DASHES[1])
            axis.plot(thresholds, 100 * overlaps, color=FLAWED, ls=DASHES[0])
            axis.axvline(model.bundle.spec.decision.map_limit, color=INK, lw=0.9, ls=DASHES[3])
            axis.set_title(wrapped(model.name, 100 // across), pad=3)
            axis.set(xlabel="threshold on the map", ylabel=f"false-positive rate, {overlap} (%)", ylim=(-2, 102))
            rows += [
                {
                    "model": model.name,
                    "threshold": repr(float(at)),
                    "fpr": repr(float(x)),
                    overlap.lower(): repr(float(y)),
                }
                for at, x, y in zip(thresholds, rates, overlaps, strict=True)
            ]
        legend_below(
            figure,
            [
                Line2D([], [], color=GOOD, ls=DASHES[1], label="false-positive rate"),
                Line2D([], [], color=FLAWED, ls=DASHES[0], label="overlap"),
                Line2D([], [], color=INK, lw=0.9, ls=DASHES[3], label="limit of regions"),
            ],
        )
    return PaperFigure(figure, rows, [] if all(curve.saturated for curve in curves) else [_WITHOUT_SATURATION])
