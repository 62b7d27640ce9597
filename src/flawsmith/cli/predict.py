"""``flawsmith predict``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from flawsmith.cli.app import (
    SPEED,
    AsJson,
    Device,
    Engine,
    InterruptedCommandError,
    ModelFile,
    Ray,
    error_boundary,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)

if TYPE_CHECKING:
    from flawsmith.pipeline.predict import OverlayChoice, Prediction
    from flawsmith.runtime.decision import Decision


UNREADABLE = 1
"""Exit code: all is written, but some images could not be inspected."""


class PredictCommand(TyperCommand):
    """``--maps`` may stand without its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--maps`` its default value where none follows, then parse as ever."""
        expanded: list[str] = []
        for place, argument in enumerate(args):
            if argument == "--":
                expanded += args[place:]
                break
            expanded.append(argument)
            if argument == "--maps":
                following = args[place + 1] if place + 1 < len(args) else ""
                # What is neither a format nor an image or option is a format that does not exist.
                is_format = following in ("npy", "tiff") or not Path(following).exists()
                if not following or following.startswith("-") or not is_format:
                    expanded.append("npy")
        return super().parse_args(ctx, expanded)


def predict(
    model: ModelFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files and folders, in any order.")],
    out: Annotated[Path, typer.Option(help="Folder for verdicts.jsonl, verdicts.csv, overlays/, maps/.")] = Path(
        "verdicts"
    ),
    maps: Annotated[
        str | None,
        typer.Option(
            "--maps",
            metavar="[npy|tiff]",
            help="Write every anomaly map, float32, in pixels of the image: npy (the default), or tiff in the tree of "
            "the folder of images.",
        ),
    ] = None,
    overlays: Annotated[
        bool | None,
        typer.Option(help="Draw overlays of all images, or of none; by default of those with review or reject."),
    ] = None,
    json_: AsJson = False,
    engine: Engine = None,
    precision: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPEED,
            help="float32, bfloat16, or float16 and int8 where `export --into` has put them into the model file.",
        ),
    ] = None,
    device: Device = None,
    batch: Annotated[
        int,
        typer.Option(rich_help_panel=SPEED, help="Images that the network sees at a time, for throughput on a GPU."),
    ] = 1,
    decoders: Annotated[
        int, typer.Option(rich_help_panel=SPEED, help="Threads that decode images; with --ray, of every worker.")
    ] = 2,
    ray: Ray = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone; verdicts go to the files.")] = False,
) -> None:
    """Inspect images and print one verdict per line, with the score as a multiple of the limit.

    Exit code 0: all images inspected; files that are no images are named. 1: some could not be read.
    2: nothing could be done, or not all could be written.

    Example: flawsmith predict runs/bolt/model.flaw photos/ --out verdicts
    """
    with error_boundary():
        from flawsmith.pipeline.predict import InterruptedPredictionError, given_images
        from flawsmith.pipeline.predict import predict as run
        from flawsmith.runtime.bundle import Bundle
        from flawsmith.runtime.errors import FlawsmithError
        from flawsmith.runtime.inspector import Inspector

        bundle = Bundle.load(model)
        if ray is not None and (device is not None or precision is not None or batch != 1):
            raise FlawsmithError("--device, --precision and --batch are for this machine: leave them or --ray out")
        inspector = Inspector.load(bundle, engine=engine, precision=precision, device=device)
        if not quiet:
            for stamp in inspector.spec.training.stamps:
                print_err(stamp)
        show = shows_progress(quiet=quiet or json_)
        # Counting walks the folders once more; without a bar nobody waits for the number.
        total = sum(1 for _ in given_images(images, out)) if show else None
        try:
            with progress("inspecting", total, show=show) as on_step:

                def seen(record: dict[str, Any]) -> None:
                    _show(record, json_=json_, quiet=quiet)
                    on_step()

                wanted: dict[str, Any] = {
                    "overlays": _choice(overlays),
                    "maps": maps,
                    "decoders": decoders,
                    **({} if batch == 1 else {"batch": batch}),
                    "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
                    "seen": seen,
                }
                if ray is None:
                    written = run(inspector, images, out, **wanted)
                else:
                    from flawsmith.extras.ray import predict_on_cluster

                    written = predict_on_cluster(bundle, images, out, address=ray, engine=engine, **wanted)
        except InterruptedPredictionError as error:
            if not error.interrupted:
                raise
            print_err(str(error))
            raise InterruptedCommandError from None
    if not quiet:
        if device is not None:
            print_err(f"computed on {inspector.device}")
        print_err(*_summary(written, inspector.spec.decision))
    for note in written.notes:
        print_err(f"warning: {note}")
    if written.unreadable:
        raise typer.Exit(UNREADABLE)


def _choice(overlays: bool | None) -> OverlayChoice:
    if overlays is None:
        return "suspect"
    return "all" if overlays else "none"


def _show(record: dict[str, Any], *, json_: bool, quiet: bool) -> None:
    if json_:
        print_json(record)
    elif "error" in record:
        print_err(f"unreadable: {record['error']}")
    elif not quiet:
        times = record.get("times_limit")
        multiple = "-" if times is None else f"{times:.2f}x"
        print_out(f"{record['verdict']:<6}  {multiple:<7}  {record['score']:<12.6g}  {record['image']}")


def _summary(written: Prediction, decision: Decision) -> list[str]:
    """Counts, what the limit is worth, and which images to look at first."""
    from flawsmith.runtime.regions import STRANGEST_PLACE

    counts = ", ".join(f"{written.verdicts[verdict]} {verdict}" for verdict in ("reject", "review", "pass"))
    unreadable = f", {written.unreadable} unreadable" if written.unreadable else ""
    images = "1 image" if written.total == 1 else f"{written.total} images"
    lines = [f"{images}: {counts}{unreadable}", f"good parts rejected: {decision.promise}"]
    nearest = [f"{verdict} at {times:.2f}x, {image}" for verdict, (times, image) in written.nearest.items()]
    if written.by_score_alone:
        lines.append(f"rejected by the score alone: {written.by_score_alone}, where {STRANGEST_PLACE}")
    if nearest:
        lines.append(f"nearest to the limit: {'; '.join(nearest)}")
    return [*lines, f"see {written.lines} and {written.table}"]
