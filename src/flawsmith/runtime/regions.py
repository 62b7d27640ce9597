"""Connected regions of an anomaly map, with numpy alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from flawsmith.runtime.geometry import InvertedMap

_BAND_PIXELS = 2**22

SMALL_SHARE, LARGE_SHARE = 0.8, 0.4
"""From a map's median to a region's peak: how high a pixel is that belongs to a flaw no larger than the map's blur, and
to one that is much larger. Maps are blurred, so that what lies above the limit is wider than the flaw, the more so the
stronger the flaw is. Half of the way is the rim of a flaw larger than the blur, and less than that where the map is
uneven within it; smaller flaws take more (docs/results/regions.md)."""
BLUR_AREA = 1600
"""Pixels of the network's input that a point-like flaw fills half-way up to its peak, roughly: 40 × 40."""
STRANGEST_PLACE = "the map stays below its limit: the region is its strangest place"
"""What is said of an image that its score rejects, or sends to review, and its map does not."""
_SAMPLED = 2**12


class Region(BaseModel):
    """A flaw as the map shows it, in pixels of the original image: the highest part of a connected spot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: int = Field(description="number of pixels of the flaw: those at or above the level")
    box: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1; x1 and y1 are past the last pixel")
    peak: float = Field(description="largest value of the map in the region")
    level: float = Field(description="map value from which on a pixel of the spot belongs to the flaw")
    spot: int = Field(description="pixels of the spot, all above the limit: what a smallest area is compared with")
    peak_position: tuple[int, int] = Field(description="x, y of that value, the first in reading order")
    centroid: tuple[float, float] = Field(description="x, y of the mean pixel position")
    strangest_place: bool = Field(
        default=False, description="whether the map stays below its limit, so that this is where its peak lies, no more"
    )
    zone: str | None = Field(default=None, description="the zone that it lies in; None: the limits have no zones")

    def in_zone(self, zone: str, left: int, top: int) -> Region:
        """The same region as part of a larger map.

        Args:
            zone: name of its zone.
            left, top: where the map that it was seen in begins in the larger one, pixels.

        Example:
            >>> region = Region(
            ...     area=1, box=(0, 0, 1, 1), peak=2.0, level=1.0, spot=1, peak_position=(0, 0), centroid=(0.0, 0.0)
            ... )
            >>> region.in_zone("thread", 10, 20).box
            (10, 20, 11, 21)
        """
        (x0, y0, x1, y1), (x, y), (mean_x, mean_y) = self.box, self.peak_position, self.centroid
        return self.model_copy(
            update={
                "box": (x0 + left, y0 + top, x1 + left, y1 + top),
                "peak_position": (x + left, y + top),
                "centroid": (mean_x + left, mean_y + top),
                "zone": zone,
            }
        )

    @model_serializer(mode="wrap")
    def _named_where_there_are_zones(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.zone is None:
            content.pop("zone", None)
        return content


class _Runs(NamedTuple):
    """Horizontal runs of True pixels in reading order: row, first column, past-the-last column."""

    row: NDArray[np.intp]
    start: NDArray[np.intp]
    stop: NDArray[np.intp]


def label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Numbers the 8-connected components of a mask.

    Args:
        mask: (height, width).

    Returns:
        (height, width) int32 with 0 for the background and 1, 2, ... in the reading order of each component's
        first pixel, and the number of components. Equal to ``scipy.ndimage.label`` with a full 3 × 3
        structure.

    Example:
        >>> labels, count = label(np.array([[True, False, True], [False, True, False]]))
        >>> count
        1
    """
    labels = np.zeros(mask.shape, np.int32)
    runs = _find_runs(mask)
    numbers, count = _number(runs, mask.shape[1])
    labels[mask] = np.repeat(numbers, runs.stop - runs.start)
    return labels, count


def find_regions(
    anomaly_map: NDArray[np.floating[Any]] | InvertedMap,
    limit: float,
    *,
    minimum_area: int = 1,
    mask: NDArray[np.bool_] | None = None,
    cell: float | None = None,
) -> list[Region]:
    """Finds the 8-connected spots of ``anomaly_map > limit``, and of each the part that is the flaw.

    Args:
        anomaly_map: (height, width); one on its way to the pixels of the image is computed in those columns alone in
            which there may be something.
        limit: pixels above it, not those equal to it, count.
        minimum_area: smaller spots are left out, pixels.
        mask: (height, width), False where the map is to be ignored.
        cell: pixels of the map by one of the network's input, by which the map's blur is known; None: the whole spot is
            the flaw.

    Returns:
        Regions, the largest peak first; equal peaks in reading order of the spots' first pixels.

    Example:
        >>> anomaly_map = np.zeros((6, 9), np.float32)
        >>> anomaly_map[1:3, 4:6] = 2.0
        >>> anomaly_map[1:3, 6] = 1.2
        >>> region = find_regions(anomaly_map, 1.0)[0]
        >>> region.area, region.box, region.centroid
        (6, (4, 1, 7, 3), (5.0, 1.5))
        >>> region = find_regions(anomaly_map, 1.0, cell=1.0)[0]
        >>> region.area, region.box, region.level, region.spot
        (4, (4, 1, 6, 3), 1.6, 6)
    """
    if isinstance(anomaly_map, InvertedMap):
        columns = anomaly_map.columns_above(limit)
        if not columns.size:
            return []
        part = anomaly_map.columns(columns)
    else:
        columns, part = None, anomaly_map
    above = part > limit
    if mask is not None:
        above &= mask if columns is None else mask[:, columns]
    runs = _find_runs(above)
    if runs.row.size == 0:
        return []
    numbers, count = _number(runs, above.shape[1])
    index = numbers - 1
    length = runs.stop - runs.start
    values = part[above]
    spot = np.bincount(index, weights=length).astype(np.int64)
    peak, peak_x, peak_y = _peaks(values, runs, index, count)
    level = np.full(count, limit, np.float64)
    if cell is not None:
        typical, of_pixel = _typical(anomaly_map, mask), np.repeat(index, length)
        half = np.bincount(of_pixel[values >= flaw_level(peak, typical, 0.5)[of_pixel]], minlength=count)
        level = np.minimum(peak, np.maximum(limit, flaw_level(peak, typical, flaw_share(half / cell))))
        belongs = values >= level[of_pixel]
        top, left = runs.row[0], runs.start.min()
        window = above[top : runs.row[-1] + 1, left : runs.stop.max()]
        window[window] = belongs
        inside = _find_runs(window)
        runs = _Runs(inside.row + top, inside.start + left, inside.stop + left)
        length = runs.stop - runs.start
        index = of_pixel[belongs][np.cumsum(length) - length]
    if columns is not None:
        runs = runs._replace(start=columns[runs.start], stop=columns[runs.stop - 1] + 1)
        peak_x = columns[peak_x]
    area = np.bincount(index, weights=length).astype(np.int64)
    centre_x = np.bincount(index, weights=(runs.start + runs.stop - 1) * length / 2) / area
    centre_y = np.bincount(index, weights=runs.row * length) / area
    left, top = np.full(count, anomaly_map.shape[1]), np.full(count, anomaly_map.shape[0])
    right, bottom = np.zeros(count, np.intp), np.zeros(count, np.intp)
    np.minimum.at(left, index, runs.start)
    np.maximum.at(right, index, runs.stop)
    np.minimum.at(top, index, runs.row)
    np.maximum.at(bottom, index, runs.row + 1)
    order = np.flatnonzero(spot >= minimum_area)
    order = order[np.argsort(-peak[order], kind="stable")]
    return [
        Region(
            area=int(area[i]),
            box=(int(left[i]), int(top[i]), int(right[i]), int(bottom[i])),
            peak=float(peak[i]),
            level=float(level[i]),
            spot=int(spot[i]),
            peak_position=(int(peak_x[i]), int(peak_y[i])),
            centroid=(float(centre_x[i]), float(centre_y[i])),
        )
        for i in order
    ]


def strongest_region(
    anomaly_map: NDArray[np.floating[Any]] | InvertedMap,
    *,
    mask: NDArray[np.bool_] | None = None,
    cell: float = 1.0,
) -> Region:
    """Finds the flaw around the map's highest value, wherever that lies beside a limit.

    Args:
        anomaly_map: (height, width), as :func:`find_regions` takes it.
        mask: (height, width), False where the map is to be ignored; True somewhere.
        cell: as :func:`find_regions` takes it.

    Example:
        >>> strongest_region(np.array([[0.0, 0.0, 0.1, 0.4, 0.4]])).box
        (3, 0, 5, 1)
    """
    if isinstance(anomaly_map, InvertedMap) and mask is not None:
        anomaly_map = anomaly_map.whole()
    if isinstance(anomaly_map, InvertedMap):
        highest: np.floating[Any] = anomaly_map.peak()
    else:
        highest = (anomaly_map if mask is None else anomaly_map[mask]).max()
    peak, below_peak = float(highest), float(np.nextafter(highest, highest.dtype.type(-np.inf)))
    level = min(below_peak, float(flaw_level(peak, _typical(anomaly_map, mask), LARGE_SHARE)))
    return find_regions(anomaly_map, level, mask=mask, cell=cell)[0]


def flaw_share(area: Any) -> Any:
    """How far from the map's median to a spot's peak the flaw begins.

    Args:
        area: pixels of the network's input that lie half-way up or higher, of a spot or of several.

    Example:
        >>> flaw_share(np.array([100, 1600, 3200, 160_000])).round(2).tolist()
        [0.8, 0.8, 0.6, 0.4]
    """
    return LARGE_SHARE + (SMALL_SHARE - LARGE_SHARE) * np.minimum(1, BLUR_AREA / np.maximum(area, 1))


def flaw_level(peak: Any, typical: float, share: Any) -> Any:
    """The map value from which on a pixel belongs to a flaw, whatever the limit.

    Args:
        peak: largest value of the flaw, or of several.
        typical: the map's median.
        share: of the way from the one to the other.

    Example:
        >>> flaw_level(5.0, 1.0, 0.75)
        4.0
    """
    return typical + share * (peak - typical)


def _typical(anomaly_map: NDArray[np.floating[Any]] | InvertedMap, mask: NDArray[np.bool_] | None) -> float:
    """The map's median where it counts, of some of the pixels of a large map."""
    height, width = anomaly_map.shape
    step = max(1, math.isqrt(height * width // _SAMPLED))
    if isinstance(anomaly_map, InvertedMap):
        sample = anomaly_map.columns(np.arange(0, width, step))[::step]
    else:
        sample = anomaly_map[::step, ::step]
    if mask is not None:
        inside = sample[mask[::step, ::step]]
        if not inside.size:
            inside = (anomaly_map.whole() if isinstance(anomaly_map, InvertedMap) else anomaly_map)[mask]
        sample = inside
    return float(np.median(sample))


def region_level(
    anomaly_map: NDArray[np.floating[Any]], *, minimum_area: int = 1, mask: NDArray[np.bool_] | None = None
) -> float:
    """Returns the level below which a map shows a region of the given area.

    For every limit, ``find_regions(map, limit, minimum_area=..., mask=...)`` finds something exactly when the
    limit is smaller than this level. With an area of 1 it is the map's maximum.

    Args:
        anomaly_map: (height, width), finite.
        minimum_area: pixels.
        mask: (height, width), False where the map is to be ignored.

    Returns:
        The level; minus infinity where even the whole map holds no region so large.

    Example:
        >>> anomaly_map = np.array([[0.1, 0.9, 0.6, 0.1]])
        >>> region_level(anomaly_map), region_level(anomaly_map, minimum_area=2)
        (0.9, 0.6)
    """
    allowed = np.ones(anomaly_map.shape, bool) if mask is None else mask
    values = anomaly_map[allowed]
    if values.size < minimum_area:
        return -np.inf
    if minimum_area <= 1:
        return float(values.max())
    # Fewer pixels than the area cannot hold the region: only values below that rank are worth a labelling.
    highest = np.partition(values, values.size - minimum_area)[values.size - minimum_area]
    levels = np.unique(values[values <= highest])
    shown = bisect_left(levels, True, key=lambda level: _largest_area((anomaly_map >= level) & allowed) < minimum_area)
    return float(levels[shown - 1]) if shown else -np.inf


def _largest_area(mask: NDArray[np.bool_]) -> int:
    runs = _find_runs(mask)
    if runs.row.size == 0:
        return 0
    numbers, _ = _number(runs, mask.shape[1])
    return int(np.bincount(numbers, weights=runs.stop - runs.start).max())


def _find_runs(mask: NDArray[np.bool_]) -> _Runs:
    height, width = mask.shape
    # Some rows at a time: what is made of them on the way takes as much memory as the mask itself.
    band = max(1, _BAND_PIXELS // width)
    runs = [_runs_of_rows(mask[top : top + band], top) for top in range(0, height, band)]
    return runs[0] if len(runs) == 1 else _Runs(*map(np.concatenate, zip(*runs, strict=True)))


def _runs_of_rows(mask: NDArray[np.bool_], top: int) -> _Runs:
    height, width = mask.shape
    # One column of background on either side ends every run within its own row.
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    row, column = np.divmod(steps, width + 1)
    return _Runs(row[::2] + top, column[::2], column[1::2])


def _number(runs: _Runs, width: int) -> tuple[NDArray[np.int32], int]:
    """The component number of each run, from 1, and the number of components."""
    count = runs.row.size
    if count == 0:
        return np.zeros(0, np.int32), 0
    # A run touches the runs of the previous row that begin no later than one past its end and end no earlier
    # than its start. On one long line of rows, with a gap between them, both are binary searches.
    stride = width + 1
    start, stop = runs.row * stride + runs.start, runs.row * stride + runs.stop
    first = np.searchsorted(stop, start - stride, side="left")
    last = np.searchsorted(start, stop - stride, side="right")
    touching = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(count), touching)
    upper = np.arange(lower.size) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    roots = _unite(count, lower, upper)
    is_root = roots == np.arange(count)
    numbers = np.cumsum(is_root)[roots]
    return numbers.astype(np.int32), int(is_root.sum())


def _unite(count: int, lower: NDArray[np.intp], upper: NDArray[np.intp]) -> NDArray[np.intp]:
    """The smallest member of each node's component, given the edges of a graph.

    Hooking and pointer jumping (FastSV: Zhang, Azad, Hu, SIAM PP 2020): the number of rounds grows with the
    logarithm of the component's size, so a spiral is no worse than many blobs.
    """
    parent = np.arange(count)
    grandparent = parent.copy()
    while lower.size:
        of_lower, of_upper = grandparent[lower], grandparent[upper]
        smaller = np.minimum(of_lower, of_upper)
        for ends in (parent[lower], parent[upper], lower, upper):
            np.minimum.at(parent, ends, smaller)
        np.minimum(parent, grandparent, out=parent)
        changed = parent[parent]
        if np.array_equal(changed, grandparent):
            break
        grandparent = changed
    return parent


def _peaks(
    values: NDArray[np.floating[Any]], runs: _Runs, index: NDArray[np.int32], count: int
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Peak value, x and y of each region; `values` are the pixels of the runs in reading order."""
    length = runs.stop - runs.start
    offset = np.cumsum(length) - length
    run_peak = np.maximum.reduceat(values, offset)
    peak = np.full(count, -np.inf)
    np.maximum.at(peak, index, run_peak)
    # Written backwards, the first run in reading order that reaches the peak is the one that stays.
    winners = np.flatnonzero(run_peak == peak[index])[::-1]
    best_run = np.zeros(count, np.intp)
    best_run[index[winners]] = winners
    pixel_run = np.repeat(np.arange(length.size), length)
    at_peak = np.flatnonzero(values == run_peak[pixel_run])[::-1]
    first_in_run = np.zeros(length.size, np.intp)
    first_in_run[pixel_run[at_peak]] = at_peak
    x = runs.start[best_run] + first_in_run[best_run] - offset[best_run]
    return peak, x, runs.row[best_run]
