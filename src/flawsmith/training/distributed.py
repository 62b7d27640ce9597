"""Several processes that train one model, by Lightning's data-parallel strategy (docs/train/training.md).

All of them run the whole program; Lightning, torchrun or SLURM starts them. Loops are shared by the strategy; what
comes between them is computed by rank zero and broadcast. In one process all functions are the plain ones.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from flawsmith.features.backbones import errors_alone
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.system import KILL

TIMEOUT = timedelta(hours=12)
"""How long rank zero may keep the others waiting; a process that has ended is noticed at once."""
_LOST = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "store->")
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_failed = threading.Event()

T = TypeVar("T")


def is_rank_zero() -> bool:
    """Whether this process is the one that writes and speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


def is_distributed() -> bool:
    """Whether other processes do what this one does now."""
    return dist.is_available() and dist.is_initialized() and not _alone.get()


@contextmanager
def process_group(trainer: pl.Trainer) -> Iterator[None]:
    """Within it all processes of a trainer work together; they stay together until the program ends.

    Args:
        trainer: knows how many they are; Lightning starts those that nobody else has started.

    Raises:
        FlawsmithError: they cannot come together, or another one has ended.
    """
    if trainer.world_size == 1 and not is_distributed():
        yield
        return
    if is_distributed() and dist.get_world_size() != trainer.world_size:
        raise FlawsmithError(
            f"this program trains in {dist.get_world_size()} processes already: give all its runs the same devices"
        )
    if _failed.is_set():  # the others may still wait for what this one did not come to
        raise FlawsmithError("a run of this program in several processes has failed: start the program again")
    strategy, launcher = trainer.strategy, trainer.strategy.launcher
    assert isinstance(strategy, DDPStrategy) and strategy.cluster_environment is not None and launcher is not None
    try:
        strategy.cluster_environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        raise FlawsmithError(
            f"--devices {trainer.num_devices} on {trainer.num_nodes} nodes does not agree with the processes that were "
            f"started: {' '.join(str(error).split())}"
        ) from error
    try:
        with quiet_lightning():
            launcher.launch(strategy.setup_environment, trainer=trainer)
        yield
    except BaseException as error:
        _failed.set()
        # Not before the end: Lightning ends a program whose other processes were killed.
        atexit.register(launcher.kill, KILL)
        if isinstance(error, KeyboardInterrupt) and not is_rank_zero():
            raise SystemExit(130) from None  # rank zero speaks
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST):
            if not is_rank_zero():
                raise SystemExit(2) from None
            raise FlawsmithError(
                "another process of this training has ended; it said why, or was killed: continue with --resume"
            ) from error
        raise


@contextmanager
def rank_zero_context() -> Iterator[None]:
    """Within it this process works alone, while the others wait."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def broadcast_from_rank_zero(compute: Callable[[], T]) -> T:
    """What rank zero computes, given to all; the others wait."""
    if not is_distributed():
        return compute()
    results: list[Any] = [None]
    if is_rank_zero():
        with rank_zero_context():
            results = [compute()]
    dist.broadcast_object_list(results, src=0)
    return results[0]


def local_rank_zero_first(compute: Callable[[], T]) -> T:
    """What every process computes, the first of each machine before the others: they find its work in a cache."""
    if not is_distributed():
        return compute()
    is_first = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0
    with rank_zero_context():
        results = [compute()] if is_first else []
    dist.barrier()
    with rank_zero_context():
        return results[0] if is_first else compute()


def broadcast_state(module: nn.Module) -> None:
    """Give all processes rank zero's state, to the last bit: statistics of batches are those of each process."""
    if is_distributed():
        module.load_state_dict(broadcast_from_rank_zero(module.state_dict), strict=False)


class SyncBatchNorm(LayerSync):
    """Batch norms over all processes while a module trains, timm's with their activations too, which torch drops."""

    def apply(self, model: nn.Module) -> nn.Module:
        self._norms = {
            name: norm for name, norm in model.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        }
        return convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]

    def revert(self, model: nn.Module) -> nn.Module:
        for name, norm in self._norms.items():
            synchronised = model.get_submodule(name)
            norm._parameters, norm._buffers = synchronised._parameters, synchronised._buffers
            model.set_submodule(name, norm.train(synchronised.training))
        return model


def data_parallel(root_device: torch.device) -> tuple[DDPStrategy, list[LayerSync]]:
    """Lightning's strategy for several processes, and what synchronises batch norms: torch's do so on GPUs alone."""
    # Some steps leave parameters unused (a discriminator while its generator learns); buffers, such as a memory of
    # features, are large and the same everywhere but for batch norms, of which rank zero's are kept.
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, timeout=TIMEOUT)
    return strategy, [SyncBatchNorm()] if root_device.type == "cuda" else []


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning announces devices and tips on its loggers; what goes wrong still raises."""
    with errors_alone("lightning.pytorch", "lightning.fabric"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
