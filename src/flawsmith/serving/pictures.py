"""Pictures for pages: a map small enough to be sent, and images that every browser shows."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from flawsmith.runtime.image import as_8_bit, decode

MOST_CELLS = 384
"""Cells of a map's longer side: networks see no more."""
_LEVELS = 65535


class HeatMap(BaseModel):
    """An anomaly map over an image, in cells that each hold the largest value of their pixels."""

    width: int = Field(description="in cells")
    height: int
    cell: int = Field(description="pixels of a cell's side; the last column and row may be cut off by the image's edge")
    low: float = Field(description="value of level 0")
    high: float = Field(description="value of level 65535")
    levels: str = Field(description="row by row, 16 bits each, the least significant byte first, base64")

    @classmethod
    def of(cls, anomaly_map: NDArray[np.float32]) -> HeatMap:
        """A map in cells.

        Args:
            anomaly_map: (height, width) in pixels of the image.

        Example:
            >>> small = HeatMap.of(np.eye(1000, dtype=np.float32))
            >>> small.width, small.cell, small.high
            (334, 3, 1.0)
        """
        cell = max(1, -(-max(anomaly_map.shape) // MOST_CELLS))
        rows, columns = (-(-side // cell) for side in anomaly_map.shape)
        padding = (rows * cell - anomaly_map.shape[0], columns * cell - anomaly_map.shape[1])
        whole = np.pad(anomaly_map, ((0, padding[0]), (0, padding[1])), mode="edge")
        cells = whole.reshape(rows, cell, columns, cell).max(axis=(1, 3)).astype(np.float64)
        low, high = float(cells.min()), float(cells.max())
        levels = np.round((cells - low) / (high - low or 1.0) * _LEVELS).astype("<u2")
        text = base64.b64encode(levels.tobytes()).decode("ascii")
        return cls(width=columns, height=rows, cell=cell, low=low, high=high, levels=text)


def scaled_jpeg(
    content: bytes, width: int, *, max_pixels: int, value_range: tuple[float, float] | None = None
) -> tuple[bytes, tuple[int, int]]:
    """An image file as a JPEG of at most some width.

    Args:
        content: of an image file that can be inspected.
        width: in pixels.
        max_pixels: larger images are refused.
        value_range: values of a deeper source that become black and white.

    Returns:
        The file, and (width, height) of the image as it came.

    Raises:
        FlawsmithError: it cannot be read.
    """
    picture = Image.fromarray(as_8_bit(decode(content, max_pixels=max_pixels), value_range))
    size = picture.size
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue(), size
