"""Legacy PRO: region overlap as released codes compute it, to stand beside published tables, not to judge a model by.

All use equally spaced thresholds between the extremes of maps, ``score > t``, and drop false-positive rates at or
above the limit without interpolating there.

``dilated_200`` (GLASS, PBAS): predictions are dilated by 5×5 pixels for the overlap but not for the false-positive
rate, and the rates that remain are stretched to [0, 1], which inflates the figure. A perfect binary map, whose rates
are all equal, gives 0, as in the released code. ``whole_200``: no dilation, the rates are divided by their
largest. ``per_image_200`` (RD4AD): that for each flawed image with a defect-free pixel, between the extremes of its
own map, then the mean.

The released codes fail, and some then report 0, where maps are constant or no rate lies below the limit; here the
figure is undefined. Memory is 4 bytes a flawed pixel and 1.6 KB an image and region, beside that of
:mod:`flawsmith.metrics.accumulate`, which counts the defect-free pixels.

Source: released code of GLASS and PBAS, and of RD4AD, which AAND carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from flawsmith.metrics.accumulate import IN_MEMORY_BYTES, PixelMetrics, PixelResult, ThresholdCounts
from flawsmith.metrics.pro import FPR_LIMIT, ScoreArray, label_regions, mean_area
from flawsmith.metrics.ranking import FloatArray

Rule = Literal["dilated_200", "whole_200", "per_image_200"]

THRESHOLDS = 200
_DILATION = 5


@dataclass(frozen=True, eq=False)
class LegacyResult(PixelResult):
    """Figures of all maps taken in, with a legacy PRO as the overlap; None where the released code fails.

    ``region_area`` is by flawed image for ``per_image_200``.

    Attributes:
        rule: which code.
        legacy_counts: counts at the code's thresholds, negatives weighing ``1 - mask`` in ``n_negatives``; None for
            ``per_image_200``, where the mean is over images.
    """

    rule: Rule = "dilated_200"
    legacy_counts: ThresholdCounts | None = None

    def resampled_overlap(self, counts: ThresholdCounts, weights: npt.ArrayLike) -> FloatArray:
        """As :meth:`flawsmith.metrics.accumulate.PixelResult.resampled_overlap`."""
        times = np.asarray(weights, dtype=np.float64)
        if self.overlap is None:
            return np.full(len(times), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.legacy_counts is None:
                by_image = times[:, self.region_image]
                return (by_image @ self.region_area) / by_image.sum(axis=1)
            legacy = self.legacy_counts.weighted(times)
            rate = legacy.negatives / legacy.n_negatives.astype(np.float64)[:, None]
            overlap = legacy.overlap / legacy.n_regions.astype(np.float64)[:, None]
        return stretched_area(rate, overlap, rule=self.rule, limit=self.limit)


def stretched_area(rate: FloatArray, overlap: FloatArray, *, rule: Rule, limit: float = FPR_LIMIT) -> FloatArray:
    """Area under the part of an overlap curve below the limit, after its rates have been stretched.

    Args:
        rate: (..., thresholds) false-positive rates, ascending.
        overlap: (..., thresholds) mean overlap there, in [0, 1]; NaN of a resample without regions.
        rule: ``dilated_200`` stretches the rates below the limit from lowest and highest to 0 and 1, the others from 0
            and highest.
        limit: rates at or above are dropped.

    Returns:
        (...) areas; NaN where no rate is below the limit, there are no regions or, without dilation, all these rates
            are 0.
    """
    below = rate < limit
    steps = np.where(below[..., 1:], np.diff(rate, axis=-1), 0.0)
    area = (steps * (overlap[..., 1:] + overlap[..., :-1]) / 2).sum(axis=-1)
    highest = np.where(below, rate, 0.0).max(axis=-1)
    dilated = rule == "dilated_200"
    span = highest - rate[..., 0] if dilated else highest
    flat = np.where(below[..., 0] & ~np.isnan(overlap[..., 0]), 0.0 if dilated else np.nan, np.nan)
    stretched: FloatArray = np.where(span > 0, np.divide(area, span, out=np.zeros_like(area), where=span > 0), flat)
    return stretched


class LegacyPRO(PixelMetrics):
    """Takes in maps in any order, then computes exact pixel AUROC and AP beside a legacy PRO.

    >>> mask = np.array([[0.0, 0.0, 1.0]])
    >>> with LegacyPRO("whole_200") as pixels:
    ...     _ = pixels.update([[0.0, 1.0, 2.0]], mask)
    ...     result = pixels.compute()
    >>> result.auroc, result.overlap  # one rate of 0, the next is 1/2
    (1.0, None)

    Args:
        rule: which code.
        limit: rates at or above are dropped.
        in_memory_bytes, directory: as of :class:`flawsmith.metrics.accumulate.PixelMetrics`.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        limit: float = FPR_LIMIT,
        in_memory_bytes: int = IN_MEMORY_BYTES,
        directory: Path | None = None,
    ) -> None:
        super().__init__(limit=limit, in_memory_bytes=in_memory_bytes, directory=directory)
        self._rule = rule
        self._extremes = np.array([np.inf, -np.inf], dtype=np.float32)
        self._weight: list[float] = []
        self._regions: list[ScoreArray] = []
        self._region_image: list[int] = []
        self._area_of_image: list[float] = []

    def update(
        self,
        anomaly_map: npt.ArrayLike,
        mask: npt.ArrayLike | None = None,
        excluded: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Take in one map; nothing of the arrays is kept.

        Args:
            anomaly_map: (height, width) scores, taken as float32; -inf is above no threshold.
            mask: (height, width) in [0, 1]; pixels below 1 are defect-free and, partly covered, weigh ``1 - mask`` in
                the denominator of the false-positive rate and 1 in its numerator. None for an image without a flaw.
            excluded: (height, width), True where a pixel takes no part.

        Returns:
            The image's index, from 0.

        Raises:
            ValueError: a NaN score, or shapes that differ.
            FlawsmithError: the temporary file cannot be written.
        """
        scores = np.asarray(anomaly_map, dtype=np.float32)
        soft = np.zeros(scores.shape) if mask is None else np.asarray(mask, dtype=np.float64)
        image = super().update(scores, None if mask is None else soft >= 1, excluded)
        if excluded is not None:
            scores = np.where(excluded, np.float32(-np.inf), scores)
        takes_part = np.ones(scores.shape, dtype=bool) if excluded is None else ~excluded
        extremes = _extremes(scores)
        self._extremes = np.array(
            [min(self._extremes[0], extremes[0]), max(self._extremes[1], extremes[1])], dtype=np.float32
        )
        self._weight.append(float((1.0 - soft)[takes_part].sum()))
        labels, number = label_regions((soft >= 1) & takes_part)
        if number and self._rule == "per_image_200":
            negatives = np.sort(scores[takes_part & (labels == 0)])
            if negatives.size:
                regions = _by_region(scores, labels)
                self._area_of_image.append(self._area(extremes, regions, negatives, self._weight[-1]))
                self._region_image.append(image)
        elif number:
            if self._rule == "dilated_200":
                # Thresholding after a maximum filter equals dilating the thresholded map.
                scores = ndimage.maximum_filter(scores, size=_DILATION, mode="constant", cval=-np.inf)
            self._regions += _by_region(scores, labels)
            self._region_image += [image] * number
        return image

    def compute(self) -> LegacyResult:
        """The figures of all maps taken in so far; more maps may follow.

        Raises:
            FlawsmithError: the temporary file cannot be written.
        """
        exact = super().compute()
        images = np.array(self._region_image, dtype=np.int64)
        area, counts = np.full(len(images), np.nan), None
        if self._rule == "per_image_200":
            area = np.array(self._area_of_image, dtype=np.float64)
        elif self._regions and self._extremes[0] < self._extremes[1] and sum(self._weight) > 0:
            counts, area = self._at_thresholds(images)
        return LegacyResult(
            # One failing image makes the mean of the released code undefined, as NaN does here.
            overlap=mean_area(area),
            region_area=area,
            region_image=images,
            counts=exact.counts,
            limit=self._limit,
            auroc=exact.auroc,
            average_precision=exact.average_precision,
            rule=self._rule,
            legacy_counts=counts,
        )

    def _at_thresholds(self, images: npt.NDArray[np.int64]) -> tuple[ThresholdCounts, FloatArray]:
        """Counts at the thresholds between the extremes of all maps, and each region's area."""
        weight = np.array(self._weight, dtype=np.float64)
        levels = _levels(*self._extremes)
        negatives = self.negatives_at(levels, ties=False)
        overlap = _overlaps(self._regions, levels)
        rate = negatives.sum(axis=0) / weight.sum()
        area = stretched_area(np.broadcast_to(rate, overlap.shape), overlap, rule=self._rule, limit=self._limit)
        of_image = np.zeros_like(negatives)
        np.add.at(of_image, images, overlap)
        n_regions = np.bincount(images, minlength=len(weight))
        return ThresholdCounts(levels, negatives, weight, of_image, n_regions), area

    def _area(self, extremes: ScoreArray, regions: list[ScoreArray], negatives: ScoreArray, weight: float) -> float:
        """The figure of one image alone; NaN where the released code fails."""
        if not extremes[0] < extremes[1]:
            return float("nan")
        levels = _levels(*extremes)
        rate = (negatives.size - np.searchsorted(negatives, levels, side="right")) / weight
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
    positives, region = scores[inside], labels[inside]
    order = np.lexsort((positives, region))
    return np.split(positives[order], np.cumsum(np.bincount(region)[1:])[:-1])


def _overlaps(regions: list[ScoreArray], levels: ScoreArray) -> FloatArray:
    """(regions, thresholds) rate of each region that scores more than each threshold."""
    return np.array([1.0 - np.searchsorted(scores, levels, side="right") / scores.size for scores in regions])
