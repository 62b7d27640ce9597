"""Folders that a command writes: one writer at a time, nothing half done, and results that survive an interruption."""

from __future__ import annotations

import errno
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder, make_folder
from flawsmith.runtime.system import ENDING, OPEN_FILES_STAY, lock_first_byte

LOCK = ".flawsmith.lock"
"""Stands in a folder for as long as a command writes there."""
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_held: set[str] = set()
"""Lock files of this process: the operating system keeps processes apart, not the threads of one."""
_guard = threading.Lock()


@contextmanager
def locked_file(path: Path) -> Iterator[bool]:
    """Hold a lock of the operating system, which ends with the process, however that ends.

    The file is removed when the lock is given back. A file system without locks gives the lock to everyone.

    Args:
        path: the lock's file; its folder exists.

    Yields:
        Whether the lock was free; False: someone else holds it.

    Raises:
        OSError: the file cannot be made.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with locked_file(path) as first, locked_file(path) as second:
        ...     first, second
        (True, False)
        >>> path.exists()
        False
    """
    name = os.path.realpath(path)
    with _guard:
        taken = name in _held
        file = None if taken else _locked(path)
        if file is not None:
            _held.add(name)
    if file is None:
        yield False
        return
    holder = os.getpid()
    try:
        yield True
    finally:
        if os.getpid() == holder:  # not a forked child
            with _guard:
                _remove_locked(path, file)
                _held.discard(name)


def _remove_locked(path: Path, file: IO[bytes]) -> None:
    if OPEN_FILES_STAY:
        file.close()
    # Elsewhere before the lock is free: whoever gets it then sees that the file has gone.
    with suppress(OSError):
        path.unlink()
    file.close()


def _locked(path: Path) -> IO[bytes] | None:
    """The file, open and locked; None where another process holds the lock."""
    while True:
        file = path.open("ab")
        try:
            if not lock_first_byte(file):
                file.close()
                return None
            # The last holder may have removed the file between the two steps.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Make a folder for results, and keep other commands from writing there.

    What killed commands left half written in it and in its folders is removed. A folder that was made for nothing goes
    again.

    Raises:
        FlawsmithError: another command writes there; a file stands there, or it may not be made or written.
    """
    made = _missing(folder)
    make_folder(folder)
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            is_free = stack.enter_context(locked_file(folder / LOCK))
        except OSError as error:
            raise FlawsmithError(f"{folder} may not be written ({error.strerror}): give another with --out") from error
        if not is_free:
            raise FlawsmithError(
                f"{folder}: another flawsmith command is writing there: wait until it has ended, or give another --out"
            )
        for place in (folder, *(entry for entry in folder.iterdir() if is_folder(entry) and not entry.is_symlink())):
            remove_unfinished(place)
        yield


def _missing(folder: Path) -> list[Path]:
    """The folders that have to be made for a folder to be there, innermost first."""
    return [place for place in (folder, *folder.parents) if not os.path.lexists(place)]


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of commands that were killed; nobody may be writing in the folder."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if _UNFINISHED.fullmatch(entry.name):
                with suppress(OSError):
                    entry.unlink()


def refuse_irreplaceable(paths: Iterable[Path]) -> None:
    """Find out before the work whether its results can take the places of earlier ones.

    Files of another user, those that a program has open (on Windows) or that the system protects, and folders cannot be
    replaced. That is known for certain only by moving them: each goes to another name and back.

    Raises:
        FlawsmithError: naming the first that cannot.
    """
    for path in paths:
        if not os.path.lexists(path):
            continue
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.aside")
        try:
            if is_folder(path) and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with uninterrupted():
                path.rename(aside)
                aside.rename(path)
        except OSError as error:
            raise FlawsmithError(
                f"{path} cannot be replaced ({error.strerror}): close the program that has it open, remove it, or give "
                "another --out"
            ) from None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it requests to end (Ctrl-C, SIGTERM, SIGHUP) wait; the last takes effect when the block ends well.

    Example:
        >>> with uninterrupted():
        ...     print("both files are replaced, or none")
        both files are replaced, or none
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(number)

    handlers = {number: signal.getsignal(number) for number in ENDING}
    # None: a handler that Python did not install, and cannot put back.
    waiting = [number for number, handler in handlers.items() if handler is not None and handler != signal.SIG_IGN]
    for number in waiting:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in waiting:
            signal.signal(number, handlers[number])
    if requests:
        signal.raise_signal(requests[-1])
