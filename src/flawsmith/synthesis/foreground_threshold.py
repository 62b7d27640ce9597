"""Foregrounds by a threshold: on grey or on one colour, smoothed before and tidied after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.synthesis.foreground_files import through_geometry
from flawsmith.synthesis.overlay import Image, Mask
from flawsmith.synthesis.separation import blurred

Channel = Literal["grey", "red", "green", "blue"]

Kernel = tuple[int, int]
"""Rows and columns of a rectangle, in pixels of an image of 256 x 256; scaled with the image, one pixel at least."""

KERNEL_SIDE = 256


@dataclass(frozen=True)
class ThresholdForeground:
    """Pixels above a level after smoothing (the script of AAND; the released simulation of SLSG).

    Attributes:
        sigma: of the Gaussian, in pixels of an image with a shorter side of 1024.
        level: of the channel, 0..255.
        inverted: pixels up to the level instead.
        pixels: of the ``input``, or of the ``file`` at its own size, where sigma is in its pixels.
        channel: what is compared with the level.
        erosion: rectangle by which the mask shrinks first; (1, 1) changes nothing.
        dilation: rectangle by which it then grows; (1, 1) changes nothing.
        kept: share of the rows, from the top, and of the columns, from the left, that may be foreground.
    """

    sigma: float
    level: float
    inverted: bool
    pixels: Literal["input", "file"] = "input"
    channel: Channel = "grey"
    erosion: Kernel = (1, 1)
    dilation: Kernel = (1, 1)
    kept: tuple[float, float] = (1.0, 1.0)
    reason: None = None

    def fit(self, images: Iterable[Image]) -> ThresholdForeground:
        """Nothing to decide."""
        return self

    def __call__(self, image: Image, path: Path | None = None, geometry: Geometry | None = None) -> Mask:
        """The pixels on the right side of the level."""
        if self.pixels == "input" or path is None or geometry is None:
            return self._mask(blurred(self._values(image), self.sigma) * 255)
        values = self._values(as_8_bit(decode(path), geometry.value_range))
        smooth = cv2.GaussianBlur(values, (0, 0), self.sigma) if self.sigma else values
        nearest = geometry.policy == "squash"
        return through_geometry(self._mask(smooth), geometry, resampling="nearest" if nearest else "bilinear")

    def _values(self, image: NDArray[Any]) -> NDArray[np.float32]:
        if self.channel == "grey":
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)
        return np.ascontiguousarray(image[:, :, ("red", "green", "blue").index(self.channel)], np.float32)

    def _mask(self, values: NDArray[Any]) -> Mask:
        above: Mask = values > self.level
        mask = ~above if self.inverted else above
        mask = _changed(_changed(mask, self.erosion, cv2.erode), self.dilation, cv2.dilate)
        height, width = mask.shape
        mask[round(self.kept[0] * height) :] = False
        mask[:, round(self.kept[1] * width) :] = False
        return mask


def _changed(mask: Mask, kernel: Kernel, change: Any) -> Mask:
    """The mask eroded or dilated; beyond the image's border lies what changes nothing."""
    rows, columns = (max(1, round(size * side / KERNEL_SIDE)) for size, side in zip(kernel, mask.shape, strict=True))
    if kernel == (1, 1):
        return mask
    return np.asarray(change(mask.astype(np.uint8), np.ones((rows, columns), np.uint8)), bool)
