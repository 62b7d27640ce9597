"""``flawsmith train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawsmith.cli.console import emit_json, say, shows_progress
from flawsmith.cli.options import AsJson, DataFolder, Layout, Quiet
from flawsmith.cli.session import session
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.data.samples import Dataset
    from flawsmith.pipeline.train import TrainResult


def train(
    data: DataFolder,
    method: Annotated[str, typer.Option(help="The method.")] = "pbas",
    preset: Annotated[
        str | None, typer.Option(help="fast, paper or official; by default fast, or official on a GPU.")
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(help="efficientnet_lite0 (needs no download), any timm name, a weights file, or NAME@FILE."),
    ] = "efficientnet_lite0",
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the method, such as epochs=20."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/<category>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    engine: Annotated[str, typer.Option(help="onnxruntime or openvino: what training and inspection run on.")] = (
        "onnxruntime"
    ),
    precision: Annotated[str, typer.Option(help="float32 or bfloat16, of that engine.")] = "float32",
    select: Annotated[
        str, typer.Option(help="last, or best on held-out good images and flaws forged on them.")
    ] = "last",
    alpha: Annotated[float, typer.Option(help="Share of good parts that may be rejected.")] = 0.01,
    review_alpha: Annotated[
        float | None, typer.Option(help="Share of good parts that may be sent to review; no such verdict by default.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Significant bits of a camera stored in 16-bit files, such as 12.")
    ] = None,
    layout: Layout = None,
    accelerator: Annotated[str, typer.Option(help="Lightning's accelerator, such as cpu or gpu.")] = "auto",
    devices: Annotated[str, typer.Option(help="Lightning's devices: a number, or a list such as 0,1.")] = "1",
    strategy: Annotated[str, typer.Option(help="Lightning's strategy.")] = "auto",
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn what a good part looks like from good images, and write model.flaw and report.html.

    Example: flawsmith train parts/bolt --out runs/bolt
    """
    with session(tier="train", interrupted="interrupted: continue with --resume"):
        from flawsmith.cli.settings import parse_settings
        from flawsmith.pipeline import train as pipeline
        from flawsmith.pipeline.settings import check_settings, method_config

        choices: dict[str, Any] = {
            "method": method,
            "preset": preset,
            "backbone": backbone,
            "seed": seed,
            "set": parse_settings(set_ or []),
            "engine": engine,
            "precision": precision,
            "select": select,
            "alpha": alpha,
            "review_alpha": review_alpha,
            "bits": bits,
            "layout": layout,
        }
        method_config(check_settings(choices))
        dataset = _introduce(data, layout, seed, quiet=quiet)
        try:
            result = pipeline.train(
                data,
                out=out,
                resume=resume,
                accelerator=accelerator,
                devices=int(devices) if devices.lstrip("-").isdigit() else devices,
                strategy=strategy,
                quiet=not shows_progress(quiet=quiet or json_),
                **choices,
            )
        except FlawsmithError as error:
            raise _with_way_out(error, dataset) from error
        except SystemExit:
            # Lightning ends the process itself after Ctrl-C.
            raise KeyboardInterrupt from None
    _conclude(result, json_=json_, quiet=quiet)


def _introduce(data: Path, layout: str | None, seed: int, *, quiet: bool) -> Dataset:
    """Say what was recognised and what is held out, before the long work begins."""
    from flawsmith.data.layouts import load
    from flawsmith.data.splits import calibration_split

    dataset = load(data, layout)
    if not quiet:
        say(f"{dataset.summary()}: {dataset.recognised}")
        for note in dataset.notes:
            say(f"note: {note}")
        say(calibration_split(dataset, seed).description)
    return dataset


def _with_way_out(error: FlawsmithError, dataset: Dataset) -> FlawsmithError:
    """An unusable image among many is best dealt with by seeing all of them at once."""
    if not any(str(error).startswith(f"{sample.image}:") for sample in dataset.samples):
        return error
    return FlawsmithError(f"{error}, or remove it; `flawsmith doctor {dataset.root}` lists all such files")


def _conclude(result: TrainResult, *, json_: bool, quiet: bool) -> None:
    decision = result.bundle.spec.decision
    if not quiet:
        say(f"model:  {result.model}")
        say(f"report: {result.report}")
        say(decision.describe())
    if json_:
        emit_json(
            {
                "folder": str(result.folder),
                "model": str(result.model),
                "report": str(result.report),
                "training": result.bundle.spec.training.model_dump(mode="json"),
                "decision": decision.model_dump(mode="json"),
                "limit_statement": decision.describe(),
            }
        )
