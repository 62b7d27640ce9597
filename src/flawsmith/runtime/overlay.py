"""A picture of an inspection: the image, the map's heat on one fixed scale, and the regions' outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.image import ImageArray, as_8_bit
from flawsmith.runtime.regions import Region, label

# Dark red over orange and yellow to white; light rises all the way, so it reads in grey and by the
# colour-blind too.
_ANCHORS = np.array([(96, 0, 24), (190, 24, 24), (240, 110, 20), (252, 205, 60), (255, 255, 235)], np.float64)
_STEPS = 256
COLOURS: NDArray[np.uint8] = np.stack(
    [np.interp(np.linspace(0, len(_ANCHORS) - 1, _STEPS), np.arange(len(_ANCHORS)), band) for band in _ANCHORS.T],
    axis=1,
).astype(np.uint8)
"""Colours of the heat from the coolest to the hottest, (256, 3)."""

_OUTLINE = np.array((0, 229, 255), np.uint8)
_VISIBLE_FROM, _OPAQUE_FROM, _HOTTEST = 0.5, 1.0, 2.0
_OPACITY = 0.6
_STRIP_PIXELS = 2**20
"""Pixels that are drawn at a time: their floating-point values take 50 bytes each."""


def heat(anomaly_map: NDArray[np.float32], map_limit: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Puts a map on the scale of its limit: 1 at the limit, 0 one limit's size below it, 2 one above.

    For a positive limit that is ``map / limit``. The scale depends on the limit alone: the map of a good part
    stays low, where scaling each image by its own extremes would make noise look like a flaw.

    Args:
        anomaly_map: (height, width).
        map_limit: `Decision.map_limit`, or (height, width) the limit of each pixel's zone.

    Returns:
        (height, width) float32.

    Example:
        >>> heat(np.array([[0.0, 2.0, 4.0]], np.float32), 2.0).tolist()
        [[0.0, 1.0, 2.0]]
    """
    size: Any = abs(map_limit)
    size = np.where(size, size, 1.0) if isinstance(size, np.ndarray) else size or 1.0
    return np.asarray(1.0 + (anomaly_map - map_limit) / size, np.float32)


def draw_overlay(
    image: ImageArray,
    anomaly_map: NDArray[np.float32],
    regions: Sequence[Region],
    map_limit: float,
    *,
    value_range: tuple[float, float] | None = None,
    zones: tuple[NDArray[np.uint8], Sequence[float]] | None = None,
) -> Image.Image:
    """Draws the heat over the image, clear up to half the limit, and outlines the regions.

    Beside image and map this takes 8 bytes a pixel, where regions cover the image 13 (thousands of specks: 20).

    Args:
        image: (height, width, 3) RGB, uint8 or uint16.
        anomaly_map: (height, width).
        regions: those to outline.
        map_limit: `Decision.map_limit`.
        value_range: `Geometry.value_range`: values of a uint16 image that are shown black and white; None: 0 and
            65535.
        zones: (height, width) number of each pixel's zone, and by how much the limits of zones 0, 1, ... lie above
            ``map_limit``; None: there are none.

    Returns:
        An RGB picture of the image's size.

    Raises:
        ValueError: image and map differ in size.
    """
    if image.shape[:2] != anomaly_map.shape:
        raise ValueError(f"the image is {image.shape[:2]}, the map {anomaly_map.shape}")
    height, width = anomaly_map.shape
    picture = np.empty((height, width, 3), np.uint8)
    above = np.empty(anomaly_map.shape, bool) if regions else None
    offsets = np.zeros(256)
    if zones is not None:
        offsets[: len(zones[1])] = zones[1]
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(top, top + rows)
        offset = 0.0 if zones is None else offsets[zones[0][strip]]
        if above is not None:
            above[strip] = anomaly_map[strip] - offset > map_limit
        level = heat(anomaly_map[strip], map_limit + offset)
        colour_index = np.clip(
            (level - _VISIBLE_FROM) / (_HOTTEST - _VISIBLE_FROM) * (_STEPS - 1), 0, _STEPS - 1
        ).astype(np.intp)
        opacity = _OPACITY * np.clip((level - _VISIBLE_FROM) / (_OPAQUE_FROM - _VISIBLE_FROM), 0, 1)[..., None]
        base = as_8_bit(image[strip], value_range)
        picture[strip] = np.rint(base * (1 - opacity) + COLOURS[colour_index] * opacity).astype(np.uint8)
    if above is not None:
        picture[_outlines(above, regions)] = _OUTLINE
    return Image.fromarray(picture)


def _outlines(above: NDArray[np.bool_], regions: Sequence[Region]) -> NDArray[np.bool_]:
    """(height, width): a line around the listed regions, just outside of them, about 1/300 of the image
    thick."""
    labels, count = label(above)
    listed = np.zeros(count + 1, bool)
    listed[[labels[region.peak_position[1], region.peak_position[0]] for region in regions]] = True
    listed[0] = False
    inside = listed[labels]
    del labels
    grown = inside
    for _ in range(max(1, round(min(above.shape) / 300))):
        grown = _grow(grown)
    return grown & ~inside


def _grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    sideways = grown.copy()
    grown[:, 1:] |= sideways[:, :-1]
    grown[:, :-1] |= sideways[:, 1:]
    return grown
