"""A watched folder: each file that arrives is judged once, whatever happens meanwhile.

The record of a file and the note that this file has it are written together, before anything is done to the file. After
a kill the note says which files are to be dealt with still, and none is judged again. A file is told from others by its
content and the time it was written, with its name or its inode: a file that is renamed is the same, one that is written
anew under its old name is another.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from watchfiles import watch
from watchfiles.main import FileChange

from flawsmith.line.queue import NotRecordedError, QueueFullError, UnreadableYetError
from flawsmith.line.record import Record, Trigger, WatchedFile
from flawsmith.line.station import Line
from flawsmith.line.store import Store
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES, is_stray, iter_images, printable, without_controls

Ready = Literal["stable", "rename", "sentinel"]
"""When a file is whole: when its size and time stay the same for a while; as soon as it has an image's name, because it
was renamed when whole; or when a file of its name and `SENTINEL` lies beside it."""
Then = Literal["leave", "move", "delete"]
"""What is done with a file that has its record."""

SENTINEL = ".done"
DONE = "done"
"""Folder, beside the watched one's files, into which they are moved."""
PATIENCE = 10
"""Times as long as a whole file has to be stable, a file that cannot be read is given, as it may be half written."""
_LONGEST_SETTLE = 3600.0
_LOOK_SECONDS = 60.0
"""Between looks at the whole folder, for what the system did not report."""
_LARGEST_FILE = 2**29
"""Bytes; a larger file is passed over."""


class _State(NamedTuple):
    """What changes when a file is written or replaced."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> _State:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass
class _Candidate:
    """A file that was not dealt with.

    Attributes:
        state: as it was seen last.
        since: when it was seen so first.
        unreadable: whether it was no image then: it may be half written.
        in_work: whether it waits for its record.
        record: number of its record, where it could not be put away.
    """

    state: _State
    since: float
    unreadable: bool = False
    in_work: bool = False
    record: int | None = None


def check_policy(ready: str, then: str, settle: float) -> dict[str, Any]:
    """The policy of a watch, as arguments of `FolderWatch`.

    Raises:
        FlawsmithError: there is no such policy.

    Example:
        >>> check_policy("stable", "move", 0.5)
        {'ready': 'stable', 'then': 'move', 'settle': 0.5}
    """
    for name, value, known in (("--ready", ready, get_args(Ready)), ("--then", then, get_args(Then))):
        if value not in known:
            raise FlawsmithError(f"{name} {value} is not possible: write {', '.join(known)}")
    if not 0 < settle <= _LONGEST_SETTLE:
        raise FlawsmithError(f"--settle {settle:g} is not possible: write seconds up to {_LONGEST_SETTLE:g}, such as 1")
    return {"ready": ready, "then": then, "settle": settle}


def check_folder(folder: Path, records: Path) -> Path:
    """The folder to watch, resolved.

    Args:
        folder: to watch.
        records: where records are kept.

    Raises:
        FlawsmithError: there is no such folder, or the records lie in it.
    """
    if not folder.is_dir():
        raise FlawsmithError(f"{folder}: no such folder; make it, or correct the path")
    if records.resolve().is_relative_to(folder.resolve()):
        raise FlawsmithError(f"{records}: lies in the watched folder; give another with --out")
    return folder.resolve()


class FolderWatch:
    """Judges what arrives in a folder.

    Args:
        folder: to watch, with its subfolders.
        line: that judges.
        store: that remembers files.
        ready: when a file is whole.
        settle: seconds for which a stable file must not have changed.
        then: what is done with a file that has its record.
        polling: look at the folder again and again instead of waiting for the system's word, as network shares need.
        on_record: told of each record, in order.
        clock: seconds, rising.

    Raises:
        FlawsmithError: there is no such folder, or the records lie in it.
    """

    def __init__(
        self,
        folder: Path,
        line: Line,
        store: Store,
        *,
        ready: Ready = "stable",
        settle: float = 1.0,
        then: Then = "leave",
        polling: bool = False,
        on_record: Callable[[Record], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = check_folder(folder, store.path.parent)
        self._line, self._store = line, store
        self._ready, self._settle, self._then, self._polling = ready, settle, then, polling
        self._on_record, self._clock = on_record, clock
        self._candidates: dict[Path, _Candidate] = {}
        self._settled: dict[Path, _State] = {}
        self._in_work: deque[tuple[Path, _State, Future[Record]]] = deque()
        self._is_told = False

    def run(self, stop: threading.Event) -> None:
        """Watch until told to stop; what was begun is finished.

        Args:
            stop: set from another thread or a signal handler.
        """
        step = max(50, int(1000 * min(self._settle / 2, 1.0)))
        events = watch(
            self.folder,
            stop_event=stop,
            yield_on_timeout=True,
            rust_timeout=step,
            step=50,
            debounce=step,
            force_polling=self._polling,
            poll_delay_ms=max(300, step),
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        looked = -_LOOK_SECONDS
        while (changes := self._next(events)) is not None:
            if self._clock() - looked >= _LOOK_SECONDS:
                self.look()
                looked = self._clock()
            else:
                self.look(Path(path) for _, path in changes)
            self.step()
        self.finish()

    def _next(self, events: Iterator[set[FileChange]]) -> set[FileChange] | None:
        """What has changed; None: watching was ended."""
        try:
            return next(events, None)
        except (OSError, RuntimeError) as error:  # such as too many watches
            raise FlawsmithError(f"{self.folder}: the system cannot watch it ({error}); give --poll") from None

    def look(self, changed: Iterable[Path] | None = None) -> None:
        """Take note of files that are not dealt with yet.

        Args:
            changed: where something changed; None: look at the whole folder.
        """
        if changed is None:
            try:
                paths = set(iter_images(self.folder, without=self.folder / DONE))
                self._is_told = False
            except FlawsmithError as error:  # a share that is gone comes back
                self._warn(str(error))
                return
            self._settled = {path: state for path, state in self._settled.items() if path in paths}
        else:
            paths = {Path(str(path).removesuffix(SENTINEL)) for path in changed}
        for path in paths:
            state = _state(path) if self._is_watched(path) else None
            # What changed is read again even if it looks the same: some file systems tell times in steps of 2 s.
            if state is not None and (changed is not None or self._settled.get(path) != state):
                self._candidates.setdefault(path, _Candidate(state, self._clock()))

    def step(self) -> None:
        """Judge the files that are whole by now, and deal with those that have their record."""
        for path, candidate in list(self._candidates.items()):
            if self._candidates.get(path) is not candidate:
                continue  # it was dealt with while another one waited for room
            state = _state(path)
            if state is None:
                del self._candidates[path]
            elif state.size > _LARGEST_FILE:
                warnings.warn(
                    without_controls(f"{path}: has more than {_LARGEST_FILE >> 20} MiB, and is passed over"),
                    stacklevel=2,
                )
                self._settled[path] = state
                del self._candidates[path]
            elif self._is_whole(path, candidate, state):
                self._take(path, candidate)
        while self._in_work and self._in_work[0][2].done():
            self._deal_with_first()

    def finish(self) -> None:
        """Wait for what was taken, and deal with it."""
        while self._in_work:
            self._deal_with_first()

    def _is_watched(self, path: Path) -> bool:
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_relative_to(self.folder):
            return False
        parts = path.relative_to(self.folder).parts
        return parts[0] != DONE and not any(is_stray(part) for part in parts)

    def _is_whole(self, path: Path, candidate: _Candidate, state: _State) -> bool:
        if candidate.in_work:
            return False
        if state != candidate.state:
            candidate.state, candidate.since, candidate.unreadable = state, self._clock(), False
            candidate.record = None
        if self._ready == "rename":
            return True
        if self._ready == "sentinel":
            return path.with_name(path.name + SENTINEL).exists()
        waited = self._clock() - candidate.since
        return waited >= self._settle * (PATIENCE if candidate.unreadable else 1)

    def _take(self, path: Path, candidate: _Candidate) -> None:
        if candidate.record is not None:
            self._deal_with(path, candidate.state, candidate.record)
            return
        name = printable(path.relative_to(self.folder))
        read = self._read(path)
        if read is None:  # locked, or written meanwhile: later
            candidate.since = self._clock()
            return
        content, state = read
        file = WatchedFile(name, hashlib.sha256(content).hexdigest(), state.inode, state.mtime_ns)
        number = self._store.file_record(file)
        if number is not None:
            self._deal_with(path, state, number)
            return
        provisional = self._ready == "stable" and not candidate.unreadable
        trigger = Trigger(self._line.name, content, source="watch", file=file, provisional=provisional)
        while True:
            try:
                future, _ = self._line.submit(trigger)
                break
            except QueueFullError:
                if not self._in_work:
                    return
                self._deal_with_first()
        candidate.in_work = True
        self._in_work.append((path, state, future))

    def _read(self, path: Path) -> tuple[bytes, _State] | None:
        """Content and state of a file; None where it cannot be read now, or changed while it was."""
        try:
            with path.open("rb") as stream:
                before = os.fstat(stream.fileno())
                content = stream.read()
                after = os.fstat(stream.fileno())
        except OSError as error:
            self._warn(f"{path}: cannot be read ({error.strerror}); it is tried again")
            return None
        state = _State.of(after)
        return (content, state) if _State.of(before) == state and len(content) == state.size else None

    def _deal_with_first(self) -> None:
        """Wait for the file that was taken first."""
        path, state, future = self._in_work.popleft()
        candidate = self._candidates.get(path)
        if candidate is not None:
            candidate.in_work = False
        try:
            record = future.result()
        except UnreadableYetError:
            if candidate is not None:
                candidate.unreadable = True
            return
        except NotRecordedError as error:
            self._warn(f"{path}: no record could be written ({error}); it is tried again")
            return
        self._deal_with(path, state, record.id)
        self._on_record(record)

    def _deal_with(self, path: Path, state: _State, number: int) -> None:
        """Leave, move or delete a file that has its record, unless another has taken its place."""
        if _state(path) == state:
            try:
                if self._then == "delete":
                    path.unlink()
                elif self._then == "move":
                    self._move(path, number)
                if self._then != "leave":
                    path.with_name(path.name + SENTINEL).unlink(missing_ok=True)
            except OSError as error:
                self._warn(f"{path}: cannot be put away ({error.strerror}); it is tried again")
                if path in self._candidates:  # and is not read again for that
                    self._candidates[path].record = number
                return
            if self._then == "leave":
                self._settled[path] = state
            self._candidates.pop(path, None)

    def _move(self, path: Path, number: int) -> None:
        target = self.folder / DONE / path.relative_to(self.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target = target.with_name(f"{target.stem}-{number}{target.suffix}")
        path.rename(target)

    def _warn(self, message: str) -> None:
        """Said once until all goes well again: a share that is gone is found so every minute."""
        if not self._is_told:
            self._is_told = True
            warnings.warn(without_controls(message), stacklevel=2)


def _state(path: Path) -> _State | None:
    """None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _State.of(status) if stat.S_ISREG(status.st_mode) else None
