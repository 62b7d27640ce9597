"""Figures over pixels and regions of any number of maps in bounded memory, exact and ready to be resampled.

Maps are taken in one by one, in any order, and dropped at once. Flawed pixels' scores stay in memory; those of
defect-free pixels, the negatives, go, sorted image by image, to a temporary file (in memory while small), because what
they must be counted against, the flawed pixels' scores, is known only when the last map is in. Every image also leaves
its counts at a common grid of thresholds, from which plots and bootstrap intervals are made.

The sums are those of :mod:`flawsmith.metrics.pro` and :mod:`flawsmith.metrics.spro`, whose functions take all maps at
once.

Memory is about 40 bytes a flawed pixel and 24 KB an image; the file takes 4 bytes a defect-free pixel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.pro import (
    FPR_LIMIT,
    FalsePositiveCounts,
    RegionArray,
    ScoreArray,
    count_negatives,
    distinct_scores,
    mean_area,
    merged,
    pixel_auroc_from_counts,
    pixel_average_precision_from_counts,
    region_areas,
    split_map,
)
from flawsmith.metrics.ranking import (
    Curve,
    FloatArray,
    area_from_counts,
    average_precision_from_counts,
    next_float,
    rates,
)
from flawsmith.metrics.spro import SPRO_LIMIT, Channel, channel_areas, highest_scores
from flawsmith.runtime.errors import FlawsmithError

QUANTILES = 256
CHANNEL_QUANTILES = 512
SAMPLES = 64
IN_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """Cumulative counts of every image at a common grid of thresholds, for curves and bootstrap intervals.

    The thresholds are quantiles of the scores that the figures depend on, each with the next larger number beside it,
    so that ties stay apart. With few distinct scores the grid holds them all and figures made from it are exact;
    otherwise recall and overlap move by at most 1/256 between neighbours.

    Attributes:
        thresholds: (thresholds,) descending.
        negatives: (images, thresholds) defect-free pixels scoring at least the threshold.
        n_negatives: (images,) defect-free pixels.
        overlap: (images, thresholds) sum over the image's regions of the rate scoring at least the threshold.
        n_regions: (images,) annotated regions, or channels that mark a pixel.
        positives: (images, thresholds) flawed pixels scoring at least the threshold; None where regions alone count.
        n_positives: (images,) flawed pixels, or None.
    """

    thresholds: ScoreArray
    negatives: FloatArray
    n_negatives: npt.NDArray[np.number]
    overlap: FloatArray
    n_regions: npt.NDArray[np.number]
    positives: FloatArray | None = None
    n_positives: npt.NDArray[np.number] | None = None

    def weighted(self, weights: npt.ArrayLike) -> ThresholdCounts:
        """The counts of resampled images.

        Args:
            weights: (resamples, images) how often each image counts.

        Returns:
            The same with resamples in the place of images: all images of each together.
        """
        times = np.asarray(weights, dtype=np.float64)
        return ThresholdCounts(
            thresholds=self.thresholds,
            negatives=times @ self.negatives,
            n_negatives=times @ self.n_negatives,
            overlap=times @ self.overlap,
            n_regions=times @ self.n_regions,
            positives=None if self.positives is None else times @ self.positives,
            n_positives=None if self.n_positives is None else times @ self.n_positives,
        )

    def overlap_area(self, limit: float) -> FloatArray:
        """(images,) areas under the curves of region overlap up to a false-positive rate; NaN where undefined."""
        return area_from_counts(self.negatives, self.n_negatives, self.overlap, self.n_regions, limit)

    def auroc(self) -> FloatArray:
        """(images,) areas under the ROC curves over pixels; NaN where undefined."""
        assert self.positives is not None
        assert self.n_positives is not None
        return area_from_counts(self.negatives, self.n_negatives, self.positives, self.n_positives)

    def average_precision(self) -> FloatArray:
        """(images,) step-wise average precision over pixels; NaN where undefined."""
        assert self.positives is not None
        assert self.n_positives is not None
        steps = np.diff(self.positives, axis=-1, prepend=0.0)
        return average_precision_from_counts(steps, self.positives, self.negatives, self.n_positives)

    def curve(self, kind: Literal["overlap", "roc"]) -> Curve:
        """Points of the curve of all images together that lie on the exact one."""
        reached, total = (self.overlap, self.n_regions) if kind == "overlap" else (self.positives, self.n_positives)
        assert reached is not None
        assert total is not None
        return Curve(
            x=rates(self.negatives.sum(axis=0), self.n_negatives.sum()),
            y=np.minimum(rates(reached.sum(axis=0), total.sum()), 1.0),
            thresholds=np.concatenate([[np.inf], self.thresholds.astype(np.float64), [-np.inf]]),
        )


@dataclass(frozen=True, eq=False)
class PixelResult:
    """Figures of all maps taken in, and what resampled ones are made of; None where undefined.

    Attributes:
        overlap: area under the curve of region overlap up to the limit, in [0, 1]: AUPRO, AU-sPRO, or a legacy PRO.
        region_area: (regions,) each region's area, whose mean ``overlap`` is, against the false-positive rate over all
            images.
        region_image: (regions,) index of the image, in the order of taking in.
        counts: counts for curves and bootstrap intervals.
        limit: largest false-positive rate of the overlap.
        auroc: pixel AUROC, in [0, 1]; not given beside AU-sPRO.
        average_precision: step-wise pixel AP, in [0, 1]; not given beside AU-sPRO.
        by_defect: AU-sPRO by defect type: over its channels, against its own images and the good ones, as MVTec LOCO
            AD keeps logical and structural anomalies apart.
    """

    overlap: float | None
    region_area: FloatArray
    region_image: npt.NDArray[np.int64]
    counts: ThresholdCounts
    limit: float
    auroc: float | None = None
    average_precision: float | None = None
    by_defect: Mapping[str, float | None] = field(default_factory=dict)

    def resampled_overlap(self, counts: ThresholdCounts, weights: npt.ArrayLike) -> FloatArray:
        """The figure of overlap of resampled images.

        Args:
            counts: ``self.counts.weighted(weights)``.
            weights: (resamples, images) how often each image counts, images in the order of taking in.

        Returns:
            (resamples,) values; NaN where undefined.
        """
        return counts.overlap_area(self.limit)


class PixelMetrics:
    """Takes in maps in any order, then computes exact pixel AUROC, pixel AP and AUPRO.

    A context manager, so that the temporary file goes with it:

    >>> with PixelMetrics() as pixels:
    ...     _ = pixels.update(np.array([[0.1, 0.9]]), np.array([[False, True]]))
    ...     _ = pixels.update(np.array([[0.2, 0.3]]))
    ...     result = pixels.compute()
    >>> result.auroc, result.average_precision, result.overlap
    (1.0, 1.0, 1.0)

    Args:
        limit: largest false-positive rate of the AUPRO, in (0, 1].
        in_memory_bytes: negatives' scores up to this size stay in memory.
        directory: folder of the temporary file beyond that; the system's own by default.
    """

    def __init__(
        self, *, limit: float = FPR_LIMIT, in_memory_bytes: int = IN_MEMORY_BYTES, directory: Path | None = None
    ) -> None:
        self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (closed by close)
            max_size=max(in_memory_bytes, 1), dir=None if directory is None else str(directory)
        )
        self._directory = directory or Path(tempfile.gettempdir())
        self._limit = limit
        self._positives: list[ScoreArray] = []
        self._region: list[RegionArray] = []
        self._n_negatives: list[int] = []

    def __enter__(self) -> PixelMetrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the temporary file. Nothing can be added or computed afterwards."""
        # What a full disk did not take is written once more on closing; it is not wanted any longer.
        with suppress(OSError):
            self._spool.close()

    def update(
        self,
        anomaly_map: npt.ArrayLike,
        mask: npt.ArrayLike | None = None,
        excluded: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Take in one map; nothing of the array is kept.

        Args:
            anomaly_map: (height, width) scores, computed with as float32; -inf where not inspected.
            mask: (height, width), non-zero where flawed; None for an image without a flaw.
            excluded: (height, width), True where a pixel takes no part; None: all take part.

        Returns:
            The image's index, from 0.

        Raises:
            ValueError: a NaN score, or shapes that differ.
            FlawsmithError: the temporary file cannot be written.
        """
        positives, region, negatives = split_map(anomaly_map, mask, excluded)
        with self._clear_errors():
            self._spool.write(negatives.data)
        self._n_negatives.append(negatives.size)
        self._positives.append(positives)
        self._region.append(region)
        return len(self._n_negatives) - 1

    def compute(self) -> PixelResult:
        """The figures of all maps taken in so far; more maps may follow.

        Raises:
            ValueError: a limit outside (0, 1].
            FlawsmithError: the temporary file cannot be written.
        """
        distinct, number = distinct_scores(self._positives)
        counts = count_negatives(distinct, self._negatives(), sum(self._n_negatives))
        region_area = region_areas(self._positives, self._region, counts, self._limit)
        return PixelResult(
            overlap=mean_area(region_area),
            region_area=region_area,
            region_image=np.repeat(np.arange(len(self._n_negatives)), self._n_regions()),
            counts=self._threshold_counts(self._grid(distinct, number)),
            limit=self._limit,
            auroc=pixel_auroc_from_counts(counts, number),
            average_precision=pixel_average_precision_from_counts(counts, number),
        )

    def count_negatives(self, scores: ScoreArray, images: Sequence[int]) -> FalsePositiveCounts:
        """The defect-free pixels of some images, counted against given scores.

        Args:
            scores: (distinct,) ascending, without repetition.
            images: indices of images, as :meth:`update` returned them.
        """
        return count_negatives(scores, self._negatives(images), sum(self._n_negatives[image] for image in images))

    def negatives_at(self, thresholds: ScoreArray, *, ties: bool) -> FloatArray:
        """(images, thresholds) defect-free pixels scoring more than each threshold, or with ties at least as much."""
        side: Literal["left", "right"] = "left" if ties else "right"
        counts = [scores.size - np.searchsorted(scores, thresholds, side=side) for scores in self._negatives()]
        return np.array(counts, dtype=np.float64).reshape(len(self._n_negatives), len(thresholds))

    @property
    def n_negatives(self) -> npt.NDArray[np.int64]:
        """(images,) number of defect-free pixels."""
        return np.array(self._n_negatives, dtype=np.int64)

    def _negatives(self, images: Sequence[int] | None = None) -> Iterator[ScoreArray]:
        """The negatives' scores, ascending, of some images or of all in the order of taking in."""
        starts = np.cumsum([0, *self._n_negatives])
        for image in range(len(self._n_negatives)) if images is None else images:
            with self._clear_errors():  # what was written last may reach the disk only now
                self._spool.seek(4 * int(starts[image]))
                scores = self._spool.read(4 * self._n_negatives[image])
            yield np.frombuffer(scores, dtype=np.float32)
        self._spool.seek(0, 2)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FlawsmithError(
                f"no room for the pixel scores of the evaluation in {self._directory} ({error.strerror}): "
                "free space there, 4 bytes a test pixel, or point TMPDIR to a folder that has it"
            ) from error

    def _n_regions(self) -> npt.NDArray[np.int64]:
        return np.array([int(region.max(initial=-1)) + 1 for region in self._region], dtype=np.int64)

    def _grid(self, distinct: ScoreArray, number: npt.NDArray[np.integer]) -> ScoreArray:
        """Descending thresholds: one half quantiles over flawed pixels, one half over regions, every region alike."""
        picked = distinct
        if len(distinct) > 2 * QUANTILES:
            ranks = np.linspace(1, number.sum(), QUANTILES)
            by_pixel = distinct[np.searchsorted(np.cumsum(number), ranks)]
            by_region = np.sort(np.concatenate([_spread(scores, SAMPLES) for scores in self._scores_by_region()]))
            picked = np.unique(np.concatenate([by_pixel, _spread(by_region, QUANTILES)]))
        return _with_neighbours(picked)

    def _scores_by_region(self) -> Iterator[ScoreArray]:
        """Every region's scores, ascending."""
        for positives, region in zip(self._positives, self._region, strict=True):
            if positives.size:
                by_region = np.argsort(region, kind="stable")
                yield from np.split(positives[by_region], np.cumsum(np.bincount(region))[:-1])

    def _threshold_counts(self, thresholds: ScoreArray) -> ThresholdCounts:
        shape = (len(self._n_negatives), len(thresholds))
        reached, overlap = np.zeros(shape), np.zeros(shape)
        ascending = thresholds[::-1]
        for image, (positives, region) in enumerate(zip(self._positives, self._region, strict=True)):
            if positives.size:
                reached[image] = positives.size - np.searchsorted(positives, thresholds, side="left")
                # Every pixel weighs 1 / size of its region; a bin holds what lies in [threshold, next larger one).
                weight = 1.0 / np.bincount(region)[region]
                bins = np.searchsorted(ascending, positives, side="right")
                steps = np.bincount(bins, weight, minlength=len(ascending) + 1)[1:]
                overlap[image] = np.cumsum(steps[::-1])
        return ThresholdCounts(
            thresholds=thresholds,
            negatives=self.negatives_at(thresholds, ties=True),
            n_negatives=self.n_negatives,
            overlap=overlap,
            n_regions=self._n_regions(),
            positives=reached,
            n_positives=np.array([positives.size for positives in self._positives], dtype=np.int64),
        )


class SaturatedOverlap:
    """Takes in the channels of maps, then computes exact AU-sPRO, for each type of defect and pooled.

    The negatives are those of a :class:`PixelMetrics` that takes in each map first. Of a channel only the highest
    scores are kept: 4 bytes a pixel of its saturation area, and while computing about 50.

    >>> channel = Channel(np.array([[False, True]]), threshold=1.0, relative=True)
    >>> with PixelMetrics() as pixels:
    ...     saturated = SaturatedOverlap(pixels)
    ...     _ = pixels.update([[0.1, 0.9]], channel.mask)
    ...     saturated.update([[0.1, 0.9]], [channel], defect="logical_anomalies")
    ...     result = saturated.compute()
    >>> result.overlap, result.by_defect
    (1.0, {'logical_anomalies': 1.0})

    Args:
        pixels: takes in every map, good ones too, with the union of its channels as mask.
        limit: largest false-positive rate, in (0, 1].
    """

    def __init__(self, pixels: PixelMetrics, *, limit: float = SPRO_LIMIT) -> None:
        self._pixels, self._limit = pixels, limit
        self._highest: list[ScoreArray] = []
        self._image: list[int] = []
        self._defects: list[str | None] = []

    def update(self, anomaly_map: npt.ArrayLike, channels: Sequence[Channel], *, defect: str | None = None) -> None:
        """Take in the defects of the image that ``pixels`` took in last; nothing of the arrays is kept.

        Args:
            anomaly_map: (height, width) scores, taken as float32; -inf where not inspected.
            channels: its defects, of the map's size; empty ones are passed over.
            defect: the image's defect type, None for a good one.

        Raises:
            ValueError: sizes that differ.
        """
        self._defects.append(defect)
        for channel in channels:
            scores = highest_scores(anomaly_map, channel)
            if scores.size:
                self._highest.append(scores)
                self._image.append(len(self._defects) - 1)

    def compute(self) -> PixelResult | None:
        """The figures of all maps taken in so far; None where no channel marks a pixel.

        Raises:
            ValueError: a limit outside (0, 1].
            FlawsmithError: the temporary file cannot be written.
        """
        if not self._highest:
            return None
        distinct, _ = distinct_scores(self._highest)
        counts = {
            defect: self._pixels.count_negatives(
                distinct, [image for image, other in enumerate(self._defects) if other == defect]
            )
            for defect in (None, *sorted({defect for defect in self._defects if defect is not None}))
        }
        areas = channel_areas(self._highest, merged(list(counts.values())), self._limit)
        return PixelResult(
            overlap=mean_area(areas),
            region_area=areas,
            region_image=np.array(self._image, dtype=np.int64),
            counts=self._threshold_counts(self._grid(distinct)),
            limit=self._limit,
            by_defect={
                defect: mean_area(channel_areas(self._of(defect), merged([counts[None], count]), self._limit))
                for defect, count in counts.items()
                if defect is not None
            },
        )

    def _of(self, defect: str) -> list[ScoreArray]:
        """The scores of the channels of one type of defect."""
        pairs = zip(self._highest, self._image, strict=True)
        return [scores for scores, image in pairs if self._defects[image] == defect]

    def _grid(self, distinct: ScoreArray) -> ScoreArray:
        """Descending thresholds: quantiles of the scores that count, every channel alike."""
        picked = distinct
        if len(distinct) > CHANNEL_QUANTILES:
            by_channel = np.sort(np.concatenate([_spread(scores, SAMPLES) for scores in self._highest]))
            picked = _spread(by_channel, CHANNEL_QUANTILES)
        return _with_neighbours(picked)

    def _threshold_counts(self, thresholds: ScoreArray) -> ThresholdCounts:
        negatives = self._pixels.negatives_at(thresholds, ties=True)
        overlap = np.zeros_like(negatives)
        for image, scores in zip(self._image, self._highest, strict=True):
            overlap[image] += 1.0 - np.searchsorted(scores, thresholds, side="left") / scores.size
        return ThresholdCounts(
            thresholds=thresholds,
            negatives=negatives,
            n_negatives=self._pixels.n_negatives,
            overlap=overlap,
            n_regions=np.bincount(self._image, minlength=len(negatives)),
        )


def _spread(ascending: ScoreArray, number: int) -> ScoreArray:
    """At most ``number`` of the values, evenly spaced in rank, with both extremes."""
    if len(ascending) <= number:
        return ascending
    return ascending[np.linspace(0, len(ascending) - 1, number).astype(int)]


def _with_neighbours(picked: ScoreArray) -> ScoreArray:
    """The values and the next larger number of each, descending."""
    return np.unique(np.concatenate([picked, next_float(picked)]))[::-1]
