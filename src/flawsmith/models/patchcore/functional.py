"""The equations of PatchCore, in the paper's order (Roth et al., CVPR 2022).

A patch is the feature of one position: φ over a neighbourhood p × p of a level map. The memory M holds patches of good
images; a patch is as anomalous as it is far from the nearest one in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flawsmith.features.patch_embedding import as_rows, average_embedding
from flawsmith.models.components.memory_bank import greedy_coreset, nearest_rows

ROWS_A_PASS = 1024
"""Rows whose neighbours are looked for at a time, which bounds the memory of their distances."""

Embedding = Float[Tensor, "batch width height0 width0"]
Patches = Float[Tensor, "batch patch width"]
PatchTable = Float[Tensor, "patch width"]
Memory = Float[Tensor, "row width"]
Distances = Float[Tensor, "batch patch"]
Nearest = Int[Tensor, "batch patch"]


def neighbourhood_features(levels: Sequence[Float[Tensor, "batch _ _ _"]], patch_size: int) -> Embedding:
    """Eqs. 1 and 2: f_agg, the mean, over the neighbourhood N_p of every position; levels join on the finest.

    Args:
        levels: level maps φ_j, finest first.
        patch_size: p, side of the neighbourhood in positions of each level, odd; what lies beyond the border counts
            as 0.

    Source:
        Section 3.1, with anomalib's mean; the released code's two poolings are
        :class:`flawsmith.features.patch_embedding.PatchEmbedding`.

    Example:
        >>> level = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> float(neighbourhood_features([level], 3)[0, 0, 1, 1])
        4.0
    """
    return average_embedding(levels, patch_size, levels[0].shape[-2:])


def patches(embedding: Embedding) -> Patches:
    """Eq. 3: P_{s,p}, the features of all positions of an image, at the stride s = 1.

    Source:
        Section 3.1.

    Example:
        >>> patches(torch.zeros(2, 8, 4, 6)).shape
        torch.Size([2, 24, 8])
    """
    return embedding.flatten(2).transpose(1, 2)


def patch_table(embedding: Embedding) -> PatchTable:
    """Eq. 4: M as the union of P_{s,p} over good images, here those of one batch; batches are concatenated.

    Source:
        Section 3.1.

    Example:
        >>> patch_table(torch.zeros(2, 8, 4, 6)).shape
        torch.Size([48, 8])
    """
    return as_rows(embedding)


def coreset(projected: PatchTable, count: int, *, first: int) -> Int[Tensor, " chosen"]:
    """Eq. 5, greedily: M_C* = argmin over M_C ⊂ M of max over m ∈ M of min over n ∈ M_C of ‖m − n‖.

    Args:
        projected: ψ(m), the patches by a random linear projection, or the patches as they are.
        count: size of the coreset.
        first: the patch to begin with.

    Returns:
        Rows of the table, in the order of their choice; fewer than ``count`` where these cover all others exactly.

    Source:
        Section 3.2, Algorithm 1.

    Example:
        >>> coreset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3, first=0).tolist()
        [0, 3, 2]
    """
    return greedy_coreset(projected, count, first=first)


def half_squares(memory: Memory) -> Float[Tensor, " row"]:
    """‖m‖² / 2 of every row, which does not depend on what is looked for in the memory.

    Example:
        >>> half_squares(torch.tensor([[3.0, 4.0]]))
        tensor([12.5000])
    """
    return memory.square().sum(dim=1) / 2


def nearest_patches(test: Patches, memory: Memory, halves: Float[Tensor, " row"]) -> tuple[Distances, Nearest]:
    """Eq. 6 for every patch: the nearest row m* = argmin over m ∈ M of ‖m^test − m‖, and the distance to it.

    ‖x − m‖² = ‖x‖² − 2·x·m + ‖m‖² finds the nearest row as one matrix product, but loses the distance itself to
    cancellation where it is small. It is therefore computed once more, from the row.

    Args:
        test: patches of the images to inspect.
        memory: M; rounding is least where its mean is 0.
        halves: see :func:`half_squares`.

    Returns:
        ‖m^test − m*‖ and the row of m*.

    Source:
        Section 3.3.

    Example:
        >>> memory = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest_patches(torch.tensor([[[3.0, 5.0]]]), memory, half_squares(memory))
        (tensor([[1.]]), tensor([[1]]))
    """
    rows = nearest_rows(test.flatten(0, 1), memory, 2 * halves).reshape(test.shape[:2])
    return torch.linalg.vector_norm(test - memory[rows], dim=2), rows


def ranked_patches(
    test: Patches, memory: Memory, halves: Float[Tensor, " row"], rank: int
) -> tuple[Distances, Nearest, Distances]:
    """What :func:`nearest_patches` gives, and the distance to the ``rank``-th nearest row.

    Args:
        test, memory, halves: as there.
        rank: from 1 to the rows of the memory.

    Source:
        Not in the paper. A flaw among the good images is an outlier, of which greedy k-centres keep a single row: the
        next nearest ones are good patches.

    Example:
        >>> memory = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> ranked_patches(torch.tensor([[[3.0, 4.0]]]), memory, half_squares(memory), 2)
        (tensor([[0.]]), tensor([[1]]), tensor([[5.]]))
    """
    rows = (halves - test @ memory.T).topk(rank, dim=2, largest=False).indices
    first, last = rows[:, :, 0], rows[:, :, rank - 1]
    to_first, to_last = (torch.linalg.vector_norm(test - memory[row], dim=2) for row in (first, last))
    return to_first, first, to_last


def largest_distance(distances: Distances) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Eq. 6 for an image: s* = ‖m^test,* − m*‖ of its farthest patch, and the position of m^test,*.

    Source:
        Section 3.3.

    Example:
        >>> largest_distance(torch.tensor([[1.0, 3.0, 2.0]]))
        (tensor([3.]), tensor([1]))
    """
    farthest, position = distances.max(dim=1)
    return farthest, position


def neighbours(memory: Memory, count: int) -> Int[Tensor, "row count"]:
    """N_b(m) of Eq. 7 for every row m of the memory: m itself, then the nearest others.

    Args:
        memory: M, a patch a row.
        count: b, at most the rows of the memory.

    Example:
        >>> neighbours(torch.tensor([[0.0], [1.0], [5.0]]), 2).tolist()
        [[0, 1], [1, 0], [2, 1]]
    """
    chosen = []
    squares = memory.square().sum(dim=1)
    for start in range(0, len(memory), ROWS_A_PASS):
        part = memory[start : start + ROWS_A_PASS]
        search = squares - 2 * part @ memory.T
        search[:, start : start + len(part)].fill_diagonal_(-torch.inf)  # a row comes first even among its copies
        chosen.append(search.topk(count, dim=1, largest=False).indices)
    return torch.cat(chosen)


def reweighted_score(
    test: Patches, distances: Distances, nearest: Nearest, memory: Memory, supports: Int[Tensor, "row count"]
) -> Float[Tensor, " batch"]:
    """Eq. 7: s = (1 − exp‖m^test,* − m*‖ / Σ over m ∈ N_b(m*) of exp‖m^test,* − m‖) · s*.

    Args:
        test: patches of the images to inspect.
        distances: of the patches to the memory, Eq. 6.
        nearest: the rows they are measured to.
        memory: M, a patch a row.
        supports: N_b of every row, two or more; see :func:`neighbours`.

    Source:
        Section 3.3.

    Example:
        >>> memory = torch.tensor([[0.0], [1.0]])
        >>> distances, nearest = nearest_patches(torch.tensor([[[3.0]]]), memory, half_squares(memory))
        >>> score = reweighted_score(torch.tensor([[[3.0]]]), distances, nearest, memory, neighbours(memory, 2))
        >>> score  # 2 · (1 − e² / (e² + e³))
        tensor([1.4621])
    """
    farthest, position = largest_distance(distances)
    # gather, not take_along_dim: exported, that would fix the number of images.
    patch = test.gather(1, position[:, None, None].expand(-1, 1, test.shape[2]))  # m^test,*
    support = supports[nearest.gather(1, position[:, None])[:, 0]]  # N_b(m*), m* first
    to_support = torch.linalg.vector_norm(patch - memory[support], dim=2)
    return (1 - to_support.softmax(dim=1)[:, 0]) * farthest
