"""The equations of SLSG, in the paper's order and by its numbers, then what the text says without a number.

N nodes are the cells of the encoder's last map, row by row; a matrix of similarities has a row for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flawsmith.losses import focal_loss
from flawsmith.synthesis.blend import FloatImage, Mask, blend

Grid = tuple[int, int]
"""(height, width)."""
Map = Float[Tensor, "batch channel height width"]
Nodes = Float[Tensor, "batch channel node"]
Similarity = Float[Tensor, "batch node node"]
Images = Float[Tensor, "batch 3 height width"]
Verdicts = Float[Tensor, "batch 1 rows columns"]
"""What D-Net says of patches of an image: near 1, the patch is real; near 0, it is painted."""

BASE = 1e4


# Section 3.2: simulated anomalies


def overlay(image: FloatImage, source: FloatImage, mask: Mask, *, opacity: float) -> FloatImage:
    """Eq. 1: I_A = M̄ ⊙ I + M ⊙ (δ·I_N + (1 − δ)·I).

    Args:
        image: I, the normal image, (height, width, 3).
        source: I_N, where the anomaly comes from, of the same shape.
        mask: M, (height, width).
        opacity: δ in [0, 1].

    Raises:
        ValueError: shapes that do not belong together.

    Example:
        >>> import numpy as np
        >>> image, source = np.zeros((1, 2, 3), np.float32), np.ones((1, 2, 3), np.float32)
        >>> overlay(image, source, np.array([[True, False]]), opacity=0.75)[..., 0].tolist()
        [[0.75, 0.0]]
    """
    return blend(image, source, mask, 1 - opacity)


# Section 3.3: self-attention-based GCN


def dense_similarity(query: Nodes, key: Nodes, *, scale: float) -> Similarity:
    """Eq. 2: W_d = Softmax(f(X)·g(X)ᵀ / √d).

    Args:
        query: f(X), d channels.
        key: g(X), likewise.
        scale: 1 / √d; the released code has 1.

    Returns:
        Rows sum to 1.

    Example:
        >>> dense_similarity(torch.zeros(1, 8, 4), torch.zeros(1, 8, 4), scale=8**-0.5)[0, 0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    return torch.softmax(query.transpose(1, 2) @ key * scale, dim=2)


def attend(similarity: Similarity, value: Nodes) -> Nodes:
    """Eq. 3: Z = W_d·h(X).

    Args:
        similarity: W_d.
        value: h(X).

    Example:
        >>> attend(torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]), torch.tensor([[[2.0, 4.0]]])).tolist()
        [[[3.0, 4.0]]]
    """
    return value @ similarity.transpose(1, 2).to(value.dtype)


def position_encoding(channels: int, grid: Grid) -> Float[Tensor, "node channel"]:
    """P, sines and cosines of the place of every node.

    The first half of the channels encodes the column, the other half the row; within a half of 2d channels, the first
    d are sines and the others cosines of the place times 10⁴ to the power −i/d.

    Args:
        channels: a multiple of four.
        grid: of the map.

    Example:
        >>> position_encoding(4, (1, 2))[1]
        tensor([0.8415, 0.5403, 0.0000, 1.0000])
    """
    frequency = BASE ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))

    def axis(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([axis(grid[1])[columns.flatten()], axis(grid[0])[rows.flatten()]], dim=1).float()


def position_similarity(channels: int, grid: Grid) -> Float[Tensor, "node node"]:
    """Eq. 4: W_p = CosSim(P, Pᵀ), 1 on the diagonal.

    Every row of P has the squared length C_p / 2, so the cosine is 2·P·Pᵀ / C_p.

    Args:
        channels: C_p, of the encoding; made a multiple of four.
        grid: of the map.

    Example:
        >>> position_similarity(8, (1, 3))[0]
        tensor([1.0000, 0.8851, 0.6459])
    """
    width = max(4, channels // 4 * 4)
    table = position_encoding(width, grid).double()
    return (2 * table @ table.T / width).float()


def sparse_similarity(query: Nodes, key: Nodes, position: Float[Tensor, "node node"]) -> Similarity:
    """Eq. 5: W_s = CosSim(f(X), g(X)ᵀ) − W_p.

    Args:
        query: f(X).
        key: g(X).
        position: W_p.

    Returns:
        In [−2, 2].

    Example:
        >>> nodes = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> sparse_similarity(nodes, nodes, torch.full((2, 2), 0.5)).tolist()
        [[[0.5, -0.5], [-0.5, 0.5]]]
    """
    cosine = F.normalize(query, dim=1).transpose(1, 2) @ F.normalize(key, dim=1)
    return cosine - position


class Neighbours(NamedTuple):
    """Which nodes a graph joins to each node.

    Attributes:
        ranked: nodes by similarity, best first, as many as were looked at.
        indices: those among them that are neighbours.
        weights: how much each neighbour counts, in [0, 1]; None: in full.
    """

    ranked: Int[Tensor, "batch node ranked"]
    indices: Int[Tensor, "batch node neighbour"]
    weights: Float[Tensor, "batch node neighbour"] | None


def nearest_nodes(similarity: Similarity, count: int, *, dilation: int = 1, margin: float = 0.0) -> Neighbours:
    """E, the edges of the graph: the top K nodes by W_s of every node, itself among them; no gradient.

    Args:
        similarity: W_s.
        count: K; fewer where there are fewer nodes.
        dilation: every so many of the ``dilation`` · K most similar nodes are taken; 3 in the released code.
        margin: a neighbour counts in part where its similarity is by less than this above that of the first node that
            is none, so that no neighbour is exchanged at once; for a dilation of 1.

    Example:
        >>> nearest_nodes(torch.tensor([[[0.1, 0.9, 0.5], [0.2, 0.0, 0.3], [1.0, 0.0, 0.5]]]), 2).indices.tolist()
        [[[1, 2], [2, 0], [0, 2]]]
    """
    nodes = similarity.shape[-1]
    most = min(count * dilation + (margin > 0), nodes)
    taken = min(count, -(-most // dilation))
    values, ranked = similarity.detach().topk(most, dim=2)
    indices = ranked[:, :, ::dilation][:, :, :taken]
    weights = None
    if margin and most > taken:
        weights = ((values[:, :, :-1] - values[:, :, -1:]) / margin).clamp(0, 1)
    return Neighbours(ranked, indices, weights)


def max_relative(
    nodes: Nodes,
    neighbours: Int[Tensor, "batch node neighbour"],
    weights: Float[Tensor, "batch node neighbour"] | None = None,
) -> Nodes:
    """Eq. 6: v'_i = max_j (v_i^j − v_i), the largest difference to a neighbour, by channel.

    Args:
        nodes: v, a column each.
        neighbours: their indices.
        weights: in [0, 1], what each difference is multiplied by; None: all count in full.

    Example:
        >>> max_relative(torch.tensor([[[0.0, 1.0, 5.0]]]), torch.tensor([[[1, 2], [0, 2], [0, 1]]])).tolist()
        [[[5.0, 4.0, -4.0]]]
    """
    _, channels, count = nodes.shape
    flat = neighbours.flatten(1)[:, None].expand(-1, channels, -1)
    values = nodes.gather(2, flat).reshape(*nodes.shape[:2], count, -1)
    if weights is None:
        return values.amax(dim=3) - nodes
    return ((values - nodes[:, :, :, None]) * weights[:, None].to(nodes.dtype)).amax(dim=3)


def update(
    parts: Sequence[Nodes],
    grid: Grid,
    layer: Callable[[Tensor], Tensor],
    *,
    order: Literal["joined", "alternating"] = "joined",
) -> Map:
    """Eq. 7: X' = u([Z', V'']).

    Args:
        parts: Z and V', or one of them.
        grid: on which their nodes become maps.
        layer: u, of as many channels as all parts have.
        order: channels of the parts one behind the other, or alternately as in the released code.

    Example:
        >>> update([torch.zeros(1, 3, 4), torch.ones(1, 3, 4)], (2, 2), torch.nn.Identity()).mean(dim=(2, 3)).tolist()
        [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    joined = torch.stack([*parts], dim=2).flatten(1, 2) if order == "alternating" else torch.cat([*parts], dim=1)
    return layer(joined.reshape(joined.shape[0], -1, *grid))


# Section 3.4: optimization objectives


def generator_loss(painted: Verdicts) -> Float[Tensor, ""]:
    """Eq. 8: L_G = ½ (D(G(x_m)) − 1)², the mean over patches.

    Args:
        painted: D(G(x_m)), of reconstructions.

    Example:
        >>> generator_loss(torch.full((1, 1, 2, 2), 0.5))
        tensor(0.1250)
    """
    return (painted.float() - 1).square().mean() / 2


def discriminator_loss(painted: Verdicts, real: Verdicts) -> Float[Tensor, ""]:
    """Eq. 9: L_D = ½ D(G(x_m))² + ½ (D(x) − 1)², means over patches.

    Args:
        painted: D(G(x_m)), of reconstructions.
        real: D(x), of real images.

    Example:
        >>> discriminator_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        tensor(0.)
    """
    return painted.float().square().mean() / 2 + (real.float() - 1).square().mean() / 2


def reconstruction_loss(
    image: Images, final: Images, auxiliary: Images, painted: Verdicts, *, weights: tuple[float, float, float]
) -> dict[str, Float[Tensor, ""]]:
    """Eq. 10: L_R = α1·L_G + α2·L_ℓ1 + α3·L_aux, over the whole image.

    Args:
        image: x, as it should be.
        final: G(x_m), painted from all levels.
        auxiliary: painted from the bottleneck alone.
        painted: D(G(x_m)).
        weights: α1, α2 and α3.

    Returns:
        ``loss``, and its parts before they are weighted: L_G, the mean absolute difference of ``final``, the mean
        squared one of ``auxiliary``.

    Example:
        >>> image, verdicts = torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 1, 1)
        >>> losses = reconstruction_loss(image, image + 2, image - 3, verdicts, weights=(1, 0.8, 1))
        >>> {name: round(float(value), 4) for name, value in losses.items()}
        {'loss': 10.6, 'loss_adversarial': 0.0, 'loss_l1': 2.0, 'loss_auxiliary': 9.0}
    """
    parts = {
        "loss_adversarial": generator_loss(painted),
        "loss_l1": (final.float() - image).abs().mean(),
        "loss_auxiliary": (auxiliary.float() - image).square().mean(),
    }
    return _weighted(parts, weights)


def segmentation_loss(
    final: Float[Tensor, "batch 2 height width"],
    auxiliary: Float[Tensor, "batch 2 height width"],
    mask: Bool[Tensor, "batch height width"],
    *,
    weights: tuple[float, float, float],
    gamma: float = 4.0,
) -> dict[str, Float[Tensor, ""]]:
    """Eq. 11: L_S = α4·L_f + α5·L_ℓ1 + α6·L_aux.

    The auxiliary loss is an ℓ1 loss too, as in the released code; the paper does not say.

    Args:
        final: logits of normal and anomalous.
        auxiliary: those of the head behind the SG block.
        mask: anomalous pixels.
        weights: α4, α5 and α6.
        gamma: γ of the focal loss.

    Returns:
        ``loss``, and its parts before they are weighted.

    Example:
        >>> logits, mask = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool)
        >>> losses = segmentation_loss(logits, logits, mask, weights=(0.4, 0.6, 0.3))
        >>> {name: round(float(value), 4) for name, value in losses.items()}
        {'loss': 0.4673, 'loss_focal': 0.0433, 'loss_l1': 0.5, 'loss_auxiliary': 0.5}
    """
    target = mask.float()
    probability, rough = anomaly_probability(final), anomaly_probability(auxiliary)
    parts = {
        "loss_focal": focal_loss(probability.flatten(), target.flatten(), gamma=gamma),
        "loss_l1": (probability - target).abs().mean(),
        "loss_auxiliary": (rough - target).abs().mean(),
    }
    return _weighted(parts, weights)


def _weighted(parts: dict[str, Tensor], weights: Sequence[float]) -> dict[str, Tensor]:
    total = torch.stack([weight * value for weight, value in zip(weights, parts.values(), strict=True)]).sum()
    return {"loss": total, **parts}


# Without a number


def anomaly_probability(logits: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, "batch height width"]:
    """Softmax probability of being anomalous, in float32.

    Example:
        >>> anomaly_probability(torch.zeros(1, 2, 1, 1)).item()
        0.5
    """
    return torch.sigmoid((logits[:, 1] - logits[:, 0]).float())


def image_score(maps: Float[Tensor, "batch height width"], *, top_pixels: int) -> Float[Tensor, " batch"]:
    """Section 4.2: an image's score is the mean of its highest pixels.

    Args:
        maps: higher is more anomalous.
        top_pixels: so many of them, or all where there are fewer; 100 in the paper.

    Example:
        >>> image_score(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), top_pixels=2)
        tensor([2.5000])
    """
    pixels = maps.flatten(1)
    return torch.topk(pixels, min(top_pixels, pixels.shape[1]), dim=1).values.mean(dim=1)


def cosine_rate(step: int, *, start: float, total: int) -> float:
    """Learning rate of a step, from the start to 0 over all steps.

    The released code advances its schedule with the number of the step just done, so step s ≥ 1 has the rate of s − 1.

    Args:
        step: number of the optimiser step, from 0.
        start: rate of the first step.
        total: steps over which the rate falls.

    Example:
        >>> [round(cosine_rate(step, start=0.04, total=4), 4) for step in range(5)]
        [0.04, 0.04, 0.0341, 0.02, 0.0059]
    """
    return start * (1 + math.cos(math.pi * max(0, step - 1) / total)) / 2
