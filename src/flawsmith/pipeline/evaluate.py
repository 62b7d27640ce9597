"""Measuring a model on a labelled test split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.layouts import load
from flawsmith.data.loco import Saturation, saturation_of
from flawsmith.data.samples import Dataset, Sample
from flawsmith.metrics.bootstrap import Metric, paired_difference, point_estimates
from flawsmith.metrics.collect import Evidence, ImageRecord, NetworkView, gather, network_mask, resize_mask
from flawsmith.metrics.protocol import CLEAN, Protocol, choose_protocol
from flawsmith.metrics.results import BaselineResult, Evaluation
from flawsmith.metrics.summary import summarise
from flawsmith.pipeline.reporting import evaluation_report
from flawsmith.pipeline.truth import read_channels
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import BASELINE_FOLDER, make_folder, printable, replacing
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable


class Inspects(Interface):
    """What a test split is measured with: an inspector, or what stands in for the model of another package."""

    def stream(self, source: Sequence[Path], /) -> Iterator[Inspection | Unreadable]:
        """Inspect images in order."""
        ...


def evaluate(
    model: str | Path | Inspector,
    data: str | Path | Dataset,
    *,
    layout: str | None = None,
    engine: str | None = None,
    protocol: str = "clean",
    set: Mapping[str, Any] | None = None,  # noqa: A002, the name it has for train and on the command line
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Every figure of a model on the test split of a dataset.

    Args:
        model: a model file, or an inspector.
        data: a category folder of a known layout, or a loaded dataset.
        layout: name of the layout; detected by default.
        engine: another engine than the one the model was calibrated with.
        protocol: ``clean``, or ``papers``: as the released code of the model's method measures.
        set: single switches of the protocol to change, such as ``{"pro": "exact"}``; see docs/protocol.md.
        n_resamples: bootstrap resamples behind the intervals.
        seed: seed of the bootstrap.

    Raises:
        FlawsmithError: when the model or an image cannot be read, the dataset has no test split, what it says of the
            saturation of its defects is damaged, or there is no such protocol or switch.
    """
    inspector = model if isinstance(model, Inspector) else Inspector.load(model, engine=engine)
    dataset = data if isinstance(data, Dataset) else load(data, layout)
    rules = choose_protocol(protocol, method=inspector.spec.method, layout=dataset.layout, changes=set)
    evidence = collect(inspector, test_samples(dataset), saturation=saturation_of(dataset), protocol=rules)
    selection = inspector.spec.training.selection
    return summarise(evidence, selection=selection, n_resamples=n_resamples, seed=seed)


def test_samples(dataset: Dataset) -> tuple[Sample, ...]:
    """The labelled test images of a dataset.

    Raises:
        FlawsmithError: when it has none.
    """
    if not dataset.test:
        raise FlawsmithError(
            f"{dataset.root} has no test images to evaluate on: put good ones into test/good and flawed ones into "
            "test/<defect>, or judge single images with `flawsmith predict`"
        )
    return dataset.test


test_samples.__test__ = False  # type: ignore[attr-defined]


def collect(
    inspector: Inspects,
    samples: Sequence[Sample],
    *,
    saturation: Saturation | None = None,
    protocol: Protocol = CLEAN,
    done: Callable[[], object] = lambda: None,
) -> Evidence:
    """Inspect samples and gather what figures, intervals and plots are computed from.

    Args:
        inspector: the model.
        samples: labelled images.
        saturation: when their defects count as found; None leaves sPRO out.
        protocol: the rules.
        done: called after each image.

    Raises:
        FlawsmithError: an image or a mask cannot be read, they contradict each other, or the disk is full.
    """
    known = Saturation() if saturation is None else saturation
    records = _records(inspector, samples, known, protocol, done)
    return gather(records, protocol=protocol, saturated=bool(known.kinds), notes=known.notes)


def _records(
    inspector: Inspects,
    samples: Sequence[Sample],
    saturation: Saturation,
    protocol: Protocol,
    done: Callable[[], object],
) -> Iterator[ImageRecord]:
    geometry = _network_geometry(inspector) if protocol.pixels == "network" else None
    stream = inspector.stream([sample.image for sample in samples])
    for sample, result in zip(samples, stream, strict=True):
        if isinstance(result, Unreadable):
            raise FlawsmithError(f"{result.error}; or remove it from the test split")
        mask, channels = read_channels(sample, saturation.kinds)
        yield ImageRecord(
            image=str(sample.image),
            score=result.score,
            verdict=result.verdict,
            defect=sample.defect,
            flawed=sample.is_flawed,
            map=result.map,
            mask=mask,
            not_inspected=result.not_inspected,
            channels=channels,
            network=None if geometry is None else _network_view(geometry, result, mask, protocol),
        )
        done()


def _network_geometry(inspector: Inspects) -> Geometry:
    """How images reach the network.

    Raises:
        FlawsmithError: it is another package's model.
    """
    if not isinstance(inspector, Inspector):
        raise FlawsmithError(
            "the network's pixels are known of this package's own models alone: compare with others by --protocol clean"
        )
    return inspector.spec.geometry


def _network_view(
    geometry: Geometry, result: Inspection, mask: NDArray[np.bool_] | None, protocol: Protocol
) -> NetworkView:
    """Map and mask in the network's pixels."""
    size = (result.map.shape[0], result.map.shape[1])
    assert result.network_map is not None, "an inspector fills it in"
    content = geometry.valid_region(result.network_map, size)
    if mask is None:
        return NetworkView(content)
    own = mask if mask.shape == size else resize_mask(mask, size)
    return NetworkView(content, network_mask(own, geometry, protocol.mask))


REPORT, FIGURES, SCORES = "report.html", "evaluation.json", "scores.csv"
COMPARED: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro")
_METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class WrittenEvaluation:
    """What an evaluation leaves behind.

    Attributes:
        evaluation: the figures.
        report: the report.
        figures: the figures as JSON.
        scores: a CSV with image, defect, score and verdict of every test image, and a remark where the evaluation is
            stamped; images are relative to the data.
    """

    evaluation: Evaluation
    report: Path
    figures: Path
    scores: Path


def evaluate_into(
    folder: Path,
    bundle: Bundle,
    dataset: Dataset,
    *,
    engine: str | None = None,
    protocol: str = "clean",
    set: Mapping[str, Any] | None = None,  # noqa: A002, the name it has for train and on the command line
    history: Path | None = None,
    done: Callable[[], object] = lambda: None,
) -> WrittenEvaluation:
    """Evaluate a model on the test split of a dataset and write report.html, evaluation.json and scores.csv.

    Args:
        folder: where to write; made if missing, files of an earlier evaluation are replaced.
        bundle: the model.
        dataset: the data.
        engine: another engine than the one the model was calibrated with.
        protocol, set: as in :func:`flawsmith.pipeline.evaluate.evaluate`.
        history: run folder whose training curve the report shows, where it has one.
        done: called after each image.

    Raises:
        FlawsmithError: the dataset has no test split, or a damaged saturation of its defects; an image cannot be read,
            the folder cannot be written, or there is no such protocol or switch.
    """
    rules = choose_protocol(protocol, method=bundle.spec.method, layout=dataset.layout, changes=set)
    samples, saturation = test_samples(dataset), saturation_of(dataset)
    inspector = Inspector.load(bundle, engine=engine)
    make_folder(folder)
    evidence = collect(inspector, samples, saturation=saturation, protocol=rules, done=done)
    evaluation = summarise(evidence, selection=bundle.spec.training.selection)
    beside = baseline_of(bundle, history)
    if beside is not None:
        other = collect(
            Inspector.load(beside, engine=engine), samples, saturation=saturation, protocol=rules, done=done
        )
        evaluation = evaluation.model_copy(update={"baseline": against(beside.spec.method, evidence, other)})
    written = WrittenEvaluation(evaluation, folder / REPORT, folder / FIGURES, folder / SCORES)
    metrics = _metrics(history / _METRICS) if history is not None else []
    evaluation_report(written.report, bundle, inspector, dataset, evidence, evaluation, metrics)
    with replacing(written.figures) as temporary:
        temporary.write_text(json.dumps(evaluation.model_dump(mode="json"), indent=2, allow_nan=False) + "\n")
    _write_scores(written.scores, dataset, evidence, evaluation.stamps)
    return written


def baseline_of(bundle: Bundle, run: Path | None) -> Bundle | None:
    """The baseline that was trained beside a model on the same images; None where there is none.

    Args:
        bundle: the model.
        run: the run folder it lies in.
    """
    file = None if run is None else run / BASELINE_FOLDER / "model.flaw"
    if file is None or not file.is_file():
        return None
    try:
        found = Bundle.load(file)
    except FlawsmithError:  # an extra, not a condition
        return None
    return found if found.spec.training.images_sha256 == bundle.spec.training.images_sha256 else None


def against(method: str, model: Evidence, baseline: Evidence) -> BaselineResult:
    """A baseline's figures, and what the model has gained over them on the same images."""
    figures = point_estimates(baseline)
    differences = {name: paired_difference(name, model, baseline) for name in COMPARED}
    return BaselineResult(
        method=method,
        **{name: figures[name] for name in COMPARED},
        gains={name: (one.value, one.low, one.high) for name, one in differences.items() if one is not None},
    )


def _write_scores(path: Path, dataset: Dataset, evidence: Evidence, stamps: Sequence[str]) -> None:
    # A column of its own, so that programs read a stamped table as any other.
    remark = (" ".join(stamps),) if stamps else ()
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "defect", "score", "verdict", *(("remark",) if stamps else ())))
        for image, defect, score, verdict in zip(
            evidence.images, evidence.defects, evidence.scores, evidence.verdicts, strict=True
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
