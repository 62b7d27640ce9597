"""Features of good parts, real flaws and synthetic ones in the plane: PCA and t-SNE.

As in PBAS (Fig. 9), AAND (Fig. 6, the teacher before and after its amplification) and SLSG (Fig. 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.lines import Line2D

from flawsmith.figures.style import COLUMN, PaperFigure, legend_below, look, panels, wrapped
from flawsmith.models.diagnostics import FeatureCloud
from flawsmith.report.plots import Projection, projections
from flawsmith.report.style import PRINT, plot_style, short_label
from flawsmith.runtime.errors import FlawsmithError

Plane = Literal["pca", "tsne"]
PLANES: tuple[Plane, ...] = ("pca", "tsne")
_TITLES: dict[Plane, str] = {"pca": "PCA", "tsne": "t-SNE"}


def feature_planes(clouds: Sequence[FeatureCloud], *, planes: Sequence[Plane] = PLANES) -> PaperFigure:
    """A row a feature map, a column a projection, a colour and a shape a group.

    Raises:
        FlawsmithError: too few features, or all the same.
    """
    drawn = [(cloud, _planes(cloud)) for cloud in clouds]
    groups = list(dict.fromkeys(name for cloud in clouds for name in cloud.groups))
    rows = list[dict[str, Any]]()
    with plot_style(PRINT):
        figure, axes = panels(len(drawn), len(planes), height=2.6 if len(planes) == 1 else 1.75, width=COLUMN)
        for across, (cloud, by_plane) in zip(axes, drawn, strict=True):
            for axis, plane in zip(across, planes, strict=True):
                if plane not in by_plane:
                    axis.set_axis_off()
                    continue
                projection = by_plane[plane]
                for name, points in projection.points.items():
                    axis.plot(points[:, 0], points[:, 1], alpha=0.6, **_look(groups.index(name)))
                    rows += [_row(cloud, plane, name, point) for point in points]
                axis.set_title(f"{wrapped(cloud.title, 62 // len(planes))}\n{_TITLES[plane]}", pad=3, fontsize=7)
                axis.margins(0.04)
                axis.set(xticks=[], yticks=[])
                if plane == "pca":
                    axis.set_xlabel(projection.x_label.replace("component", "PC"), fontsize=6.5)
                    axis.set_ylabel(projection.y_label.replace("component", "PC"), fontsize=6.5)
        legend_below(figure, [Line2D([], [], label=short_label(name), **_look(n)) for n, name in enumerate(groups)])
    return PaperFigure(figure, rows)


def _planes(cloud: FeatureCloud) -> dict[Plane, Projection]:
    in_planes = projections(cloud)
    if not in_planes:
        raise FlawsmithError(f"{cloud.title}: too few features to show, or all are the same; give more test images")
    return dict(zip(PLANES, in_planes, strict=False))


def _look(number: int) -> dict[str, Any]:
    return look(number, linestyle="", markersize=2.4, markeredgewidth=0.0)


def _row(cloud: FeatureCloud, plane: Plane, group: str, point: Sequence[float]) -> dict[str, Any]:
    return {"features": cloud.title, "plane": plane, "group": group, "x": f"{point[0]:.6g}", "y": f"{point[1]:.6g}"}
