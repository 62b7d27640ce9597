"""The unit of a benchmark: one training and its evaluation, what identifies it, and what it gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flawsmith.evaluation.results import Evaluation
from flawsmith.runtime.bundle import SelectionName

Part = Literal["whole", "A", "B"]
PARTS: dict[Part, str] = {"whole": "the whole test set", "A": "half A", "B": "half B"}
SCHEMA_VERSION = 1
PEER_PRESET = "default"
"""What stands for the preset of a peer's model: presets are of this package's own methods."""
WORD_TEXTURES = (None, "self", "procedural")
"""Textures that are no folder."""


class Arm(BaseModel):
    """What is compared: a method with its settings, of this package or of a peer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="A method's name; a peer's model is written peer:model, such as anomalib:padim.")
    name: str = Field("", description="What tables call it; made from the method and what differs where empty.")
    preset: str = Field("fast", description="Preset of the method.")
    backbone: str | None = Field(None, description="Name or file of the backbone; by default what the preset takes.")
    set: dict[str, Any] = Field(default_factory=dict, description="Fields of the method's configuration to change.")
    textures: str | None = Field(None, description="Textures for methods that forge: a folder, self, or procedural.")
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the training images that is learned from.")
    select: SelectionName = Field("last", description="Checkpoint, as flawsmith train --select.")
    engine: Literal["onnxruntime", "openvino"] = Field("onnxruntime", description="Engine of features and inspection.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Precision of that engine.")

    @property
    def title(self) -> str:
        """The name in tables: the given one, or the method with all that is not its default."""
        if self.name:
            return self.name
        extras = [] if self.preset in ("fast", PEER_PRESET) else [self.preset]
        extras += [] if self.backbone is None else [Path(self.backbone).name]
        extras += [f"{key}={_short(value)}" for key, value in self.set.items()]
        extras += [] if self.textures is None else [f"textures {Path(self.textures).name}"]
        extras += [] if self.fraction == 1 else [f"{100 * self.fraction:g} % of the images"]
        extras += [] if self.select == "last" else [f"select {self.select}"]
        extras += [] if self.engine == "onnxruntime" else [f"{self.engine} {self.precision}"]
        return ", ".join([self.method, *extras])

    @property
    def peer(self) -> str | None:
        """The other package that the model is of; None for this package's own methods."""
        package, colon, _ = self.method.partition(":")
        return package if colon else None


class Cell(BaseModel):
    """One training and its evaluation.

    Its identity is what its result depends on: an arm's resolved settings, the content of the images, the seed and the
    rules of evaluation. Where the data lies, what a table calls the arm and which version of the package computes it
    are no part of it; versions are recorded with the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: Arm
    seed: int = Field(0, ge=0)
    dataset: str = Field(description="Name of the data set.")
    category: str = Field(description="Name of the category.")
    images_sha256: str = Field(description="Over split, label, defect, image and masks of every sample.")
    textures_sha256: str | None = Field(None, description="Over the texture folder's names and sizes.")
    config: dict[str, Any] = Field(description="What the preset means, with the arm's changes.")
    backbone: str = Field(description="The backbone's name, or its file's name and SHA-256.")
    protocol: Literal["clean", "papers"] = Field("clean", description="Rules of evaluation.")
    parts: tuple[Part, ...] = Field(("whole",), description="Parts of the test set to report.")
    resamples: int = Field(1000, ge=0, description="Bootstrap resamples behind the intervals.")

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for all that the result depends on."""
        given = self.model_dump(mode="json", exclude={"arm": {"name", "textures", "backbone"}})
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """A name for people, and for the folder of the result."""
        method = self.arm.method.replace(":", "-")
        return f"{self.category}-{method}-{self.arm.preset}-seed{self.seed}-{self.key}"


class Task(BaseModel):
    """A cell with where its files lie on this machine, ready to be sent to a process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Cell
    data: Path = Field(description="The category's folder.")
    layout: str | None = Field(None, description="Its layout; detected by default.")
    textures: str | None = Field(None, description="The arm's textures, a folder resolved.")
    backbone: str | None = Field(None, description="The arm's backbone, a file resolved.")
    threads: int | None = Field(None, ge=1, description="OpenMP threads of the process; None: one a core.")
    memory_bytes: int | None = Field(None, gt=0, description="Anonymous memory at which the process is stopped.")
    peer_python: Path | None = Field(None, description="Interpreter of the peer's own environment, for a peer's model.")
    keep_model: bool = Field(False, description="Keep the model file beside the result.")


class Costs(BaseModel):
    """What a cell took; None where it was not measured."""

    model_config = ConfigDict(extra="forbid")

    train_seconds: float | None = Field(None, description="Wall time from an empty cache to the written model.")
    evaluate_seconds: float | None = Field(None, description="Wall time of inspecting and measuring the test split.")
    latency_p50_ms: float | None = Field(None, description="Median from file to verdict and map at batch 1.")
    latency_p95_ms: float | None = Field(None, description="95th percentile of the same.")
    peak_bytes: int | None = Field(None, description="Largest anonymous memory of the process and its children.")
    model_bytes: int | None = Field(None, description="Size of the model file.")
    threads: int | None = Field(None, description="OpenMP threads it was given; None: one a core.")
    jobs: int = Field(1, description="Cells that ran at a time.")


class CellResult(BaseModel):
    """What is kept of a cell."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    cell: Cell
    status: Literal["finished", "failed"]
    error: str | None = None
    evaluations: dict[Part, Evaluation] = Field(default_factory=dict)
    n_train: int | None = None
    n_calibration: int | None = None
    costs: Costs = Costs()
    versions: dict[str, str] = Field(default_factory=dict)
    machine: str = ""

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).strip('"')
