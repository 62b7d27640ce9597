"""How a figure for a paper is laid out, and how it becomes a file that is the same every time."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from flawsmith.report.style import MARKERS, PALETTE, PRINT, plot_style
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder, replacing

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches of one column and of both columns of a paper."""

_DPI = 300
# Whatever would tell when and with what a file was written is left out.
_METADATA: Mapping[str, dict[str, None]] = {
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": None, "Date": None},
    ".png": {"Software": None},
}


@dataclass(frozen=True)
class PaperFigure:
    """A figure and what stands behind it.

    Attributes:
        figure: ready to be written.
        rows: the numbers that are drawn, a record each, all with the same keys.
        notes: what a reader of the figure has to know, such as what was left out; a sentence each.
    """

    figure: Figure
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()


def check_name(out: Path) -> None:
    """Refuse a file name before any work is done.

    Raises:
        FlawsmithError: it ends like no format that can be written.
    """
    if out.suffix.lower() not in _METADATA:
        raise FlawsmithError(f"{out}: a figure is written as .pdf, .svg or .png; name it so with --out")


def write(drawn: PaperFigure, out: Path, *, numbers: bool) -> dict[str, Path]:
    """Write a figure, and the numbers behind it beside it where asked for; the same figure gives the same bytes.

    Args:
        out: the file; its suffix names the format. Its folder is made where it is missing.
        numbers: write ``out`` with the suffix ``.csv`` too.

    Returns:
        The files: ``figure``, and ``numbers`` where there is one.

    Raises:
        FlawsmithError: no such format, or the file cannot be written.
    """
    check_name(out)
    make_folder(out.parent)
    suffix = out.suffix.lower()
    with plot_style(PRINT), replacing(out) as temporary:
        drawn.figure.savefig(temporary, format=suffix[1:], dpi=_DPI, metadata=_METADATA[suffix])
    files = {"figure": out}
    if numbers:
        files["numbers"] = out.with_suffix(".csv")
        with replacing(files["numbers"]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, list(drawn.rows[0]) if drawn.rows else [], lineterminator="\n")
            rows.writeheader()
            rows.writerows(drawn.rows)
    return files


def panels(
    rows: int, columns: int, *, height: float, width: float | None = None
) -> tuple[Figure, npt.NDArray[np.object_]]:
    """A figure of equal panels: one column of a paper wide for a single panel, both columns for several.

    Args:
        height: of a row, inches.
        width: of the figure, inches; None chooses.

    Returns:
        The figure, and its axes (rows, columns).
    """
    chosen = width or (COLUMN if columns == 1 else PAGE)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
    figure = Figure(figsize=(chosen, 0.2 + height * rows), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend for all panels, below them, where it hides no data: in rows as wide as the figure allows.

    The figure grows by the legend, so that the panels keep their height.
    """
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    # A character takes about 0.055 inches at this size, the handle and the gaps half an inch.
    fitting = max(1, int(figure.get_figwidth() / (0.055 * longest + 0.5)))
    shown = max(1, min(len(handles), fitting))
    figure.set_figheight(figure.get_figheight() + 0.14 * -(-len(handles) // shown))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=shown, handlelength=1.8, columnspacing=1.2)


def look(number: int, **further: Any) -> dict[str, Any]:
    """Colour and marker of the line, group or experiment of that number, with further properties of matplotlib's."""
    return {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)], **further}


def wrapped(text: str, width: int, *, rows: int = 2) -> str:
    """A title in lines of at most so many characters; what needs more than ``rows`` of them ends in an ellipsis."""
    return "\n".join(textwrap.wrap(text, max(width, 4), max_lines=rows, placeholder=" …")) or "unnamed"
