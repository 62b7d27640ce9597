"""What a method shows of its training, made ready for the page: charts, point clouds, strips of pictures, tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from flawsmith.data.seeding import generator
from flawsmith.report import figures
from flawsmith.report.data import Diagnostic, FactGroup, ImageStrip, LineChart, PointCloud
from flawsmith.report.pictures import THUMBNAIL, Tile

POINTS = 1200  # of a cloud in all: t-SNE of them takes about four seconds on one core
POINTS_PER_GROUP = 500
STRIP_BUDGET_BYTES = 1_500_000
# t-SNE sees only distances between neighbours; fifty components keep them and halve its time.
_COMPONENTS = 50
_PERPLEXITY = 30.0
_ANGLE = 0.7
_LEAST_FOR_NEIGHBOURS = 5
_QUALITY = 82


@dataclass(frozen=True)
class Panel:
    """A diagnostic ready for the page.

    Attributes:
        kind: how it is laid out.
        title: heading.
        caption: what is seen.
        tiles: its pictures.
        group: so many successive pictures stay side by side.
        rows: (name, value) of a table.
    """

    kind: Literal["plots", "strip", "table"]
    title: str
    caption: str = ""
    tiles: Sequence[Tile] = ()
    group: int = 1
    rows: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Projection:
    """A point cloud in the plane.

    Attributes:
        caption: name of the projection and how to read it.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        points: (points, 2) places by group.
    """

    caption: str
    x_label: str
    y_label: str
    points: Mapping[str, npt.NDArray[np.floating]]


def panels(diagnostics: Iterable[Diagnostic], *, budget: int = STRIP_BUDGET_BYTES) -> list[Panel]:
    """The diagnostics in their order; those with nothing to show are left out.

    Args:
        diagnostics: any number.
        budget: bytes of the pictures of all strips together, as they stand in the page.
    """
    result = []
    for diagnostic in diagnostics:
        if isinstance(diagnostic, FactGroup):
            result.append(Panel("table", diagnostic.title, rows=diagnostic.rows))
        elif isinstance(diagnostic, LineChart):
            result.extend(_chart(diagnostic))
        elif isinstance(diagnostic, PointCloud):
            result.extend(_cloud(diagnostic))
        else:
            shown = list(_strip(diagnostic, budget))
            budget -= sum(len(tile.source) for panel in shown for tile in panel.tiles)
            result.extend(shown)
    return result


def chart_of_metrics(
    rows: Sequence[Mapping[str, object]],
    names: Sequence[str] | Mapping[str, str],
    *,
    title: str,
    caption: str,
    y_label: str,
) -> LineChart:
    """Numbers of ``metrics.jsonl`` other than losses, as lines over the step or the epoch.

    Args:
        rows: rows of ``metrics.jsonl``; those without any of the numbers, such as those of another stage, are left out.
        names: the numbers to draw; a mapping gives each line another name. Those in no row are left out.
        title: heading.
        caption: what is seen, in a sentence or two.
        y_label: name of the vertical axis, with its unit.

    Example:
        >>> rows = [{"epoch": 0, "radius": 2.0, "loss": 1.0}, {"epoch": 1, "radius": 1.5}]
        >>> dict(chart_of_metrics(rows, ["radius"], title="Radius", caption="", y_label="distance").lines)
        {'radius': [2.0, 1.5]}
    """
    labels = names if isinstance(names, Mapping) else {name: name for name in names}
    used = [row for row in rows if any(np.isfinite(figures.as_number(row.get(name))) for name in labels)]
    x_label, x = figures.abscissa(used)
    lines = {label: [figures.as_number(row.get(name)) for row in used] for name, label in labels.items()}
    lines = {label: values for label, values in lines.items() if np.isfinite(values).any()}
    return LineChart(title, caption, x.tolist(), lines, y_label, x_label)


def _chart(chart: LineChart) -> Iterator[Panel]:
    source = figures.line_chart(chart)
    if source is None:
        return
    ends = []
    for name, values in chart.lines.items():
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            ends.append(f"{name} from {finite[0]:.4g} to {finite[-1]:.4g}")
    alt = f"{chart.title}, {chart.y_label} over {chart.x_label}: {', '.join(ends)}."
    yield Panel("plots", chart.title, chart.caption, [Tile(source, "", alt)])


def _cloud(cloud: PointCloud) -> Iterator[Panel]:
    drawn = projections(cloud)
    if not drawn:
        return
    counts = {name: len(points) for name, points in drawn[0].points.items()}
    tiles = []
    for one in drawn:
        groups = ", ".join(f"{count} {name}" for name, count in counts.items())
        source = figures.scatter(one.points, one.x_label, one.y_label)
        tiles.append(Tile(source, one.caption, f"{cloud.title}, {one.caption.split(':')[0]}: {groups}."))
    total, shown = sum(map(len, cloud.groups.values())), sum(counts.values())
    part = f" {shown:,} of {total:,} points are drawn." if shown < total else ""
    yield Panel("plots", cloud.title, cloud.caption + part, tiles)


def projections(cloud: PointCloud) -> list[Projection]:
    """A point cloud in two planes: PCA, and t-SNE of its first 50 components.

    The same points give the same places, whatever the number of threads, because both run on one.

    Args:
        cloud: groups of features; rows that are not finite are left out, and of many a fixed random part is taken.

    Returns:
        PCA and t-SNE; PCA alone where fewer than five points are left, and nothing where fewer than two differ.

    Raises:
        ValueError: the groups differ in width.
    """
    # Most reports show no cloud, and both packages take more than a second to import.
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    groups = _thinned(cloud)
    points = np.concatenate(list(groups.values())) if groups else np.empty((0, 0))
    if not points.size or not np.ptp(points, axis=0).any():
        return []
    with threadpool_limits(limits=1):
        pca = PCA(min(_COMPONENTS, *points.shape), random_state=0)
        components = pca.fit_transform(points)
        shares = [*pca.explained_variance_ratio_, 0.0][:2]
        x_label, y_label = (
            f"component {index + 1} ({100 * share:.0f} % of variance)" for index, share in enumerate(shares)
        )
        plane = np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
        caption = "PCA: the plane in which the points spread most"
        result = [Projection(caption, x_label, y_label, _by_group(groups, plane))]
        if len(points) >= _LEAST_FOR_NEIGHBOURS:
            caption = "t-SNE: who is whose neighbour; distances between clusters mean little"
            places = _by_group(groups, _neighbour_plane(components, plane))
            result.append(Projection(caption, "t-SNE 1", "t-SNE 2", places))
    return result


def _neighbour_plane(components: npt.NDArray[np.floating], plane: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """t-SNE from the PCA plane on, which it refines; with the start given it draws no random numbers."""
    from sklearn.manifold import TSNE

    start = (plane / plane[:, 0].std() * 1e-4).astype(np.float32)
    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    return TSNE(init=start, perplexity=perplexity, angle=_ANGLE, random_state=0).fit_transform(components)


def _thinned(cloud: PointCloud) -> dict[str, npt.NDArray[np.floating]]:
    """Finite rows by group in float64, at most so many that the whole takes a few seconds; empty groups are left out.

    Rows are drawn at random, because evenly spaced ones may follow the columns of the feature maps they stand for.
    """
    widths = {values.shape[1] for values in cloud.groups.values()}
    if len(widths) > 1:
        raise ValueError(f"{cloud.title}: the groups have features of different widths, {sorted(widths)}")
    limit = min(POINTS_PER_GROUP, POINTS // max(len(cloud.groups), 1))
    result: dict[str, npt.NDArray[np.floating]] = {}
    for index, (name, values) in enumerate(cloud.groups.items()):
        finite = np.flatnonzero(np.isfinite(values).all(axis=1))
        if len(finite) > limit:
            finite = np.sort(generator(0, "points of a report", index).choice(finite, limit, replace=False))
        if len(finite):
            result[name] = values[finite].astype(np.float64)
    return result


def _by_group(
    groups: Mapping[str, npt.NDArray[np.floating]], places: npt.NDArray[np.floating]
) -> dict[str, npt.NDArray[np.floating]]:
    stops = np.cumsum([len(points) for points in groups.values()])[:-1]
    return dict(zip(groups, np.split(places, stops), strict=True))


def _strip(strip: ImageStrip, budget: int) -> Iterator[Panel]:
    """The strip as far as the budget allows, in whole groups."""
    tiles: list[Tile] = []
    total, group = len(strip.pictures), max(strip.group, 1)
    for first in range(0, total, group):
        members = strip.pictures[first : first + group]
        made = [Tile(_data_uri(picture), label, f"{label}: {strip.title}") for label, picture in members]
        budget -= sum(len(tile.source) for tile in made)
        if budget < 0:
            break
        tiles.extend(made)
    if tiles:
        part = f" {len(tiles)} of {total} pictures are shown." if len(tiles) < total else ""
        yield Panel("strip", strip.title, strip.caption + part, tiles, group)


def _data_uri(picture: npt.NDArray[np.uint8]) -> str:
    """A thumbnail; grey ones as PNG, because masks have edges that JPEG would fray, and tiny ones enlarged."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    factor = THUMBNAIL // (2 * max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    kind = "PNG" if picture.ndim == 2 else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **({"quality": _QUALITY} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
