"""``flawsmith export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawsmith.cli.app import (
    AsJson,
    ModelFile,
    Quiet,
    error_boundary,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)


def export(
    model: ModelFile,
    to: Annotated[str, typer.Option(metavar="FORM", help="onnx, openvino, onnx-fp16, onnx-int8 or openvino-int8.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the graph, decision.json, test vectors and a README; by default <model>-<form> beside the "
            "model."
        ),
    ] = None,
    into: Annotated[
        bool, typer.Option("--into", help="Add the form to the model file itself, in place of a folder.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="GOOD",
            help="Good images that the model has not learned from, or the folder of the training, of which those are "
            "taken that set the limits. Needed for fp16 and int8.",
        ),
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss of separation, good images from synthetic flaws, in AUROC.")
    ] = 0.01,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model ready for another engine, another precision, or a program in another language.

    fp16 and int8 compute the features in fewer bits and get limits of their own; they are refused where they tell
    synthetic flaws from good images worse.

    Example: flawsmith export runs/bolt/model.flaw --to openvino-int8 --images parts/bolt --into
    """
    with error_boundary(interrupted="interrupted: nothing was written"):
        from flawsmith.pipeline.export import export_bundle

        with progress("exporting", None, show=shows_progress(quiet=quiet or json_)) as on_step:
            result = export_bundle(model, to, out=out, into=into, images=images, max_loss=max_loss, on_step=on_step)
    if json_:
        print_json(result.to_dict())
    else:
        print_out(*result.as_table().splitlines())
    if quiet:
        return
    if result.separation is not None:
        print_err(str(result.separation))
    for note in result.notes:
        print_err(f"note: {note}")
    print_err(*result.after.describe().splitlines(), f"{'model' if into else 'folder'}: {result.path}")
