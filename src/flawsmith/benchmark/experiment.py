"""The units of a benchmark: an experiment, its runs (a training and its evaluation), and what is kept of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flawsmith.metrics.results import Evaluation
from flawsmith.pipeline.evaluate import Inspects
from flawsmith.runtime.bundle import SelectionName, TrainingEngine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder
from flawsmith.runtime.outputs import exclusive_folder

SplitPart = Literal["whole", "A", "B"]
PARTS: dict[SplitPart, str] = {"whole": "the whole test set", "A": "half A", "B": "half B"}
WORD_TEXTURES = (None, "self", "procedural")
"""Textures that are no folder."""


class Experiment(BaseModel):
    """What is compared: a method with its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="Name of the method.")
    name: str = Field("", description="What tables call it; made from the method and what differs where empty.")
    preset: str = Field("fast", description="Preset of the method.")
    backbone: str | None = Field(None, description="Name or file of the backbone; by default what the preset takes.")
    set: dict[str, Any] = Field(default_factory=dict, description="Fields of the method's configuration to change.")
    textures: str | None = Field(
        None, description="Textures for methods that synthesize: a folder, self, or procedural."
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the training images that is learned from.")
    holdout: bool | None = Field(
        None, description="Keep good images back to set the limit; null: as the preset has it, as flawsmith train."
    )
    select: SelectionName = Field("last", description="Checkpoint, as flawsmith train --select.")
    engine: TrainingEngine = Field(
        "onnxruntime",
        description="Engine of features and inspection; torch: on the device that trains, evaluation included.",
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Precision of that engine.")
    by_category: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Further fields of the configuration to change, by category; needs a name."
    )
    published: str | None = Field(
        None,
        description="Row of the papers' tables that it is set beside, as published.csv calls it; {seed} stands for the "
        "run's seed. By default all rows of the method; empty: none.",
    )

    @model_validator(mode="after")
    def _named_where_categories_differ(self) -> Experiment:
        if self.by_category and not self.name:
            raise ValueError("by_category makes categories differ, so give the experiment a name")
        return self

    def of_category(self, category: str) -> Experiment:
        """The experiment with the settings that a category has."""
        changes = self.by_category.get(category, {})
        return self.model_copy(update={"set": {**self.set, **changes}, "by_category": {}})

    @property
    def title(self) -> str:
        """The name in tables: the given one, or the method with all that is not its default."""
        if self.name:
            return self.name
        extras = [] if self.preset == "fast" else [self.preset]
        extras += [] if self.backbone is None else [Path(self.backbone).name]
        extras += [f"{key}={_short(value)}" for key, value in self.set.items()]
        extras += [] if self.textures is None else [f"textures {Path(self.textures).name}"]
        extras += [] if self.fraction == 1 else [f"{100 * self.fraction:g} % of the images"]
        extras += [] if self.holdout is None else ["holdout" if self.holdout else "no holdout"]
        extras += [] if self.select == "last" else [f"select {self.select}"]
        extras += [] if self.engine == "onnxruntime" else [self.engine]
        extras += [] if self.precision == "float32" else [self.precision]
        return ", ".join([self.method, *extras])


ProtocolName = Literal["clean", "papers"]


class Measurement(BaseModel):
    """Where else and how else the model of a run is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(description="Name of the data set.")
    category: str = Field(description="Name of the category.")
    images_sha256: str = Field(description="As that of a run.")
    protocol: ProtocolName = Field(description="Rules of evaluation.")


class BenchmarkRun(BaseModel):
    """One training and its evaluation.

    Its identity is what its result depends on: its experiment's resolved settings, the content of the images, the seed
    and the rules of evaluation. Where the data lies, what a table calls the experiment and which version of the package
    computes it are no part of it; versions are recorded with the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: Experiment
    seed: int = Field(0, ge=0)
    dataset: str = Field(description="Name of the data set.")
    category: str = Field(description="Name of the category.")
    images_sha256: str = Field(description="Over split, label, defect, image and masks of every sample.")
    textures_sha256: str | None = Field(None, description="Over the texture folder's names and sizes.")
    foregrounds_sha256: str | None = Field(None, description="Over the mask files that say where synthetic flaws lie.")
    config: dict[str, Any] = Field(description="What the preset means, with the experiment's changes.")
    backbone: str = Field(description="The backbone's name, or its file's name and SHA-256.")
    protocol: ProtocolName = Field("clean", description="Rules of evaluation.")
    parts: tuple[SplitPart, ...] = Field(("whole",), description="Parts of the test set to report.")
    resamples: int = Field(1000, ge=0, description="Bootstrap resamples behind the intervals.")
    further: tuple[Measurement, ...] = Field((), description="What the same model is measured on besides.")
    batches: tuple[int, ...] = Field((), description="Batch sizes at which images a second are counted.")

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for all that the result depends on."""
        names = {"name", "textures", "backbone", "by_category", "published"}
        if self.experiment.holdout is None:
            names.add("holdout")
        # What is measured besides does not change what is known by this key: a result may hold more than is asked for.
        excluded: Any = {"experiment": names, "further": True, "batches": True}
        if self.foregrounds_sha256 is None:  # runs from before it was known stay what they are
            excluded["foregrounds_sha256"] = True
        identity = self.model_dump(mode="json", exclude=excluded)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """A name for people, and for the folder of the result."""
        return f"{self.category}-{self.experiment.method}-{self.experiment.preset}-seed{self.seed}-{self.key}"


class Task(BaseModel):
    """A run with where its files lie on this machine, ready to be sent to a process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: BenchmarkRun
    data: Path = Field(description="The category's folder.")
    layout: str | None = Field(None, description="Its layout; detected by default.")
    textures: str | None = Field(None, description="The experiment's textures, a folder resolved.")
    backbone: str | None = Field(None, description="The experiment's backbone, a file resolved.")
    foregrounds: Path | None = Field(None, description="Folder of foreground masks, where it is not beside the images.")
    further_data: tuple[Path, ...] = Field((), description="The folder of each of the run's further measurements.")
    threads: int | None = Field(None, ge=1, description="OpenMP threads of the process; None: one a core.")
    memory_bytes: int | None = Field(None, gt=0, description="Anonymous memory at which the process is stopped.")
    keep_model: bool = Field(False, description="Keep the model file beside the result.")


class Costs(BaseModel):
    """What a run took; None where it was not measured."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    train_seconds: float | None = Field(None, description="Wall time from an empty cache to the written model.")
    evaluate_seconds: float | None = Field(None, description="Wall time of inspecting and measuring the test split.")
    latency_p50_ms: float | None = Field(None, description="Median from file to verdict and map at batch 1.")
    latency_p95_ms: float | None = Field(None, description="95th percentile of the same.")
    peak_bytes: int | None = Field(None, description="Largest anonymous memory of the process and its children.")
    model_bytes: int | None = Field(None, description="Size of the model file.")
    parameters: int | None = Field(None, description="Numbers that the network holds, learned or not.")
    flops: int | None = Field(None, description="Floating-point operations of an image, two a multiplication and sum.")
    images_per_second: dict[int, float] = Field(
        default_factory=dict, description="By batch size, from pixels in memory to map and score."
    )
    threads: int | None = Field(None, description="OpenMP threads it was given; None: one a core.")
    jobs: int = Field(1, description="Runs at a time.")


class FurtherResult(BaseModel):
    """What a run's model was measured at besides."""

    model_config = ConfigDict(extra="forbid")

    measurement: Measurement
    evaluations: dict[SplitPart, Evaluation]


class RunResult(BaseModel):
    """What is kept of a run."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[2] = Field(2, description="Of this file; results of others are computed anew.")
    run: BenchmarkRun
    status: Literal["finished", "failed"]
    error: str | None = None
    evaluations: dict[SplitPart, Evaluation] = Field(default_factory=dict)
    n_train: int | None = None
    n_calibration: int | None = None
    deviations: tuple[str, ...] = Field((), description="What was not as the published preset has it.")
    costs: Costs = Costs()
    versions: dict[str, str] = Field(default_factory=dict)
    machine: str = ""
    further: list[FurtherResult] = Field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def covers(self, run: BenchmarkRun) -> bool:
        """Whether it holds all that is asked of a run with the same key."""
        measured = {further.measurement for further in self.further}
        return measured.issuperset(run.further) and set(self.costs.images_per_second).issuperset(run.batches)

    def views(self) -> list[RunResult]:
        """The result as one for each thing that the run is measured on, its own test set first."""
        evaluations = {further.measurement: further.evaluations for further in self.further}
        primary = self.model_copy(update={"run": self.run.model_copy(update={"further": ()}), "further": []})
        return [primary] + [
            primary.model_copy(
                update={
                    "run": primary.run.model_copy(update=measurement.model_dump()),
                    "evaluations": evaluations.get(measurement, {}),
                }
            )
            for measurement in self.run.further
        ]


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).strip('"')


RESULT, SCORES, MODEL = "result.json", "scores.csv", "model.flaw"
KEPT = (RESULT, SCORES, MODEL)
_RUNS, _UNFINISHED = "runs", ".new-"

RunFiles = Mapping[str, bytes]
"""A run's files by name: ``result.json`` always, ``scores.csv`` of a finished one, ``model.flaw`` where it is kept."""


class ResultStore:
    """The folder of a benchmark: ``runs/<label>/`` with ``result.json``, ``scores.csv`` and perhaps ``model.flaw``.

    Args:
        root: the benchmark's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from writing into the same folder.

        Raises:
            FlawsmithError: another benchmark is writing there.
        """
        with exclusive_folder(self.root):
            for unfinished in (self.root / _RUNS).glob(f"{_UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            yield

    def folder(self, run: BenchmarkRun) -> Path:
        """Where a run's files are, whether or not they are there."""
        return self.root / _RUNS / run.label

    def result(self, run: BenchmarkRun) -> RunResult | None:
        """What is kept of a run; None where it was never computed, failed, or was not measured at all that is asked."""
        result = self._read(self.folder(run) / RESULT)
        return result if result is not None and result.finished and result.covers(run) else None

    def results(self) -> list[RunResult]:
        """All that is kept, failed runs included, in the order of labels."""
        results = [self._read(path) for path in sorted((self.root / _RUNS).glob(f"*/{RESULT}"))]
        return [result for result in results if result is not None]

    def save(self, run: BenchmarkRun, files: RunFiles) -> RunResult:
        """Keep a run's files; a folder of an earlier attempt is replaced.

        Raises:
            FlawsmithError: the folder cannot be written.
        """
        target = self.folder(run)
        make_folder(target.parent)
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=_UNFINISHED) as scratch:
                fresh = Path(scratch) / target.name
                fresh.mkdir()
                for name in KEPT:
                    if name in files:
                        (fresh / name).write_bytes(files[name])
                shutil.rmtree(target, ignore_errors=True)
                fresh.rename(target)
        except OSError as error:
            raise FlawsmithError(f"{target}: cannot be written ({error.strerror}); free some space") from None
        return RunResult.model_validate_json(files[RESULT])

    def _read(self, path: Path) -> RunResult | None:
        """A result; one that is damaged or of another schema counts as never computed."""
        try:
            return RunResult.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None


TIMED_IMAGES, WARM_UP_IMAGES = 60, 5

Latency = tuple[float, float]
"""Median and 95th percentile in milliseconds from file to verdict and map, one image at a time."""


def _unknown_throughput(size: int) -> float:
    raise FlawsmithError(f"images a second in batches of {size} are counted of this package's own models alone")


@dataclass(frozen=True)
class ModelUnderTest:
    """A trained model with what its training took.

    Attributes:
        inspector: inspects the test images.
        latency: measures how long one image takes.
        n_train: images it learned from.
        n_calibration: images its limit rests on.
        train_seconds: from an empty cache to the written model.
        inspect_seconds: what was spent on the test images before the inspector was asked.
        model_bytes: size of the model file.
        versions: of what computed it.
        deviations: what was not as the published preset has it.
        throughput: images a second in batches of a size; unknown of another package's model.
        parameters: numbers that the network holds; None: not known.
        flops: floating-point operations of an image; None: not known.
    """

    inspector: Inspects
    latency: Callable[[], Latency]
    n_train: int
    n_calibration: int
    train_seconds: float
    inspect_seconds: float
    model_bytes: int
    versions: Mapping[str, str]
    deviations: tuple[str, ...] = ()
    throughput: Callable[[int], float] = _unknown_throughput
    parameters: int | None = None
    flops: int | None = None
