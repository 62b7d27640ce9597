"""Commands of a line at work: ``serve``, ``audit``, ``watch``, ``studio``, and ``plc``, which plays its other end."""

from __future__ import annotations

import logging
import signal
import threading
import webbrowser
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawsmith.cli.app import AsJson, Quiet, error_boundary, print_err, print_json, print_out
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.system import ENDING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from flawsmith.line.outputs.modbus import Reading
    from flawsmith.line.record import Record
    from flawsmith.serving.service import Service


RecordsFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder of records and images; by default records/.", show_default=False)
]
Host = Annotated[str | None, typer.Option(help="Address to listen at; by default 127.0.0.1.")]
Port = Annotated[int | None, typer.Option(help="Port; by default 8470, 0: any that is free.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")]


def log_to_stderr() -> None:
    """Show what goes wrong while nobody looks: a line each, with its time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that curl sends


def _address_of(listener: socket.socket) -> str:
    place, number = listener.getsockname()[:2]
    return f"http://{f'[{place}]' if ':' in place else place}:{number}"


def serve(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL|LINES.toml", help="A model file, or the settings of several lines.")
    ],
    out: RecordsFolder = None,
    host: Host = None,
    port: Port = None,
    quiet: Quiet = False,
) -> None:
    """Judge parts over HTTP, each exactly once, until Ctrl-C or SIGTERM. Prints the address on stdout.

    Example: flawsmith serve runs/bolt/model.flaw --out records
    """
    with error_boundary(tier="serve"):
        from flawsmith.line.settings import ServiceSettings
        from flawsmith.serving.server import Server, listen
        from flawsmith.serving.service import Service

        log_to_stderr()
        settings = ServiceSettings.load(model, host=host, port=port, records=out)
        with listen(settings.host, settings.port) as listener:
            server = Server(Service(settings))
            print_out(_address_of(listener))
            if not quiet:
                for line in server.service.site.lines.values():
                    loaded = line.model
                    state = (
                        "not taught yet, takes no parts"
                        if loaded is None
                        else f"{loaded.product}, good parts rejected: {loaded.decision.promise}"
                    )
                    print_err(f"line {line.name}: {state}")
            with suppress(KeyboardInterrupt):  # the request to end, which has been answered in order by then
                server.run([listener])


audit = typer.Typer(no_args_is_help=True, help="Check what a service has recorded.")


@audit.callback()
def _audit() -> None:
    """Check what a service has recorded."""


@audit.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RECORDS", help="The folder that serve or watch writes.")],
    head: Annotated[
        str | None, typer.Option(help="The audit's head as it was noted elsewhere: it must be among those of today.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Follow the hash chains of records and audit. Exit code 0: intact, 1: changed.

    Example: flawsmith audit verify records
    """
    with error_boundary():
        from flawsmith.line.store import verify as verified

        result = verified(folder, head)
    if json_:
        print_json(vars(result))
    else:
        print_out(f"{result.records} records, head {result.records_head}")
        print_out(f"{result.entries} entries of the audit, head {result.audit_head}")
        print_out(*(result.faults or ("intact",)))
    if result.faults:
        raise typer.Exit(1)


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


def studio(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where lines, images and records lie.")] = Path(
        "studio"
    ),
    host: Host = None,
    port: Port = None,
    browser: Browser = True,
    quiet: Quiet = False,
) -> None:
    """Teach lines, train, set limits, inspect and review, in a browser, until Ctrl-C. Prints the address on stdout.

    Trainings go on when the studio ends, and are found again.

    Example: flawsmith studio
    """
    with error_boundary(tier="serve"):
        run_studio(folder, host=host, port=port, browser=browser, quiet=quiet)


def run_studio(
    folder: Path,
    *,
    host: str | None,
    port: int | None,
    browser: bool,
    quiet: bool,
    page: str = "",
    on_start: Callable[[Service], object] = lambda service: None,
) -> None:
    """Run a studio until it is asked to end.

    Args:
        folder: of the studio.
        host, port: where to listen; None: as its settings say.
        browser: whether to open a page.
        quiet: say nothing but the address.
        page: to open, such as ``lines/bolt/run``.
        on_start: is given the service once it is there.

    Raises:
        FlawsmithError: the folder or the port is in use, or a setting is wrong.
    """
    from flawsmith.line.trainings import TO_INSTALL, is_installed
    from flawsmith.line.workspace import Workspace
    from flawsmith.serving.server import Server, listen
    from flawsmith.serving.service import Service

    log_to_stderr()
    workspace = Workspace(folder)
    try:
        settings = workspace.settings(host=host, port=port)
        with listen(settings.host, settings.port) as listener:
            server = Server(Service(settings, workspace))
            address = _address_of(listener)
            print_out(address)
            if not quiet:
                print_err(f"studio in {folder}; Ctrl-C ends it, trainings go on")
                if not is_installed():
                    print_err(f"note: to train as well: {TO_INSTALL}")
            on_start(server.service)
            if browser:
                with suppress(webbrowser.Error):
                    webbrowser.open(f"{address}/studio/{page}")
            with suppress(KeyboardInterrupt):  # the request to end, which has been answered in order by then
                server.run([listener])
    finally:
        workspace.close()


def run_demo_studio(
    out: Path, *, part: str, seed: int, host: str | None, port: int | None, browser: bool, quiet: bool
) -> None:
    """Draw parts, teach and train a line with them in a studio, and let parts come along, flaws among them.

    Args:
        out: folder of the demo.
        part: of the sample product line.
        seed: of drawings and order.
        host, port, browser, quiet: as for `run_studio`.

    Raises:
        FlawsmithError: as `run_studio`, or the folder is not a demo's own.
    """
    from flawsmith.line.demo import PassingParts, teach_demo, train_demo
    from flawsmith.line.settings import LineSettings
    from flawsmith.line.trainings import Order
    from flawsmith.pipeline.demo import STUDIO, draw_demo

    say = (lambda _: None) if quiet else print_err
    parts = draw_demo(out, part=part, seed=seed, on_message=say)
    ended = threading.Event()
    passing: list[PassingParts] = []

    def teach(service: Service) -> None:
        workspace = service.workspace
        assert workspace is not None, "of the studio"
        if part not in service.site.lines:
            settings = LineSettings(audit_share=0.02)
            workspace.write_lines({**service.site.settings.lines, part: settings})
            service.site.add_line(part, settings, who="demo")
        line = service.site.lines[part]
        if line.model is None:
            say(f"teaching {part} with {parts / 'train' / 'good'}")
            teach_demo(workspace, part, parts / "train" / "good")
            training = train_demo(workspace, part, Order(), until=ended, on_words=say)
            if training is None:
                return
            sha256 = service.take_model(training)
            line.activate(sha256, who="demo", reason="the demonstration's first model")
        say(f"parts come along line {part}, two a second, one in twenty flawed; Ctrl-C ends it")
        passing.append(PassingParts(line, parts / "test", seed=seed))
        passing[0].start()

    def begin(service: Service) -> None:
        def work() -> None:
            try:
                teach(service)
            except FlawsmithError as error:
                print_err(f"error: {error}")

        threading.Thread(target=work, name="demo", daemon=True).start()

    has_model = any((out / STUDIO / "trainings" / part).glob("*/run/model.flaw"))
    page = f"lines/{part}/{'run' if has_model else 'train'}"
    try:
        run_studio(out / STUDIO, host=host, port=port, browser=browser, quiet=quiet, page=page, on_start=begin)
    finally:
        ended.set()
        for thread in passing:
            thread.close()


def plc(
    address: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Where the modbus output listens; port 5020.")],
    count: Annotated[int, typer.Option(min=1, help="Parts to trigger.")] = 1,
    part_id: Annotated[str | None, typer.Option(help="Id of the part; several get -1, -2 and so on.")] = None,
    listen: Annotated[
        bool, typer.Option("--listen", help="Do not trigger: read results of parts that come by other ways.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="To wait for the line each time.")] = 10.0,
    json_: AsJson = False,
) -> None:
    """Play a PLC: trigger, read each result, acknowledge it and print it.

    Example: flawsmith plc 127.0.0.1:5020 --count 3
    """
    with error_boundary(tier="plc"):
        from flawsmith.line.outputs.modbus import DEFAULT_PORT, SimulatedPlc

        host, port = _address(address, DEFAULT_PORT)
        with SimulatedPlc(host, port, seconds=seconds) as simulated:
            for number in range(1, count + 1):
                name = f"{part_id}-{number}" if part_id and count > 1 else part_id
                _show(simulated.next_result() if listen else simulated.inspect(name), as_json=json_)


def _address(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default)
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise FlawsmithError(f"{text} is no HOST[:PORT]: write for example 127.0.0.1:{default}")
    return host.strip("[]"), int(port)


def _show(result: Reading, *, as_json: bool) -> None:
    if as_json:
        names = {name: getattr(result, name).name.lower() for name in ("verdict", "fault", "error", "offline")}
        print_json(asdict(result) | names | {"passed": result.is_pass})
        return
    times = "-" if result.fault else f"{result.times_limit:.2f}x"
    why = f"  {result.fault.name.lower().replace('_', ' ')}" if result.fault else ""
    print_out(
        f"{result.inspection:>5}  {result.verdict.name.lower():<6}  {times:<7}  {result.part_id or '-'}  "
        f"record {result.record}{why}"
    )
