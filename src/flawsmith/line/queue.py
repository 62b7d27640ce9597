"""The queue of a line: bounded, in order, with decoding, the network and writing in threads of their own.

    submit -> decoders (several) -> network (one, in order) -> writer (one, many records a commit) -> answer

A part is answered when its record is on the disk, not before. What does not fit is refused at once: nothing waits
without bound, and nothing is dropped in silence.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from flawsmith.line.record import Record, Trigger
from flawsmith.line.store import UnwritableError
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector, PreparedImage


class Judge(Protocol):
    """A model with its limits, as a queue needs it. A part is judged by the one that was in use when it was taken."""

    @property
    def inspector(self) -> Inspector: ...

    def statistics(self, prepared: PreparedImage) -> dict[str, float] | None:
        """Facts about an image that its record holds; None: none."""

    def record(self, trigger: Trigger, inspection: Inspection, wait: float) -> Record:
        """The record of a part that was judged; ``wait`` is in milliseconds."""

    def error_record(self, trigger: Trigger, error: Exception, *, decoded: bool) -> Record:
        """The record of a part that could not be judged; ``decoded``: its image was read."""


Commit = Callable[[Sequence[tuple[Trigger, Record]]], list[Record]]
"""Writes records to the disk, all or none, and returns them with their numbers."""


class QueueFullError(Exception):
    """As many parts wait as may: try again shortly."""


class QueueClosedError(Exception):
    """The line takes no parts any more."""


class PartConflictError(Exception):
    """The part was judged already, or is being judged, by another image."""


class NoModelError(Exception):
    """The line has no model: it is not taught yet, or its model was unloaded."""


class NotRecordedError(Exception):
    """The part was judged, but its record could not be written: it counts as not judged."""


class UnreadableYetError(Exception):
    """The image of a provisional trigger cannot be read; there is no record."""


@dataclass
class _Job:
    trigger: Trigger
    judge: Judge
    answer: Future[Record] = field(default_factory=Future)
    prepared: Future[tuple[PreparedImage, dict[str, float] | None]] | None = None
    record: Record | None = None


def _prepare(job: _Job) -> tuple[PreparedImage, dict[str, float] | None]:
    _ = job.trigger.image_sha256  # kept by the trigger: the network's thread has better to do
    prepared = job.judge.inspector.prepare(job.trigger.image)
    return prepared, job.judge.statistics(prepared)


class InspectionQueue:
    """Judges parts in the order in which they are taken.

    Args:
        commit: writes records.
        name: of the line, for its threads.
        capacity: parts that may be waiting or in work; more are refused.
        decoders: threads that decode.

    Raises:
        FlawsmithError: a number is below 1.
    """

    def __init__(self, commit: Commit, *, name: str = "line", capacity: int = 16, decoders: int = 2) -> None:
        if capacity < 1 or decoders < 1:
            raise FlawsmithError(f"a queue needs room for 1 part and 1 decoder, not {capacity} and {decoders}")
        self.capacity = capacity
        self._commit = commit
        self._ahead = 2 * decoders  # decoded images are large: no more than these are in memory
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._decoding: deque[_Job] = deque()
        self._judged: deque[_Job] = deque()
        self._length = 0
        self._closed = self._network_ended = False
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix=f"{name}-decode")
        self._threads = [
            threading.Thread(target=work, name=f"{name}-{role}", daemon=True)
            for role, work in (("network", self._infer_all), ("writer", self._write_all))
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Parts that were taken and are not answered yet."""
        return self._length

    def submit(self, trigger: Trigger, judge: Judge) -> Future[Record]:
        """Take a part; returns at once.

        Args:
            trigger: the part.
            judge: the model and limits that judge it.

        Returns:
            The promise of its record, which is on the disk when the promise is kept.

        Raises:
            QueueFullError: there is no room.
            QueueClosedError: the queue was closed.
        """
        job = _Job(trigger, judge)
        job.answer.set_running_or_notify_cancel()  # whoever waits may leave, and cannot take the part back
        with self._changed:
            if self._closed:
                raise QueueClosedError
            if self._length >= self.capacity:
                raise QueueFullError
            self._length += 1
            self._waiting.append(job)
            self._decode_next()
            self._changed.notify_all()
        return job.answer

    def close(self) -> None:
        """Take no more parts, judge those that were taken, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    def _decode_next(self) -> None:
        """Hand waiting images to the decoders, as far as there is room; the lock is held."""
        while self._waiting and len(self._decoding) < self._ahead:
            job = self._waiting.popleft()
            job.prepared = self._pool.submit(_prepare, job)
            self._decoding.append(job)

    def _infer_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._decoding or self._closed)
                if not self._decoding:
                    self._network_ended = True
                    self._changed.notify_all()
                    return
                job = self._decoding[0]
            job.record = self._judge(job)
            with self._changed:
                self._decoding.popleft()
                self._decode_next()
                self._judged.append(job)
                self._changed.notify_all()

    def _judge(self, job: _Job) -> Record | None:
        assert job.prepared is not None, "handed to the decoders"
        decoded = False
        try:
            prepared, statistics = job.prepared.result()
            job.prepared, decoded = None, True
            wait = 1000 * (time.monotonic() - job.trigger.clock)
            record = job.judge.record(job.trigger, job.judge.inspector.inspect_prepared(prepared), wait)
            return record.model_copy(update={"statistics": statistics})
        except Exception as error:  # whatever goes wrong, the part has a record
            if job.trigger.provisional and not decoded:
                return None
            return job.judge.error_record(job.trigger, error, decoded=decoded)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._judged or self._network_ended)
                if not self._judged:
                    return
                jobs = list(self._judged)
                self._judged.clear()
            self._write(jobs)

    def _write(self, jobs: Sequence[_Job]) -> None:
        """Commit what has gathered and answer in order; where that fails, each alone, so that one spoils no other."""
        try:
            records = iter(self._commit([(job.trigger, job.record) for job in jobs if job.record is not None]))
        except Exception as error:
            if len(jobs) > 1 and not isinstance(error, UnwritableError):
                for job in jobs:
                    self._write([job])
            else:  # where the file is held by another program, each attempt takes seconds
                for job in jobs:
                    self._answer(job, UnreadableYetError() if job.record is None else NotRecordedError(str(error)))
            return
        for job in jobs:
            self._answer(job, UnreadableYetError() if job.record is None else next(records))

    def _answer(self, job: _Job, result: Record | Exception) -> None:
        with self._changed:
            self._length -= 1
        if isinstance(result, Exception):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)
