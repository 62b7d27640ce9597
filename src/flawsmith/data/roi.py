"""Regions and zones as people draw them: polygons in a JSON file or a mask image, in pixels of the original."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictFloat, StrictInt, StrictStr, ValidationError

from flawsmith.data.masks import read_mask_image
from flawsmith.data.quantities import parse_area
from flawsmith.runtime.errors import FlawsmithError, why_refused
from flawsmith.runtime.files import without_controls
from flawsmith.runtime.image import MAX_PIXELS
from flawsmith.runtime.roi import (
    LONGEST_NAME,
    MOST_CORNERS,
    MOST_ZONES,
    NAME_RULE,
    Polygon,
    RegionOfInterest,
    Zone,
    ZoneName,
    box_of,
    number_zones,
)

_ASPECT_TOLERANCE = 0.01
_LARGEST_FILE = 2**22
_Corners = tuple[tuple[FiniteFloat, FiniteFloat], ...]
_Side = Annotated[int, Field(ge=1, le=10**6)]


class _ZoneDrawing(BaseModel):
    """A zone's polygons."""

    model_config = ConfigDict(extra="forbid")

    name: ZoneName
    include: tuple[_Corners, ...] = Field(min_length=1)
    exclude: tuple[_Corners, ...] = ()
    min_area: StrictStr | StrictInt | StrictFloat | None = None


class _Drawing(BaseModel):
    """Polygons on an image, in its pixels."""

    model_config = ConfigDict(extra="forbid")

    width: _Side
    height: _Side
    include: tuple[_Corners, ...] = ()
    exclude: tuple[_Corners, ...] = ()
    zones: tuple[_ZoneDrawing, ...] = Field(default=(), max_length=MOST_ZONES)


def read_drawing(
    path: Path, image_size: tuple[int, int] | None = None, *, pixel_size: float | None = None
) -> tuple[RegionOfInterest | None, tuple[Zone, ...]]:
    """Read a region of interest, None where everything is inspected, and its zones, without limits yet.

    A JSON file holds the ``width`` and ``height`` of the image that it was drawn on and, in ``include`` and
    ``exclude``, polygons of corners ``[x, y]`` in its pixels, from 0 to the width or height; ``zones`` holds objects
    with a ``name``, polygons likewise, and perhaps a ``min_area``. In a mask image what is white is inspected. Images
    of another size are covered in proportion.

    Args:
        image_size: (height, width) of the images to inspect, which must have the same proportions; None: not checked.
        pixel_size: side of a pixel in millimetres; None: unknown.

    Raises:
        FlawsmithError: the file cannot be read, is neither, says nothing, or was drawn on images of other proportions;
            or two zones have the same name, or one has no pixel, or a smallest area that is none, needs the size of a
            pixel, or is larger than the zone.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        raise FlawsmithError(
            f"there is no file {path}: a region of interest is a JSON file of polygons or a mask image"
        )
    if path.suffix.lower() == ".json":
        polygons = _read_drawing(path)
        size = (polygons.height, polygons.width)
        region, zones = _relative(polygons, path)
        areas = [zone.min_area for zone in polygons.zones]
    else:
        marked = read_mask_image(path).marked
        size = (marked.shape[0], marked.shape[1])
        try:
            region, zones, areas = RegionOfInterest.from_mask(marked), (), []
        except FlawsmithError as error:
            raise FlawsmithError(f"{path}: {error}") from None
    if region is not None and not region.to_mask(size).any():
        raise FlawsmithError(f"{path}: nothing is left to inspect; the excluded areas cover all that is included")
    _check_zones(path, region, zones, size)
    if image_size is not None:
        _check_proportions(path, size, image_size)
    if not zones:
        return region, ()
    inspected = image_size or size
    numbers = number_zones(tuple(zone.region for zone in zones), region, inspected)
    with_areas = []
    for number, (zone, written) in enumerate(zip(zones, areas, strict=True)):
        option = f"{path}: zones.{number}.min_area"
        area = None if written is None else parse_area(written, pixel_size, option)
        pixels = int(np.count_nonzero(numbers[box_of(zone.region, inspected)] == number))
        if area is not None and area > pixels:
            raise FlawsmithError(
                f"{option} {written} is {area:,} pixels, and zone {zone.name} has {pixels:,} in these images: give a "
                "smaller one, or check --scale"
            )
        with_areas.append(zone.model_copy(update={"minimum_area": area}))
    return region, tuple(with_areas)


def _check_zones(path: Path, region: RegionOfInterest | None, zones: tuple[Zone, ...], size: tuple[int, int]) -> None:
    """Raises:
    FlawsmithError: two zones have the same name, or one has no pixel of its own.
    """
    names = [zone.name for zone in zones]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise FlawsmithError(f"{path}: two zones are called {name}: give each a name of its own")
    regions = tuple(zone.region for zone in zones)
    if sum(part.corners for part in (*regions, *([region] if region else []))) > MOST_CORNERS:
        raise FlawsmithError(
            f"{path}: region and zones have more than {MOST_CORNERS:,} corners together: draw them coarser"
        )
    numbers = number_zones(regions, region, size) if regions else None
    for number, name in enumerate(names):
        if numbers is None or (numbers == number).any():
            continue
        if (numbers < number)[regions[number].to_mask(size)].any():
            raise FlawsmithError(
                f"{path}: zone {name} is covered by the zones before it, of which the first has a pixel: put it first"
            )
        raise FlawsmithError(f"{path}: zone {name} lies outside of the region of interest: draw it inside")


def _read_drawing(path: Path) -> _Drawing:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise FlawsmithError(f"{path}: too large for a file of polygons: give a mask image instead")
        value: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise FlawsmithError(f"{path}: cannot be read ({error.strerror}); check the rights to it") from None
    except (ValueError, RecursionError):
        raise FlawsmithError(f"{path}: no valid JSON; {_EXAMPLE}") from None
    try:
        drawing = _Drawing.model_validate(value)
    except ValidationError as error:
        raise FlawsmithError(f"{path}: {_fault(error.errors()[0], value)}") from None
    if drawing.width * drawing.height > MAX_PIXELS:
        raise FlawsmithError(
            f"{path}: {drawing.width} x {drawing.height} is larger than any image that can be inspected; write the "
            "width and height of the image that it was drawn on"
        )
    return drawing


_EXAMPLE = 'write for example {"width": 800, "height": 600, "include": [[[10, 10], [790, 10], [790, 590]]]}'
_ZONE_EXAMPLE = 'write a zone for example as {"name": "seal", "include": [[[10, 10], [790, 10], [790, 590]]]}'
_PARTS_OF_POLYGONS = {1: "must be a polygon, a list of corners", 2: "must be a corner, two numbers [x, y]"}
"""What is wrong by how deep it lies in a list of polygons."""


def _fault(error: Mapping[str, Any], value: Any) -> str:
    """Where in a file the first fault lies, what it is, and what to write instead."""
    place = list(error["loc"])
    is_in_zone = len(place) > 1 and place[0] == "zones"
    start = 2 if is_in_zone else 0
    zone = value["zones"][place[1]] if is_in_zone else None
    name = zone.get("name") if isinstance(zone, dict) else None
    title = f" (zone {without_controls(name)})" if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME else ""
    field, depth = "".join(place[start : start + 1]), len(place) - start - 1

    def fault(parts: int, words: str, example: str = _ZONE_EXAMPLE if is_in_zone else _EXAMPLE) -> str:
        return f"{without_controls('.'.join(map(str, place[:parts])))}{title} {words}; {example}"

    if field in ("include", "exclude") and depth > 0:
        depth = min(depth, max(_PARTS_OF_POLYGONS))
        return fault(start + 1 + depth, _PARTS_OF_POLYGONS[depth])
    if field == "include" and error["type"] == "too_short":
        return fault(start + 1, "has no polygon")
    if field == "min_area":
        return fault(start + 1, 'must be a number of pixels, or an area such as "0.2mm2"')
    if field == "name" and error["type"] != "missing":
        return fault(start + 1, f"is not possible: {NAME_RULE}")
    if place == ["zones"] and error["type"] == "too_long":
        return f"{why_refused(error, 'zones')}: join some, for a zone may have several polygons"
    if error["type"] == "extra_forbidden":
        known = ", ".join((_ZoneDrawing if is_in_zone else _Drawing).model_fields)
        return fault(len(place), f"is not known here, but {known} are")
    if not place:
        return f"{why_refused(error, 'the file')}; {_EXAMPLE}"
    return fault(len(place), why_refused(error, "").strip())


def _relative(drawing: _Drawing, path: Path) -> tuple[RegionOfInterest | None, tuple[Zone, ...]]:
    width, height = drawing.width, drawing.height

    def scaled(polygons: tuple[_Corners, ...], name: str) -> tuple[Polygon, ...]:
        for number, corners in enumerate(polygons):
            if len(corners) < 3:
                raise FlawsmithError(
                    f"{path}: {name}.{number} has {len(corners)} corners, and a polygon needs at least three corners"
                )
            for x, y in corners:
                if not (0 <= x <= width and 0 <= y <= height):
                    raise FlawsmithError(
                        f"{path}: {name}.{number} has the corner [{x:g}, {y:g}], which lies outside of {width} x "
                        f"{height}; corners are pixels of the original image"
                    )
        return tuple(tuple((x / width, y / height) for x, y in corners) for corners in polygons)

    def region(polygons: _Drawing | _ZoneDrawing, place: str) -> RegionOfInterest:
        include, exclude = (scaled(getattr(polygons, name), f"{place}{name}") for name in ("include", "exclude"))
        try:
            return RegionOfInterest(include=include, exclude=exclude)
        except ValidationError as error:
            raise FlawsmithError(f"{path}: {why_refused(error.errors()[0])}") from None

    if not (drawing.include or drawing.exclude or drawing.zones):
        raise FlawsmithError(f"{path}: it says nothing of where to look: draw include, exclude or zones; {_EXAMPLE}")
    says_nothing_else = not (drawing.include or drawing.exclude) and drawing.zones
    zones = tuple(
        Zone(name=zone.name, region=region(zone, f"zones.{number}.")) for number, zone in enumerate(drawing.zones)
    )
    return None if says_nothing_else else region(drawing, ""), zones


def _check_proportions(path: Path, drawn_on: tuple[int, int], image: tuple[int, int]) -> None:
    ratio = (drawn_on[1] / drawn_on[0]) / (image[1] / image[0])
    if abs(ratio - 1) > _ASPECT_TOLERANCE:
        raise FlawsmithError(
            f"{path} was drawn on {drawn_on[1]} x {drawn_on[0]}, the images have {image[1]} x {image[0]}: draw it on "
            "one of them"
        )
