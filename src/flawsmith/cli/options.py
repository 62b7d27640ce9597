"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A category folder in a known layout, a CSV table, or just a folder of good images."
    ),
]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, such as runs/bolt/model.flaw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; nothing else goes there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")]
Layout = Annotated[
    str | None, typer.Option(help="Layout of the data, such as mvtec, csv or folder; detected by default.")
]
Engine = Annotated[
    str | None,
    typer.Option(help="onnxruntime or openvino; by default the one that the limits were calibrated with."),
]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Spread the work over a Ray cluster: auto, HOST:PORT, or local to start one."),
]
