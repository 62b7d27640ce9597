"""A method's diagnostics as the report draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flawsmith.methods.diagnostics import Diagnostic, FeatureCloud, MetricChart
from flawsmith.report import data as report
from flawsmith.report.diagnostics import chart_of_metrics


def drawn(
    diagnostics: Iterable[Diagnostic], metrics: Sequence[Mapping[str, Any]]
) -> list[report.LineChart | report.PointCloud | report.ImageStrip]:
    """Charts, point clouds and pictures, with the recorded figures that the charts ask for.

    Args:
        diagnostics: what the method shows, in order.
        metrics: rows of ``metrics.jsonl``.
    """
    return [_drawn(shown, metrics) for shown in diagnostics]


def _drawn(
    shown: Diagnostic, metrics: Sequence[Mapping[str, Any]]
) -> report.LineChart | report.PointCloud | report.ImageStrip:
    if isinstance(shown, MetricChart):
        return chart_of_metrics(metrics, shown.metrics, title=shown.title, caption=shown.caption, y_label=shown.y_label)
    if isinstance(shown, FeatureCloud):
        return report.PointCloud(shown.title, shown.caption, shown.groups)
    return report.ImageStrip(shown.title, shown.caption, shown.pictures, shown.group)
