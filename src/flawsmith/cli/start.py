"""Where the process begins: Ctrl-C has an answer before anything that takes time is imported.

Nothing is imported here that Python has not loaded itself.
"""

from __future__ import annotations

import os

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""


def main() -> int:
    """Run the command line; see `flawsmith.cli.main.main`."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what is ignored stays so
            signal.signal(signal.SIGINT, end_at_once)
        from flawsmith.cli.main import main as run
    except KeyboardInterrupt:
        end_at_once()
    return run()


def end_at_once(*_: object) -> None:
    """Answer Ctrl-C while there is nothing to clean up yet.

    An exception would not do: what a library imports on trial may swallow it.
    """
    try:
        os.write(2, b"interrupted\n")
    finally:  # stderr may be closed
        os._exit(INTERRUPTED)
