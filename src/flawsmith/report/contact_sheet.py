"""A sheet of small pictures in rows, to judge at a glance what was made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CELL = 192
"""Side of the square that a picture is fitted into, pixels."""

SheetRow = tuple[Sequence[npt.NDArray[np.uint8]], str]
"""(height, width, 3) or (height, width) pictures, one a head, and the caption below them."""

_GAP = 8
_LINE = 18
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def contact_sheet(heads: Sequence[str], rows: Sequence[SheetRow], *, cell: int = CELL) -> npt.NDArray[np.uint8]:
    """Draw the sheet: heads above, a row of pictures with its caption for each sample.

    Sheets with many rows continue in further blocks to the right, so that they stay about as wide as high.

    Args:
        cell: side of the square that a picture is fitted into, pixels; small pictures are enlarged.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: no rows, or a row with another number of pictures than heads.
    """
    if not rows or any(len(pictures) != len(heads) for pictures, _ in rows):
        raise ValueError(f"a sheet needs rows of {len(heads)} pictures each")
    block, tall = len(heads) * (cell + _GAP) + _GAP, cell + _LINE + _GAP
    blocks = max(1, round((len(rows) * tall / block) ** 0.5))
    deep = -(-len(rows) // blocks)
    sheet = Image.new("RGB", (blocks * block, _LINE + 2 * _GAP + deep * tall), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for number, (pictures, caption) in enumerate(rows):
        left, top = number // deep * block + _GAP, _LINE + 2 * _GAP + number % deep * tall
        for column, (head, picture) in enumerate(zip(heads, pictures, strict=True)):
            x = left + column * (cell + _GAP)
            if number % deep == 0:
                pen.text((x, _GAP), head, _INK, font=font)
            fitted = _fitted(picture, cell)
            sheet.paste(fitted, (x + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
        pen.text((left, top + cell + 2), caption, _INK, font=font)
    return np.asarray(sheet)


def _fitted(picture: npt.NDArray[np.uint8], cell: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    scale = cell / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Enlarged pixels stay pixels; what shrinks is smoothed, or thin flaws would vanish between the rows.
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return image.resize((width, height), kind)
