"""The offline HTML report: one file that needs no network and no second file; its script only tries other limits."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from flawsmith.metrics.pro import FPR_LIMIT
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.spro import SPRO_LIMIT
from flawsmith.report import plots
from flawsmith.report.data import AreaName, Example, ExampleKind, ReportData, ScoreKind
from flawsmith.report.plots import galleries, panels
from flawsmith.report.style import page_style
from flawsmith.runtime.files import replacing

_HERE = Path(__file__).parent
VERDICT_WORDS = {"pass": "● pass", "review": "▲ review", "reject": "■ reject"}
"""A shape and a word for each verdict: colour is never alone."""
_RATES = ("false_reject_rate", "miss_rate")


@dataclass(frozen=True)
class Headline:
    """One number at the head of the report.

    Attributes:
        name: what is counted.
        value: how many.
        detail: what the number is worth.
        follows: the field of `TriedLimit` that takes its place when another limit is tried.
        wrong: whether it is one to look at; None: it is neither good nor bad.
    """

    name: str
    value: str
    detail: str
    follows: str = ""
    wrong: bool | None = None


@dataclass(frozen=True)
class Plot:
    """A plot with what is seen in it."""

    source: str
    title: str
    caption: str
    alt: str
    wide: bool = False
    line: tuple[float, float, float, float] | None = None
    """Where a line for a limit belongs: left and right end of the axis, and the scores there."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the report, whole or not at all.

    Args:
        path: the HTML file; an older one is replaced once the new one is complete.
        data: what to show.

    Raises:
        FlawsmithError: the file cannot be written.
    """
    # File names may hold bytes that are no text; they are shown by their number instead of stopping the report.
    content = render_report(data).encode("utf-8", "backslashreplace")
    with replacing(path) as temporary:
        temporary.write_bytes(content)


_OPTION = re.compile(r"--[a-z-]+")


def _with_whole_options(sentence: str) -> Markup:
    """A sentence whose options do not break at the end of a line."""
    return Markup(_OPTION.sub(r"<code>\g<0></code>", str(escape(sentence))))


@functools.cache
def _template() -> Template:
    """Compiled once a process: that takes a quarter of a report's time."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def render_report(data: ReportData) -> str:
    """The report as HTML text; the same data give the same text."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    steps = [] if data.choice is None else list(data.choice.steps)
    in_use = next((index for index, step in enumerate(steps) if step.in_use), 0)
    return _template().render(
        data=data,
        script=Markup(script),
        script_hash=digest,
        steps=json.dumps([[step.limit, step.missed, step.rejected, step.sentence] for step in steps]),
        in_use=in_use,
        tried=steps[in_use] if steps else None,
        next_steps=[
            _with_whole_options(step)
            for step in (*(data.evaluation.next_steps() if data.evaluation else ()), *data.next_steps)
        ],
        verdict_words=VERDICT_WORDS,
        listed=_listed(data),
        style=Markup(page_style()),
        stamps=_stamps(data),
        headlines=list(_headlines(data)),
        histogram=_histogram(data),
        curves=list(_curves(data)),
        training=_training(data),
        held_out=panels(data.held_out),
        panels=panels(data.diagnostics),
        figure_rows=_figure_rows(data.evaluation),
        galleries=galleries(data.examples),
        notes=[*data.notes, *(data.evaluation.notes if data.evaluation else ())],
        number=number,
        percent=percent,
        measure=_measure(data).removeprefix("image "),
    )


def _listed(data: ReportData) -> list[tuple[float, str, Example, ExampleKind]]:
    """Score, place in the page, image and kind of every example, the highest score first."""
    rows = [
        (example.score, f"p{number}-{place}", example, kind)
        for number, (kind, examples) in enumerate(galleries(data.examples).items(), 1)
        for place, example in enumerate(examples, 1)
    ]
    return sorted(rows, key=lambda row: (-row[0], row[1]))


def _stamps(data: ReportData) -> list[str]:
    """What must stand beside every figure, each once."""
    of_figures = data.evaluation.stamps if data.evaluation is not None else []
    return list(dict.fromkeys([*data.stamps, *of_figures]))


def number(value: float | None, digits: int = 3) -> str:
    """A figure with fixed digits, or a dash where undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in per cent, or a dash where undefined."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def _measure(data: ReportData) -> str:
    """What the numbers are called that decide."""
    return "strongest spot" if data.by_regions else "image score"


def _scores(data: ReportData, kind: ScoreKind) -> list[float]:
    return [float(score) for score in data.scores.get(kind, ())]


def _headlines(data: ReportData) -> Iterator[Headline]:
    result = data.evaluation
    if result is not None:
        if result.n_flawed:
            missed = f"{result.n_missed} of {result.n_flawed}"
            detail = _of_100(result, "miss_rate", "such flaws")
            yield Headline("Flaws missed", missed, detail, "missed", wrong=bool(result.n_missed))
        if result.n_good:
            rejected = f"{result.n_rejected} of {result.n_good}"
            detail = _of_100(result, "false_reject_rate", "such parts")
            wrong = result.promise_is_broken if data.promise else bool(result.n_rejected)
            yield Headline("Good parts rejected", rejected, detail, "rejected", wrong=wrong)
        if data.promise:
            yield Headline("Promised", *_split(data.promise), wrong=result.promise_is_broken or None)
        return
    held_out, synthetic = _scores(data, "held_out"), _scores(data, "forged")
    if synthetic and data.limit is not None:
        missed = f"{sum(score <= data.limit for score in synthetic)} of {len(synthetic)}"
        yield Headline("Synthetic flaws missed", missed, "real flaws may be harder to see", "missed")
    elif shown := [example for example in data.examples if example.flawed]:  # regions decide, no score
        missed = f"{sum(example.kind == 'miss' for example in shown)} of {len(shown)}"
        yield Headline("Synthetic flaws missed", missed, "those shown below; real flaws may be harder to see")
    if held_out and data.limit is not None:
        rejected = f"{sum(score > data.limit for score in held_out)} of {len(held_out)}"
        yield Headline("Held-out good images rejected", rejected, "not learned from; they set the limit", "rejected")
    if data.promise:
        yield Headline("Promised", *_split(data.promise))


def _split(promise: str) -> tuple[str, str]:
    """The promise's first number, and the rest of it."""
    value, _, bound = promise.partition("; ")
    return value.removeprefix("about "), f"good parts rejected on average; {bound}" if bound else ""


def _of_100(result: Evaluation, name: str, things: str) -> str:
    """The 95 % interval of a rate in words."""
    ends = result.intervals.get(name)
    if ends is None:
        return ""
    low, high = math.floor(100 * ends[0]), math.ceil(100 * ends[1])
    return f"95 % sure: between {low} and {high} of 100 {things}"


def _figure_rows(result: Evaluation | None) -> list[tuple[str, str, str]]:
    """(name, value, interval) of every figure."""
    if result is None:
        return []
    rows = []
    for name, label in result.labels().items():
        show = percent if name in _RATES else number
        ends = result.intervals.get(name)
        value = show(getattr(result, name))
        rows.append((label, value, "–" if ends is None else f"{show(ends[0])} to {show(ends[1])}"))
    return rows


def _histogram(data: ReportData) -> Plot | None:
    name = _measure(data)
    drawn = plots.score_histogram(data.scores, data.limit, data.review_limit, name)
    if drawn is None:
        return None
    caption = f"How the {name}s spread; each group's bars add up to 1."
    if data.limit is not None:
        caption += f" Images right of the solid line ({name} above {data.limit:.4g}) are rejected."
    if data.review_limit is not None:
        caption += f" Between the dashed line ({data.review_limit:.4g}) and the solid one a person looks."
    kinds = ", ".join(f"{len(scores)} {plots.NAMES[kind]}" for kind, scores in data.scores.items())
    alt, line = f"Histogram of {name}s: {kinds}.", (*drawn.places, *drawn.scores)
    return Plot(drawn.source, f"{name.capitalize()}s", caption, alt, wide=True, line=line)


class _Area(NamedTuple):
    """What a curve shows: names of its axes and itself, what is seen in it, and up to which rate its area counts."""

    x: str
    y: str
    title: str
    caption: str
    up_to: float | None = None


_AREAS: Mapping[AreaName, _Area] = {
    "image_auroc": _Area(
        "false-positive rate (good images)",
        "flawed images found",
        "ROC over images",
        "Flawed images found against good images wrongly called flawed, over all limits.",
    ),
    "aupro": _Area(
        "false-positive rate (pixels)",
        "mean region overlap",
        "Region overlap (PRO)",
        "Mean share of each flaw's area that is marked, every flaw alike.",
        FPR_LIMIT,
    ),
    "spro": _Area(
        "false-positive rate (pixels)",
        "mean saturated overlap",
        "Saturated region overlap (sPRO)",
        "Mean over all defects of the marked share of what must be found of each, its saturation area.",
        SPRO_LIMIT,
    ),
    "pixel_auroc": _Area(
        "false-positive rate (pixels)",
        "flawed pixels found",
        "ROC over pixels",
        "Flawed pixels found against defect-free pixels marked.",
    ),
}


def _curves(data: ReportData) -> Iterator[Plot]:
    for name, area in _AREAS.items():
        curve = data.curves.get(name)
        if curve is None:
            continue
        value = number(getattr(data.evaluation, name, None))
        size, bound = f"Area: {value}.", ""
        if area.up_to is not None:
            size = f"Area under it within the shaded part, divided by that width: {value}."
            bound = f" up to a false-positive rate of {area.up_to}"
        alt = f"{area.title}: a curve with an area of {value}{bound}."
        yield Plot(
            plots.rate_curve(curve, area.x, area.y, shade_to=area.up_to), area.title, f"{area.caption} {size}", alt
        )


def _training(data: ReportData) -> Plot | None:
    source = plots.training_curves(data.training)
    if source is None:
        return None
    caption = "The losses that training lowered, as recorded in metrics.jsonl."
    return Plot(source, "Losses", caption, "Training losses over time.", wide=True)
