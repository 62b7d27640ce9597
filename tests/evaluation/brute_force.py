"""Slow, obvious references: every distinct score a threshold, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
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
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 <= x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit
