"""The equations of PBAS in the order and under the numbers of the paper, as pure functions on tensors.

Chen et al., Progressive Boundary Guided Anomaly Synthesis for Industrial Anomaly Detection, IEEE TCSVT 2025. Features
are rows, one a position; f are projected normal features, c centres, a anomalous features. Written plainly: what
training runs instead, where it is faster, is in ``components/fast.py`` and proven equal to these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from flawsmith.models.components.fast import safe_length
from flawsmith.models.components.score_maps import upsample_and_smooth
from flawsmith.runtime.errors import FlawsmithError

Rows = Float[Tensor, "position width"]
Centers = Float[Tensor, "center width"]

CLUSTERING_BATCH = 4096
ON_CENTER = 1e-6
"""Share of the mean distance within which a feature counts as its centre."""


# Feature extraction (section III-B)


def embed(
    levels: Sequence[Float[Tensor, "batch _ _ _"]],
    *,
    patch_size: int = 3,
    level_width: int | None = None,
    width: int | None = None,
) -> Float[Tensor, "position width"]:
    """Eqs. 1 to 4: level maps to one feature a position of the finest level.

    :class:`~flawsmith.features.patch_embedding.PatchEmbedding` is the same as one convolution a level.

    Args:
        levels: φ_l of the backbone, finest first.
        patch_size: p, odd.
        level_width: values that a neighbourhood of a level is pooled to; None: as many as the level has channels.
        width: values of the joined feature; None: those of the levels side by side.

    Example:
        >>> levels = [torch.rand(2, 4, 6, 6), torch.rand(2, 8, 3, 3)]
        >>> embed(levels, level_width=12, width=12).shape
        torch.Size([72, 12])
    """
    grid = levels[0].shape[-2:]
    pooled = []
    for level in levels:
        batch, channels, height, columns = level.shape
        # Eq. 1: a feature is what a level map holds at one place. Eq. 2: its neighbourhood, p×p places around it.
        planes = F.unfold(level, patch_size, padding=patch_size // 2)
        planes = planes.reshape(batch, channels * patch_size**2, height, columns)
        planes = F.interpolate(planes, size=grid, mode="bilinear", align_corners=False)
        rows = planes.permute(0, 2, 3, 1).reshape(batch * grid[0] * grid[1], 1, channels * patch_size**2)
        # Eq. 3: the neighbourhood, aggregated by adaptive pooling.
        pooled.append(F.adaptive_avg_pool1d(rows, level_width or channels)[:, 0])
    # Eq. 4: levels concatenated at the resolution of the finest.
    joined = torch.cat(pooled, dim=1)
    return joined if width is None else F.adaptive_avg_pool1d(joined[:, None], width)[:, 0]


# Approximate boundary learning (section III-C)


def average_center(features: Float[Tensor, "image position width"]) -> Centers:
    """Eq. 5: the usual centre, the mean feature of every position over the images.

    Example:
        >>> average_center(torch.tensor([[[1.0]], [[3.0]]]))
        tensor([[2.]])
    """
    return features.mean(dim=0)


@torch.no_grad()
def nearest_center(features: Rows, centers: Centers) -> Int[Tensor, " position"]:
    """Row of the centre most similar to every feature by cosine, the first of equals (1-NN search).

    The length of a feature does not change which centre is most similar to it, so only the centres are normalised.

    Example:
        >>> nearest_center(torch.tensor([[2.0, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([1])
    """
    similarity = features @ F.normalize(centers, dim=1).to(features.dtype).T
    return similarity.float().argmax(dim=1)  # torch searches bfloat16 several times slower than float32


def center_distance(features: Rows, centers: Centers) -> float:
    """Mean distance of features to the centres most similar to them (Fig. 11).

    Example:
        >>> center_distance(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        1.0
    """
    return float((features - centers[nearest_center(features, centers)]).norm(dim=1).mean())


def aligned_update(
    table: Float[Tensor, "center value"],
    mean: Float[Tensor, "position value"],
    nearest: Int[Tensor, " position"],
    smoothing: float,
) -> Float[Tensor, "center value"]:
    """One step of the centre initialisation (Algorithm 1): every row of a batch's mean moves the centre nearest to it.

    Sequentially, for j in order: c[n(j)] ← (1−s)·c[n(j)] + s·mean[j]. A centre that is hit k times by rows j1 … jk
    therefore becomes (1−s)^k·c + Σ s·(1−s)^(k−l)·mean[jl], which is what is computed here for all centres at once.

    Args:
        table: the centres before; or what is to follow them, such as the pixels that they show (Fig. 10).
        mean: mean of a batch, a row a position.
        nearest: n(j), by :func:`nearest_center` from the centres before.
        smoothing: s, weight of the batch in the moving average; 0.1 in the released code.

    Example:
        >>> centers, mean = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])
        >>> aligned_update(centers, mean, nearest_center(mean, centers), 0.5)
        tensor([[1.2500, 0.0000],
                [0.0000, 1.0000]])
    """
    order = torch.argsort(nearest, stable=True)
    hits = torch.bincount(nearest, minlength=len(table))
    within = torch.arange(len(mean), device=mean.device) - (hits.cumsum(0) - hits).repeat_interleave(hits)
    later = hits.repeat_interleave(hits) - 1 - within
    weights = smoothing * (1 - smoothing) ** later.to(mean.dtype)
    remaining = (1 - smoothing) ** hits.to(table.dtype)
    return (remaining[:, None] * table).index_add_(0, nearest[order], weights[:, None] * mean[order])


def imaged_centers(
    batches: Iterable[Float[Tensor, "image 3 height width"]],
    alignments: Iterable[Int[Tensor, " position"]],
    grid: tuple[int, int],
    smoothing: float,
) -> Iterator[Float[Tensor, "3 height width"]]:
    """The centres as images after every batch: what their updates make of the pixels of their features (Fig. 10).

    A centre is a weighted sum of features; the same weights sum the square of the image around each of them.

    Args:
        batches: images of a batch, at a whole number of pixels a position.
        alignments: n(j) of the update by each batch but the first, whose mean is the first table.
        grid: (rows, columns) of positions.
        smoothing: s.

    Example:
        >>> dark, bright = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
        >>> pictures = imaged_centers([dark, bright], [torch.tensor([0, 0, 2, 3])], (2, 2), 0.5)
        >>> [picture[0].tolist() for picture in pictures]
        [[[0.0, 0.0], [0.0, 0.0]], [[0.75, 0.0], [0.5, 0.5]]]
    """
    table: Tensor | None = None
    following = iter(alignments)
    for images in batches:
        side = images.shape[-1] // grid[1]
        squares = F.pixel_unshuffle(images.mean(dim=0), side).flatten(1).T
        table = squares if table is None else aligned_update(table, squares, next(following), smoothing)
        yield F.pixel_shuffle(table.T.reshape(-1, *grid), side)


def clustered_centers(batches: Iterable[Rows], count: int, *, seed: int) -> Centers:
    """k-means centres over the features of one pass (Table VI; scikit-learn's mini-batch k-means, bounded memory).

    Args:
        batches: features, a row each.
        count: of the centres.
        seed: of the first centres.

    Raises:
        FlawsmithError: there are fewer features than centres.

    Example:
        >>> clustered_centers([torch.tensor([[1.0], [1.0], [5.0], [5.0]])], 2, seed=0).sort(dim=0).values
        tensor([[1.],
                [5.]])
    """
    from sklearn.cluster import MiniBatchKMeans  # on use, as in flawsmith.metrics.ranking

    clustering = MiniBatchKMeans(count, random_state=seed % 2**32, n_init=1, batch_size=CLUSTERING_BATCH)
    pending: list[np.ndarray] = []
    for features in batches:
        pending.append(features.cpu().numpy())
        if sum(map(len, pending)) >= max(CLUSTERING_BATCH, count):
            clustering.partial_fit(np.concatenate(pending))
            pending = []
    if pending and (hasattr(clustering, "cluster_centers_") or sum(map(len, pending)) >= count):
        clustering.partial_fit(np.concatenate(pending))
    if not hasattr(clustering, "cluster_centers_"):
        raise FlawsmithError(f"k-means needs at least as many features as centres, which are {count}: give more images")
    return torch.from_numpy(clustering.cluster_centers_).float()


def boundary_loss(features: Rows, centers: Centers) -> Float[Tensor, ""]:
    """Eq. 6: L_abl, the mean Euclidean distance of the features to their nearest centres.

    Example:
        >>> boundary_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.3, 0.4]]))
        tensor(4.5000)
    """
    return torch.linalg.vector_norm(features - centers[nearest_center(features, centers)], dim=1).mean()


# Anomaly feature synthesis (section III-D)


def ray_anomalies(features: Rows, centers: Centers, degree: float) -> Rows:
    """Eq. 7: a = f + α·L_abl·(f − c)/‖f − c‖, anomalous features on the rays from the nearest centres.

    All lie at the distance α·L_abl from their normal features. The step is a constant to the gradient, the normal
    feature is not: the anomaly branch reaches the projector as identity.

    Args:
        features: f, a row each.
        centers: the table of centres.
        degree: α; 0.3 in the paper, 0.25 in the released code.

    Example:
        >>> ray_anomalies(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), degree=0.5)
        tensor([[2.5000, 0.0000]])
    """
    offset = (features - centers[nearest_center(features, centers)]).detach()
    distance = torch.linalg.vector_norm(offset, dim=1)
    return features + ray_lengths(distance, distance.mean(), degree)[:, None] * offset


def ray_lengths(
    distance: Float[Tensor, " position"], radius: Float[Tensor, ""], degree: float
) -> Float[Tensor, " position"]:
    """Length of the step of Eq. 7 in units of the offset: α·L_abl / ‖f − c‖, without gradient.

    A feature that lies on its centre, up to rounding, has no direction: its step is zero.

    Args:
        distance: ‖f − c‖.
        radius: L_abl of Eq. 6.
        degree: α.

    Example:
        >>> ray_lengths(torch.tensor([1.0, 2.0, 0.0]), torch.tensor(1.0), degree=0.5)
        tensor([0.5000, 0.2500, 0.0000])
    """
    radius, distance = radius.detach(), distance.detach()
    return torch.where(distance > ON_CENTER * radius, degree * radius / safe_length(distance), 0.0)


# Refined boundary optimisation (section III-E)


def normal_loss(logits: Float[Tensor, " position"]) -> Float[Tensor, ""]:
    """Eq. 8: L_n, binary cross-entropy of the discriminator's logits for normal features against 0.

    Example:
        >>> normal_loss(torch.zeros(3)).round(decimals=4)
        tensor(0.6931)
    """
    return F.softplus(logits.float()).mean()


def anomaly_loss(logits: Float[Tensor, " position"]) -> Float[Tensor, ""]:
    """Eq. 9: L_a, binary cross-entropy of the discriminator's logits for anomalous features against 1.

    Example:
        >>> anomaly_loss(torch.tensor([50.0])).round(decimals=4)
        tensor(0.)
    """
    return F.softplus(-logits.float()).mean()


def total_loss(
    boundary: Tensor,
    normal: Tensor,
    anomaly: Tensor,
    *,
    boundary_weight: float = 1.0,
    discrimination_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Eq. 10: L = λ1·L_abl + λ2·(L_n + L_a); both weights are 1 in the released code.

    Example:
        >>> total_loss(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0), discrimination_weight=0.5)
        tensor(3.5000)
    """
    return boundary_weight * boundary + discrimination_weight * (normal + anomaly)


# Inference (section III-F)


def image_score(confidence: Float[Tensor, "batch h w"]) -> Float[Tensor, " batch"]:
    """Eq. 11: the largest confidence of an image's positions.

    Example:
        >>> image_score(torch.tensor([[[0.1, 0.9]]]))
        tensor([0.9000])
    """
    return confidence.amax(dim=(1, 2))


def anomaly_map(
    confidence: Float[Tensor, "batch h w"], size: tuple[int, int], *, sigma: float = 4.0
) -> Float[Tensor, "batch height width"]:
    """Eq. 12: the confidences, up-sampled bilinearly to the image's size and smoothed by a Gaussian.

    Example:
        >>> anomaly_map(torch.rand(1, 4, 4), (32, 32)).shape
        torch.Size([1, 32, 32])
    """
    return upsample_and_smooth(confidence, size, sigma=sigma)
