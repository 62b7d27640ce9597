"""Delivery: each record is told in order and at least once, however long a receiver is away.

The records are the queue. An output remembers the last record that it delivered (`Cursors`) and goes on from there, so
that neither a restart nor a kill loses any. Between delivering and remembering a kill leaves a record that is delivered
again, with the same id: the record's hash in the chain of the store.
"""

from __future__ import annotations

import logging
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, Field

from flawsmith.line.record import Record, now
from flawsmith.line.settings import DeliveredOutput, OutputBase, ServedOutput
from flawsmith.line.store import Store
from flawsmith.runtime.errors import FlawsmithError

FILE = "outputs.db"
SCHEMA = 1
"""Of the messages; rises when a receiver would have to change."""
TEND_SECONDS = 1.0
"""Between looks at a connection that has nothing to carry."""
LOOK_SECONDS = 10.0
"""Between looks at how far an output is behind."""
END_SECONDS = 5.0
"""For what is left to be delivered when a service ends; the rest goes out after its next start."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
"""Seconds to the second attempt, doubled with each further one; each is shortened by up to half at random."""
_BATCH = 100

log = logging.getLogger("flawsmith.line")


class DeliveryError(Exception):
    """A receiver did not take a record; it is tried again."""


class GoneError(DeliveryError):
    """The receiver wants no more."""


class Offline(IntEnum):
    """Why a line takes no parts."""

    ONLINE = 0
    ASKED = 1
    NO_MODEL = 2
    ENDING = 3
    PAUSED = 4

    @property
    def reason(self) -> str:
        """In words; empty: it takes parts."""
        return ("", "set offline by the PLC", "no model", "stopped", "the camera is paused")[self]


class Letter(NamedTuple):
    """A record to be delivered, and the id by which a receiver tells whether it has it already."""

    record: Record
    delivery: str

    def message(self) -> dict[str, Any]:
        """What is sent, ready for JSON."""
        return {"schema": SCHEMA, "delivery": self.delivery, **self.record.model_dump(mode="json")}


class Sink(Protocol):
    """A way to a receiver. All is called from one thread."""

    @property
    def target(self) -> str:
        """Where it goes, without secrets."""

    def tend(self, state: Offline) -> None:
        """Called at least once a second: see to the connection, and tell whether the line takes parts.

        Raises:
            DeliveryError: there is no connection.
        """

    def deliver(self, letters: Sequence[Letter]) -> int:
        """Deliver letters in order.

        Args:
            letters: some, the oldest first.

        Returns:
            How many of them the receiver has; at least 1.

        Raises:
            DeliveryError: it took none.
        """

    def close(self) -> None:
        """End, and say so where somebody listens; raises nothing."""


def check_address(output: ServedOutput) -> None:
    """Whether an output can listen where it is to; libraries of servers do not say why they cannot.

    Raises:
        FlawsmithError: it cannot.
    """
    try:
        with socket.create_server((output.host, output.port)):
            pass
    except OSError as error:
        raise FlawsmithError(
            f"output {output.label} cannot listen at {output.host}:{output.port} ({error.strerror}): give it "
            "another host or port"
        ) from None


class OutputFacts(BaseModel):
    """How an output is doing."""

    output: str = Field(description="its name")
    kind: str = Field(description="webhook, mqtt, csv, jsonl, modbus or opcua")
    target: str = Field(description="where it goes, without secrets")
    state: Literal["waiting", "delivering", "failing", "stopped"] = Field(
        description="waiting: for parts; failing: it is tried again; stopped: the receiver wants no more"
    )
    behind: int = Field(description="records that wait to be delivered")
    delivered: int = Field(description="records delivered, in all")
    skipped: int = Field(description="records left out, as too many waited; the audit says which")
    failures: int = Field(description="failed attempts since the start")
    failing_since: str | None = Field(default=None, description="UTC; null: it does not fail")
    last_error: str | None = None
    last_error_at: str | None = Field(default=None, description="UTC")
    last_delivered_at: str | None = Field(default=None, description="UTC, since the start")


class Health:
    """How an output has fared since the start.

    Args:
        line: its line's name.
        settings: of the output.
        on_failure: told of each failure.
    """

    def __init__(self, line: str, settings: OutputBase, on_failure: Callable[[], object]) -> None:
        self._line, self._settings, self._on_failure = line, settings, on_failure
        self._failures = self.failures_in_a_row = 0
        self._failing_since: str | None = None
        self.last_error: str | None = None
        self._last_error_at: str | None = None
        self._last_delivered_at: str | None = None

    def note(self, error: str) -> None:
        """Something went wrong, and the output works all the same."""
        self._failures += 1
        self.last_error, self._last_error_at = error, now()
        with suppress(Exception):
            self._on_failure()

    def failed(self, error: str, *, defect: Exception | None = None) -> None:
        """It does not work; said once until it works again. A defect of ours is logged with its traceback."""
        self.failures_in_a_row += 1
        if self.failures_in_a_row == 1:
            self._failing_since = now()
            log.warning("output %s of line %s fails: %s", self._settings.label, self._line, error, exc_info=defect)
        self.note(error)

    def delivered(self) -> None:
        """A record was delivered."""
        self._last_delivered_at = now()
        self.works()

    def works(self) -> None:
        """Nothing is wrong now."""
        if self.failures_in_a_row:
            log.warning("output %s of line %s works again", self._settings.label, self._line)
        self.failures_in_a_row, self._failing_since = 0, None

    def facts(self, *, target: str, behind: int, delivered: int, skipped: int, is_over: bool) -> OutputFacts:
        """What there is to say of the output."""
        state: Literal["waiting", "delivering", "failing", "stopped"] = "delivering" if behind else "waiting"
        if is_over:
            state = "stopped"
        elif self.failures_in_a_row:
            state = "failing"
        return OutputFacts(
            output=self._settings.label,
            kind=self._settings.kind,
            target=target,
            state=state,
            behind=behind,
            delivered=delivered,
            skipped=skipped,
            failures=self._failures,
            failing_since=self._failing_since,
            last_error=self.last_error,
            last_error_at=self._last_error_at,
            last_delivered_at=self._last_delivered_at,
        )


@dataclass
class Progress:
    """How far an output has come.

    Attributes:
        position: number of the last record that is done with.
        delivered, skipped: counts of all time.
    """

    position: int
    delivered: int = 0
    skipped: int = 0


class Cursors:
    """Remembers how far the outputs have come, in a file beside the records, so that writing it delays no record.

    The file is made when an output is asked for first.

    Args:
        folder: of the records.

    Example:
        >>> import tempfile
        >>> cursors = Cursors(Path(tempfile.mkdtemp()))
        >>> cursors.set("bolt", "mes", Progress(7, delivered=7))
        >>> cursors.get("bolt", "mes"), cursors.get("bolt", "files")
        (Progress(position=7, delivered=7, skipped=0), None)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._told = False
        self._connection: sqlite3.Connection | None = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            # A kill loses nothing; after a power cut the latest steps may be missing, and are made again.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS outputs (line TEXT, output TEXT, position INTEGER NOT NULL, "
                "delivered INTEGER NOT NULL, skipped INTEGER NOT NULL, PRIMARY KEY (line, output))"
            )
            self._connection = connection
        return self._connection

    def get(self, line: str, output: str) -> Progress | None:
        """How far an output has come; None: it is new.

        Raises:
            FlawsmithError: the file cannot be used.
        """
        query = "SELECT position, delivered, skipped FROM outputs WHERE line = ? AND output = ?"
        try:
            with self._lock:
                row = self._connected().execute(query, (line, output)).fetchone()
        except sqlite3.OperationalError as error:
            raise FlawsmithError(
                f"{self.path}: cannot be used ({error}); free some space, or close who holds it"
            ) from None
        except sqlite3.Error as error:
            raise FlawsmithError(
                f"{self.path}: cannot be used ({error}); remove it, and outputs begin with the next part"
            ) from None
        return None if row is None else Progress(*row)

    def set(self, line: str, output: str, progress: Progress) -> None:
        """Remember how far an output has come; where that cannot be written, it is said once, and stops nothing."""
        values = (line, output, progress.position, progress.delivered, progress.skipped)
        try:
            with self._lock:
                self._connected().execute("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?, ?)", values)
            self._told = False
        except sqlite3.Error as error:
            if not self._told:
                self._told = True
                log.warning("%s: cannot be written (%s); some records may be delivered again", self.path, error)

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()


class Pump:
    """Carries the records of a line to a receiver, in a thread of its own.

    Args:
        line: its name.
        settings: of the output.
        sink: the way to the receiver.
        store: that holds the records.
        cursors: that remember how far it came. An output that is new begins with the next part.
        state: whether the line takes parts.
        on_failure: told of each failed attempt.
    """

    def __init__(
        self,
        line: str,
        settings: DeliveredOutput,
        sink: Sink,
        store: Store,
        cursors: Cursors,
        *,
        state: Callable[[], Offline],
        on_failure: Callable[[], object],
    ) -> None:
        self._line, self._settings, self._sink, self._store, self._cursors = line, settings, sink, store, cursors
        self._state, self._health = state, Health(line, settings, on_failure)
        newest = store.number_from_end(line, 0)
        progress = cursors.get(line, settings.label)
        if progress is None or progress.position > newest:
            if progress is not None:
                log.warning("output %s of line %s: the records are others now; it begins anew", settings.label, line)
            progress = Progress(newest)
            cursors.set(line, settings.label, progress)
        self._progress = progress
        self._wake, self._ending, self._is_abandoned, self._is_over = threading.Event(), threading.Event(), False, False
        self._next_look = 0.0
        self._thread = threading.Thread(target=self._run, name=f"{line}-{settings.label}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new record; returns at once."""
        self._wake.set()

    def end(self) -> None:
        """Deliver what is left, then end; returns at once."""
        self._ending.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait for the end; what takes longer is left, and goes out after the next start."""
        self._thread.join(seconds)
        self._is_abandoned = True

    def facts(self) -> OutputFacts:
        """How the output is doing."""
        return self._health.facts(
            target=self._sink.target,
            behind=self._store.count_after(self._line, self._progress.position),
            delivered=self._progress.delivered,
            skipped=self._progress.skipped,
            is_over=self._is_over,
        )

    def _run(self) -> None:
        while not self._is_over:
            is_last = self._ending.is_set()
            try:
                self._deliver_all()
                self._health.works()
            except Exception as error:  # whatever goes wrong, it is tried again
                self._failed(error)
            if is_last:
                self._is_over = True
            elif self._health.failures_in_a_row:
                # New records do not shorten this, or each of them would be an attempt.
                self._ending.wait(_delay(self._health.failures_in_a_row))
                if self._ending.is_set():
                    self._is_over = True
            else:
                self._wake.wait(TEND_SECONDS)
                self._wake.clear()
        self._sink.close()

    def _deliver_all(self) -> None:
        while not self._is_abandoned:
            self._skip_what_is_too_far_behind()
            self._sink.tend(self._state())
            rows = self._store.after(self._line, self._progress.position, count=_BATCH)
            if not rows:
                return
            letters = [Letter(*row) for row in rows if row[0].verdict in self._settings.verdicts]
            while letters and not self._is_abandoned:
                count = self._sink.deliver(letters)
                self._health.delivered()
                self._move_to(letters[count - 1].record.id, delivered=count)
                letters = letters[count:]
            if not letters and rows[-1][0].id > self._progress.position:
                self._move_to(rows[-1][0].id)

    def _move_to(self, position: int, *, delivered: int = 0, skipped: int = 0) -> None:
        before = self._progress
        self._progress = Progress(position, before.delivered + delivered, before.skipped + skipped)
        self._cursors.set(self._line, self._settings.label, self._progress)

    def _skip_what_is_too_far_behind(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        behind, limit = self._store.count_after(self._line, self._progress.position), self._settings.behind
        if behind <= limit:
            return
        # A tenth more than must be, so that a receiver that stays away does not fill the audit.
        kept = limit - limit // 10
        position, skipped = self._store.number_from_end(self._line, kept), behind - kept
        facts = {
            "output": self._settings.label,
            "skipped": skipped,
            "after": self._progress.position,
            "up_to": position,
        }
        self._store.note("output", who="service", line=self._line, facts=facts)
        log.warning(
            "output %s of line %s was %d records behind, and skips those after %d up to %d",
            *(self._settings.label, self._line, behind, self._progress.position, position),
        )
        self._move_to(position, skipped=skipped)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, GoneError):
            self._is_over = True
        is_defect = not isinstance(error, (DeliveryError, FlawsmithError, OSError, sqlite3.Error))
        self._health.failed(_reason(error), defect=error if is_defect else None)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, (DeliveryError, FlawsmithError)) else ""
    if isinstance(error, OSError):
        text = error.strerror or str(error)
    return " ".join((text or f"{type(error).__name__}: {error}").split())[:500]


def _delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 20))
    return random.uniform(longest / 2, longest)
