"""The run folder: configuration, checkpoints, metrics and what comes of them."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from flawsmith.models.base import AnomalyModel, SinglePass, Stage
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder, replacing
from flawsmith.runtime.outputs import LOCK, exclusive_folder, refuse_irreplaceable, remove_unfinished
from flawsmith.training.checkpoints import load_tensors, save_tensors
from flawsmith.training.distributed import broadcast_from_rank_zero, is_rank_zero
from flawsmith.training.selection import CheckpointMonitor
from flawsmith.training.trainer import LoopOptions, MetricsFile, fit_module, read_rows

TRAINED = "checkpoints/model.safetensors"
CONFIG, METRICS, RECORD, MODEL, REPORT = "config.yaml", "metrics.jsonl", "run.json", "model.flaw", "report.html"
TRIM = "trim"
"""Folder of the baseline that tells which images are left out: the first that a run with ``--trim`` writes."""


class RunFolder:
    """One training run on disk; everything in it is written whole or not at all.

    Args:
        selection: how the checkpoint is chosen; None keeps the last.
    """

    def __init__(self, path: Path, options: LoopOptions, selection: CheckpointMonitor | None = None) -> None:
        self.path, self.options, self.selection = path, options, selection

    @contextmanager
    def claimed(
        self, config: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """Keep other commands away from the folder and :meth:`claim` it; a run that does not begin leaves it empty.

        Raises:
            FlawsmithError: as :meth:`claim`; another command writes there, or an earlier result cannot be replaced.
        """
        with exclusive_folder(self.path):
            remove_unfinished(self.path / TRIM / "checkpoints")
            self.claim(self.path, config, resume=resume, defaults=defaults)
            refuse_irreplaceable(self.path / name for name in (MODEL, REPORT, RECORD))
            try:
                yield
            except BaseException:
                if not _has_begun(self.path):
                    _clear(self.path)
                raise

    @staticmethod
    def claim(
        path: Path, config: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Make the folder this run's own, or make sure that it is to be resumed with the same configuration.

        Args:
            config: all that the run's result depends on; mappings may hold mappings.
            defaults: what a setting stood at before it could be chosen, arranged as ``config`` is: a run begun by an
                earlier release does not name the settings that are new since.

        Raises:
            FlawsmithError: when the folder holds something else, another configuration, or must not be overwritten.
        """
        file, config = path / CONFIG, json.loads(json.dumps(config))  # as it will be read: lists for tuples
        if os.path.lexists(path) and not is_folder(path):
            raise FlawsmithError(f"{path} is a file: give a folder with --out")
        if is_folder(path) and file.exists() and _has_begun(path):
            difference = _difference(file, config, defaults or {})
            if difference is not None:
                raise FlawsmithError(f"{path} holds a run already, and {difference}: give another --out, {_free(path)}")
            if not resume:
                raise FlawsmithError(
                    f"{path} holds a run already: continue it with --resume, or give another --out, {_free(path)}"
                )
        elif is_folder(path) and not all(_is_own(entry) for entry in path.iterdir()):
            raise FlawsmithError(f"{path} is not empty and holds no run: give another folder with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not _has_begun(path):
                (path / METRICS).unlink(missing_ok=True)
            with replacing(file) as temporary:
                text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FlawsmithError(
                f"{path} cannot be written ({error.strerror}): give another folder with --out"
            ) from error

    def complete(self, model: AnomalyModel, stage: Stage, watch: Callable[[float, str], object] | None = None) -> None:
        """Complete a stage, or restore what it left in this folder; all processes then hold the same state.

        Args:
            stage: a single pass, which rank zero computes once a run; or a loop, from its last checkpoint where there
                is one.
            watch: is told the share of a loop that is done, and its epoch.
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
            watch=watch,
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
            temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _computed(model: AnomalyModel, stage: SinglePass, file: Path) -> dict[str, Tensor]:
    """What a single pass leaves in a model, computed at most once a run."""
    if not file.exists():
        stage.compute()
        save_tensors(model.trained_state(), file)
    return load_tensors(file)[0]


def _has_begun(path: Path) -> bool:
    """Whether a run left anything but its configuration: one that failed on its data leaves the folder free."""
    checkpoints = (path / "checkpoints", path / TRIM / "checkpoints")
    return (path / MODEL).exists() or any(any(folder.glob("*.safetensors")) for folder in checkpoints)


def _is_own(entry: Path) -> bool:
    """Whether a folder's entry is what a run leaves behind that ended before its first checkpoint."""
    if entry.name.lstrip(".").startswith(METRICS):
        return entry.with_name(CONFIG).is_file()
    if entry.name == TRIM:
        holds_nothing_else = (
            is_folder(entry)
            and not entry.is_symlink()
            and all(below.name == "checkpoints" for below in entry.iterdir())
        )
        return holds_nothing_else and entry.with_name(CONFIG).is_file()
    return entry.name in (CONFIG, "checkpoints", LOCK) or entry.name.startswith(f".{CONFIG}")


def _clear(path: Path) -> None:
    """Remove what a run leaves behind that has not begun."""
    for name in (METRICS, CONFIG):
        with suppress(OSError):
            (path / name).unlink()
    for folder in (path / TRIM / "checkpoints", path / TRIM, path / "checkpoints"):
        remove_unfinished(folder)
        with suppress(OSError):
            folder.rmdir()


def _free(path: Path) -> str:
    """A folder for another run, in words."""
    free = next(name for number in itertools.count(2) if not os.path.lexists(name := f"{path}-{number}"))
    return f"such as --out {shlex.quote(free)}"


def _difference(file: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """The first setting in which a run that has begun differs from what is asked for now; None: there is no difference.

    Raises:
        FlawsmithError: the run's settings cannot be read.
    """
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FlawsmithError(f"{file} is damaged: start anew with another --out") from error
    if not isinstance(stored, dict):
        raise FlawsmithError(f"{file} holds no settings: start anew with another --out")
    was = {**_by_name(json.loads(json.dumps(defaults))), **_by_name(stored)}
    now = _by_name(config)
    for name in {**now, **_by_name(stored)}:
        if was.get(name) == now.get(name):
            continue
        if name == "data.images_sha256":
            return "its good images have changed since it began, so that it cannot be continued"
        if name == "data.skipped":
            return "other images were left out as unreadable when it began, so that it cannot be continued"
        if name == "region":
            return "it was begun with another region of interest in --roi"
        if name == "zones":
            return "it was begun with other zones in --roi"
        if name == "group" and was.get(name) == "none":
            return f"it was begun with group='none' instead of {now.get(name)!r} (continue it with --group none)"
        return f"it was begun with {name}={was.get(name)!r} instead of {now.get(name)!r}"
    return None


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting under the names that lead to it, joined by dots: ``config.epochs``."""
    by_name: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            by_name |= {f"{name}.{below}": inner for below, inner in _by_name(value).items()}
        else:
            by_name[str(name)] = value
    return by_name
