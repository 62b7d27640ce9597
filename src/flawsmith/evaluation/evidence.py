"""What an evaluation keeps of the inspected images: scores, labels and pixel counts, never maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flawsmith.evaluation.curves import Curve, FloatArray, shares
from flawsmith.evaluation.overlap import FPR_LIMIT
from flawsmith.evaluation.pooling import IN_MEMORY_BYTES, PixelFigures
from flawsmith.evaluation.pools import Pools
from flawsmith.evaluation.protocol import CLEAN, Protocol
from flawsmith.evaluation.ranking import roc_curve
from flawsmith.evaluation.records import OBSERVATIONS, ImageRecord, scores_of, view_of
from flawsmith.evaluation.released_pro import ReleasedFigures
from flawsmith.evaluation.saturated import SPRO_LIMIT
from flawsmith.evaluation.saturated_pooling import SaturatedFigures
from flawsmith.runtime.errors import FlawsmithError

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
