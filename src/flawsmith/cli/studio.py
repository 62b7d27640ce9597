"""``flawsmith studio``."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawsmith.cli.app import Quiet, error_boundary, print_err, print_out
from flawsmith.cli.serve import log_to_stderr
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flawsmith.serving.service import Service

Host = Annotated[str | None, typer.Option(help="Address to listen at; by default 127.0.0.1.")]
Port = Annotated[int | None, typer.Option(help="Port; by default 8470, 0: any that is free.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")]


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
        listener = listen(settings.host, settings.port)
        with listener:
            server = Server(Service(settings, workspace))
            place, number = listener.getsockname()[:2]
            address = f"http://{f'[{place}]' if ':' in place else place}:{number}"
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
    import threading

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
