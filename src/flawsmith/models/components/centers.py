"""Tables of centres in feature space: matching and the updates that build them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from flawsmith.features.patch_embedding import PatchEmbedding
from flawsmith.models.components.patch_learner import PatchBatch

CenterKind = Literal["aligned", "average", "iterative", "kmeans"]
CLUSTERING_BATCH = 4096


def nearest_center(
    features: Float[Tensor, "position width"], centers: Float[Tensor, "center width"]
) -> Int[Tensor, " position"]:
    """Row of the most similar centre by cosine, the first of equals.

    The length of a feature does not change which centre is most similar to it, so only the centres are normalised.
    """
    with torch.no_grad():
        similarity = features @ F.normalize(centers, dim=1).to(features.dtype).T
        return similarity.float().argmax(dim=1)  # torch searches bfloat16 several times slower than float32


class _Distance(torch.autograd.Function):
    """Distance of features to their centres: the gradient is the unit offset, in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, centers: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        offset = torch.sub(features, centers[nearest])
        distance = torch.linalg.vector_norm(offset, dim=1)
        ctx.save_for_backward(offset, distance)
        ctx.mark_non_differentiable(offset)
        return distance, offset

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        offset, distance = ctx.saved_tensors
        return offset * (gradients[0] / safe_length(distance))[:, None], None, None


def distance_to_centers(
    features: Float[Tensor, "position width"],
    centers: Float[Tensor, "center width"],
    nearest: Int[Tensor, " position"],
) -> tuple[Float[Tensor, " position"], Float[Tensor, "position width"]]:
    """Euclidean distance of every feature to its centre, and the offset feature − centre, which carries no gradient.

    A feature that lies on its centre has the gradient zero.
    """
    return _Distance.apply(features, centers, nearest)


def safe_length(distance: Tensor) -> Tensor:
    """Distances that may be divided by; a zero offset stays zero after the division."""
    return distance.clamp_min(torch.finfo(distance.dtype).tiny ** 0.5)


def aligned_update(
    centers: Float[Tensor, "center width"], mean: Float[Tensor, "center width"], smoothing: float
) -> Float[Tensor, "center width"]:
    """One step of PBAS's centre initialisation: every row of ``mean`` moves the centre it is most similar to.

    Sequentially, for j in order: c[n(j)] ← (1−s)·c[n(j)] + s·mean[j], with n(j) taken from the table at the start. A
    centre that is hit k times by rows j1 … jk therefore becomes (1−s)^k·c + Σ s·(1−s)^(k−l)·mean[jl], which is what is
    computed here for all centres at once.
    """
    nearest = nearest_center(mean, centers)
    order = torch.argsort(nearest, stable=True)
    hits = torch.bincount(nearest, minlength=len(centers))
    within = torch.arange(len(mean)) - (hits.cumsum(0) - hits).repeat_interleave(hits)
    later = hits.repeat_interleave(hits) - 1 - within
    weights = smoothing * (1 - smoothing) ** later.to(mean.dtype)
    kept = (1 - smoothing) ** hits.to(centers.dtype)
    return (kept[:, None] * centers).index_add_(0, nearest[order], weights[:, None] * mean[order])


def clustered_centers(
    batches: Iterable[Float[Tensor, "position width"]], count: int, *, seed: int
) -> Float[Tensor, "center width"]:
    """k-means centres over the features of one pass (scikit-learn's mini-batch k-means, bounded memory)."""
    clustering = MiniBatchKMeans(count, random_state=seed % 2**32, n_init=1, batch_size=CLUSTERING_BATCH)
    held: list[np.ndarray] = []
    for features in batches:
        held.append(features.numpy())
        if sum(map(len, held)) >= max(CLUSTERING_BATCH, count):
            clustering.partial_fit(np.concatenate(held))
            held = []
    if held and (hasattr(clustering, "cluster_centers_") or sum(map(len, held)) >= count):
        clustering.partial_fit(np.concatenate(held))
    return torch.from_numpy(clustering.cluster_centers_).float()


@torch.no_grad()
def mean_embedding(embed: PatchEmbedding, batches: Iterable[PatchBatch]) -> Float[Tensor, "position width"]:
    """Mean of the embedding over images, a row a position: the mean over batches of the means over their images.

    A short last batch thereby has excess weight, as in GLASS's released code.
    """
    means = [embed(batch.levels).mean(dim=0).flatten(1).T for batch in batches]
    return torch.stack(means).mean(dim=0)
