"""Rates, areas, lengths and extents as people write them: ``10/1000``, ``0.2mm2``, ``0.05mm``, ``12px``."""

from __future__ import annotations

import math
import re

from flawsmith.runtime.errors import FlawsmithError

_NUMBER = r"(?P<number>[0-9]+(?:[.,][0-9]+)?(?:[eE][-+]?[0-9]+)?)"
_AREA = re.compile(_NUMBER + r"\s*(?P<unit>mm2|mm²|mm\^2|px|pixels?|)")
_LENGTH = re.compile(_NUMBER + r"\s*(?P<unit>mm|um|µm|μm|)")
_EXTENT = re.compile(_NUMBER + r"\s*(?P<unit>mm|um|µm|μm|px|pixels?|)")
_PARTS = re.compile(r"(?P<of>[0-9]+(?:\.[0-9]+)?)\s*/\s*(?P<all>[0-9]+)")
_PERCENT = re.compile(_NUMBER + r"\s*%")


def parse_rate(value: float | str, option: str) -> float:
    """A share of parts.

    Raises:
        FlawsmithError: no rate between 0 and 1.

    Example:
        >>> [parse_rate(value, "--rate") for value in ("10/1000", "1 %", "0.01", 0.01)]
        [0.01, 0.01, 0.01, 0.01]
    """
    text = str(value).strip()
    parts, percent = _PARTS.fullmatch(text), _PERCENT.fullmatch(text)
    try:
        if parts:
            rate = float(parts["of"]) / float(parts["all"])
        else:
            rate = float(percent["number"].replace(",", ".")) / 100 if percent else float(text)
    except (ValueError, ZeroDivisionError):
        rate = math.nan
    if not 1e-9 <= rate < 1:
        raise FlawsmithError(f"{option} {text} is not possible: write a share between 0 and 1, such as 10/1000 or 1%")
    return rate


def parse_length(value: float | str, option: str) -> float:
    """A length in millimetres.

    Raises:
        FlawsmithError: no length above 0.

    Example:
        >>> [parse_length(value, "--scale") for value in ("0.05mm", "50um", 0.05)]
        [0.05, 0.05, 0.05]
    """
    match = _LENGTH.fullmatch(str(value).strip())
    length = float(match["number"].replace(",", ".")) if match else math.nan
    if match and match["unit"] not in ("", "mm"):
        length /= 1000
    if not (1e-9 < length < 1e9):
        raise FlawsmithError(f"{option} {value} is not possible: write the side of a pixel, such as 0.05mm or 50um")
    return length


def parse_area(value: float | str, pixel_size: float | None, option: str) -> int:
    """An area in pixels, at least 1; square millimetres are rounded up.

    Args:
        pixel_size: side of a pixel in millimetres; None: unknown.

    Raises:
        FlawsmithError: no area above 0, or square millimetres without the size of a pixel.

    Example:
        >>> parse_area("0.2mm2", 0.05, "--min-area"), parse_area("40px", None, "--min-area")
        (80, 40)
    """
    match = _AREA.fullmatch(str(value).strip())
    area = float(match["number"].replace(",", ".")) if match else math.nan
    if match and match["unit"].startswith("mm"):
        if pixel_size is None:
            raise FlawsmithError(f"{option} {value} needs the size of a pixel: add --scale, such as --scale 0.05mm")
        area /= pixel_size**2
    elif match and math.isfinite(area) and area != int(area):
        area = math.nan
    if not 0 < area <= 1e12:
        raise FlawsmithError(f"{option} {value} is not possible: write pixels such as 40, or an area such as 0.2mm2")
    return max(1, math.ceil(area - 1e-9))


def parse_extent(value: float | str, pixel_size: float | None, option: str) -> float:
    """A width or height in pixels of the image, at least 1.

    Args:
        pixel_size: side of a pixel in millimetres; None: unknown.

    Raises:
        FlawsmithError: no extent of a pixel or more, or millimetres without the size of a pixel.

    Example:
        >>> parse_extent("0.5mm", 0.05, "--smallest-flaw"), parse_extent("12px", None, "--smallest-flaw")
        (10.0, 12.0)
    """
    match = _EXTENT.fullmatch(str(value).strip())
    extent = float(match["number"].replace(",", ".")) if match else math.nan
    if match and match["unit"].endswith("m"):
        if pixel_size is None:
            raise FlawsmithError(f"{option} {value} needs the size of a pixel: add --scale, such as --scale 0.05mm")
        extent *= (1 if match["unit"] == "mm" else 0.001) / pixel_size
    if not 1 <= extent <= 1e5:
        raise FlawsmithError(
            f"{option} {value} is not possible: write how wide the smallest flaw is, in pixels of the images such as "
            "12, or such as 0.5mm with --scale"
        )
    return extent
