"""What the reports of a training run and of an evaluation show."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.layouts.base import count
from flawsmith.data.samples import Dataset
from flawsmith.data.splits import HoldOut
from flawsmith.metrics.collect import EvaluationState, ScoredImage
from flawsmith.metrics.ranking import auroc
from flawsmith.metrics.results import Evaluation
from flawsmith.pipeline.describe import parity_in_words, where_to_look, zones_in_words
from flawsmith.pipeline.provenance import versions
from flawsmith.report.data import (
    Diagnostic,
    Example,
    ExampleKind,
    FactGroup,
    ImageStrip,
    RateCurves,
    ReportData,
    ScoreGroup,
)
from flawsmith.report.html import write_report
from flawsmith.runtime.bundle import Bundle, BundleSpec
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.files import BASELINES
from flawsmith.runtime.image import ImageArray, as_8_bit, decode
from flawsmith.runtime.inspector import Inspection

EXAMPLES = 8
PICTURES = 24
"""Of the held-out images, so many are shown, and more are listed."""
_LISTED, _THUMBNAIL = 200, 512
Mask = NDArray[np.bool_]
Read = Callable[[Path], ImageArray]
"""Decodes a file."""


class ExampleGallery:
    """Keeps the images that a report shows, as an evaluation goes: the worst misses and false alarms, the surest finds.

    At most ``EXAMPLES`` images of each kind are in memory.
    """

    def __init__(self) -> None:
        self._entries: dict[ExampleKind, list[tuple[tuple[float, int], ScoredImage, Inspection, Mask | None]]]
        self._entries = {"miss": [], "false_alarm": [], "found": []}
        self._number = 0

    def update(self, image: ScoredImage, inspection: Inspection, mask: Mask | None) -> None:
        """Keep an image if it is among the most telling of its kind so far.

        Args:
            image: with the score and label by which it counts.
            inspection: what the model said, with the image's pixels.
            mask: the image's mask at its own size, None without.
        """
        self._number += 1
        rejected = image.verdict == "reject"
        if not image.flawed and not rejected:
            return
        kind: ExampleKind = "false_alarm" if not image.flawed else "found" if rejected else "miss"
        # Misses are the worse the lower they score, all else the higher.
        rank = (-image.score, -self._number) if kind == "miss" else (image.score, self._number)
        entries = self._entries[kind]
        heapq.heappush(entries, (rank, image, inspection, mask))
        if len(entries) > EXAMPLES:
            heapq.heappop(entries)

    def examples(self) -> Iterator[Example]:
        """The images to show, kind by kind, the most telling first; each is let go once it was drawn."""
        for kind, entries in self._entries.items():
            entries.sort(reverse=True)
            while entries:
                _, image, inspection, mask = entries.pop(0)
                assert inspection.pixels is not None, "the stream was asked to keep them"
                shown = as_8_bit(inspection.pixels, inspection.value_range)
                yield Example(
                    kind=kind,
                    image=shown,
                    overlay=np.asarray(inspection.overlay(shown)),
                    score=inspection.score,
                    verdict=inspection.verdict,
                    defect=image.defect,
                    name=Path(image.image).name,
                    mask=mask,
                )


def training_report(
    path: Path,
    bundle: Bundle,
    dataset: Dataset,
    split: HoldOut,
    metrics: Sequence[Mapping[str, Any]],
    diagnostics: Sequence[Diagnostic] = (),
    baseline: Bundle | str | None = None,
    remarks: Sequence[str] = (),
    oddest: Sequence[tuple[Path, float]] = (),
    read: Read = decode,
) -> None:
    """Write the report of a run that has just been trained: calibration and training, no test figures.

    The baseline is a model of the same images that needs no training, or why there is none. Remarks stand before the
    other notes. The oddest are the images learned from that look least like the others, with scores. ``read`` decodes a
    file that is shown.
    """
    spec = bundle.spec
    write_report(
        path,
        ReportData(
            title=spec.training.category,
            subtitle=_subtitle(spec),
            facts=[
                *_model_facts(spec),
                *_synthetic_against(bundle, baseline),
                FactGroup("Data", _data_facts(dataset, split.description)),
            ],
            scores=_calibration_scores(bundle),
            limit=None if spec.decision.by_regions else spec.decision.limit,
            review_limit=None if spec.decision.by_regions else spec.decision.review_limit,
            limit_statement=spec.decision.describe(),
            held_out=[*_held_out(bundle, dataset, split, read), *_least_like_others(bundle, oddest, read)],
            training=metrics,
            diagnostics=diagnostics,
            notes=[*remarks, *dataset.notes, *([baseline] if isinstance(baseline, str) else [])],
            stamps=spec.training.stamps,
        ),
    )


def _held_out(bundle: Bundle, dataset: Dataset, split: HoldOut, read: Read) -> list[ImageStrip | FactGroup]:
    """The images behind the limit by score, the highest with their pictures."""
    scored = held_out_images(bundle, split)
    pictures = _pictures(bundle, scored, read)
    rows = [(dataset.name_of(path), f"{score:.6g}") for path, score in scored[:_LISTED]]
    more = f", the highest {_LISTED} of {len(scored)}" if len(scored) > _LISTED else ""
    caption = "The limit rests on these images, highest score first. If one is flawed, remove it and train again."
    return [
        ImageStrip("Held-out good images by score", caption, pictures),
        FactGroup(f"Scores of the held-out good images{more}", rows),
    ]


def _pictures(bundle: Bundle, scored: Sequence[tuple[Path, float]], read: Read) -> list[tuple[str, NDArray[np.uint8]]]:
    """The first few images, small, with score and name."""
    pictures = []
    for path, score in scored[:PICTURES]:
        shown = Image.fromarray(as_8_bit(read(path), bundle.spec.geometry.value_range))
        shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
        pictures.append((f"{score:.4g} · {path.name}", np.asarray(shown)))
    return pictures


def _least_like_others(
    bundle: Bundle, oddest: Sequence[tuple[Path, float]], read: Read
) -> list[ImageStrip | FactGroup]:
    """The images learned from that may not be good ones."""
    if not oddest:
        return []
    caption = (
        "Each was scored by a model of the others that needs no training. If one of them is flawed, remove it and "
        "train again: what is learned from as good is not found."
    )
    return [ImageStrip("Images learned from that look least like the others", caption, _pictures(bundle, oddest, read))]


def held_out_images(bundle: Bundle, split: HoldOut) -> list[tuple[Path, float]]:
    """The images behind the limit and their scores, highest first."""
    paths = [sample.image for sample in split.calibration]
    scores = [float(score) for score in bundle.calibration["good"]]
    return sorted(zip(paths, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


def evaluation_report(
    path: Path,
    bundle: Bundle,
    dataset: Dataset,
    state: EvaluationState,
    evaluation: Evaluation,
    gallery: ExampleGallery,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of a model on a labelled test split."""
    spec = bundle.spec
    test = [
        ScoreGroup("good", state.scores[~state.flawed]),
        ScoreGroup("flawed", state.scores[state.flawed]),
    ]
    # Limits and calibration speak of the model's own scores; a protocol may take others.
    model_scores = state.protocol.image_score == "model"
    calibration = _calibration_scores(bundle) if model_scores else []
    scores_decide = model_scores and not spec.decision.by_regions
    write_report(
        path,
        ReportData(
            title=spec.training.category,
            subtitle=_subtitle(spec),
            facts=[
                *_model_facts(spec),
                *_baseline_facts(evaluation),
                FactGroup("Data", _data_facts(dataset)),
                *_protocol_facts(evaluation),
            ],
            evaluation=evaluation,
            curves=RateCurves(
                state.roc_curve(),
                state.pro_curve(),
                state.pixel_roc_curve(),
                state.spro_curve(),
            ),
            scores=[group for group in (*test, *calibration) if len(group.scores)],
            limit=spec.decision.limit if scores_decide else None,
            review_limit=spec.decision.review_limit if scores_decide else None,
            limit_statement=spec.decision.describe(),
            examples=list(gallery.examples()),
            training=metrics,
            notes=dataset.notes,
            stamps=spec.training.stamps,
        ),
    )


def _subtitle(spec: BundleSpec) -> str:
    return f"{spec.method}, preset {spec.preset}, on {spec.backbone.name}"


def _model_facts(spec: BundleSpec) -> list[FactGroup]:
    height, width = spec.geometry.size
    decision = spec.decision
    model = [
        ("Method", f"{spec.method}, preset {spec.preset}"),
        ("Backbone", f"{spec.backbone.name}, {spec.backbone.weights} weights, SHA-256 {spec.backbone.sha256[:16]}"),
        ("Levels", ", ".join(f"stride {level}" for level in spec.backbone.levels)),
        ("Input", f"{width} × {height} pixels, {spec.geometry.policy}"),
        *([] if spec.tiling is None else [("Tiles", spec.tiling.describe())]),
        ("Engine", f"{spec.engine}, {spec.precision}"),
        ("Seed", str(spec.seed)),
        ("Checkpoint", spec.training.selection),
        *([("Textures of synthetic flaws", spec.training.textures)] if spec.training.textures else []),
        *([("Foreground of synthetic flaws", spec.training.foreground)] if spec.training.foreground else []),
    ]
    limits = [
        ("Reject limit on the score", f"{decision.limit:.6g}"),
        ("Limit on the map", f"{decision.map_limit:.6g}"),
        *((f"Limit in {name}", words) for name, words in zones_in_words(decision)),
        ("Rejects", decision.promise),
        ("Asked for", f"{1000 * decision.target_false_reject_rate:g} of 1,000 good parts"),
        ("Rests on", f"{decision.n_good} good images{_of_groups(decision)}"),
        *([("Where to look", where_to_look(decision))] if decision.by_regions else []),
    ]
    used = [(name, number) for name, number in versions().items()]
    findings = [
        (name, value if isinstance(value, str) else f"{value:.4g}") for name, value in spec.training.findings.items()
    ]
    return [
        FactGroup("Model", model),
        *([FactGroup("Found out about the data", findings)] if findings else []),
        FactGroup("Limits", limits),
        FactGroup("Export", [("Exported against trained", parity_in_words(spec.parity))]),
        FactGroup("Versions", used),
    ]


def _of_groups(decision: Decision) -> str:
    groups = decision.groups
    return "" if groups is None else f" of {count(groups.count, 'group')} ({groups.by})"


def _synthetic_against(bundle: Bundle, baseline: Bundle | str | None) -> list[FactGroup]:
    """How well model and baseline tell flaws synthesized on held-out images from those images."""
    if not isinstance(baseline, Bundle):
        return []
    rows = [(_who(model), f"image AUROC {_told_apart(model)}") for model in (bundle, baseline)]
    title = "Synthetic flaws against held-out good images; real flaws are told apart less easily"
    return [FactGroup(title, rows)]


def _baseline_facts(evaluation: Evaluation) -> list[FactGroup]:
    if evaluation.baseline is None:
        return []
    return [FactGroup("Was training worth it?", list(evaluation.baseline.comparisons(evaluation.labels()).items()))]


def _who(bundle: Bundle) -> str:
    return f"{bundle.spec.method}, which needs no training" if bundle.spec.method in BASELINES else "This model"


def _told_apart(bundle: Bundle) -> str:
    good, synthetic = bundle.calibration["good"], bundle.calibration["forged"]
    value = auroc(np.concatenate([good, synthetic]), np.arange(len(good) + len(synthetic)) >= len(good))
    return "–" if value is None else f"{value:.4f}"


def _data_facts(dataset: Dataset, hold_out: str = "") -> list[tuple[str, str]]:
    facts = [("Data", dataset.summary()), ("Recognised", dataset.recognised)]
    return [*facts, ("Hold-out", hold_out)] if hold_out else facts


def _protocol_facts(evaluation: Evaluation) -> list[FactGroup]:
    deviations = evaluation.explained()
    return (
        [FactGroup(f"Protocol {evaluation.protocol}, where it deviates from clean", deviations)] if deviations else []
    )


def _calibration_scores(bundle: Bundle) -> list[ScoreGroup]:
    named = [("held_out", "good"), ("forged", "forged")]
    return [ScoreGroup(kind, bundle.calibration[key]) for kind, key in named if key in bundle.calibration]  # type: ignore[arg-type]
