"""``flawsmith settings``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flawsmith.cli.app import AsJson, error_boundary, print_json, print_out
from flawsmith.models import METHODS


def settings(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="A method, such as pbas.", autocompletion=lambda: METHODS)
    ],
    preset: Annotated[str | None, typer.Option(help="Whose values to show; fast by default.")] = None,
    json_: AsJson = False,
) -> None:
    """List what `flawsmith train --set` can change of a method, with the preset's values.

    Example: flawsmith settings pbas
    """
    with error_boundary(tier="train"):
        from flawsmith.pipeline.settings import describe_settings

        rows = describe_settings(method, preset)
    if json_:
        print_json(rows)
        return
    for row in rows:
        print_out(f"{row['name']}={json.dumps(row['value'], separators=(',', ':'))}", f"    {row['meaning']}")
