"""The handshake with a PLC, and the registers in which it is carried out; without any network.

The PLC writes a control word, and reads status, results and counters. A result waits until it is acknowledged; it says
which acquisition it is of, so that an old verdict cannot be taken for a new one. Registers of a result are zero where
none is valid, so that nothing but a valid pass looks like one.
"""

from __future__ import annotations

import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import partial
from typing import Any

from flawsmith.line.outputs.delivery import Offline
from flawsmith.line.queue import (
    NoModelError,
    NotRecordedError,
    PartConflictError,
    QueueClosedError,
    QueueFullError,
)
from flawsmith.line.record import ID_PATTERN, LONGEST_ID, ErrorKind, Record

TABLE_VERSION = 1
"""Rises when a PLC's program would have to change."""
HEARTBEAT_SECONDS = 0.5
_PART_REGISTERS = LONGEST_ID // 2

CONTROL, NEXT_PART = 0, 1
"""Registers that the PLC writes: the control word, and the id of the part that the next trigger is of."""
CONTROL_REGISTERS = 1 + _PART_REGISTERS
STATUS = 100
"""First register that the PLC reads."""


class Control(IntFlag):
    """Bits of the control word."""

    TRIGGER_ENABLE = 1
    TRIGGER = 2
    RESULTS_ACK = 4
    CLEAR_ERROR = 8
    SET_OFFLINE = 16


class Status(IntFlag):
    """Bits of the status word."""

    ONLINE = 1
    TRIGGER_READY = 2
    TRIGGER_ACK = 4
    ACQUIRING = 8
    INSPECTION_COMPLETED = 16
    RESULTS_VALID = 32
    PASSED = 64
    RESULTS_OVERRUN = 128
    ERROR = 256


class Verdict(IntEnum):
    """The verdict of a result; anything but a valid pass is a reject."""

    NONE = 0
    PASS = 1
    REJECT = 2
    REVIEW = 3
    ERROR = 4


class Fault(IntEnum):
    """What went wrong: in the error register until it is cleared, or as the reason of a verdict ERROR."""

    NONE = 0
    NOT_READY = 1
    """A trigger came while Trigger Ready was 0; there is no acquisition."""
    PART_ID = 2
    """The part id of a trigger holds other than printable ASCII; there is no acquisition."""
    OVERRUN = 3
    """A result was left out, as too many waited."""
    PART_CONFLICT = 4
    """The part was judged before; no picture was taken."""
    NO_ROOM = 5
    """The line takes no parts at present."""
    NOT_RECORDED = 6
    """The record could not be written, so the part counts as not judged."""
    IMAGE = 10
    """There was no image, or it cannot be read."""
    MODEL = 11
    """The network could not be computed."""
    INTERNAL = 12
    """A defect of Flawsmith; its log says more."""
    CAMERA = 13
    """The camera gave no picture, or is paused."""


_OF_KIND: dict[ErrorKind | None, Fault] = {
    None: Fault.NONE,
    "image": Fault.IMAGE,
    "model": Fault.MODEL,
    "internal": Fault.INTERNAL,
    "camera": Fault.CAMERA,
    "dropped": Fault.NO_ROOM,
}
_OF_EXCEPTION = {
    PartConflictError: Fault.PART_CONFLICT,
    QueueFullError: Fault.NO_ROOM,
    QueueClosedError: Fault.NO_ROOM,
    NoModelError: Fault.NO_ROOM,
    NotRecordedError: Fault.NOT_RECORDED,
}


FIELDS = (
    *("status", "offline", "error", "acquisition", "heartbeat", "waiting", "version"),
    *("inspection", "verdict", "fault", "regions", "record", "score", "times_limit", "part_id"),
)
"""What the PLC reads, from `STATUS` on."""
_LAYOUT = struct.Struct(f">7H 2x 4H I 2f 4x {LONGEST_ID}s")  # a register has 2 bytes; the high word comes first
STATUS_REGISTERS = _LAYOUT.size // 2


def registers_of(values: dict[str, int | float | bytes]) -> list[int]:
    """Fields as registers; what is not named is zero.

    Example:
        >>> registers_of({"status": 3, "record": 65537, "score": 1.0})[:16]
        [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 16256, 0]
    """
    content = _LAYOUT.pack(*(values.get(name, b"" if name == "part_id" else 0) for name in FIELDS))
    return list(struct.unpack(f">{STATUS_REGISTERS}H", content))


def values_of(registers: Sequence[int]) -> dict[str, Any]:
    """The fields of registers, as a PLC reads them.

    Example:
        >>> values_of(registers_of({"verdict": 1, "part_id": b"A-1"}))["part_id"].rstrip(b"\\0")
        b'A-1'
    """
    return dict(zip(FIELDS, _LAYOUT.unpack(struct.pack(f">{STATUS_REGISTERS}H", *registers)), strict=True))


def part_registers(part_id: str) -> list[int]:
    """A part id as registers, two characters each, the first in the high byte.

    Example:
        >>> part_registers("A1")[:2]
        [16689, 0]
    """
    content = part_id.encode("ascii").ljust(LONGEST_ID, b"\0")
    return list(struct.unpack(f">{_PART_REGISTERS}H", content))


@dataclass(frozen=True)
class Result:
    """What the PLC is told of a part.

    Attributes:
        acquisition: the id that its trigger was given; 0: the PLC did not trigger it.
        verdict: pass, reject, review or error.
        fault: why there is no verdict.
        record: None: there is none.
    """

    acquisition: int
    verdict: Verdict
    fault: Fault = Fault.NONE
    record: Record | None = None

    @classmethod
    def of_record(cls, acquisition: int, record: Record) -> Result:
        """The result of a part that has a record."""
        return cls(acquisition, Verdict[record.verdict.upper()], _OF_KIND[record.error_kind], record)

    def values(self) -> dict[str, int | float | bytes]:
        """Its fields in the registers."""
        values: dict[str, int | float | bytes] = {
            "inspection": self.acquisition,
            "verdict": self.verdict,
            "fault": self.fault,
        }
        if self.record is not None:
            values |= {
                "regions": min(self.record.region_count, 0xFFFF),
                "record": self.record.id & 0xFFFFFFFF,
                "score": _single(self.record.score),
                "times_limit": _single(self.record.times_limit),
                "part_id": (self.record.part_id or "").encode("ascii", "replace"),
            }
        return values


def _single(number: float | None) -> float:
    """A number that fits into 32 bits; 0 where there is none, as some PLCs stop at NaN."""
    largest = 3.4e38
    return 0.0 if number is None else max(-largest, min(largest, number))


Acquire = Callable[[str | None], "Future[Record]"]
"""Takes an image as that of the part of this id, then returns the promise of its record."""


class Handshake:
    """Triggers, results and their acknowledgement; safe to use from several threads.

    Args:
        acquire: takes an image and has it judged; called in a thread. None: there is no camera, Trigger Ready stays 0,
            and parts that come by other ways are reported with the acquisition id 0.
        state: whether the line takes parts.
        has_room: whether the line could take another part now.
        capacity: results that may wait for the PLC, those of parts in work included.
        first: acquisition id before the first trigger; another after each start, so that ids do not repeat.
        on_fault: told of each fault.
        clock: for the heartbeat, in seconds.
    """

    def __init__(
        self,
        acquire: Acquire | None,
        *,
        state: Callable[[], Offline] = lambda: Offline.ONLINE,
        has_room: Callable[[], bool] = lambda: True,
        capacity: int = 8,
        first: int = 0,
        on_fault: Callable[[Fault], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._acquire, self._state, self._has_room, self._capacity = acquire, state, has_room, capacity
        self._on_fault, self._clock, self._started = on_fault, clock, clock()
        self._lock = threading.RLock()
        self._control = Control(0)
        self._acquisition = first % 0xFFFF
        self._is_acquiring = self._is_acknowledged = self._is_shown = self._completed_bit = self._is_overrun = False
        self._fault = Fault.NONE
        self._pending: set[int] = set()
        self._results: deque[Result] = deque()
        self.delivered = self.overruns = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="plc-trigger")

    @property
    def waiting(self) -> int:
        """Results that the PLC has not acknowledged."""
        return len(self._results)

    def close(self) -> None:
        """Take no triggers any more; returns at once."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    # What the PLC does

    def write(self, control: int, part: Sequence[int] = ()) -> None:
        """The PLC has written.

        Args:
            control: the control word.
            part: registers of the part id for a trigger.
        """
        with self._lock:
            now = Control(control & sum(Control))
            rising = now & ~self._control
            self._control = now
            if Control.CLEAR_ERROR in rising:
                self._fault, self._is_overrun = Fault.NONE, False
            if Control.SET_OFFLINE in rising:  # a clean beginning: what is under way comes to nothing
                self._results.clear()
                self._pending.clear()
                self._is_shown = False
            if Control.RESULTS_ACK in rising and self._is_shown:
                self._results.popleft()
                self._is_shown = False
                self.delivered += 1
            if Control.TRIGGER not in now:
                self._is_acknowledged = False
            self._show_next()
            if Control.TRIGGER in rising:
                self._trigger(part)

    def lost(self) -> None:
        """No PLC is connected any more: it begins with a control word of 0. Results wait for it."""
        self.write(0)

    def read(self) -> list[int]:
        """All status registers, as they are at this moment."""
        with self._lock:
            offline = self._offline()
            status = Status(0)
            for bit, is_set in (
                (Status.ONLINE, offline is Offline.ONLINE),
                (Status.TRIGGER_READY, self._is_ready()),
                (Status.TRIGGER_ACK, self._is_acknowledged),
                (Status.ACQUIRING, self._is_acquiring),
                (Status.INSPECTION_COMPLETED, self._completed_bit),
                (Status.RESULTS_VALID, self._is_shown),
                (Status.PASSED, self._is_shown and self._results[0].verdict is Verdict.PASS),
                (Status.RESULTS_OVERRUN, self._is_overrun),
                (Status.ERROR, self._fault is not Fault.NONE),
            ):
                status |= bit if is_set else Status(0)
            values: dict[str, int | float | bytes] = {
                "status": status,
                "offline": offline,
                "error": self._fault,
                "acquisition": self._acquisition,
                "heartbeat": int((self._clock() - self._started) / HEARTBEAT_SECONDS) & 0xFFFF,
                "waiting": len(self._results),
                "version": TABLE_VERSION,
            }
            return registers_of(values | (self._results[0].values() if self._is_shown else {}))

    # What the line does

    def recorded(self, record: Record) -> None:
        """A part has its record, which the PLC may not have triggered; must be quick."""
        if self._acquire is None:
            with self._lock:
                self._put(Result.of_record(0, record))

    def _offline(self) -> Offline:
        return Offline.ASKED if Control.SET_OFFLINE in self._control else self._state()

    def _is_ready(self) -> bool:
        return (
            self._acquire is not None
            and Control.TRIGGER_ENABLE in self._control
            and not self._is_acquiring
            and len(self._pending) + len(self._results) < self._capacity
            and self._offline() is Offline.ONLINE
            and self._has_room()
        )

    def _trigger(self, part: Sequence[int]) -> None:
        text = struct.pack(f">{len(part)}H", *part).partition(b"\0")[0].decode("latin-1").rstrip(" ")
        if not self._is_ready():
            self._note(Fault.NOT_READY)
        elif text and re.fullmatch(ID_PATTERN, text) is None:
            self._note(Fault.PART_ID)
        else:
            self._acquisition = self._acquisition % 0xFFFF + 1
            self._pending.add(self._acquisition)
            self._is_acquiring = self._is_acknowledged = True
            self._worker.submit(self._take, self._acquisition, text or None)

    def _take(self, acquisition: int, part_id: str | None) -> None:
        assert self._acquire is not None, "or it would not be ready"
        future: Future[Record]
        try:
            future = self._acquire(part_id)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        with self._lock:
            self._is_acquiring = False
        future.add_done_callback(partial(self._completed, acquisition))

    def _completed(self, acquisition: int, future: Future[Record]) -> None:
        error = future.exception()
        if error is None:
            result = Result.of_record(acquisition, future.result())
        else:
            fault = next((fault for kind, fault in _OF_EXCEPTION.items() if isinstance(error, kind)), Fault.INTERNAL)
            result = Result(acquisition, Verdict.ERROR, fault)
        with self._lock:
            if acquisition in self._pending:
                self._pending.discard(acquisition)
                self._put(result)
                if error is not None:
                    self._note(result.fault)

    def _put(self, result: Result) -> None:
        if len(self._results) >= self._capacity:
            self._is_overrun = True
            self.overruns += 1
            self._note(Fault.OVERRUN)
            return
        self._results.append(result)
        self._completed_bit = not self._completed_bit
        self._show_next()

    def _show_next(self) -> None:
        """The next result is shown when the acknowledgement of the former one was taken back."""
        if self._results and Control.RESULTS_ACK not in self._control:
            self._is_shown = True

    def _note(self, fault: Fault) -> None:
        self._fault = fault
        self._on_fault(fault)
