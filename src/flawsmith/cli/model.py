"""What is done with a model file: ``evaluate``, ``calibrate``, ``export``, ``predict``, ``info`` and ``doctor``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from flawsmith.cli.app import (
    DATA,
    RESEARCH,
    SPEED,
    AsJson,
    DataFolder,
    Dated,
    Device,
    Engine,
    InterruptedCommandError,
    Layout,
    MinArea,
    ModelFile,
    Quiet,
    Ray,
    Scale,
    error_boundary,
    parse_settings,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.data.doctor import Finding
    from flawsmith.pipeline.predict import OverlayChoice, Prediction
    from flawsmith.runtime.decision import Decision


SOMETHING_WRONG = 1
"""Exit code: all is done, and some images could not be inspected, or errors were found."""
_LISTED = 5


def evaluate(
    model: ModelFile,
    data: DataFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html, evaluation.json and scores.csv; by default evaluation/ beside the model, "
            "evaluation-papers/ with that protocol."
        ),
    ] = None,
    layout: Layout = None,
    engine: Engine = None,
    protocol: Annotated[
        str,
        typer.Option(
            rich_help_panel=RESEARCH,
            help="clean, or papers: measure as the method's released code does; the results say so.",
        ),
    ] = "clean",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            rich_help_panel=RESEARCH,
            metavar="KEY=VALUE",
            help="Change a switch of the protocol, such as pro=exact.",
        ),
    ] = None,
    dated: Dated = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on labelled test images: prints a table, writes a report and the score of every image.

    Example: flawsmith evaluate runs/bolt/model.flaw parts/bolt
    """
    with error_boundary(tier="eval", interrupted="interrupted: nothing was written"):
        from flawsmith.data.layouts import load
        from flawsmith.pipeline.evaluate import evaluate_into, test_samples
        from flawsmith.runtime.bundle import Bundle

        rules: dict[str, Any] = {"protocol": protocol, "set": parse_settings(set_ or []), "dated": dated}
        bundle, dataset = Bundle.load(model), load(data, layout)
        for note in () if quiet else dataset.notes:
            print_err(f"note: {note}")
        with progress("inspecting", len(test_samples(dataset)), quiet=quiet or json_) as on_step:
            written = evaluate_into(out, bundle, dataset, engine=engine, history=model.parent, on_step=on_step, **rules)
    if json_:
        print_json(written.evaluation.model_dump(mode="json"))
    else:
        print_out(*written.evaluation.as_table().split("\n"))
    if not quiet:
        for step in written.evaluation.next_steps():
            print_err(f"next: {step}")
        print_err(f"report: {written.report}")


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
        with progress("inspecting", None, quiet=quiet or json_) as on_step:
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

        with progress("exporting", None, quiet=quiet or json_) as on_step:
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
        from flawsmith.runtime.inspector import Inspector

        bundle = Bundle.load(model)
        if ray is not None and (device is not None or precision is not None or batch != 1):
            raise FlawsmithError("--device, --precision and --batch are for this machine: leave them or --ray out")
        inspector = Inspector.load(bundle, engine=engine, precision=precision, device=device)
        if not quiet:
            for stamp in inspector.spec.training.stamps:
                print_err(stamp)
        # Counting walks the folders once more; without a bar nobody waits for the number.
        total = sum(1 for _ in given_images(images, out)) if shows_progress(quiet=quiet or json_) else None
        try:
            with progress("inspecting", total, quiet=quiet or json_) as on_step:

                def seen(record: dict[str, Any]) -> None:
                    _show(record, json_=json_, quiet=quiet)
                    on_step()

                options: dict[str, Any] = {
                    "overlays": _choice(overlays),
                    "maps": maps,
                    "decoders": decoders,
                    **({} if batch == 1 else {"batch": batch}),
                    "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
                    "seen": seen,
                }
                if ray is None:
                    written = run(inspector, images, out, **options)
                else:
                    from flawsmith.extras.ray import predict_on_cluster

                    written = predict_on_cluster(bundle, images, out, address=ray, engine=engine, **options)
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
        raise typer.Exit(SOMETHING_WRONG)


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


def info(model: ModelFile, json_: AsJson = False) -> None:
    """Say what a model is, what it learned from, and what its limits are worth.

    Example: flawsmith info runs/bolt/model.flaw
    """
    with error_boundary():
        from flawsmith.pipeline.describe import describe_model, model_in_words
        from flawsmith.runtime.bundle import Bundle

        if json_:
            print_json(describe_model(model))
        else:
            print_out(*model_in_words(Bundle.load(model)).split("\n"))


def doctor(
    subject: Annotated[
        Path, typer.Argument(metavar="DATA|MODEL", help="A folder of images, a CSV table, or a model file.")
    ],
    layout: Layout = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A model that scores the good images, to show those that look least like the others."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="With --model: write pictures of those images here.")
    ] = None,
    device: Device = None,
    json_: AsJson = False,
) -> None:
    """Check a folder of images, or a model file, for problems; with --device, whether that gives the CPU's verdicts.

    Exit code 0: no errors, perhaps warnings. 1: errors were found.
    2: there was nothing to check.

    Example: flawsmith doctor parts/bolt
    """
    with error_boundary():
        from flawsmith.pipeline.describe import doctor as run

        findings = run(subject, layout=layout, model=model, sheet=sheet, device=device)
    if json_:
        print_json(findings.to_dict())
    else:
        print_out(findings.summary)
        for line in findings.recognised:
            print_out(f"  {line}")
        for finding in findings.items:
            print_out("", *_in_words(finding))
        if not findings.items:
            print_out("No problems found")
    if not findings.sound:
        raise typer.Exit(SOMETHING_WRONG)


def _is_said(finding: Finding) -> bool:
    """Whether the one place of a finding needs no line of its own: the data as a whole, or a file that is named."""
    (where,) = finding.where
    return where.is_dir() or str(where) in finding.what


def _in_words(finding: Finding) -> list[str]:
    lines = [f"{finding.severity}: {finding.what}"]
    if finding.fix != "nothing":
        lines.append(f"  fix: {finding.fix}")
    if len(finding.where) > 1 or not _is_said(finding):
        lines += [f"  {path}" for path in finding.where[:_LISTED]]
        more = len(finding.where) - _LISTED
        lines += [f"  and {more} more"] if more > 0 else []
    return lines
