"""``flawsmith calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawsmith.cli.app import (
    DATA,
    SPEED,
    AsJson,
    Device,
    MinArea,
    ModelFile,
    Quiet,
    Scale,
    error_boundary,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)


def calibrate(
    model: ModelFile,
    good: Annotated[
        Path | None,
        typer.Argument(
            metavar="GOOD",
            help="Good images that the model has not learned from: a folder or a table; not needed for rates alone.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The new model file; by default <model>-calibrated.flaw beside the model.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--max-false-rejects", "--rate", help="Share of good parts that may be rejected: 10/1000, 1% or 0.01."
        ),
    ] = None,
    review_rate: Annotated[
        str | None, typer.Option("--review-rate", help="Share of good parts that may be rejected or sent to review.")
    ] = None,
    review_budget: Annotated[
        float | None,
        typer.Option("--review-budget", metavar="PARTS", help="Good parts of 1,000 that may be sent to review."),
    ] = None,
    repeats: Annotated[
        str | None,
        typer.Option(
            help="How to tell which images show the same part, as for --group; how far their scores scatter sets the "
            "review band."
        ),
    ] = None,
    use: Annotated[
        str | None, typer.Option(metavar="LIMITS", help="Go back to earlier limits, by the name that info gives.")
    ] = None,
    roi: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA,
            metavar="FILE",
            help="Where to look, and zones with limits of their own: JSON polygons or a mask image; none: all.",
        ),
    ] = None,
    min_area: MinArea = None,
    scale: Scale = None,
    group: Annotated[
        str,
        typer.Option(
            rich_help_panel=DATA, help="Groups of the images: auto, none, folder, date, name:REGEX or column:NAME."
        ),
    ] = "auto",
    flawed: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=DATA,
            metavar="DIR",
            help="Images of known flaws, to see how many are rejected; they do not move the limit.",
        ),
    ] = None,
    catch: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA,
            metavar="SHARE",
            help="With --flawed: take the highest limit that rejects this share of the flaws.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(rich_help_panel=SPEED, help="Calibrate for another engine: onnxruntime or openvino."),
    ] = None,
    device: Device = None,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Set the limits of a model anew from good images, without training. The former limits stay in the new file.

    Example: flawsmith calibrate runs/bolt/model.flaw photos/good --max-false-rejects 5/1000
    """
    with error_boundary(interrupted="interrupted: nothing was written"):
        from flawsmith.pipeline.calibrate import calibrate as run

        target = (model.parent / f"{model.stem or 'model'}-calibrated.flaw") if out is None else out
        with progress("inspecting", None, show=shows_progress(quiet=quiet or json_)) as on_step:
            result = run(
                model,
                good,
                out=target,
                rate=rate,
                review_rate=review_rate,
                review_budget=review_budget,
                roi=roi,
                min_area=min_area,
                scale=scale,
                group=group,
                repeats=repeats,
                flawed=flawed,
                catch=catch,
                use=use,
                engine=engine,
                device=device,
                on_step=on_step,
            )
    if json_:
        print_json(result.to_dict())
    else:
        print_out(*result.as_table().splitlines())
    if quiet:
        return
    for note in result.notes:
        print_err(f"note: {note}")
    print_err(*result.after.describe().splitlines())
    if any(image.label == "flawed" for image in result.images):
        flawed_images = sum(image.label == "flawed" for image in result.images)
        caught = result.count("flawed", "after", "reject")
        bound = result.caught_at_least
        sure = "" if bound is None else f"; of others like them, 95 % sure, at least {int(100 * bound)} %"
        print_err(f"known flaws rejected: {caught} of {flawed_images}{sure}")
    print_err(f"model: {result.path}")
