"""The equations of PaDiM, in the paper's order (Defard et al., ICPR workshops 2020).

Every position (i, j) has a Gaussian N(μ_ij, Σ_ij) of what good images show there; an image is as anomalous at a
position as it is far from its mean. Factors of Σ⁻¹ serve for the distance and are what a model file holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = 1e-6
"""Least regularisation relative to a position's largest variance, below which float32 cannot hold the covariance."""
POSITIONS_A_PASS = 256
"""Positions whose covariances are in float64 at a time."""

Embedding = Float[Tensor, "batch channel position"]
Means = Float[Tensor, "channel position"]
Matrices = Float[Tensor, "position channel channel"]
Packed = Float[Tensor, "position packed"]


def nearest_positions(coarse: tuple[int, int], fine: tuple[int, int]) -> Int[Tensor, " position"]:
    """Section III-A: the position of a coarse grid that every position of a fine one lies in, both row by row.

    Args:
        coarse: (height, width) of a coarse level.
        fine: (height, width) of the finest.

    Example:
        >>> nearest_positions((1, 2), (2, 4)).tolist()
        [0, 0, 1, 1, 0, 0, 1, 1]
    """
    rows, columns = (torch.arange(many) * few // many for few, many in zip(coarse, fine, strict=True))
    return (rows[:, None] * coarse[1] + columns).flatten()


def means(embeddings: Iterable[Embedding]) -> tuple[Means, int]:
    """μ_ij, the sample mean of x_ij over the good images, and N, how many they are.

    Args:
        embeddings: of all good images, some at a time.

    Source:
        Section III-B.

    Example:
        >>> means([torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[6.0]]])])
        (tensor([[3.]]), 3)
    """
    count, total = 0, torch.zeros(())
    for batch in embeddings:
        count, total = count + len(batch), total + batch.double().sum(dim=0)
    return (total / count).float(), count


def covariances(embeddings: Iterable[Embedding], mean: Means, count: int) -> Matrices:
    """Eq. 1 without its last term: 1/(N − 1) · Σ over k of (x_ij^k − μ_ij)(x_ij^k − μ_ij)ᵀ; 0 for a single image.

    Args:
        embeddings: of all good images, some at a time.
        mean: μ_ij.
        count: N, images.

    Source:
        Section III-B.

    Example:
        >>> covariances([torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[6.0]]])], torch.tensor([[3.0]]), 3)
        tensor([[[7.]]])
    """
    channels, positions = mean.shape
    covariance = mean.new_zeros(positions, channels, channels)
    for batch in embeddings:
        offsets = batch.permute(2, 1, 0) - mean.T[..., None]
        covariance.baddbmm_(offsets, offsets.transpose(1, 2), alpha=1 / max(count - 1, 1))
    return covariance


def regularised(covariance: Matrices, epsilon: float) -> Matrices:
    """The last term of Eq. 1: Σ_ij = … + ε·I, with ε no less than rounding needs.

    Args:
        covariance: of every position.
        epsilon: ε, at least a millionth of the position's largest variance.

    Source:
        Section III-B.

    Example:
        >>> regularised(torch.zeros(1, 2, 2), 0.01)
        tensor([[[0.0100, 0.0000],
                 [0.0000, 0.0100]]])
    """
    variances = covariance.diagonal(dim1=1, dim2=2)
    added = (FLOOR * variances.amax(dim=1, keepdim=True)).clamp_min(epsilon)
    return covariance + torch.diag_embed(added.expand_as(variances))


def whitening(covariance: Matrices) -> Matrices:
    """L⁻¹ of every Σ = L·Lᵀ, so that ‖L⁻¹·x‖² = xᵀ·Σ⁻¹·x; lower triangular.

    Args:
        covariance: Σ, positive definite.

    Example:
        >>> whitening(torch.tensor([[[4.0, 0.0], [0.0, 1.0]]]))
        tensor([[[0.5000, 0.0000],
                 [0.0000, 1.0000]]])
    """
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


def packed_whitening(covariance: Matrices, epsilon: float) -> Packed:
    """The whitening factors of regularised covariances, lower triangles row by row in half precision.

    Args:
        covariance: Eq. 1 without its last term.
        epsilon: ε.

    Example:
        >>> packed_whitening(torch.zeros(3, 2, 2), 0.25)[0]
        tensor([2., 0., 2.], dtype=torch.float16)
    """
    positions, channels, _ = covariance.shape
    rows, columns = torch.tril_indices(channels, channels)
    packed = covariance.new_empty(positions, len(rows), dtype=torch.float16)
    for start in range(0, positions, POSITIONS_A_PASS):
        part = slice(start, start + POSITIONS_A_PASS)
        packed[part] = whitening(regularised(covariance[part].double(), epsilon))[:, rows, columns].half()
    return packed


def mahalanobis(offsets: Float[Tensor, "position channel batch"], factors: Matrices) -> Float[Tensor, "batch position"]:
    """Eq. 2: M(x_ij) = √((x_ij − μ_ij)ᵀ · Σ_ij⁻¹ · (x_ij − μ_ij)).

    Args:
        offsets: x − μ.
        factors: of Σ⁻¹, see :func:`whitening`.

    Source:
        Section III-C.

    Example:
        >>> mahalanobis(torch.tensor([[[3.0], [4.0]]]), torch.eye(2)[None])
        tensor([[5.]])
    """
    return torch.linalg.vector_norm(factors @ offsets, dim=1).T
