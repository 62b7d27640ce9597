"""A qualitative grid: images with their ground truth and the maps of several models (GLASS, Figs. 6 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from flawsmith.data.layouts import load_categories
from flawsmith.data.samples import Dataset, Sample
from flawsmith.figures.sources import NamedModel, told_apart
from flawsmith.figures.style import COLUMN, PAGE, PaperFigure, wrapped
from flawsmith.pipeline.masks import read_mask
from flawsmith.report.style import PRINT, plot_style, short_label
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.runtime.inspector import Inspector, Unreadable
from flawsmith.runtime.overlay import COLOURS

Pick = Literal["worst", "typical", "best"]
PICKS: tuple[Pick, ...] = ("worst", "typical", "best")
THUMBNAIL = 320
_CELL = 1.0
"""Side of a picture in inches where the figure has room for it."""

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ModelView:
    """What one model says of one image."""

    model: str
    overlay: Picture
    score: float
    limit: float
    verdict: str


@dataclass(frozen=True, eq=False)
class GridRow:
    """An image of the grid.

    Attributes:
        category: name of the category.
        pick: why it was chosen.
        sample: the image and its ground truth.
        image: thumbnail of the image.
        truth: thumbnail of its mask, white where it is flawed; None where it was never annotated.
        views: what the models say, in their order.
    """

    category: str
    pick: Pick
    sample: Sample
    image: Picture
    truth: Picture | None
    views: tuple[ModelView, ...]


def datasets(folders: Sequence[Path], layout: str | None = None) -> list[Dataset]:
    """The categories in folders: each itself, or those of its sub-folders.

    Raises:
        FlawsmithError: a folder holds none.
    """
    return [dataset for folder in folders for dataset in load_categories(folder, layout)]


def grid_rows(
    models: Sequence[NamedModel],
    data: Sequence[Dataset],
    *,
    n: int = 2,
    picks: Sequence[Pick] = PICKS,
    on_step: Callable[[], object] = lambda: None,
) -> Iterator[GridRow]:
    """Choose flawed images of every category by the score of its first model, and let all of its models look at them.

    Args:
        models: of one or several categories.
        data: their labelled data; a single category is taken for every model.
        picks: ``worst`` are those with the lowest scores, the misses first among them; ``typical`` those around the
            median; ``best`` those with the highest.

    Raises:
        FlawsmithError: a model has no data, the data has no flawed test images, or an image cannot be read.
    """
    for dataset in data:
        of_category = [model for model in models if len(data) == 1 or model.category == dataset.category]
        if not of_category:
            continue
        of_category = told_apart(of_category, lambda model: model.name)
        samples = dataset.test_flawed
        if not samples:
            raise FlawsmithError(
                f"{dataset.root} has no flawed test images to show: put them into test/<defect>, and masks into "
                "ground_truth/<defect>"
            )
        inspectors = [Inspector.load(model.bundle) for model in of_category]
        scores = _scores(inspectors[0], samples, on_step)
        for pick, number in chosen(scores, n=n, picks=picks):
            yield _row(dataset.category, pick, samples[number], of_category, inspectors)
    lonely = [
        model for model in models if len(data) > 1 and model.category not in {dataset.category for dataset in data}
    ]
    if lonely:
        raise FlawsmithError(f"{lonely[0].path}: learned {lonely[0].category}, which --data does not hold; add it")


def chosen(scores: npt.NDArray[np.floating], *, n: int, picks: Sequence[Pick]) -> list[tuple[Pick, int]]:
    """Places of the worst, typical and best scores, none twice: the worst have the first choice.

    Example:
        >>> chosen(np.array([3.0, 1.0, 2.0]), n=1, picks=("worst", "best"))
        [('worst', 1), ('best', 0)]
    """
    order = list(np.argsort(scores, kind="stable"))
    middle = (len(order) - 1) / 2
    orders: dict[Pick, list[int]] = {
        "worst": order,
        "typical": sorted(order, key=lambda place: (abs(order.index(place) - middle), order.index(place))),
        "best": order[::-1],
    }
    taken: dict[int, Pick] = {}
    for pick in sorted(picks, key=["worst", "best", "typical"].index):
        free = [place for place in orders[pick] if place not in taken]
        taken |= dict.fromkeys(free[:n], pick)
    return [(pick, int(place)) for pick in PICKS for place in order if taken.get(place) == pick]


def _scores(inspector: Inspector, samples: Sequence[Sample], on_step: Callable[[], object]) -> npt.NDArray[np.floating]:
    scores = []
    for result in inspector.stream([sample.image for sample in samples]):
        if isinstance(result, Unreadable):
            raise FlawsmithError(f"{result.error}; or remove it from the test split")
        scores.append(result.score)
        on_step()
    return np.array(scores)


def _row(
    category: str, pick: Pick, sample: Sample, models: Sequence[NamedModel], inspectors: Sequence[Inspector]
) -> GridRow:
    image, mask = decode(sample.image), read_mask(sample)
    views = []
    for model, inspector in zip(models, inspectors, strict=True):
        result = inspector.inspect(image)
        overlay = _thumbnail(np.asarray(result.overlay(image)))
        views.append(ModelView(model.name, overlay, result.score, result.decision.limit, result.verdict))
    shown = as_8_bit(image, inspectors[0].spec.geometry.value_range)
    truth = None if mask is None else _thumbnail_of_mask(mask)
    return GridRow(category, pick, sample, _thumbnail(shown), truth, tuple(views))


def _thumbnail(picture: Picture) -> Picture:
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _thumbnail_of_mask(mask: npt.NDArray[np.bool_]) -> Picture:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    # A box filter keeps a flaw of a few pixels that sampling would lose.
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=None)
    return np.where(np.asarray(image) > 0, 255, 0).astype(np.uint8)


def qualitative_grid(rows: Sequence[GridRow]) -> PaperFigure:
    """Images, ground truth and maps in a grid: a row an image, a column a model, heat on the scale of its limit."""
    if not rows:
        raise FlawsmithError("there is no image to show: the models' categories are not among --data")
    names = list(dict.fromkeys(view.model for row in rows for view in row.views))
    categories = list(dict.fromkeys(row.category for row in rows))
    columns = 2 + len(names)
    width = min(PAGE, max(COLUMN, (columns + 0.25) * _CELL))
    cell = width / (columns + 0.25)
    aspects = [row.image.shape[0] / row.image.shape[1] for row in rows]
    with plot_style(PRINT):
        height = 0.75 + sum(min(1.6, aspect) * cell + 0.14 for aspect in aspects)
        layout = ConstrainedLayoutEngine(w_pad=0.015, h_pad=0.02, hspace=0.0, wspace=0.0)
        figure = Figure(figsize=(width, height), layout=layout)
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=[min(1.6, a) for a in aspects])
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.grid(visible=False)
        longest = max(10, int(cell / 0.062))
        for axis, head in zip(axes[0], ["image", "ground truth", *names], strict=True):
            axis.set_title(wrapped(head, longest, rows=3), pad=2, fontsize=7)
        for row, across in zip(rows, axes, strict=True):
            _draw_row(across, row, names, several=len(categories) > 1)
        _heat_scale(figure, axes)
    return PaperFigure(figure, [_record(row, view) for row in rows for view in row.views])


def _draw_row(axes: Any, row: GridRow, names: Sequence[str], *, several: bool) -> None:
    axes[0].imshow(row.image)
    label = f"{row.category}\n{row.sample.defect}" if several else row.sample.defect
    axes[0].set_ylabel("\n".join(short_label(line, 18) for line in label.split("\n")), fontsize=6.5, labelpad=2)
    axes[0].set_xlabel(row.pick, fontsize=6, labelpad=1)
    if row.truth is None:
        axes[1].text(0.5, 0.5, "not annotated", ha="center", va="center", fontsize=6, transform=axes[1].transAxes)
    else:
        axes[1].imshow(row.truth, cmap="gray", vmin=0, vmax=255)
    for axis in axes:  # an empty place is as large as a picture, or its head would hang higher
        axis.set_box_aspect(row.image.shape[0] / row.image.shape[1])
    for view in row.views:
        axis = axes[2 + names.index(view.model)]
        axis.imshow(view.overlay)
        axis.set_xlabel(f"{view.score:.3g} ({view.verdict})", fontsize=6, labelpad=1)


def _heat_scale(figure: Figure, axes: Any) -> None:
    """The colours of the maps: from half the limit on, where they begin to show, to twice the limit."""
    colours = ScalarMappable(Normalize(0.5, 2.0), ListedColormap(COLOURS / 255.0))
    bar = figure.colorbar(colours, ax=axes, location="bottom", shrink=0.5, aspect=30, pad=0.02)
    bar.set_ticks([0.5, 1.0, 1.5, 2.0])
    bar.ax.tick_params(labelsize=6, length=2)
    bar.set_label("map in units of its limit; outlined where above it", fontsize=6.5)
    bar.outline.set_visible(False)


def _record(row: GridRow, view: ModelView) -> dict[str, Any]:
    return {
        "category": row.category,
        "pick": row.pick,
        "image": row.sample.image.name,
        "defect": row.sample.defect,
        "model": view.model,
        "score": repr(view.score),
        "limit": repr(view.limit),
        "verdict": view.verdict,
    }
