"""The loop that trains a module: Lightning's trainer, checkpoints, progress and loggers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy

from flawsmith.data.seeding import Shard
from flawsmith.features.backbones import first_line
from flawsmith.models.base import EpochBatches
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.training.checkpoints import SafeCheckpointIO
from flawsmith.training.distributed import (
    broadcast_from_rank_zero,
    broadcast_state,
    data_parallel,
    is_rank_zero,
    quiet_lightning,
)
from flawsmith.training.selection import CheckpointMonitor

SECONDS_BETWEEN_CHECKPOINTS = 5.0
LoggerName = Literal["none", "csv", "tensorboard", "wandb", "mlflow"]


class MetricsFile:
    """Rows of one stage in metrics.jsonl, one an epoch; epochs that are trained again replace their rows."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def restart(self, epoch: int) -> None:
        """Drop this stage's rows from an epoch on: they come after the checkpoint that is resumed."""
        rows = [row for row in read_rows(self._path) if row["stage"] != self._stage or row["epoch"] < epoch]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def append(self, epoch: int, values: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._stage, "epoch": epoch, **values}) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a metrics file; the last line of a killed run may be cut off and is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


@dataclass(frozen=True)
class LoopOptions:
    """How loops run: Lightning's own options, passed through; results do not depend on the last.

    Attributes:
        logger: Lightning's logger that gets the metrics beside metrics.jsonl, into ``logs/`` of the run folder.
    """

    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    logger: LoggerName = "none"


def fit_module(
    module: pl.LightningModule,
    batches: EpochBatches,
    *,
    name: str,
    epochs: int,
    checkpoint: Path,
    metrics: MetricsFile,
    options: LoopOptions,
    selection: CheckpointMonitor | None = None,
    watch: Callable[[float, str], object] | None = None,
) -> None:
    """Train a module for a number of epochs and leave it trained.

    Checkpoints are written at the end of an epoch, at most every few seconds. As batches and every random draw are
    functions of the epoch, a run resumed from any of them goes on exactly as it would have.

    Args:
        module: trained in place; its training step returns a mapping of losses, or logs them.
        checkpoint: file of the last checkpoint, which is resumed where it exists.
        metrics: gets one row an epoch.
        selection: measures the model as it trains; the best state is restored at the end. None keeps the last.
        watch: is told after each batch the share of all that is done, and which epoch it is.
    """
    best = checkpoint.with_name(f"{checkpoint.stem}-best{checkpoint.suffix}")
    callbacks: list[pl.Callback] = [EpochMetrics(metrics, selection)]
    if selection is not None:  # before the last one, which carries its state
        callbacks.append(EpochCheckpoint(best, monitor=selection.monitor))
    callbacks.append(EpochCheckpoint(checkpoint))
    if watch is not None:
        callbacks.append(LambdaCallback(on_train_batch_end=partial(_tell, watch)))
    with quiet_lightning(), _flushed_denormals():
        trainer = make_trainer(
            options,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=make_logger(options.logger, checkpoint.parents[1], name),
            default_root_dir=str(checkpoint.parent),
        )
        has_begun = broadcast_from_rank_zero(checkpoint.exists)
        if has_begun:
            _refuse_other_state(module, checkpoint)
        loader = _Loader(batches, trainer)
        try:
            trainer.fit(module, loader, ckpt_path=str(checkpoint) if has_begun else None)
        except SystemExit:  # Lightning's own way to end after Ctrl-C
            raise KeyboardInterrupt from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):  # torch has no type of its own for a worker's death
                raise
            raise FlawsmithError(
                "a process that draws flaws was killed, perhaps for want of memory: continue with --resume, and with "
                "--workers 0 if it happens again"
            ) from error
        finally:
            loader.release()
    if trainer.interrupted:
        raise KeyboardInterrupt
    if selection is not None and is_rank_zero():
        state = SafeCheckpointIO().load_checkpoint(best)["state_dict"]
        module.load_state_dict(state, strict=module.strict_loading)
    broadcast_state(module)
    module.eval()


def _refuse_other_state(module: pl.LightningModule, checkpoint: Path) -> None:
    """A checkpoint of other settings or of an earlier release would pass for trained and leave weights as they are."""
    stored = SafeCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    foreign = sorted(stored.keys() ^ module.state_dict().keys())
    if foreign:
        raise FlawsmithError(
            f"{checkpoint} is of other settings or an earlier release ({foreign[0]} does not fit): train anew with "
            "another --out"
        )


class EpochMetrics(pl.Callback):
    """Means over every epoch of the losses that a training step returns, and the figures of a checkpoint monitor.

    They go to Lightning, and into metrics.jsonl. That is no Lightning logger: loggers learn of an epoch after its
    checkpoint, so a run killed between the two would lack a row.
    """

    def __init__(self, metrics: MetricsFile, selection: CheckpointMonitor | None) -> None:
        self._metrics, self._selection = metrics, selection
        self._sums: dict[str, Any] = {}
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._metrics.restart(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for key, value in (outputs or {}).items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._steps += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, selection = trainer.current_epoch, self._selection
        figures: dict[str, float] = {}
        for key, total in self._sums.items():  # once an epoch: Lightning's own means cost a millisecond a step
            pl_module.log(key, total / self._steps, sync_dist=trainer.world_size > 1)
        self._sums, self._steps = {}, 0
        monitor = None if selection is None else selection.monitor
        row = {key: float(value) for key, value in trainer.callback_metrics.items() if key != monitor}
        if not math.isfinite(row.get("loss", 0.0)):
            raise FlawsmithError(
                f"the loss is no number any more in epoch {epoch + 1}: the weights are lost, the checkpoint before is "
                "kept; train anew with --set precision=32-true, or with a lower learning rate"
            )
        if selection is not None and selection.due(epoch, trainer.max_epochs or 0):
            figures = dict(broadcast_from_rank_zero(selection.measure))
            pl_module.train()
            pl_module.log(selection.monitor, sum(figures.values()))
        if trainer.is_global_zero:
            self._metrics.append(epoch, row | figures)


class EpochCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint at the end of an epoch, the last or the best, in one file.

    Args:
        path: the file.
        monitor: name of the figure whose first maximum is kept, without optimisers; None keeps the last, written at
            most every few seconds (Lightning's own interval would cut epochs).
    """

    FILE_EXTENSION = ".safetensors"

    def __init__(self, path: Path, monitor: str | None = None) -> None:
        super().__init__(
            path.parent,
            path.stem,
            monitor,
            mode="max",
            save_weights_only=monitor is not None,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        waited = time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS
        is_due = self.monitor is not None or waited or trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.strategy.broadcast(is_due):
            super().on_train_epoch_end(trainer, pl_module)
            self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Without the folder, so that a run can be resumed where it was moved."""
        return {key: value for key, value in super().state_dict().items() if key != "dirpath"}


def _tell(
    watch: Callable[[float, str], object], trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
) -> None:
    """How far a loop is."""
    epoch, epochs = trainer.current_epoch, trainer.max_epochs or 1
    watch((epoch + (batch_idx + 1) / trainer.num_training_batches) / epochs, f"epoch {epoch + 1} of {epochs}")


class _Loader:
    """What Lightning iterates over: this process's batches of the epoch that the trainer is in."""

    def __init__(self, batches: EpochBatches, trainer: pl.Trainer) -> None:
        self._batches, self._trainer = batches, trainer
        self._open: Generator[Any] = self._epoch()

    def __len__(self) -> int:
        return -(-len(self._batches) // self._trainer.world_size)

    def __iter__(self) -> Iterator[Any]:
        self._open = self._epoch()
        return self._open

    def _epoch(self) -> Generator[Any]:
        # Lazily: when a run is resumed, Lightning asks for the iterator before it knows the epoch.
        shard = Shard(self._trainer.global_rank, self._trainer.world_size)
        yield from self._batches.epoch(self._trainer.current_epoch, shard)

    def release(self) -> None:
        """Let go of the batches, and of processes that make them.

        A module keeps its trainer and so this loader for as long as it lives, and a trainer stops asking after the
        last batch, which leaves the epoch open.
        """
        self._open.close()
        del self._batches


def check_options(options: LoopOptions) -> pl.Trainer:
    """Find out whether Lightning can do what it is asked to, before any work is done.

    Returns:
        A trainer that knows the processes it needs.

    Raises:
        FlawsmithError: no such accelerator, devices, strategy or logger here.
    """
    check_logger(options.logger)
    with quiet_lightning():
        try:
            return make_trainer(options)
        except FlawsmithError:
            raise
        except Exception as error:  # Lightning raises its own types, ValueError, TypeError and RuntimeError alike
            raise FlawsmithError(
                f"cannot train with --accelerator {options.accelerator}, --devices {options.devices} and --strategy "
                f"{options.strategy}: {first_line(error)}"
            ) from error


def make_trainer(options: LoopOptions, **settings: Any) -> pl.Trainer:
    """Lightning's trainer; for several processes with its data-parallel strategy.

    Raises:
        FlawsmithError: another strategy for several processes.
    """
    common: dict[str, Any] = {
        "logger": False,
        "accelerator": options.accelerator,
        "devices": options.devices,
        "num_nodes": _nodes(),
        "precision": options.precision,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        **settings,
    }
    trainer = pl.Trainer(strategy=options.strategy, plugins=[SafeCheckpointIO()], **common)
    if trainer.world_size == 1:
        return trainer
    if type(trainer.strategy) is not DDPStrategy or trainer.strategy._start_method != "popen":
        raise FlawsmithError(
            f"--strategy {options.strategy} is not possible in several processes: all of them run the whole program, "
            "as with --strategy ddp, which auto chooses"
        )
    strategy, plugins = data_parallel(trainer.strategy.root_device)
    return pl.Trainer(strategy=strategy, plugins=[SafeCheckpointIO(), *plugins], **common)


def _nodes() -> int:
    """Machines that take part, as torchrun or SLURM say."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NNODES", "1")) if SLURMEnvironment.detect() else 1


_QUIET = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
    # Files in a folder are enough here, and MLflow 3 refuses to write them where nobody says so.
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"},
}
"""What loggers read of the environment when they are imported; whoever sets a variable on purpose keeps it."""


def check_logger(name: str) -> None:
    """Find out whether there is such a logger here.

    Raises:
        FlawsmithError: no logger is called so, or its package is not installed.
    """
    if name not in get_args(LoggerName):
        raise FlawsmithError(f"no logger is called {name!r}: choose {', '.join(get_args(LoggerName))} with --logger")
    if name not in ("none", "csv") and importlib.util.find_spec(name) is None:
        raise FlawsmithError(f"--logger {name} needs a package that is not installed: run `pip install {name}`")


def make_logger(name: LoggerName, run: Path, stage: str) -> Logger | Literal[False]:
    """A logger of Lightning's that writes into ``logs/`` of a run folder.

    Nothing leaves the machine unless the user's environment says so, by ``WANDB_MODE`` or ``MLFLOW_TRACKING_URI``.
    """
    folder = str(run / "logs")
    if name == "csv":
        return CSVLogger(folder, stage)
    if name == "tensorboard":
        return TensorBoardLogger(folder, stage)
    for variable, value in _QUIET.get(name, {}).items():
        os.environ.setdefault(variable, value)
    if name == "wandb":
        return WandbLogger(f"{run.name} {stage}", folder, project="flawsmith", group=run.name)
    if name == "mlflow":
        return MLFlowLogger("flawsmith", f"{run.name} {stage}", save_dir=folder)
    return False


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Denormals slow an untrained network down tenfold on some CPUs; code outside of training must not lose them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
