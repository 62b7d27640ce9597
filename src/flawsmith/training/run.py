"""The run folder: configuration, checkpoints, metrics and what comes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from flawsmith.models.base import AnomalyModel, SinglePass, Stage
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder, replacing
from flawsmith.training.checkpoints import load_tensors, save_tensors
from flawsmith.training.distributed import broadcast_from_rank_zero, is_rank_zero
from flawsmith.training.selection import CheckpointMonitor
from flawsmith.training.trainer import LoopOptions, MetricsFile, fit_module, read_rows

TRAINED = "checkpoints/model.safetensors"
CONFIG, METRICS, RECORD, MODEL, REPORT = "config.yaml", "metrics.jsonl", "run.json", "model.flaw", "report.html"


class RunFolder:
    """One training run on disk; everything in it is written whole or not at all.

    Args:
        path: the folder.
        options: how the loops run.
        selection: how the checkpoint is chosen; None keeps the last.
    """

    def __init__(self, path: Path, options: LoopOptions, selection: CheckpointMonitor | None = None) -> None:
        self.path, self.options, self.selection = path, options, selection

    @staticmethod
    def claim(
        path: Path, config: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Make the folder this run's own, or make sure that it is to be resumed with the same configuration.

        Args:
            path: the folder.
            config: all that the run's result depends on; mappings may hold mappings.
            resume: whether a run that has begun there is to be continued.
            defaults: what a setting stood at before it could be chosen, arranged as ``config`` is: a run begun by an
                earlier release does not name the settings that are new since.

        Raises:
            FlawsmithError: when the folder holds something else, another configuration, or must not be overwritten.
        """
        file, config = path / CONFIG, json.loads(json.dumps(config))  # as it will be read: lists for tuples
        if os.path.lexists(path) and not is_folder(path):
            raise FlawsmithError(f"{path} is a file: give a folder with --out")
        if is_folder(path) and file.exists() and _has_begun(path):
            if not resume:
                raise FlawsmithError(f"{path} holds a run already: continue it with --resume, or give another --out")
            _must_agree(file, config, defaults or {})
        elif is_folder(path) and not all(_is_own(entry) for entry in path.iterdir()):
            raise FlawsmithError(f"{path} is not empty and holds no run: give another folder with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not _has_begun(path):
                (path / METRICS).unlink(missing_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise FlawsmithError(
                f"{path} cannot be written ({error.strerror}): give another folder with --out"
            ) from error

    def complete(self, model: AnomalyModel, stage: Stage) -> None:
        """Complete a stage, or restore what it left in this folder; all processes then hold the same state.

        Args:
            model: what the stage trains.
            stage: a single pass, which rank zero computes once a run; or a loop, from its last checkpoint where there
                is one.
        """
        file = self.path / "checkpoints" / f"{stage.name}.safetensors"
        if isinstance(stage, SinglePass):
            model.load_trained_state(broadcast_from_rank_zero(lambda: _computed(model, stage, file)))
            return
        fit_module(
            stage.module,
            stage.batches,
            name=stage.name,
            epochs=stage.epochs,
            checkpoint=file,
            metrics=MetricsFile(self.path / METRICS, stage.name),
            options=self.options,
            selection=self.selection if stage.completes else None,
        )

    def save(self, model: AnomalyModel) -> None:
        """Keep the trained model as a whole, beside the checkpoints of its stages."""
        if is_rank_zero():
            save_tensors(model.trained_state(), self.path / TRAINED)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        return list(read_rows(self.path / METRICS))

    def record(self, facts: Mapping[str, Any]) -> None:
        """Write run.json."""
        with replacing(self.path / RECORD) as temporary:
            temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _computed(model: AnomalyModel, stage: SinglePass, file: Path) -> dict[str, Tensor]:
    """What a single pass leaves in a model, computed at most once a run."""
    if not file.exists():
        stage.compute()
        save_tensors(model.trained_state(), file)
    return load_tensors(file)[0]


def _has_begun(path: Path) -> bool:
    """Whether a run left anything but its configuration: one that failed on its data leaves the folder free."""
    return (path / MODEL).exists() or any((path / "checkpoints").glob("*.safetensors"))


def _is_own(entry: Path) -> bool:
    """Whether a folder's entry is what a run leaves behind that ended before its first checkpoint."""
    if entry.name.lstrip(".").startswith(METRICS):
        return entry.with_name(CONFIG).is_file()
    return entry.name in (CONFIG, "checkpoints") or entry.name.startswith(f".{CONFIG}")


def _must_agree(file: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    try:
        stored = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FlawsmithError(f"{file} is damaged: start anew with another --out") from error
    if not isinstance(stored, dict):
        raise FlawsmithError(f"{file} holds no settings: start anew with another --out")
    was = {**_by_name(json.loads(json.dumps(defaults))), **_by_name(stored)}
    now = _by_name(config)
    for name in {**now, **_by_name(stored)}:
        if was.get(name) != now.get(name):
            raise FlawsmithError(
                f"{file} says {name}={was.get(name)!r} but now it is {now.get(name)!r}: "
                "resume with the same settings, or give another --out"
            )


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting under the names that lead to it, joined by dots: ``config.epochs``."""
    by_name: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            by_name |= {f"{name}.{below}": inner for below, inner in _by_name(value).items()}
        else:
            by_name[str(name)] = value
    return by_name
