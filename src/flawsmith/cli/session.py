"""From an exception to one line and an exit code: the same for every command."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import typer

from flawsmith.cli.console import say
from flawsmith.runtime.errors import FlawsmithError

USER_ERROR = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

Tier = Literal["eval", "train", "benchmark"]

_EVAL_PACKAGES = frozenset({"scipy", "sklearn", "matplotlib", "jinja2"})
_TRAIN_PACKAGES = frozenset(
    {"torch", "torchvision", "lightning", "timm", "cv2", "onnx", "onnxscript", "safetensors", "jaxtyping"}
)
_BENCHMARK_PACKAGES = frozenset({"psutil", "tabulate"})
# Typer brings its own copy of click since 0.16 and uses the installed one before: the exceptions of either are
# reached through Typer's one public subclass (BadParameter < UsageError < ClickException).
_UsageError: type[Any] = typer.BadParameter.__mro__[1]
_ClickException: type[Any] = typer.BadParameter.__mro__[2]
# Raised when no command is given; its message is the help, or nothing where the help has been printed already.
_HELP_INSTEAD = "NoArgsIsHelpError"


@contextmanager
def session(*, tier: Tier | None = None, interrupted: str = "interrupted") -> Iterator[None]:
    """Wrap the body of a command, its imports included.

    Args:
        tier: the optional packages that the command needs.
        interrupted: what Ctrl-C leaves and how to go on.

    Raises:
        FlawsmithError: a package of the tier is not installed.
        typer.Exit: with code 130 after Ctrl-C.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if tier is None or package not in _EVAL_PACKAGES | _TRAIN_PACKAGES | _BENCHMARK_PACKAGES:
            raise
        wanted = "train" if package in _TRAIN_PACKAGES and tier == "eval" else tier
        raise FlawsmithError(
            f"this command needs {package}, which is not installed: run `pip install flawsmith[{wanted}]`"
        ) from error
    except KeyboardInterrupt:
        say(interrupted)
        raise typer.Exit(INTERRUPTED) from None


def run(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; mistakes and full disks give one line on stderr.

    Anything else that escapes is a defect and keeps its traceback.
    """
    try:
        code = command()
        sys.stdout.flush()
    except FlawsmithError as error:
        return _refuse(str(error))
    except _ClickException as error:
        return _refuse_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return INTERRUPTED
    except MemoryError:
        return _refuse("not enough memory: close other programs, or use smaller images or a smaller --set batch_size")
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _reader_left()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _refuse(f"{error.filename or 'output'}: the disk is full ({error.strerror}); free some space and repeat")
    return code if isinstance(code, int) else 0


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
            say(f"warning: {message}")

    silence = logging.NullHandler()
    logging.getLogger().addHandler(silence)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger().removeHandler(silence)


def _refuse(line: str) -> int:
    say(f"error: {' '.join(line.split())}")
    return USER_ERROR


def _refuse_usage(error: Any) -> int:
    message, context = error.format_message(), getattr(error, "ctx", None)
    if type(error).__name__ == _HELP_INSTEAD:
        if message:
            say(message)
        return USER_ERROR
    hint = f"; see {context.command_path} --help" if isinstance(error, _UsageError) and context is not None else ""
    return _refuse(message.rstrip(".") + hint)


def _reader_left() -> int:
    """The program that reads stdout has ended (``| head``): no complaint, neither now nor when Python flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
