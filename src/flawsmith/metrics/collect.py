"""From inspected images to what figures, intervals and plots are made of: scores, labels and counts, never maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from flawsmith.metrics.accumulate import IN_MEMORY_BYTES, PixelMetrics, PixelResult, SaturatedOverlap
from flawsmith.metrics.legacy_pro import LegacyPRO
from flawsmith.metrics.pro import FPR_LIMIT
from flawsmith.metrics.protocol import CLEAN, MaskRule, Protocol
from flawsmith.metrics.ranking import Curve, FloatArray, roc_curve
from flawsmith.metrics.spro import SPRO_LIMIT, Channel
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry

OBSERVATIONS: Mapping[str, str] = {
    "no_map": "{} without an anomaly map: left out of the pixel figures.",
    "no_mask": "{} flawed without a mask: left out of the pixel figures.",
    "empty_mask": "{} flawed with an empty mask: left out of the pixel figures.",
    "resized": "{} with a mask of another size than the image: the mask was resized by the nearest pixel.",
    "vanished": "{} lost every annotated pixel when the mask was resized: left out of the pixel figures.",
    "unseen": "{} with flaws only where the model does not look (outside its crop): counted as not found.",
    "lost": "{} lost every flawed pixel to the protocol's crop or mask rule: all its pixels count as free of flaws.",
    "called_good": "{} of a flawed part counted as good: by this protocol a mask without a flawed pixel says so.",
}
"""What may be noted of images while they are taken in."""


@dataclass(frozen=True, eq=False)
class ScoredMask:
    """A map and the mask that it is measured against, in the same pixels.

    Attributes:
        scores: (h, w) float32 anomaly map; -inf where uninspected pixels count lowest.
        mask: (h, w) in [0, 1], flawed at 1; below 1 partly covered pixels, which are not. None for a good image.
        excluded: (h, w) True where a pixel takes no part; None: all do.
    """

    scores: npt.NDArray[np.float32]
    mask: npt.NDArray[Any] | None = None
    excluded: npt.NDArray[np.bool_] | None = None

    @property
    def flawed(self) -> npt.NDArray[np.bool_]:
        """(h, w) True where a pixel that takes part is flawed."""
        if self.mask is None:
            return np.zeros(self.scores.shape, dtype=bool)
        return self.mask >= 1 if self.excluded is None else (self.mask >= 1) & ~self.excluded

    @property
    def highest(self) -> float:
        """The largest score of a pixel that takes part."""
        scores = self.scores if self.excluded is None else self.scores[~self.excluded]
        return float(scores.max(initial=-np.inf))


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """One inspected image with its ground truth.

    Attributes:
        image: name of the image, unique in the test set.
        score: image score, higher is more anomalous.
        verdict: ``pass``, ``review`` or ``reject``.
        defect: the defect type as the folder names it; ``good`` for good images.
        flawed: ground truth of the image.
        map: (height, width) float32 anomaly map in original pixels, or None.
        mask: (height, width) True where flawed, or None: a good image, or a flawed one that was never
            annotated.
        not_inspected: (height, width) True where the map says nothing (cut away by a crop), or None; a map may also
            hold -inf there itself. What becomes of these pixels is the protocol's matter.
        channels: the annotated defects one by one, of the mask's size, which is their union; none where the data set
            does not say when a defect counts as found.
        network: map and mask in the network's pixels, without letterbox bars, for protocols that measure there.
        level: the number that decides where the map's regions do, `Decision.level`; None: the score decides.
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
    network: ScoredMask | None = None
    level: float | None = None

    def lowest_where_not_inspected(self) -> npt.NDArray[np.float32]:
        """(height, width) the map, -inf where it says nothing.

        Raises:
            ValueError: there is no map.
        """
        if self.map is None:
            raise ValueError(f"{self.image} has no map")
        scores = np.asarray(self.map, dtype=np.float32)
        return scores if self.not_inspected is None else np.where(self.not_inspected, np.float32(-np.inf), scores)


def network_mask(mask: npt.NDArray[np.bool_], geometry: Geometry, rule: MaskRule) -> npt.NDArray[np.float32]:
    """A mask of the image's size as a released code resizes and crops it; flawed where it is 1.

    >>> mask = np.array([[True, True, True, False]])
    >>> network_mask(mask, Geometry(size=(1, 2)), "bilinear_above_zero").tolist()
    [[1.0, 1.0]]
    >>> (network_mask(mask, Geometry(size=(1, 2)), "bilinear_exact_one") >= 1).tolist()
    [[True, False]]
    """
    if rule == "nearest":
        return geometry.apply_to_mask(mask, "nearest", exact=True)
    if rule == "bilinear_above_zero":
        return (geometry.apply_to_mask(mask, "bilinear", exact=True) > 0).astype(np.float32)
    return geometry.apply_to_mask(mask, "bilinear" if rule == "bilinear_exact_one" else "bicubic", exact=False)


def resize_mask(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Resize a mask to (height, width) by the nearest pixel, half-pixel centres.

    >>> resize_mask(np.array([[True, False]]), (1, 4)).tolist()
    [[True, True, False, False]]
    """
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[np.ix_(rows, columns)]


def refuse_marked_good(image: str, flawed: bool, mask: npt.NDArray[np.bool_] | None) -> None:
    """Label and mask of an image must not contradict each other.

    Raises:
        FlawsmithError: a good image whose mask marks flawed pixels.
    """
    if not flawed and mask is not None and mask.any():
        raise FlawsmithError(
            f"{image} counts as good but its mask marks flawed pixels: "
            "move the image to its defect's folder, or remove the mask"
        )


def align(image: ScoredImage, protocol: Protocol, observations: Counter[str]) -> tuple[ScoredMask, ScoredMask] | None:
    """What of an image takes part in the pixel figures; None where nothing does.

    Args:
        image: the image.
        protocol: the rules.
        observations: counts what is to be noted, by the keys of ``OBSERVATIONS``.

    Returns:
        Map and mask in the pixels of the protocol, and in original pixels with uninspected ones lowest.

    Raises:
        FlawsmithError: a good image whose mask marks flawed pixels.
        ValueError: the image lacks what the protocol measures.
    """
    mask = None if image.mask is None else np.asarray(image.mask) != 0
    marked = mask is not None and bool(mask.any())
    refuse_marked_good(image.image, image.flawed, mask)
    if image.map is None:
        observations["no_map"] += 1
        return None
    if image.flawed and not marked:
        observations["no_mask" if mask is None else "empty_mask"] += 1
        return None
    measured = in_pixels_of(protocol, image)
    scores = image.lowest_where_not_inspected() if protocol.pixels == "network" else measured.scores
    if not image.flawed or mask is None:
        return replace(measured, mask=None), ScoredMask(scores)
    if mask.shape != scores.shape:
        observations["resized"] += 1
        mask = resize_mask(mask, (scores.shape[0], scores.shape[1]))
        if not mask.any() and protocol.pixels == "original":
            observations["vanished"] += 1
            return None
    if protocol.pixels == "original":
        measured = replace(measured, mask=mask)
    elif measured.mask is None:
        raise ValueError(f"{image.image} has no mask in the network's pixels, where the protocol measures")
    flawed = measured.flawed
    if not flawed.any():
        observations["lost"] += 1
    elif np.isneginf(measured.scores[flawed]).all():
        observations["unseen"] += 1
    return measured, ScoredMask(scores, mask)


def in_pixels_of(protocol: Protocol, image: ScoredImage) -> ScoredMask:
    """The map in the pixels of the protocol, and which of them take no part; its mask where that lies there already.

    Raises:
        ValueError: the image has no such map.
    """
    if protocol.pixels == "network":
        if image.network is None:
            raise ValueError(f"{image.image} has no map in the network's pixels, where the protocol measures")
        return replace(image.network, scores=np.asarray(image.network.scores, dtype=np.float32))
    scores = image.lowest_where_not_inspected()
    excluded = np.isneginf(scores) if protocol.uninspected == "excluded" else None
    return ScoredMask(scores, excluded=excluded if excluded is not None and excluded.any() else None)


def _fitted(channel: Channel, size: tuple[int, int]) -> Channel:
    """A channel in pixels of that size: a saturation threshold in pixels grows or shrinks with the image."""
    if channel.mask.shape == size:
        return channel
    scale = 1.0 if channel.relative else size[0] * size[1] / channel.mask.size
    return replace(channel, mask=np.asarray(resize_mask(channel.mask, size)), threshold=channel.threshold * scale)


@dataclass(frozen=True, eq=False)
class EvaluationState:
    """All that figures, intervals and plots are computed from; images in the order they came.

    Attributes:
        images: names.
        scores: (images,) image scores, as the protocol wants them.
        flawed: (images,) True for flawed images, as the protocol tells them.
        verdicts: verdict of each image.
        defects: defect type of each image.
        pixel_index: (images,) the image's index in ``pixels``, -1 where it takes no part in the pixel
            figures.
        pixels: pixel figures and counts, their overlap being the one that the protocol wants; None where no image had a
            map.
        notes: what was resized, left out or lost, in sentences.
        saturated: the same of the saturated region overlap, None where no image had channels.
        protocol: the rules by which all this was taken in.
        levels: (images,) the numbers that decide where the map's regions do; None: the scores decide.
    """

    images: tuple[str, ...]
    scores: FloatArray
    flawed: npt.NDArray[np.bool_]
    verdicts: tuple[str, ...]
    defects: tuple[str, ...]
    pixel_index: npt.NDArray[np.int64]
    pixels: PixelResult | None
    notes: tuple[str, ...]
    saturated: PixelResult | None = None
    protocol: Protocol = CLEAN
    levels: FloatArray | None = None

    @property
    def deciding(self) -> FloatArray | None:
        """(images,) the numbers that the reject limit is set on; None: the protocol takes other scores."""
        if self.levels is not None:
            return self.levels
        return self.scores if self.protocol.image_score == "model" else None

    def of_kind(self, defect: str) -> npt.NDArray[np.bool_]:
        """(images,) True for flawed images of a defect type, in any case of letters."""
        return self.flawed & np.array([name.casefold() == defect for name in self.defects], dtype=bool)

    def roc_curve(self) -> Curve | None:
        """The ROC curve of the image scores, or None without good or flawed images."""
        return roc_curve(self.scores, self.flawed)

    def pro_curve(self) -> Curve | None:
        """Exact points of the region-overlap curve; None without annotated flaws, and beside a legacy PRO, which is
        not its area.
        """
        if self.pixels is None or self.pixels.overlap is None or self.protocol.pro != "exact":
            return None
        return self.pixels.counts.curve("overlap")

    def pixel_roc_curve(self) -> Curve | None:
        """Exact points of the ROC curve over pixels, or None without annotated flaws."""
        return None if self.pixels is None or self.pixels.auroc is None else self.pixels.counts.curve("roc")

    def spro_curve(self) -> Curve | None:
        """Exact points of the curve of saturated overlap, all defects pooled, or None where that is undefined."""
        if self.saturated is None or self.saturated.overlap is None:
            return None
        return self.saturated.counts.curve("overlap")


class MetricCollection:
    """Takes in the inspected images of one evaluation, one by one, for every figure at once.

    A context manager, so that temporary files go with it:

    >>> part = np.array([[0.1, 0.9]], dtype=np.float32)
    >>> with MetricCollection() as metrics:
    ...     _ = metrics.update(ScoredImage("a.png", 0.2, "pass", "good", False, 0 * part))
    ...     _ = metrics.update(ScoredImage("b.png", 0.9, "reject", "dent", True, part, part > 0.5))
    ...     metrics.compute().pixels.overlap
    1.0

    Args:
        protocol: the rules.
        limit: largest false-positive rate of the AUPRO, in (0, 1].
        spro_limit: largest false-positive rate of the sPRO, in (0, 1].
        saturated: whether images may have channels. sPRO is measured in original pixels, uninspected ones lowest: where
            the protocol measures otherwise, maps are pooled a second time.
        in_memory_bytes: defect-free pixel scores beyond this go to a temporary file.
        directory: folder of that file; the system's own by default.
    """

    def __init__(
        self,
        protocol: Protocol = CLEAN,
        *,
        limit: float = FPR_LIMIT,
        spro_limit: float = SPRO_LIMIT,
        saturated: bool = True,
        in_memory_bytes: int = IN_MEMORY_BYTES,
        directory: Path | None = None,
    ) -> None:
        self._protocol = protocol
        self._files = ExitStack()
        self._pixels: PixelMetrics = self._files.enter_context(
            PixelMetrics(limit=limit, in_memory_bytes=in_memory_bytes, directory=directory)
            if protocol.pro == "exact"
            else LegacyPRO(protocol.pro, limit=limit, in_memory_bytes=in_memory_bytes, directory=directory)
        )
        self._whole = self._pixels
        if saturated and (protocol.pixels, protocol.uninspected) != ("original", "lowest"):
            self._whole = self._files.enter_context(PixelMetrics(in_memory_bytes=in_memory_bytes, directory=directory))
        self._saturated = SaturatedOverlap(self._whole, limit=spro_limit) if saturated else None
        self._images: list[ScoredImage] = []
        self._pixel_index: list[int] = []
        self._observations: Counter[str] = Counter()

    def __enter__(self) -> MetricCollection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def update(self, image: ScoredImage) -> ScoredImage:
        """Take in one image; nothing of its arrays is kept.

        Returns:
            The image without arrays, with the score and the label by which it counts.

        Raises:
            FlawsmithError: a good image with a flawed mask, or a full disk.
            ValueError: a NaN score, or an image that lacks what the protocol measures.
        """
        aligned = align(image, self._protocol, self._observations)
        flawed, score = bool(image.flawed), float(image.score)
        if aligned is None:
            self._pixel_index.append(-1)
        else:
            measured, whole = aligned
            self._pixel_index.append(self._add_pixels(image, measured, whole))
            if self._protocol.image_label == "mask" and flawed and not measured.flawed.any():
                flawed = False
                self._observations["called_good"] += 1
        if self._protocol.image_score == "map_maximum":
            score = (in_pixels_of(self._protocol, image) if aligned is None else aligned[0]).highest
        counted = ScoredImage(image.image, score, image.verdict, image.defect, flawed, level=image.level)
        self._images.append(counted)
        return counted

    def _add_pixels(self, image: ScoredImage, measured: ScoredMask, whole: ScoredMask) -> int:
        index = self._pixels.update(measured.scores, self._mask_of(measured), measured.excluded)
        if self._whole is not self._pixels:
            self._whole.update(whole.scores, whole.mask)
        if self._saturated is not None:
            size = (whole.scores.shape[0], whole.scores.shape[1])
            channels = [_fitted(channel, size) for channel in image.channels]
            self._saturated.update(whole.scores, channels, defect=image.defect if image.flawed else None)
        return index

    def _mask_of(self, measured: ScoredMask) -> npt.NDArray[Any] | None:
        """Legacy PRO weighs partly covered pixels; to all else a pixel is flawed or not."""
        if measured.mask is None or self._protocol.pro != "exact":
            return measured.mask
        return measured.mask >= 1

    def compute(self, *, notes: Sequence[str] = (), saturated: bool = True) -> EvaluationState:
        """What was taken in so far.

        Args:
            notes: what is known of the data beforehand, in sentences; comes before what was seen on the way.
            saturated: whether the channels of the images mean what they say.

        Raises:
            FlawsmithError: an image name twice, no image at all, or a full disk.
        """
        _check(self._images)
        measured = any(index >= 0 for index in self._pixel_index)
        levels = [image.level for image in self._images if image.level is not None]
        seen = {key: f"{number} image{'s' if number > 1 else ''}" for key, number in self._observations.items()}
        return EvaluationState(
            images=tuple(image.image for image in self._images),
            scores=np.array([image.score for image in self._images], dtype=np.float64),
            flawed=np.array([image.flawed for image in self._images], dtype=bool),
            verdicts=tuple(image.verdict for image in self._images),
            defects=tuple(image.defect for image in self._images),
            pixel_index=np.array(self._pixel_index, dtype=np.int64),
            pixels=self._pixels.compute() if measured else None,
            notes=(*notes, *(text.format(seen[key]) for key, text in OBSERVATIONS.items() if key in seen)),
            saturated=self._saturated.compute() if saturated and self._saturated is not None else None,
            protocol=self._protocol,
            levels=np.array(levels, np.float64) if len(levels) == len(self._images) else None,
        )


def accumulate(images: Iterable[ScoredImage], *, protocol: Protocol = CLEAN, saturated: bool = True) -> EvaluationState:
    """Take in a stream of images; maps are dropped as they come.

    Args:
        images: inspected images, in any order.
        protocol, saturated: as of :class:`MetricCollection`.

    Raises:
        FlawsmithError: an image name twice, a good image with a flawed mask, no image at all, or a full disk.
        ValueError: a NaN score, or an image that lacks what the protocol measures.
    """
    with MetricCollection(protocol, saturated=saturated) as metrics:
        for image in images:
            metrics.update(image)
        return metrics.compute()


def _check(images: list[ScoredImage]) -> None:
    if not images:
        raise FlawsmithError(
            "there is no test image to evaluate: give a data set with a test split (test/good, test/<defect>)"
        )
    name, times = Counter(image.image for image in images).most_common(1)[0]
    if times > 1:
        raise FlawsmithError(f"the image {name} stands {times} times in the test set: keep it once")
