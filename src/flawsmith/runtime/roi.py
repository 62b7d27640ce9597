"""Where to look: a region of interest in relative coordinates, from polygons or from a mask image."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.formats import open_image

Polygon = tuple[tuple[FiniteFloat, FiniteFloat], ...]
"""Corners (x, y) from 0 to 1: 0 is the left or upper edge of the image, 1 the right or lower one."""

MOST_CORNERS = 10_000
"""Of all polygons of a region together: drawing them takes time by their number, and files come from strangers."""
MOST_MASK_PIXELS = 2**26
_LONGEST_MASK = 2**18  # characters
_PIXELS_AT_ONCE = 2**20


class RegionOfInterest(BaseModel):
    """What of an image is inspected.

    A pixel is inspected where it lies in any polygon of ``include`` (or there is none), in the white of ``mask`` (or
    there is none), and in no polygon of ``exclude``.

    Example:
        >>> upper_half = RegionOfInterest(include=[[(0, 0), (1, 0), (1, 0.5), (0, 0.5)]])
        >>> upper_half.to_mask((4, 2)).astype(int).tolist()
        [[1, 1], [1, 1], [0, 0], [0, 0]]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[Polygon, ...] = Field(default=(), description="polygons to inspect; none: all")
    exclude: tuple[Polygon, ...] = Field(default=(), description="polygons to leave out")
    mask: str | None = Field(
        default=None,
        max_length=_LONGEST_MASK,
        description="a PNG of black and white pixels in base64: what is white is inspected; None: all",
    )

    @model_validator(mode="after")
    def _check(self) -> RegionOfInterest:
        if self.corners > MOST_CORNERS:
            raise ValueError(
                f"the polygons of the region of interest have {self.corners:,} corners together, more than "
                f"{MOST_CORNERS:,}: draw them coarser, or give a mask image"
            )
        for polygon in (*self.include, *self.exclude):
            if len(polygon) < 3:
                raise ValueError("a polygon of the region of interest needs at least three corners")
            if any(not 0 <= value <= 1 for corner in polygon for value in corner):
                raise ValueError("corners of the region of interest are relative: from 0 to 1")
        if not (self.include or self.exclude or self.mask):
            raise ValueError("an empty region of interest says nothing; leave it out")
        if self.mask is not None:
            _decode_mask(self.mask)
        return self

    @property
    def corners(self) -> int:
        """Number of corners of all its polygons together."""
        return sum(len(polygon) for polygon in (*self.include, *self.exclude))

    @classmethod
    def from_mask(cls, marked: NDArray[np.bool_]) -> RegionOfInterest:
        """The region of a mask image.

        Args:
            marked: (height, width), True where to inspect.

        Raises:
            FlawsmithError: nothing is marked, or the mask is too large or too ragged to be stored.
        """
        if not marked.any():
            raise FlawsmithError("the mask is black everywhere: paint what to inspect white")
        height, width = marked.shape
        if marked.size > MOST_MASK_PIXELS:
            raise FlawsmithError(f"the mask of {width} x {height} is too large: scale it down")
        stream = io.BytesIO()
        Image.fromarray(marked).save(stream, format="PNG", optimize=True)
        text = base64.b64encode(stream.getvalue()).decode()
        if len(text) > _LONGEST_MASK:
            raise FlawsmithError("the mask has too many small spots to be stored: paint larger areas, or draw polygons")
        return cls(mask=text)

    def to_mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The region in an image of some size.

        Args:
            size: (height, width) of the image, pixels.

        Returns:
            (height, width), True where inspected; read-only, for the last that was drawn is kept.
        """
        return _drawn(self, size)


@functools.lru_cache(1)  # a mask is as large as a channel of the image
def _drawn(region: RegionOfInterest, size: tuple[int, int]) -> NDArray[np.bool_]:
    inspected = _draw(region, size)
    inspected.flags.writeable = False
    return inspected


def _draw(
    region: RegionOfInterest,
    size: tuple[int, int],
    box: tuple[slice, slice] | None = None,
    canvas: Image.Image | None = None,
) -> NDArray[np.bool_]:
    """A region within a box that holds all of it, by default the image.

    Pillow draws on a canvas of the image's size, for it rounds corners by where they lie. A black one may be given, and
    is black again afterwards, so that many small regions take no time for what lies around them.
    """
    height, width = size
    rows, columns = box or (slice(0, height), slice(0, width))
    edges = (columns.start, rows.start, columns.stop, rows.stop)
    inspected = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
    if region.mask is not None:
        _keep_white(inspected, _decode_mask(region.mask).resize(size[::-1], Image.Resampling.NEAREST), edges)
    if region.include or region.exclude:
        canvas = canvas or Image.new("L", (width, height))
        if not region.include:
            canvas.paste(1, edges)
        _fill(canvas, region.include, 1)
        _fill(canvas, region.exclude, 0)
        _keep_white(inspected, canvas, edges)
        canvas.paste(0, edges)
    return inspected


OUTSIDE = 255
"""Number of the pixels that no zone and nothing elsewhere holds."""


@functools.lru_cache(1)  # as large as a channel of the image
def number_zones(
    zones: tuple[RegionOfInterest, ...], interest: RegionOfInterest | None, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Which zone of an image each pixel is in.

    Args:
        zones: fewer than 255; of those that hold a pixel the first has it.
        interest: what is inspected at all; None: everything.
        size: (height, width) of the image, pixels.

    Returns:
        (height, width): 0, 1, ... by zone, the number of zones elsewhere, `OUTSIDE` outside of the region of interest;
        read-only, for the last that was drawn is kept.

    Example:
        >>> left = RegionOfInterest(include=[[(0, 0), (0.5, 0), (0.5, 1), (0, 1)]])
        >>> number_zones((left,), None, (2, 4)).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    numbers = np.full(size, len(zones), np.uint8)
    canvas = Image.new("L", size[::-1])
    for number in reversed(range(len(zones))):  # so that the first is drawn over the others
        box = box_of(zones[number], size)
        np.copyto(numbers[box], np.uint8(number), where=_draw(zones[number], size, box, canvas))
    if interest is not None:
        outside = _draw(interest, size, canvas=canvas)
        np.copyto(numbers, np.uint8(OUTSIDE), where=np.logical_not(outside, out=outside))
    numbers.flags.writeable = False
    return numbers


def box_of(region: RegionOfInterest, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of an image outside of which a region has no pixel; not always the fewest.

    Args:
        region: the region.
        size: (height, width) of the image, pixels.

    Example:
        >>> box_of(RegionOfInterest(include=[[(0.2, 0.2), (0.5, 0.2), (0.5, 0.4)]]), (100, 100))
        (slice(18, 42, None), slice(18, 52, None))
    """
    height, width = size
    corners = np.array([corner for polygon in region.include for corner in polygon] or [(0.0, 0.0), (1.0, 1.0)])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    # Pillow draws a polygon's last row and column too, and version 10 a column before its first.
    rows = slice(max(0, math.floor(top * height) - 2), min(height, math.ceil(bottom * height) + 2))
    return rows, slice(max(0, math.floor(left * width) - 2), min(width, math.ceil(right * width) + 2))


def _keep_white(inspected: NDArray[np.bool_], picture: Image.Image, edges: tuple[int, int, int, int]) -> None:
    """Takes out what a picture shows black within left, upper, right and lower edges.

    Piece by piece, for Pillow copies what numpy reads.
    """
    left, upper, right, lower = edges
    rows = max(_PIXELS_AT_ONCE // max(right - left, 1), 1)
    for top in range(upper, lower, rows):
        bottom = min(top + rows, lower)
        piece = np.asarray(picture.crop((left, top, right, bottom))).astype(bool)
        inspected[top - upper : bottom - upper] &= piece


def _decode_mask(text: str) -> Image.Image:
    """The picture of a mask.

    Raises:
        ValueError: it is no PNG of black and white pixels, or too large a one.
    """
    try:
        content = base64.b64decode(text, validate=True)
        picture = open_image(io.BytesIO(content), "the mask of the region of interest", MOST_MASK_PIXELS)
        if picture.format != "PNG" or picture.mode != "1":
            raise ValueError(picture.format, picture.mode)
        picture.load()
    except Exception as error:  # Pillow answers odd bytes with nearly every exception there is
        raise ValueError("the mask of the region of interest is no intact PNG of black and white pixels") from error
    return picture


def _fill(canvas: Image.Image, polygons: Sequence[Polygon], ink: int) -> None:
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        # Pixel centres lie at whole numbers for Pillow, at halves for us.
        draw.polygon([(x * canvas.width - 0.5, y * canvas.height - 0.5) for x, y in polygon], fill=ink)
