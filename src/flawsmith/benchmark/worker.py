"""What a run's own process does: train, inspect, measure, and leave the result beside the task.

Called as ``python -m flawsmith.benchmark.worker FOLDER`` with ``FOLDER/task.json``. Models of another package are
measured by a script of their own, which calls :func:`serve` with its own way to train.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawsmith.benchmark.executors import TASK
from flawsmith.benchmark.experiment import (
    MODEL,
    RESULT,
    SCORES,
    TIMED_IMAGES,
    WARM_UP_IMAGES,
    BenchmarkRun,
    Costs,
    FurtherResult,
    Latency,
    Measurement,
    ModelUnderTest,
    RunResult,
    SplitPart,
    Task,
)
from flawsmith.data.layouts import load
from flawsmith.data.loco import saturation_of
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import half
from flawsmith.metrics.collect import EvaluationState
from flawsmith.metrics.protocol import choose_protocol
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.summary import summarise
from flawsmith.pipeline.evaluate import Inspects, check_samples, collect, test_samples
from flawsmith.pipeline.provenance import machine, versions
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import printable
from flawsmith.runtime.inspector import Inspector

if TYPE_CHECKING:
    from flawsmith.pipeline.train import TrainResult


def train_method(task: Task, samples: tuple[Sample, ...], scratch: Path) -> ModelUnderTest:
    """Train a method of this package.

    Args:
        task: the run and where its data is.
        samples: the test images.
        scratch: the folder of the result; the run folder is made there, and ``model.flaw`` if it is to be kept.
    """
    start = time.perf_counter()
    trained = _train(task, scratch / "run")
    train_seconds = time.perf_counter() - start
    if task.keep_model:
        shutil.copyfile(trained.model, scratch / MODEL)
    exported = Inspector.load(trained.model)
    training, network = exported.spec.training, exported.spec.network
    return ModelUnderTest(
        inspector=_where_trained(trained.folder, exported) if task.run.experiment.engine == "torch" else exported,
        latency=lambda: _latency(exported, [sample.image for sample in samples]),
        n_train=training.n_train,
        n_calibration=training.n_calibration,
        train_seconds=train_seconds,
        inspect_seconds=0.0,
        model_bytes=trained.model.stat().st_size,
        versions=versions(),
        deviations=training.deviations,
        throughput=lambda size: throughput(exported, trained.folder, size),
        parameters=network.get("parameters"),
        flops=network.get("flops"),
    )


def _where_trained(run: Path, exported: Inspector) -> Inspector:
    """The trained model on the device that trained it, with the limits of the exported one."""
    from flawsmith.pipeline.restore import TorchEngine
    from flawsmith.training.trainer import LoopOptions, check_options

    return Inspector(exported.spec, TorchEngine(run, check_options(LoopOptions()).strategy.root_device))


Train = Callable[[Task, tuple[Sample, ...], Path], ModelUnderTest]


def run_task(task: Task, scratch: Path, *, train: Train = train_method) -> RunResult:
    """Train and evaluate one run.

    Args:
        task: the run and where its data is.
        scratch: the folder of the result; ``scores.csv`` and, if asked for, ``model.flaw`` are written there too.
        train: gives the trained model for the task, its test images and the folder.

    Raises:
        FlawsmithError: data or settings that cannot be used.
    """
    run = task.run
    dataset = load(task.data, task.layout)
    samples = test_samples(dataset)
    sides = {str(sample.image): half(sample) for sample in samples}
    _check_parts(run, dataset, sides)
    check_samples(samples, saturation=saturation_of(dataset))
    model = train(task, samples, scratch)
    start = time.perf_counter()
    evaluations, evidence = _evaluations(run, model.inspector, dataset, samples, sides)
    further = [
        _further(task, measurement, folder, model.inspector)
        for measurement, folder in zip(run.further, task.further_data, strict=True)
    ]
    evaluate_seconds = model.inspect_seconds + time.perf_counter() - start
    _write_scores(scratch / SCORES, dataset, evidence, sides)
    p50, p95 = model.latency()
    return RunResult(
        run=run,
        status="finished",
        evaluations=evaluations,
        n_train=model.n_train,
        n_calibration=model.n_calibration,
        deviations=model.deviations,
        costs=Costs(
            train_seconds=round(model.train_seconds, 3),
            evaluate_seconds=round(evaluate_seconds, 3),
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            model_bytes=model.model_bytes,
            parameters=model.parameters,
            flops=model.flops,
            images_per_second={size: model.throughput(size) for size in run.batches},
        ),
        versions=dict(model.versions),
        machine=machine(),
        further=further,
    )


def _train(task: Task, out: Path) -> TrainResult:
    from flawsmith.pipeline.train import train

    experiment = task.run.experiment
    return train(
        task.data,
        out=out,
        quiet=True,
        baseline="none",
        report=False,
        method=experiment.method,
        preset=experiment.preset,
        backbone=task.backbone,
        seed=task.run.seed,
        set=dict(experiment.set),
        textures=task.textures,
        select=experiment.select,
        engine=experiment.engine,
        precision=experiment.precision,
        fraction=experiment.fraction,
        holdout=experiment.holdout,
        layout=task.layout,
        foregrounds=task.foregrounds,
    )


def _further(task: Task, measurement: Measurement, folder: Path, inspector: Inspects) -> FurtherResult:
    """The model on another test set, or on its own by other rules."""
    here = folder == task.data
    dataset = load(folder, task.layout if here else None)
    samples = test_samples(dataset)
    run = task.run.model_copy(
        update={"protocol": measurement.protocol, "parts": task.run.parts if here else ("whole",)}
    )
    sides = {str(sample.image): half(sample) for sample in samples}
    evaluations, _ = _evaluations(run, inspector, dataset, samples, sides)
    return FurtherResult(measurement=measurement, evaluations=evaluations)


def _check_parts(run: BenchmarkRun, dataset: Dataset, sides: Mapping[str, str]) -> None:
    for part in run.parts:
        if part not in ("whole", *sides.values()):
            raise FlawsmithError(f"{dataset.root}: {part} of the test split holds no image; report the whole alone")


def _evaluations(
    run: BenchmarkRun, inspector: Inspects, dataset: Dataset, samples: tuple[Sample, ...], sides: Mapping[str, str]
) -> tuple[dict[SplitPart, Evaluation], EvaluationState]:
    """The figures of every part asked for, and the evidence of the whole test set.

    The images are inspected once a part: maps are never held, and exact pixel figures need all of a part's.
    """
    evaluations: dict[SplitPart, Evaluation] = {}
    saturation = saturation_of(dataset)
    rules = choose_protocol(run.protocol, method=run.experiment.method, layout=dataset.layout)
    whole = collect(inspector, samples, saturation=saturation, protocol=rules)
    for part in run.parts:
        chosen = [sample for sample in samples if part in ("whole", sides[str(sample.image)])]
        evidence = whole if part == "whole" else collect(inspector, chosen, saturation=saturation, protocol=rules)
        evaluations[part] = summarise(evidence, selection=run.experiment.select, n_resamples=run.resamples)
    return evaluations, whole


TIMED_SECONDS = 1.0


def throughput(inspector: Inspector, run: Path, size: int) -> float:
    """Images a second that the network makes maps and scores of, in batches of a size that lie in memory.

    A GPU that torch knows computes the trained network; without one the exported graph runs as in inspection.

    Args:
        inspector: of the trained model.
        run: its run folder, with checkpoints.
        size: images a batch.
    """
    import torch

    shape = (size, 3, *inspector.spec.geometry.size)
    batch = np.zeros(shape, np.float32)
    if not torch.cuda.is_available():
        return _images_per_second(lambda: inspector.engine.run(batch), size)
    from flawsmith.pipeline.restore import restore

    model, images = restore(run)[0].to("cuda"), torch.from_numpy(batch).to("cuda")

    def compute() -> None:
        with torch.inference_mode():
            model(images)
        torch.cuda.synchronize()

    return _images_per_second(compute, size)


def _images_per_second(compute: Callable[[], object], size: int) -> float:
    compute()  # warms up caches, and whatever is compiled on first use
    start, batches = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < TIMED_SECONDS or not batches:
        compute()
        batches += 1
    return round(batches * size / seconds, 3)


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


def _write_scores(path: Path, dataset: Dataset, evidence: EvaluationState, sides: Mapping[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "label", "defect", "half", "score", "verdict"))
        for image, flawed, defect, score, verdict in zip(
            evidence.images, evidence.flawed, evidence.defects, evidence.scores, evidence.verdicts, strict=True
        ):
            name = printable(dataset.name_of(Path(image)))
            label = "flawed" if flawed else "good"
            rows.writerow((name, label, printable(defect), sides[image], repr(float(score)), verdict))


def serve(scratch: Path, *, train: Train = train_method) -> int:
    """Compute the task in a folder and leave the result there; a user's mistake is one line on stderr.

    Returns:
        The exit code of the process.
    """
    task = Task.model_validate_json((scratch / TASK).read_bytes())
    try:
        result = run_task(task, scratch, train=train)
    except FlawsmithError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    (scratch / RESULT).write_text(result.model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
