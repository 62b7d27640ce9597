"""A line's camera at work: triggers become pictures, pictures become parts, and each trigger one record.

    trigger -> reader (its own thread, which may hang) -> picture -> queue of the line -> record

What goes wrong ends in a record too: a camera that fails or does not answer, a line that is paused, a picture that
comes while the queue is full. A camera that fails is opened again, after longer and longer waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from flawsmith.line.cameras import Camera, CameraError, CameraSettings, Frame, NoMorePicturesError, make_camera
from flawsmith.line.queue import NoModelError, NotRecordedError, QueueClosedError, QueueFullError
from flawsmith.line.record import ErrorKind, Record, Trigger, now
from flawsmith.line.store import Store
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.line.station import Line

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between attempts to open a camera that failed."""
MOST_HANGING = 3
"""Reads that hang at a time: beyond, the camera is not opened again."""
_IDLE = 0.2
_LONGEST_BEFORE = 10.0
"""Seconds that a picture to teach with waits for triggers before it."""

State = Literal["starting", "running", "paused", "failing", "ended"]
OnEvent = Callable[[str, Mapping[str, Any]], object]
"""Told of what happens: kind and content, ready for JSON. Must be quick."""

log = logging.getLogger("flawsmith.line")


class CameraFacts(BaseModel):
    """A line's camera as it is now."""

    line: str
    kind: str
    trigger: str = Field(description="free or call")
    rate: float | None = Field(description="pictures a second, where the trigger is free")
    state: State = Field(description="ended: the folder or video that it is simulated from is over")
    since: str = Field(description="when that state began, UTC")
    says: str = Field(description="in words: why it is paused or failing, and what to do")
    diagnosis: str = Field(description="what the camera says of itself")
    triggers: int = Field(description="since the service started")
    failed: int = Field(description="triggers without a picture")
    dropped: int = Field(description="pictures that came while the queue was full")
    last_picture: str | None = Field(description="when the latest picture came, UTC")


@dataclass
class _Order:
    part_id: str | None = None
    lot_id: str | None = None
    received: str = field(default_factory=now)
    clock: float = field(default_factory=time.monotonic)
    answer: Future[Record] = field(default_factory=Future)
    picture: Future[bytes] | None = None
    is_tick: bool = False


class _Reader(threading.Thread):
    """Opens a camera and reads it until it fails or is told to end. A read that hangs is left to itself."""

    def __init__(self, camera: Camera, name: str) -> None:
        super().__init__(name=f"{name}-camera", daemon=True)
        self._camera = camera
        self._changed = threading.Condition()
        self._ended = False
        self._asked = 0
        self.is_open = False
        self.error: Exception | None = None
        self.diagnosis = ""
        self.newest: Frame | None = None

    def run(self) -> None:
        camera = self._camera
        try:
            camera.open()
            self._tell(is_open=True, diagnosis=camera.diagnose())
            is_first = True
            while self._wait_for_order():
                frame = camera.read()
                self._tell(newest=frame)
                if is_first:  # which says more than an open camera
                    self._tell(diagnosis=camera.diagnose())
                    is_first = False
        except Exception as error:  # a plug-in may raise whatever it likes
            self._tell(error=error)
            self._tell(diagnosis=self._diagnosis_of(error))
        finally:
            try:
                camera.close()
            except Exception as error:
                log.warning("camera could not be closed: %s", error)

    def _diagnosis_of(self, error: Exception) -> str:
        try:
            return self._camera.diagnose()
        except Exception:
            return str(error)

    def _wait_for_order(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._asked or self._camera.streams)
            self._asked = max(0, self._asked - 1)
            return not self._ended

    def _tell(self, **facts: Any) -> None:
        with self._changed:
            for name, value in facts.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def wait_until_open(self, seconds: float) -> None:
        """Raises CameraError where the camera does not open, or TimeoutError where it does not answer."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_open or self.error is not None, seconds):
                raise TimeoutError
            if self.error is not None:
                raise self.error

    def take(self, after: float, seconds: float) -> Frame:
        """A picture that came after a moment of the monotonic clock; raises as `wait_until_open`."""
        with self._changed:
            before = self.newest
            self._asked += not self._camera.streams
            self._changed.notify_all()

            def has_come() -> bool:
                newest = self.newest
                return newest is not None and newest is not before and newest.clock >= after

            if not self._changed.wait_for(lambda: has_come() or self.error is not None, seconds):
                raise TimeoutError
            if has_come():
                assert self.newest is not None
                return self.newest
            assert self.error is not None
            raise self.error

    def end(self) -> None:
        """Read no more."""
        self._tell(_ended=True)


class Capture:
    """Takes pictures with a line's camera, when asked to or at a rate, and has them judged.

    `start` begins; what is asked for before waits.

    Args:
        line: that judges.
        settings: of the camera.
        store: where pauses are noted.
        on_event: told of a camera's states (``camera``) and of pictures that were dropped (``dropped``).

    Raises:
        FlawsmithError: there is no such camera, or what it needs is not installed.
    """

    def __init__(
        self,
        line: Line,
        settings: CameraSettings,
        store: Store,
        on_event: OnEvent,
    ) -> None:
        self.settings = settings
        self._line, self._store, self._on_event = line, store, on_event
        self._camera: Camera | None = make_camera(settings)  # which says at once what is wrong with the settings
        self._changed = threading.Condition()
        self._orders: deque[_Order] = deque()
        self._named: dict[str, Future[Record]] = {}
        self._reader: _Reader | None = None
        self._hanging: list[_Reader] = []
        self._closed = False
        self._wait, self._next_try, self._next_tick = FIRST_WAIT, 0.0, time.monotonic()
        self._triggers = self._failed = self._dropped = 0
        self._last: Frame | None = None
        self._latest: _Reader | None = None
        self._error = ""
        self._connection: State = "starting"
        self._since = now()
        entries = store.entries(line=line.name, kind="camera", count=1)
        self._paused = entries[0].facts["reason"] if entries and entries[0].facts["paused"] else None
        self._thread = threading.Thread(target=self._run, name=f"{line.name}-capture", daemon=True)
        self._pausing = threading.Lock()

    def start(self) -> None:
        """Begin to take pictures."""
        self._thread.start()

    # From other threads

    def trigger(self, part_id: str | None = None, lot_id: str | None = None) -> Future[Record]:
        """Take a picture now and have it judged; returns at once.

        Args:
            part_id, lot_id: as the line calls part and lot. A part that has a record or is in work is not taken again.

        Returns:
            The promise of its record: of an error where there is no picture, the line is paused, or too many wait.

        Raises:
            QueueClosedError: the line is ending.
        """
        order = _Order(part_id, lot_id)
        with self._changed:
            if self._closed:
                raise QueueClosedError
            if part_id is not None and part_id in self._named:
                return self._named[part_id]
            is_full = len(self._orders) >= self._line.settings.queue
            if not is_full:
                if part_id is not None:
                    self._named[part_id] = order.answer
                    order.answer.add_done_callback(lambda _: self._forget(part_id))
                self._orders.append(order)
                self._changed.notify_all()
        if is_full:
            self._refuse(order, "dropped", f"{self._line.settings.queue} triggers wait for the camera already")
        return order.answer

    def _forget(self, part_id: str) -> None:
        with self._changed:
            self._named.pop(part_id, None)

    def take(self) -> bytes:
        """Take a picture that nobody judges, such as one to teach with, and wait for it.

        Returns:
            The content of an image file.

        Raises:
            CameraError: there is none, and why.
        """
        order = _Order(picture=Future())
        assert order.picture is not None
        with self._changed:
            if self._closed:
                raise CameraError("the service is ending")
            if len(self._orders) >= self._line.settings.queue:
                raise CameraError("many triggers wait for the camera already; ask again")
            self._orders.append(order)
            self._changed.notify_all()
        try:
            return order.picture.result(2 * self.settings.seconds + _LONGEST_BEFORE)
        except FutureTimeoutError:
            raise CameraError("the camera is busy; ask again") from None

    def pause(self, paused: bool, *, who: str, reason: str) -> None:
        """Take no pictures until told otherwise, also after the service was ended; or take them again.

        Args:
            paused: whether to pause.
            who: stands in the audit.
            reason: likewise, and in the records of triggers that come meanwhile.

        Raises:
            UnwritableError: it cannot be noted; nothing changes.
        """
        with self._pausing:  # the latest in the audit is what holds
            self._store.note("camera", who=who, line=self._line.name, facts={"paused": paused, "reason": reason})
            with self._changed:
                self._paused = reason if paused else None
                self._since, self._next_tick = now(), time.monotonic()
                self._changed.notify_all()
        self._tell()

    def picture(self) -> bytes | None:
        """The latest picture as the content of a file; None: there is none yet."""
        reader = self._reader
        frame = reader.newest if reader is not None and reader.newest is not None else self._last
        return None if frame is None else frame.content()

    @property
    def state(self) -> State:
        """What it does now."""
        return self._connection if self._paused is None else "paused"

    def facts(self) -> CameraFacts:
        """The camera as it is now."""
        with self._changed:
            state = self.state
            says = {"paused": f"paused: {self._paused}", "failing": self._error}.get(state, state)
            reader = self._reader
            newest = self._last if reader is None or reader.newest is None else reader.newest
            return CameraFacts(
                line=self._line.name,
                kind=self.settings.kind,
                trigger=self.settings.trigger,
                rate=self.settings.rate,
                state=state,
                since=self._since,
                says=says,
                diagnosis="" if self._latest is None else self._latest.diagnosis,
                triggers=self._triggers,
                failed=self._failed,
                dropped=self._dropped,
                last_picture=None if newest is None else newest.taken,
            )

    def close(self) -> None:
        """Take what was asked for, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is None:
            return  # it never began
        self._thread.join()
        if self._reader is not None:
            self._reader.end()
            self._reader.join(1.0)

    # The thread that takes pictures

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._orders, self._seconds_to_wait())
                if self._closed and not self._orders:
                    return
                order = self._orders.popleft() if self._orders else None
            try:
                self._step(order)
            except Exception as error:  # a defect; the next trigger is served all the same
                log.exception("a trigger of line %s failed", self._line.name)
                if order is not None and not (order.picture or order.answer).done():
                    self._refuse(order, "internal", f"the part was not judged ({type(error).__name__}): see the log")

    def _seconds_to_wait(self) -> float:
        if self._connection == "failing":
            return max(0.0, self._next_try - time.monotonic())
        if self._connection == "starting":
            return 0.0
        if self.settings.trigger == "free" and self._paused is None and self._connection == "running":
            return max(0.0, self._next_tick - time.monotonic())
        return _IDLE

    def _step(self, order: _Order | None) -> None:
        if order is not None:
            self._serve(order)
        elif self._connection in ("starting", "failing") and time.monotonic() >= self._next_try:
            self._connect()
        elif self._connection == "running" and self.settings.trigger == "free" and self._paused is None:
            begin = time.monotonic()
            if begin >= self._next_tick:
                assert self.settings.rate is not None, "checked"
                # A tick that was missed is not made up for: the part has gone by.
                self._next_tick = max(self._next_tick + 1 / self.settings.rate, begin)
                self._serve(_Order(is_tick=True))
        elif self._connection == "running" and self._reader is not None and self._reader.error is not None:
            self._take_note(self._reader.error)  # a stream that broke while nobody asked

    def _connect(self) -> bool:
        """Open the camera; whether it is open."""
        self._hanging = [reader for reader in self._hanging if reader.is_alive()]
        if len(self._hanging) >= MOST_HANGING:
            self._take_note(CameraError(f"{MOST_HANGING} reads of the camera hang; restart the service"))
            return False
        try:
            camera, self._camera = self._camera or make_camera(self.settings), None
            reader = self._reader = self._latest = _Reader(camera, self._line.name)
            reader.start()
            reader.wait_until_open(self.settings.seconds)
        except Exception as error:
            self._take_note(error)
            return False
        self._enter("running")
        return True

    def _take_note(self, error: Exception) -> None:
        """The camera failed: let go of it, and try again later."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.end()
            reader.join(0.0 if isinstance(error, TimeoutError) else 1.0)
            if reader.is_alive():
                self._hanging.append(reader)
        if isinstance(error, NoMorePicturesError):
            self._enter("ended")
            return
        if isinstance(error, TimeoutError):
            self._error = f"the camera does not answer within {self.settings.seconds:g} s; it is opened again"
        else:
            self._error = str(error) or type(error).__name__
        self._next_try = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._enter("failing")

    def _enter(self, state: State) -> None:
        if state == "running":
            self._error = ""
        if state != self._connection:
            with self._changed:
                self._connection, self._since = state, now()
            if state == "failing":
                log.warning("line %s: %s", self._line.name, self._error)
            self._tell()

    def _tell(self) -> None:
        try:
            self._on_event("camera", self.facts().model_dump(mode="json"))
        except Exception:
            log.exception("the state of a camera was not told of")

    def _serve(self, order: _Order) -> None:
        """Take a picture and hand it to the line, or write why there is none."""
        if order.part_id is not None:
            known = next((r for r in self._store.of_part(self._line.name, order.part_id) if r.verdict != "error"), None)
            if known is not None:
                order.answer.set_result(known)
                return
        if self._paused is not None:
            self._refuse(order, "camera", f"the line is paused: {self._paused}")
            return
        if self._connection == "ended":
            self._refuse(order, "camera", "the folder or video is over")
            return
        if self._reader is None and not (time.monotonic() >= self._next_try and self._connect()):
            self._refuse(order, "camera", self._error)
            return
        assert self._reader is not None, "connected"
        try:
            frame = self._reader.take(order.clock, self.settings.seconds)
            content = frame.content()
        except NoMorePicturesError as error:
            self._take_note(error)
            if not order.is_tick:
                self._refuse(order, "camera", "the folder or video is over")
            return
        except Exception as error:
            self._take_note(error)
            if not self._is_to_teach_with(order):
                self._refuse(order, "camera", self._error)
            return
        self._wait = FIRST_WAIT
        self._last = frame
        if order.picture is not None:
            order.picture.set_result(content)
            return
        if not self._is_to_teach_with(order):
            self._submit(self._trigger_of(order, content), order)

    def _is_to_teach_with(self, order: _Order) -> bool:
        """Whether a picture came by itself to a line that is not taught yet: nobody has asked for a verdict."""
        return order.is_tick and self._line.model is None and not self._line.is_unloaded

    def _trigger_of(self, order: _Order, content: bytes = b"") -> Trigger:
        return Trigger(
            self._line.name,
            content,
            source="camera",
            part_id=order.part_id,
            lot_id=order.lot_id,
            received=order.received,
            clock=order.clock,
        )

    def _submit(self, trigger: Trigger, order: _Order) -> None:
        try:
            future, _ = self._line.submit(trigger)
        except QueueFullError:
            reason = f"{self._line.queue.capacity} parts were waiting: pictures come faster than they are judged"
            self._refuse(order, "dropped", reason, trigger)
        except NoModelError:
            self._refuse(order, "camera", "the line has no model: load one", trigger)
        except Exception as error:  # another image of this part, the end
            self._refuse(order, "camera", str(error) or "the line took no part", trigger)
        else:
            with self._changed:
                self._triggers += 1
            future.add_done_callback(lambda done: _hand_on(done, order.answer))

    def _refuse(self, order: _Order, kind: ErrorKind, reason: str, trigger: Trigger | None = None) -> None:
        """End a trigger in a record of an error; who wants a picture alone is told."""
        if order.picture is not None:
            order.picture.set_exception(CameraError(reason))
            return
        with self._changed:  # from the threads of those who ask, too
            self._triggers += 1
            self._dropped += kind == "dropped"
            self._failed += kind != "dropped"
        if kind == "dropped":
            self._on_event("dropped", {"line": self._line.name, "reason": "busy"})
        try:
            record = self._line.write_error(trigger or self._trigger_of(order), kind, reason)
        except Exception as error:  # the thread that takes pictures must go on
            if not isinstance(error, FlawsmithError):
                log.exception("a trigger of line %s has no record", self._line.name)
            order.answer.set_exception(NotRecordedError(str(error)))
        else:
            order.answer.set_result(record)


def _hand_on(done: Future[Record], answer: Future[Record]) -> None:
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
