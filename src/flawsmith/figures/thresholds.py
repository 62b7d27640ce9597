"""False-positive rate and overlap of a map against the threshold on it (SLSG, Fig. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from flawsmith.data.samples import Dataset
from flawsmith.figures.sources import NamedModel, told_apart
from flawsmith.figures.style import PaperFigure, legend_below, panels, wrapped
from flawsmith.metrics.ranking import Curve
from flawsmith.pipeline.evaluate import measure_state
from flawsmith.report.style import DASHES, FLAWED, GOOD, INK, PRINT, plot_style
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

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
        models: the models.
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
