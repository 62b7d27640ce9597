"""Regions of interest as people draw them: polygons in a JSON file or a mask image, in pixels of the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from flawsmith.data.masks import read_mask_image
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.roi import Polygon, RegionOfInterest

_ASPECT_TOLERANCE = 0.01
_LARGEST_FILE = 2**22
_Corners = tuple[tuple[FiniteFloat, FiniteFloat], ...]
_Side = Annotated[int, Field(ge=1, le=10**6)]


class _Drawing(BaseModel):
    """Polygons on an image, in its pixels."""

    model_config = ConfigDict(extra="forbid")

    width: _Side
    height: _Side
    include: tuple[_Corners, ...] = ()
    exclude: tuple[_Corners, ...] = ()


def read_region_of_interest(path: Path, image_size: tuple[int, int] | None = None) -> RegionOfInterest:
    """Read a region of interest.

    A JSON file holds the ``width`` and ``height`` of the image that it was drawn on and, in ``include`` and
    ``exclude``, polygons of corners ``[x, y]`` in its pixels, from 0 to the width or height. In a mask image what is
    white is inspected. Images of another size are covered in proportion.

    Args:
        path: the file.
        image_size: (height, width) of the images to inspect, which must have the same proportions; None: not checked.

    Raises:
        FlawsmithError: the file cannot be read, is neither, says nothing, or was drawn on images of other proportions.
    """
    if not path.is_file():
        raise FlawsmithError(
            f"there is no file {path}: a region of interest is a JSON file of polygons or a mask image"
        )
    if path.suffix.lower() == ".json":
        drawing = _read_drawing(path)
        size = (drawing.height, drawing.width)
        region = _relative(drawing, path)
    else:
        marked = read_mask_image(path).marked
        size = (marked.shape[0], marked.shape[1])
        try:
            region = RegionOfInterest.from_mask(marked)
        except FlawsmithError as error:
            raise FlawsmithError(f"{path}: {error}") from None
    if not region.to_mask(size).any():
        raise FlawsmithError(f"{path}: nothing is left to inspect; the excluded areas cover all that is included")
    if image_size is not None:
        _check_proportions(path, size, image_size)
    return region


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
        return _Drawing.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FlawsmithError(f"{path}: {place}: {first['msg'].lower()}; {_EXAMPLE}") from None


_EXAMPLE = 'write for example {"width": 800, "height": 600, "include": [[[10, 10], [790, 10], [790, 590]]]}'


def _relative(drawing: _Drawing, path: Path) -> RegionOfInterest:
    width, height = drawing.width, drawing.height

    def scaled(polygons: tuple[_Corners, ...], name: str) -> tuple[Polygon, ...]:
        for number, corners in enumerate(polygons):
            for x, y in corners:
                if not (0 <= x <= width and 0 <= y <= height):
                    raise FlawsmithError(
                        f"{path}: {name}.{number} has the corner [{x:g}, {y:g}], which lies outside of {width} x "
                        f"{height}; corners are pixels of the original image"
                    )
        return tuple(tuple((x / width, y / height) for x, y in corners) for corners in polygons)

    try:
        return RegionOfInterest(include=scaled(drawing.include, "include"), exclude=scaled(drawing.exclude, "exclude"))
    except ValidationError as error:
        raise FlawsmithError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _check_proportions(path: Path, drawn_on: tuple[int, int], image: tuple[int, int]) -> None:
    ratio = (drawn_on[1] / drawn_on[0]) / (image[1] / image[0])
    if abs(ratio - 1) > _ASPECT_TOLERANCE:
        raise FlawsmithError(
            f"{path} was drawn on {drawn_on[1]} x {drawn_on[0]}, the images have {image[1]} x {image[0]}: draw it on "
            "one of them"
        )
