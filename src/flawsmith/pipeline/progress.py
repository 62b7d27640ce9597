"""How far a training is: its steps, the time so far, and one estimate for the whole."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.runtime.outputs import locked_file

SECONDS_BETWEEN_LINES = 10.0
"""Where no person watches, as in a log file, a line is written at most so often."""
_SECONDS_BETWEEN_FILES = 0.5
_LOCK_TRIES = 20
_asking = threading.Lock()
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


@dataclass(frozen=True)
class Progress:
    """How far a run is, for whoever follows it.

    Attributes:
        words: such as ``step 3 of 6: setting the limit``.
        share: of the whole run that is done, from 0 to 1.
        seconds: so far.
        left: seconds that are left, as estimated now; None: it is too early to tell.
    """

    words: str = "starting"
    share: float = 0.0
    seconds: float = 0.0
    left: float | None = None


class Display:
    """Follows positions, and writes them on a stream that no person watches: a line at most every ten seconds.

    Args:
        stream: to write on; None: nothing is written.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._start = self._said = clock()
        self._estimate, self._furthest = Estimate(self._start), 0.0
        self._position: Position | None = None
        self._end: float | None = None
        self._lock = threading.Lock()

    def tell(self, position: Position) -> Progress:
        """Note a position, write a line if it is time, and say how far the run is."""
        now = self._clock()
        left = self._estimate.left(position, now)
        self._position, self._end = position, None if left is None else now + left
        self._furthest = max(self._furthest, position.share)
        self.say()
        return Progress(position.words, self._furthest, now - self._start, left)

    def say(self) -> None:
        """Write a line if it is time."""
        with self._lock:
            if self._position is None or self._clock() - self._said < SECONDS_BETWEEN_LINES:
                return
            self._said = self._clock()
        if self._stream is not None:
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


Told = Callable[[Progress], object]


@contextmanager
def shown_steps(
    weights: Mapping[str, float], *, show: bool, stream: TextIO | None = None, on_progress: Told | None = None
) -> Iterator[Steps]:
    """Steps that are shown on stderr while the block runs, and told.

    Args:
        weights: as of `Steps`.
        show: whether on stderr: a bar for a person, else lines.
        stream: instead of stderr.
        on_progress: is told each position.
    """
    stream = stream or sys.stderr
    watched = show and stream.isatty()
    display = Display(stream if show and not watched else None)
    with _bar(display) if watched else _reminded(display) as draw:

        def tell(position: Position) -> None:
            progress = display.tell(position)
            draw(progress)
            if on_progress is not None:
                on_progress(progress)

        yield Steps(weights, tell)


@contextmanager
def _reminded(display: Display) -> Iterator[Told]:
    over = threading.Event()

    def remind() -> None:
        while not over.wait(1.0):  # a long step says nothing itself
            display.say()

    threading.Thread(target=remind, daemon=True).start()
    try:
        yield lambda progress: None
    finally:
        over.set()


@contextmanager
def _bar(display: Display) -> Iterator[Told]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(display.times())

    columns = (TextColumn("{task.description}"), BarColumn(20), Times())
    # Results printed to a terminal pass above the bar; results that go into a pipe must not be diverted to stderr.
    redirect = sys.stdout.isatty()
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda progress: bar.update(task, description=progress.words, completed=progress.share)


@dataclass(frozen=True)
class PreviewImage:
    """An image that is not learned from, with what a model in the making sees.

    Attributes:
        name: of the image.
        is_flawed: whether a flaw was drawn on it.
        picture, heat: ``data:`` addresses of it, and of it under its map.
    """

    name: str
    is_flawed: bool
    picture: str
    heat: str


@dataclass(frozen=True)
class Preview:
    """What a model in the making sees.

    Attributes:
        words: where training is, such as ``epoch 3 of 20``.
        share: of its epochs that is done, from 0 to 1.
        caught: synthetic flaws whose score lies above that of every good image.
        count: of the synthetic flaws, and of the good images.
        images: some of both.
    """

    words: str
    share: float
    caught: int
    count: int
    images: tuple[PreviewImage, ...]


Show = Callable[[Preview], object]
State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class RunState:
    """What a progress file says.

    Attributes:
        state: how the run stands, or ended; one that is ``running`` and does not live any more was killed.
        progress: where it is, or was last.
        at: when that was written, seconds since 1970.
        pid: number of its process.
        error: why it failed, in a line.
    """

    state: State
    progress: Progress
    at: float
    pid: int
    error: str = ""

    @classmethod
    def read(cls, path: Path) -> RunState | None:
        """What a file says; None: there is none, or it is no progress file."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**facts, "progress": Progress(**facts["progress"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


class ProgressFile:
    """A file that says where a run is, for a program that follows it: replaced as a whole, at most twice a second.

    Beside it lies a lock for as long as the run lives, whatever ends it (`is_alive`). What cannot be written is not
    told; the run goes on.

    Args:
        path: the file; its folder exists.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "progress.json"
        >>> with ProgressFile(path).kept() as tell:
        ...     tell(Progress("step 1 of 2: learning", 0.2, 3.0, 9.0))
        ...     is_alive(path)
        True
        >>> RunState.read(path).state, is_alive(path)
        ('done', False)
    """

    def __init__(self, path: Path) -> None:
        self._path, self._progress, self._written = path, Progress(), 0.0

    @contextmanager
    def kept(self) -> Iterator[Told]:
        """Say that the run lives while the block lasts, and then how it ended.

        Yields:
            What is to be told the progress.

        Raises:
            FlawsmithError: the file cannot be written.
        """
        with ExitStack() as stack:
            if self._path.is_file() and self._path.stat().st_size and RunState.read(self._path) is None:
                raise FlawsmithError(f"{self._path} is a file of something else: give another --progress")
            self._lock(stack)
            self._write("running")
            try:
                yield self._tell
            except KeyboardInterrupt:
                self._end("stopped")
                raise
            except BaseException as error:
                known = isinstance(error, FlawsmithError)
                self._end("failed", str(error) if known else f"a defect of Flawsmith ({type(error).__name__})")
                raise
            self._progress = Progress(self._progress.words, 1.0, self._progress.seconds, 0.0)
            self._end("done")

    def show(self, preview: Preview) -> None:
        """Keep what the model sees in a file beside it, with how many flaws it caught before; see `read_preview`."""
        path = preview_path(self._path)
        before = [each for each in read_preview(path).get("history", []) if each["share"] < preview.share]
        facts = asdict(preview)
        history = [*before, {name: facts[name] for name in ("words", "share", "caught", "count")}]
        with suppress(FlawsmithError), replacing(path) as temporary:
            temporary.write_text(json.dumps({"history": history, "images": facts["images"]}), encoding="utf-8")

    def _lock(self, stack: ExitStack) -> None:
        for _ in range(_LOCK_TRIES):  # whoever asks whether the run lives holds the lock for a moment
            try:
                if stack.enter_context(locked_file(_lock_of(self._path))):
                    return
            except OSError as error:
                raise FlawsmithError(
                    f"{self._path} cannot be written ({error.strerror}): give another --progress"
                ) from None
            time.sleep(0.05)
        raise FlawsmithError(f"{self._path}: another run reports there: give another --progress")

    def _tell(self, progress: Progress) -> None:
        is_new = progress.words != self._progress.words
        self._progress = progress
        if is_new or time.monotonic() - self._written > _SECONDS_BETWEEN_FILES:
            with suppress(FlawsmithError):
                self._write("running")

    def _end(self, state: State, error: str = "") -> None:
        with suppress(FlawsmithError):
            self._write(state, error)

    def _write(self, state: State, error: str = "") -> None:
        facts = asdict(RunState(state, self._progress, time.time(), os.getpid(), error))
        with replacing(self._path) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")
        self._written = time.monotonic()


def preview_path(path: Path) -> Path:
    """Where the preview of a run lies that reports in a progress file."""
    return path.with_name(f"{path.stem}.preview.json")


def read_preview(path: Path) -> dict[str, Any]:
    """``history``, a mapping a look with ``words``, ``share``, ``caught`` and ``count``, and the latest ``images``.

    Empty where there is no preview.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def is_alive(path: Path) -> bool:
    """Whether the run that reports in a progress file lives."""
    if not _lock_of(path).exists():
        return False
    with _asking, locked_file(_lock_of(path)) as is_free:
        return not is_free


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
