"""Where to look, from a drawing to what the limits hold for; for training and calibration alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flawsmith.data.roi import read_drawing
from flawsmith.pipeline.quantities import parse_area
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.roi import RegionOfInterest, box_of, number_zones
from flawsmith.runtime.zones import Zone


def region_and_zones(
    path: Path, image_size: tuple[int, int], *, pixel_size: float | None
) -> tuple[RegionOfInterest | None, tuple[Zone, ...]]:
    """The region of interest of a file, and its zones without limits yet.

    Args:
        path: a JSON file of polygons, or a mask image.
        image_size: (height, width) of an image to inspect.
        pixel_size: side of a pixel in millimetres; None: unknown.

    Raises:
        FlawsmithError: the file cannot be used, a smallest area is none, needs the size of a pixel, or is larger than
            its zone.
    """
    drawing = read_drawing(path, image_size)
    if not drawing.zones:
        return drawing.region, ()
    numbers = number_zones(tuple(zone.region for zone in drawing.zones), drawing.region, image_size)
    zones = []
    for number, (name, region, min_area) in enumerate(drawing.zones):
        option = f"{path}: zones.{number}.min_area"
        area = None if min_area is None else parse_area(min_area, pixel_size, option)
        pixels = int(np.count_nonzero(numbers[box_of(region, image_size)] == number))
        if area is not None and area > pixels:
            raise FlawsmithError(
                f"{option} {min_area} is {area:,} pixels, and zone {name} has {pixels:,} in these images: give a "
                "smaller one, or check --scale"
            )
        zones.append(Zone(name=name, region=region, minimum_area=area))
    return drawing.region, tuple(zones)
