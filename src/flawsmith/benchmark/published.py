"""What the papers print: their figures as data, with source and protocol.

The tables lie in ``published/``, a file a paper. Every paper measures in its own way, so a figure comes with the notes
of its protocol and is no target for figures of another one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flawsmith.metrics.results import LABELS, LOCO_LABELS
from flawsmith.runtime.errors import FlawsmithError

DATASETS: Mapping[str, str] = {
    "mvtec_ad": "MVTec AD",
    "mvtec_loco": "MVTec LOCO AD",
    "mvtec_3d": "MVTec 3D-AD, photographs alone",
    "visa": "VisA",
    "mpdd": "MPDD",
    "wfdd": "WFDD",
    "btad": "BeanTech AD",
    "mad_man": "MAD-man",
    "mad_sys": "MAD-sys",
    "four_sets": "mean of MVTec AD, VisA, MPDD and WFDD",
    "two_weak_sets": "mean of MAD-man and MAD-sys",
}
"""The data sets, and the means over several of them, with their names in words."""

Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Kind = Literal["result", "ablation", "released"]
Metric = Literal[
    "image_auroc",
    "image_auroc_logical",
    "image_auroc_structural",
    "image_auroc_loco_mean",
    "image_ap",
    "pixel_auroc",
    "pixel_ap",
    "aupro",
    "spro_loco_mean",
]
Quantity = Literal[
    "images_per_second",
    "ms_per_image",
    "training_hours",
    "training_ms_per_image",
    "parameters_millions",
    "gflops",
    "memory_megabytes",
]


class Frozen(BaseModel):
    """Data that nobody changes, with no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProtocolNote(Frozen):
    """One way in which a paper measures, and what it touches."""

    text: str = Field(description="The note, in sentences.")
    metrics: tuple[Metric, ...] = Field(default=(), description="The figures it touches; all if empty.")
    datasets: tuple[str, ...] = Field(default=(), description="The data sets it touches; all if empty.")

    def touches(self, *, dataset: str | None = None, metrics: Collection[str] = ()) -> bool:
        """Whether it says something of this data set and one of these figures; None and empty stand for any."""
        of_dataset = dataset is None or not self.datasets or dataset in self.datasets
        return of_dataset and (not metrics or not self.metrics or not set(metrics).isdisjoint(self.metrics))


class PublishedRow(Frozen):
    """A method in a table."""

    method: str = Field(description="As the paper names it.")
    variant: str | None = Field(default=None, description="The variant or the setting of the ablation.")
    notes: tuple[str, ...] = Field(default=(), description="What to bear in mind about this row.")
    figures: dict[Metric, tuple[Share | None, ...]] = Field(
        description="By metric, a value in [0, 1] for each column of the table, None where the paper has none."
    )


class PublishedTable(Frozen):
    """A table of a paper, or what its text says in figures."""

    source: str = Field(description="Number of the table, or where else the figures stand.")
    section: str | None = Field(default=None, description="Section of the paper.")
    subject: str = Field(description="What is compared.")
    kind: Kind = Field(description="The paper's results, its ablations, or what its released code or weights give.")
    notes: tuple[str, ...] = Field(default=(), description="What to bear in mind about the table.")
    columns: tuple[Annotated[str, Field(pattern=r"^\w+/\w+$")], ...] = Field(
        description="Data set and category of each column, as in visa/candle or visa/mean."
    )
    rows: tuple[PublishedRow, ...] = Field(description="The methods.")

    @model_validator(mode="after")
    def _is_rectangular(self) -> PublishedTable:
        for column in self.columns:
            if column.split("/")[0] not in DATASETS:
                raise ValueError(f"no data set is called {column.split('/')[0]!r}")
        for row in self.rows:
            for metric, values in row.figures.items():
                if len(values) != len(self.columns):
                    raise ValueError(
                        f"{row.method}, {metric}: {len(values)} values for {len(self.columns)} columns of {self.source}"
                    )
        return self


class PublishedCost(Frozen):
    """A speed, a size or a duration that a paper prints."""

    method: str = Field(description="As the paper names it.")
    variant: str | None = Field(default=None, description="The variant.")
    quantity: Quantity = Field(description="What is measured, with its unit.")
    value: float = Field(gt=0, description="In the unit of the quantity.")
    device: str | None = Field(default=None, description="The processor it was measured on.")
    batch_size: int | None = Field(default=None, gt=0, description="Images a batch, if the paper says so.")
    source: str = Field(description="Number of the table, or where else it stands.")
    section: str | None = Field(default=None, description="Section of the paper.")
    notes: tuple[str, ...] = Field(default=(), description="What to bear in mind.")


class PublishedPaper(Frozen):
    """A paper with all of its figures."""

    name: str = Field(description="Short name, that of its file.")
    title: str = Field(description="Its title.")
    reference: str = Field(description="Authors, method, place and year.")
    method: str = Field(description="The method that it proposes.")
    comparators: str = Field(description="How its figures of other methods came about.")
    protocol: tuple[ProtocolNote, ...] = Field(description="How it measures.")
    remarks: tuple[str, ...] = Field(description="Where it contradicts itself or another paper.")
    tables: tuple[PublishedTable, ...] = Field(description="Its tables.")
    costs: tuple[PublishedCost, ...] = Field(description="Its speeds and sizes.")


def parse_paper(text: str, file: str) -> PublishedPaper:
    """One paper's file.

    Args:
        text: its content.
        file: its name, for messages.

    Raises:
        FlawsmithError: no YAML, an unknown key, or a value that is missing or out of range; the line says where.
    """
    try:
        return PublishedPaper.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its head"
        raise FlawsmithError(f"{file}, {where}: {first['msg']}; correct it or install flawsmith anew") from error
    except yaml.YAMLError as error:
        raise FlawsmithError(f"{file} is no intact YAML; correct it or install flawsmith anew") from error


PAPERS = ("glass", "pbas", "aand", "slsg")
MEAN = "mean"
"""The category under which the mean over a data set's categories stands."""

_DATASET_SPELLINGS = {
    "mvtec": "mvtec_ad",
    "mvtecanomalydetection": "mvtec_ad",
    "loco": "mvtec_loco",
    "mvteclocoad": "mvtec_loco",
    "mvteclocoanomalydetection": "mvtec_loco",
    "mvtec3dad": "mvtec_3d",
    "mvtec3drgb": "mvtec_3d",
    "mvtec3danomalydetection": "mvtec_3d",
    "beantech": "btad",
    "beantechad": "btad",
    "btech": "btad",
}
_METHOD_SPELLINGS = {
    "rd": "rd4ad",
    "reversedistillation": "rd4ad",
    "ststfpm": "stfpm",
    "stuninformedstudents": "uninformedstudents",
    "patchsvdd": "psvdd",
}
_METRIC_SPELLINGS = {
    "iauroc": "image_auroc",
    "iauc": "image_auroc",
    "iap": "image_ap",
    "pauroc": "pixel_auroc",
    "pauc": "pixel_auroc",
    "pap": "pixel_ap",
    "pro": "aupro",
    "ppro": "aupro",
    "spro005": "spro_loco_mean",
}
_METRICS = tuple(LABELS | LOCO_LABELS)


class PublishedFigure(Frozen):
    """One value of one table."""

    dataset: str = Field(description="Key of the data set, as in DATASETS.")
    category: str = Field(description="The category, or mean, texture_mean or object_mean.")
    method: str = Field(description="As the paper names it.")
    variant: str | None = Field(description="The variant or the setting of the ablation.")
    metric: Metric = Field(description="Name of the figure, that of an evaluation.")
    value: Share = Field(description="In [0, 1].")
    kind: Kind = Field(description="A result, an ablation, or from released code or weights.")
    paper: str = Field(description="Short name of the paper that prints it.")
    reference: str = Field(description="The paper in words.")
    source: str = Field(description="Number of the table.")
    section: str | None = Field(description="Section of the paper.")
    reported_by: str | None = Field(description="The paper, where the method is not its own; None where it is.")
    notes: tuple[str, ...] = Field(description="What to bear in mind about this value.")
    protocol: tuple[str, ...] = Field(description="How the paper measures it.")

    @property
    def label(self) -> str:
        """Head of a column: the variant if that names the method, else both."""
        if self.variant is None or self.variant.startswith(self.method):
            return self.variant or self.method
        return f"{self.method}, {self.variant}"


def published(
    dataset: str, category: str | None, method: str, metric: str, *, kind: Kind | None = "result"
) -> list[PublishedFigure]:
    """What the papers print, in the order of PAPERS and of their tables; empty where none has such a figure.

    Args:
        dataset: a data set in any usual spelling, such as mvtec_ad or "MVTec AD".
        category: one of its categories, or None for the mean over all.
        method: a method in any usual spelling; one that no paper names has no figures.
        metric: name of a figure of an evaluation, or the papers' short form such as P-AUROC.
        kind: results by default; None for all.

    Raises:
        FlawsmithError: an unknown data set or metric, or a category that the data set does not have.

    Example:
        >>> [(figure.label, figure.value) for figure in published("VisA", None, "glass", "PRO")]
        [('GLASS-m', 0.925), ('GLASS-h', 0.908), ('GLASS-j', 0.928)]
    """
    key = _dataset_key(dataset)
    place = (key, _category_key(key, category), method_key(method), _metric_key(metric))
    return [figure for figure in _index().get(place, ()) if kind in (None, figure.kind)]


def published_costs(method: str, quantity: Quantity | None = None) -> list[tuple[PublishedPaper, PublishedCost]]:
    """Speeds, sizes and durations of a method with the paper that prints each; empty where none does."""
    return [
        (paper, cost)
        for paper in published_papers()
        for cost in paper.costs
        if method_key(cost.method) == method_key(method) and quantity in (None, cost.quantity)
    ]


def protocol_notes(method: str, *, dataset: str | None = None, metrics: Collection[str] = ()) -> list[str]:
    """Sentences to print under a table that shows a method's published figures.

    Args:
        method: a method in any usual spelling. Of a paper's own method the notes say how the paper measures, of another
            one who reports it and where the figures are from. A method that no paper names has none.
        dataset: leaves out what does not touch this data set.
        metrics: leaves out what touches none of these figures.

    Raises:
        FlawsmithError: an unknown data set or metric.

    Example:
        >>> protocol_notes("SimpleNet", dataset="mpdd")[0].split(":")[0]
        'SimpleNet as reported by the GLASS paper'
    """
    key = None if dataset is None else _dataset_key(dataset)
    names = {_metric_key(metric) for metric in metrics}
    wanted = method_key(method)
    notes: list[str] = []
    for paper in published_papers():
        if method_key(paper.method) == wanted:
            notes += (note.text for note in paper.protocol if note.touches(dataset=key, metrics=names))
            continue
        named = {
            figure.method: None
            for figure in all_figures()
            if figure.paper == paper.name
            and method_key(figure.method) == wanted
            and key in (None, figure.dataset)
            and (not names or figure.metric in names)
        }
        notes += (_reported(name, paper) for name in named)
    return notes


def dataset_key(name: str) -> str | None:
    """The key of a data set in DATASETS, None for one that no paper has figures of.

    Example:
        >>> dataset_key("MVTec AD"), dataset_key("MVTec LOCO"), dataset_key("screws")
        ('mvtec_ad', 'mvtec_loco', None)
    """
    spelled = {_plain(key): key for key in DATASETS} | _DATASET_SPELLINGS
    return spelled.get(_plain(name))


def method_key(name: str) -> str:
    """One spelling for all of a method's, for comparison.

    Example:
        >>> method_key("RD"), method_key("RD++"), method_key("Patch-Core")
        ('rd4ad', 'rd++', 'patchcore')
    """
    return _METHOD_SPELLINGS.get(_plain(name), _plain(name))


@cache
def published_papers() -> tuple[PublishedPaper, ...]:
    """All papers, read once.

    Raises:
        FlawsmithError: a damaged file.
    """
    folder = files("flawsmith.benchmark") / "published"
    return tuple(parse_paper((folder / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml") for name in PAPERS)


@cache
def all_figures() -> tuple[PublishedFigure, ...]:
    """Every value of every table, in the order of PAPERS and of their tables."""
    return tuple(figure for paper in published_papers() for figure in _figures(paper))


def _figures(paper: PublishedPaper) -> Iterator[PublishedFigure]:
    """A paper's values, one by one."""
    for table in paper.tables:
        for row in table.rows:
            own = row.method == paper.method
            for metric, values in row.figures.items():
                for column, value in zip(table.columns, values, strict=True):
                    if value is None:
                        continue
                    dataset, category = column.split("/")
                    measured = (n.text for n in paper.protocol if n.touches(dataset=dataset, metrics=(metric,)))
                    yield PublishedFigure(
                        dataset=dataset,
                        category=category,
                        method=row.method,
                        variant=row.variant,
                        metric=metric,
                        value=value,
                        kind=table.kind,
                        paper=paper.name,
                        reference=paper.reference,
                        source=table.source,
                        section=table.section,
                        reported_by=None if own else paper.name,
                        notes=table.notes + row.notes,
                        protocol=tuple(measured) if own else (_reported(row.method, paper),),
                    )


def _reported(method: str, paper: PublishedPaper) -> str:
    """Where a figure of another paper's method is from, in a sentence."""
    return f"{method} as reported by the {paper.method} paper: {paper.comparators}."


@cache
def _index() -> Mapping[tuple[str, str, str, str], Sequence[PublishedFigure]]:
    """The figures by data set, category, method and metric, each by its key."""
    index: dict[tuple[str, str, str, str], list[PublishedFigure]] = {}
    for figure in all_figures():
        place = (figure.dataset, figure.category, method_key(figure.method), figure.metric)
        index.setdefault(place, []).append(figure)
    return index


@cache
def _categories() -> Mapping[str, Mapping[str, str]]:
    """By data set its categories, by their plain names."""
    found: dict[str, dict[str, str]] = {}
    for figure in all_figures():
        found.setdefault(figure.dataset, {})[_plain(figure.category)] = figure.category
    return found


def _category_key(dataset: str, category: str | None) -> str:
    known = _categories()[dataset]
    if category is None:
        return MEAN
    # Of some data sets only the mean is published, so their categories are not known.
    if _plain(category) not in known and len(known) > 1:
        raise FlawsmithError(_unknown(f"category of {DATASETS[dataset]}", category, known.values()))
    return known.get(_plain(category), category)


def _dataset_key(name: str) -> str:
    key = dataset_key(name)
    if key is None:
        raise FlawsmithError(_unknown("data set", name, DATASETS))
    return key


def _metric_key(name: str) -> str:
    spelled = {_plain(metric): metric for metric in _METRICS} | _METRIC_SPELLINGS
    if _plain(name) not in spelled:
        raise FlawsmithError(_unknown("figure", name, _METRICS))
    return spelled[_plain(name)]


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The line for a name that is not known, with the closest that is."""
    names = list(known)
    close = get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {what} is called {name!r}: {hint}known are {', '.join(names)}"


def _plain(name: str) -> str:
    """A name without case and punctuation; a plus stays, for RD and RD++ are two methods."""
    return re.sub(r"[^a-z0-9+]", "", name.casefold())
