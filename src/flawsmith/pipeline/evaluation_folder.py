"""An evaluation as files: the report, the figures and the score of every image."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawsmith.data.defects_config import saturation_of
from flawsmith.data.samples import Dataset
from flawsmith.evaluation.bootstrap import Metric, paired_difference, point_estimates
from flawsmith.evaluation.evidence import Evidence
from flawsmith.evaluation.protocol import choose_protocol
from flawsmith.evaluation.results import BaselineResult, Evaluation
from flawsmith.evaluation.summary import summarise
from flawsmith.pipeline.evaluate import collect, test_samples
from flawsmith.pipeline.names import BASELINE_FOLDER, make_folder, printable
from flawsmith.pipeline.reporting import evaluation_report
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.runtime.inspector import Inspector

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
