"""Where words go: people read stderr, programs read stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    _print(text, sys.stderr)


def emit(text: str) -> None:
    """Print a result on stdout."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    # What the encoding lacks is escaped: file names need not be UTF-8, and a terminal need not know every letter.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def emit_json(value: Any) -> None:
    """Print one strict JSON value on one line of stdout, in ASCII, so that no encoding can spoil it."""
    print(json.dumps(value, allow_nan=False), flush=True)


def shows_progress(*, quiet: bool) -> bool:
    """Whether progress bars are wanted: a person watches stderr and has not asked for silence."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def progress(description: str, total: int | None, *, show: bool) -> Iterator[Callable[[], None]]:
    """A progress bar with an estimate on stderr.

    Args:
        description: what is being counted.
        total: number of steps; None where it is not known.
        show: False draws nothing.

    Yields:
        A function to call after each step.
    """
    if not show:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Results printed to a terminal pass above the bar; results that go into a pipe must not be diverted to stderr.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
