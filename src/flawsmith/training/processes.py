"""Several processes that train one model: how they come together, work in turn, agree, and end.

All of them run the whole program. What is learned in loops is shared by Lightning's data-parallel strategy and by
``methods.layers.distributed``; everything else is here. The first process alone writes to the run folder. In one
process all functions are the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.children import Children, end_with_parent, tell
from flawsmith.training.quiet import quiet_lightning

PATIENCE = timedelta(hours=12)
"""How long one process may keep the others waiting. A dead one is noticed at once, by its connection or its parent."""
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "Socket Timeout", "gloo", "NCCL")

T = TypeVar("T")


class _Team:
    """The processes that this one has joined; they stay together until the program ends."""

    control: Any = None
    local_rank = 0
    alone = False
    children: Children | None = None


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return (dist.get_rank() if _Team.control is not None else getattr(rank_zero_only, "rank", 0)) == 0


@contextmanager
def joined(trainer: pl.Trainer) -> Iterator[None]:
    """Within it all processes that a trainer needs work together; this one starts those that nobody else has started.

    Raises:
        FlawsmithError: they cannot come together; or another one failed, in its own words.
    """
    if trainer.world_size == 1 and _Team.control is None:
        yield
        return
    if _Team.control is not None and dist.get_world_size() != trainer.world_size:
        raise FlawsmithError(
            f"this program trains in {dist.get_world_size()} processes already: give all its runs the same devices"
        )
    end_with_parent()
    strategy = trainer.strategy
    assert isinstance(strategy, DDPStrategy) and strategy.cluster_environment is not None
    if not strategy.cluster_environment.creates_processes_externally:
        _Team.children = Children(trainer.num_devices)
    try:
        with _Team.children.watched() if _Team.children is not None else _explained():
            _join(trainer, strategy)
            yield
            wait()
    except BaseException as error:
        if isinstance(error, FlawsmithError):
            tell(error)
        _leave()
        raise


def _join(trainer: pl.Trainer, strategy: DDPStrategy) -> None:
    assert strategy.cluster_environment is not None
    try:
        strategy.cluster_environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        raise FlawsmithError(
            f"--devices {trainer.num_devices} on {trainer.num_nodes} nodes does not agree with the processes that were "
            f"started: {' '.join(str(error).split())}"
        ) from error
    with quiet_lightning():
        strategy.setup_environment()
    if _Team.control is None:
        _Team.control = dist.new_group(backend="gloo", timeout=PATIENCE)
    _Team.local_rank = trainer.local_rank


def _leave() -> None:
    """After a failure: another run of this program may begin anew."""
    _Team.control, children, _Team.children = None, _Team.children, None
    if children is not None:
        children.end()
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    """Where somebody else has started the processes, one that loses the others says so and no more."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _LOST):
            raise
        raise FlawsmithError(
            "another process of this training has ended; where it says why, mend that, and continue with --resume"
        ) from error


# ---- What processes do one after another, or only one of them ------------------------------------------------------


def several() -> bool:
    """Whether other processes do what this one does now."""
    return _Team.control is not None and not _Team.alone


@contextmanager
def _alone() -> Iterator[None]:
    before, _Team.alone = _Team.alone, True
    try:
        yield
    finally:
        _Team.alone = before


def wait() -> None:
    """Until all processes are here."""
    if several():
        dist.barrier(group=_Team.control)


def once(compute: Callable[[], T]) -> T:
    """What the first process computes, given to all; the others wait."""
    if not several():
        return compute()
    found: list[Any] = [None]
    if first():
        with _alone():
            found[0] = compute()
    dist.broadcast_object_list(found, src=0, group=_Team.control)
    return found[0]


def in_turn(compute: Callable[[], T]) -> T:
    """What every process computes, the first of each machine before the others: they find its work in a cache."""
    if not several():
        return compute()
    ahead = _Team.local_rank == 0
    with _alone():
        found = [compute()] if ahead else []
    wait()
    with _alone():
        return found[0] if ahead else compute()


def same_everywhere(module: nn.Module) -> None:
    """Give all processes the first one's state, to the last bit: what follows is keyed by it."""
    if not several():
        return
    for tensor in module.state_dict().values():
        carried = tensor.detach().cpu().contiguous()
        dist.broadcast(carried, src=0, group=_Team.control)
        tensor.copy_(carried)
