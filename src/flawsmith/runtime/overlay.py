"""A picture of an inspection: the image, the map's heat from its limit to its peak, and the regions' outlines; and what
results show of themselves in a notebook."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flawsmith.runtime.files import without_controls
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
_FAINTEST, _DENSEST = 0.25, 0.55
"""Opacity of the coolest and of the hottest colour: the flaw stays visible beneath."""
_DASH = 1 / 60
"""Of the shorter side of a picture: how long a dash is, and a gap."""
_LEAST_SPAN = 0.1
"""Of the limit: a peak that hardly exceeds it does not look like one of twice the limit."""
_STRIP_PIXELS = 2**20
"""Pixels that are drawn at a time: their floating-point values take 50 bytes each."""
Zones = tuple[NDArray[np.uint8], Sequence[float]]
"""(height, width) number of each pixel's zone, and how far the limits of zones 0, 1, ... lie above the map's limit."""


class HeatScale(NamedTuple):
    """Map values, less the offsets of zones, at which the colours begin and end."""

    low: float
    high: float


def heat_scale(
    anomaly_map: NDArray[np.float32],
    regions: Sequence[Region],
    map_limit: float,
    *,
    zones: Zones | None = None,
    stretched: bool = False,
) -> HeatScale:
    """Where the colours of a map begin and end: at the limit, and at the map's own peak.

    A map that stays below the limit has no colour, so that a good part looks calm. Where a region is shown all the
    same, because the score rejects, the colours begin where that region does.

    Args:
        anomaly_map: (height, width).
        regions: those to outline.
        map_limit: `Decision.map_limit`.
        zones: of the map; None: there are none.
        stretched: begin half-way from the map's median to its peak, whatever the limit, to see what the map shows of a
            missed flaw.

    Example:
        >>> heat_scale(np.array([[0.0, 2.0, 8.0]], np.float32), [], 4.0)
        HeatScale(low=4.0, high=8.0)
    """
    peak = max(float(part.max()) for part in _less_offsets(anomaly_map, zones))
    if stretched:
        return _scale_to(peak, (float(np.median(anomaly_map)) + peak) / 2)
    if regions and regions[0].strangest_place:
        return _scale_to(peak, regions[0].level)
    low = map_limit if peak > map_limit or not regions else regions[0].level
    return HeatScale(low, max(peak, low + (_LEAST_SPAN * abs(map_limit) or _LEAST_SPAN)))


def _scale_to(peak: float, low: float) -> HeatScale:
    """From a value to the peak, however near they are."""
    return HeatScale(low, max(peak, low + (abs(low) * 1e-6 or 1e-6)))


def draw_overlay(
    image: ImageArray,
    anomaly_map: NDArray[np.float32],
    regions: Sequence[Region],
    map_limit: float,
    *,
    value_range: tuple[float, float] | None = None,
    zones: Zones | None = None,
    stretched: bool = False,
) -> Image.Image:
    """Draws the heat over the image, on the scale of :func:`heat_scale`, and outlines the regions.

    The outline of a strangest place is dashed.

    Beside image and map this takes 8 bytes a pixel, where regions cover the image 13 (thousands of specks: 20).

    Args:
        image: (height, width, 3) RGB, uint8 or uint16.
        anomaly_map: (height, width).
        regions: those to outline.
        map_limit: `Decision.map_limit`.
        value_range: `Geometry.value_range`: values of a uint16 image that are shown black and white; None: 0 and
            65535.
        zones: of the map; None: there are none.
        stretched: as in :func:`heat_scale`.

    Returns:
        An RGB picture of the image's size.

    Raises:
        ValueError: image and map differ in size.
    """
    if image.shape[:2] != anomaly_map.shape:
        raise ValueError(f"the image is {image.shape[:2]}, the map {anomaly_map.shape}")
    height, width = anomaly_map.shape
    picture = np.empty((height, width, 3), np.uint8)
    low, high = heat_scale(anomaly_map, regions, map_limit, zones=zones, stretched=stretched)
    rows = max(1, _STRIP_PIXELS // width)
    for top, values in zip(range(0, height, rows), _less_offsets(anomaly_map, zones), strict=True):
        strip = slice(top, top + rows)
        level = np.clip((values - low) / (high - low), 0, 1)
        opacity = np.where(level > 0, _FAINTEST + (_DENSEST - _FAINTEST) * level, 0)[..., None]
        base = as_8_bit(image[strip], value_range)
        colour_index = (level * (_STEPS - 1)).astype(np.intp)
        picture[strip] = np.rint(base * (1 - opacity) + COLOURS[colour_index] * opacity).astype(np.uint8)
    if regions:
        outlines = _outlines(anomaly_map, regions, map_limit, zones)
        if regions[0].strangest_place:
            _dash(outlines, regions[0])
        picture[outlines] = _OUTLINE
    return Image.fromarray(picture)


def with_scale(picture: Image.Image, scale: HeatScale, map_limit: float, remark: str = "") -> Image.Image:
    """The picture with a strip beneath that says what its colours mean.

    Args:
        picture: an overlay.
        scale: of its colours.
        map_limit: `Decision.map_limit`; where it is positive, the values stand there as multiples of it too.
        remark: a line beneath the strip.

    Returns:
        An RGB picture as wide as the overlay, or as the words need where that is less, and higher by the strip.
    """
    size = max(11, min(24, picture.height // 36))
    font = ImageFont.load_default(size)
    words = [f"{value:.3g}" + (f" = {value / map_limit:.2f}x limit" if map_limit > 0 else "") for value in scale]
    if scale.low == map_limit:
        words[0] = f"limit {map_limit:.3g}"
    widths = [round(font.getlength(text)) for text in words]
    gap = size // 2
    width = max(picture.width, sum(widths) + 8 * gap + 2 * size, round(font.getlength(remark)) + 2 * gap)
    rows = 2 if remark else 1
    shown = Image.new("RGB", (width, picture.height + 2 * size * rows), (255, 255, 255))
    shown.paste(picture)
    pen = ImageDraw.Draw(shown)
    middle = picture.height + size
    for text, x in zip(words, (gap, width - widths[1] - gap), strict=True):
        pen.text((x, middle), text, (29, 39, 51), font=font, anchor="lm")
    pen.text((gap, middle + 2 * size - gap), remark, (29, 39, 51), font=font, anchor="lm")
    left, right = widths[0] + 2 * gap, width - widths[1] - 2 * gap
    bar = COLOURS[np.linspace(0, _STEPS - 1, right - left).astype(np.intp)]
    shown.paste(Image.fromarray(np.repeat(bar[None], size, axis=0)), (left, middle - size // 2))
    return shown


def _less_offsets(anomaly_map: NDArray[np.float32], zones: Zones | None) -> Iterator[NDArray[Any]]:
    """The map less the offset of each pixel's zone, some rows at a time."""
    height, width = anomaly_map.shape
    offsets = np.zeros(256)
    if zones is not None:
        offsets[: len(zones[1])] = zones[1]
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(top, top + rows)
        yield anomaly_map[strip] if zones is None else anomaly_map[strip] - offsets[zones[0][strip]]


def _outlines(
    anomaly_map: NDArray[np.float32], regions: Sequence[Region], map_limit: float, zones: Zones | None
) -> NDArray[np.bool_]:
    """(height, width): a line around the listed regions, just outside of them, about 1/300 of the image thick."""
    spots = np.concatenate([part > map_limit for part in _less_offsets(anomaly_map, zones)])
    for region in regions:  # a review's spots, and the one of a map below its limit, begin lower
        x, y = region.peak_position
        if not spots[y, x]:
            spots |= anomaly_map >= region.level
    labels, count = label(spots)
    del spots
    level = np.full(count + 1, np.inf, np.float32)
    for region in regions:
        number = labels[region.peak_position[1], region.peak_position[0]]
        level[number] = min(level[number], np.float32(region.level))
    inside = np.zeros(anomaly_map.shape, bool)
    rows = max(1, _STRIP_PIXELS // anomaly_map.shape[1])
    for top in range(0, anomaly_map.shape[0], rows):
        strip = slice(top, top + rows)
        inside[strip] = anomaly_map[strip] >= level[labels[strip]]
    del labels
    grown = inside
    for _ in range(max(1, round(min(inside.shape) / 300))):
        grown = _grow(grown)
    return grown & ~inside


def _dash(outline: NDArray[np.bool_], region: Region) -> None:
    """Leaves gaps in the line around a region, evenly by angle, so that slanted stretches have them too."""
    y, x = np.nonzero(outline)
    dash = max(3.0, _DASH * min(outline.shape))
    dashes = max(4, round(math.sqrt(math.pi * region.area) / dash))
    outline[y, x] = np.sin(dashes * np.arctan2(y - region.centroid[1], x - region.centroid[0])) >= 0


def _grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    sideways = grown.copy()
    grown[:, 1:] |= sideways[:, :-1]
    grown[:, :-1] |= sideways[:, 1:]
    return grown


_NOTEBOOK_SIDE = 320
"""Pixels of a picture's longer side: a notebook keeps what it shows."""
VERDICT_COLOURS = {"pass": "#0072B2", "review": "#7A5C00", "reject": "#B34700"}
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
    small.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="overlay" width="{small.width}" height="{small.height}" src="data:image/png;base64,{content}">'
