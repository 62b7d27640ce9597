"""The offline HTML report: one file that needs no network, no script and no second file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flawsmith.metrics.pro import FPR_LIMIT
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.spro import SPRO_LIMIT
from flawsmith.report import plots
from flawsmith.report.data import ReportData, ScoreKind
from flawsmith.report.plots import galleries, panels
from flawsmith.report.style import page_style
from flawsmith.runtime.errors import FlawsmithError

_HERE = Path(__file__).parent
_RATES = ("false_reject_rate", "miss_rate")


@dataclass(frozen=True)
class Headline:
    """One number at the head of the report."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Plot:
    """A plot with what is seen in it."""

    source: str
    title: str
    caption: str
    alt: str
    wide: bool = False


def write_report(path: Path, data: ReportData) -> None:
    """Write the report, whole or not at all.

    Args:
        path: the HTML file; an older one is replaced once the new one is complete.
        data: what to show.

    Raises:
        FlawsmithError: the file cannot be written.
    """
    # File names may hold bytes that are no text; they are shown by their number instead of stopping the
    # report.
    content = render_report(data).encode("utf-8", "backslashreplace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise FlawsmithError(
            f"the report cannot be written to {path} ({error.strerror}): name a file in a writable folder"
        ) from error


def render_report(data: ReportData) -> str:
    """The report as HTML text; the same data give the same text."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        data=data,
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
    )


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


def _scores(data: ReportData, kind: ScoreKind) -> list[float]:
    return [float(score) for group in data.scores if group.kind == kind for score in group.scores]


def _headlines(data: ReportData) -> Iterator[Headline]:
    result = data.evaluation
    if result is not None:
        rejected = result.verdicts.get("good", {}).get("reject", 0)
        missed = sum(defect.n_missed for defect in result.by_defect.values())
        if result.image_auroc is not None:
            yield Headline("Image AUROC", number(result.image_auroc), _between(result, "image_auroc"))
        if result.aupro is not None:
            yield Headline(result.overlap_name, number(result.aupro), _between(result, "aupro"))
        if result.miss_rate is not None:
            yield Headline(
                "Flaws missed", f"{missed} of {result.n_flawed}", f"{percent(result.miss_rate)} not rejected"
            )
        if result.false_reject_rate is not None:
            alarms = f"{rejected} of {result.n_good}"
            yield Headline("Good parts rejected", alarms, percent(result.false_reject_rate))
        return
    if data.limit is not None:
        yield Headline("Reject limit", f"{data.limit:.4g}", "on the image score")
    held_out, synthetic = _scores(data, "held_out"), _scores(data, "forged")
    if held_out:
        yield Headline("Held-out good images", str(len(held_out)), "behind the limit")
    if synthetic and data.limit is not None:
        above = sum(score > data.limit for score in synthetic)
        yield Headline("Synthetic flaws rejected", f"{above} of {len(synthetic)}", percent(above / len(synthetic)))


def _between(result: Evaluation, name: str) -> str:
    ends = result.intervals.get(name)
    return "" if ends is None else f"95 %: {ends[0]:.3f} to {ends[1]:.3f}"


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
    source = plots.score_histogram(data.scores, data.limit, data.review_limit)
    if source is None:
        return None
    caption = "How the image scores spread; each group's bars add up to 1."
    if data.limit is not None:
        caption += f" Images right of the solid line (score above {data.limit:.4g}) are rejected."
    if data.review_limit is not None:
        caption += f" Between the dashed line ({data.review_limit:.4g}) and the solid one a person looks."
    kinds = ", ".join(f"{len(group.scores)} {plots.NAMES[group.kind]}" for group in data.scores)
    return Plot(source, "Image scores", caption, f"Histogram of image scores: {kinds}.", wide=True)


def _curves(data: ReportData) -> Iterator[Plot]:
    result = data.evaluation
    curves, rate = data.curves, "false-positive rate"
    if curves.roc is not None:
        value = number(result.image_auroc if result else None)
        yield Plot(
            plots.rate_curve(curves.roc, f"{rate} (good images)", "flawed images found"),
            "ROC over images",
            f"Flawed images found against good images wrongly called flawed, over all limits. Area: {value}.",
            f"ROC curve over images with an area of {value}.",
        )
    if curves.pro is not None:
        value = number(result.aupro if result else None)
        yield Plot(
            plots.rate_curve(curves.pro, f"{rate} (pixels)", "mean region overlap", shade_to=FPR_LIMIT),
            "Region overlap (PRO)",
            "Mean share of each flaw's area that is marked, every flaw alike. "
            f"Area under it within the shaded part, divided by that width: {value}.",
            f"Region overlap curve with an area of {value} up to a false-positive rate of {FPR_LIMIT}.",
        )
    if curves.spro is not None:
        value = number(result.spro if result else None)
        yield Plot(
            plots.rate_curve(curves.spro, f"{rate} (pixels)", "mean saturated overlap", shade_to=SPRO_LIMIT),
            "Saturated region overlap (sPRO)",
            "Mean over all defects of the marked share of what must be found of each, its saturation area. "
            f"Area under it within the shaded part, divided by that width: {value}.",
            f"Saturated region overlap curve with an area of {value} up to a false-positive rate of {SPRO_LIMIT}.",
        )
    if curves.pixel_roc is not None:
        value = number(result.pixel_auroc if result else None)
        yield Plot(
            plots.rate_curve(curves.pixel_roc, f"{rate} (pixels)", "flawed pixels found"),
            "ROC over pixels",
            f"Flawed pixels found against defect-free pixels marked. Area: {value}.",
            f"ROC curve over pixels with an area of {value}.",
        )


def _training(data: ReportData) -> Plot | None:
    source = plots.training_curves(data.training)
    if source is None:
        return None
    caption = "The losses that training lowered, as recorded in metrics.jsonl."
    return Plot(source, "Losses", caption, "Training losses over time.", wide=True)
