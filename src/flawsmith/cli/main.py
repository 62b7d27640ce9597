"""Entry point of ``flawsmith``: gathers the commands, which import what they need when they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flawsmith import __version__
from flawsmith.cli import figure, line, model, research, synthesize, train
from flawsmith.cli.app import (
    AsJson,
    EndingSignals,
    Quiet,
    end_process,
    error_boundary,
    own_warnings,
    print_err,
    print_json,
    print_out,
    refuse,
    run,
    unusable_surroundings,
)
from flawsmith.cli.start import INTERRUPTED


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo; a former demo in it is replaced.")] = Path("demo"),
    part: Annotated[str, typer.Option(help="The sample part, such as bracket.")] = "bracket",
    seed: Annotated[int, typer.Option(help="Seed of the drawings and of the training.")] = 0,
    studio_: Annotated[
        bool, typer.Option("--studio", help="Show it in a browser, and let parts come along, flaws among them.")
    ] = False,
    host: line.Host = None,
    port: line.Port = None,
    browser: line.Browser = True,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw sample parts, learn the good ones, and measure the model: a few minutes on two cores.

    With --studio: a line that is taught, trained and at work in a browser, until Ctrl-C.

    Example: flawsmith demo --out demo
    """
    if studio_:
        with error_boundary(tier="train"):
            line.run_demo_studio(out, part=part, seed=seed, host=host, port=port, browser=browser, quiet=quiet)
        return
    with error_boundary(tier="train", interrupted="interrupted: run the demo again to start it anew"):
        from flawsmith.pipeline.demo import run_demo

        on_message = (lambda _: None) if quiet else print_err
        result = run_demo(out, part=part, seed=seed, quiet=quiet or json_, on_message=on_message)
    if json_:
        print_json(
            {
                "data": str(result.data),
                "model": str(result.model),
                "report": str(result.report),
                "evaluation": result.evaluation.model_dump(mode="json"),
            }
        )
        return
    print_out(*result.evaluation.as_table().split("\n"), "")
    print_out(*(f"next:   {step}" for step in result.evaluation.next_steps()))
    print_out(f"data:   {result.data}", f"model:  {result.model}", f"report: {result.report}")
    print_out("", result.news, "Now with your own images: flawsmith train FOLDER")


app = typer.Typer(
    name="flawsmith",
    help="Visual inspection learned from good parts alone.",
    epilog="Begin with `flawsmith demo`, then `flawsmith train FOLDER` on your own images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("train")(train.train)
app.command("evaluate")(model.evaluate)
app.command("calibrate")(model.calibrate)
app.command("export")(model.export)
app.command("predict", cls=model.PredictCommand)(model.predict)
app.command("studio")(line.studio)
app.command("serve")(line.serve)
app.command("watch")(line.watch)
app.add_typer(line.audit, name="audit")
app.command("plc", rich_help_panel="On the line")(line.plc)
app.command("synthesize", cls=synthesize.SynthesizeCommand)(synthesize.synthesize)
app.command("benchmark", cls=research.BenchmarkCommand)(research.benchmark)
app.command("reproduce", cls=research.ReproduceCommand)(research.reproduce)
app.command("download")(research.download)
app.add_typer(research.convert)
app.add_typer(figure.figure)
app.command("methods")(train.methods)
app.command("settings")(train.settings)
app.command("info")(model.info)
app.command("doctor")(model.doctor)


def _print_version(value: bool) -> None:
    if value:
        print_out(f"flawsmith {__version__}")
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
        0: done. 1: done, and something is wrong with the images or the data. 2: the user can fix it, one line on
        stderr says how. 130: interrupted; 128 and its number after another signal (SIGTERM 143, SIGHUP 129).
    """
    arguments = None if argv is None else list(argv)
    unusable = unusable_surroundings()
    if unusable is not None:
        return refuse(unusable)
    with EndingSignals(to_the_end=argv is None) as signals, own_warnings():
        code = run(lambda: app(arguments, prog_name="flawsmith", standalone_mode=False), signals)
    if code != INTERRUPTED or signals.received is None:
        return code
    code = 128 + signals.received
    if argv is None:
        end_process(code)
    return code
