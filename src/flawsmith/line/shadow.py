"""A shadow run: another version judges the parts of a line too, and nobody waits for it.

It has one thread of the lowest priority and a short queue of its own. A part that finds no room there is counted, no
more. What it says is compared with what the line said.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from flawsmith.line.queue import Judge
from flawsmith.line.record import Record, Trigger
from flawsmith.line.store import ShadowVerdict, Store, UnwritableError
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.system import give_way_in_this_thread

WAITING, WAITING_BYTES = 16, 2**26
"""Parts, and bytes of their images, that may wait for a shadow."""
_WRITE_SECONDS = 1.0

log = logging.getLogger("flawsmith.line")


class ShadowRun:
    """Judges parts a second time.

    Args:
        run: its number.
        load: opens the model; called in the thread of the run.
        parts: to be judged, those of before included.
        store: where verdicts go.
        on_end: told of the run and why it ended by itself: ``complete``, or what is wrong with the model.
        name: of the line, for the thread.

    Attributes:
        run: likewise.
        missed: parts since the run began, or since the service started, that it could not keep up with.
    """

    def __init__(
        self,
        run: int,
        load: Callable[[], Judge],
        *,
        parts: int,
        store: Store,
        on_end: Callable[[ShadowRun, str], object],
        name: str = "line",
    ) -> None:
        self.run = run
        self._load, self._store, self._on_end = load, store, on_end
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Trigger, Record]] = deque()
        self._bytes = 0
        self._verdicts: list[ShadowVerdict] = []
        self._written = time.monotonic()
        self._is_open = self._stopped = False
        self._counts = Counter(store.shadow_changes(run))
        self._left = parts - self._counts.total()
        self.missed = 0
        self._thread = threading.Thread(target=self._judge_all, name=f"{name}-shadow", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Mapping[str, int]:
        """Parts by change of verdict, such as ``pass -> reject`` and ``pass -> pass``."""
        with self._changed:
            return dict(self._counts)

    def offer(self, trigger: Trigger, record: Record) -> None:
        """Hand over a part that the line has judged; never waits."""
        if record.verdict == "error":
            return
        with self._changed:
            if not self._is_open or self._left <= len(self._waiting):
                return
            length = len(trigger.image)
            if self._waiting and (len(self._waiting) >= WAITING or self._bytes + length > WAITING_BYTES):
                self.missed += 1
                return
            self._waiting.append((trigger, record))
            self._bytes += length
            self._changed.notify_all()

    def stop(self) -> None:
        """Judge no more, and write what was judged."""
        with self._changed:
            self._stopped, self._is_open = True, False
            self._waiting.clear()
            self._changed.notify_all()
        self._write()

    def join(self) -> None:
        """Wait until the part in work is done with."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _judge_all(self) -> None:
        give_way_in_this_thread()
        try:
            model = self._load()
        except FlawsmithError as error:
            self._end(str(error))
            return
        except Exception as error:
            log.exception("a shadow run cannot begin")
            self._end(f"the model cannot be opened ({type(error).__name__})")
            return
        if self._left <= 0:  # the service was killed before it could say so
            self._end("complete")
            return
        with self._changed:
            self._is_open = not self._stopped
        while self._next_part(model):
            pass

    def _next_part(self, model: Judge) -> bool:
        """Judge a part, or write what was judged; False: the run has ended."""
        with self._changed:
            pause = self._written + _WRITE_SECONDS - time.monotonic() if self._verdicts else None
            self._changed.wait_for(lambda: self._waiting or self._stopped, pause)
            if self._stopped:
                return False
            trigger, record = self._waiting[0] if self._waiting else (None, None)
        if trigger is None or record is None:
            self._write()
            return True
        verdict = _judged(model, self.run, trigger, record)
        with self._changed:
            if self._stopped:
                return False
            self._waiting.popleft()
            self._bytes -= len(trigger.image)
            self._left -= 1
            self._verdicts.append(verdict)
            self._counts[f"{verdict.before} -> {verdict.after}"] += 1
            if self._left > 0 and time.monotonic() < self._written + _WRITE_SECONDS:
                return True
        self._write()
        if self._left > 0:
            return True
        self._end("complete")
        return False

    def _write(self) -> None:
        """Write what was judged; without the lock, for which the line would wait."""
        with self._changed:
            verdicts, self._verdicts, self._written = self._verdicts, [], time.monotonic()
        try:
            self._store.add_shadow(verdicts)
        except UnwritableError as error:
            with self._changed:
                self.missed += len(verdicts)
            log.warning("what a shadow run said was not written: %s", error)

    def _end(self, why: str) -> None:
        with self._changed:
            stopped, self._stopped, self._is_open = self._stopped, True, False
        if not stopped:
            try:
                self._on_end(self, why)
            except UnwritableError as error:
                log.warning("the end of a shadow run was not noted: %s", error)


def _judged(model: Judge, run: int, trigger: Trigger, record: Record) -> ShadowVerdict:
    start = time.monotonic()
    try:
        told = Record.of_inspection(trigger, model.inspector.inspect(trigger.image))
        verdict, times = told.verdict, told.times_limit
    except Exception as error:  # the line is not to feel it
        if not isinstance(error, FlawsmithError):
            log.exception("a part could not be judged by the shadow")
        verdict, times = "error", None
    return ShadowVerdict(run, record.id, record.verdict, verdict, times, 1000 * (time.monotonic() - start))
