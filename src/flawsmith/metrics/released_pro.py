"""Region overlap (PRO) as released codes compute it: to stand beside published tables, not to judge a model by.

All use equally spaced thresholds between the extremes of maps, ``score > t``, and drop false-positive rates at or
above the limit without interpolating there.

``dilated_200`` (GLASS, PBAS): predictions are dilated by 5×5 pixels for the overlap but not for the false-positive
rate, and the kept rates are stretched to [0, 1], which inflates the figure. A perfect binary map, whose kept rates
are all equal, gives 0, as in the released code. ``whole_200``: no dilation, the kept rates are divided by their
largest. ``per_image_200`` (RD4AD): that for each flawed image with a defect-free pixel, between the extremes of its
own map, then the mean.

The released codes fail, and some then report 0, where maps are constant or no rate lies below the limit; here the
figure is undefined. Memory is 4 bytes a flawed pixel and 1.6 KB an image and region, beside that of
:mod:`flawsmith.metrics.accumulate`, which counts the defect-free pixels.

Source: released code of GLASS and PBAS, and of RD4AD, which AAND carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawsmith.metrics.accumulate import PixelMetrics
from flawsmith.metrics.pro import FPR_LIMIT, ScoreArray, label_regions
from flawsmith.metrics.ranking import FloatArray, defined

Rule = Literal["dilated_200", "whole_200", "per_image_200"]

THRESHOLDS = 200
_DILATION = 5


@dataclass(frozen=True, eq=False)
class ReleasedCounts:
    """Counts of every image at the thresholds, from which resampled figures are made.

    Attributes:
        free: (images, thresholds) pixels below full coverage that score more.
        weight: (images,) what the false-positive rate divides by: ``1 - mask`` summed over those pixels.
        overlap: (images, thresholds) sum over the image's regions of the share that scores more.
        n_regions: (images,) annotated regions.
    """

    free: FloatArray
    weight: FloatArray
    overlap: FloatArray
    n_regions: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ReleasedFigures:
    """A released PRO; None where the released code fails.

    Attributes:
        value: the figure.
        area: (items,) the share of each region, or of each flawed image for ``per_image_200``; ``value`` is their mean.
        image: (items,) index of the image of each, in the order of adding.
        rule: which code.
        limit: rates at or above are dropped.
        counts: counts for resampling; None for ``per_image_200``, where the mean is over images.
    """

    value: float | None
    area: FloatArray
    image: npt.NDArray[np.int64]
    rule: Rule
    limit: float
    counts: ReleasedCounts | None = None

    def replicates(self, weights: npt.NDArray[np.number]) -> FloatArray:
        """The figure of resampled images.

        Args:
            weights: (resamples, images) how often each image counts, images in the order of adding.

        Returns:
            (resamples,) values; NaN where undefined.
        """
        times = weights.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.counts is None:
                own = times[:, self.image]
                return (own @ self.area) / own.sum(axis=1)
            rate = times @ self.counts.free / (times @ self.counts.weight)[:, None]
            overlap = times @ self.counts.overlap / (times @ self.counts.n_regions)[:, None]
        return stretched_area(rate, overlap, rule=self.rule, limit=self.limit)


def stretched_area(rate: FloatArray, overlap: FloatArray, *, rule: Rule, limit: float = FPR_LIMIT) -> FloatArray:
    """Area under the kept part of an overlap curve after its rates have been stretched.

    Args:
        rate: (..., thresholds) false-positive rates, ascending.
        overlap: (..., thresholds) mean overlap there, in [0, 1]; NaN of a resample without regions.
        rule: ``dilated_200`` stretches the kept rates from lowest and highest to 0 and 1, the others from 0 and
            highest.
        limit: rates at or above are dropped.

    Returns:
        (...) areas; NaN where no rate is kept, there are no regions or, without dilation, all kept rates are 0.
    """
    kept = rate < limit
    steps = np.where(kept[..., 1:], np.diff(rate, axis=-1), 0.0)
    area = (steps * (overlap[..., 1:] + overlap[..., :-1]) / 2).sum(axis=-1)
    highest = np.where(kept, rate, 0.0).max(axis=-1)
    dilated = rule == "dilated_200"
    span = highest - rate[..., 0] if dilated else highest
    flat = np.where(kept[..., 0] & ~np.isnan(overlap[..., 0]), 0.0 if dilated else np.nan, np.nan)
    stretched: FloatArray = np.where(span > 0, np.divide(area, span, out=np.zeros_like(area), where=span > 0), flat)
    return stretched


class ReleasedPro:
    """Gathers what a released PRO needs of maps that a :class:`PixelMetrics` takes in.

    >>> mask = np.array([[0.0, 0.0, 1.0]])
    >>> with PixelMetrics() as pixels:
    ...     pro = ReleasedPro("whole_200", pixels)
    ...     pro.add(pixels.add([[0.0, 1.0, 2.0]], mask >= 1), np.array([[0.0, 1.0, 2.0]]), mask)
    ...     pro.compute().value is None  # one rate of 0, the next is 1/2
    True

    Args:
        rule: which code.
        pixels: takes in every map, good ones too, with the fully covered pixels as mask.
        limit: rates at or above are dropped.
    """

    def __init__(self, rule: Rule, pixels: PixelMetrics, *, limit: float = FPR_LIMIT) -> None:
        self._rule, self._pixels, self._limit = rule, pixels, limit
        self._extremes = np.array([np.inf, -np.inf], dtype=np.float32)
        self._weight: list[float] = []
        self._regions: list[ScoreArray] = []
        self._region_image: list[int] = []
        self._each: list[float] = []
        self._each_image: list[int] = []

    def add(
        self,
        image: int,
        anomaly_map: npt.ArrayLike,
        mask: npt.ArrayLike | None = None,
        excluded: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Take in one map; nothing of the arrays is kept.

        Args:
            image: the image's index in ``pixels``.
            anomaly_map: (height, width) scores, taken as float32; -inf is above no threshold.
            mask: (height, width) in [0, 1]; pixels below 1 are defect-free and, partly covered, weigh ``1 - mask`` in
                the denominator of the false-positive rate and 1 in its numerator. None for an image without a flaw.
            excluded: (height, width), True where a pixel takes no part.
        """
        scores = np.asarray(anomaly_map, dtype=np.float32)
        if excluded is not None:
            scores = np.where(excluded, np.float32(-np.inf), scores)
        soft = np.zeros(scores.shape) if mask is None else np.asarray(mask, dtype=np.float64)
        takes_part = np.ones(scores.shape, dtype=bool) if excluded is None else ~excluded
        extremes = _extremes(scores)
        self._extremes = np.array(
            [min(self._extremes[0], extremes[0]), max(self._extremes[1], extremes[1])], dtype=np.float32
        )
        self._weight.append(float((1.0 - soft)[takes_part].sum()))
        labels, number = label_regions((soft >= 1) & takes_part)
        if not number:
            return
        if self._rule == "per_image_200":
            free = np.sort(scores[takes_part & (labels == 0)])
            if free.size:
                self._each.append(self._of_image(extremes, _by_region(scores, labels), free, self._weight[-1]))
                self._each_image.append(image)
            return
        if self._rule == "dilated_200":
            # Thresholding after a maximum filter equals dilating the thresholded map.
            scores = ndimage.maximum_filter(scores, size=_DILATION, mode="constant", cval=-np.inf)
        self._regions += _by_region(scores, labels)
        self._region_image += [image] * number

    def compute(self) -> ReleasedFigures:
        """The figure of all maps added so far."""
        if self._rule == "per_image_200":
            area = np.array(self._each, dtype=np.float64)
            # One failing image makes the mean of the released code undefined.
            value = defined(area.mean()) if area.size else None
            return ReleasedFigures(value, area, np.array(self._each_image, dtype=np.int64), self._rule, self._limit)
        images = np.array(self._region_image, dtype=np.int64)
        weight = np.array(self._weight, dtype=np.float64)
        low, high = self._extremes
        if not self._regions or not low < high or weight.sum() <= 0:
            return ReleasedFigures(None, np.full(len(images), np.nan), images, self._rule, self._limit)
        levels = _levels(low, high)
        free = self._pixels.free_above(levels)
        overlap = _overlaps(self._regions, levels)
        rate = free.sum(axis=0) / weight.sum()
        area = stretched_area(np.broadcast_to(rate, overlap.shape), overlap, rule=self._rule, limit=self._limit)
        of_image = np.zeros_like(free)
        np.add.at(of_image, images, overlap)
        counts = ReleasedCounts(free, weight, of_image, np.bincount(images, minlength=len(weight)))
        return ReleasedFigures(defined(area.mean()), area, images, self._rule, self._limit, counts)

    def _of_image(self, extremes: ScoreArray, regions: list[ScoreArray], free: ScoreArray, weight: float) -> float:
        """The figure of one image alone; NaN where the released code fails."""
        if not extremes[0] < extremes[1]:
            return float("nan")
        levels = _levels(*extremes)
        rate = (free.size - np.searchsorted(free, levels, side="right")) / weight
        return float(stretched_area(rate, _overlaps(regions, levels).mean(axis=0), rule=self._rule, limit=self._limit))


def _extremes(scores: ScoreArray) -> ScoreArray:
    """Smallest and largest finite score; +inf and -inf where there is none."""
    finite = scores[np.isfinite(scores)]
    return np.array([finite.min(initial=np.inf), finite.max(initial=-np.inf)], dtype=np.float32)


def _levels(low: np.float32, high: np.float32) -> ScoreArray:
    """The thresholds, descending."""
    step = (float(high) - float(low)) / THRESHOLDS
    return np.arange(float(low), float(high), step).astype(np.float32)[::-1]


def _by_region(scores: ScoreArray, labels: npt.NDArray[np.int32]) -> list[ScoreArray]:
    """The scores of each region, ascending."""
    inside = labels > 0
    own, region = scores[inside], labels[inside]
    order = np.lexsort((own, region))
    return np.split(own[order], np.cumsum(np.bincount(region)[1:])[:-1])


def _overlaps(regions: list[ScoreArray], levels: ScoreArray) -> FloatArray:
    """(regions, thresholds) share of each region that scores more than each threshold."""
    return np.array([1.0 - np.searchsorted(scores, levels, side="right") / scores.size for scores in regions])
