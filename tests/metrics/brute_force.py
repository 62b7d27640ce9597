"""Slow, obvious references: every distinct score a threshold, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np


def components(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        regions.append(region)
    return regions


def aupro(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], limit: float) -> float | None:
    """Area under the region-overlap curve by its definition."""
    regions = [(index, region) for index, mask in enumerate(masks) for region in components(mask)]
    free = np.concatenate([one[~mask] for one, mask in zip(maps, masks, strict=True)])
    if not regions or not free.size:
        return None
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]:
        shares = [np.mean([maps[index][at] >= threshold for at in region]) for index, region in regions]
        points.append((float(np.mean(free >= threshold)), float(np.mean(shares))))
    return area_below(points, limit)


def area_below(points: Sequence[tuple[float, float]], limit: float) -> float:
    """Area under a polyline up to a limit, interpolated there and divided by it."""
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 <= x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def legacy_pro(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], *, dilated: bool, number: int = 200) -> float:
    """The PRO of released codes by its description, one threshold and one pixel at a time; NaN where it fails.

    Args:
        maps: finite scores.
        masks: 0 to 1; a region is of pixels at 1.
        dilated: predictions are dilated by 5×5 for the overlap, and rates stretched from their lowest (GLASS, PBAS);
            otherwise neither (RD4AD).
        number: of thresholds.
    """
    low, high = (float(extreme([one.min() if extreme is min else one.max() for one in maps])) for extreme in (min, max))
    regions = [(index, region) for index, mask in enumerate(masks) for region in components(mask >= 1)]
    weight = sum(float((1.0 - mask.astype(np.float64)).sum()) for mask in masks)
    if high <= low or not regions or weight <= 0:
        return math.nan
    points = []
    for level in np.arange(low, high, (high - low) / number).astype(np.float32):
        predicted = [one > level for one in maps]
        wide = [_dilated(one) if dilated else one for one in predicted]
        overlap = np.mean([np.mean([wide[index][at] for at in region]) for index, region in regions])
        alarms = sum(int((one & (mask < 1)).sum()) for one, mask in zip(predicted, masks, strict=True))
        points.append((alarms / weight, float(overlap)))
    kept = sorted(point for point in points if point[0] < 0.3)
    if not kept:
        return math.nan
    start, end = kept[0][0] if dilated else 0.0, kept[-1][0]
    if end <= start:
        return 0.0 if dilated else math.nan
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(kept))
    return area / (end - start)


def _dilated(mask: np.ndarray) -> np.ndarray:
    wide = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        wide[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
    return wide


Defect = tuple[int, np.ndarray, float, bool]
"""Index of the image, mask, saturation threshold, whether it is relative."""


def spro(
    maps: Sequence[np.ndarray], defects: Sequence[Defect], *, above: Callable[[float], bool]
) -> tuple[float | None, float | None]:
    """Mean saturated overlap and false-positive rate of the pixels whose score is above a threshold, pixel by pixel."""
    shares = []
    for index, mask, threshold, relative in defects:
        pixels = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
        if pixels:
            enough = math.floor(threshold * len(pixels)) if relative else min(math.floor(threshold), len(pixels))
            marked = sum(above(float(maps[index][at])) for at in pixels)
            shares.append(min(marked / max(enough, 1), 1.0))
    alarms, free = 0, 0
    for index, scores in enumerate(maps):
        for at in np.ndindex(scores.shape):
            if not any(mask[at] for place, mask, _, _ in defects if place == index):
                free += 1
                alarms += above(float(scores[at]))
    return (sum(shares) / len(shares) if shares else None, alarms / free if free else None)


def spro_points(maps: Sequence[np.ndarray], defects: Sequence[Defect]) -> list[tuple[float, float]] | None:
    """The sPRO curve by its definition, a point for every distinct score of any pixel; None where undefined."""
    points = [(0.0, 0.0)]
    for threshold in sorted({float(score) for one in maps for score in one.ravel()}, reverse=True):
        overlap, rate = spro(maps, defects, above=lambda score, t=threshold: score >= t)
        if overlap is None or rate is None:
            return None
        points.append((rate, overlap))
    return points
