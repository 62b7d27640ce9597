"""What the reports of a training run and of an evaluation show."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.samples import Dataset
from flawsmith.data.splits import HoldOut
from flawsmith.metrics.collect import EvaluationState, ScoredImage
from flawsmith.metrics.ranking import auroc
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.what_if import LimitStep, limit_sentences, limit_steps, promise_of, telling
from flawsmith.models.diagnostics import Pictures
from flawsmith.pipeline.describe import parity_in_words, where_to_look, zones_in_words
from flawsmith.pipeline.provenance import versions
from flawsmith.report.data import (
    Diagnostic,
    Example,
    FactGroup,
    LimitChoice,
    Picture,
    ReportData,
    ScoreKind,
    TriedLimit,
)
from flawsmith.report.html import write_report
from flawsmith.report.plots import data_address, encoded, outlined
from flawsmith.runtime.bundle import Bundle, BundleSpec
from flawsmith.runtime.decision import LARGEST_SCORE, Decision, images_needed, parts_of_1000, promise_in_words
from flawsmith.runtime.files import BASELINES, printable
from flawsmith.runtime.image import ImageArray, as_8_bit, decode
from flawsmith.runtime.inspector import Inspection, Inspector

if TYPE_CHECKING:
    from flawsmith.synthesis.synthesizer import AnomalySample

MOST_SHOWN = 400
"""Test images that a report shows; of more, the plainest verdicts are listed in scores.csv alone."""
PICTURES = 24
"""Of the held-out images, and of the synthetic flaws on them, so many are shown; more are listed."""
MOST_STEPS = 200
"""Limits that the page lets a reader try."""
_NO_CHOICE = (
    "Spots of the map decide here, so that this page cannot try other limits: the report of flawsmith evaluate lets "
    "you move the limit, and flawsmith calibrate sets another one."
)
_PICTURE_BYTES, _LARGEST_PICTURE = 12_000_000, 250_000
_SIDE = 1024
_LISTED, _THUMBNAIL = 200, 512
Mask = NDArray[np.bool_]
Read = Callable[[Path], ImageArray]
"""Decodes a file."""


class ExampleGallery:
    """Keeps the images that a report shows, as an evaluation goes: encoded, so that memory holds what the page will.

    Of more than ``MOST_SHOWN`` images the wrong verdicts stay, then those nearest to the limit.

    Args:
        total: how many images there will be; they share the bytes of the page.
    """

    def __init__(self, total: int) -> None:
        self._most_bytes = min(_LARGEST_PICTURE, _PICTURE_BYTES // (2 * max(1, min(total, MOST_SHOWN))))
        self._entries: list[tuple[tuple[bool, float, int], Example]] = []
        self._number = 0

    @property
    def left_out(self) -> int:
        """Images that are not shown."""
        return self._number - len(self._entries)

    def update(self, image: ScoredImage, inspection: Inspection, mask: Mask | None) -> None:
        """Keep an image if it is among the most telling so far.

        Args:
            mask: the image's mask at its own size, None without.
        """
        self._number += 1
        is_wrong = image.flawed != (image.verdict == "reject")
        deciding = image.score if image.level is None else image.level
        rank = (is_wrong, -abs((inspection.decision.times_limit(deciding) or 0.0) - 1), -self._number)
        if len(self._entries) == MOST_SHOWN and rank < self._entries[0][0]:
            return
        assert inspection.pixels is not None, "the stream was asked to keep them"
        example = Example(
            name=Path(image.image).name,
            defect=image.defect,
            flawed=image.flawed,
            score=deciding,
            verdict=image.verdict,
            pictures=pictures_of(inspection, inspection.pixels, mask, self._most_bytes, maps_of_passes=image.flawed),
        )
        push = heapq.heappush if len(self._entries) < MOST_SHOWN else heapq.heapreplace
        push(self._entries, (rank, example))

    def examples(self) -> list[Example]:
        """The images to show."""
        return [example for _, example in sorted(self._entries, key=lambda entry: -entry[0][2])]


def pictures_of(
    inspection: Inspection, pixels: NDArray[Any], mask: Mask | None, most_bytes: int, *, maps_of_passes: bool
) -> list[Picture]:
    """The image and its map, which is stretched where the image passes.

    Args:
        most_bytes: of each picture.
        maps_of_passes: whether an image that passes has a map.
    """
    image = as_8_bit(pixels, inspection.value_range)
    step = max(1, math.ceil(max(image.shape[:2]) / _SIDE))
    small = _reduced(inspection, step)
    height, width = small.map.shape
    image = np.ascontiguousarray(np.asarray(Image.fromarray(image).reduce(step))[:height, :width])
    name = "" if inspection.image is None else Path(inspection.image).name
    pictures = [Picture(data_address(encoded(image, most_bytes)), "image", printable(f"inspected image {name}"))]
    stretched = inspection.verdict == "pass"
    if stretched and not maps_of_passes:
        return pictures
    heat = np.asarray(small.overlay(image, stretched=stretched))
    if mask is not None and mask.any():
        heat = outlined(heat, mask)
    low, high = small.heat_scale(stretched=stretched)
    limit = inspection.decision.map_limit
    times = f" ({high / limit:.2f} x limit)" if limit > 0 else ""
    # The score may reject what the map does not: the two limits need not agree.
    kind = "stretched map" if stretched else "map, below its limit" if low < limit else "map"
    caption = f"{kind}: {low:.3g} to {high:.3g}{times}"
    if any(region.strangest_place for region in inspection.regions):
        caption += ", dashed: its strangest place"
    return [
        *pictures,
        Picture(data_address(encoded(heat, most_bytes)), caption, f"{caption}; regions outlined: {len(small.regions)}"),
    ]


def _reduced(inspection: Inspection, step: int) -> Inspection:
    """The same of so many pixels a side together: the largest value of each block of the map."""
    if step == 1:
        return inspection
    rows, columns = (side // step for side in inspection.map.shape)
    blocks = inspection.map[: rows * step, : columns * step].reshape(rows, step, columns, step)
    places = [
        (min(x // step, columns - 1), min(y // step, rows - 1))
        for x, y in (r.peak_position for r in inspection.regions)
    ]
    regions = [
        region.model_copy(update={"peak_position": place})
        for region, place in zip(inspection.regions, places, strict=True)
    ]
    return dataclasses.replace(inspection, map_source=blocks.max(axis=(1, 3)), regions=regions, not_inspected=None)


def limits_to_try(
    good: NDArray[np.float64], flawed: NDArray[np.float64], decision: Decision, *, promises: bool
) -> LimitChoice | None:
    """Other limits on the number that decides; None where there is nothing to choose.

    Args:
        good: (n,) numbers that decide of good images: scores, or where regions decide levels of the map.
        flawed: (m,) of flawed ones, or of synthetic flaws.
        decision: the limits in use.
        promises: whether the good images are those that the limit rests on, so that each limit has a promise.
    """
    steps = limit_steps(good, flawed, decision.deciding_limit) if good.size else []
    if len(steps) < 2:
        return None
    thinned = np.unique(np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int))
    shown = [steps[place] for place in thinned if not steps[place].in_use]
    shown = sorted([*shown, *(step for step in steps if step.in_use)], key=lambda step: step.limit)
    few = telling(steps, good.size)
    told = {step.limit: _counts(step, decision, good.size, flawed.size, promises=promises) for step in (*shown, *few)}
    kind = "synthetic flaws" if promises else "flaws"
    heads = ["Limit", *([f"{kind.capitalize()} missed"] if flawed.size else [])]
    heads += ["Good parts rejected, of 1,000", "at worst (95 % sure)"] if promises else ["Good parts rejected"]
    rows = [[f"{step.limit:.4g}", *told[step.limit], "in use" if step.in_use else ""] for step in few]
    return LimitChoice(
        heads=[*heads, ""],
        rows=rows,
        sentences=[] if promises else limit_sentences(steps, good.size, flawed.size),
        steps=[
            TriedLimit(
                step.limit,
                f"{step.missed} of {flawed.size}",
                f"{step.rejected} of {good.size}",
                _sentence(step, decision, good.size, flawed.size, promises=promises),
                step.in_use,
            )
            for step in shown
        ],
    )


def _counts(step: LimitStep, decision: Decision, n_good: int, n_flawed: int, *, promises: bool) -> list[str]:
    missed = [f"{step.missed} of {n_flawed}"] if n_flawed else []
    if not promises:
        return [*missed, f"{step.rejected} of {n_good}"]
    expected, worst = promise_of(step, decision)
    return [*missed, parts_of_1000(expected), parts_of_1000(worst, up=True)]


def _sentence(step: LimitStep, decision: Decision, n_good: int, n_flawed: int, *, promises: bool) -> str:
    multiple = decision.times_limit(step.limit)
    times = "" if multiple is None or step.in_use else f" ({multiple:.2f} x the limit in use)"
    head = "The limit in use" if step.in_use else "A limit of"
    flaws = f"misses {step.missed} of {n_flawed} {'synthetic flaws' if promises else 'flaws'} and " if n_flawed else ""
    parts = "held-out good images" if promises else "good parts"
    text = f"{head} {step.limit:.4g}{times} {flaws}rejects {step.rejected} of {n_good} {parts}."
    return f"{text} Promise: about {promise_in_words(*promise_of(step, decision))}." if promises else text


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
    synthetic: Iterable[AnomalySample] = (),
    made: Sequence[tuple[str, str]] = (),
    read: Read = decode,
) -> None:
    """Write the report of a run that has just been trained: calibration and training, no test figures.

    The baseline is a model of the same images that needs no training, or why there is none. Remarks stand before the
    other notes. The oddest are the images learned from that look least like the others, with scores. The synthetic
    flaws are those whose scores the bundle holds, in that order. ``read`` decodes a file that is shown.
    """
    spec, decision = bundle.spec, bundle.spec.decision
    good, forged = (np.asarray(bundle.calibration.get(name, ()), np.float64) for name in ("good", "forged"))
    held_out = held_out_images(bundle, split)
    examples: list[Example] = []
    if not decision.cross_fitted:  # those scores are of other models, which this one's pictures would contradict
        inspector = Inspector.load(bundle)
        examples = [*_held_out_examples(inspector, held_out, read), *_synthetic_examples(inspector, forged, synthetic)]
    write_report(
        path,
        ReportData(
            title=spec.training.category,
            subtitle=_subtitle(spec),
            made=made,
            promise=decision.promise if decision.held_out else "",
            next_steps=_after_training(decision),
            choice=None
            if decision.by_regions
            else limits_to_try(good, forged, decision, promises=decision.held_out and not decision.cross_fitted),
            no_choice=_NO_CHOICE if decision.by_regions else "",
            facts=[
                *_model_facts(spec),
                *_synthetic_against(bundle, baseline),
                FactGroup("Data", _data_facts(dataset, split.description)),
            ],
            scores=_calibration_scores(bundle),
            limit=None if decision.by_regions else decision.limit,
            review_limit=None if decision.by_regions else decision.review_limit,
            limit_statement=decision.describe(),
            held_out=[
                *_looked_at(bundle, held_out, read),
                *_held_out(bundle, dataset, held_out, read, pictures=not examples),
                *_least_like_others(bundle, oddest, read),
            ],
            examples=examples,
            examples_are=f"good images that the model {_learned(decision)}, and flaws drawn on them",
            training=metrics,
            diagnostics=diagnostics,
            notes=[*remarks, *dataset.notes, *([baseline] if isinstance(baseline, str) else [])],
            stamps=spec.training.stamps,
        ),
    )


def _learned(decision: Decision) -> str:
    """Whether a model learned from the good images behind its limit, in words."""
    return "did not learn from" if decision.held_out else "learned from"


def _after_training(decision: Decision) -> list[str]:
    """What to do with a model that has seen no test image."""
    return [
        *_more_good_images(decision),
        "Look at the good images below: one that is flawed must be removed before training again.",
        "Inspect parts whose state you know, good ones of another day and flawed ones: flawsmith predict model.flaw "
        "IMAGES, or, with test/good and test/<defect>, flawsmith evaluate.",
    ]


def _more_good_images(decision: Decision) -> list[str]:
    """Good images that are missing for the rate that was asked for, and groups; nothing where there are enough."""
    groups = decision.groups
    more_groups = []
    if decision.held_out and groups is not None and decision.worst_false_reject_rate > 2 * decision.worst_rate_alike:
        more_groups.append(
            f"{groups.count} groups ({groups.by}) set the limit and say little about the next one: calibrate with good "
            "images of more of them, or train with --cross-fit 5."
        )
    if not decision.held_out or decision.stated_false_reject_rate <= decision.target_false_reject_rate:
        return more_groups
    expected, proven = images_needed(decision.target_false_reject_rate, rank=max(1, len(decision.zone_limits)))
    asked = parts_of_1000(decision.target_false_reject_rate)
    return [
        f"Only {decision.n_good} good images set the limit. To reject about {asked} of 1,000 good parts, put "
        f"{expected:,} others, better {proven:,}, from several days, into a folder: flawsmith calibrate "
        "model.flaw GOOD.",
        *more_groups,
    ]


def _held_out_examples(inspector: Inspector, held_out: Sequence[tuple[Path, float]], read: Read) -> list[Example]:
    """The strangest of the good images that set the limit."""
    examples = []
    for path, score in held_out[:PICTURES]:
        pixels = read(path)
        inspection = _inspected(inspector, pixels, inspector.spec.geometry.value_range)
        pictures = pictures_of(inspection, pixels, None, _LARGEST_PICTURE // 2, maps_of_passes=True)
        examples.append(Example(path.name, "good", False, score, inspection.verdict, pictures))
    return examples


def _synthetic_examples(
    inspector: Inspector, scores: NDArray[np.float64], synthetic: Iterable[AnomalySample]
) -> list[Example]:
    """Synthetic flaws that are missed, and those found with the lowest scores: of each kind half of the pictures."""
    decision = inspector.spec.decision
    order = np.argsort(scores, kind="stable")
    missed = [place for place in order if scores[place] <= decision.limit][: PICTURES // 2]
    caught = [place for place in order if scores[place] > decision.limit][: PICTURES - len(missed)]
    # Where regions decide, a score does not say whether a flaw is missed.
    shown = set(range(min(PICTURES, len(scores)))) if decision.by_regions else {*missed, *caught}
    last = max(shown, default=-1)
    examples = []
    for place, flaw in enumerate(itertools.islice(synthetic, last + 1)):
        if place not in shown:
            continue
        inspection = _inspected(inspector, flaw.image, None)  # the flaw is drawn on 8 bits already
        pictures = pictures_of(inspection, flaw.image, flaw.mask, _LARGEST_PICTURE // 2, maps_of_passes=True)
        name, score = f"synthetic flaw {place + 1}", float(scores[place])
        examples.append(Example(name, f"synthetic: {flaw.recipe}", True, score, inspection.verdict, pictures))
    return examples


def _inspected(inspector: Inspector, pixels: ImageArray, value_range: tuple[float, float] | None) -> Inspection:
    """What the model says, without a warning of images of another kind: a flaw has 8 bits whatever it is drawn on."""
    measured, decision = inspector.measure(pixels), inspector.spec.decision
    cell = inspector.spec.cell(measured.map.shape)
    verdict, regions = decision.decide(measured.score, measured.map, measured.not_inspected, cell=cell)
    return Inspection(
        image=None,
        score=measured.score,
        verdict=verdict,
        map_source=measured.map,
        regions=regions,
        not_inspected=measured.not_inspected,
        timing={},
        decision=decision,
        value_range=value_range,
    )


def _looked_at(bundle: Bundle, held_out: Sequence[tuple[Path, float]], read: Read) -> list[Pictures | FactGroup]:
    """Where the model looks, on an image that set the limit; nothing where it looks everywhere."""
    decision, seen = bundle.spec.decision, bundle.spec.geometry.region
    regions = [region for region in (seen, decision.region_of_interest) if region is not None]
    if not held_out or not (regions or decision.zones):
        return []
    image = as_8_bit(read(held_out[0][0]), bundle.spec.geometry.value_range)
    size = (image.shape[0], image.shape[1])
    inside = np.logical_and.reduce([np.ones(size, bool), *(region.to_mask(size) for region in regions)])
    shown = np.where(inside[..., None], image, image // 4)
    for zone in decision.zones:
        shown = outlined(shown, zone.region.to_mask(size))
    caption = "What is dark is not looked at." + (" Dashed: the zones." if decision.zones else "")
    picture = Image.fromarray(shown)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return [Pictures("Where the model looks", caption, [("region of interest", np.asarray(picture))])]


def _held_out(
    bundle: Bundle, dataset: Dataset, scored: Sequence[tuple[Path, float]], read: Read, *, pictures: bool
) -> list[Pictures | FactGroup]:
    """The images behind the limit by score, the highest with their pictures."""
    rows = [(dataset.name_of(path), f"{score:.6g}") for path, score in scored[:_LISTED]]
    more = f", the highest {_LISTED} of {len(scored)}" if len(scored) > _LISTED else ""
    caption = "The limit rests on these images, highest score first. If one is flawed, remove it and train again."
    kind = "held-out good images" if bundle.spec.decision.held_out else "good images learned from"
    title = f"{kind[0].upper()}{kind[1:]} by score"
    strip = [Pictures(title, caption, _pictures(bundle, scored, read))] if pictures else []
    return [*strip, FactGroup(f"Scores of the {kind}{more}", rows)]


def _pictures(bundle: Bundle, scored: Sequence[tuple[Path, float]], read: Read) -> list[tuple[str, NDArray[np.uint8]]]:
    """The first few images, small, with score and name."""
    pictures = []
    for path, score in scored[:PICTURES]:
        shown = Image.fromarray(as_8_bit(read(path), bundle.spec.geometry.value_range))
        shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
        pictures.append((f"{score:.4g} · {path.name}", np.asarray(shown)))
    return pictures


def _least_like_others(bundle: Bundle, oddest: Sequence[tuple[Path, float]], read: Read) -> list[Pictures | FactGroup]:
    """The images learned from that may not be good ones."""
    if not oddest:
        return []
    caption = (
        "Each was scored by a model of the others that needs no training. If one of them is flawed, remove it and "
        "train again: what is learned from as good is not found."
    )
    return [Pictures("Images learned from that look least like the others", caption, _pictures(bundle, oddest, read))]


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
    made: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the report of a model on a labelled test split."""
    spec = bundle.spec
    # Limits and calibration speak of what decides; a protocol may take other scores.
    decides, decision = state.deciding is not None, spec.decision
    numbers = state.scores if state.deciding is None else state.deciding
    good, flawed = numbers[~state.flawed], numbers[state.flawed]
    shown: dict[ScoreKind, NDArray[np.floating]] = {
        "good": good[good > -LARGEST_SCORE],
        "flawed": flawed[flawed > -LARGEST_SCORE],
    }
    if decides and not decision.by_regions:
        shown |= _calibration_scores(bundle)
    write_report(
        path,
        ReportData(
            title=spec.training.category,
            subtitle=_subtitle(spec),
            made=made,
            promise=evaluation.promise(),
            next_steps=_more_good_images(decision),
            choice=limits_to_try(good, flawed, decision, promises=False) if decides else None,
            by_regions=decision.by_regions,
            facts=[
                *_model_facts(spec),
                *_baseline_facts(evaluation),
                FactGroup("Data", _data_facts(dataset)),
                *_protocol_facts(evaluation),
            ],
            evaluation=evaluation,
            curves={
                "image_auroc": state.roc_curve(),
                "aupro": state.pro_curve(),
                "spro": state.spro_curve(),
                "pixel_auroc": state.pixel_roc_curve(),
            },
            scores={kind: values for kind, values in shown.items() if len(values)},
            limit=decision.deciding_limit if decides else None,
            review_limit=decision.review_limit if decides else None,
            limit_statement=decision.describe(),
            examples=gallery.examples(),
            left_out=gallery.left_out,
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
        ("Method", f"{spec.method}, preset {spec.preset_in_words}"),
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
        ("Good parts rejected", decision.promise),
        ("Asked for", f"{1000 * decision.target_false_reject_rate:g} of 1,000 good parts"),
        ("Rests on", f"{decision.n_good} good images"),
        *([] if decision.groups is None else [("Groups", f"{decision.groups.by}. {decision.groups.describe()}")]),
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


def _calibration_scores(bundle: Bundle) -> dict[ScoreKind, NDArray[np.floating]]:
    good: ScoreKind = "held_out" if bundle.spec.decision.held_out else "learned"
    named: tuple[tuple[ScoreKind, str], ...] = ((good, "good"), ("forged", "forged"))
    return {kind: bundle.calibration[name] for kind, name in named if name in bundle.calibration}
