"""Fixed position encodings of a feature map."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 1e4


def position_encoding(channels: int, grid: tuple[int, int]) -> Float[Tensor, "channel height width"]:
    """Sines and cosines of column and row (AAND, Eq. 2; p_c).

    The first half of the channels encodes the column, the other half the row; within a half of d channels, channel
    2i is the sine and 2i + 1 the cosine of the position times exp(−2i · ln(10⁴) / d).

    Args:
        channels: of the features that the encoding is added to.
        grid: (height, width) of the map; any, square or not.

    Example:
        >>> position_encoding(8, (2, 3)).shape
        torch.Size([8, 2, 3])
    """
    height, width = grid
    half = channels - channels // 2
    columns = _axis(half, width)[:, None, :].expand(-1, height, -1)
    rows = _axis(channels - half, height)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows]).float()


def _axis(channels: int, length: int) -> Float[Tensor, "channel position"]:
    """Alternating sines and cosines along one axis, in float64."""
    channel = torch.arange(channels)
    frequency = torch.exp(-(channel // 2 * 2) * (math.log(BASE) / max(channels, 1)))
    angle = frequency.double()[:, None] * torch.arange(length, dtype=torch.float64)
    return torch.where((channel % 2 == 0)[:, None], angle.sin(), angle.cos())
