"""``flawsmith demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawsmith.cli.console import emit, emit_json, say, shows_progress
from flawsmith.cli.options import AsJson, Quiet
from flawsmith.cli.session import session


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo; a former demo in it is replaced.")] = Path("demo"),
    part: Annotated[str, typer.Option(help="The sample part, such as bracket.")] = "bracket",
    seed: Annotated[int, typer.Option(help="Seed of the drawings and of the training.")] = 0,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw a sample product line, learn its good parts, and measure the model: a few minutes on two cores.

    Example: flawsmith demo --out demo
    """
    with session(tier="train", interrupted="interrupted: run the demo again to start it anew"):
        from flawsmith.pipeline.demo import run_demo

        told = (lambda _: None) if quiet else say
        try:
            result = run_demo(out, part=part, seed=seed, quiet=not shows_progress(quiet=quiet or json_), told=told)
        except SystemExit:
            # Lightning ends the process itself after Ctrl-C.
            raise KeyboardInterrupt from None
    if json_:
        emit_json(
            {
                "data": str(result.data),
                "model": str(result.model),
                "report": str(result.report),
                "evaluation": result.evaluation.model_dump(mode="json"),
            }
        )
        return
    emit(result.evaluation.as_table())
    emit(f"\ndata:   {result.data}\nmodel:  {result.model}\nreport: {result.report}")
