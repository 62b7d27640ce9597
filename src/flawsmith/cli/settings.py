"""``flawsmith methods`` and ``flawsmith settings``: what can be trained, and what can be changed of it."""

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


def methods(json_: AsJson = False) -> None:
    """List the methods: what each is good at, how long it trains on two CPU cores, and its paper.

    Example: flawsmith methods
    """
    with error_boundary(tier="train"):
        from flawsmith.models.registry import find_method, method_names

        rows = [
            {"name": name, "suits": kind.suits, "training_time": kind.training_time, "paper": kind.paper}
            for name, kind in ((name, find_method(name)) for name in method_names())
        ]
    if json_:
        print_json(rows)
        return
    for row in rows:
        print_out(f"{row['name']:<10} {row['suits']}; {row['training_time']}", f"{'':<10} {row['paper']}")
