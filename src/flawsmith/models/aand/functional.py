"""The equations of AAND in the paper's order, with its numbers, on plain tensors.

Tang et al., Advancing Pre-trained Teacher: Towards Robust Feature Discrepancy for Anomaly Detection, TIP 2026. F_T are
features of the frozen teacher, F_A of the advanced one, F_S of the student; s is the cosine similarity, superscripts a
and n stand for anomalous and normal positions. Every function is for one level k unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.models.base import full_precision

Residual = Literal["tanh", "sigmoid", "learnable"]
Map = Float[Tensor, "batch channel height width"]
WeightMap = Float[Tensor, "batch 1 height width"]
Cells = Bool[Tensor, "batch height width"]
Rows = Float[Tensor, "position channel"]

WAVE_BASE = 1e4


# Anomaly amplification (section III-B)


def cells_of(
    mask: Bool[Tensor, "batch image_height image_width"], grid: tuple[int, int], *, share: float = 0.3
) -> Cells:
    """M̄_k, the mask of pixels at a level's scale: cells of which more than a share belongs to it; unnumbered.

    Args:
        mask: where flaws are, or the foreground.
        grid: (height, width) of the level.
        share: in [0, 1); 0.3 in the released code, the paper names none.

    Example:
        >>> mask = torch.tensor([[[True, True, False, False], [False, False, False, False]]])
        >>> cells_of(mask, (1, 2)).tolist()
        [[[True, False]]]
    """
    return F.adaptive_avg_pool2d(mask[:, None].float(), grid)[:, 0] > share


def amplify(
    features: Float[Tensor, "batch channel *grid"],
    residual: Float[Tensor, "batch channel *grid"],
    weight: Float[Tensor, "batch 1 *grid"] | None = None,
) -> Float[Tensor, "batch channel *grid"]:
    """Features of the advanced teacher, F_A = F_T + w · Δ.

    Source:
        Eq. 1.

    Args:
        features: F_T, a map, or a row a position.
        residual: Δ.
        weight: w, how anomalous a position is, in [0, 1]; None amplifies all (Table V, without the gate).

    Example:
        >>> amplify(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]]), torch.tensor([[0.5]]))
        tensor([[1.2500, 1.5000]])
    """
    return features + (residual if weight is None else weight * residual)


def position_encoding(channels: int, grid: tuple[int, int]) -> Float[Tensor, "channel height width"]:
    """p_c, sines and cosines of column and row.

    The first half of the channels encodes the column, the other half the row; within a half of d channels, channel
    2i is the sine and 2i + 1 the cosine of the position times exp(−2i · ln(10⁴) / d).

    Source:
        p_c of Eq. 2, which is that of CS-Flow, as in the released code.

    Args:
        channels: of the features that the encoding is added to.
        grid: (height, width) of the map; any, square or not.

    Example:
        >>> position_encoding(8, (2, 3)).shape
        torch.Size([8, 2, 3])
    """
    height, width = grid
    half = channels - channels // 2
    columns = _waves(half, width)[:, None, :].expand(-1, height, -1)
    rows = _waves(channels - half, height)[:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows]).float()


def _waves(channels: int, length: int) -> Float[Tensor, "channel position"]:
    """Alternating sines and cosines along one axis, in float64."""
    channel = torch.arange(channels)
    frequency = torch.exp(-(channel // 2 * 2) * (math.log(WAVE_BASE) / max(channels, 1)))
    angle = frequency.double()[:, None] * torch.arange(length, dtype=torch.float64)
    return torch.where((channel % 2 == 0)[:, None], angle.sin(), angle.cos())


def project_queries(features: Map, position: Float[Tensor, "channel height width"], mlp: Callable[[Map], Map]) -> Map:
    """Queries of the residual gate, q = Φ₁(F_T + p_c).

    Source:
        Eq. 2.

    Args:
        features: F_T.
        position: p_c, see :func:`position_encoding`.
        mlp: Φ₁, the same at every position.

    Example:
        >>> project_queries(torch.zeros(1, 4, 2, 2), position_encoding(4, (2, 2)), torch.nn.Identity()).shape
        torch.Size([1, 4, 2, 2])
    """
    return mlp(features + position)


def match_weights(
    queries: Map, memory: Float[Tensor, "item channel"], *, temperature: float = 1.0
) -> Float[Tensor, "batch item height width"]:
    """Weights wⁿ and wᵃ of all memory items at every position: exp(s(q, m) / τ) / Z, in float32.

    Source:
        Eq. 3, whose τ is 1; 0.2 in the released code.

    Args:
        queries: q of Eq. 2, a map for each image.
        memory: Mⁿ, then as many rows of Mᵃ.
        temperature: τ > 0.

    Returns:
        In (0, 1); the sum over the items is 1.

    Example:
        >>> weights = match_weights(torch.ones(1, 2, 1, 1), torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        >>> weights.flatten().round(decimals=4)
        tensor([0.2689, 0.7311])
    """
    # Rows of positions: over another axis than the last the softmax takes ten times as long in ONNX Runtime.
    rows = F.normalize(queries.float(), dim=1).flatten(2).transpose(1, 2)
    with full_precision(queries.device):
        similarity = rows @ F.normalize(memory.float(), dim=1).T
        weights = (similarity / temperature).softmax(dim=2)
    return weights.transpose(1, 2).reshape(queries.shape[0], -1, *queries.shape[2:])


def anomaly_weight(matches: Float[Tensor, "batch item height width"]) -> WeightMap:
    """What the residual gate gives: wᵃ = Σ_j wᵃ_j, in (0, 1).

    Source:
        Eq. 4. The focal loss that teaches it, which has no number, is :func:`flawsmith.losses.balanced_focal_loss`.

    Args:
        matches: weights of the normal and then of as many anomalous memory items, see :func:`match_weights`.

    Example:
        >>> anomaly_weight(torch.tensor([0.4, 0.3, 0.2, 0.1]).reshape(1, 4, 1, 1)).flatten().round(decimals=4)
        tensor([0.3000])
    """
    return matches[:, matches.shape[1] // 2 :].sum(dim=1, keepdim=True)


def scaled_residual(
    projected: Float[Tensor, "batch channel *grid"],
    features: Float[Tensor, "batch channel *grid"],
    *,
    residual: Residual = "tanh",
) -> Float[Tensor, "batch channel *grid"]:
    """Residuals that scale the features' channels, Δ = tanh(Φ₂(F_T)) ⊙ F_T, in float32.

    Source:
        Eq. 5; Table VII compares it with a sigmoid, and with Φ₂(F_T) itself, ``learnable``.

    Args:
        projected: Φ₂(F_T).
        features: F_T.
        residual: what takes the place of the tanh.

    Example:
        >>> scaled_residual(torch.tensor([[0.0, 9.0]]), torch.tensor([[2.0, 3.0]])).round(decimals=4)
        tensor([[0., 3.]])
    """
    projected = projected.float()
    if residual == "learnable":
        return projected
    return (projected.tanh() if residual == "tanh" else projected.sigmoid()) * features


def amplify_by_truth(
    features: Float[Tensor, "batch channel *grid"],
    residual: Float[Tensor, "batch channel *grid"],
    anomalous: Bool[Tensor, "batch *grid"],
) -> Float[Tensor, "batch channel *grid"]:
    """Amplified features while residuals are learnt: F_Aⁿ = F_Tⁿ + 0 · Δ, F_Aᵃ = F_Tᵃ + 1 · Δ.

    The truth takes the gate's place, so that the gate learns from its focal loss alone.

    Source:
        Eq. 6.

    Args:
        features: F_T, a map, or a row a position.
        residual: Δ.
        anomalous: the true weights w̄.

    Example:
        >>> amplify_by_truth(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([False, True]))[:, 0]
        tensor([1., 2.])
    """
    return amplify(features, residual, anomalous.unsqueeze(1).float())


def amplification_loss(amplified: Rows, anomalous: Rows, normal: Rows, *, margin: float = 0.3) -> Float[Tensor, ""]:
    """L_A: anomalies move away from normal features, by a margin.

    The mean over all pairs (i, j) of max(0, s(F_Aᵃ_i, F_Tⁿ_j) − S_ref_ij), as in the released code: the paper's
    max(s, S_ref) less what has no gradient. Without anomalous or without normal positions it is 0.

    Source:
        Eq. 7.

    Args:
        amplified: F_Aᵃ, amplified features of anomalous positions.
        anomalous: F_Tᵃ, the vanilla teacher's features of the same positions.
        normal: F_Tⁿ, the vanilla teacher's features of normal positions.
        margin: α ≥ 0 of Eq. 8.

    Returns:
        In [0, 2 + α], float32.

    Example:
        >>> normal, anomalous = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> amplification_loss(anomalous, anomalous, normal, margin=0.3).round(decimals=4)
        tensor(0.3000)
        >>> amplification_loss(-anomalous, anomalous, normal, margin=0.3)
        tensor(0.)
    """
    if not len(amplified) or not len(normal):
        return amplified.new_zeros(()).float()
    with full_precision(normal.device):
        # s(F_Aᵃ, F_Tⁿ) − s(F_Tᵃ, F_Tⁿ) is linear in the unit vectors on the left: one product instead of two.
        moved = F.normalize(amplified.float(), dim=1) - F.normalize(anomalous.float(), dim=1)
        return (moved @ F.normalize(normal.float(), dim=1).T + margin).relu().mean()


def reference_similarity(
    anomalous: Rows, normal: Rows, *, margin: float = 0.3
) -> Float[Tensor, "anomalous_position normal_position"]:
    """S_ref_ij = s(F_Tᵃ_i, F_Tⁿ_j) − α: how similar the vanilla teacher finds a pair, less the margin.

    Source:
        Eq. 8.

    Args:
        anomalous: F_Tᵃ.
        normal: F_Tⁿ.
        margin: α ≥ 0; 0.3 in the paper.

    Example:
        >>> reference_similarity(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[-0.3000,  0.7000]])
    """
    return similarities(anomalous, normal) - margin


def similarities(first: Rows, second: Rows) -> Float[Tensor, "first_position second_position"]:
    """s of all pairs of rows, in float32.

    Example:
        >>> similarities(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 0.]])
    """
    with full_precision(first.device):
        return F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T


def contrastive_loss(anomalous: Rows, normal: Rows) -> Float[Tensor, ""]:
    """What a contrastive teacher learns: normal features move together, anomalous ones away from them.

    Pull, the mean of 1 − s over all pairs of normal features, plus push, the mean of max(0, s) over all pairs of an
    anomalous and a normal one. The paper says in words alone what is pulled and what is pushed; this is the cosine
    embedding loss in its usual form, without a margin. Where there is no normal feature it is 0.

    Source:
        Table VI (a), in no equation.

    Args:
        anomalous: features of anomalous positions, as the teacher that learns has them.
        normal: those of normal positions.

    Returns:
        In [0, 2], float32.

    Example:
        >>> normal = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> contrastive_loss(torch.tensor([[3.0, 0.0]]), normal), contrastive_loss(-normal, normal)
        (tensor(1.), tensor(0.))
    """
    if not len(normal):
        return normal.new_zeros(()).float()
    # The mean similarity of all pairs is the square of the mean of the unit vectors, at the cost of one pass.
    pull = 1 - F.normalize(normal.float(), dim=1).mean(dim=0).square().sum()
    return pull + F.relu(similarities(anomalous, normal)).mean() if len(anomalous) else pull


def amplification_stage_loss(
    focal: Float[Tensor, ""], amplification: Float[Tensor, ""], *, weight: float = 1.0
) -> Float[Tensor, ""]:
    """L_1 = L_focal + L_A of the first stage.

    Source:
        Eq. 9, whose sum has no weight; the released code takes L_A a tenth.

    Args:
        focal: L_focal, summed over the levels.
        amplification: L_A, summed over the levels.
        weight: of L_A.

    Example:
        >>> amplification_stage_loss(torch.tensor(2.0), torch.tensor(3.0), weight=0.5)
        tensor(3.5000)
    """
    return focal + weight * amplification


# Normality distillation (section III-C)


def distillation_loss(teacher: Map, student: Map) -> Float[Tensor, ""]:
    """L_KD = 1 − s(F̃_A, F̃_S) of the flattened maps, mean over the batch, in float32.

    Source:
        Eq. 10.

    Args:
        teacher: F_A of normal images.
        student: F_S.

    Example:
        >>> teacher = torch.rand(2, 4, 3, 3)
        >>> distillation_loss(teacher, -teacher).round(decimals=4)
        tensor(2.)
    """
    return (1 - F.cosine_similarity(teacher.float().flatten(1), student.float().flatten(1), dim=1)).mean()


def hard_distillation_loss(teacher: Map, student: Map, positions: int) -> Float[Tensor, ""]:
    """L_HKD = 1/K_h Σ_d (1 − s(F_A^d, F_S^d)) over the K_h worst positions d of every image, mean over the batch.

    Source:
        Eq. 11.

    Args:
        teacher: F_A of normal images.
        student: F_S.
        positions: K_h ≥ 1; all positions where a map has fewer. 10 in the paper.

    Example:
        >>> teacher, student = torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
        >>> student[:, :, 0, 0] = -1
        >>> [hard_distillation_loss(teacher, student, count).round(decimals=4).item() for count in (1, 2)]
        [2.0, 1.0]
    """
    return worst_mean(cosine_distance(teacher, student), positions)


def worst_mean(distances: Float[Tensor, "batch height width"], positions: int) -> Float[Tensor, ""]:
    """Mean of the largest distances of every image, so many or all where it has fewer.

    Example:
        >>> worst_mean(torch.tensor([[[0.0, 1.0, 2.0]]]), 2)
        tensor(1.5000)
    """
    by_image = distances.flatten(1)
    return by_image.topk(min(positions, by_image.shape[1]), dim=1).values.mean()


def distillation_stage_loss(distillation: Float[Tensor, ""], hard: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """L_2 = L_KD + L_HKD of the second stage.

    Source:
        Eq. 12.

    Args:
        distillation: L_KD, summed over the levels.
        hard: L_HKD, summed over the levels.

    Example:
        >>> distillation_stage_loss(torch.tensor(0.5), torch.tensor(0.25))
        tensor(0.7500)
    """
    return distillation + hard


# Inference (section III-D)


def cosine_distance(teacher: Map, student: Map) -> Float[Tensor, "batch height width"]:
    """D(F_A, F_S) = 1 − s(F_A, F_S) over the channels of every position, in [0, 2], float32.

    Source:
        Eq. 13.

    Example:
        >>> cosine_distance(torch.ones(1, 2, 1, 1), torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
        tensor([[[1.]]])
    """
    return 1 - F.cosine_similarity(teacher.float(), student.float(), dim=1)


def anomaly_map(
    distances: Sequence[Float[Tensor, "batch h w"]],
    upsample: Iterable[Callable[[Float[Tensor, "batch h w"]], Float[Tensor, "batch height width"]]],
) -> Float[Tensor, "batch height width"]:
    """Ŝ_A = Σ_k Up_k(D_k), the levels' maps at the input's size, summed.

    Source:
        Eq. 14; the image score is its maximum. The released code smooths every summand.

    Args:
        distances: D_k of all levels.
        upsample: Up_k of all levels, bilinear between corner centres.

    Example:
        >>> maps = [torch.tensor([[[1.0]]]), torch.tensor([[[2.0, 3.0]]])]
        >>> anomaly_map(maps, [lambda low: low.repeat(1, 1, 2), torch.nn.Identity()])
        tensor([[[3., 4.]]])
    """
    first, *others = [enlarge(low) for enlarge, low in zip(upsample, distances, strict=True)]
    return sum(others, start=first)


# Beside the equations


def without_mean(scores: Float[Tensor, "batch h w"], share: float) -> Float[Tensor, "batch h w"]:
    """A share of its own mean taken off each image's map, so that what stands out of its image counts.

    A strange image raises its whole map: what surrounds a flaw, and patches that see a part of it. In no paper.

    Args:
        scores: (batch, h, w) anomaly scores.
        share: of the mean, in [0, 1].

    Returns:
        (batch, h, w), in the same unit.

    Example:
        >>> without_mean(torch.tensor([[[1.0, 1.0, 4.0]], [[3.0, 3.0, 6.0]]]), 1.0)[:, 0].tolist()
        [[-1.0, -1.0, 2.0], [-1.0, -1.0, 2.0]]
    """
    return scores - share * scores.mean(dim=(1, 2), keepdim=True)


def gate_precision(gate: WeightMap, anomalous: Cells) -> Float[Tensor, ""]:
    """Share of the positions with a gate above one half that are anomalous; 0 where there are none.

    Source:
        The released code, which chooses the first stage's state by it.

    Example:
        >>> gate_precision(torch.tensor([[[[0.9, 0.8]]]]), torch.tensor([[[True, False]]])).round(decimals=4)
        tensor(0.5000)
    """
    predicted = gate[:, 0] > 0.5
    return (predicted & anomalous).sum() / (predicted.sum() + 1e-5)


def gate_recall(gate: WeightMap, anomalous: Cells) -> Float[Tensor, ""]:
    """Share of the anomalous positions with a gate above one half; 0 where there are none.

    Example:
        >>> gate_recall(torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([[[True, True]]])).round(decimals=4)
        tensor(0.5000)
    """
    return ((gate[:, 0] > 0.5) & anomalous).sum() / (anomalous.sum() + 1e-5)


def residual_intensity(residual: Rows, weight: Float[Tensor, "position 1"] | None = None) -> Float[Tensor, ""]:
    """1/(N·C) Σ_i Σ_j Δ_ij² over N positions i and C channels j, of residuals as they are added; 0 without a position.

    Source:
        The definition under Fig. 8, which draws it for normal and for anomalous samples. Residuals are weighted by the
        gate: without it those of normal samples would not stay small.

    Args:
        residual: Δ.
        weight: w as in inspection; None where every position is amplified.

    Example:
        >>> residual_intensity(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([[1.0], [0.5]]))
        tensor(1.2500)
    """
    if not len(residual):
        return residual.new_zeros(()).float()
    weighted = residual if weight is None else weight * residual
    return weighted.float().square().mean()


def rate_factor(epoch: int, *, factor: float, milestones: Sequence[float]) -> float:
    """What the learning rate of an epoch, counted from 0, is of the first: a factor for each milestone reached.

    Source:
        The released code, 0.2 at 80 and 90 per cent of the epochs; it compares with fractional milestones for equality
        and never decays where they are not whole.

    Example:
        >>> rate_factor(80, factor=0.5, milestones=(79.2, 89.1))
        0.5
    """
    return factor ** sum(epoch >= milestone - 1e-9 for milestone in milestones)
