"""Results as tables: a tidy CSV, and Markdown, LaTeX and HTML for people."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tabulate import tabulate

from flawsmith.benchmark.cell import PARTS, CellResult, Part
from flawsmith.benchmark.published import dataset_key, protocol_notes, published
from flawsmith.metrics.results import LABELS, LOCO_LABELS, Evaluation
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing

FIGURES = (*LABELS, *LOCO_LABELS)


def tidy_csv(results: Sequence[CellResult]) -> str:
    """One row a cell and part of the test set; what is unknown is empty."""
    identity = ("key", "dataset", "category", "arm", "method", "preset", "backbone", "fraction", "set", "textures")
    costs = list(type(results[0].costs).model_fields) if results else []
    sizes = ("n_train", "n_calibration", "n_good", "n_flawed")
    heads = [
        *identity,
        "seed",
        "protocol",
        "part",
        "stamps",
        "status",
        "error",
        *FIGURES,
        *sizes,
        *costs,
        "machine",
        "versions",
    ]
    text = io.StringIO()
    rows = csv.DictWriter(text, heads, lineterminator="\n")
    rows.writeheader()
    for result in results:
        for part, evaluation in result.evaluations.items() or [(result.cell.parts[0], None)]:
            rows.writerow(_tidy_row(result, part, evaluation))
    return text.getvalue()


def _tidy_row(result: CellResult, part: Part, evaluation: Evaluation | None) -> dict[str, Any]:
    cell, arm = result.cell, result.cell.arm
    row: dict[str, Any] = {
        "key": cell.key,
        "dataset": cell.dataset,
        "category": cell.category,
        "arm": arm.title,
        "method": arm.method,
        "preset": arm.preset,
        "backbone": cell.backbone,
        "fraction": arm.fraction,
        "set": json.dumps(arm.set, sort_keys=True),
        "textures": arm.textures,
        "seed": cell.seed,
        "protocol": cell.protocol,
        "part": part,
        "stamps": "" if evaluation is None else "; ".join(evaluation.stamps),
        "status": result.status,
        "error": result.error,
        "n_train": result.n_train,
        "n_calibration": result.n_calibration,
        **result.costs.model_dump(),
        "machine": result.machine,
        "versions": json.dumps(result.versions),
    }
    if evaluation is not None:
        row |= {name: getattr(evaluation, name) for name in (*FIGURES, "n_good", "n_flawed")}
    return row


RATES = ("false_reject_rate", "miss_rate")
SHOWN = ("image_auroc", "pixel_auroc", "aupro", "image_auroc_loco_mean", "spro_loco_mean")
_NAMES = {**LABELS, **LOCO_LABELS}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table in neutral form.

    Attributes:
        title: its heading.
        heads: names of the columns.
        rows: cells as text, as many as heads.
        notes: what a reader has to know of it, a sentence or two each.
    """

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def format(self, style: str) -> str:
        """The table in one of tabulate's styles; the first column to the left, all others to the right."""
        align = ("left", *("right" for _ in self.heads[1:]))
        return tabulate(self.rows, self.heads, tablefmt=style, disable_numparse=True, colalign=align[: len(self.heads)])


def tables(results: Sequence[CellResult]) -> list[Table]:
    """All tables of a benchmark: over all categories, category by category, and cell by cell."""
    found: list[Table] = []
    for part in _parts(results):
        words = PARTS[part]
        found += [_overall(results, part, words), _by_category(results, part, words)]
    found.append(_cells(results))
    found += beside_the_papers(results)
    failed = [one for one in results if not one.finished]
    if failed:
        rows = [(one.cell.category, one.cell.arm.title, str(one.cell.seed), one.error or "") for one in failed]
        found.append(Table("Cells that failed", ("category", "arm", "seed", "why"), rows))
    return found


def write_tables(results: Sequence[CellResult], out: Path) -> dict[str, Path]:
    """Write ``results.csv``, ``results.md``, ``results.tex`` and ``results.html`` into a folder.

    Raises:
        FlawsmithError: the folder cannot be written.
    """
    made = tables(results)
    notes = describe(results)
    texts = {
        "csv": tidy_csv(results),
        "md": markdown(made, notes),
        "tex": latex(made, notes),
        "html": html(made, notes),
    }
    files = {name: out / f"results.{name}" for name in texts}
    for name, text in texts.items():
        with replacing(files[name]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files


def markdown(made: Iterable[Table], notes: Sequence[str]) -> str:
    """The tables as one Markdown page."""
    blocks = ["# Benchmark", *notes]
    for table in made:
        blocks += [f"## {table.title}", table.format("pipe"), *table.notes]
    return "\n\n".join(blocks) + "\n"


def latex(made: Iterable[Table], notes: Sequence[str]) -> str:
    """The tables as LaTeX fragments for the package booktabs, each a ``table`` with its caption."""
    blocks = [f"% {note}" for note in notes]
    for table in made:
        body = table.format("latex_booktabs").replace("±", r"$\pm$").replace(NOTHING, "--")
        caption = _latex_text(" ".join([table.title + ".", *table.notes]))
        blocks.append(f"\\begin{{table}}\n\\caption{{{caption}}}\n{body}\n\\end{{table}}")
    return "\n\n".join(blocks) + "\n"


def html(made: Iterable[Table], notes: Sequence[str]) -> str:
    """The tables as one offline page."""
    loader = jinja2.PackageLoader("flawsmith", "benchmark")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("results.html.j2")
    return template.render(tables=list(made), notes=notes)


def describe(results: Sequence[CellResult]) -> list[str]:
    """What a reader has to know of all tables: rules, seeds, machine and versions."""
    finished = [one for one in results if one.finished]
    if not finished:
        return ["No cell has finished."]
    protocols = sorted({one.cell.protocol for one in finished})
    seeds = sorted({one.cell.seed for one in finished})
    notes = [
        f"Protocol `{'`, `'.join(protocols)}`; seeds {', '.join(map(str, seeds))}; mean ± standard deviation. "
        "Training time is the wall time of a fresh process with an empty feature cache, from the files to the written "
        "model; latency is from file to verdict and map, one image at a time."
    ]
    peers = sorted({peer for one in finished if (peer := one.cell.arm.peer) is not None})
    if peers:
        notes.append(
            f"Models of {', '.join(peers)} ran in an environment of their own, on the same images, split and backbone "
            "weights; their limits and figures were computed here, by the same rules."
        )
    stamps = dict.fromkeys(stamp for one in finished for found in one.evaluations.values() for stamp in found.stamps)
    notes = [*stamps, *notes]
    company = sorted({one.costs.jobs for one in finished})
    if company != [1]:
        notes.append(f"Up to {company[-1]} cells shared the machine: times are longer than alone.")
    machines = sorted({one.machine for one in finished if one.machine})
    versions = sorted({", ".join(f"{k} {v}" for k, v in one.versions.items()) for one in finished})
    notes += [f"Measured on {'; '.join(machines)}; {' / '.join(versions)}."] if machines else []
    return notes


def _overall(results: Sequence[CellResult], part: Part, words: str) -> Table:
    """A row an arm: means over categories, then over seeds."""
    shown = _shown(results, part)
    rows = []
    for arm, own in _grouped(results, lambda one: one.cell.arm.title).items():
        finished = [one for one in own if part in one.evaluations]
        figures = [_mean_and_spread(_seed_means(finished, part, name)) for name in shown]
        rows.append((arm, f"{len(finished)} of {len(own)}", *figures, *_costs(finished)))
    heads = ("arm", "cells", *(_NAMES[name] for name in shown), *_COST_HEADS)
    categories = ", ".join(dict.fromkeys(one.cell.category for one in results))
    return Table(f"Mean over categories, {words}", heads, rows, (f"Categories: {categories}.",))


def _by_category(results: Sequence[CellResult], part: Part, words: str) -> Table:
    """A row a category and arm."""
    shown = (*_shown(results, part), *RATES)
    rows = []
    for category, cells in _grouped(results, _category).items():
        for arm, own in _grouped(cells, lambda one: one.cell.arm.title).items():
            finished = [one for one in own if part in one.evaluations]
            figures = [_mean_and_spread([getattr(e.evaluations[part], name) for e in finished]) for name in shown]
            rows.append((category, arm, str(len(finished)), *figures, *_costs(finished)))
    heads = ("category", "arm", "seeds", *(_NAMES[name] for name in shown), *_COST_HEADS)
    return Table(f"By category, {words}", heads, rows)


def _cells(results: Sequence[CellResult]) -> Table:
    """A row a cell, with the bootstrap interval of its image AUROC."""
    rows = []
    for result in results:
        part = next(iter(result.evaluations), None)
        if part is None:
            continue
        found = result.evaluations[part]
        low, high = found.intervals.get("image_auroc", (None, None))
        interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        figures = [_number(getattr(found, name)) for name in ("pixel_auroc", "aupro", *RATES)]
        counts = (f"{result.n_train or NOTHING}", f"{found.n_good} / {found.n_flawed}")
        head = (_category(result), result.cell.arm.title, str(result.cell.seed), *counts)
        rows.append((*head, f"{_number(found.image_auroc)}{interval}", *figures, *_costs([result])))
    names = (_NAMES[name] for name in ("pixel_auroc", "aupro", *RATES))
    heads = ("category", "arm", "seed", "learned from", "good / flawed", "image AUROC (95 %)", *names, *_COST_HEADS)
    first = _parts(results)[:1]
    return Table(f"Every cell, {PARTS[first[0]] if first else 'none finished'}", heads, rows)


def beside_the_papers(results: Sequence[CellResult]) -> list[Table]:
    """What the papers print of the same methods and categories, a row a published variant; none where none is known.

    Their rules are not ours: the notes say how each paper measures.
    """
    parts = _parts(results)
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for category, cells in _grouped(results, _category).items():
        for arm, own in _grouped(cells, lambda one: one.cell.arm.title).items():
            finished = [one for one in own if parts and parts[0] in one.evaluations]
            printed = _printed(own[0])
            if not finished or not printed:
                continue
            means = [_mean_and_spread([getattr(e.evaluations[parts[0]], name) for e in finished]) for name in SHOWN]
            rows.append((category, f"{arm}, here", *means, ""))
            for (label, source), values in printed.items():
                rows.append((category, label, *(_percent_digits(values.get(name)) for name in SHOWN), source))
            notes |= dict.fromkeys(protocol_notes(own[0].cell.arm.method, dataset=own[0].cell.dataset))
    if not rows:
        return []
    heads = ("category", "method", *(_NAMES[name] for name in SHOWN), "printed in")
    caution = "Published figures are of the whole data set at the papers' own image sizes, backbones and rules:"
    return [Table("Beside the papers", heads, rows, (caution, *notes))]


def _printed(result: CellResult) -> dict[tuple[str, str], dict[str, float]]:
    """Published figures of the result's method and category, by label and source."""
    dataset, category, method = result.cell.dataset, result.cell.category, result.cell.arm.method
    found: dict[tuple[str, str], dict[str, float]] = {}
    if dataset_key(dataset) is None:
        return found
    for name in SHOWN:
        try:
            figures = published(dataset, category, method, name)
        except FlawsmithError:  # a category of the user's own beside those of the data set
            continue
        for figure in figures:
            source = f"{figure.reference.split(',')[0]}, {figure.source}"
            found.setdefault((figure.label, source), {})[name] = figure.value
    return found


_COST_HEADS = ("training, s", "p50, ms", "p95, ms", "memory, GB", "model, MB")


def _costs(results: Sequence[CellResult]) -> tuple[str, ...]:
    """Mean training time and latencies, the largest memory, the mean size of the model."""
    costs = [one.costs for one in results]
    return (
        _mean([one.train_seconds for one in costs], "{:.0f}"),
        _mean([one.latency_p50_ms for one in costs], "{:.1f}"),
        _mean([one.latency_p95_ms for one in costs], "{:.1f}"),
        _mean([max((one.peak_bytes or 0 for one in costs), default=0) / 1e9 or None], "{:.2f}"),
        _mean([None if one.model_bytes is None else one.model_bytes / 1e6 for one in costs], "{:.1f}"),
    )


def _seed_means(results: Sequence[CellResult], part: Part, name: str) -> list[float | None]:
    """The mean over categories of every seed, where it has a figure."""
    means: list[float | None] = []
    for cells in _grouped(results, lambda one: str(one.cell.seed)).values():
        known = [value for one in cells if (value := getattr(one.evaluations[part], name)) is not None]
        means.append(statistics.mean(known) if known else None)
    return means


def _parts(results: Sequence[CellResult]) -> list[Part]:
    return list(dict.fromkeys(part for one in results for part in one.evaluations))


def _shown(results: Sequence[CellResult], part: Part) -> list[str]:
    evaluations = [one.evaluations[part] for one in results if part in one.evaluations]
    return [name for name in SHOWN if any(getattr(one, name) is not None for one in evaluations)]


def _grouped(results: Iterable[CellResult], key: Callable[[CellResult], str]) -> dict[str, list[CellResult]]:
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(key(result), []).append(result)
    return found


def _category(result: CellResult) -> str:
    return f"{result.cell.dataset}/{result.cell.category}"


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    mean = _number(statistics.mean(known))
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.4f}"


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.mean(known)) if known else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _percent_digits(value: float | None) -> str:
    """A published figure with the digits that papers print."""
    return NOTHING if value is None else f"{value:.3f}"


def _latex_text(text: str) -> str:
    for sign in "&%#_$":
        text = text.replace(sign, "\\" + sign)
    return text
