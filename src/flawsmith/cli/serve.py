"""``flawsmith serve`` and ``flawsmith audit``."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flawsmith.cli.app import AsJson, Quiet, error_boundary, print_err, print_json, print_out

RecordsFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder of records and images; by default records/.", show_default=False)
]


def log_to_stderr() -> None:
    """Show what goes wrong while nobody looks: a line each, with its time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that curl sends


def serve(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL|LINES.toml", help="A model file, or the settings of several lines.")
    ],
    out: RecordsFolder = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; by default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; by default 8470, 0: any that is free.")] = None,
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
            place, number = listener.getsockname()[:2]
            shown = f"[{place}]" if ":" in place else place
            print_out(f"http://{shown}:{number}")
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
