"""How far a training is: its steps, the time so far, and one estimate for the whole."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

SECONDS_BETWEEN_LINES = 10.0
"""Where no person watches, as in a log file, a line is written at most so often."""
_FIRST_ESTIMATE = 3.0
"""Seconds of work before an estimate is worth showing."""


READING = "looking at the images"
TRIMMING = "finding the least usual images"
LEARNING = "learning what good parts look like"
EXPORTING = "exporting the model"
LIMIT = "setting the limit"
COMPARING = "building a baseline to compare with"
REPORTING = "writing the report"


def steps_of_training(*, loops: bool, trims: bool = False, models: int = 0, baseline: bool = True) -> dict[str, float]:
    """The steps of a training in order, with their seconds on some hundred images and two CPU cores.

    Args:
        models: further models that set the limit.
    """
    learning = 60.0 if loops else 40.0
    return {
        READING: 6.0,
        **({TRIMMING: 15.0} if trims else {}),
        LEARNING: learning,
        EXPORTING: 6.0,
        LIMIT: 12.0 + models * learning,
        **({COMPARING: 20.0} if baseline else {}),
        REPORTING: 2.0 if loops else 20.0,
    }


@dataclass(frozen=True)
class Position:
    """Where a run is.

    Attributes:
        words: such as ``step 3 of 6: setting the limit``.
        share: of the whole run that is done.
        step_end: share of the whole run that will be done when this step is.
        seconds: that the whole run takes on a typical set.
    """

    words: str
    share: float
    step_end: float
    seconds: float = 0.0


class Steps:
    """The steps of a run, which is told where it is.

    Args:
        weights: by name of each step, in order, its seconds on a typical set.
        tell: is given each position.

    Example:
        >>> steps = Steps({"learning": 3, "writing the report": 1}, lambda position: print(position.words))
        >>> steps.begin("learning")
        step 1 of 2: learning
        >>> steps.at(0.5, "epoch 2 of 4")
        step 1 of 2: learning, epoch 2 of 4
    """

    def __init__(
        self, weights: Mapping[str, float], tell: Callable[[Position], object] = lambda position: None
    ) -> None:
        self._names, self._tell = list(weights), tell
        self._whole = whole = sum(weights.values())
        self._weights = [weight / whole for weight in weights.values()]
        self._number = 0
        self._share = 0.0

    def begin(self, name: str) -> None:
        """A step begins; one that this run does not count is part of the one before."""
        if name in self._names:
            self._number, self._share = self._names.index(name), 0.0
            self.at(0.0)

    def at(self, share: float, detail: str = "") -> None:
        """So much of the current step is done; what is said to be less than before counts as before."""
        self._share = max(self._share, min(share, 1.0))
        before, weight = sum(self._weights[: self._number]), self._weights[self._number]
        words = f"step {self._number + 1} of {len(self._names)}: {self._names[self._number]}"
        words += f", {detail}" if detail else ""
        self._tell(Position(words, before + weight * self._share, before + weight, self._whole))

    def within(self, weights: Mapping[str, float], start: float = 0.0, end: float = 1.0) -> Steps:
        """Steps inside the current one, from one share of it to another."""
        return Steps(weights, lambda position: self.at(start + (end - start) * position.share))


class Estimate:
    """The seconds that are left.

    The speed of the current step tells of its rest: how long it takes depends on settings and images. The steps after
    it are taken to last as long as on a typical set.
    """

    def __init__(self, now: float) -> None:
        self._start, self._step_start, self._step_end = now, (now, 0.0), 0.0

    def left(self, position: Position, now: float) -> float | None:
        """Seconds that are left; None: it is too early to tell."""
        if position.step_end != self._step_end:
            self._step_end, self._step_start = position.step_end, (now, position.share)
        since, share = self._step_start
        done = position.share - share
        if now - self._start < _FIRST_ESTIMATE:
            return None
        speed = (now - since) / done if done >= 0.01 else position.seconds
        return (position.step_end - position.share) * speed + (1 - position.step_end) * position.seconds


class Display:
    """Shows positions on a stream: a bar for a person, else a line at most every ten seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._start = self._said = clock()
        self._estimate = Estimate(self._start)
        self._position: Position | None = None
        self._end: float | None = None
        self._lock = threading.Lock()

    def tell(self, position: Position) -> None:
        """Note a position, and write a line if it is time."""
        now = self._clock()
        left = self._estimate.left(position, now)
        self._position, self._end = position, None if left is None else now + left
        self.say()

    def say(self) -> None:
        """Write a line if it is time."""
        with self._lock:
            if self._position is None or self._clock() - self._said < SECONDS_BETWEEN_LINES:
                return
            self._said = self._clock()
        print(f"{self._position.words}; {self.times()}", file=self._stream, flush=True)

    def times(self) -> str:
        """Time so far, and the estimate where there is one."""
        now = self._clock()
        left = "" if self._end is None else f", {_about(self._end - now)} left"
        return f"{_clock_time(now - self._start)} so far{left}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _about(seconds: float) -> str:
    """Coarse, as an estimate is."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 55:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60):.0f} min"
    return f"about {seconds / 3600:.1f} h"


@contextmanager
def shown_steps(weights: Mapping[str, float], *, show: bool, stream: TextIO | None = None) -> Iterator[Steps]:
    """Steps that are shown on stderr while the block runs."""
    stream = stream or sys.stderr
    if not show:
        yield Steps(weights)
    elif stream.isatty():
        with _bar(weights) as steps:
            yield steps
    else:
        display, over = Display(stream), threading.Event()

        def remind() -> None:
            while not over.wait(1.0):  # a long step says nothing itself
                display.say()

        threading.Thread(target=remind, daemon=True).start()
        try:
            yield Steps(weights, display.tell)
        finally:
            over.set()


@contextmanager
def _bar(weights: Mapping[str, float]) -> Iterator[Steps]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Quiet(Display):
        def say(self) -> None:
            """The bar says it."""

    display = Quiet(sys.stderr)

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(display.times())

    columns = (TextColumn("{task.description}"), BarColumn(20), Times())
    # Results printed to a terminal pass above the bar; results that go into a pipe must not be diverted to stderr.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task("", total=1.0)
        furthest = 0.0

        def tell(position: Position) -> None:
            nonlocal furthest
            furthest = max(furthest, position.share)
            display.tell(position)
            bar.update(task, description=position.words, completed=furthest)

        yield Steps(weights, tell)
