"""Results as tables: a tidy CSV, and Markdown, LaTeX and HTML for people."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from tabulate import tabulate

from flawsmith.benchmark.experiment import PARTS, Costs, RunResult, SplitPart
from flawsmith.benchmark.published import MEAN, PublishedFigure, all_figures, method_key, protocol_notes
from flawsmith.data.public_sets import OFFICIAL, known_dataset
from flawsmith.metrics.results import LABELS, LOCO_LABELS, Evaluation
from flawsmith.report.style import page_style
from flawsmith.runtime.bundle import preset_in_words
from flawsmith.runtime.files import replacing, without_controls

FIGURES = (*LABELS, *LOCO_LABELS)


def tidy_csv(results: Sequence[RunResult]) -> str:
    """One row a run and part of the test set; what is unknown is empty."""
    records = [
        _tidy_row(view, part, evaluation)
        for result in results
        for view in result.views()
        for part, evaluation in view.evaluations.items() or [(view.run.parts[0], None)]
    ]
    text = io.StringIO()
    rows = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    rows.writeheader()
    rows.writerows(records)
    return text.getvalue()


def _tidy_row(result: RunResult, part: SplitPart, evaluation: Evaluation | None) -> dict[str, Any]:
    run, experiment = result.run, result.run.experiment
    return {
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
        **{name: getattr(evaluation, name, None) for name in FIGURES},
        "n_train": result.n_train,
        "n_calibration": result.n_calibration,
        **{name: getattr(evaluation, name, None) for name in ("n_good", "n_flawed")},
        **result.costs.model_dump(),
        "machine": result.machine,
        "versions": json.dumps(result.versions),
    }


RATES = ("miss_rate", "false_reject_rate")
"""What counts on the line, at the stored limit: before the figures that need no limit."""
SHOWN = ("image_auroc", "pixel_auroc", "aupro", "image_auroc_loco_mean", "spro_loco_mean")
"""Figures that every table has; results.csv holds them all."""
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
        if style == "pipe":
            rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        return tabulate(rows, self.heads, tablefmt=style, disable_numparse=True, colalign=align[: len(self.heads)])


def tables(results: Sequence[RunResult], printed_in: Mapping[str, Sequence[str]] | None = None) -> list[Table]:
    """All tables of a benchmark: over all categories, category by category, and run by run.

    Args:
        printed_in: the papers' tables to set them beside, by paper; None: whatever is printed of a method.
    """
    made: list[Table] = []
    everything = _by_name(results)
    first_sets = [view for view, elsewhere in everything if not elsewhere]
    views = [view for view, _ in everything]
    for part in _parts(first_sets):
        words = PARTS[part]
        made.append(_overall(first_sets, part, words))
        places = {(view.run.dataset, view.run.category) for view in views}
        if 1 < len({dataset_key(dataset) for dataset, _ in places}) < len(places):
            made.append(_by_dataset(views, part, words))
        made.append(_by_category(views, part, words))
    made.append(_every_run(views))
    if any(result.costs.images_per_second for result in results):
        made.append(_network_costs(results))
    made += beside_the_papers(results, printed_in)
    failed = [result for result in results if not result.finished]
    if failed:
        rows = [
            (result.run.category, result.run.experiment.title, str(result.run.seed), result.error or "")
            for result in failed
        ]
        made.append(Table("Runs that failed", ("category", "experiment", "seed", "why"), rows))
    return made


def _by_name(results: Sequence[RunResult]) -> list[tuple[RunResult, bool]]:
    """Everything that was measured, and whether it was on another data set; by several protocols, each by its name."""
    several = len({view.run.protocol for result in results for view in result.views()}) > 1
    named = []
    for result in results:
        for view in result.views():
            elsewhere = (view.run.dataset, view.run.category) != (result.run.dataset, result.run.category)
            run = view.run
            if several:
                experiment = run.experiment.model_copy(update={"name": f"{run.experiment.title}, {run.protocol}"})
                run = run.model_copy(update={"experiment": experiment})
            named.append((view.model_copy(update={"run": run}), elsewhere))
    return named


def table_files(out: Path) -> dict[str, Path]:
    """The files of a benchmark's tables, by format."""
    return {name: out / f"results.{name}" for name in ("csv", "md", "tex", "html")}


def write_tables(
    results: Sequence[RunResult],
    out: Path,
    *,
    printed_in: Mapping[str, Sequence[str]] | None = None,
    caution: str = "",
) -> dict[str, Path]:
    """Write ``results.csv``, ``results.md``, ``results.tex`` and ``results.html`` into a folder.

    Args:
        results: what the tables show.
        out: the folder.
        printed_in: as in :func:`tables`.
        caution: what must stand above all tables.

    Raises:
        FlawsmithError: the folder cannot be written.
    """
    made = tables(results, printed_in)
    notes = [*([caution] if caution else []), *describe(results)]
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
    views = [view for result in finished for view in result.views()]
    protocols = sorted({view.run.protocol for view in views})
    seeds = sorted({result.run.seed for result in finished})
    notes = [
        f"Protocol `{'`, `'.join(protocols)}`; seeds {', '.join(map(str, seeds))}; mean ± standard deviation. "
        "Training time is the wall time of a fresh process with an empty feature cache, from the files to the written "
        "model; latency is from file to verdict and map, one image at a time."
    ]
    stamps = dict.fromkeys(
        stamp for view in views for evaluation in view.evaluations.values() for stamp in evaluation.stamps
    )
    changed = dict.fromkeys(
        f"{result.run.experiment.title}: {preset_in_words(result.run.experiment.preset, result.deviations)}."
        for result in finished
        if result.deviations
    )
    notes = [*stamps, *notes, *changed]
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


def _by_dataset(results: Sequence[RunResult], part: SplitPart, words: str) -> Table:
    """A row a data set and experiment: the mean over its categories, each of its subsets first averaged."""
    shown = _shown(results, part)
    rows = []
    for dataset, runs in _grouped(results, lambda result: dataset_key(result.run.dataset)).items():
        for experiment, group in _grouped(runs, lambda result: result.run.experiment.title).items():
            finished = [result for result in group if part in result.evaluations]
            figures = [_mean_and_spread(_seed_means(finished, part, name)) for name in shown]
            number = len({result.run.category for result in finished})
            rows.append((dataset, experiment, str(number), *figures))
    heads = ("data set", "experiment", "categories", *(_NAMES[name] for name in shown))
    return Table(f"Mean over the categories of each data set, {words}", heads, rows)


def _network_costs(results: Sequence[RunResult]) -> Table:
    """A row an experiment: size of the network and its speed by batch size."""
    sizes = sorted({size for result in results for size in result.costs.images_per_second})
    rows = []
    for experiment, group in _grouped(results, lambda result: result.run.experiment.title).items():
        costs = [result.costs for result in group]
        speeds = [_mean([cost.images_per_second.get(size) for cost in costs], "{:.1f}") for size in sizes]
        parameters = _mean([None if cost.parameters is None else cost.parameters / 1e6 for cost in costs], "{:.2f}")
        flops = _mean([None if cost.flops is None else cost.flops / 1e9 for cost in costs], "{:.1f}")
        rows.append((experiment, parameters, flops, *speeds))
    heads = ("experiment", "parameters, millions", "GFLOPs an image", *(f"images/s, batch {size}" for size in sizes))
    note = (
        "Images a second are of the network alone, from pixels in memory to map and score: on a GPU in torch where "
        "there is one, else the exported graph on the CPU. Parameters are all numbers that the network holds, frozen "
        "backbone included; FLOPs count a multiplication and the sum after it as two."
    )
    return Table("Size and speed of the networks", heads, rows, (note,))


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


FOUR_SETS: Mapping[str, tuple[str, ...]] = {
    "four_sets": ("mvtec", "visa", "mpdd", "wfdd"),
    "two_weak_sets": ("mad_man", "mad_sys"),
}
"""Means over several data sets that papers print, with the sets."""
_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
_COST_NAMES = {
    "parameters_millions": "parameters, millions",
    "gflops": "GFLOPs an image",
    "ms_per_image": "ms an image",
    "images_per_second": "images a second",
}


def beside_the_papers(
    results: Sequence[RunResult], printed_in: Mapping[str, Sequence[str]] | None = None
) -> list[Table]:
    """What the papers print, with the same figure made here by each protocol; none where nothing is printed of it.

    Means stand there where every category of the data set was measured, or, in the tables that a plan names, with the
    number of categories that were.

    Args:
        results: of a benchmark.
        printed_in: the tables that are meant, by paper; None: all results that any paper prints of a method.
    """
    views = [view for result in results for view in result.views()]
    parts = _parts(views)
    if not parts:
        return []
    measured = [view for view in views if parts[0] in view.evaluations]
    protocols = list(dict.fromkeys(view.run.protocol for view in measured))
    groups = _grouped(measured, lambda view: view.run.experiment.title)
    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}
    for figure in all_figures():
        if printed_in is not None and figure.table not in printed_in.get(figure.paper, ()):
            continue
        for title, group in groups.items():
            chosen = _of_row(figure, group, by_name=printed_in is not None)
            cells, count = _figures_by_protocol(figure, chosen, protocols, parts[0], partly=printed_in is not None)
            if count:
                source = f"{figure.reference}, {figure.table}"
                name = _NAMES.get(figure.metric) or _COST_NAMES.get(figure.metric, figure.metric)
                printed = f"{figure.value:g}" if figure.kind == "cost" else f"{figure.value:.3f}"
                place = (_place(figure), title, name, printed)
                rows.append((*place, *cells, count, figure.label, source))
                notes |= dict.fromkeys(protocol_notes(figure.method, dataset=figure.dataset or None))
    if not rows:
        return []
    shown = [head for protocol in protocols for head in (f"here, {protocol}", "difference")]
    heads = ("data", "experiment", "figure", "printed", *shown, "categories", "row", "printed in")
    caution = (
        "Published figures are of the whole data set at the papers' own image sizes, backbones and rules; a difference "
        "is ours less theirs, and of costs there is none, for the hardware is another:"
    )
    return [Table("Beside the papers", heads, rows, (caution, *notes))]


def _of_row(figure: PublishedFigure, group: list[RunResult], *, by_name: bool) -> list[RunResult]:
    """The results of an experiment that a published figure is of: all, none, or those of a seed."""
    if "{seed}" in (group[0].run.experiment.published or ""):
        return [view for view in group if _is_row(figure, view, by_name=by_name)]
    return group if _is_row(figure, group[0], by_name=by_name) else []


def _is_row(figure: PublishedFigure, view: RunResult, *, by_name: bool) -> bool:
    """Whether a published figure is of a result's experiment."""
    experiment = view.run.experiment
    if experiment.published is not None:
        name = experiment.published.replace("{seed}", str(view.run.seed))
        return bool(name) and name in (figure.variant, figure.label, f"{figure.method}, {figure.variant}")
    same = method_key(figure.method) == method_key(experiment.method)
    return same and (figure.kind == "result" or (by_name and figure.kind == "cost"))


def _figures_by_protocol(
    figure: PublishedFigure, views: Sequence[RunResult], protocols: Sequence[str], part: SplitPart, *, partly: bool
) -> tuple[list[str], str]:
    """Our figure and its difference by each protocol, and of how many categories it is; empty where there is none.

    A mean over some of the categories is shown, and not subtracted from one over all.
    """
    cells: list[str] = []
    counts: set[str] = set()
    for protocol in protocols:
        chosen = [view for view in views if view.run.protocol == protocol]
        values, count = _our_values(figure, chosen, part, partly=partly)
        counts |= {count} if values else set()
        difference = NOTHING
        if values and figure.kind != "cost" and " of " not in count:
            difference = f"{statistics.mean(values) - figure.value:+.4f}"
        cells += [_mean_and_spread(values), difference]
    return cells, max(counts, default="")


def _our_values(
    figure: PublishedFigure, views: Sequence[RunResult], part: SplitPart, *, partly: bool
) -> tuple[list[float], str]:
    """A value a seed of what a paper prints as one, and of how many categories of how many."""
    if figure.kind == "cost":
        seeds = [_cost(figure, view.costs) for view in views]
        known = [value for value in seeds if value is not None]
        return ([statistics.mean(known)], str(len(known))) if known else ([], "")
    sets = FOUR_SETS.get(figure.dataset, (figure.dataset,))
    expected = {name: _categories_of(name, figure.category) for name in sets}
    values: list[float] = []
    numbers: list[str] = []
    for runs in _grouped(views, lambda view: str(view.run.seed)).values():
        means, measured, every = [], 0, 0
        for name, categories in expected.items():
            by_category: dict[str, list[float]] = {}
            for view in runs:
                value = getattr(view.evaluations[part], figure.metric, None)
                if dataset_key(view.run.dataset) == name and view.run.category in categories and value is not None:
                    by_category.setdefault(view.run.category, []).append(value)
            means += [statistics.mean(map(statistics.mean, by_category.values()))] if by_category else []
            measured, every = measured + len(by_category), every + len(categories)
        if len(means) == len(sets) and (measured == every or partly):
            values.append(statistics.mean(means))
            numbers.append(f"{measured}" if measured == every else f"{measured} of {every}")
    return values, max(numbers, default="")


def _categories_of(dataset: str, category: str) -> tuple[str, ...]:
    """The categories behind a published figure: one, or those of a mean."""
    official = next((each for each in OFFICIAL if each.key == dataset), None)
    every = () if official is None else tuple(official.categories)
    if category == MEAN:
        return every
    if category in ("texture_mean", "object_mean"):
        return tuple(name for name in every if (name in _TEXTURES) == (category == "texture_mean"))
    return (category,)


def dataset_key(name: str) -> str:
    """The key of a data set by the name that runs give it; a subset counts as its set.

    Example:
        >>> dataset_key("mvtec_anomaly_detection"), dataset_key("MAD-sys/Beta_0.1"), dataset_key("parts")
        ('mvtec', 'mad_sys', 'parts')
    """
    return known_dataset(name) or known_dataset(name.partition("/")[0]) or name


def _cost(figure: PublishedFigure, costs: Costs) -> float | None:
    size = 16 if "batches of 16" in figure.note else 1
    speed = costs.images_per_second.get(size)
    values = {
        "parameters_millions": None if costs.parameters is None else costs.parameters / 1e6,
        "gflops": None if costs.flops is None else costs.flops / 1e9,
        "images_per_second": costs.images_per_second.get(max(costs.images_per_second, default=0)),
        "ms_per_image": None if speed is None else 1000 / speed,
    }
    return values.get(figure.metric)


def _place(figure: PublishedFigure) -> str:
    if not figure.dataset:
        return "all"
    names = {official.key: official.name for official in OFFICIAL}
    sets = ", ".join(names.get(key, key) for key in FOUR_SETS.get(figure.dataset, (figure.dataset,)))
    if figure.category.endswith(MEAN):
        return f"{sets}, {figure.category.replace('_', ' ')}"
    return f"{sets}/{figure.category}"


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


def _latex_text(text: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(words.get(sign) or (f"\\{sign}" if sign in "&%#_${}" else sign) for sign in text)
