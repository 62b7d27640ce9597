"""What the papers print, from ``published.csv``: a row a value, with its table and what has to be known of it.

Every paper measures in its own way, so a figure comes with the notes of its protocol and is no target for figures of
another one. Rows of the kinds ``result``, ``ablation`` and ``released`` (from released code or weights) are figures in
[0, 1], under the names of an evaluation's; ``cost`` rows are speeds, sizes and durations, their unit in the metric's
name. ``paper`` names the method and the reference of a paper, ``comparators`` says where its figures of other methods
are from, ``protocol`` how it measures (the data sets and metrics it concerns; none: all), ``remark`` where it
contradicts itself or another one.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from flawsmith.data.public_sets import known_dataset, plain

MEAN = "mean"
"""The category of a mean over a data set's categories; ``texture_mean`` and ``object_mean`` are those of MVTec AD."""
_METHOD_SPELLINGS = {
    "rd": "rd4ad",
    "reversedistillation": "rd4ad",
    "ststfpm": "stfpm",
    "stuninformedstudents": "uninformedstudents",
    "patchsvdd": "psvdd",
}


class PublishedFigure(NamedTuple):
    """A row of the file with a value; an empty text where the paper says nothing."""

    kind: str
    paper: str
    table: str
    section: str
    dataset: str
    category: str
    method: str
    variant: str
    metric: str
    value: float
    note: str

    @property
    def reference(self) -> str:
        """Authors and method of the paper that prints it."""
        return _by_paper("paper", "note")[self.paper].split(",")[0]

    @property
    def label(self) -> str:
        """Head of a column: the variant if that names the method, else both."""
        if not self.variant or self.variant.startswith(self.method):
            return self.variant or self.method
        return f"{self.method}, {self.variant}"


def published(
    dataset: str, category: str | None, method: str, metric: str, *, kind: str = "result"
) -> list[PublishedFigure]:
    """The figures that the papers print of a method; none where no paper has such a one.

    Args:
        dataset: a data set in any usual spelling, or ``four_sets`` and ``two_weak_sets`` for means over several.
        category: one of its categories, or None for the mean over all.
        method: a method in any usual spelling.
        metric: name of a figure of an evaluation.
        kind: ``result``, ``ablation`` or ``released``.

    Example:
        >>> [(figure.label, figure.value) for figure in published("VisA", None, "glass", "aupro")]
        [('GLASS-m', 0.925), ('GLASS-h', 0.908), ('GLASS-j', 0.928)]
    """
    place = (kind, known_dataset(dataset) or dataset, plain(category or MEAN), method_key(method), metric)
    return _figures_by_place().get(place, [])


def protocol_notes(method: str, *, dataset: str | None = None) -> list[str]:
    """Sentences to print under a table that shows a method's published figures.

    Of a paper's own method they say how it measures, of another one who reports it and where the figures are from.

    Args:
        method: a method in any usual spelling.
        dataset: leaves out what does not touch this data set.

    Example:
        >>> protocol_notes("SimpleNet", dataset="mpdd")[0].split(":")[0]
        'SimpleNet as reported by the GLASS paper'
    """
    key = None if dataset is None else known_dataset(dataset) or dataset
    notes: list[str] = []
    for paper, proposed in _by_paper("paper", "method").items():
        if method_key(proposed) == method_key(method):
            notes += [row["note"] for row in _rows() if row["paper"] == paper and _concerns(row, key)]
            continue
        names = dict.fromkeys(
            figure.method
            for figure in all_figures()
            if figure.paper == paper
            and figure.kind != "cost"
            and method_key(figure.method) == method_key(method)
            and key in (None, figure.dataset)
        )
        source = _by_paper("comparators", "note")[paper]
        notes += [f"{name} as reported by the {proposed} paper: {source}." for name in names]
    return notes


def method_key(name: str) -> str:
    """One spelling for all of a method's, for comparison; a plus stays, for RD and RD++ are two methods.

    Example:
        >>> method_key("RD"), method_key("RD++"), method_key("Patch-Core")
        ('rd4ad', 'rd++', 'patchcore')
    """
    key = plain(name) + "+" * name.count("+")
    return _METHOD_SPELLINGS.get(key, key)


@cache
def all_figures() -> tuple[PublishedFigure, ...]:
    """Every row with a value, in the order of the papers and of their tables."""
    return tuple(PublishedFigure(**row)._replace(value=float(row["value"])) for row in _rows() if row["value"])  # type: ignore[arg-type]


def _concerns(row: dict[str, str], dataset: str | None) -> bool:
    """Whether a row is a note on how a paper measures that concerns a data set; None: any."""
    return row["kind"] == "protocol" and (dataset is None or not row["dataset"] or dataset in row["dataset"].split())


@cache
def _rows() -> list[dict[str, str]]:
    text = (files("flawsmith.benchmark") / "published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _by_paper(kind: str, column: str) -> dict[str, str]:
    """By the short name of each paper, a column of its row of that kind."""
    return {row["paper"]: row[column] for row in _rows() if row["kind"] == kind}


@cache
def _figures_by_place() -> dict[tuple[str, str, str, str, str], list[PublishedFigure]]:
    """By kind, data set, category, method and metric, each by its key."""
    figures: dict[tuple[str, str, str, str, str], list[PublishedFigure]] = {}
    for figure in all_figures():
        place = (figure.kind, figure.dataset, plain(figure.category), method_key(figure.method), figure.metric)
        figures.setdefault(place, []).append(figure)
    return figures
