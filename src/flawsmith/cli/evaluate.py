"""``flawsmith evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flawsmith.cli.app import (
    RESEARCH,
    AsJson,
    DataFolder,
    Dated,
    Engine,
    Layout,
    ModelFile,
    Quiet,
    error_boundary,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)


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
        from flawsmith.cli.app import parse_settings
        from flawsmith.data.layouts import load
        from flawsmith.pipeline.evaluate import evaluate_into, test_samples
        from flawsmith.runtime.bundle import Bundle

        rules: dict[str, Any] = {"protocol": protocol, "set": parse_settings(set_ or []), "dated": dated}
        bundle, dataset = Bundle.load(model), load(data, layout)
        for note in () if quiet else dataset.notes:
            print_err(f"note: {note}")
        show = shows_progress(quiet=quiet or json_)
        with progress("inspecting", len(test_samples(dataset)), show=show) as on_step:
            written = evaluate_into(out, bundle, dataset, engine=engine, history=model.parent, on_step=on_step, **rules)
    if json_:
        print_json(written.evaluation.model_dump(mode="json"))
    else:
        print_out(*written.evaluation.as_table().split("\n"))
    if not quiet:
        for step in written.evaluation.next_steps():
            print_err(f"next: {step}")
        print_err(f"report: {written.report}")
