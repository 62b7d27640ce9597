"""Losses and the learning rate of SLSG."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.losses import two_class_focal
from flawsmith.models.components.distributed import mean
from flawsmith.models.slsg.networks import Logits, anomaly_probability

Patches = Float[Tensor, "batch 1 rows columns"]


def segmentation_losses(
    logits: Logits, mask: Bool[Tensor, "batch height width"], *, focal_gamma: float
) -> dict[str, Tensor]:
    """The parts of Eq. 11: focal and ℓ1 loss of the final probability, ℓ1 loss of the auxiliary one.

    Args:
        logits: of normal and anomalous.
        mask: anomalous pixels.
        focal_gamma: γ of the focal loss.
    """
    target = mask.float()
    final, auxiliary = anomaly_probability(logits.final), anomaly_probability(logits.auxiliary)
    return {
        "loss_focal": two_class_focal(final.flatten(), target.flatten(), gamma=focal_gamma),
        "loss_l1": mean((final - target).abs()),
        "loss_auxiliary": mean((auxiliary - target).abs()),
    }


def generator_loss(judged: Patches) -> Float[Tensor, ""]:
    """Eq. 8: least squares of what the discriminator says of reconstructions and its answer for real images, 1."""
    return mean((judged.float() - 1).square()) / 2


def discriminator_loss(judged: Patches, real: Patches) -> Float[Tensor, ""]:
    """Eq. 9: reconstructions shall be judged 0, real images 1."""
    return mean(judged.float().square()) / 2 + mean((real.float() - 1).square()) / 2


def cosine_rate(step: int, *, start: float, total: int) -> float:
    """Learning rate of a step, from the start to 0 over all steps.

    The released code advances its schedule with the number of the step just done, so step s ≥ 1 has the rate of s − 1.

    Args:
        step: number of the optimiser step, from 0.
        start: rate of the first step.
        total: steps over which the rate falls.
    """
    return start * (1 + math.cos(math.pi * max(0, step - 1) / total)) / 2


def reconstruction_losses(
    image: Float[Tensor, "batch 3 height width"], final: Tensor, auxiliary: Tensor
) -> dict[str, Float[Tensor, ""]]:
    """ℓ1 loss of the reconstruction and squared ℓ2 loss of the auxiliary one, over the whole image (Eq. 10)."""
    return {
        "loss_l1": mean((final.float() - image).abs()),
        "loss_auxiliary": mean(torch.square(auxiliary.float() - image)),
    }
