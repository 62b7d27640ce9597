"""What an evaluation keeps of the inspected images: scores, labels and pixel counts, never maps."""

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

from flawsmith.metrics.accumulate import IN_MEMORY_BYTES, PixelFigures, PixelMetrics
from flawsmith.metrics.accumulate_spro import SaturatedFigures, SaturatedOverlap
from flawsmith.metrics.pro import FPR_LIMIT
from flawsmith.metrics.protocol import CLEAN, MaskRule, Protocol
from flawsmith.metrics.ranking import Curve, FloatArray, roc_curve, shares
from flawsmith.metrics.released_pro import ReleasedFigures, ReleasedPro
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
"""What may be noted of images while they are gathered."""


@dataclass(frozen=True, eq=False)
class NetworkView:
    """An image as the network saw it, resized and perhaps cropped.

    Attributes:
        map: (h, w) float32 anomaly map in the network's pixels, without letterbox bars.
        mask: (h, w) in [0, 1], 1 where flawed; below 1 partly covered pixels, which are not. None as for the record.
    """

    map: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32] | None = None


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
        not_inspected: (height, width) True where the map says nothing (cut away by a crop), or None; a map may also
            hold -inf there itself. What becomes of these pixels is the protocol's matter.
        channels: the annotated defects one by one, of the mask's size, which is their union; none where the data set
            does not say when a defect counts as found.
        network: the same in the network's pixels, for protocols that measure there.
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
    network: NetworkView | None = None


@dataclass(frozen=True, eq=False)
class View:
    """What of one image takes part in the pixel figures.

    Attributes:
        scores: (h, w) float32 in the pixels of the protocol; -inf where uninspected pixels count lowest.
        mask: (h, w) in [0, 1], flawed at 1; None for a good image.
        excluded: (h, w) True where a pixel takes no part; None: all do.
        marked: whether a pixel that takes part is flawed.
        whole_scores: (height, width) the map in original pixels, -inf where not inspected.
        whole_mask: (height, width) the mask there.
    """

    scores: npt.NDArray[np.float32]
    mask: npt.NDArray[Any] | None
    excluded: npt.NDArray[np.bool_] | None
    marked: bool
    whole_scores: npt.NDArray[np.float32]
    whole_mask: npt.NDArray[np.bool_] | None


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
    """Resize a mask to (height, width) by the nearest pixel, half-pixel centres."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[np.ix_(rows, columns)]


def view_of(record: ImageRecord, protocol: Protocol, seen: Counter[str]) -> View | None:
    """What of a record takes part in the pixel figures; None where nothing does.

    Args:
        record: the image.
        protocol: the rules.
        seen: counts what is to be noted, by the keys of ``OBSERVATIONS``.

    Raises:
        FlawsmithError: a good image whose mask marks flawed pixels.
        ValueError: the record lacks what the protocol measures.
    """
    mask = None if record.mask is None else np.asarray(record.mask) != 0
    if not record.flawed and mask is not None and mask.any():
        raise FlawsmithError(
            f"{record.image} counts as good but its mask marks flawed pixels: "
            "move the image to its defect's folder, or remove the mask"
        )
    if record.map is None:
        seen["no_map"] += 1
        return None
    if record.flawed and (mask is None or not mask.any()):
        seen["no_mask" if mask is None else "empty_mask"] += 1
        return None
    scores, excluded = scores_of(record, protocol)
    whole = _lowest(record)
    if not record.flawed or mask is None:
        return View(scores, None, excluded, False, whole, None)
    if mask.shape != whole.shape:
        seen["resized"] += 1
        mask = resize_mask(mask, (whole.shape[0], whole.shape[1]))
        if not mask.any() and protocol.pixels == "original":
            seen["vanished"] += 1
            return None
    own: npt.NDArray[Any] = mask
    if protocol.pixels == "network":
        assert record.network is not None, "scores_of has used it"
        if record.network.mask is None:
            raise ValueError(f"{record.image} has no mask in the network's pixels, where the protocol measures")
        own = record.network.mask
    flawed = own >= 1 if excluded is None else (own >= 1) & ~excluded
    if not flawed.any():
        seen["lost"] += 1
    elif np.isneginf(scores[flawed]).all():
        seen["unseen"] += 1
    return View(scores, own, excluded, bool(flawed.any()), whole, mask)


def scores_of(record: ImageRecord, protocol: Protocol) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
    """The map in the pixels of the protocol, and which of them take no part (None: all do).

    Raises:
        ValueError: the record has no such map.
    """
    if protocol.pixels == "network":
        if record.network is None:
            raise ValueError(f"{record.image} has no map in the network's pixels, where the protocol measures")
        return np.asarray(record.network.map, dtype=np.float32), None
    if record.map is None:
        raise ValueError(f"{record.image} has no map")
    scores = _lowest(record)
    if protocol.uninspected == "lowest":
        return scores, None
    excluded = np.isneginf(scores)
    return scores, excluded if excluded.any() else None


def _lowest(record: ImageRecord) -> npt.NDArray[np.float32]:
    scores = np.asarray(record.map, dtype=np.float32)
    return scores if record.not_inspected is None else np.where(record.not_inspected, np.float32(-np.inf), scores)


class Pools:
    """Gathers the maps of one evaluation; a context manager, so that temporary files go with it.

    Args:
        protocol: the rules.
        limit: largest false-positive rate of the region overlap.
        saturated: whether images may have channels. sPRO is measured in original pixels, uninspected ones lowest: where
            the protocol measures otherwise, maps are pooled a second time.
        in_memory_bytes: defect-free scores up to this size stay in memory.
        directory: folder of the temporary files; None: the system's own.
    """

    def __init__(
        self, protocol: Protocol, limit: float, *, saturated: bool, in_memory_bytes: int, directory: Path | None
    ) -> None:
        self._files = ExitStack()
        self._limit = limit

        def opened() -> PixelMetrics:
            return self._files.enter_context(PixelMetrics(in_memory_bytes=in_memory_bytes, directory=directory))

        self._pixels = opened()
        as_spro_wants = (protocol.pixels, protocol.uninspected) == ("original", "lowest")
        self._apart = opened() if saturated and not as_spro_wants else None
        self._saturated = SaturatedOverlap(self._apart or self._pixels) if saturated else None
        self._released = None if protocol.pro == "exact" else ReleasedPro(protocol.pro, self._pixels, limit=limit)
        self._any = False

    def __enter__(self) -> Pools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, view: View, channels: Sequence[Channel]) -> int:
        """Take in one image; nothing of the arrays is kept.

        Returns:
            The image's index, from 0.

        Raises:
            ValueError: a NaN score, or sizes that differ.
            FlawsmithError: a temporary file cannot be written.
        """
        self._any = True
        index = self._pixels.add(view.scores, None if view.mask is None else view.mask >= 1, view.excluded)
        if self._released is not None:
            self._released.add(index, view.scores, view.mask, view.excluded)
        if self._apart is not None:
            self._apart.add(view.whole_scores, view.whole_mask)
        if self._saturated is not None:
            size = (view.whole_scores.shape[0], view.whole_scores.shape[1])
            fitting = [one if one.mask.shape == size else _resized(one, size) for one in channels]
            self._saturated.add(index, view.whole_scores, fitting)
        return index

    def compute(
        self, defects: Sequence[str | None], *, spro_limit: float
    ) -> tuple[PixelFigures | None, ReleasedFigures | None, SaturatedFigures | None]:
        """The figures of all maps added; None for what the protocol or the data do not give.

        Args:
            defects: (images,) the defect type of each image added, None for good ones.
            spro_limit: largest false-positive rate of the sPRO.
        """
        if not self._any:
            return None, None, None
        return (
            self._pixels.compute(limit=self._limit),
            None if self._released is None else self._released.compute(),
            None if self._saturated is None else self._saturated.compute(defects, limit=spro_limit),
        )


def _resized(channel: Channel, size: tuple[int, int]) -> Channel:
    """A channel in other pixels: a saturation threshold in pixels grows or shrinks with the image."""
    scale = 1.0 if channel.relative else size[0] * size[1] / channel.mask.size
    return replace(channel, mask=np.asarray(resize_mask(channel.mask, size)), threshold=channel.threshold * scale)


__all__ = ["Evidence", "ImageRecord", "gather"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that figures, intervals and plots are computed from; images in the order they came.

    Attributes:
        images: names.
        scores: (images,) image scores, as the protocol wants them.
        flawed: (images,) True for flawed images, as the protocol tells them.
        verdicts: verdict of each image.
        defects: defect type of each image.
        pixel_index: (images,) the image's index in ``pixels``, -1 where it takes no part in the pixel
            figures.
        pixels: exact pixel figures and counts, None where no image had a map.
        notes: what was resized, left out or lost, in sentences.
        saturated: figures of the saturated region overlap, None where no record had channels.
        released: PRO as a released code computes it, None where the protocol wants the exact one.
        protocol: the rules by which all this was gathered.
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
    released: ReleasedFigures | None = None
    protocol: Protocol = CLEAN

    @property
    def aupro(self) -> float | None:
        """The figure of region overlap that the protocol wants; None where undefined."""
        if self.released is not None:
            return self.released.value
        return None if self.pixels is None else self.pixels.aupro

    def roc_curve(self) -> Curve | None:
        """The ROC curve of the image scores, or None without good or flawed images."""
        return roc_curve(self.scores, self.flawed)

    def pro_curve(self) -> Curve | None:
        """Exact points of the region-overlap curve; None without annotated flaws, and beside a released PRO, which is
        not its area.
        """
        if self.pixels is None or self.pixels.aupro is None or self.released is not None:
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


def gather(
    records: Iterable[ImageRecord],
    *,
    protocol: Protocol = CLEAN,
    limit: float = FPR_LIMIT,
    spro_limit: float = SPRO_LIMIT,
    saturated: bool = True,
    notes: Sequence[str] = (),
    in_memory_bytes: int = IN_MEMORY_BYTES,
    directory: Path | None = None,
) -> Evidence:
    """Stream records into evidence; maps are dropped as they come.

    Args:
        records: inspected images, in any order.
        protocol: the rules.
        limit: largest false-positive rate of the AUPRO, in (0, 1].
        spro_limit: largest false-positive rate of the sPRO, in (0, 1].
        saturated: whether records may have channels; without, a protocol that measures in the network's pixels need not
            pool the maps in original ones too.
        notes: what is known of the data beforehand, in sentences; comes before what is found on the way.
        in_memory_bytes: defect-free pixel scores beyond this go to a temporary file.
        directory: folder of that file; the system's own by default.

    Raises:
        FlawsmithError: an image name twice, a good image with a flawed mask, no record at all, or a full disk.
        ValueError: a NaN score, or a record that lacks what the protocol measures.
    """
    kept: list[ImageRecord] = []
    index: list[int] = []
    # Of the images that take part in the pixel figures, in the order they came.
    defects: list[str | None] = []
    seen: Counter[str] = Counter()
    with Pools(protocol, limit, saturated=saturated, in_memory_bytes=in_memory_bytes, directory=directory) as pools:
        for record in records:
            view = view_of(record, protocol, seen)
            index.append(-1 if view is None else pools.add(view, record.channels))
            if view is not None:
                defects.append(record.defect if record.flawed else None)
            flawed = bool(record.flawed)
            if protocol.image_label == "mask" and flawed and view is not None and not view.marked:
                flawed = False
                seen["called_good"] += 1
            score = float(record.score) if protocol.image_score == "model" else _highest(record, protocol)
            kept.append(ImageRecord(record.image, score, record.verdict, record.defect, flawed))
        _check(kept)
        pixels, released, spro = pools.compute(defects, spro_limit=spro_limit)
    counted = {key: f"{number} image{'s' if number > 1 else ''}" for key, number in seen.items() if number}
    return Evidence(
        images=tuple(record.image for record in kept),
        scores=np.array([record.score for record in kept], dtype=np.float64),
        flawed=np.array([record.flawed for record in kept], dtype=bool),
        verdicts=tuple(record.verdict for record in kept),
        defects=tuple(record.defect for record in kept),
        pixel_index=np.array(index, dtype=np.int64),
        pixels=pixels,
        notes=(*notes, *(text.format(counted[key]) for key, text in OBSERVATIONS.items() if key in counted)),
        saturated=spro,
        released=released,
        protocol=protocol,
    )


def _highest(record: ImageRecord, protocol: Protocol) -> float:
    """The largest value of the map among the pixels that take part."""
    scores, excluded = scores_of(record, protocol)
    return float((scores if excluded is None else scores[~excluded]).max(initial=-np.inf))


def _check(records: list[ImageRecord]) -> None:
    if not records:
        raise FlawsmithError(
            "there is no test image to evaluate: give a data set with a test split (test/good, test/<defect>)"
        )
    name, times = Counter(record.image for record in records).most_common(1)[0]
    if times > 1:
        raise FlawsmithError(f"the image {name} stands {times} times in the test set: keep it once")
