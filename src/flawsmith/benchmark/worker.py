"""What a cell's own process does: train, inspect, measure, and leave the result beside the task.

Called as ``python -m flawsmith.benchmark.worker FOLDER`` with ``FOLDER/task.json``.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawsmith.benchmark.cell import (
    MODEL,
    RESULT,
    SCORES,
    TIMED_IMAGES,
    WARM_UP_IMAGES,
    Cell,
    CellResult,
    Contender,
    Costs,
    Latency,
    Part,
    Task,
)
from flawsmith.benchmark.executors import TASK
from flawsmith.data.layouts import load
from flawsmith.data.loco import saturation_of
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import half
from flawsmith.metrics.collect import Evidence
from flawsmith.metrics.protocol import choose_protocol
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.summary import summarise
from flawsmith.pipeline.evaluate import Inspects, collect, test_samples
from flawsmith.pipeline.provenance import machine, versions
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import printable
from flawsmith.runtime.inspector import Inspector

if TYPE_CHECKING:
    from flawsmith.pipeline.train import TrainResult


def run_task(task: Task, scratch: Path) -> CellResult:
    """Train and evaluate one cell.

    Args:
        task: the cell and where its data is.
        scratch: the folder of the result; ``scores.csv`` and, if asked for, ``model.flaw`` are written there too.

    Raises:
        FlawsmithError: data or settings that cannot be used.
    """
    cell = task.cell
    dataset = load(task.data, task.layout)
    samples = test_samples(dataset)
    contender = _contender(task, dataset, samples, scratch)
    sides = {str(sample.image): half(sample) for sample in samples}
    start = time.perf_counter()
    evaluations, evidence = _evaluations(cell, contender.inspector, dataset, samples, sides)
    evaluate_seconds = contender.inspect_seconds + time.perf_counter() - start
    _write_scores(scratch / SCORES, dataset, evidence, sides)
    p50, p95 = contender.latency()
    return CellResult(
        cell=cell,
        status="finished",
        evaluations=evaluations,
        n_train=contender.n_train,
        n_calibration=contender.n_calibration,
        costs=Costs(
            train_seconds=round(contender.train_seconds, 3),
            evaluate_seconds=round(evaluate_seconds, 3),
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            model_bytes=contender.model_bytes,
        ),
        versions=dict(contender.versions),
        machine=machine(),
    )


def _contender(task: Task, dataset: Dataset, samples: tuple[Sample, ...], scratch: Path) -> Contender:
    if task.cell.arm.peer is None:
        return _own(task, samples, scratch)
    from flawsmith.benchmark.peers.driver import train_peer

    folder = scratch / "peer"  # its maps are read until the cell has ended, and go with the scratch folder
    folder.mkdir()
    return train_peer(task, dataset, samples, folder)


def _own(task: Task, samples: tuple[Sample, ...], scratch: Path) -> Contender:
    """A method of this package, trained."""
    start = time.perf_counter()
    trained = _train(task, scratch / "run")
    train_seconds = time.perf_counter() - start
    if task.keep_model:
        shutil.copyfile(trained.model, scratch / MODEL)
    inspector = Inspector.load(trained.model)
    training = trained.bundle.spec.training
    return Contender(
        inspector=inspector,
        latency=lambda: _latency(inspector, [sample.image for sample in samples]),
        n_train=training.n_train,
        n_calibration=training.n_calibration,
        train_seconds=train_seconds,
        inspect_seconds=0.0,
        model_bytes=trained.model.stat().st_size,
        versions=versions(),
    )


def _train(task: Task, out: Path) -> TrainResult:
    from flawsmith.pipeline.train import train

    arm = task.cell.arm
    return train(
        task.data,
        out=out,
        quiet=True,
        baseline="none",
        method=arm.method,
        preset=arm.preset,
        backbone=task.backbone,
        seed=task.cell.seed,
        set=dict(arm.set),
        textures=task.textures,
        select=arm.select,
        engine=arm.engine,
        precision=arm.precision,
        fraction=arm.fraction,
        layout=task.layout,
    )


def _evaluations(
    cell: Cell, inspector: Inspects, dataset: Dataset, samples: tuple[Sample, ...], sides: Mapping[str, str]
) -> tuple[dict[Part, Evaluation], Evidence]:
    """The figures of every part asked for, and the evidence of the whole test set.

    The images are inspected once a part: maps are never held, and exact pixel figures need all of a part's.
    """
    evaluations: dict[Part, Evaluation] = {}
    saturation = saturation_of(dataset)
    rules = choose_protocol(cell.protocol, method=cell.arm.method, layout=dataset.layout)
    whole = collect(inspector, samples, saturation=saturation, protocol=rules)
    for part in cell.parts:
        chosen = [sample for sample in samples if part in ("whole", sides[str(sample.image)])]
        if not chosen:
            raise FlawsmithError(f"{dataset.root}: {part} of the test split holds no image; report the whole alone")
        evidence = whole if part == "whole" else collect(inspector, chosen, saturation=saturation, protocol=rules)
        evaluations[part] = summarise(evidence, selection=cell.arm.select, n_resamples=cell.resamples)
    return evaluations, whole


def _latency(inspector: Inspector, images: list[Path]) -> Latency:
    for image in images[:WARM_UP_IMAGES]:
        inspector.inspect(image)
    seconds = []
    for image in (images * TIMED_IMAGES)[:TIMED_IMAGES]:
        start = time.perf_counter()
        inspector.inspect(image)
        seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds, [50, 95])
    return round(1000 * float(p50), 3), round(1000 * float(p95), 3)


def _write_scores(path: Path, dataset: Dataset, evidence: Evidence, sides: Mapping[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "label", "defect", "half", "score", "verdict"))
        for image, flawed, defect, score, verdict in zip(
            evidence.images, evidence.flawed, evidence.defects, evidence.scores, evidence.verdicts, strict=True
        ):
            name = printable(dataset.name_of(Path(image)))
            label = "flawed" if flawed else "good"
            rows.writerow((name, label, printable(defect), sides[image], repr(float(score)), verdict))


def main() -> int:
    """Compute the task of the folder given on the command line; a user's mistake is one line on stderr."""
    scratch = Path(sys.argv[1])
    task = Task.model_validate_json((scratch / TASK).read_bytes())
    try:
        result = run_task(task, scratch)
    except FlawsmithError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    (scratch / RESULT).write_text(result.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
