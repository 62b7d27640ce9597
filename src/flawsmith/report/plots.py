"""The report's plots, as SVG in data URIs: no date, fixed identifiers, so the same data give the same
bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter
from PIL import Image
from scipy import ndimage

from flawsmith.data.seeding import generator
from flawsmith.metrics.ranking import Curve
from flawsmith.models.diagnostics import FeatureCloud, LineChart, Pictures
from flawsmith.report.data import Diagnostic, Example, ExampleKind, FactGroup, Picture, ScoreKind
from flawsmith.report.style import (
    EDGE,
    FLAWED,
    GOOD,
    HELD_OUT,
    INK,
    MARKERS,
    PALETTE,
    SCREEN,
    SYNTHETIC,
    plot_style,
    short_label,
)

COLOURS: dict[ScoreKind, str] = {
    "good": GOOD,
    "flawed": FLAWED,
    "held_out": HELD_OUT,
    "learned": HELD_OUT,
    "forged": SYNTHETIC,
}
NAMES: dict[ScoreKind, str] = {
    "good": "good",
    "flawed": "flawed",
    "held_out": "held-out good",
    "learned": "good, learned from",
    "forged": "synthetic flaws",
}
_PANELS: tuple[tuple[str, tuple[ScoreKind, ...]], ...] = (
    ("test images", ("good", "flawed")),
    ("calibration", ("held_out", "learned", "forged")),
)
_Line = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]
_MAX_POINTS = 600


def _svg_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_address(buffer.getvalue(), "svg+xml")


def data_address(content: bytes, kind: str = "jpeg") -> str:
    """A picture file as a ``data:`` address.

    Example:
        >>> data_address(b"...", "png")
        'data:image/png;base64,Li4u'
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Histogram:
    """A histogram of scores, and where a score lies in the picture.

    Attributes:
        source: SVG data URI.
        places: left and right end of the axis as shares of the picture's width.
        scores: the scores at these ends.
    """

    source: str
    places: tuple[float, float]
    scores: tuple[float, float]


def score_histogram(
    groups: Mapping[ScoreKind, npt.NDArray[np.floating]],
    limit: float | None,
    review_limit: float | None,
    name: str = "image score",
) -> Histogram | None:
    """Histogram of scores: a panel for test images, one for the calibration, limits drawn in both.

    Args:
        groups: scores by kind; empty groups and infinite scores are left out.
        limit: reject limit on the score.
        review_limit: review limit on the score.
        name: of the score.

    Returns:
        None without a finite score.
    """
    finite: dict[ScoreKind, npt.NDArray[np.floating]] = {
        kind: values
        for kind, scores in groups.items()
        if len(values := np.asarray(scores, dtype=float)[np.isfinite(scores)])
    }
    panels = [(title, kinds) for title, kinds in _PANELS if any(kind in finite for kind in kinds)]
    if not panels:
        return None
    marks = [value for value in (limit, review_limit) if value is not None and np.isfinite(value)]
    everything = np.concatenate([*finite.values(), np.asarray(marks, dtype=float)])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, 43)
    with plot_style(SCREEN):
        figure = Figure(figsize=(6.2, 0.7 + 1.75 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, kinds) in zip(axes, panels, strict=True):
            for kind in (kind for kind in kinds if kind in finite):
                _bars(axis, finite[kind], kind, edges)
            _limit_lines(axis, limit, review_limit)
            axis.set_ylabel("share of group")
            axis.grid(visible=False, axis="x")
            _legend_above(axis, title)
        axes[-1].set_xlabel(name)
        source = _svg_uri(figure)
        box, ends = axes[-1].get_position(), axes[-1].get_xlim()
        return Histogram(source, (round(box.x0, 5), round(box.x1, 5)), (float(ends[0]), float(ends[1])))


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
    axis.set_title(title, loc="left", fontweight="bold")
    columns = 2 if title else 3
    place: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
    axis.legend(**place, ncols=columns, handlelength=1.6, markerscale=marker_scale)


def rate_curve(curve: Curve, x_label: str, y_label: str, *, shade_to: float | None = None) -> str:
    """One curve over false-positive rates, drawn in a square.

    Args:
        shade_to: shades the area up to this rate, which is the area the figure measures.

    Returns:
        An SVG data URI.
    """
    with plot_style(SCREEN):
        figure = Figure(figsize=(4.2, 3.5), layout="constrained")
        axis = figure.subplots()
        if shade_to is not None:
            axis.axvspan(0, shade_to, color=GOOD, alpha=0.07, linewidth=0)
        axis.plot([0, 1], [0, 1], color=EDGE, linewidth=1, linestyle=(0, (2, 3)))
        axis.plot(curve.x, curve.y, color=COLOURS["good"])
        axis.set(xlim=(-0.01, 1.0), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
        return _svg_uri(figure)


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
        f"{name} of {stage}" if len(of_column) > 1 else name: [
            as_number(row.get(name)) if row.get("stage") == stage else float("nan") for row in rows
        ]
        for name, of_column in stages.items()
        for stage in of_column
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
            thinned = known[np.unique(np.linspace(0, known.size - 1, _MAX_POINTS).astype(int))]
            lines[name] = (places[thinned], values[thinned])
    return lines


def _lines(lines: Mapping[str, _Line], x_label: str, y_label: str, scale: Literal["linear", "log", "from zero"]) -> str:
    with plot_style(SCREEN):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axis = figure.subplots()
        for index, (name, (x, values)) in enumerate(lines.items()):
            marker = "o" if len(values) == 1 else None
            axis.plot(x, values, color=PALETTE[index % len(PALETTE)], label=label_of(name), marker=marker)
        if scale == "log":
            axis.set_yscale("log")
            # The default formatters write mathematics, which the plot style shows as it is.
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        elif scale == "from zero":
            _start_at_zero(axis, np.concatenate([values for _, values in lines.values()]))
        axis.set(xlabel=label_of(x_label), ylabel=label_of(y_label))
        _legend_above(axis, "")
        return _svg_uri(figure)


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

    Returns:
        An SVG data URI.
    """
    with plot_style(SCREEN):
        figure = Figure(figsize=(4.6, 4.1), layout="constrained")
        axis = figure.subplots()
        for index, (name, places) in enumerate(points.items()):
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            style: Any = {"linestyle": "", "marker": marker, "markersize": 3.2, "markeredgewidth": 0.0}
            axis.plot(places[:, 0], places[:, 1], color=colour, alpha=0.55, label=label_of(name), **style)
        axis.margins(0.04)
        axis.set(xlabel=label_of(x_label), ylabel=label_of(y_label))
        _legend_above(axis, "", marker_scale=2.0)
        return _svg_uri(figure)


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


def label_of(name: str) -> str:
    """A recorded name as a label: underscores are spaces."""
    return short_label(name.replace("_", " "))


THUMBNAIL = 260
SIDES = (1024, 768, 512, 384, 256, 192)
"""Longest sides that a full-size picture may have; the largest that keeps within its bytes is taken."""
_QUALITY = 84
_DASH = 4


def galleries(examples: Iterable[Example]) -> dict[ExampleKind, list[Example]]:
    """The examples by kind: flaws with the lowest scores first, good images with the highest."""
    kinds: dict[ExampleKind, list[Example]] = {kind: [] for kind in get_args(ExampleKind)}
    for example in sorted(examples, key=lambda each: (each.score if each.flawed else -each.score, each.name)):
        kinds[example.kind].append(example)
    return kinds


def encoded(image: npt.NDArray[np.uint8], most_bytes: int) -> bytes:
    """A picture as JPEG, as large as its bytes allow, and never enlarged.

    Args:
        most_bytes: if no size keeps within them, the smallest is taken.
    """
    largest = Image.fromarray(np.ascontiguousarray(image))
    content = b""
    for side in SIDES:
        picture = largest.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
        content = buffer.getvalue()
        if len(content) <= most_bytes:
            break
    return content


def outlined(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The picture with a dashed line of black and white just outside the flawed regions.

    Args:
        image: (height, width, 3) RGB; left as it is.
        mask: (h, w) of any size, True where flawed.
    """
    height, width = image.shape[:2]
    # A box filter keeps a flaw of a few pixels that nearest-pixel sampling would lose.
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    inside = np.asarray(grey) > 0
    thickness = max(1, round(min(height, width) / 300))
    edge = ndimage.binary_dilation(inside, iterations=1 + thickness) & ~ndimage.binary_dilation(inside)
    rows, columns = np.nonzero(edge)
    marked = image.copy()
    marked[rows, columns] = np.where((rows // (_DASH * thickness) + columns // (_DASH * thickness)) % 2, 255, 0)[
        :, None
    ]
    return marked


POINTS = 1200  # of a cloud in all: t-SNE of them takes about four seconds on one core
POINTS_PER_GROUP = 500
STRIP_BUDGET_BYTES = 1_500_000
# t-SNE sees only distances between neighbours; fifty components keep them and halve its time.
_COMPONENTS = 50
_PERPLEXITY = 30.0
_ANGLE = 0.7
_LEAST_FOR_NEIGHBOURS = 5


@dataclass(frozen=True)
class Panel:
    """A diagnostic ready for the page.

    Attributes:
        kind: how it is laid out.
        group: so many successive pictures stay side by side.
        rows: (name, value) of a table.
    """

    kind: Literal["plots", "strip", "table"]
    title: str
    caption: str = ""
    tiles: Sequence[Picture] = ()
    group: int = 1
    rows: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Projection:
    """A point cloud in the plane.

    Attributes:
        caption: name of the projection and how to read it.
        points: (points, 2) places by group.
    """

    caption: str
    x_label: str
    y_label: str
    points: Mapping[str, npt.NDArray[np.floating]]


def panels(diagnostics: Iterable[Diagnostic], *, budget: int = STRIP_BUDGET_BYTES) -> list[Panel]:
    """The diagnostics in their order; those with nothing to show are left out.

    Args:
        budget: bytes of the pictures of all strips together, as they stand in the page.
    """
    result = []
    for diagnostic in diagnostics:
        if isinstance(diagnostic, FactGroup):
            result.append(Panel("table", diagnostic.title, rows=diagnostic.rows))
        elif isinstance(diagnostic, LineChart):
            result.extend(_chart(diagnostic))
        elif isinstance(diagnostic, FeatureCloud):
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

    Example:
        >>> rows = [{"epoch": 0, "radius": 2.0, "loss": 1.0}, {"epoch": 1, "radius": 1.5}]
        >>> dict(chart_of_metrics(rows, ["radius"], title="Radius", caption="", y_label="distance").lines)
        {'radius': [2.0, 1.5]}
    """
    labels = names if isinstance(names, Mapping) else {name: name for name in names}
    used = [row for row in rows if any(np.isfinite(as_number(row.get(name))) for name in labels)]
    x_label, x = abscissa(used)
    lines = {label: [as_number(row.get(name)) for row in used] for name, label in labels.items()}
    lines = {label: values for label, values in lines.items() if np.isfinite(values).any()}
    return LineChart(title, caption, x.tolist(), lines, y_label, x_label)


def _chart(chart: LineChart) -> Iterator[Panel]:
    source = line_chart(chart)
    if source is None:
        return
    ends = []
    for name, values in chart.lines.items():
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            ends.append(f"{name} from {finite[0]:.4g} to {finite[-1]:.4g}")
    alt = f"{chart.title}, {chart.y_label} over {chart.x_label}: {', '.join(ends)}."
    yield Panel("plots", chart.title, chart.caption, [Picture(source, "", alt)])


def _cloud(cloud: FeatureCloud) -> Iterator[Panel]:
    drawn = projections(cloud)
    if not drawn:
        return
    counts = {name: len(points) for name, points in drawn[0].points.items()}
    tiles = []
    for projection in drawn:
        groups = ", ".join(f"{count} {name}" for name, count in counts.items())
        source = scatter(projection.points, projection.x_label, projection.y_label)
        name = projection.caption.split(":")[0]
        tiles.append(Picture(source, projection.caption, f"{cloud.title}, {name}: {groups}."))
    total, shown = sum(map(len, cloud.groups.values())), sum(counts.values())
    part = f" {shown:,} of {total:,} points are drawn." if shown < total else ""
    yield Panel("plots", cloud.title, cloud.caption + part, tiles)


def projections(cloud: FeatureCloud) -> list[Projection]:
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


def _thinned(cloud: FeatureCloud) -> dict[str, npt.NDArray[np.floating]]:
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


def _strip(strip: Pictures, budget: int) -> Iterator[Panel]:
    """The strip as far as the budget allows, in whole groups."""
    tiles: list[Picture] = []
    total, group = len(strip.pictures), max(strip.group, 1)
    for first in range(0, total, group):
        members = strip.pictures[first : first + group]
        made = [Picture(_thumbnail_uri(picture), label, f"{label}: {strip.title}") for label, picture in members]
        budget -= sum(len(tile.source) for tile in made)
        if budget < 0:
            break
        tiles.extend(made)
    if tiles:
        part = f" {len(tiles)} of {total} pictures are shown." if len(tiles) < total else ""
        yield Panel("strip", strip.title, strip.caption + part, tiles, group)


def _thumbnail_uri(picture: npt.NDArray[np.uint8]) -> str:
    """A thumbnail; grey ones as PNG, because masks have edges that JPEG would fray, and tiny ones enlarged."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    factor = THUMBNAIL // (2 * max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    kind = "PNG" if picture.ndim == 2 else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **({"quality": _QUALITY} if kind == "JPEG" else {}))
    return data_address(buffer.getvalue(), kind.lower())
