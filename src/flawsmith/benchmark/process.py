"""A process that is measured from outside and stopped where it takes too much."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLING_SECONDS = 1.0  # the kernel walks all pages for a sample: five a second took a quarter of a core
STDERR_BYTES = 8000
# A process that waits at the standard input for the end of the pipe, and then ends its group. It is a child of the
# command and not of the one that starts it: a Ray worker that ends kills its own children, but not theirs.
_GUARD = 'exec 3<&0; { read -r _; kill -9 0; } <&3 2>/dev/null & exec "$@" 3<&- </dev/null'
Stop = threading.Event


@dataclass(frozen=True)
class Measured:
    """A finished process.

    Attributes:
        returncode: its exit code; negative: the signal that ended it.
        seconds: wall time from its start to its end.
        peak_bytes: largest anonymous memory of the process and its children together, sampled: what no file on disk
            backs, so that memory-mapped features do not count.
        stderr: the end of what it wrote to stderr.
        over_cap: whether it was ended for its memory.
    """

    returncode: int
    seconds: float
    peak_bytes: int
    stderr: str
    over_cap: bool = False


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process and its children, in bytes.

    On Linux from ``/proc/<pid>/smaps_rollup``, where pages that forked workers share with their parent are counted once
    (proportional set size); elsewhere the resident memory that psutil knows.
    """
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                total += _own_anonymous_bytes(one)
    return total


def _own_anonymous_bytes(process: psutil.Process) -> int:
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        return int(process.memory_info().rss)
    for line in rollup.read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return 1024 * int(line.split()[1])
    return int(process.memory_info().rss)  # kernels before 5.4 do not tell them apart


def run_measured(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
    stop: Stop | None = None,
) -> Measured:
    """Run a command to its end, watch its memory, and end it with its children where it must be.

    Neither outlives this process, even where that is killed: the kernel closes its end of a pipe, and who waits at the
    other end for that ends them (on POSIX systems).

    Args:
        command: program and arguments.
        env: added to the environment of this process.
        memory_bytes: anonymous memory at which it is ended; None: no cap.
        stop: ends it when set.
    """
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        # A session of its own: Ctrl-C reaches the benchmark alone, which then ends the process and all its children.
        process = subprocess.Popen(
            _guarded(command),
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        peak, over_cap = 0, False
        try:
            while True:
                try:
                    returncode = process.wait(timeout=SAMPLING_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    peak = max(peak, anonymous_bytes(process.pid))
                over_cap = memory_bytes is not None and peak > memory_bytes
                if over_cap or (stop is not None and stop.is_set()):
                    _end(process)
        finally:
            if process.poll() is None:
                _end(process)
                process.wait()
            process.stdin.close()
        seconds = time.perf_counter() - start
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
        return Measured(returncode, seconds, peak, stderr.read().decode(errors="replace"), over_cap)


def _guarded(command: Sequence[str]) -> Sequence[str]:
    """The command with a guard in its process group, where there is a POSIX shell to make one."""
    return ["/bin/sh", "-c", _GUARD, "sh", *command] if os.name == "posix" else command


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
