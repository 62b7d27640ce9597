"""The other processes of a training on one machine: the same program once more, watched by the one that started them.

They are what Lightning's own launcher would start, with its variables; but its observer kills everything where one
process fails. Here the first process says in one line what the failed one said.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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


def tell(error: FlawsmithError) -> None:
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
