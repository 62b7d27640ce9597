"""The loop that trains a module, on Lightning."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flawsmith.models.base import EpochBatches
from flawsmith.models.components.distributed import apart, own_batch_norms, share_batch_norms, together
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.training import processes
from flawsmith.training.checkpoints import SafeCheckpointIO, load_tensors, save_tensors
from flawsmith.training.processes import quiet_lightning
from flawsmith.training.selection import Chooser


class MetricsFile:
    """Rows of one stage in metrics.jsonl, one an epoch; epochs that are trained again replace their rows."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def restart(self, epoch: int) -> None:
        """Drop this stage's rows from an epoch on: they come after the checkpoint that is resumed."""
        kept = [row for row in read_rows(self._path) if row["stage"] != self._stage or row["epoch"] < epoch]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def append(self, epoch: int, values: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "epoch": epoch, **values}) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a metrics file; the last line of a killed run may be cut off and is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True)
class LoopOptions:
    """How loops run; all but ``quiet`` are Lightning's own options, passed through.

    Attributes:
        precision: Lightning's precision, such as ``32-true`` or ``bf16-mixed``.
        accelerator: Lightning's accelerator.
        devices: Lightning's devices.
        strategy: Lightning's strategy.
        quiet: show no progress bar.
    """

    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))


class _Loader:
    """What Lightning iterates over: the batches of the epoch that the trainer is in."""

    def __init__(self, batches: EpochBatches, module: pl.LightningModule) -> None:
        self._batches, self._module = batches, module
        self._open: Generator[Any] = self._epoch()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        self._open = self._epoch()
        return self._open

    def _epoch(self) -> Generator[Any]:
        # Lazily: when a run is resumed, Lightning asks for the iterator before it knows the epoch.
        yield from self._batches.epoch(self._module.current_epoch)

    def release(self) -> None:
        """Let go of the batches, and of processes that make them.

        A module keeps its trainer and so this loader for as long as it lives, and a trainer stops asking after the
        last batch, which leaves the epoch open.
        """
        self._open.close()
        del self._batches


def fit_module(
    module: pl.LightningModule,
    batches: EpochBatches,
    *,
    name: str,
    epochs: int,
    checkpoint: Path,
    metrics: MetricsFile,
    options: LoopOptions,
    selection: Chooser | None = None,
) -> None:
    """Train a module for a number of epochs and leave it trained.

    Checkpoints are written at the end of an epoch, at most every few seconds. As batches and every random draw are
    functions of the epoch, a run resumed from any of them goes on exactly as it would have.

    Args:
        module: trained in place; its training step returns a mapping of losses.
        batches: the training batches.
        name: name of the stage, for progress and metrics.
        epochs: number of epochs.
        checkpoint: file of the last checkpoint, which is resumed where it exists.
        metrics: gets one row an epoch.
        options: how the loop runs.
        selection: measures the detector as it trains; the best state is restored at the end. None keeps the last.
    """
    watch = _Watch(name, epochs, checkpoint, metrics, options, selection)
    with warnings.catch_warnings(), quiet_lightning(), _flushed_denormals():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = make_trainer(options, max_epochs=epochs, callbacks=[watch], default_root_dir=str(checkpoint.parent))
        begun = processes.once(checkpoint.exists)
        loader = _Loader(batches, module)
        try:
            with together():
                trainer.fit(module, loader, ckpt_path=str(checkpoint) if begun else None)
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
    watch.restore_best(module)
    processes.same_everywhere(module)
    module.eval()


def check_options(options: LoopOptions) -> pl.Trainer:
    """Find out whether Lightning can do what it is asked to, before any work is done.

    Returns:
        A trainer that knows the processes it needs.

    Raises:
        FlawsmithError: no such accelerator, devices or strategy here.
    """
    with warnings.catch_warnings(), quiet_lightning():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            return make_trainer(options)
        except FlawsmithError:
            raise
        except Exception as error:  # Lightning raises its own types, ValueError, TypeError and RuntimeError alike
            reason = str(error).strip().splitlines()[0]
            raise FlawsmithError(
                f"cannot train with --accelerator {options.accelerator}, --devices {options.devices} and --strategy "
                f"{options.strategy}: {reason}"
            ) from error


def make_trainer(options: LoopOptions, **settings: Any) -> pl.Trainer:
    """Lightning's trainer; for several processes with its data-parallel strategy.

    Raises:
        FlawsmithError: another strategy for several processes.
    """

    def trainer(strategy: str | DDPStrategy, *plugins: LayerSync) -> pl.Trainer:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=_nodes(),
            strategy=strategy,
            precision=options.precision,  # type: ignore[arg-type]
            plugins=[SafeCheckpointIO(), *plugins],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **settings,
        )

    asked = trainer(options.strategy)
    if asked.world_size == 1:
        return asked
    if type(asked.strategy) is not DDPStrategy or asked.strategy._start_method != "popen":
        raise FlawsmithError(
            f"--strategy {options.strategy} is not possible in several processes: methods share batches by --strategy "
            "ddp, which auto chooses in a program"
        )
    # Some steps leave parameters unused (a discriminator while its generator learns); buffers are the same everywhere.
    shared = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, timeout=processes.PATIENCE)
    return trainer(shared, _SharedStatistics())


def _nodes() -> int:
    """Machines that take part, as torchrun or SLURM say."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NNODES", "1")) if SLURMEnvironment.detect() else 1


class _SharedStatistics(LayerSync):
    """Batch norms over all processes while a module trains; see layers/shared_batch_norm.py."""

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        share_batch_norms(model)
        return model

    def revert(self, model: torch.nn.Module) -> torch.nn.Module:
        own_batch_norms(model)
        return model


class _Watch(pl.Callback):
    """Progress, metrics, checkpoints and selection of one stage; of several processes the first one's."""

    def __init__(
        self,
        name: str,
        epochs: int,
        checkpoint: Path,
        metrics: MetricsFile,
        options: LoopOptions,
        selection: Chooser | None,
    ) -> None:
        self._name, self._epochs, self._metrics = name, epochs, metrics
        self._checkpoint, self._best = checkpoint, checkpoint.with_name(f"{name}-best.safetensors")
        self._selection, self._saved = selection, time.monotonic()
        self._sums: dict[str, float] = {}
        self._steps = 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        shown = processes.first() and not options.quiet
        self._progress = Progress(*columns, console=options.console, disable=not shown, transient=True)
        self._task = self._progress.add_task(f"training {name}", total=epochs, loss="")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._metrics.restart(trainer.current_epoch)
        self._progress.start()
        self._progress.update(self._task, completed=trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        losses: Mapping[str, torch.Tensor] = outputs
        for key, value in losses.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(value)
        self._steps += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if trainer.is_global_zero:
            with apart():
                self._record(epoch, pl_module)
        due = epoch + 1 == self._epochs or time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if processes.once(lambda: due):
            trainer.save_checkpoint(self._checkpoint)
            self._saved = time.monotonic()

    def _record(self, epoch: int, pl_module: pl.LightningModule) -> None:
        means = {key: value / self._steps for key, value in self._sums.items()}
        self._sums, self._steps = {}, 0
        if self._selection is not None and self._selection.due(epoch, self._epochs):
            figures = self._selection.measure()
            means |= figures
            self._keep_if_best(sum(figures.values()), pl_module)
            pl_module.train()
        self._metrics.append(epoch, means)
        self._progress.update(self._task, completed=epoch + 1, loss=f"loss {means['loss']:.4f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._progress.stop()

    def _keep_if_best(self, value: float, module: pl.LightningModule) -> None:
        if self._best.exists() and float(load_tensors(self._best)[1]) >= value:
            return
        save_tensors(module.state_dict(), self._best, structure=repr(value))

    def restore_best(self, module: pl.LightningModule) -> None:
        if self._selection is not None and processes.first():
            module.load_state_dict(load_tensors(self._best)[0])


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Denormals slow an untrained network down tenfold on some CPUs; code outside of training must not lose them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
