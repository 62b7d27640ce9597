"""The equations of GLASS in the order and under the numbers of the paper, as pure functions on tensors.

Chen et al., A Unified Anomaly Synthesis Strategy with Gradient Ascent for Industrial Anomaly Detection and
Localization, ECCV 2024. Features are rows, one a position; u are adapted normal features, g global anomalies, c
centres. Written plainly: what training runs instead, where it is faster, is in ``components/fast.py`` and proven equal
to these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.losses import focal_loss, hard_examples
from flawsmith.models.components.heads import EPSILON
from flawsmith.models.components.score_maps import upsample_and_smooth

Rows = Float[Tensor, "position width"]
Logits = Float[Tensor, " position"]


# Global anomaly synthesis (section 3.2)


def gradient_ascent_step(synthetic: Rows, gradient: Rows, step_size: float) -> Rows:
    """Eq. 1: g̃ = g + η·∇L_gas(g) / ‖∇L_gas(g)‖, every feature by a step of the same length.

    Args:
        synthetic: g, normal features with Gaussian noise at the start.
        gradient: of L_gas (Eq. 6) with respect to g.
        step_size: η; 0.001 in the released code.

    Example:
        >>> gradient_ascent_step(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), step_size=0.5)
        tensor([[0.3000, 0.4000]])
    """
    return synthetic + step_size * gradient / (torch.linalg.vector_norm(gradient, dim=1, keepdim=True) + EPSILON)


def gradient_ascent(
    normal: Rows, synthetic: Rows, discriminator: Callable[[Rows], Logits], *, step_size: float, steps: int
) -> Rows:
    """Steps of Eq. 1 on the gradient of L_gas, towards what the discriminator takes for normal; constants to the loss.

    The discriminator sees normal and synthetic features as one batch, which its batch norm shares.
    :class:`~flawsmith.models.components.fast.HiddenAscent` is the same in its hidden space.

    Args:
        normal: u, adapted features of good images.
        synthetic: g, the features that are moved.
        discriminator: features to logits.
        step_size: η.
        steps: how many.

    Example:
        >>> gradient_ascent(torch.zeros(1, 2), torch.ones(1, 2), lambda rows: rows[:, 0], step_size=0.5, steps=2)
        tensor([[0., 1.]])
    """
    synthetic = synthetic.detach()
    for _ in range(steps):
        synthetic.requires_grad_()
        logits = discriminator(torch.cat([normal.detach(), synthetic]))[len(normal) :]
        (gradient,) = torch.autograd.grad(anomaly_loss(logits), synthetic)
        synthetic = gradient_ascent_step(synthetic.detach(), gradient, step_size)
    return synthetic


class Truncated(NamedTuple):
    """Offsets after a projection, the factors by which they were scaled, and which of them it moved."""

    offset: Rows
    scale: Float[Tensor, " position"]
    moved: Bool[Tensor, " position"]


def truncated_projection(offset: Rows, inner: Tensor | float, outer: Tensor | float) -> Truncated:
    """Eq. 2: ε̂ = α/‖ε̃‖·ε̃ with α = ‖ε̃‖ clamped to [r1, r2]: an offset keeps its direction and gets a length in range.

    The gradient passes through the length where it was clamped. Manifold: ε̃ = g̃ − u, radii r1 and r2. Hypersphere:
    ε̃ = g̃ − c, radii r'1 and r'2 = 2·r'1; for local anomalies r'2 and r'3 = 2·r'2.

    Args:
        offset: ε̃, features relative to their origin.
        inner: r1 ≥ 0.
        outer: r2 ≥ r1.

    Returns:
        The new offsets, their factors, and whether a length lay outside of the radii.

    Example:
        >>> truncated_projection(torch.tensor([[3.0, 4.0]]), 1.0, 2.0).offset
        tensor([[1.2000, 1.6000]])
    """
    length = torch.linalg.vector_norm(offset, dim=1)
    clamped = length.clamp(inner, outer)
    scale = clamped / (length + EPSILON)
    return Truncated(offset * scale[:, None], scale, (clamped != length).detach())


@torch.no_grad()
def hypersphere_radius(features: Rows, centers: Rows, quantile: float) -> Float[Tensor, ""]:
    """r'1: the distance to their own centres within which a share of the normal features lies, without gradient.

    Args:
        features: u, one a row.
        centers: c of the position of each.
        quantile: the share; 0.75 in the paper.

    Example:
        >>> hypersphere_radius(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1), 0.5)
        tensor(2.)
    """
    return torch.quantile(torch.linalg.vector_norm(features.float() - centers, dim=1), quantile)


def project_local(
    features: Rows, anomalous: Bool[Tensor, " position"], centers: Rows, inner: Tensor | float, outer: Tensor | float
) -> Rows:
    """Local anomalies under the hypersphere (Eq. 2 on u₊ − c, radii r'2 and r'3); normal positions stay.

    Args:
        features: u₊, adapted features of anomalous images.
        anomalous: positions that belong to an anomaly.
        centers: c of every position.
        inner: r'2.
        outer: r'3.

    Example:
        >>> project_local(torch.tensor([[9.0], [9.0]]), torch.tensor([True, False]), torch.zeros(2, 1), 1.0, 2.0)
        tensor([[2.],
                [9.]])
    """
    projected = centers + truncated_projection(features - centers, inner, outer).offset
    return torch.where(anomalous[:, None], projected, features)


# Local anomaly synthesis (section 3.3)


def combine_masks(
    first: Bool[Tensor, "height width"],
    second: Bool[Tensor, "height width"],
    foreground: Bool[Tensor, "height width"],
    draw: float,
    alpha: float = 1 / 3,
) -> Bool[Tensor, "height width"]:
    """Eq. 3: intersection, union or the first of two noise masks, within the foreground, by a uniform draw.

    The recipe ``glass`` of :mod:`flawsmith.synthesis` does the same with the intervals of the released code.

    Args:
        first: m1, thresholded Perlin noise.
        second: m2, the same.
        foreground: m_f.
        draw: p in [0, 1].
        alpha: α; a third in the paper.

    Example:
        >>> one, two = torch.tensor([[True, True]]), torch.tensor([[True, False]])
        >>> combine_masks(one, two, torch.ones(1, 2, dtype=torch.bool), draw=0.1)
        tensor([[ True, False]])
    """
    if draw <= alpha:
        combined = first & second
    elif draw <= 2 * alpha:
        combined = first | second
    else:
        combined = first
    return combined & foreground


def overlay(
    image: Float[Tensor, "3 height width"],
    texture: Float[Tensor, "3 height width"],
    mask: Bool[Tensor, "height width"],
    beta: float,
) -> Float[Tensor, "3 height width"]:
    """Eq. 4: x₊ = x·m̄ + (1 − β)·x''·m + β·x·m.

    Args:
        image: x, normal.
        texture: x'', augmented.
        mask: m, where the flaw is.
        beta: β in [0, 1], weight of the normal image; Normal(0.5, 0.1²) within [0.2, 0.8] in the paper.

    Example:
        >>> overlay(torch.ones(3, 1, 1), torch.zeros(3, 1, 1), torch.ones(1, 1, dtype=torch.bool), beta=0.3)[0]
        tensor([[0.3000]])
    """
    weight = mask.to(image.dtype)
    return image * (1 - weight) + (1 - beta) * texture * weight + beta * image * weight


# Losses (section 3.4)


def normal_loss(logits: Logits) -> Float[Tensor, ""]:
    """Eq. 5: L_n, binary cross-entropy of the logits of normal features against 0.

    Example:
        >>> normal_loss(torch.zeros(3)).round(decimals=4)
        tensor(0.6931)
    """
    return F.softplus(logits.float()).mean()


def anomaly_loss(logits: Logits) -> Float[Tensor, ""]:
    """Eq. 6: L_gas, binary cross-entropy of the logits of global anomalies against 1.

    Example:
        >>> anomaly_loss(torch.zeros(3)).round(decimals=4)
        tensor(0.6931)
    """
    return F.softplus(-logits.float()).mean()


def local_loss(
    logits: Logits, anomalous: Bool[Tensor, " position"], *, hard_quantile: float = 0.5, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Eq. 7: L_las, the focal loss of positions of anomalous images, here already over the hard ones of Eq. 8 (OHEM).

    Args:
        logits: of all positions.
        anomalous: m, positions that belong to an anomaly.
        hard_quantile: share of easy positions left out, in [0, 1).
        gamma: γ of the focal loss.

    Example:
        >>> local_loss(torch.tensor([9.0, -9.0]), torch.tensor([True, False])).round(decimals=3)
        tensor(0.)
    """
    probability, target = logits.float().sigmoid(), anomalous.float()
    hard = hard_examples(probability, target, quantile=hard_quantile)
    return focal_loss(probability[hard], target[hard], gamma=gamma)


def total_loss(normal: Tensor, gas: Tensor | None, las: Tensor | None, *, gas_weight: float = 1.0) -> Float[Tensor, ""]:
    """Eq. 8: L = L_n + L_gas + f_ohem(L_las); a branch that is left out (Table 4) is None.

    Example:
        >>> total_loss(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0))
        tensor(6.)
    """
    parts = [normal]
    if gas is not None:
        parts.append(gas_weight * gas)
    if las is not None:
        parts.append(las)
    return torch.stack(parts).sum()


# Inference (section 3.5)


def anomaly_map(
    confidence: Float[Tensor, "batch h w"], size: tuple[int, int], *, sigma: float = 4.0
) -> Float[Tensor, "batch height width"]:
    """Eq. 9: S_AL, the confidences resized bilinearly to the image's size and smoothed; S_AD is their maximum.

    Example:
        >>> anomaly_map(torch.rand(1, 4, 4), (32, 32)).shape
        torch.Size([1, 32, 32])
    """
    return upsample_and_smooth(confidence, size, sigma=sigma)
