"""Losses on tensors: no state, no process groups; every mean is over the values that are given."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMOOTHING = 1e-5
LEAST = 1e-12
"""Keeps logarithms, and slopes of powers, finite where a probability rounds to 0 or 1."""


def focal_loss(
    probability: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Focal loss over the classes normal and anomalous, with a smoothed target; no class is weighted.

    With the one-hot target clamped to [ε, 1 − ε] and p_t = Σ_c target_c · p_c + ε, ε = 1e-5, it is the mean of
    −(1 − p_t)^γ · ln p_t.

    Args:
        probability: of being anomalous, in [0, 1].
        target: 1 where anomalous, 0 where normal.
        gamma: focusing exponent γ ≥ 0; 2 in GLASS, 4 in SLSG.

    Returns:
        The mean, in float32.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, Eq. 4; smoothing as in the released code of GLASS.

    Example:
        >>> focal_loss(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0])).round(decimals=4)
        tensor(0.0050)
    """
    probability, target = probability.float(), target.float()
    anomalous = target.clamp(SMOOTHING, 1 - SMOOTHING)
    normal = (1 - target).clamp(SMOOTHING, 1 - SMOOTHING)
    likelihood = anomalous * probability + normal * (1 - probability) + SMOOTHING
    return (-((1 - likelihood).clamp_min(LEAST) ** gamma) * likelihood.log()).mean()


def balanced_focal_loss(
    probability: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, alpha: float = 0.8, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Focal loss with a weight for each class.

    The mean of −α(1 − p)^γ · y · ln p − (1 − α) p^γ · (1 − y) · ln(1 − p).

    Args:
        probability: p of being anomalous, in (0, 1).
        target: y, 1 where anomalous, 0 where normal.
        alpha: weight of anomalous positions, in [0, 1]; 0.8 in AAND.
        gamma: focusing exponent γ ≥ 0.

    Returns:
        The mean, in float32.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, Eq. 5, as AAND's released code has it.

    Example:
        >>> balanced_focal_loss(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0])).round(decimals=4)
        tensor(0.0013)
    """
    probability, target = probability.float(), target.float()
    of_anomalous = alpha * (1 - probability).clamp_min(LEAST) ** gamma * target * probability.clamp_min(LEAST).log()
    of_normal = (
        (1 - alpha) * probability.clamp_min(LEAST) ** gamma * (1 - target) * (1 - probability).clamp_min(LEAST).log()
    )
    return -(of_anomalous + of_normal).mean()


def hard_examples(
    probability: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, quantile: float = 0.5
) -> Bool[Tensor, "*shape"]:
    """Online hard example mining: where the squared error is at least its quantile; no gradient.

    Args:
        probability: of being anomalous, in [0, 1].
        target: 1 where anomalous, 0 where normal.
        quantile: share of the values left out, in [0, 1); linear interpolation between order statistics.

    Source:
        Shrivastava et al., Training Region-Based Object Detectors with Online Hard Example Mining, CVPR 2016; the
        quantile as in the released code of GLASS.

    Example:
        >>> hard_examples(torch.tensor([0.1, 0.6, 0.8]), torch.tensor([0.0, 0.0, 1.0]), quantile=0.5).tolist()
        [False, True, True]
    """
    error = (probability.detach().float() - target.float()).square()
    return error >= torch.quantile(error, quantile)
