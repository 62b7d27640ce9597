"""Detectors that score every position of the patch embedding: trained form and folded form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import PatchEmbedding, as_rows, resize
from flawsmith.models.base import AnomalyOutput, Detector, SinglePass, TrainingData
from flawsmith.models.components.heads import LEAKY_SLOPE, Discriminator, Projector
from flawsmith.models.components.memory_bank import MultiScaleMemoryBank

TRUNCATE = 4.0  # scipy's default: a kernel radius of 16 pixels at sigma 4


def upsampling_matrix(size: int, low: int, *, align_corners: bool = False) -> np.ndarray:
    """The (size, low) matrix of a one-dimensional linear interpolation, in float64."""
    identity = torch.eye(low, dtype=torch.float64)[None]
    resized = interpolate(identity, size=size, mode="linear", align_corners=align_corners)
    return resized[0].T.numpy()


class UpsampleAndSmooth(nn.Module):
    """Bilinear up-sampling followed by a Gaussian with reflecting border (all four methods; sigma 4 pixels).

    Args:
        low: (h, w) of the low-resolution map.
        size: (H, W) of the result.
        sigma: standard deviation of the Gaussian in pixels of the result; 0 leaves the map unsmoothed.
        align_corners: False for GLASS and PBAS, True for AAND.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self, low: tuple[int, int], size: tuple[int, int], *, sigma: float = 4.0, align_corners: bool = False
    ) -> None:
        super().__init__()
        for name, length, coarse in zip(("rows", "columns"), size, low, strict=True):
            matrix = upsampling_matrix(length, coarse, align_corners=align_corners)
            if sigma > 0:
                matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=TRUNCATE)
            self.register_buffer(name, torch.from_numpy(matrix).float(), persistent=False)

    def forward(self, low: Float[Tensor, "batch h w"]) -> Float[Tensor, "batch height width"]:
        return self.rows @ low @ self.columns.T


ScoreMap = Float[Tensor, "batch h w"]
Comparison = Literal["position", "level"]

PRIOR_IMAGES = 10
LEAST_PRIOR = 0.1
IMAGES_A_PASS = 8


class ScoreNorm(nn.Module):
    """An affine map of scores, one for all positions or one a position.

    Args:
        scale: factor, (1, 1) or (h, w).
        offset: what is added then, likewise.
    """

    scale: Float[Tensor, "rows columns"]
    offset: Float[Tensor, "rows columns"]

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", offset.float())

    def forward(self, scores: ScoreMap) -> ScoreMap:
        return scores * self.scale + self.offset


class Moments:
    """Means and variances of one score map over good images."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, scores: ScoreMap) -> None:
        """Count a batch in."""
        scores = scores.double()
        self.count += len(scores)
        self._sum, self._squares = self._sum + scores.sum(dim=0), self._squares + scores.square().sum(dim=0)

    @property
    def by_position(self) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
        """Mean and variance of every position over the images, float64."""
        mean = self._sum / self.count
        return mean, (self._squares / self.count - mean.square()).clamp_min(0)

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over all images and positions together, float64 scalars."""
        mean = (self._sum / self.count).mean()
        return mean, ((self._squares / self.count).mean() - mean.square()).clamp_min(0)


def position_norm(moments: Moments) -> ScoreNorm:
    """Gives every position the mean and the spread that the whole map has; scores keep their unit.

    With n images, mean and variance m(p) and v(p) of a position are drawn towards those of the whole map, m and v, by
    λ = max(10 / (n + 10), 0.1); then s'(p) = (s(p) − m(p))·√(v / v(p)) + m. Few images therefore change little, and a
    position that hardly varies is stretched by a factor of √10 at most.
    """
    (mean, variance), (whole_mean, whole) = moments.by_position, moments.whole
    prior = max(PRIOR_IMAGES / (moments.count + PRIOR_IMAGES), LEAST_PRIOR)
    mean, variance = (
        torch.lerp(mean, whole_mean.expand_as(mean), prior),
        torch.lerp(variance, whole.expand_as(variance), prior),
    )
    scale = (whole / variance).sqrt() if whole > 0 else torch.ones_like(mean)
    return ScoreNorm(scale, whole_mean - mean * scale)


def level_norms(moments: Sequence[Moments]) -> list[ScoreNorm]:
    """Gives every level the same spread, the mean of theirs; means stay. A level that never varies stays as it is."""
    found = [one.whole for one in moments]
    common = torch.stack([variance.sqrt() for _, variance in found]).mean()
    scales = [common / variance.sqrt() if variance > 0 else torch.ones_like(common) for _, variance in found]
    pairs = [(scale, mean - mean * scale) for scale, (mean, _) in zip(scales, found, strict=True)]
    return [ScoreNorm(scale.reshape(1, 1), offset.reshape(1, 1)) for scale, offset in pairs]


class ScoreMapDetector(Detector):
    """A detector whose map and image score come from low-resolution score maps of the backbone's levels.

    Args:
        backbone: the frozen backbone.

    Attributes:
        norms: what makes scores comparable, one a score map; none leaves all scores as they are.
        bank: what else counts, on the coarsest level's grid; added to the last score map.
    """

    bank: MultiScaleMemoryBank | None

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.norms, self.bank = backbone, nn.ModuleList(), None

    @abstractmethod
    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps, from the backbone's level maps, before they are made comparable."""

    @abstractmethod
    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """Map and score from the backbone's level maps."""

    def score_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        """The score maps that map and image score are made of."""
        maps = self.raw_maps(levels)
        if len(self.norms):
            maps = [norm(scores) for norm, scores in zip(self.norms, maps, strict=True)]
        if self.bank is None:
            return maps
        *finer, last = maps
        return [*finer, last + resize(self.bank(levels)[:, None], last.shape[-2:])[:, 0]]

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        return self.from_levels(self.backbone(images))


def norm_stage(
    network: Callable[[], ScoreMapDetector], accept: Callable[[list[ScoreNorm]], None], comparison: Comparison
) -> SinglePass:
    """The stage that makes norms from the trained detector's scores of all training images.

    Args:
        network: gives the trained detector.
        accept: takes the norms, one a score map.
        comparison: what is made comparable.
    """

    @torch.no_grad()
    def compute(data: TrainingData) -> dict[str, Tensor]:
        detector, moments = network(), dict[int, Moments]()
        for batch in _batches(data):
            for number, scores in enumerate(detector.raw_maps(batch)):
                moments.setdefault(number, Moments()).add(scores)
        found = [moments[number] for number in sorted(moments)]
        norms = level_norms(found) if comparison == "level" else [position_norm(one) for one in found]
        return {
            f"{name} {number}": value for number, norm in enumerate(norms) for name, value in norm.state_dict().items()
        }

    def take(tensors: dict[str, Tensor]) -> None:
        count = len(tensors) // 2
        accept([ScoreNorm(tensors[f"scale {number}"], tensors[f"offset {number}"]) for number in range(count)])

    return SinglePass("norm", compute, take)


def _batches(data: TrainingData) -> Iterator[list[Tensor]]:
    features = data.features()
    for start in range(0, len(features), IMAGES_A_PASS):
        yield features.batch(np.arange(start, min(start + IMAGES_A_PASS, len(features))))


Scale = Literal["probability", "logit"]


class PositionDetector(ScoreMapDetector):
    """Backbone, embedding, a score a position; the image score is the highest of the map before it is smoothed."""

    def __init__(
        self, backbone: Backbone, embedding: PatchEmbedding, image_size: tuple[int, int], *, sigma: float
    ) -> None:
        super().__init__(backbone)
        self.embedding, self.image_size, self.sigma = embedding, image_size, sigma
        self.smooth = UpsampleAndSmooth(embedding.finest(backbone.grids(image_size)), image_size, sigma=sigma)

    @abstractmethod
    def scores(self, levels: Sequence[Tensor]) -> ScoreMap:
        """The score of every position of the finest level embedded."""

    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        return [self.scores(levels)]

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """The embedding, and what the projector has learned to make of it."""
        embedding = self.embedding(self.backbone(images))
        projector = getattr(self, "projector", None)
        if not projector:
            return {"embedding": embedding}
        rows = projector(as_rows(embedding)).reshape(len(embedding), *embedding.shape[-2:], -1)
        return {"embedding": embedding, "adapted": rows.permute(0, 3, 1, 2)}

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        (low,) = self.score_maps(levels)
        return AnomalyOutput(self.smooth(low), low.amax(dim=(1, 2)))


class PatchDetector(PositionDetector):
    """Projector and discriminator at every position (GLASS and PBAS, inference).

    ``scale`` is what a score means: the discriminator's probability, as in the papers, or its logit. Both rank images
    alike, but a probability rounds to 1 in float32 from a logit of 17 on, above which no limit can be set.
    """

    def __init__(
        self,
        backbone: Backbone,
        embedding: PatchEmbedding,
        projector: Projector,
        discriminator: Discriminator,
        image_size: tuple[int, int],
        *,
        sigma: float,
        scale: Scale = "probability",
    ) -> None:
        super().__init__(backbone, embedding, image_size, sigma=sigma)
        self.projector, self.discriminator, self.scale = projector, discriminator, scale
        self.eval()

    @property
    def highest_score(self) -> float | None:
        return 1.0 if self.scale == "probability" and not len(self.norms) and self.bank is None else None

    def scores(self, levels: Sequence[Tensor]) -> ScoreMap:
        embedding = self.embedding(levels)
        logits = self.discriminator(self.projector(as_rows(embedding)))
        return on_scale(logits, self.scale).reshape(-1, *embedding.shape[-2:])

    def folded(self) -> Detector:
        return FoldedPatchDetector(self)


def on_scale(logits: Tensor, scale: Scale) -> Tensor:
    """The discriminator's logits as what a score means."""
    return torch.sigmoid(logits) if scale == "probability" else logits


def fold_linear(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of linear layers applied one after another."""
    weight = torch.eye(layers[0].in_features, dtype=torch.float64)
    bias = torch.zeros(layers[0].in_features, dtype=torch.float64)
    for layer in layers:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return weight, bias


def fold_norm(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map followed by a batch norm in evaluation mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale[:, None] * weight, scale * (bias - norm.running_mean.double()) + norm.bias.double()


class FoldedPatchDetector(PositionDetector):
    """The patch detector with all that is linear folded into one map, applied a level before up-sampling.

    Projector, first linear layer and its batch norm are one linear map of the embedding, which is itself a sum over
    levels. A coarse level is therefore mapped on its own small grid, and only the result is resized.
    """

    def __init__(self, detector: PatchDetector) -> None:
        super().__init__(detector.backbone, detector.embedding, detector.image_size, sigma=detector.sigma)
        self.scale, self.norms, self.bank = detector.scale, detector.norms, detector.bank
        first, *others = detector.discriminator.blocks
        weight, bias = fold_norm(*fold_linear([*detector.projector.layers, first.linear]), first.norm)
        # Resizing keeps constants, so the bias may go with the first level alone, where it costs no pass of its own.
        self.level_maps = nn.ModuleList(
            pointwise(weight[:, level.channels_out], bias if number == 0 else None)
            for number, level in enumerate(detector.embedding.levels)
        )
        self.blocks = nn.ModuleList(pointwise(*fold_norm(*fold_linear([block.linear]), block.norm)) for block in others)
        self.out = pointwise(detector.discriminator.out.weight.double())
        self.eval().requires_grad_(False)

    def scores(self, levels: Sequence[Tensor]) -> ScoreMap:
        grid = self.smooth.rows.shape[1], self.smooth.columns.shape[1]
        mapped = zip(self.embedding.parts(levels), self.level_maps, strict=True)
        finest, *coarser = [resize(linear(part), grid) for (_, part), linear in mapped]
        hidden = sum(coarser, start=finest)
        for block in self.blocks:
            hidden = block(F.leaky_relu(hidden, LEAKY_SLOPE))
        return on_scale(self.out(F.leaky_relu(hidden, LEAKY_SLOPE)), self.scale)[:, 0]


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1×1 convolution with the given weight (outputs, inputs) and bias."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    layer.weight.data = weight.detach().float()[:, :, None, None]
    if bias is not None:
        assert layer.bias is not None
        layer.bias.data = bias.detach().float()
    return layer


class NearestCenterDetector(PositionDetector):
    """Distance to the nearest centre at every position: PBAS with boundary learning alone (paper, Table V)."""

    centers: Tensor

    def __init__(
        self,
        backbone: Backbone,
        embedding: PatchEmbedding,
        projector: Projector,
        centers: Float[Tensor, "center width"],
        image_size: tuple[int, int],
        *,
        sigma: float,
    ) -> None:
        super().__init__(backbone, embedding, image_size, sigma=sigma)
        self.projector = projector
        self.register_buffer("centers", centers)
        self.eval()

    def scores(self, levels: Sequence[Tensor]) -> ScoreMap:
        embedding = self.embedding(levels)
        features = self.projector(as_rows(embedding)).reshape(embedding.shape[0], -1, self.centers.shape[1])
        # ‖f − c‖² = ‖f‖² − 2·f·c + ‖c‖² finds the nearest centre; its distance would lose digits to cancellation.
        nearest = (self.centers.square().sum(1) / 2 - features @ self.centers.T).argmin(dim=2)
        distances = torch.linalg.vector_norm(features - self.centers[nearest], dim=2)
        return distances.unflatten(1, embedding.shape[-2:])
