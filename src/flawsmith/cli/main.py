"""Entry point of ``flawsmith``: gathers the commands, which import what they need when they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from flawsmith import __version__
from flawsmith.cli import benchmark, demo, doctor, evaluate, figure, info, predict, synthesize, train
from flawsmith.cli.console import emit
from flawsmith.cli.session import own_warnings, run

app = typer.Typer(
    name="flawsmith",
    help="Visual inspection learned from good parts alone.",
    epilog="Begin with `flawsmith demo`, then `flawsmith train FOLDER` on your own images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("synthesize", cls=synthesize.SynthesizeCommand)(synthesize.synthesize)
app.command("benchmark", cls=benchmark.BenchmarkCommand)(benchmark.benchmark)
app.add_typer(figure.figure)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)


def _print_version(value: bool) -> None:
    if value:
        emit(f"flawsmith {__version__}")
        raise typer.Exit


@app.callback()
def _flawsmith(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual inspection learned from good parts alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        0: done. 1: done, and something is wrong with the images or the data. 2: the user can mend it, one line on
        stderr says how. 130: interrupted.
    """
    arguments = None if argv is None else list(argv)
    with own_warnings():
        return run(lambda: app(arguments, prog_name="flawsmith", standalone_mode=False))
