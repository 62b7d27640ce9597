"""The losses of both stages, on plain tensors; their means are those of all processes that train together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.models.components.distributed import mean, total, total_count
from flawsmith.models.components.precision import full_precision

Rows = Float[Tensor, "position channel"]
Map = Float[Tensor, "batch channel height width"]
Cells = Bool[Tensor, "batch height width"]


def cells_of(mask: Bool[Tensor, "batch height width"], grid: tuple[int, int], *, share: float) -> Cells:
    """The cells of a level of which more than a share belongs to a mask of pixels (released code: 0.3)."""
    return F.adaptive_avg_pool2d(mask[:, None].float(), grid)[:, 0] > share


def cosine_distance(first: Map, second: Map) -> Float[Tensor, "batch height width"]:
    """D of Eq. 13: 1 − cosine over the channels of every position."""
    return 1 - F.cosine_similarity(first.float(), second.float(), dim=1)


def amplification_loss(amplified: Rows, anomalous: Rows, normal: Rows, *, margin: float) -> Float[Tensor, ""]:
    """L_A of Eqs. 7 and 8 for one level: anomalies move away from normal features by a margin.

    The mean over all pairs (i, j) of max(0, s(A_i, N_j) − (s(T_i, N_j) − α)), whose gradient is that of the paper's
    max(s, S_ref). Without anomalous or without normal positions it is 0. Processes that train together give their own
    anomalous positions and the normal positions of all.

    Args:
        amplified: A, amplified features of anomalous positions.
        anomalous: T, the vanilla teacher's features of the same positions.
        normal: N, the vanilla teacher's features of normal positions.
        margin: α.
    """
    if not total_count(len(amplified)) or not len(normal):
        return amplified.new_zeros(()).float()
    moved, start, others = (F.normalize(rows.float(), dim=1) for rows in (amplified, anomalous, normal))
    with full_precision(amplified.device):
        reference = start @ others.T - margin
        return mean(F.relu(moved @ others.T - reference))


def distillation_loss(teacher: Map, student: Map) -> Float[Tensor, ""]:
    """L_KD of Eq. 10 for one level: 1 − cosine of the flattened maps, mean over the batch."""
    return mean(1 - F.cosine_similarity(teacher.float().flatten(1), student.float().flatten(1), dim=1))


def hard_distillation_loss(teacher: Map, student: Map, positions: int) -> Float[Tensor, ""]:
    """L_HKD of Eq. 11 for one level: the mean cosine distance at the K_h worst positions of every image.

    Args:
        teacher: the teacher's map.
        student: the student's map.
        positions: K_h; all positions where a map has fewer.
    """
    distance = cosine_distance(teacher, student).flatten(1)
    return mean(distance.topk(min(positions, distance.shape[1]), dim=1).values)


def gate_precision(gate: Float[Tensor, "batch 1 height width"], anomalous: Cells) -> Float[Tensor, ""]:
    """Share of the positions with a gate above one half that are anomalous; 0 where there are none."""
    predicted = gate[:, 0] > 0.5
    return total((predicted & anomalous).sum()) / (total(predicted.sum()) + 1e-5)


def gate_recall(gate: Float[Tensor, "batch 1 height width"], anomalous: Cells) -> Float[Tensor, ""]:
    """Share of the anomalous positions with a gate above one half; 0 where there are none."""
    return total(((gate[:, 0] > 0.5) & anomalous).sum()) / (total(anomalous.sum()) + 1e-5)


def as_rows(level: Map) -> Rows:
    """One row a position, image-major, then row by row over the map."""
    return level.permute(0, 2, 3, 1).reshape(-1, level.shape[1])


def step_rate(epoch: int, *, start: float, factor: float, milestones: tuple[float, ...]) -> float:
    """The learning rate of an epoch, counted from 0: multiplied by a factor at each epoch that reaches a milestone.

    The released code compares with fractional milestones for equality and never decays where they are not whole.

    >>> step_rate(80, start=1.0, factor=0.5, milestones=(79.2, 89.1))
    0.5
    """
    return start * factor ** sum(epoch >= milestone - 1e-9 for milestone in milestones)


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
