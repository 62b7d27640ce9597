"""``flawsmith doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawsmith.cli.app import AsJson, Device, Layout, error_boundary, print_json, print_out

if TYPE_CHECKING:
    from flawsmith.data.doctor import Finding


UNSOUND = 1
"""Exit code: errors were found."""
_LISTED = 5


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
        raise typer.Exit(UNSOUND)


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
