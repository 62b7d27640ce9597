"""Where to look: a region of interest in relative coordinates, and zones of a part that have limits of their own."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

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


ELSEWHERE = "elsewhere"
"""What is inspected and lies in no zone."""

MOST_ZONES = 100
"""An image's zones are numbered in one byte a pixel, and files come from strangers."""
LARGEST_OFFSET = 4e30
"""Twice the span of two limits that lie as far apart as limits can."""


LONGEST_NAME = 60
NAME_RULE = f"a zone's name is 1 to {LONGEST_NAME} printable characters, without spaces around, and not {ELSEWHERE}"


def _named(name: str) -> str:
    if not name.isprintable() or name != name.strip() or name.casefold() == ELSEWHERE:
        raise ValueError(NAME_RULE)
    return name


ZoneName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_named)]


class Zone(BaseModel):
    """A part of the image that has a limit of its own.

    Example:
        >>> corners = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
        >>> Zone(name="sealing face", region=RegionOfInterest(include=[corners]), minimum_area=4).offset
        0.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ZoneName
    region: RegionOfInterest = Field(description="where it is; of several zones the first that holds a pixel has it")
    minimum_area: int | None = Field(
        default=None, ge=1, le=10**12, description="smallest region that counts there; None: that of the whole image"
    )
    offset: FiniteFloat = Field(
        default=0.0, ge=-LARGEST_OFFSET, le=LARGEST_OFFSET, description="its limit less the map's limit"
    )


def zone_limits(
    levels: NDArray[np.float64], names: tuple[str, ...], rank: int, no_level: float
) -> tuple[float, tuple[float, ...], int, bool]:
    """Sets a limit in each zone so that all of them together reject as many good parts as one limit of that rank.

    Args:
        levels: (n, zones + 1) levels of good images in each zone, and elsewhere.
        names: of the zones.
        rank: of the limit that one order of the images would have, from 1, the largest.
        no_level: the level where no region can be so large, or nothing is inspected.

    Returns:
        The limit elsewhere, or of the first zone where nothing lies elsewhere; of each zone, by how much its limit
        lies above that one; the number of blocks that all limits together cut off, no smaller than that of the zones,
        because each takes an image; and whether anything of the images lies in no zone.

    Raises:
        FlawsmithError: nothing can be rejected in a zone, or there are fewer images than zones.
    """
    barred = levels <= no_level
    elsewhere = not barred[:, -1].all()
    parts = levels if elsewhere else levels[:, :-1]
    for name, column in zip((*names, ELSEWHERE), barred[:, : parts.shape[1]].T, strict=False):
        if column.any():
            raise FlawsmithError(
                f"zone {name}: the smallest area is larger than what is inspected of the zone: give it a smaller "
                "min_area, or draw it larger"
            )
    n, zones = parts.shape
    if n < zones:
        raise FlawsmithError(
            f"{zones} zones, {ELSEWHERE} included, take a good image each, and there {'is' if n == 1 else 'are'} {n}: "
            "give more good images, or draw fewer zones"
        )
    rank = max(rank, zones)
    limits = equivalent_blocks(parts, rank).tolist()
    map_limit = limits[-1] if elsewhere else limits[0]
    offsets = tuple(_offset(limit, map_limit) for limit in limits[: levels.shape[1] - 1])
    return map_limit, offsets, rank, elsewhere


def _offset(limit: float, map_limit: float) -> float:
    """The difference, rounded so that what lies at the zone's limit is not above the map's."""
    offset = limit - map_limit
    return offset if limit - offset <= map_limit else math.nextafter(offset, math.inf)


def equivalent_blocks(levels: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Limits of several numbers of each image that together reject a share known beforehand.

    Blocks are cut off in turn, one number after the other and from the first again: the limit of a number is its
    largest value among the images that are left, and that image is cut off. The share of further images that exceed any
    of the limits follows Beta(count, n + 1 − count), whatever the numbers' distributions and however they depend on
    each other, or lies below where values are tied: the law of the count-th largest of one number.

    Args:
        levels: (n, numbers) of n images, such as the levels in each zone.
        count: blocks to cut off, from the number of numbers to n.

    Returns:
        (numbers,) limits; what lies at a limit does not exceed it.

    Source:
        Wald, An extension of Wilks' method for setting tolerance limits, Ann. Math. Stat. 1943; Tukey, Non-parametric
        estimation II: statistically equivalent blocks and tolerance regions, Ann. Math. Stat. 1947.

    Example:
        >>> equivalent_blocks(np.array([[9.0, 1.0], [8.0, 7.0], [2.0, 6.0], [3.0, 5.0]]), 3).tolist()
        [3.0, 7.0]
    """
    n, numbers = levels.shape
    orders = np.argsort(-levels, axis=0, kind="stable").T.tolist()
    limits, left, places = np.empty(numbers), [True] * n, [0] * numbers
    for block in range(count):
        number = block % numbers
        order = orders[number]
        while not left[order[places[number]]]:
            places[number] += 1
        image = order[places[number]]
        limits[number], left[image] = levels[image, number], False
    return limits


def highest_below(limit: float, offset: float) -> float:
    """The largest value that, less an offset, is not above a limit, as computers subtract.

    With it a map is compared once, where every pixel less the offset would be another map; both ways agree to the last
    digit.

    Args:
        limit: on values less the offset.
        offset: to be taken off.

    Example:
        >>> highest_below(0.5, 0.25)
        0.75
    """
    if offset == 0:
        return limit
    around = 4 * math.ulp(max(abs(limit), abs(offset)))
    low, high = limit + offset - around, limit + offset + around
    while True:
        middle = low + (high - low) / 2
        if middle in (low, high):
            return low
        low, high = (low, middle) if middle - offset > limit else (middle, high)
