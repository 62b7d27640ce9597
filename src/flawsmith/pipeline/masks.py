"""Ground truth of a sample, read from its mask files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.loco import (
    MERGED_FROM,
    DefectKind,
    grey_values,
    kind_of,
    merged_note,
    read_defects_config,
    saturation_of,
    too_large_for,
    too_large_note,
)
from flawsmith.data.masks import MaskImage, MaskRemarks, read_mask_image
from flawsmith.data.samples import Dataset, Sample
from flawsmith.metrics.spro import Channel
from flawsmith.runtime.errors import FlawsmithError

KindOfMask = Callable[[Path, MaskImage], DefectKind | None]
"""The kind of defect that a mask marks, given its file and what was read; None where it is not known."""


def read_mask(sample: Sample) -> NDArray[np.bool_] | None:
    """Union of a sample's masks (:func:`flawsmith.data.masks.read_mask_image`), at their own size; None without masks.

    Raises:
        FlawsmithError: when a mask cannot be read, or several masks of one image differ in size.
    """
    mask, _ = read_channels(sample, lambda path, mask: None)
    return mask


def read_channels(sample: Sample, kind: KindOfMask) -> tuple[NDArray[np.bool_] | None, tuple[Channel, ...]]:
    """The union of a sample's masks, as :func:`read_mask`, and each mask of a known kind of defect as a channel.

    Raises:
        FlawsmithError: as :func:`read_mask`, and as ``kind`` does.
    """
    masks: list[NDArray[np.bool_]] = []
    channels: list[Channel] = []
    for path in sample.masks:
        mask = read_mask_image(path)
        masks.append(mask.marked)
        defect = kind(path, mask)
        if defect is not None:
            channels.append(Channel(masks[-1], defect.saturation_threshold, defect.relative_saturation))
    if not masks:
        return None, ()
    if len({mask.shape for mask in masks}) > 1:
        raise FlawsmithError(f"the masks of {sample.image} differ in size: make them as large as the image")
    return np.logical_or.reduce(masks), tuple(channels)


class SaturationReader:
    """Learns how the defects of a test split saturate, and what is odd, while its masks are read for their pixels.

    What :func:`flawsmith.data.loco.saturation_of` reads all masks for, without a second look at any.

    Args:
        dataset: the data; each mask of its flawed test images is to be shown to :meth:`kind`.

    Attributes:
        saturates: whether sPRO is defined, as far as is known; final after :meth:`finish`.
        notes: why it is not, or what to bear in mind, in sentences; final after :meth:`finish`.

    Raises:
        FlawsmithError: a damaged defects_config.json.
    """

    def __init__(self, dataset: Dataset) -> None:
        config = dataset.defects_config
        self._kinds: dict[int, DefectKind] = {}
        self.notes: tuple[str, ...] = ()
        if config is None or not config.exists():
            self.notes = saturation_of(dataset).notes
        else:
            self._config = config
            self._kinds = read_defects_config(config)
        annotated = [sample.masks for sample in dataset.test_flawed if sample.masks]
        # Masks of one value say nothing where they were merged, which can be excluded only when a second value is seen.
        self._may_be_merged = (
            len(annotated) >= MERGED_FROM and len(self._kinds) != 1 and all(len(masks) == 1 for masks in annotated)
        )
        self._remarks = MaskRemarks()
        self._values: set[int] = set()
        self._fault = ""
        self._pixels = 0
        self.saturates = bool(self._kinds)

    def kind(self, path: Path, mask: MaskImage) -> DefectKind | None:
        """The kind of defect that a mask marks; None for a black mask, or where that is not known.

        Raises:
            FlawsmithError: a mask that has several grey values or one of no entry, once masks cannot have been merged.
        """
        self._remarks.update(path, mask.oddities, mask.share)
        if not self.saturates:
            return None
        values = grey_values(mask.pixels)
        self._values.update(values)
        self._pixels = max(self._pixels, mask.marked.size)
        kind = kind_of(values, self._kinds)
        if isinstance(kind, str):
            self._fault = self._fault or (
                f"the mask {path} {kind}; add its entry to {self._config}, copy the mask anew, or evaluate with "
                "--layout mvtec, without sPRO"
            )
        if self._fault and not (self._may_be_merged and len(self._values) == 1):
            raise FlawsmithError(self._fault)
        return None if isinstance(kind, str) else kind

    def finish(self) -> None:
        """All masks were shown."""
        if self.saturates and self._pixels:
            self._conclude()
        self.notes = (*self.notes, *self._remarks.notes())

    def _conclude(self) -> None:
        if self._may_be_merged and len(self._values) == 1:
            self.saturates = False
            self.notes = (merged_note(self._values.pop(), self._kinds, self._config),)
            return
        largest = too_large_for(self._pixels, self._kinds)
        if largest is not None:
            self.notes = (too_large_note(largest, self._pixels),)
