"""Per-region overlap (PRO): the share of each annotated defect above a threshold, every defect alike.

The area under the PRO curve (AUPRO) is exact here: every distinct score is a threshold, and no threshold is
ever looped over. The variants computed by released codes, whose published figures are not comparable, are in
:mod:`flawsmith.evaluation.released_pro`.

Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021 (definition, limit 0.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawsmith.evaluation.counting import ScoreArray, count_free, gain_up_to
from flawsmith.evaluation.curves import Curve, FloatArray, next_float, shares

FPR_LIMIT = 0.3
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class SplitMap:
    """One anomaly map, its pixels parted into flawed and defect-free.

    Attributes:
        flawed: (flawed,) scores of the flawed pixels, ascending.
        region: (flawed,) index of each flawed pixel's region within the image, from 0.
        regions: number of 8-connected regions.
        free: (free,) scores of the defect-free pixels, ascending.
    """

    flawed: ScoreArray
    region: npt.NDArray[np.int32]
    regions: int
    free: ScoreArray


def label_regions(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """Number the 8-connected regions of a mask.

    Args:
        mask: (height, width), True where flawed.

    Returns:
        (height, width) labels, 0 where defect-free, and the number of regions.
    """
    labels, number = ndimage.label(mask, structure=EIGHT_CONNECTED)
    return labels.astype(np.int32, copy=False), int(number)


def split_map(
    anomaly_map: npt.ArrayLike, mask: npt.ArrayLike | None, excluded: npt.NDArray[np.bool_] | None = None
) -> SplitMap:
    """Part a map into the scores of its flawed regions and of its defect-free pixels.

    Args:
        anomaly_map: (height, width) scores, computed with as float32; -inf marks pixels that were not
            inspected.
        mask: (height, width), non-zero where flawed; None for an image without a flaw.
        excluded: (height, width), True where a pixel takes no part, neither as flawed nor as defect-free; a region
            is what is left of it. None: all take part.

    Raises:
        ValueError: a NaN score, or shapes that differ.
    """
    scores = np.asarray(anomaly_map, dtype=np.float32)
    if scores.ndim != 2:
        raise ValueError(f"an anomaly map has two axes, not the shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("the anomaly map holds NaN: pixels that were not inspected are marked by -inf")
    flags = None if mask is None else np.asarray(mask) != 0
    if flags is not None and flags.shape != scores.shape:
        raise ValueError(f"mask {flags.shape} and anomaly map {scores.shape} differ in size")
    if flags is not None and excluded is not None:
        flags = flags & ~excluded
    if flags is None or not flags.any():
        none = np.empty(0, dtype=np.float32)
        free = scores if excluded is None else scores[~excluded]
        return SplitMap(none, np.empty(0, dtype=np.int32), 0, np.sort(free, axis=None))
    labels, number = label_regions(flags)
    flawed = scores[flags]
    order = np.argsort(flawed)
    free = scores[~flags if excluded is None else ~(flags | excluded)]
    return SplitMap(flawed[order], labels[flags][order] - 1, number, np.sort(free))


def _split_all(maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike | None]) -> list[SplitMap]:
    return [split_map(one, mask) for one, mask in zip(maps, masks, strict=True)]


def _region_ids(parts: Sequence[SplitMap]) -> npt.NDArray[np.int64]:
    """(flawed,) region numbers that run through all images."""
    first = np.cumsum([0, *(part.regions for part in parts)])
    return np.concatenate([part.region + start for part, start in zip(parts, first, strict=False)])


def aupro(
    maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike | None], *, limit: float = FPR_LIMIT
) -> float | None:
    """Exact area under the per-region-overlap curve.

    Regions are the 8-connected components of the masks, pooled over all images; every distinct score is a
    threshold (``score >= t``); the false-positive rate counts the defect-free pixels of all images, good ones
    included; the curve is interpolated linearly at the limit and its area divided by the limit. A perfect map
    gives 1, a constant one half the limit, an inverted one 0.

    Args:
        maps: (height, width) float32 maps, sizes may differ between images; -inf where not inspected.
        masks: masks of the same sizes, non-zero where flawed; None for images without a flaw.
        limit: largest false-positive rate, in (0, 1].

    Returns:
        In [0, 1], or None without a region or without a defect-free pixel.

    Raises:
        ValueError: a NaN score, sizes that differ, or a limit outside (0, 1].
    """
    parts = _split_all(maps, masks)
    total = sum(part.free.size for part in parts)
    if total == 0 or not any(part.regions for part in parts):
        return None
    flawed = np.concatenate([part.flawed for part in parts])
    distinct, which = np.unique(flawed, return_inverse=True)
    gain = gain_up_to(count_free(distinct, (part.free for part in parts), total), limit)
    region = _region_ids(parts)
    return float((np.bincount(region, gain[which]) / np.bincount(region)).mean())


def pro_curve(
    maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike | None], *, max_points: int = 1000
) -> Curve | None:
    """Points of the exact PRO curve, for a plot; arguments as in :func:`aupro`.

    Args:
        maps: as in :func:`aupro`.
        masks: as in :func:`aupro`.
        max_points: at most this many thresholds, spread evenly over the flawed pixels' distinct scores.

    Returns:
        The curve with its ends (0, 0) and (1, 1), or None without a region or without a defect-free pixel.
    """
    parts = _split_all(maps, masks)
    if not any(part.regions for part in parts) or not any(part.free.size for part in parts):
        return None
    distinct = np.unique(np.concatenate([part.flawed for part in parts]))
    picked = distinct[np.unique(np.linspace(0, len(distinct) - 1, max(max_points // 2, 2)).astype(int))]
    # "Just above v" closes the horizontal run before the step at v.
    thresholds = np.unique(np.concatenate([picked, next_float(picked)]))[::-1]
    rate, overlap = _curve_at(parts, thresholds)
    ends = np.concatenate([[np.inf], thresholds, [-np.inf]])
    return Curve(x=shares(rate, 1.0), y=shares(overlap, 1.0), thresholds=ends)


def _curve_at(parts: Sequence[SplitMap], thresholds: npt.NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """False-positive rate and mean region overlap at given thresholds, ``score >= t``."""
    free = sum((part.free.size - np.searchsorted(part.free, thresholds)) for part in parts)
    total = sum(part.free.size for part in parts)
    overlaps = [
        1.0 - np.searchsorted(part.flawed[part.region == index], thresholds) / size
        for part in parts
        for index, size in enumerate(np.bincount(part.region, minlength=part.regions))
    ]
    return np.asarray(free) / total, np.mean(overlaps, axis=0)
