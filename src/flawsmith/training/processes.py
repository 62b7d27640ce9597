"""Several processes that train one model: how they come together, work in turn, agree, and end.

All of them run the whole program. What is learned in loops is shared by Lightning's data-parallel strategy and by
``methods.layers.distributed``; everything else is here. The first process alone writes to the run folder. In one
process all functions are the plain ones.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from flawsmith.runtime.errors import FlawsmithError

GRACE = 10.0
"""Seconds in which the program may end by itself after another process has failed."""
_SAYS = "FLAWSMITH_SAYS"
"""Variable of a process that :class:`Children` started: the file for its last words."""
_POLL = 0.2


def end_with_parent() -> None:
    """In a process that :class:`Children` started: end with the one that started it, whatever ended that."""
    if _SAYS in os.environ and not _Watch.begun:
        _Watch.begun = True
        threading.Thread(target=_end_at_eof, daemon=True).start()


def report_error(error: FlawsmithError) -> None:
    """In a process that :class:`Children` started: say to the first one why this one ends."""
    if _SAYS in os.environ:
        Path(os.environ[_SAYS]).write_text(str(error))


class _Watch:
    begun = False


def _end_at_eof() -> None:
    # No Python file object: a thread that waits on one at the end of the program is a fatal error.
    while os.read(0, 1):
        pass
    os._exit(1)


def command() -> list[str]:
    """The command line that runs this program once more.

    Raises:
        FlawsmithError: it has none, as in a notebook.
    """
    import __main__

    spec, file = getattr(__main__, "__spec__", None), Path(sys.argv[0])
    if spec is not None:
        return [sys.executable, "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    if file.stem == "flawsmith":  # the console script, which is no Python file everywhere
        return [sys.executable, "-m", "flawsmith", *sys.argv[1:]]
    if not file.is_file():
        raise FlawsmithError(
            "training in several processes runs the program once more for each, and this one is no file: "
            "save it as a script, or use the command line"
        )
    return [sys.executable, str(file.resolve()), *sys.argv[1:]]


class Failure(NamedTuple):
    """Why a process has ended.

    Attributes:
        line: for the user.
        trace: what it left on stderr, where that is no user's mistake: a defect keeps its traceback.
    """

    line: str
    trace: str = ""


class Children:
    """Processes 1 to n − 1 of n.

    They get no terminal: what they print is thrown away, what they complain of is kept in a file and read where one
    fails. Ctrl-C reaches the first process alone.

    Args:
        count: processes, this one included.
    """

    def __init__(self, count: int) -> None:
        line = command()
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(count),
        }
        self._before = {name: os.environ.get(name) for name in [*shared, "LOCAL_RANK"]}
        os.environ.update(shared, LOCAL_RANK="0")
        self._folder = tempfile.TemporaryDirectory(prefix="flawsmith-")
        self._files = [Path(self._folder.name) / f"{number}.txt" for number in range(1, count)]
        self._processes = []
        for number, file in enumerate(self._files, 1):
            with file.open("w") as errors:
                process = subprocess.Popen(
                    line,
                    env={
                        "TORCH_CPP_LOG_LEVEL": "ERROR",  # its warnings are no last words
                        **os.environ,
                        "LOCAL_RANK": str(number),
                        _SAYS: str(file.with_suffix(".says")),
                    },
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            self._processes.append(process)
        atexit.register(self.end)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it no process may end; where one does, the first learns why.

        Raises:
            FlawsmithError: in the words of the one that failed.
        """
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), daemon=True).start()
        try:
            yield
        except (FlawsmithError, KeyboardInterrupt):
            raise
        except Exception as error:  # perhaps nothing but the loss of the others
            reason = self._reason(GRACE / 2)
            if reason is None:
                raise
            print(reason.trace, end="", file=sys.stderr, flush=True)
            raise FlawsmithError(reason.line) from error
        finally:
            done.set()

    def end(self) -> None:
        """End those that are left. They hold nothing that could be lost."""
        for process in self._processes:
            process.kill()
            process.wait()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._folder.cleanup()
        atexit.unregister(self.end)

    def _watch(self, done: threading.Event) -> None:
        """Nothing interrupts a process that waits for the others in a backend: then it ends here."""
        while not done.wait(_POLL):
            reason = self._reason(0.0)
            if reason is not None and not done.wait(GRACE):
                print(f"{reason.trace}error: {reason.line}", file=sys.stderr, flush=True)
                for process in self._processes:
                    process.kill()
                os._exit(2)

    def _reason(self, patience: float) -> Failure | None:
        """Why one of them has ended; None where none does so in time."""
        end = time.monotonic() + patience
        while True:
            for number, (process, file) in enumerate(zip(self._processes, self._files, strict=True), 1):
                code = process.poll()
                if code is not None:
                    says = file.with_suffix(".says")
                    if says.exists():
                        return Failure(says.read_text())
                    return _words(number, code, file.read_text(errors="replace"))
            if time.monotonic() >= end:
                return None
            time.sleep(_POLL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _words(number: int, code: int, complaints: str) -> Failure:
    """What is to be said in one line of a process that has ended."""
    if code < 0:
        return Failure(
            f"process {number} of this training was killed (signal {-code}), perhaps for want of memory: continue with "
            "--resume"
        )
    lines = [line for line in complaints.splitlines() if line.strip()]
    last = lines[-1] if lines else "without a word"
    for mark in ("FlawsmithError: ", "error: "):
        if last.startswith(mark) or f".{mark}" in last:
            return Failure(last.partition(mark)[2])
    return Failure(f"process {number} of this training ended with code {code}: {last}", complaints)


class quiet_lightning:  # noqa: N801, used as a function
    """Lightning announces devices and tips on its loggers; what goes wrong still raises."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)


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
            report_error(error)
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
