"""From an exception to one line and an exit code: the same for every command."""

from __future__ import annotations

import atexit
import errno
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TextIO

import typer
import yaml
from typer.core import TyperCommand

from flawsmith.cli.start import INTERRUPTED, end_at_once
from flawsmith.runtime.errors import FlawsmithError, package_missing
from flawsmith.runtime.files import without_controls
from flawsmith.runtime.system import ENDING, wake_main_thread


def print_err(*lines: str) -> None:
    """Print lines for people, on stderr."""
    _print(lines, sys.stderr)


def print_out(*lines: str) -> None:
    """Print lines of a result on stdout."""
    _print(lines, sys.stdout)


def _print(lines: Iterable[str], stream: TextIO) -> None:
    # What the encoding lacks is escaped: file names need not be UTF-8, and a terminal need not know every letter. So is
    # what would steer the terminal or begin another line: names come from strangers.
    encoding = stream.encoding or "utf-8"
    shown = "\n".join(map(without_controls, lines))
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def print_json(value: Any) -> None:
    """Print one strict JSON value on one line of stdout, in ASCII, so that no encoding can spoil it."""
    print(json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f"), flush=True)


def shows_progress(*, quiet: bool) -> bool:
    """Whether progress bars are wanted: a person watches stderr and has not asked for silence."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def progress(description: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar with an estimate on stderr.

    Args:
        description: what is being counted.
        total: number of steps; None where it is not known.
        quiet: draw nothing, as where nobody watches stderr.

    Yields:
        A function to call after each step.
    """
    if not shows_progress(quiet=quiet):
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


USER_ERROR = 2

Tier = Literal["eval", "train", "benchmark", "serve", "plc"]

# Typer brings its own copy of click since 0.16 and uses the installed one before: the exceptions of either are
# reached through Typer's one public subclass (BadParameter < UsageError < ClickException).
_UsageError: type[Any] = typer.BadParameter.__mro__[1]
_ClickException: type[Any] = typer.BadParameter.__mro__[2]
# Raised when no command is given; its message is the help, or nothing where the help has been printed already.
_HELP_INSTEAD = "NoArgsIsHelpError"


@contextmanager
def error_boundary(*, tier: Tier | None = None, interrupted: str = "interrupted") -> Iterator[None]:
    """Wrap the body of a command, its imports included.

    Args:
        tier: the optional packages that the command needs.
        interrupted: what Ctrl-C leaves and how to go on.

    Raises:
        FlawsmithError: a package of the tier is not installed.
        InterruptedCommandError: after Ctrl-C, which was answered.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        line = None if tier is None else package_missing(error, "this command", tier)
        if line is None:
            raise
        raise FlawsmithError(line) from error
    except KeyboardInterrupt:
        print_err(interrupted)
        raise InterruptedCommandError from None


class InterruptedCommandError(Exception):
    """The user stopped the command, and was told what that leaves."""


def run(command: Callable[[], Any], signals: EndingSignals | None = None) -> int:
    """Run a command and return its exit code; mistakes and full disks give one line on stderr.

    Anything else that escapes is a defect and keeps its traceback, unless the command was asked to end: libraries
    written in C turn that request into errors of their own while they load.

    Args:
        command: gives an exit code, or None.
        signals: in whose block the command runs; None: none is handled.
    """
    try:
        code = command()
        sys.stdout.flush()
    except FlawsmithError as error:
        return refuse(str(error))
    except _ClickException as error:
        return _refuse_usage(error)
    except InterruptedCommandError:
        return INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        print_err("interrupted")
        return INTERRUPTED
    except MemoryError:
        return refuse("not enough memory: close other programs, or use smaller images or a smaller --set batch_size")
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _reader_left()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if error.filename is None:
            _drop_stdout()
        return refuse(f"{error.filename or 'output'}: the disk is full ({error.strerror}); free some space and repeat")
    except Exception:
        if signals is None or signals.received is None:
            raise
        print_err("interrupted")
        return INTERRUPTED
    if code == INTERRUPTED:  # typer's answer, where it was interrupted itself
        print_err("interrupted")
    return code if isinstance(code, int) else 0


SECONDS_TO_END = 5.0
"""How long a command may take to end before a request to end is taken for one that went unheard."""


class EndingSignals:
    """SIGTERM, SIGHUP and a repeated Ctrl-C end a command as one Ctrl-C does: they raise KeyboardInterrupt.

    Further requests are passed over for as long as the command can be expected to be ending. Some libraries swallow
    the exception (an import inside ``try: ... except: ...``), so it is raised again where the command goes on.

    Args:
        to_the_end: the process ends after the command, so that a late Ctrl-C must not change how.

    Attributes:
        received: the first signal; None: there was none.
    """

    def __init__(self, *, to_the_end: bool = False) -> None:
        self.received: int | None = None
        self._to_the_end = to_the_end
        self._raised_at = -math.inf
        self._over = threading.Event()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> EndingSignals:
        if threading.current_thread() is threading.main_thread():
            # What is ignored stays so, as under nohup; so does what another program, such as a debugger, handles.
            usual = (signal.SIG_DFL, signal.default_int_handler, end_at_once)
            self._handlers = {number: signal.getsignal(number) for number in ENDING}
            self._handlers = {number: handler for number, handler in self._handlers.items() if handler in usual}
            for number in self._handlers:
                signal.signal(number, self._handle)
            if self._to_the_end:
                atexit.register(self._ignore_further)
        return self

    def __exit__(self, *error: object) -> None:
        if self._to_the_end and self.received is not None:
            return
        self._over.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ignore_further(self) -> None:
        """Python gives signals back to the system before it ends, which would then kill it."""
        for number in self._handlers if self.received is not None else ():
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: object) -> None:
        if time.monotonic() - self._raised_at < SECONDS_TO_END:
            return
        self._raised_at = time.monotonic()
        if self.received is None:
            self.received = number
            threading.Thread(target=self._remind, args=(number,), daemon=True).start()
        raise KeyboardInterrupt

    def _remind(self, number: int) -> None:
        while not self._over.wait(SECONDS_TO_END * 1.1):
            wake_main_thread(number)


def end_process(code: int) -> NoReturn:
    """End as at the end of a program, but without taking its modules apart: under load that takes many seconds."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def unusable_surroundings() -> str | None:
    """Why no command can work in this process, in one line; None where one can.

    Standard streams that are closed are opened to nowhere: files would take their numbers, and what libraries print
    would land in them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (as long as the process)
    if sys.stdout is None:
        return "standard output is closed: leave it open, or send it to a file"
    try:
        Path.cwd()
    except OSError as error:
        return f"the working folder cannot be used ({error.strerror}): change to one that exists"
    return None


@contextmanager
def own_warnings() -> Iterator[None]:
    """Show Flawsmith's own warnings as one line each; other packages' concern developers, who ask with ``-W``.

    The same holds for records that other packages log without anyone listening.
    """
    if sys.warnoptions:
        yield
        return
    home = str(Path(__file__).resolve().parents[1])

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and filename.startswith(home):
            print_err(f"warning: {message}")

    silence = logging.NullHandler()
    logging.getLogger().addHandler(silence)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger().removeHandler(silence)


def refuse(line: str) -> int:
    """Print one line and return the exit code of a user's mistake."""
    print_err(f"error: {' '.join(line.split())}")
    return USER_ERROR


def _refuse_usage(error: Any) -> int:
    message, context = error.format_message(), getattr(error, "ctx", None)
    if type(error).__name__ == _HELP_INSTEAD:
        if message:
            print_err(*message.split("\n"))
        return USER_ERROR
    hint = f"; see {context.command_path} --help" if isinstance(error, _UsageError) and context is not None else ""
    return refuse(f"{message.rstrip('.')}{_elsewhere(error, context)}{hint}")


def _elsewhere(error: Any, context: Any) -> str:
    """Which other commands have the option that a command lacks, in words; empty where none does."""
    option, group = getattr(error, "option_name", None), getattr(context, "parent", None)
    commands = getattr(getattr(group, "command", None), "commands", {})
    having = [
        name
        for name, command in commands.items()
        if not command.hidden and any(option in parameter.opts for parameter in command.params)
    ]
    return f"; {' and '.join(having)} {'has' if len(having) == 1 else 'have'} it" if option and having else ""


def _reader_left() -> int:
    """The program that reads stdout has ended (``| head``): no complaint, neither now nor when Python flushes."""
    _drop_stdout()
    return 1


def _drop_stdout() -> None:
    """What could not be written is not tried again when Python ends, which would complain and change the exit code."""
    with suppress(OSError, ValueError):  # a stream in memory, as in tests, has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


DATA, SPEED, RESEARCH = "Data", "Speed", "Research"
"""Panels of a command's help, after that of the basic options."""

DataFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A category folder in a known layout, a CSV table, or just a folder of good images."
    ),
]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, such as runs/bolt/model.flaw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; nothing else goes there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")]
Dated = Annotated[
    bool,
    typer.Option(
        "--dated",
        rich_help_panel=RESEARCH,
        help="Put date, data folder and hashes into the report; the same run then no longer gives the same bytes.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="Layout of the data, such as mvtec, csv or folder; detected by default."),
]
MinArea = Annotated[
    str | None,
    typer.Option(
        "--min-area", rich_help_panel=DATA, metavar="AREA", help="Smallest spot that counts: 40 pixels, or 0.2mm2."
    ),
]
Scale = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, metavar="LENGTH", help="Length of a pixel on the part, such as 0.05mm or 50um."),
]
Bits = Annotated[
    int | None,
    typer.Option(rich_help_panel=DATA, help="Bits that the camera uses of 16-bit files, such as 12."),
]
ValueRange = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=DATA,
        metavar="LOW:HIGH",
        help="Values of 16-bit images that become black and white, such as 7000:9000 (thermal).",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SPEED,
        help="Where ONNX Runtime computes: cpu, cuda, tensorrt, directml, coreml, openvino (an Intel GPU), or auto.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SPEED, help="onnxruntime or openvino; by default the one that the limits were calibrated with."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SPEED,
        metavar="ADDRESS",
        help="Spread the work over a Ray cluster: auto, HOST:PORT, or local to start one.",
    ),
]


def parse_settings(pairs: Iterable[str], *, option: str = "--set") -> dict[str, Any]:
    """Read ``key=value`` pairs whose values are YAML scalars or lists; ``option`` names their option in errors.

    Raises:
        FlawsmithError: no ``=``, no key, a key twice, or a value that is no YAML.

    Example:
        >>> parse_settings(["epochs=20", "image_size=[256, 256]", "center=aligned"])
        {'epochs': 20, 'image_size': [256, 256], 'center': 'aligned'}
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise FlawsmithError(f"{option} {pair!r} is not key=value: write for example {option} epochs=20")
        if key in settings:
            raise FlawsmithError(f"{option} {key} is given twice: give it once")
        try:
            settings[key] = yaml.safe_load(value)
        except Exception as error:
            # What looks like a date, a number or a tag and is none raises nearly anything, not YAMLError alone.
            raise FlawsmithError(
                f"{option} {pair!r}: the value is not a number, a word or a list; write for example "
                f"{option} strides=[8,16]"
            ) from error
    return settings


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Both ends of a ``--value-range``; None: it was not given.

    Raises:
        FlawsmithError: the text is none.

    Example:
        >>> parse_range("7000:9000")
        (7000.0, 9000.0)
    """
    if text is None:
        return None
    try:
        low, high = (float(end) for end in text.split(":"))
    except ValueError:
        raise FlawsmithError(f"--value-range {text} is not possible: write two values, such as 7000:9000") from None
    return low, high


class SeveralValues(TyperCommand):
    """A command with options that may be given more than one value at a time.

    Attributes:
        numbers: options whose further values end where something else than a number comes.
        words: options whose further values end at the next option, so that arguments come before it.
    """

    numbers: ClassVar[frozenset[str]] = frozenset()
    words: ClassVar[frozenset[str]] = frozenset()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value, then parse as ever."""
        expanded: list[str] = []
        option, has_value = "", False
        for place, argument in enumerate(args):
            if argument == "--":
                expanded += args[place:]
                break
            if argument.startswith("-") and not _is_number(argument):
                option, has_value = argument, False
            elif has_value and not self._continues(option, argument):
                option = ""
            elif has_value:
                expanded.append(option)
            else:
                has_value = True
            expanded.append(argument)
        return super().parse_args(ctx, expanded)

    def _continues(self, option: str, argument: str) -> bool:
        return option in self.words or (option in self.numbers and _is_number(argument))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
