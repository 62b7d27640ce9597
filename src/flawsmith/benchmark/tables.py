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
from markupsafe import Markup
from tabulate import tabulate

from flawsmith.benchmark.experiment import PARTS, RunResult, SplitPart
from flawsmith.benchmark.published import protocol_notes, published
from flawsmith.metrics.results import LABELS, LOCO_LABELS, Evaluation
from flawsmith.report.style import page_style
from flawsmith.runtime.bundle import preset_in_words
from flawsmith.runtime.files import replacing, without_controls

FIGURES = (*LABELS, *LOCO_LABELS)


def tidy_csv(results: Sequence[RunResult]) -> str:
    """One row a run and part of the test set; what is unknown is empty."""
    identity = (
        "key",
        "dataset",
        "category",
        "experiment",
        "method",
        "preset",
        "backbone",
        "fraction",
        "set",
        "textures",
    )
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
        for part, evaluation in result.evaluations.items() or [(result.run.parts[0], None)]:
            rows.writerow(_tidy_row(result, part, evaluation))
    return text.getvalue()


def _tidy_row(result: RunResult, part: SplitPart, evaluation: Evaluation | None) -> dict[str, Any]:
    run, experiment = result.run, result.run.experiment
    row: dict[str, Any] = {
        "key": run.key,
        "dataset": run.dataset,
        "category": run.category,
        "experiment": experiment.title,
        "method": experiment.method,
        "preset": experiment.preset,
        "backbone": run.backbone,
        "fraction": experiment.fraction,
        "set": json.dumps(experiment.set, sort_keys=True),
        "textures": experiment.textures,
        "seed": run.seed,
        "protocol": run.protocol,
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


RATES = ("miss_rate", "false_reject_rate")
"""What counts on the line, at the stored limit: before the figures that need no limit."""
SHOWN = ("image_auroc", "pixel_auroc", "aupro", "image_auroc_loco_mean", "spro_loco_mean")
_NAMES = {**LABELS, **LOCO_LABELS}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table in neutral form.

    Attributes:
        title: its heading.
        heads: names of the columns.
        rows: texts, as many as heads.
        notes: what a reader has to know of it, a sentence or two each.
    """

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def format(self, style: str) -> str:
        """The table in one of tabulate's styles; the first column to the left, all others to the right."""
        align = ("left", *("right" for _ in self.heads[1:]))
        rows = [[without_controls(cell) for cell in row] for row in self.rows]
        return tabulate(rows, self.heads, tablefmt=style, disable_numparse=True, colalign=align[: len(self.heads)])


def tables(results: Sequence[RunResult]) -> list[Table]:
    """All tables of a benchmark: over all categories, category by category, and run by run."""
    made: list[Table] = []
    for part in _parts(results):
        words = PARTS[part]
        made += [_overall(results, part, words), _by_category(results, part, words)]
    made.append(_every_run(results))
    made += beside_the_papers(results)
    failed = [result for result in results if not result.finished]
    if failed:
        rows = [
            (result.run.category, result.run.experiment.title, str(result.run.seed), result.error or "")
            for result in failed
        ]
        made.append(Table("Runs that failed", ("category", "experiment", "seed", "why"), rows))
    return made


def table_files(out: Path) -> dict[str, Path]:
    """The files of a benchmark's tables, by format."""
    return {name: out / f"results.{name}" for name in ("csv", "md", "tex", "html")}


def write_tables(results: Sequence[RunResult], out: Path) -> dict[str, Path]:
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
    files = table_files(out)
    for name, text in texts.items():
        with replacing(files[name]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files


def markdown(made: Iterable[Table], notes: Sequence[str]) -> str:
    """The tables as one Markdown page."""
    blocks = ["# Benchmark", *notes]
    for table in made:
        blocks += [f"## {without_controls(table.title)}", table.format("pipe"), *table.notes]
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
    return template.render(tables=list(made), notes=notes, style=Markup(page_style()))


def describe(results: Sequence[RunResult]) -> list[str]:
    """What a reader has to know of all tables: rules, seeds, machine and versions."""
    finished = [result for result in results if result.finished]
    if not finished:
        return ["No run has finished."]
    protocols = sorted({result.run.protocol for result in finished})
    seeds = sorted({result.run.seed for result in finished})
    notes = [
        f"Protocol `{'`, `'.join(protocols)}`; seeds {', '.join(map(str, seeds))}; mean ± standard deviation. "
        "Training time is the wall time of a fresh process with an empty feature cache, from the files to the written "
        "model; latency is from file to verdict and map, one image at a time."
    ]
    stamps = dict.fromkeys(
        stamp for result in finished for evaluation in result.evaluations.values() for stamp in evaluation.stamps
    )
    changed = {
        result.run.experiment.title: preset_in_words(result.run.experiment.preset, result.deviations)
        for result in finished
        if result.deviations
    }
    notes = [*stamps, *notes, *(f"{title}: {words}." for title, words in changed.items())]
    company = sorted({result.costs.jobs for result in finished})
    if company != [1]:
        notes.append(f"Up to {company[-1]} runs shared the machine: times are longer than alone.")
    machines = sorted({result.machine for result in finished if result.machine})
    versions = sorted({", ".join(f"{k} {v}" for k, v in result.versions.items()) for result in finished})
    notes += [f"Measured on {'; '.join(machines)}; {' / '.join(versions)}."] if machines else []
    return notes


def _overall(results: Sequence[RunResult], part: SplitPart, words: str) -> Table:
    """A row an experiment: means over categories, then over seeds."""
    shown = (*RATES, *_shown(results, part))
    rows = []
    for experiment, group in _grouped(results, lambda result: result.run.experiment.title).items():
        finished = [result for result in group if part in result.evaluations]
        figures = [_mean_and_spread(_seed_means(finished, part, name)) for name in shown]
        rows.append((experiment, f"{len(finished)} of {len(group)}", *figures, *_costs(finished)))
    heads = ("experiment", "runs", *(_NAMES[name] for name in shown), *_COST_HEADS)
    categories = ", ".join(dict.fromkeys(result.run.category for result in results))
    return Table(f"Mean over categories, {words}", heads, rows, (f"Categories: {categories}.",))


def _by_category(results: Sequence[RunResult], part: SplitPart, words: str) -> Table:
    """A row a category and experiment."""
    shown = (*RATES, *_shown(results, part))
    rows = []
    for category, runs in _grouped(results, _category).items():
        for experiment, group in _grouped(runs, lambda result: result.run.experiment.title).items():
            finished = [result for result in group if part in result.evaluations]
            figures = [_mean_and_spread([getattr(e.evaluations[part], name) for e in finished]) for name in shown]
            rows.append((category, experiment, str(len(finished)), *figures, *_costs(finished)))
    heads = ("category", "experiment", "seeds", *(_NAMES[name] for name in shown), *_COST_HEADS)
    return Table(f"By category, {words}", heads, rows)


def _every_run(results: Sequence[RunResult]) -> Table:
    """A row a run, with the bootstrap interval of its image AUROC."""
    rows = []
    for result in results:
        part = next(iter(result.evaluations), None)
        if part is None:
            continue
        evaluation = result.evaluations[part]
        low, high = evaluation.intervals.get("image_auroc", (None, None))
        interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        figures = [_number(getattr(evaluation, name)) for name in ("pixel_auroc", "aupro", *RATES)]
        counts = (f"{result.n_train or NOTHING}", f"{evaluation.n_good} / {evaluation.n_flawed}")
        head = (_category(result), result.run.experiment.title, str(result.run.seed), *counts)
        rows.append((*head, f"{_number(evaluation.image_auroc)}{interval}", *figures, *_costs([result])))
    names = (_NAMES[name] for name in ("pixel_auroc", "aupro", *RATES))
    heads = (
        "category",
        "experiment",
        "seed",
        "learned from",
        "good / flawed",
        "image AUROC (95 %)",
        *names,
        *_COST_HEADS,
    )
    first = _parts(results)[:1]
    return Table(f"Every run, {PARTS[first[0]] if first else 'none finished'}", heads, rows)


def beside_the_papers(results: Sequence[RunResult]) -> list[Table]:
    """What the papers print of the same methods and categories, a row a published variant; none where none is known.

    Their rules are not ours: the notes say how each paper measures.
    """
    parts = _parts(results)
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for category, runs in _grouped(results, _category).items():
        for experiment, group in _grouped(runs, lambda result: result.run.experiment.title).items():
            finished = [result for result in group if parts and parts[0] in result.evaluations]
            printed = _printed(group[0])
            if not finished or not printed:
                continue
            means = [_mean_and_spread([getattr(e.evaluations[parts[0]], name) for e in finished]) for name in SHOWN]
            rows.append((category, f"{experiment}, here", *means, ""))
            for (label, source), values in printed.items():
                rows.append((category, label, *(_percent_digits(values.get(name)) for name in SHOWN), source))
            notes |= dict.fromkeys(protocol_notes(group[0].run.experiment.method, dataset=group[0].run.dataset))
    if not rows:
        return []
    heads = ("category", "method", *(_NAMES[name] for name in SHOWN), "printed in")
    caution = "Published figures are of the whole data set at the papers' own image sizes, backbones and rules:"
    return [Table("Beside the papers", heads, rows, (caution, *notes))]


def _printed(result: RunResult) -> dict[tuple[str, str], dict[str, float]]:
    """Published figures of the result's method and category, by label and source."""
    figures: dict[tuple[str, str], dict[str, float]] = {}
    for name in SHOWN:
        for figure in published(result.run.dataset, result.run.category, result.run.experiment.method, name):
            source = f"{figure.reference}, {figure.table}"
            figures.setdefault((figure.label, source), {})[name] = figure.value
    return figures


_COST_HEADS = ("training, s", "p50, ms", "p95, ms", "memory, GB", "model, MB")


def _costs(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Mean training time and latencies, the largest memory, the mean size of the model."""
    costs = [result.costs for result in results]
    return (
        _mean([cost.train_seconds for cost in costs], "{:.0f}"),
        _mean([cost.latency_p50_ms for cost in costs], "{:.1f}"),
        _mean([cost.latency_p95_ms for cost in costs], "{:.1f}"),
        _mean([max((cost.peak_bytes or 0 for cost in costs), default=0) / 1e9 or None], "{:.2f}"),
        _mean([None if cost.model_bytes is None else cost.model_bytes / 1e6 for cost in costs], "{:.1f}"),
    )


def _seed_means(results: Sequence[RunResult], part: SplitPart, name: str) -> list[float | None]:
    """The mean over categories of every seed, where it has a figure."""
    means: list[float | None] = []
    for runs in _grouped(results, lambda result: str(result.run.seed)).values():
        known = [value for result in runs if (value := getattr(result.evaluations[part], name)) is not None]
        means.append(statistics.mean(known) if known else None)
    return means


def _parts(results: Sequence[RunResult]) -> list[SplitPart]:
    return list(dict.fromkeys(part for result in results for part in result.evaluations))


def _shown(results: Sequence[RunResult], part: SplitPart) -> list[str]:
    evaluations = [result.evaluations[part] for result in results if part in result.evaluations]
    return [name for name in SHOWN if any(getattr(evaluation, name) is not None for evaluation in evaluations)]


def _grouped(results: Iterable[RunResult], key: Callable[[RunResult], str]) -> dict[str, list[RunResult]]:
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def _category(result: RunResult) -> str:
    return f"{result.run.dataset}/{result.run.category}"


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
