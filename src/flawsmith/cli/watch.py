"""``flawsmith watch``."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawsmith.cli.app import AsJson, Quiet, error_boundary, print_err, print_json, print_out
from flawsmith.cli.serve import RecordsFolder, log_to_stderr
from flawsmith.runtime.system import ENDING

if TYPE_CHECKING:
    from flawsmith.line.record import Record


def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder in which images arrive.")],
    model: Annotated[
        Path, typer.Option(metavar="MODEL|LINES.toml", help="The model file, or the settings that hold the line.")
    ],
    out: RecordsFolder = None,
    line: Annotated[str, typer.Option(help="Name of the line.")] = "line1",
    ready: Annotated[
        str,
        typer.Option(
            help="A file is whole when stable (unchanged for a while), by rename (it gets its name when whole) or by "
            "sentinel (NAME.done lies beside it)."
        ),
    ] = "stable",
    settle: Annotated[float, typer.Option(help="Seconds that a stable file has not changed.")] = 1.0,
    then: Annotated[str, typer.Option(help="What to do with a file that was judged: leave, move, delete.")] = "leave",
    poll: Annotated[bool, typer.Option("--poll", help="Look again and again, as network shares need.")] = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge every image that arrives in a folder, each exactly once, until Ctrl-C or SIGTERM.

    Example: flawsmith watch incoming --model runs/bolt/model.flaw --then move
    """
    with error_boundary(tier="serve"):
        from flawsmith.line.settings import ServiceSettings
        from flawsmith.line.station import Site
        from flawsmith.line.watch import FolderWatch, check_folder, check_policy
        from flawsmith.runtime.errors import FlawsmithError

        log_to_stderr()
        policy = check_policy(ready, then, settle)
        settings = ServiceSettings.load(model, records=out, line=line)
        place_settings = settings.lines[line].model_copy(update={"camera": None})  # the folder takes its place
        settings = settings.model_copy(update={"lines": {line: place_settings}})
        check_folder(folder, settings.records)  # before anything is written
        stop = threading.Event()
        with Site(settings) as site:
            place = site.lines[line]
            if place.model is None:
                raise FlawsmithError(f"line {line} has no model yet: name one in {model}")

            def show(record: Record) -> None:
                if json_:
                    print_json(record.model_dump(mode="json"))
                elif not quiet:
                    times = "-" if record.times_limit is None else f"{record.times_limit:.2f}x"
                    print_out(f"{record.verdict:<6}  {times:<7}  {record.name}")

            watcher = FolderWatch(folder, place, site.store, polling=poll, on_record=show, **policy)
            if not quiet:
                print_err(f"watching {watcher.folder}; good parts rejected: {place.model.decision.promise}")
            if threading.current_thread() is threading.main_thread():
                for number in ENDING:  # what was begun is finished, which an exception would not let it
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        signal.signal(number, lambda *_: stop.set())
            watcher.run(stop)
