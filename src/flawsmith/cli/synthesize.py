"""``flawsmith synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawsmith.cli.app import (
    DATA,
    RESEARCH,
    AsJson,
    Bits,
    DataFolder,
    Layout,
    Quiet,
    SeveralValues,
    ValueRange,
    error_boundary,
    parse_range,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.pipeline.synthesize import PreviewFiles, WeakFlawSets


_SAMPLES = 16


class SynthesizeCommand(SeveralValues):
    """``--weakness 0.1 0.3`` stands for ``--weakness 0.1 --weakness 0.3``."""

    numbers = frozenset({"--weakness"})


def synthesize(
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="Folder to write; a new one.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="glass, glass-official, aand, slsg, slsg-aligned, slsg-structural, slsg-logical or slsg-official."
        ),
    ] = "glass",
    n: Annotated[
        int | None, typer.Option("--n", help="Samples; 16 by default, of a test set as many as good test images.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Write each picture beside the sheet, too.")] = False,
    test_set: Annotated[
        bool, typer.Option("--test-set", help="Write labelled test sets in MVTec layout, one for each weakness.")
    ] = False,
    textures: Annotated[
        str,
        typer.Option(
            rich_help_panel=DATA,
            metavar="DIR|self|procedural",
            help="Where textures come from: a folder of pictures, the parts themselves, or drawn by the program.",
        ),
    ] = "procedural",
    foreground: Annotated[
        str,
        typer.Option(
            rich_help_panel=DATA,
            metavar="none|auto|DIR",
            help="Where flaws may lie: anywhere, on the part (found by itself), or where mask files say.",
        ),
    ] = "none",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            rich_help_panel=DATA,
            metavar="H W",
            help="Scale images to this size first; by default they stay as they are.",
        ),
    ] = None,
    bits: Bits = None,
    value_range: ValueRange = None,
    layout: Layout = None,
    weakness: Annotated[
        list[float] | None,
        typer.Option(
            rich_help_panel=RESEARCH,
            metavar="W...",
            help="How much of the good image shows through the flaws of a test set; 0.1 0.3 0.5 0.7 by default.",
        ),
    ] = None,
    per_image: Annotated[
        int | None,
        typer.Option(rich_help_panel=RESEARCH, help="Flaws on each image of a test set; 1 by default."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESEARCH,
            metavar="test|training",
            help="Make a test set of good test images, the default, or of training images, as MAD-sys was made.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=RESEARCH, help="Seed of every random draw.")] = 0,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Synthesize flaws on good images: a contact sheet to look at, or test sets of weak flaws to evaluate on.

    Example: flawsmith synthesize parts/bolt --out flaws

    Example: flawsmith synthesize parts/bolt --out weak --test-set --weakness 0.3 0.7
    """
    apart = [("--size", size is not None), ("--pictures", pictures)] if test_set else []
    apart += [] if test_set else [("--weakness", weakness is not None), ("--per-image", per_image is not None)]
    apart += [] if test_set else [("--base", base is not None)]
    with error_boundary(tier="train", interrupted="interrupted: nothing was written"):
        for option, is_set in apart:
            if is_set:
                side = "with" if test_set else "without"
                raise FlawsmithError(f"{option} has no meaning {side} --test-set: drop one of them")
        from flawsmith.pipeline.synthesize import SynthesisSettings, weak_flaw_sets
        from flawsmith.pipeline.synthesize import synthesize as preview

        settings = SynthesisSettings(recipe, textures, foreground, seed, bits, parse_range(value_range))
        number = _SAMPLES if n is None and not test_set else n
        with progress("synthesis", number, show=shows_progress(quiet=quiet or json_)) as advance:
            options: dict[str, Any] = {"layout": layout, "n": number, "on_step": advance}
            options["on_message"] = (lambda _: None) if quiet else print_err
            if test_set:
                options |= {"per_image": 1 if per_image is None else per_image, "base": base or "test"}
                options |= {} if weakness is None else {"weakness": weakness}
                sets = weak_flaw_sets(data, out, settings, **options)
            else:
                made = preview(data, out, settings, size=size, pictures=pictures, **options)
        if test_set:
            _report_sets(sets, json_=json_)
        else:
            _report_preview(made, json_=json_)


def _report_preview(made: PreviewFiles, *, json_: bool) -> None:
    if json_:
        counts = {"n": made.n, "mean_tries": made.mean_tries, "fallbacks": made.fallbacks}
        pictures = None if made.pictures is None else str(made.pictures)
        print_json({"sheet": str(made.sheet), "pictures": pictures, **counts})
        return
    print_out(f"sheet:    {made.sheet}")
    if made.pictures is not None:
        print_out(f"pictures: {made.pictures}")
    fallbacks = f", fallback rate {made.fallbacks / made.n:.0%}" if made.fallbacks else ""
    print_out(f"{made.n} samples, {made.mean_tries:.1f} tries each{fallbacks}")


def _report_sets(made: WeakFlawSets, *, json_: bool) -> None:
    if json_:
        categories = [{"weakness": w, "category": str(folder)} for w, folder in made.categories.items()]
        counts = {"base": made.base, "n_good": made.n_good, "n_synthetic": made.n_synthetic}
        print_json({"folder": str(made.folder), "sets": categories, **counts})
        return
    for weight, folder in made.categories.items():
        print_out(f"weakness {weight:<5g} {folder}")
    print_out(
        f"each with {made.n_good} good and {made.n_synthetic} synthetic images, for `flawsmith evaluate MODEL FOLDER`"
    )
