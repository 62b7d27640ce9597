"""What results show of themselves in a notebook: one piece of HTML that needs no script and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from flawsmith.runtime.files import without_controls

_SIDE = 320
"""Pixels of a picture's longer side: a notebook keeps what it shows."""
COLOURS = {"pass": "#0072B2", "review": "#7A5C00", "reject": "#B34700"}
"""Of verdicts, which always stand there as words too; those of the report."""


def panel(
    title: str,
    lines: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    *,
    colour: str = "inherit",
    picture: Image.Image | None = None,
) -> str:
    """A heading, lines, a table and a picture, as HTML; all texts are escaped, as they may come from file names.

    Args:
        title: the heading.
        lines: sentences beneath it.
        rows: cells of the table; the first of a row is its head.
        colour: of the heading.
        picture: is shown small, as part of the HTML.

    Example:
        >>> panel("reject", ["a<b>.png"])
        '<div><strong style="color: inherit">reject</strong><div>a&lt;b&gt;.png</div></div>'
    """
    parts = [
        f'<strong style="color: {colour}">{_text(title)}</strong>',
        *(f"<div>{_text(line)}</div>" for line in lines),
    ]
    if rows:
        parts.append(f"<table>{''.join(map(_row, rows))}</table>")
    if picture is not None:
        parts.append(_embedded(picture))
    return f"<div>{''.join(parts)}</div>"


def _text(text: str) -> str:
    return escape(without_controls(text))


def _row(cells: Sequence[str]) -> str:
    head, *values = (_text(cell) for cell in cells)
    inner = "".join(f'<td style="text-align: left">{value}</td>' for value in values)
    return f'<tr><th style="text-align: left">{head}</th>{inner}</tr>'


def _embedded(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="overlay" width="{small.width}" height="{small.height}" src="data:image/png;base64,{content}">'
