"""How plots and pages look: one set of colours, fonts and sizes for reports, benchmark tables and figures of papers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

from flawsmith.runtime.overlay import COLOURS

INK, MUTED, EDGE, GRID = "#1d2733", "#566370", "#9aa6b2", "#e3e8ed"
# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
GOOD, FLAWED, SYNTHETIC, HELD_OUT = PALETTE[0], PALETTE[1], PALETTE[4], PALETTE[5]
"""Colours of good images, of flawed ones, of synthetic flaws and of good images held out from training."""
# Shapes and dashes repeat after another number than colours do, so that 35 lines differ in one of them.
MARKERS = ("o", "^", "s", "D", "v")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
SCREEN, PRINT = 9.5, 7.5
"""Sizes of the text of plots in points: in a report, and in a paper."""
LONGEST_LABEL = 44

_HERE = Path(__file__).parent


@contextmanager
def plot_style(font_size: float) -> Iterator[None]:
    """Everything that is drawn in the block looks alike, and the same figure gives the same bytes.

    Args:
        font_size: of the text in points; lines and marks are drawn in proportion.
    """
    style: dict[Any, Any] = {
        "svg.hashsalt": "flawsmith",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
        "font.family": "DejaVu Sans",
        "font.size": font_size,
        "axes.titlesize": font_size,
        "axes.labelsize": font_size,
        "xtick.labelsize": 0.87 * font_size,
        "ytick.labelsize": 0.87 * font_size,
        "legend.fontsize": 0.9 * font_size,
        "legend.frameon": False,
        "text.color": INK,
        "text.parse_math": False,
        "axes.labelcolor": INK,
        "axes.edgecolor": EDGE,
        "axes.linewidth": 0.08 * font_size,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.07 * font_size,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.width": 0.08 * font_size,
        "ytick.major.width": 0.08 * font_size,
        "lines.linewidth": 0.16 * font_size,
        "lines.markersize": 0.47 * font_size,
        "path.simplify_threshold": 0.5,
    }
    with mpl.rc_context(style):
        yield


def short_label(text: str, longest: int = LONGEST_LABEL) -> str:
    """A label that fits: what is too long ends in an ellipsis; a leading underscore would hide it from legends.

    Example:
        >>> short_label("_loss"), short_label("a long name", 8)
        ('loss', 'a long …')
    """
    text = " ".join(text.split()).lstrip("_") or "unnamed"
    return text if len(text) <= longest else text[: longest - 1] + "…"


def page_style() -> str:
    """The style sheet of all pages."""
    heat = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in COLOURS[:: len(COLOURS) // 8].tolist())
    colours = f":root {{ --ink: {INK}; --muted: {MUTED}; --accent: {GOOD}; --edge: {EDGE}; --heat: {heat}; }}\n"
    return colours + (_HERE / "page.css").read_text(encoding="utf-8")
