"""``flawsmith download``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawsmith.cli.app import AsJson, Quiet, error_boundary, print_err, print_json, print_out, progress, shows_progress
from flawsmith.runtime.errors import FlawsmithError


def download(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A public data set, such as visa.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets with licence and page, and end.")] = False,
    to: Annotated[Path, typer.Option(help="The folder that holds data sets.")] = Path("datasets"),
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You have read the licence, and accept it.")
    ] = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a public data set from its authors, after its licence was accepted.

    Example: flawsmith download visa --to datasets --accept-licence
    """
    with error_boundary(tier="benchmark", interrupted=f"interrupted: the same command goes on; what came is in {to}"):
        from flawsmith.data import downloads

        if list_:
            sets = downloads.DOWNLOADS
            if json_:
                print_json({key: vars(each) for key, each in sets.items()})
            else:
                for key, each in sets.items():
                    print_out(key, *(f"  {line}" for line in (*each.terms(), *filter(None, [each.why]))))
            return
        if name is None:
            raise FlawsmithError("say what to fetch, such as visa; `flawsmith download --list` shows all")
        chosen = downloads.find_download(name)
        if not quiet:
            print_err(*chosen.terms())
        with progress(chosen.archive, None, show=shows_progress(quiet=quiet or json_)) as advance:
            folder = downloads.download(name, to, accept_licence=accept_licence, on_bytes=lambda done, total: advance())
    if json_:
        print_json({"folder": str(folder), "archive": str(to / chosen.archive)})
    else:
        print_out(f"{chosen.name}: unpacked into {folder}")
