"""The first linear layer of the discriminator over normal features and their ray anomalies, without the anomalies."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _RayHidden(torch.autograd.Function):
    """W·a for a = f + t·(f − c) equals (1 + t)·W·f − t·W·c, so neither forward nor backward ever forms a.

    Half of the matrix products of a plain implementation disappear: those with the anomalous features. The offset
    t·(f − c) is a constant to the gradient of f, yet it takes part in the gradient of W.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, centers: Tensor, nearest: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(features, centers, nearest, lengths, weight)
        both = features.new_empty(2, len(features), len(weight))
        normal, anomalous = both
        torch.addmm(bias, features, weight.T, out=normal)
        of_centers = torch.addmm(bias, centers, weight.T)
        torch.sub(normal, of_centers[nearest], out=anomalous).mul_(lengths[:, None]).add_(normal)
        return both.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, centers, nearest, lengths, weight = ctx.saved_tensors
        of_normal, of_anomalous = gradients[0].chunk(2)
        both = of_normal + of_anomalous
        stepped = of_anomalous * lengths[:, None]
        at_centers = stepped.new_zeros(len(centers), stepped.shape[1]).index_add_(0, nearest, stepped)
        gradient_features = both @ weight
        gradient_bias = both.sum(dim=0)
        gradient_weight = both.add_(stepped).T @ features - at_centers.T @ centers
        return gradient_features, None, None, None, gradient_weight, gradient_bias


def ray_hidden(
    features: Float[Tensor, "position width"],
    centers: Float[Tensor, "center width"],
    nearest: Int[Tensor, " position"],
    lengths: Float[Tensor, " position"],
    weight: Float[Tensor, "hidden width"],
    bias: Float[Tensor, " hidden"],
) -> Float[Tensor, "both_positions hidden"]:
    """The linear layer's outputs for the features and then for the anomalies f + t·(f − c), t a constant.

    Under autocast the matrix products run in its precision, as those of a linear layer would.
    """
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, centers, weight, bias = (t.to(dtype) for t in (features, centers, weight, bias))
        with torch.autocast(features.device.type, enabled=False):
            return _RayHidden.apply(features, centers, nearest, lengths.to(dtype), weight, bias)
    return _RayHidden.apply(features, centers, nearest, lengths, weight, bias)
