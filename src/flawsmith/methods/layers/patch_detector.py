"""Detectors that score every position of the patch embedding: trained form and folded form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import PatchEmbedding, as_rows, resize
from flawsmith.methods.base import AnomalyOutput, Detector
from flawsmith.methods.layers.heads import LEAKY_SLOPE, Discriminator, Projector
from flawsmith.methods.layers.postprocess import UpsampleAndSmooth
from flawsmith.methods.layers.score_norm import ScoreMap, ScoreMapDetector

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
