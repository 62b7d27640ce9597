"""One inspected image beside its ground truth, and what of it takes part in the pixel figures of a protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawsmith.evaluation.protocol import MaskRule, Protocol
from flawsmith.evaluation.saturated import Channel
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
