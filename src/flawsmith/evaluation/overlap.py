"""Per-region overlap (PRO): the share of each annotated defect above a threshold, every defect alike.

The area under the PRO curve (AUPRO) is exact here: every distinct score is a threshold, and no threshold is
ever looped over. The variants computed by released codes, whose published figures are not comparable, stand
beside it.

Sources: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021 (definition, limit 0.3);
released code of GLASS and PBAS (200 thresholds, dilated predictions) and of RD4AD, which AAND carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawsmith.evaluation.counting import ScoreArray, count_free, gain_up_to
from flawsmith.evaluation.curves import Curve, FloatArray, area_up_to, next_float, shares

FPR_LIMIT = 0.3
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)

Variant = Literal["compat_dilated", "rd4ad_whole_set", "rd4ad_per_image_mean"]


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


def split_map(anomaly_map: npt.ArrayLike, mask: npt.ArrayLike | None) -> SplitMap:
    """Part a map into the scores of its flawed regions and of its defect-free pixels.

    Args:
        anomaly_map: (height, width) scores, computed with as float32; -inf marks pixels that were not
            inspected.
        mask: (height, width), non-zero where flawed; None for an image without a flaw.

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
    if flags is None or not flags.any():
        none = np.empty(0, dtype=np.float32)
        return SplitMap(none, np.empty(0, dtype=np.int32), 0, np.sort(scores, axis=None))
    labels, number = label_regions(flags)
    flawed = scores[flags]
    order = np.argsort(flawed)
    return SplitMap(flawed[order], labels[flags][order] - 1, number, np.sort(scores[~flags]))


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
    rate, overlap = _curve_at(parts, thresholds, strict=False)
    ends = np.concatenate([[np.inf], thresholds, [-np.inf]])
    return Curve(x=shares(rate, 1.0), y=shares(overlap, 1.0), thresholds=ends)


def _curve_at(
    parts: Sequence[SplitMap], thresholds: npt.NDArray[np.floating], *, strict: bool
) -> tuple[FloatArray, FloatArray]:
    """False-positive rate and mean region overlap at given thresholds, ``score > t`` if strict, else
    ``>=``.
    """
    side: Literal["left", "right"] = "right" if strict else "left"
    free = sum((part.free.size - np.searchsorted(part.free, thresholds, side=side)) for part in parts)
    total = sum(part.free.size for part in parts)
    overlaps = [
        1.0 - np.searchsorted(part.flawed[part.region == index], thresholds, side=side) / size
        for part in parts
        for index, size in enumerate(np.bincount(part.region, minlength=part.regions))
    ]
    return np.asarray(free) / total, np.mean(overlaps, axis=0)


def released_pro(
    maps: npt.ArrayLike,
    masks: npt.ArrayLike,
    *,
    variant: Variant,
    limit: float = FPR_LIMIT,
    thresholds: int = 200,
) -> float | None:
    """The PRO figure as released codes compute it: to compare with published tables, not to judge a model by.

    ``compat_dilated`` (GLASS, PBAS): predictions are dilated by 5×5 pixels for the overlap but not for the
    false-positive rate, and the kept rates are stretched to [0, 1], which inflates the figure.
    ``rd4ad_whole_set``: no dilation, the kept rates are divided by their maximum. ``rd4ad_per_image_mean``:
    that, for each flawed image with a defect-free pixel, then the mean. All use equally spaced thresholds
    between the extremes of the maps, ``score > t``, and keep rates below the limit without interpolating
    there.

    Args:
        maps: (images, height, width) finite scores.
        masks: (images, height, width) in [0, 1]. Pixels below 1 are defect-free; as in the released codes,
            partly covered ones weigh ``1 - mask`` in the denominator of the false-positive rate and 1 in its
            numerator.
        variant: which code.
        limit: rates at or above are dropped.
        thresholds: their number.

    Returns:
        The figure, or None where the released code fails: no region, constant maps, no rate below the limit.
    """
    scores = np.asarray(maps, dtype=np.float32)
    soft = np.asarray(masks, dtype=np.float64)
    if variant == "rd4ad_per_image_mean":
        usable = [i for i in range(len(soft)) if (soft[i] >= 1).any() and (soft[i] < 1).any()]
        each = [_released_whole(scores[[i]], soft[[i]], "rd4ad", limit, thresholds) for i in usable]
        # One failing image makes the mean of the released code undefined.
        return None if not each or None in each else float(np.mean([value for value in each if value is not None]))
    rule: Literal["dilated", "rd4ad"] = "dilated" if variant == "compat_dilated" else "rd4ad"
    return _released_whole(scores, soft, rule, limit, thresholds)


def _released_whole(
    scores: ScoreArray, soft: FloatArray, rule: Literal["dilated", "rd4ad"], limit: float, number: int
) -> float | None:
    """One released figure over a whole set; see :func:`released_pro`."""
    low, high = float(scores.min()), float(scores.max())
    if high <= low or not (soft >= 1).any() or not (soft < 1).any():
        return None
    levels = np.arange(low, high, (high - low) / number).astype(np.float32)[::-1]
    parts = _split_all(list(scores), list(soft >= 1))
    rate, overlap = _curve_at(parts, levels, strict=True)
    if rule == "dilated":
        # Thresholding after a maximum filter equals dilating the thresholded map.
        widened = [ndimage.maximum_filter(one, size=5, mode="constant", cval=-np.inf) for one in scores]
        overlap = _curve_at(_split_all(widened, list(soft >= 1)), levels, strict=True)[1]
    rate = rate * ((soft < 1).sum() / (1.0 - soft).sum())
    kept = rate < limit
    if not kept.any():
        return None
    rate, overlap = rate[kept], overlap[kept]
    if rule == "dilated":
        span = rate.max() - rate.min()
        # All kept rates equal (a perfect binary map): the released code adds a guard and returns an area of
        # 0.
        return float(area_up_to((rate - rate.min()) / span, overlap)) if span > 0 else 0.0
    return float(area_up_to(rate / rate.max(), overlap)) if rate.max() > 0 else None
