"""Ground truth of a sample, read from its mask files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.samples import Sample
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode


def read_mask(sample: Sample) -> NDArray[np.bool_] | None:
    """Union of a sample's masks, binarised above zero, at the masks' own size; None without masks.

    Raises:
        FlawsmithError: when a mask cannot be read, or several masks of one image differ in size.
    """
    masks = [decode(path).max(axis=2) > 0 for path in sample.masks]
    if not masks:
        return None
    if any(mask.shape != masks[0].shape for mask in masks):
        raise FlawsmithError(f"the masks of {sample.image} differ in size: make them as large as the image")
    return np.logical_or.reduce(masks)
