"""Large images piece by piece: cut into overlapping tiles that the network sees one by one, their maps joined again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flawsmith.runtime.geometry import Geometry, Pixels

SMALLEST_TILE = 32
LARGEST_TILE = 16_384
OVERLAP_SHARE = 8
"""Tiles overlap by one part in so many of their side where nothing else is said."""

Infer = Callable[[NDArray[np.float32]], tuple[float, NDArray[np.float32]]]
"""Score and (h, w) map of a network's input (1, 3, h, w)."""


class Tile(NamedTuple):
    """A rectangle of an image, in its own pixels; ``bottom`` and ``right`` are past the last one."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The tile of an array (height, width, ...), without a copy."""
        return pixels[self.top : self.bottom, self.left : self.right]


class Tiling(BaseModel):
    """How images are cut into tiles; stored in the bundle.

    Tiles cover an image at equal distances, the last one ends at its edge. Neighbours overlap by ``overlap`` pixels or
    more, and as many in the middle of that are faded from one to the other. A side of the image that is shorter than a
    tile is that of the tile.

    Example:
        >>> tiling = Tiling(size=512, overlap=64)
        >>> [(tile.top, tile.bottom, tile.left, tile.right) for tile in tiling.tiles((400, 1000))]
        [(0, 400, 0, 512), (0, 400, 244, 756), (0, 400, 488, 1000)]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=SMALLEST_TILE, le=LARGEST_TILE, description="side of a tile, pixels of the original image")
    overlap: int = Field(ge=0, description="pixels over which neighbours fade into each other, below half of the side")

    @model_validator(mode="after")
    def _check(self) -> Tiling:
        if 2 * self.overlap >= self.size:
            raise ValueError(f"an overlap of {self.overlap} is no less than half of the tile, {self.size}")
        return self

    def holds(self, image_size: tuple[int, int]) -> bool:
        """Whether one tile holds an image of (height, width)."""
        return max(image_size) <= self.size

    def tiles(self, image_size: tuple[int, int]) -> list[Tile]:
        """The tiles of an image of (height, width), row by row."""
        rows, columns = (_starts(length, self) for length in image_size)
        height, width = (min(length, self.size) for length in image_size)
        return [Tile(top, top + height, left, left + width) for top in rows for left in columns]

    def middle(self, image: NDArray[Any]) -> NDArray[Any]:
        """The tile nearest to the middle of an image (height, width, 3); all of it where one tile holds it."""
        tiles = self.tiles((image.shape[0], image.shape[1]))
        return np.ascontiguousarray(tiles[len(tiles) // 2].of(image))

    def weights(self, length: int) -> list[NDArray[np.float32]]:
        """What each tile counts along an axis, from 0 to 1; together 1 at every pixel.

        Args:
            length: of the axis, pixels.

        Returns:
            One array a tile, of the tile's length along this axis.

        Example:
            >>> [weights.shape for weights in Tiling(size=40, overlap=4).weights(70)]
            [(40,), (40,)]
        """
        starts, extent = _starts(length, self), min(length, self.size)
        weights = []
        for number, start in enumerate(starts):
            # What a tile counts is the fade into it less the fade into the next one: whatever the distances, the sum
            # is 1. On the tile's own pixels only: a long line scan has thousands of tiles.
            pixels = np.arange(start, start + extent)
            weight = np.ones(extent) if number == 0 else self._fade(pixels, starts[number - 1], start)
            if number + 1 < len(starts):
                weight -= self._fade(pixels, start, starts[number + 1])
            weights.append(weight.astype(np.float32))
        return weights

    def _fade(self, pixels: NDArray[np.int_], first: int, second: int) -> NDArray[np.float64]:
        """From 0 to 1 where a tile gives way to its neighbour, in the middle of what they share.

        A raised cosine, which begins and ends without a bend: the map has no edge where a tile begins.
        """
        shared = first + self.size - second
        begin = second + (shared - self.overlap) // 2
        place = np.clip((pixels - begin + 0.5) / max(self.overlap, 1), 0.0, 1.0)
        if self.overlap == 0:
            place = (place > 0).astype(np.float64)
        faded: NDArray[np.float64] = 0.5 - 0.5 * np.cos(np.pi * place)
        return faded

    def describe(self) -> str:
        """In words.

        Example:
            >>> Tiling(size=512, overlap=64).describe()
            '512 × 512 pixels, overlapping by 64'
        """
        return f"{self.size} × {self.size} pixels, overlapping by {self.overlap}"


def _starts(length: int, tiling: Tiling) -> list[int]:
    """First pixel of each tile along an axis."""
    if length <= tiling.size:
        return [0]
    steps = math.ceil((length - tiling.size) / (tiling.size - tiling.overlap))
    return [(2 * number * (length - tiling.size) + steps) // (2 * steps) for number in range(steps + 1)]


def fit_tile(image: NDArray[np.uint8] | NDArray[np.uint16], tile: Tile, geometry: Geometry) -> Pixels:
    """What the network sees of a tile, before it is normalised.

    Args:
        image: (height, width, 3), the whole image: a region of interest is relative to it.
        tile: of the image.
        geometry: of the network's input.

    Returns:
        As :meth:`flawsmith.runtime.geometry.Geometry.fit` gives it.
    """
    inside = None if geometry.region is None else geometry.region.to_mask((image.shape[0], image.shape[1]))
    return _fit_tile(image, tile, of_one_tile(geometry), inside)


def _fit_tile(
    image: NDArray[np.uint8] | NDArray[np.uint16], tile: Tile, single: Geometry, inside: NDArray[np.bool_] | None
) -> Pixels:
    cut = np.ascontiguousarray(tile.of(image))
    return single.fit(cut if inside is None else single.painted_over(cut, tile.of(inside)))


def of_one_tile(geometry: Geometry) -> Geometry:
    """The way of a tile into the network and back, its region of interest being painted already."""
    return geometry if geometry.region is None else geometry.model_copy(update={"region": None})


def tiles_to_see(tiling: Tiling, geometry: Geometry, image_size: tuple[int, int]) -> list[Tile]:
    """The tiles of an image that show something of the region of interest; all of them where there is none."""
    tiles = tiling.tiles(image_size)
    if geometry.region is None:
        return tiles
    mask = geometry.region.to_mask(image_size)
    return [tile for tile in tiles if tile.of(mask).any()]


def inspect_by_tiles(
    image: NDArray[np.uint8] | NDArray[np.uint16],
    geometry: Geometry,
    tiling: Tiling,
    infer: Infer,
    lap: Callable[[str], object] = lambda step: None,
) -> tuple[float, NDArray[np.float32]]:
    """Score and map of an image that one tile does not hold.

    The map is joined as the tiles come, so that no more than one of them is in memory. The score is that of the tile
    that scores highest: it has the unit of the network's own score, whatever the number of tiles. Of most methods
    that is not the map's maximum (docs/architecture.md).

    Args:
        image: (height, width, 3).
        geometry: of the network's input.
        tiling: how the image is cut.
        infer: the network.
        lap: is told when a step ends: prepare, infer, restore.

    Returns:
        The score, and the map (height, width) in pixels of the image; outside of a region of interest it holds its
        smallest value inside. A region that covers no pixel leaves a map of zeros.

    Example:
        >>> image = np.zeros((40, 70, 3), np.uint8)
        >>> image[10, 60] = 255
        >>> geometry = Geometry(size=(40, 40), mean=(0, 0, 0), std=(1, 1, 1))
        >>> def infer(batch):
        ...     return float(batch.max()), batch[0, 0]
        >>> score, joined = inspect_by_tiles(image, geometry, Tiling(size=40, overlap=4), infer)
        >>> score, joined.shape, round(float(joined[10, 60]), 3)
        (1.0, (40, 70), 1.0)
    """
    size = (image.shape[0], image.shape[1])
    single = of_one_tile(geometry)
    # Held here: a thread that inspects images of another size would have it drawn anew for every tile.
    inside = None if geometry.region is None else geometry.region.to_mask(size)
    rows, columns = (dict(zip(_starts(length, tiling), tiling.weights(length), strict=True)) for length in size)
    joined, score = np.zeros(size, np.float32), -math.inf
    for tile in tiles_to_see(tiling, geometry, size):
        batch = single.normalise(_fit_tile(image, tile, single, inside))[None]
        lap("prepare")
        tile_score, small_map = infer(batch)
        lap("infer")
        tile_map = single.invert(small_map, tile.size)
        tile_map *= rows[tile.top][:, None]
        tile_map *= columns[tile.left]
        part = tile.of(joined)
        part += tile_map
        score = max(score, tile_score)
        lap("restore")
    if inside is not None:
        lowest = joined.min(where=inside, initial=joined.max())
        for tile in tiling.tiles(size):  # piece by piece, for what is outside of all takes as much as the region
            tile.of(joined)[~tile.of(inside)] = lowest
    return (score if math.isfinite(score) else 0.0), joined
