"""``flawsmith convert``: model files from the weights that authors have released."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawsmith.cli.app import AsJson, Layout, Quiet, error_boundary, parse_settings, print_err, print_json, print_out

convert = typer.Typer(
    name="convert", help="Make a model file of released weights.", no_args_is_help=True, add_completion=False
)


@convert.callback()
def _convert() -> None:
    """Make a model file of released weights."""


@convert.command("glass")
def glass(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The authors' ckpt_best_NUMBER.pth of a category.")
    ],
    data: Annotated[Path, typer.Option(help="The category's folder, whose good images set the limits.")],
    out: Annotated[Path, typer.Option(help="The model file.")] = Path("model.flaw"),
    backbone: Annotated[
        str | None, typer.Option(help="Name or file of the backbone; by default the authors', from the hub.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that differs from preset official; repeatable."),
    ] = None,
    layout: Layout = None,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model file of the authors' weights of GLASS, to evaluate or to inspect with.

    Example: flawsmith convert glass ckpt_best_639.pth --data datasets/mvtec/bottle --out bottle.flaw
    """
    with error_boundary(tier="train"):
        from flawsmith.pipeline.convert import convert_glass

        bundle = convert_glass(checkpoint, data, out, backbone=backbone, layout=layout, set=parse_settings(set_ or []))
    if not quiet:
        print_err(*bundle.spec.training.stamps)
    if json_:
        print_json({"model": str(out), "parity": bundle.spec.parity})
    else:
        print_out(f"model: {out}", f"now:   flawsmith evaluate {out} {data} --protocol papers")
