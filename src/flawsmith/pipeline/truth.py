"""Ground truth of a sample, read from its mask files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.loco import DefectKind
from flawsmith.data.samples import Sample
from flawsmith.metrics.spro import Channel
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode


def read_mask(sample: Sample) -> NDArray[np.bool_] | None:
    """Union of a sample's masks, binarised above zero, at the masks' own size; None without masks.

    Raises:
        FlawsmithError: when a mask cannot be read, or several masks of one image differ in size.
    """
    mask, _ = read_channels(sample, {})
    return mask


def read_channels(
    sample: Sample, kinds: Mapping[Path, DefectKind]
) -> tuple[NDArray[np.bool_] | None, tuple[Channel, ...]]:
    """The union of a sample's masks, as :func:`read_mask`, and each mask of a known kind of defect as a channel.

    Args:
        sample: the sample.
        kinds: the kind of defect that a mask marks, where it is known.

    Raises:
        FlawsmithError: as :func:`read_mask`.
    """
    masks = {path: decode(path).max(axis=2) > 0 for path in sample.masks}
    if not masks:
        return None, ()
    if len({mask.shape for mask in masks.values()}) > 1:
        raise FlawsmithError(f"the masks of {sample.image} differ in size: make them as large as the image")
    channels = tuple(
        Channel(mask, kinds[path].saturation_threshold, kinds[path].relative_saturation)
        for path, mask in masks.items()
        if path in kinds
    )
    return np.logical_or.reduce(list(masks.values())), channels
