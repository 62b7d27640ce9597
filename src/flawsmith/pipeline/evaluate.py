"""Measuring a model on a labelled test split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from flawsmith.data.layouts import load
from flawsmith.data.loco import DefectKind, Saturation
from flawsmith.data.masks import MaskImage, MaskRemarks
from flawsmith.data.samples import Dataset, Sample
from flawsmith.metrics.bootstrap import Metric, paired_differences, point_estimates
from flawsmith.metrics.collect import (
    EvaluationState,
    MetricCollection,
    ScoredImage,
    ScoredMask,
    network_mask,
    refuse_marked_good,
    resize_mask,
)
from flawsmith.metrics.protocol import CLEAN, Protocol, choose_protocol
from flawsmith.metrics.results import BaselineResult, Evaluation
from flawsmith.metrics.spro import Channel
from flawsmith.metrics.summary import summarise
from flawsmith.pipeline.masks import SaturationReader, read_channels
from flawsmith.pipeline.provenance import made_of
from flawsmith.pipeline.reporting import ExampleGallery, evaluation_report
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import (
    BASELINE_FOLDER,
    further_pictures_note,
    left_out,
    left_out_note,
    printable,
    replacing,
)
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
from flawsmith.runtime.outputs import exclusive_folder, refuse_irreplaceable


class Inspects(Interface):
    """What a test split is measured with: an inspector, or what stands in for the model of another package."""

    def stream(self, source: Sequence[Path], /) -> Iterator[Inspection | Unreadable]:
        """Inspect images in order."""
        ...


def evaluate(
    model: str | Path | Inspector,
    data: str | Path | Dataset,
    *,
    out: str | Path | None = None,
    layout: str | None = None,
    engine: str | None = None,
    protocol: str = "clean",
    set: Mapping[str, Any] | None = None,  # noqa: A002, the name it has for train and on the command line
    dated: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Every figure of a model on the test split of a dataset.

    Args:
        model: a model file, or an inspector where nothing is to be written.
        data: a category folder of a known layout, or a loaded dataset.
        out: folder for report.html, evaluation.json and scores.csv, the files of the command, and then compared with
            the baseline beside the model; None: nothing is written.
        layout: name of the layout; detected by default.
        engine: another engine than the one the model was calibrated with.
        protocol: ``clean``, or ``papers``: as the released code of the model's method measures.
        set: single switches of the protocol to change, such as ``{"pro": "exact"}``; see docs/research/protocol.md.
        dated: say in the report when and of what it was made.
        n_resamples: bootstrap resamples behind the intervals.
        seed: seed of the bootstrap.

    Raises:
        FlawsmithError: when the model or an image cannot be read, the dataset has no test split, what it says of the
            saturation of its defects is damaged, there is no such protocol or switch, or files are to be written of an
            inspector or cannot be.
    """
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    if out is not None:
        if isinstance(model, Inspector):
            raise FlawsmithError(
                "evaluate: the report needs what only the model file holds; give the file in place of the inspector, "
                "or no out"
            )
        written = evaluate_into(
            Path(out),
            Bundle.load(model),
            dataset,
            engine=engine,
            protocol=protocol,
            set=set,
            history=Path(model).parent,
            dated=dated,
            n_resamples=n_resamples,
            seed=seed,
        )
        return written.evaluation
    inspector = model if isinstance(model, Inspector) else Inspector.load(model, engine=engine)
    rules = choose_protocol(protocol, method=inspector.spec.method, layout=dataset.layout, changes=set)
    state, spec = measure_state(inspector, dataset, protocol=rules), inspector.spec
    return summarise(
        state, selection=spec.training.selection, decision=spec.decision, n_resamples=n_resamples, seed=seed
    )


def measure_state(
    inspector: Inspector,
    dataset: Dataset,
    *,
    protocol: Protocol = CLEAN,
    on_step: Callable[[], object] = lambda: None,
) -> EvaluationState:
    """What figures, intervals and curves of a model on a test split are computed from.

    Raises:
        FlawsmithError: an image cannot be read, or the dataset has no test split or damaged saturations.
    """
    samples, masks = test_samples(dataset), SaturationReader(dataset)
    (state,) = _measure([inspector], samples, masks, protocol, notes=_left_out(dataset), on_step=on_step)
    return state


def test_samples(dataset: Dataset) -> tuple[Sample, ...]:
    """The labelled test images of a dataset.

    Raises:
        FlawsmithError: when it has none.
    """
    if not dataset.test:
        raise FlawsmithError(
            f"{dataset.root} has no test images to evaluate on: put good ones into test/good and flawed ones into "
            "test/<defect>, or use `flawsmith predict`"
        )
    return dataset.test


test_samples.__test__ = False  # type: ignore[attr-defined]


def check_samples(samples: Sequence[Sample], *, saturation: Saturation | None = None) -> None:
    """Look once at every image and mask that an evaluation needs, before a model is trained for it.

    Raises:
        FlawsmithError: what :func:`collect` would refuse: an image or a mask cannot be read, or they contradict each
            other.
    """
    known = Saturation() if saturation is None else saturation
    for sample in samples:
        try:
            decode(sample.image)
        except FlawsmithError as error:
            raise FlawsmithError(f"{error}; or remove it from the test split") from None
        mask, _ = read_channels(sample, lambda path, pixels: known.kinds.get(path))
        refuse_marked_good(str(sample.image), sample.is_flawed, mask)


def collect(
    inspector: Inspects,
    samples: Sequence[Sample],
    *,
    saturation: Saturation | None = None,
    protocol: Protocol = CLEAN,
    on_step: Callable[[], object] = lambda: None,
) -> EvaluationState:
    """Inspect samples and take in what figures, intervals and plots are computed from.

    Args:
        saturation: when their defects count as found; None leaves sPRO out.

    Raises:
        FlawsmithError: an image or a mask cannot be read, they contradict each other, or the disk is full.
    """
    known = Saturation() if saturation is None else saturation
    geometry, remarks = _network_geometry(inspector, protocol), MaskRemarks()
    of_several: list[str] = []

    def kind(path: Path, mask: MaskImage) -> DefectKind | None:
        remarks.update(path, mask.oddities, mask.share)
        return known.kinds.get(path)

    with MetricCollection(protocol, saturated=bool(known.kinds)) as metrics:
        for sample, inspection in _readable(samples, inspector.stream([sample.image for sample in samples])):
            if inspection.further_pictures:
                of_several.append(str(sample.image))
            mask, channels = read_channels(sample, kind)
            metrics.update(_scored(sample, inspection, mask, channels, protocol, geometry))
            on_step()
        return metrics.compute(notes=(*known.notes, *remarks.notes(), *_of_several(of_several)))


def _measure(
    inspectors: Sequence[Inspector],
    samples: Sequence[Sample],
    masks: SaturationReader,
    protocol: Protocol,
    *,
    notes: Sequence[str] = (),
    gallery: ExampleGallery | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> list[EvaluationState]:
    """Measure models on a test split, each image and mask file decoded once for all of them.

    Args:
        masks: learns from their masks how their defects saturate.
        notes: what is known of the data beforehand, in sentences.
        gallery: keeps images of the first model for the report; needed beside a second model.
    """
    geometries = [_network_geometry(inspector, protocol) for inspector in inspectors]
    stream = inspectors[0].stream([sample.image for sample in samples], keep_pixels=gallery is not None)
    of_several: list[str] = []
    with ExitStack() as files:
        collections = [files.enter_context(MetricCollection(protocol, saturated=masks.saturates)) for _ in inspectors]
        for sample, first in _readable(samples, stream):
            if first.further_pictures:
                of_several.append(str(sample.image))
            mask, channels = read_channels(sample, masks.kind)
            inspections = [first, *(_inspect_again(other, sample, first) for other in inspectors[1:])]
            counted = [
                metrics.update(_scored(sample, inspection, mask, channels, protocol, geometry))
                for metrics, inspection, geometry in zip(collections, inspections, geometries, strict=True)
            ]
            if gallery is not None:
                gallery.update(counted[0], first, mask)
            on_step()
        masks.finish()
        said = (*notes, *masks.notes, *_of_several(of_several))
        return [metrics.compute(notes=said, saturated=masks.saturates) for metrics in collections]


def _left_out(dataset: Dataset) -> tuple[str, ...]:
    """What lies among the test images and is no image that can be read."""
    inside = (sample.image for sample in dataset.test if sample.image.is_relative_to(dataset.root))
    tops = {image.relative_to(dataset.root).parts[:-1][:1] for image in inside}
    folders = [dataset.root] if () in tops else [dataset.root.joinpath(*top) for top in sorted(tops)]
    return _as_sentence(left_out_note(left_out(folders)))


def _of_several(images: Sequence[str]) -> tuple[str, ...]:
    return _as_sentence(further_pictures_note(images[:_NAMED], len(images)))


def _as_sentence(note: str) -> tuple[str, ...]:
    return (f"{note}.",) if note else ()


def _readable(
    samples: Sequence[Sample], stream: Iterator[Inspection | Unreadable]
) -> Iterator[tuple[Sample, Inspection]]:
    """Samples with their inspections."""
    for sample, result in zip(samples, stream, strict=True):
        if isinstance(result, Unreadable):
            raise FlawsmithError(f"{result.error}; or remove it from the test split")
        yield sample, result


def _inspect_again(inspector: Inspector, sample: Sample, first: Inspection) -> Inspection:
    """What another model says of an image that was decoded for the first."""
    assert first.pixels is not None, "kept for the gallery"
    try:
        return inspector.inspect(first.pixels)
    except FlawsmithError as error:
        raise FlawsmithError(f"{sample.image}: {error}; or remove it from the test split") from None


def _scored(
    sample: Sample,
    inspection: Inspection,
    mask: NDArray[np.bool_] | None,
    channels: tuple[Channel, ...],
    protocol: Protocol,
    geometry: Geometry | None,
) -> ScoredImage:
    decision = inspection.decision
    return ScoredImage(
        image=str(sample.image),
        score=inspection.score,
        verdict=inspection.verdict,
        defect=sample.defect,
        flawed=sample.is_flawed,
        map=inspection.map,
        mask=mask,
        not_inspected=inspection.not_inspected,
        channels=channels,
        network=None if geometry is None else _in_network_pixels(geometry, inspection, mask, protocol),
        level=decision.level(inspection.map, inspection.not_inspected) if decision.by_regions else None,
    )


def _network_geometry(inspector: Inspects, protocol: Protocol) -> Geometry | None:
    """How images reach the network, where the protocol measures in its pixels.

    Raises:
        FlawsmithError: it is another package's model, or images are cut into tiles.
    """
    if protocol.pixels != "network":
        return None
    if not isinstance(inspector, Inspector):
        raise FlawsmithError(
            "the network's pixels are known of this package's own models alone: compare with others by --protocol clean"
        )
    if inspector.spec.tiling is not None:
        raise FlawsmithError(
            "this model cuts images into tiles, so no map has the network's pixels: use --protocol clean"
        )
    return inspector.spec.geometry


def _in_network_pixels(
    geometry: Geometry, inspection: Inspection, mask: NDArray[np.bool_] | None, protocol: Protocol
) -> ScoredMask:
    """Map and mask in the network's pixels."""
    size = (inspection.map.shape[0], inspection.map.shape[1])
    assert inspection.network_map is not None, "an inspector fills it in"
    content = geometry.valid_region(inspection.network_map, size)
    if mask is None:
        return ScoredMask(content)
    fitted = mask if mask.shape == size else resize_mask(mask, size)
    return ScoredMask(content, network_mask(fitted, geometry, protocol.mask))


REPORT, FIGURES, SCORES = "report.html", "evaluation.json", "scores.csv"
COMPARED: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro")
_METRICS = "metrics.jsonl"
_NAMED = 3


@dataclass(frozen=True)
class WrittenEvaluation:
    """What an evaluation leaves behind.

    Attributes:
        evaluation: the figures.
        report: the report.
        figures: the figures as JSON.
        scores: a CSV with image, defect, score and verdict of every test image, and a remark where the evaluation has
            caveats; images are relative to the data.
    """

    evaluation: Evaluation
    report: Path
    figures: Path
    scores: Path


def evaluate_into(
    folder: Path | None,
    bundle: Bundle,
    dataset: Dataset,
    *,
    engine: str | None = None,
    protocol: str = "clean",
    set: Mapping[str, Any] | None = None,  # noqa: A002, the name it has for train and on the command line
    history: Path | None = None,
    dated: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> WrittenEvaluation:
    """Evaluate a model on the test split of a dataset and write report.html, evaluation.json and scores.csv.

    Args:
        folder: where to write; made if missing, files of an earlier evaluation by the same rules are replaced. None:
            ``evaluation`` in ``history``, or ``evaluation-papers`` and ``evaluation-custom`` by other rules.
        engine: another engine than the one the model was calibrated with.
        protocol, set: as in :func:`flawsmith.pipeline.evaluate.evaluate`.
        history: run folder whose training curve the report shows, where it has one.
        dated: say in the report when and of what it was made: date, data folder, number of images, hash of the model.
        n_resamples, seed: as in :func:`flawsmith.pipeline.evaluate.evaluate`.

    Raises:
        FlawsmithError: the dataset has no test split, or a damaged saturation of its defects; an image cannot be read,
            the folder cannot be written or holds figures by other rules, or there is no such protocol or switch.
    """
    rules = choose_protocol(protocol, method=bundle.spec.method, layout=dataset.layout, changes=set)
    samples, masks = test_samples(dataset), SaturationReader(dataset)
    inspector, gallery = Inspector.load(bundle, engine=engine), ExampleGallery(len(samples))
    baseline = baseline_of(bundle, history)
    inspectors = [inspector] if baseline is None else [inspector, Inspector.load(baseline, engine=engine)]
    folder = _default_folder(history, rules) if folder is None else folder
    report, figures, scores = folder / REPORT, folder / FIGURES, folder / SCORES
    with exclusive_folder(folder):
        _refuse_other_protocol(figures, rules)
        refuse_irreplaceable((report, figures, scores))
        state, *others = _measure(
            inspectors, samples, masks, rules, notes=_left_out(dataset), gallery=gallery, on_step=on_step
        )
        evaluation = summarise(
            state,
            selection=bundle.spec.training.selection,
            decision=bundle.spec.decision,
            n_resamples=n_resamples,
            seed=seed,
        )
        if baseline is not None:
            comparison = against(baseline.spec.method, state, others[0])
            evaluation = evaluation.model_copy(update={"baseline": comparison})
        metrics = _metrics(history / _METRICS) if history is not None else []
        made = made_of(bundle, dataset) if dated else []
        evaluation_report(report, bundle, dataset, state, evaluation, gallery, metrics, made)
        with replacing(figures) as temporary:
            text = json.dumps(evaluation.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
            temporary.write_text(text, encoding="utf-8")
        _write_scores(scores, dataset, state, evaluation.stamps)
    return WrittenEvaluation(evaluation, report, figures, scores)


def _default_folder(run: Path | None, rules: Protocol) -> Path:
    """Beside the model, a folder for each protocol: figures of one are not comparable with those of another."""
    return (run or Path()) / ("evaluation" if rules.name == "clean" else f"evaluation-{rules.name}")


def _refuse_other_protocol(figures: Path, rules: Protocol) -> None:
    """Figures that were measured by other rules are not replaced."""
    try:
        earlier = Evaluation.model_validate_json(figures.read_bytes())
    except (OSError, ValidationError):
        return
    if (earlier.protocol, earlier.deviations) != (rules.name, rules.deviations()):
        switches = "".join(f", {name}={value}" for name, value in earlier.deviations.items())
        raise FlawsmithError(
            f"{figures.parent} holds figures by other rules (protocol {earlier.protocol}{switches}), which do not "
            "compare with these: give another folder with --out"
        )


def baseline_of(bundle: Bundle, run: Path | None) -> Bundle | None:
    """The baseline that was trained beside a model on the same images; None where there is none."""
    file = None if run is None else run / BASELINE_FOLDER / "model.flaw"
    if file is None or not file.is_file():
        return None
    try:
        baseline = Bundle.load(file)
    except FlawsmithError:  # an extra, not a condition
        return None
    return baseline if baseline.spec.training.images_sha256 == bundle.spec.training.images_sha256 else None


def against(method: str, model: EvaluationState, baseline: EvaluationState) -> BaselineResult:
    """A baseline's figures, and what the model has gained over them on the same images."""
    figures, differences = point_estimates(baseline), paired_differences(model, baseline)
    return BaselineResult(
        method=method,
        **{name: figures[name] for name in COMPARED},
        gains={name: differences[name] for name in COMPARED if name in differences},
    )


def _write_scores(path: Path, dataset: Dataset, state: EvaluationState, caveats: Sequence[str]) -> None:
    # A column of its own, so that programs read a table with caveats as any other.
    remark = (" ".join(caveats),) if caveats else ()
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "defect", "score", "verdict", *(("remark",) if caveats else ())))
        for image, defect, score, verdict in zip(
            state.images, state.defects, state.scores, state.verdicts, strict=True
        ):
            name = dataset.name_of(Path(image))
            rows.writerow((printable(name), printable(defect), repr(float(score)), verdict, *remark))


def _metrics(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a run's metrics, as far as they can be read: the curve is an extra, not a condition."""
    rows: list[Mapping[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    except (OSError, ValueError):
        return rows
    return rows
