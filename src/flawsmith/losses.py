"""Losses on single positions that more than one method uses; processes that train together share them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.models.components.distributed import gathered, mean

SMOOTHING = 1e-5
LEAST = 1e-12
"""Keeps logarithms finite where a probability rounds to 0 or 1."""


def two_class_focal(
    probability: Float[Tensor, " position"], target: Float[Tensor, " position"], *, gamma: float
) -> Float[Tensor, ""]:
    """Focal loss over the classes normal and anomalous, smoothed, as GLASS (γ = 2) and SLSG (γ = 4) have it.

    With the one-hot target clamped to [ε, 1 − ε] and p_t = Σ_c target_c · p_c + ε, ε = 1e-5, it is the mean of
    −(1 − p_t)^γ · ln p_t. No class is weighted.

    Args:
        probability: of being anomalous, in [0, 1].
        target: 1 for anomalous positions, 0 for normal ones.
        gamma: focusing exponent γ ≥ 0.
    """
    probability, target = probability.float(), target.float()
    wanted = target.clamp(SMOOTHING, 1 - SMOOTHING)
    unwanted = (1 - target).clamp(SMOOTHING, 1 - SMOOTHING)
    likelihood = wanted * probability + unwanted * (1 - probability) + SMOOTHING
    return mean(-((1 - likelihood) ** gamma) * likelihood.log())


class Hardest(NamedTuple):
    """The positions that online hard example mining keeps.

    Attributes:
        threshold: least squared error of a kept position.
        kept: whether a position is kept.
    """

    threshold: Float[Tensor, ""]
    kept: Bool[Tensor, " position"]


def hardest(probability: Float[Tensor, " position"], target: Float[Tensor, " position"], quantile: float) -> Hardest:
    """Positions whose squared error is at least its quantile (GLASS: the median), without gradient.

    Args:
        probability: of being anomalous, in [0, 1].
        target: 1 for anomalous positions, 0 for normal ones.
        quantile: share of positions left out, in [0, 1); linear interpolation between order statistics.
    """
    error = (probability.detach().float() - target.float()).square()
    threshold = torch.quantile(gathered(error), quantile)
    return Hardest(threshold, error >= threshold)


def balanced_focal(
    probability: Float[Tensor, "..."], target: Float[Tensor, "..."], *, alpha: float, gamma: float
) -> Float[Tensor, ""]:
    """Focal loss with a weight for each class, as AAND's released code has it.

    The mean of −α(1 − p)^γ · y · ln p − (1 − α) p^γ · (1 − y) · ln(1 − p).

    Args:
        probability: p of being anomalous, in (0, 1).
        target: y, 1 for anomalous positions, 0 for normal ones.
        alpha: weight of anomalous positions, in [0, 1].
        gamma: focusing exponent γ ≥ 0.
    """
    probability, target = probability.float(), target.float()
    found = alpha * (1 - probability) ** gamma * target * probability.clamp_min(LEAST).log()
    missed = (1 - alpha) * probability**gamma * (1 - target) * (1 - probability).clamp_min(LEAST).log()
    return -mean(found + missed)
