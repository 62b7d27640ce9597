"""Exact pixel figures over any number of maps in bounded memory.

Maps are added in any order and dropped at once. Flawed pixels' scores stay in memory; defect-free pixels'
scores go, sorted image by image, to a temporary file (in memory while small), because what they must be
counted against, the flawed pixels' scores, is known only when the last map is in. Every image also leaves its
counts at a common grid of thresholds, from which plots and bootstrap intervals are made.

Memory is about 40 bytes a flawed pixel and 24 KB an image; the file takes 4 bytes a defect-free pixel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.pro import (
    FPR_LIMIT,
    FreeCounts,
    ScoreArray,
    average_precision,
    count_free,
    gain_up_to,
    recall_area,
    split_map,
)
from flawsmith.metrics.ranking import FloatArray, defined, next_float
from flawsmith.runtime.errors import FlawsmithError

QUANTILES = 256
REGION_SAMPLES = 64
IN_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PixelBins:
    """Cumulative counts of every image at a common grid of thresholds.

    The thresholds are quantiles of the flawed pixels' scores (one half over pixels, one half over regions,
    every region alike), each with the next larger number beside it, so that ties stay apart. With few
    distinct scores the grid holds them all and curves drawn from it are exact; otherwise recall and overlap
    move by at most 1/256 between neighbours.

    Attributes:
        thresholds: (thresholds,) descending.
        free: (images, thresholds) defect-free pixels scoring at least the threshold.
        flawed: (images, thresholds) flawed pixels scoring at least the threshold.
        overlap: (images, thresholds) sum over the image's regions of the share scoring at least the
            threshold.
        n_free: (images,) defect-free pixels.
        n_flawed: (images,) flawed pixels.
        n_regions: (images,) annotated regions.
    """

    thresholds: ScoreArray
    free: npt.NDArray[np.float64]
    flawed: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]
    n_free: npt.NDArray[np.int64]
    n_flawed: npt.NDArray[np.int64]
    n_regions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PixelFigures:
    """Exact pixel figures of all maps added; None where undefined.

    Attributes:
        auroc: pixel AUROC, in [0, 1].
        average_precision: step-wise pixel AP, in [0, 1].
        aupro: area under the region-overlap curve up to the limit, in [0, 1].
        region_area: (regions,) each region's own share of the AUPRO, whose mean it is: the area under that
            region's overlap against the false-positive rate over all images.
        region_image: (regions,) index of the image, in the order of adding.
        bins: counts for curves and bootstrap intervals.
        limit: largest false-positive rate of the AUPRO.
    """

    auroc: float | None
    average_precision: float | None
    aupro: float | None
    region_area: FloatArray
    region_image: npt.NDArray[np.int64]
    bins: PixelBins
    limit: float


class PixelMetrics:
    """Gathers maps in any order, then computes exact pixel AUROC, pixel AP and AUPRO.

    A context manager, so that the temporary file goes with it:

    >>> with PixelMetrics() as pixels:
    ...     _ = pixels.add(np.array([[0.1, 0.9]]), np.array([[False, True]]))
    ...     _ = pixels.add(np.array([[0.2, 0.3]]))
    ...     pixels.compute().auroc
    1.0

    Args:
        in_memory_bytes: defect-free scores up to this size stay in memory.
        directory: folder of the temporary file beyond that; the system's own by default.
    """

    def __init__(self, *, in_memory_bytes: int = IN_MEMORY_BYTES, directory: Path | None = None) -> None:
        self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (closed by close)
            max_size=max(in_memory_bytes, 1), dir=None if directory is None else str(directory)
        )
        self._directory = directory or Path(tempfile.gettempdir())
        self._flawed: list[ScoreArray] = []
        self._region: list[npt.NDArray[np.int32]] = []
        self._n_regions: list[int] = []
        self._n_free: list[int] = []

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

    def add(
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
        part = split_map(anomaly_map, mask, excluded)
        with self._clear_errors():
            self._spool.write(part.free.data)
        self._n_free.append(part.free.size)
        self._n_regions.append(part.regions)
        self._flawed.append(part.flawed)
        self._region.append(part.region)
        return len(self._n_free) - 1

    def compute(self, *, limit: float = FPR_LIMIT) -> PixelFigures:
        """The figures of all maps added so far; more maps may follow.

        Args:
            limit: largest false-positive rate of the AUPRO, in (0, 1].
        """
        counts, number = self._counts()
        have_both = counts.total > 0 and len(counts.scores) > 0
        region_area = self._region_means(counts.scores, gain_up_to(counts, limit))
        return PixelFigures(
            auroc=defined(recall_area(counts, number)),
            average_precision=defined(average_precision(counts, number)),
            aupro=float(region_area.mean()) if have_both else None,
            region_area=region_area,
            region_image=np.repeat(np.arange(len(self._n_regions)), self._n_regions),
            bins=self._bins(self._grid(counts.scores, number)),
            limit=limit,
        )

    def count_free(self, scores: ScoreArray, images: Sequence[int]) -> FreeCounts:
        """The defect-free pixels of some images, counted against given scores.

        Args:
            scores: (distinct,) ascending, without repetition.
            images: indices of images, as :meth:`add` returned them.
        """
        return count_free(scores, self._free(images), sum(self._n_free[image] for image in images))

    def free_above(self, thresholds: ScoreArray) -> npt.NDArray[np.float64]:
        """(images, thresholds) defect-free pixels of every image that score more than each threshold."""
        return self._free_counts(thresholds, "right")

    def free_at_least(self, thresholds: ScoreArray) -> npt.NDArray[np.float64]:
        """(images, thresholds) defect-free pixels of every image that score at least each threshold."""
        return self._free_counts(thresholds, "left")

    def _free_counts(self, thresholds: ScoreArray, side: Literal["left", "right"]) -> npt.NDArray[np.float64]:
        counts = [scores.size - np.searchsorted(scores, thresholds, side=side) for scores in self._free()]
        return np.array(counts, dtype=np.float64).reshape(len(self._n_free), len(thresholds))

    @property
    def n_free(self) -> npt.NDArray[np.int64]:
        """(images,) number of defect-free pixels."""
        return np.array(self._n_free, dtype=np.int64)

    def _free(self, images: Sequence[int] | None = None) -> Iterator[ScoreArray]:
        """The defect-free scores, ascending, of some images or of all in the order of adding."""
        starts = np.cumsum([0, *self._n_free])
        for image in range(len(self._n_free)) if images is None else images:
            with self._clear_errors():  # what was written last may reach the disk only now
                self._spool.seek(4 * int(starts[image]))
                scores = self._spool.read(4 * self._n_free[image])
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

    def _counts(self) -> tuple[FreeCounts, npt.NDArray[np.int64]]:
        """Defect-free counts against the distinct flawed scores, and how many flawed pixels have each."""
        flawed = np.concatenate(self._flawed) if self._flawed else np.empty(0, dtype=np.float32)
        distinct, number = np.unique(flawed, return_counts=True)
        del flawed
        return count_free(distinct, self._free(), sum(self._n_free)), number

    def _region_means(self, distinct: ScoreArray, gain: FloatArray) -> FloatArray:
        """(regions,) mean gain over each region's pixels, regions in the order of adding."""
        means = [np.empty(0)]
        for flawed, region, regions in zip(self._flawed, self._region, self._n_regions, strict=True):
            if regions:
                sums = np.bincount(region, gain[np.searchsorted(distinct, flawed)], minlength=regions)
                means.append(sums / np.bincount(region, minlength=regions))
        return np.concatenate(means)

    def _grid(self, distinct: ScoreArray, number: npt.NDArray[np.int64]) -> ScoreArray:
        """Descending thresholds of the bins; see :class:`PixelBins`."""
        picked = distinct
        if len(distinct) > 2 * QUANTILES:
            ranks = np.linspace(1, number.sum(), QUANTILES)
            by_pixel = distinct[np.searchsorted(np.cumsum(number), ranks)]
            by_region = np.sort(np.concatenate([spread(one, REGION_SAMPLES) for one in self._regions()]))
            picked = np.unique(np.concatenate([by_pixel, spread(by_region, QUANTILES)]))
        return np.unique(np.concatenate([picked, next_float(picked)]))[::-1]

    def _regions(self) -> Iterator[ScoreArray]:
        """Every region's scores, ascending."""
        for flawed, region, number in zip(self._flawed, self._region, self._n_regions, strict=True):
            by_region = np.argsort(region, kind="stable")
            yield from np.split(flawed[by_region], np.cumsum(np.bincount(region, minlength=number))[:-1])

    def _bins(self, thresholds: ScoreArray) -> PixelBins:
        shape = (len(self._n_free), len(thresholds))
        flawed, overlap = np.zeros(shape), np.zeros(shape)
        ascending = thresholds[::-1]
        for index, (pixels, region) in enumerate(zip(self._flawed, self._region, strict=True)):
            if pixels.size:
                flawed[index] = pixels.size - np.searchsorted(pixels, thresholds, side="left")
                # Every pixel weighs 1 / size of its region; a bin holds what lies in [threshold, next larger
                # one).
                weight = 1.0 / np.bincount(region)[region]
                bins = np.searchsorted(ascending, pixels, side="right")
                share = np.bincount(bins, weight, minlength=len(ascending) + 1)[1:]
                overlap[index] = np.cumsum(share[::-1])
        return PixelBins(
            thresholds=thresholds,
            free=self.free_at_least(thresholds),
            flawed=flawed,
            overlap=overlap,
            n_free=self.n_free,
            n_flawed=np.array([one.size for one in self._flawed], dtype=np.int64),
            n_regions=np.array(self._n_regions, dtype=np.int64),
        )


def spread(ascending: ScoreArray, number: int) -> ScoreArray:
    """At most ``number`` of the values, evenly spaced in rank, with both extremes."""
    if len(ascending) <= number:
        return ascending
    return ascending[np.linspace(0, len(ascending) - 1, number).astype(int)]
