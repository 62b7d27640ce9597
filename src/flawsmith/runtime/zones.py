"""Zones of a part that have limits of their own, and how one promise holds for all of them together."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.roi import RegionOfInterest

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


class ZoneLimits(NamedTuple):
    """What good images say of the limits of zones.

    Attributes:
        map_limit: the limit elsewhere, or of the first zone where nothing lies elsewhere.
        offsets: of each zone, by how much its limit lies above that one.
        rank: number of blocks that all limits together cut off.
        elsewhere: whether anything of the images lies in no zone.
    """

    map_limit: float
    offsets: tuple[float, ...]
    rank: int
    elsewhere: bool


def zone_limits(levels: NDArray[np.float64], names: tuple[str, ...], rank: int, no_level: float) -> ZoneLimits:
    """Sets a limit in each zone so that all of them together reject as many good parts as one limit of that rank.

    Args:
        levels: (n, zones + 1) levels of good images in each zone, and elsewhere.
        names: of the zones.
        rank: of the limit that one order of the images would have, from 1, the largest.
        no_level: the level where no region can be so large, or nothing is inspected.

    Returns:
        The limits; their rank is no smaller than the number of zones, because each takes an image.

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
    return ZoneLimits(map_limit, offsets, rank, elsewhere)


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
