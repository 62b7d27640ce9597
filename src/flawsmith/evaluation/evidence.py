"""What an evaluation keeps of the inspected images: scores, labels and pixel counts, never maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flawsmith.evaluation.curves import Curve, FloatArray, shares
from flawsmith.evaluation.overlap import FPR_LIMIT
from flawsmith.evaluation.pooling import IN_MEMORY_BYTES, PixelFigures, PixelMetrics
from flawsmith.evaluation.ranking import roc_curve
from flawsmith.evaluation.saturated import SPRO_LIMIT, Channel
from flawsmith.evaluation.saturated_pooling import SaturatedFigures, SaturatedOverlap
from flawsmith.runtime.errors import FlawsmithError


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One inspected image beside its ground truth.

    Attributes:
        image: name of the image, unique in the test set.
        score: image score, higher is more anomalous.
        verdict: ``pass``, ``review`` or ``reject``.
        defect: the defect type as the folder names it; ``good`` for good images.
        flawed: ground truth of the image.
        map: (height, width) float32 anomaly map in original pixels, or None.
        mask: (height, width) True where flawed, or None: a good image, or a flawed one that was never
            annotated.
        not_inspected: (height, width) True where the map says nothing (cut away by a crop), or None. These
            pixels get the lowest score, -inf; a map may also hold -inf there itself.
        channels: the annotated defects one by one, of the mask's size, which is their union; none where the data set
            does not say when a defect counts as found.
    """

    image: str
    score: float
    verdict: str
    defect: str
    flawed: bool
    map: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    not_inspected: npt.NDArray[np.bool_] | None = None
    channels: tuple[Channel, ...] = ()


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that figures, intervals and plots are computed from; images in the order they came.

    Attributes:
        images: names.
        scores: (images,) image scores.
        flawed: (images,) True for flawed images.
        verdicts: verdict of each image.
        defects: defect type of each image.
        pixel_index: (images,) the image's index in ``pixels``, -1 where it takes no part in the pixel
            figures.
        pixels: exact pixel figures and counts, None where no image had a map.
        notes: what was resized, left out or lost, in sentences.
        saturated: figures of the saturated region overlap, None where no record had channels.
    """

    images: tuple[str, ...]
    scores: FloatArray
    flawed: npt.NDArray[np.bool_]
    verdicts: tuple[str, ...]
    defects: tuple[str, ...]
    pixel_index: npt.NDArray[np.int64]
    pixels: PixelFigures | None
    notes: tuple[str, ...]
    saturated: SaturatedFigures | None = None

    def roc_curve(self) -> Curve | None:
        """The ROC curve of the image scores, or None without good or flawed images."""
        return roc_curve(self.scores, self.flawed)

    def pro_curve(self) -> Curve | None:
        """Exact points of the region-overlap curve, or None without annotated flaws."""
        if self.pixels is None or self.pixels.aupro is None:
            return None
        bins = self.pixels.bins
        return self._pixel_curve(bins.overlap.sum(axis=0), bins.n_regions.sum())

    def pixel_roc_curve(self) -> Curve | None:
        """Exact points of the ROC curve over pixels, or None without annotated flaws."""
        if self.pixels is None or self.pixels.auroc is None:
            return None
        bins = self.pixels.bins
        return self._pixel_curve(bins.flawed.sum(axis=0), bins.n_flawed.sum())

    def spro_curve(self) -> Curve | None:
        """Exact points of the curve of saturated overlap, all defects pooled, or None where that is undefined."""
        if self.saturated is None or self.saturated.pooled is None:
            return None
        bins = self.saturated.bins
        return Curve(
            x=shares(bins.free.sum(axis=0), bins.n_free.sum()),
            y=np.minimum(shares(bins.overlap.sum(axis=0), bins.n_channels.sum()), 1.0),
            thresholds=np.concatenate([[np.inf], bins.thresholds.astype(np.float64), [-np.inf]]),
        )

    def _pixel_curve(self, reached: FloatArray, total: np.int64) -> Curve:
        assert self.pixels is not None
        bins = self.pixels.bins
        thresholds = np.concatenate([[np.inf], bins.thresholds.astype(np.float64), [-np.inf]])
        return Curve(
            x=shares(bins.free.sum(axis=0), bins.n_free.sum()),
            y=np.minimum(shares(reached, total), 1.0),
            thresholds=thresholds,
        )


def resize_mask(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Resize a mask to (height, width) by the nearest pixel, half-pixel centres."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[np.ix_(rows, columns)]


_OBSERVATIONS = {
    "no_map": "{} without an anomaly map: left out of the pixel figures.",
    "no_mask": "{} flawed without a mask: left out of the pixel figures.",
    "empty_mask": "{} flawed with an empty mask: left out of the pixel figures.",
    "resized": "{} with a mask of another size than the image: the mask was resized by the nearest pixel.",
    "vanished": "{} lost every annotated pixel when the mask was resized: left out of the pixel figures.",
    "unseen": "{} with flaws only where the model does not look (outside its crop): counted as not found.",
}


def gather(
    records: Iterable[ImageRecord],
    *,
    limit: float = FPR_LIMIT,
    spro_limit: float = SPRO_LIMIT,
    notes: Sequence[str] = (),
    in_memory_bytes: int = IN_MEMORY_BYTES,
    directory: Path | None = None,
) -> Evidence:
    """Stream records into evidence; maps are dropped as they come.

    Args:
        records: inspected images, in any order.
        limit: largest false-positive rate of the AUPRO, in (0, 1].
        spro_limit: largest false-positive rate of the sPRO, in (0, 1].
        notes: what is known of the data beforehand, in sentences; comes before what is found on the way.
        in_memory_bytes: defect-free pixel scores beyond this go to a temporary file.
        directory: folder of that file; the system's own by default.

    Raises:
        FlawsmithError: an image name twice, a good image with a flawed mask, or no record at all.
        ValueError: a NaN score.
    """
    kept: list[ImageRecord] = []
    index: list[int] = []
    seen: Counter[str] = Counter()
    with PixelMetrics(in_memory_bytes=in_memory_bytes, directory=directory) as pixels:
        saturated = SaturatedOverlap(pixels)
        for record in records:
            index.append(_add_pixels(pixels, saturated, record, seen))
            kept.append(_without_arrays(record))
        _check(kept)
        figures = pixels.compute(limit=limit) if max(index, default=-1) >= 0 else None
        # Images take their places among the pixels in the order they came.
        taking_part = [record for record, place in zip(kept, index, strict=True) if place >= 0]
        spro = saturated.compute([one.defect if one.flawed else None for one in taking_part], limit=spro_limit)
    return Evidence(
        images=tuple(record.image for record in kept),
        scores=np.array([record.score for record in kept], dtype=np.float64),
        flawed=np.array([record.flawed for record in kept], dtype=bool),
        verdicts=tuple(record.verdict for record in kept),
        defects=tuple(record.defect for record in kept),
        pixel_index=np.array(index, dtype=np.int64),
        pixels=figures,
        notes=(
            *notes,
            *(
                text.format(f"{seen[key]} image{'s' if seen[key] > 1 else ''}")
                for key, text in _OBSERVATIONS.items()
                if seen[key]
            ),
        ),
        saturated=spro,
    )


def _without_arrays(record: ImageRecord) -> ImageRecord:
    return ImageRecord(record.image, float(record.score), record.verdict, record.defect, bool(record.flawed))


def _check(records: list[ImageRecord]) -> None:
    if not records:
        raise FlawsmithError(
            "there is no test image to evaluate: give a data set with a test split (test/good, test/<defect>)"
        )
    name, times = Counter(record.image for record in records).most_common(1)[0]
    if times > 1:
        raise FlawsmithError(f"the image {name} stands {times} times in the test set: keep it once")


def _add_pixels(pixels: PixelMetrics, saturated: SaturatedOverlap, record: ImageRecord, seen: Counter[str]) -> int:
    """Feed one record's map to the pixel figures; its index there, or -1 where it takes no part."""
    mask = None if record.mask is None else np.asarray(record.mask) != 0
    if not record.flawed and mask is not None and mask.any():
        raise FlawsmithError(
            f"{record.image} counts as good but its mask marks flawed pixels: "
            "move the image to its defect's folder, or remove the mask"
        )
    if record.map is None:
        seen["no_map"] += 1
        return -1
    if record.flawed and (mask is None or not mask.any()):
        seen["no_mask" if mask is None else "empty_mask"] += 1
        return -1
    scores = np.asarray(record.map, dtype=np.float32)
    if record.not_inspected is not None:
        scores = np.where(record.not_inspected, np.float32(-np.inf), scores)
    if not record.flawed or mask is None:
        return pixels.add(scores)
    channels = record.channels
    if mask.shape != scores.shape:
        seen["resized"] += 1
        size = (scores.shape[0], scores.shape[1])
        mask = resize_mask(mask, size)
        channels = tuple(_resized(channel, size) for channel in channels)
        if not mask.any():
            seen["vanished"] += 1
            return -1
    if np.isneginf(scores[mask]).all():
        seen["unseen"] += 1
    index = pixels.add(scores, mask)
    saturated.add(index, scores, channels)
    return index


def _resized(channel: Channel, size: tuple[int, int]) -> Channel:
    """A channel in other pixels: a saturation threshold in pixels grows or shrinks with the image."""
    scale = 1.0 if channel.relative else size[0] * size[1] / channel.mask.size
    return replace(channel, mask=resize_mask(channel.mask, size), threshold=channel.threshold * scale)
