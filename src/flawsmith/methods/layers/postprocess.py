"""From a low-resolution map to a smooth map at the network's input size, as two small matrix products.

Bilinear up-sampling and Gaussian smoothing act on rows and columns alone, and both are linear: the whole step is
A · map · Bᵀ with matrices that depend on the sizes only.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import interpolate

TRUNCATE = 4.0  # scipy's default: a kernel radius of 16 pixels at sigma 4


def upsampling_matrix(size: int, low: int, *, align_corners: bool = False) -> np.ndarray:
    """The (size, low) matrix of a one-dimensional linear interpolation, in float64."""
    identity = torch.eye(low, dtype=torch.float64)[None]
    resized = interpolate(identity, size=size, mode="linear", align_corners=align_corners)
    return resized[0].T.numpy()


class UpsampleAndSmooth(nn.Module):
    """Bilinear up-sampling followed by a Gaussian with reflecting border (all four methods; sigma 4 pixels).

    Args:
        low: (h, w) of the low-resolution map.
        size: (H, W) of the result.
        sigma: standard deviation of the Gaussian in pixels of the result; 0 leaves the map unsmoothed.
        align_corners: False for GLASS and PBAS, True for AAND.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self, low: tuple[int, int], size: tuple[int, int], *, sigma: float = 4.0, align_corners: bool = False
    ) -> None:
        super().__init__()
        for name, length, coarse in zip(("rows", "columns"), size, low, strict=True):
            matrix = upsampling_matrix(length, coarse, align_corners=align_corners)
            if sigma > 0:
                matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=TRUNCATE)
            self.register_buffer(name, torch.from_numpy(matrix).float(), persistent=False)

    def forward(self, low: Float[Tensor, "batch h w"]) -> Float[Tensor, "batch height width"]:
        return self.rows @ low @ self.columns.T
