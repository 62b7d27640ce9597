"""``flawsmith reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flawsmith.cli.app import (
    DATA,
    RESEARCH,
    SPEED,
    AsJson,
    Quiet,
    SeveralValues,
    error_boundary,
    print_err,
    print_json,
    print_out,
    shows_progress,
)
from flawsmith.cli.benchmark import RunProgress, conclude
from flawsmith.runtime.errors import FlawsmithError


class ReproduceCommand(SeveralValues):
    """Lists are written as ``--categories bottle screw``."""

    numbers = frozenset({"--seeds"})
    words = frozenset({"--categories"})


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Table or figure of a paper, such as glass-table-2.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what can be made, and end.")] = False,
    data: Annotated[Path | None, typer.Option(help="The folder that holds the public data sets.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; what is finished there is not computed again.")] = (
        Path("reproduced")
    ),
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say how long it will take and how much disk, and end.")
    ] = False,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Run through on drawn data, in seconds a run; its figures mean nothing.")
    ] = False,
    categories: Annotated[list[str] | None, typer.Option(rich_help_panel=DATA, help="Only these categories.")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(rich_help_panel=RESEARCH, help="Seeds in place of the plan's.")
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", rich_help_panel=RESEARCH, help="Choose checkpoints on test data, as the released codes do."
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPEED,
            help="What computes features: onnxruntime, openvino or torch; by default torch where it has a GPU.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(rich_help_panel=SPEED, min=1, help="Runs at a time, which share the cores.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=SPEED, min=0.1, help="GB of memory at which a run is stopped; by default an even share."
        ),
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", rich_help_panel=RESEARCH, help="Keep the model file of every run.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute finished runs again.")] = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a table or a sweep of the papers, and set it beside the printed one.

    Example: flawsmith reproduce glass-table-1 --data datasets --out reproduced
    """
    with error_boundary(
        tier="benchmark", interrupted=f"interrupted: the same command goes on; finished runs are in {out}"
    ):
        from flawsmith.benchmark import reproduce as tables

        if list_:
            titles = {each: tables.paper_plan(each).title for each in tables.plan_names()}
            if json_:
                print_json(titles)
            else:
                width = max(map(len, titles))
                print_out(*(f"{each:<{width}}  {title}" for each, title in titles.items()))
            return
        if name is None:
            raise FlawsmithError("say what to make, such as glass-table-1; `flawsmith reproduce --list` shows all")
        chosen: dict[str, Any] = {
            "categories": categories or (),
            "seeds": seeds or (),
            "oracle": oracle,
            "engine": engine,
            "stand_in": stand_in,
        }
        if estimate:
            silent = quiet or json_
            told = (lambda title: None) if silent else (lambda title: print_err(f"trying {title}"))
            result = tables.estimate_plan(name, data, out, on_probe=told, **chosen)
            if json_:
                print_json({**vars(result), "by_experiment": dict(result.by_experiment)})
            else:
                print_out(*result.in_words().split("\n"))
            return
        with RunProgress(show=shows_progress(quiet=quiet or json_), quiet=quiet or json_) as bar:
            made = tables.reproduce(
                name,
                data,
                out,
                jobs=jobs,
                memory_bytes=None if memory is None else int(memory * 1e9),
                keep_models=keep_models,
                fresh=fresh,
                on_start=bar.start,
                on_result=bar.add,
                **chosen,
            )
    conclude(made, json_=json_, quiet=quiet)
