"""PBAS: progressive boundary guided anomaly synthesis.

Normal features are pulled towards a table of centres (approximate boundary learning, ABL), anomalous features are
synthesised along the rays from their centres (anomaly feature synthesis, AFS), and a discriminator learns the refined
boundary between the two (refined boundary optimisation, RBO). Where the released code differs from the paper, the
presets ``paper`` and ``official`` do; docs/research/pbas.md lists every difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone
from flawsmith.features.patch_embedding import as_rows
from flawsmith.models.base import SinglePass, Stage, TrainingData, TrainingStage
from flawsmith.models.components.batches import FeatureBatch, FeatureBatches, Sampling, Step
from flawsmith.models.components.fast import distance_to_centers, ray_hidden
from flawsmith.models.components.patch_model import PatchModel, Rows
from flawsmith.models.components.score_maps import ScoreMap
from flawsmith.models.diagnostics import Diagnostic, LineChart, Pictures
from flawsmith.models.pbas.config import CONDITIONS, PRESETS, PBASConfig
from flawsmith.models.pbas.functional import (
    aligned_update,
    anomaly_loss,
    average_center,
    center_distance,
    clustered_centers,
    imaged_centers,
    nearest_center,
    normal_loss,
    ray_anomalies,
    ray_lengths,
    total_loss,
)
from flawsmith.models.registry import register
from flawsmith.runtime.errors import FlawsmithError

PIXELS_A_POSITION = 4
"""Side of what is shown of each position of the centres."""
SHOWN_IMAGES, SHOWN_STEPS = 3, (0.0, 0.1, 0.3, 1.0)


@register
class PBAS(PatchModel):
    """PBAS on a frozen backbone.

    Attributes:
        centers: the table of Algorithm 1, one centre a position; fixed while the model learns.

    Example:
        A plain loop over batches of normalised images; ``flawsmith.train`` does the same from cached features.

        >>> model = PBAS.from_preset("fast", backbone="efficientnet_lite0@random", image_size=(64, 64), hidden=16)
        >>> batches = [torch.randn(4, 3, 64, 64) for _ in range(2)]
        >>> model.fit_centers(batches)
        >>> optimizers = model.make_optimizers()
        >>> for images in batches:
        ...     losses = model.train().losses(images)
        ...     for optimizer in optimizers:
        ...         optimizer.zero_grad()
        ...     losses["loss"].backward()
        ...     for optimizer in optimizers:
        ...         optimizer.step()
        >>> map, score = model.eval()(images)
        >>> map.shape, score.shape
        (torch.Size([4, 64, 64]), torch.Size([4]))
    """

    name = "pbas"
    suits = "a small model file"
    training_time = "1 to 2 min"
    paper = "Chen et al., Progressive Boundary Guided Anomaly Synthesis for Industrial Anomaly Detection, TCSVT 2025"
    licence = "MIT"
    Config = PBASConfig
    presets = PRESETS
    conditions = CONDITIONS
    config: PBASConfig
    centers: Float[Tensor, "center width"]

    def __init__(self, config: PBASConfig, backbone: Backbone, seed: int = 0) -> None:
        super().__init__(config, backbone, seed, depth=config.discriminator_depth)
        self.register_buffer("centers", torch.zeros(self.grid[0] * self.grid[1], self.embedding.width))
        self._distances = list[tuple[float, float]]()
        self._alignments = list[Tensor]()

    def raw_maps(self, levels: Sequence[Tensor]) -> list[ScoreMap]:
        if self.config.synthesis != "none":
            return super().raw_maps(levels)
        embedding = self.embedding(levels)
        features = self.projector(as_rows(embedding)).reshape(embedding.shape[0], -1, self.centers.shape[1])
        # ‖f − c‖² = ‖f‖² − 2·f·c + ‖c‖² finds the nearest centre; its distance would lose digits to cancellation.
        nearest = (self.centers.square().sum(1) / 2 - features @ self.centers.T).argmin(dim=2)
        distances = torch.linalg.vector_norm(features - self.centers[nearest], dim=2)
        return [distances.unflatten(1, embedding.shape[-2:])]

    @property
    def highest_score(self) -> float | None:
        return super().highest_score if self.config.synthesis != "none" else None

    def export_form(self) -> nn.Module:
        return super().export_form() if self.config.synthesis != "none" else self

    @property
    def trains_discriminator(self) -> bool:
        return self.config.synthesis != "none"

    def losses(self, batch: Float[Tensor, "batch 3 height width"] | FeatureBatch) -> dict[str, Tensor]:
        """L_abl, L_n, L_a and their weighted sum of normalised images, or of their level maps."""
        batch = self.feature_batch(batch)
        return self.feature_losses(self.project(batch.levels, batch.rows), batch.step)

    def feature_losses(self, features: Rows, step: Step | None = None) -> dict[str, Tensor]:
        """The same of projected features."""
        config = self.config
        nearest = nearest_center(features, self.centers)
        distance, _ = distance_to_centers(features.float(), self.centers, nearest)
        boundary = distance.mean()  # Eq. 6
        if config.synthesis == "none":
            return {"loss": config.boundary_weight * boundary, "loss_boundary": boundary}
        if config.synthesis == "ray":
            first = self.discriminator.blocks[0].linear
            lengths = ray_lengths(distance, boundary, config.anomaly_degree)  # Eq. 7
            hidden = ray_hidden(features, self.centers, nearest, lengths, first.weight, first.bias)
            logits = self.discriminator.from_first_linear(hidden)
        else:
            anomalies = features + config.noise * self.gaussian(features, "pbas noise", step)
            logits = self.discriminator(torch.cat([features, anomalies]))
        normal, anomaly = normal_loss(logits[: len(features)]), anomaly_loss(logits[len(features) :])  # Eqs. 8 and 9
        loss = total_loss(
            boundary,
            normal,
            anomaly,
            boundary_weight=config.boundary_weight,
            discrimination_weight=config.discrimination_weight,
        )
        return {"loss": loss, "loss_boundary": boundary, "loss_normal": normal, "loss_anomaly": anomaly}

    @torch.no_grad()
    def fit_centers(self, batches: Iterable[Float[Tensor, "batch 3 height width"] | FeatureBatch]) -> None:
        """The centre table from one pass with the untrained projector (section III-C; Table VI's variants).

        Args:
            batches: of normalised images, or of their level maps, all positions of each.

        Raises:
            FlawsmithError: there is no image.
        """
        config, positions, images = self.config, len(self.centers), 0
        self._distances, self._alignments, average = [], [], torch.zeros_like(self.centers)
        through = self.project if config.center_features == "projected" else self._embedded
        projected = (through(self.feature_batch(batch).levels).float() for batch in batches)
        if config.center == "kmeans":
            self.centers.copy_(clustered_centers(projected, positions, seed=self.seed))
            return
        for features in projected:
            table = features.reshape(-1, positions, self.embedding.width)
            mean = average_center(table)
            if images == 0:
                self.centers.copy_(mean)
            elif config.center == "aligned":
                self._alignments.append(nearest_center(mean, self.centers))
                self.centers.copy_(aligned_update(self.centers, mean, self._alignments[-1], config.center_smoothing))
            elif config.center == "iterative":
                self.centers.lerp_(mean, config.center_smoothing)
            else:  # average
                self.centers.lerp_(mean, len(table) / (images + len(table)))
            images += len(table)
            average.lerp_(mean, len(table) / images)
            places = torch.arange(positions, device=features.device)
            sample = table[places % len(table), places]  # every place once, in turn from all images of the batch
            self._distances.append((center_distance(sample, self.centers), center_distance(sample, average)))
        if not images:
            raise FlawsmithError("there is nothing to learn from: give at least one good image")

    def synthetic_features(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Rows]:
        """What AFS makes of good features, before and behind the discriminator (Fig. 9)."""
        if self.config.synthesis != "ray":
            return {}
        features = self.project(self.backbone(images)).float()
        anomalies = ray_anomalies(features, self.centers, self.config.anomaly_degree)
        return {"adapted": anomalies, "refined": self.discriminator.refined(anomalies)}

    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        """How the pass that makes the centres went: their distance to features (Fig. 11), and what they look like."""
        if not self._distances:  # k-means, or a run that was resumed behind that pass
            return super().diagnostics(data)
        made, average = zip(*self._distances, strict=True)
        lines = {"centres": list(made), "average centre": list(average)}
        chart = LineChart(
            "Distance to the centre",
            "Mean distance of good features to their centres after every batch of the pass that makes the centres, and "
            "to the average of all images until then: the smaller, the better normal patterns are captured.",
            list(range(1, len(made) + 1)),
            lines,
            "distance",
            "batch",
        )
        pictures = [self._centers_as_images(data)] if self._alignments else []
        return [*super().diagnostics(data), chart, *pictures]

    def _centers_as_images(self, data: TrainingData) -> Pictures:
        """Good images, their mean, and the centres on their way (Fig. 10)."""
        size = [length * PIXELS_A_POSITION for length in self.grid]
        info = self.backbone.info
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))

        def seen(image: NDArray[np.float32]) -> Tensor:
            small = F.interpolate(torch.from_numpy(image)[None], size, mode="bilinear", antialias=True)[0]
            return (small * deviation + mean).clamp(0, 1).mul(255).round().byte()

        images = torch.stack([seen(image) for image in data.images()])
        passes = FeatureBatches(data.features(), Sampling(self.config.batch_size), seed=self.seed, purpose="centre")
        batches = (images[torch.from_numpy(rows)].float() for rows in passes.images(0))
        alignments = (nearest.cpu() for nearest in self._alignments)
        centers = list(imaged_centers(batches, alignments, self.grid, self.config.center_smoothing))
        steps = sorted({round(share * (len(centers) - 1)) for share in SHOWN_STEPS})
        shown = [("good image", image) for image in images[:: -(-len(images) // SHOWN_IMAGES)]]
        shown.append(("average centre", images.float().mean(dim=0)))
        shown += [(f"centres after batch {step + 1}", centers[step]) for step in steps]
        return Pictures(
            "Centres as images",
            "The average of the good images, and the images that the centres stand for as the pass over the batches "
            "makes them: the pixels of each position, weighted as its features are (PBAS, Fig. 10).",
            [(label, image.float().round().byte().permute(1, 2, 0).numpy()) for label, image in shown],
            group=len(shown),
        )

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        features, config = data.features(), self.config
        passes = FeatureBatches(features, Sampling(config.batch_size), seed=self.seed, purpose="centre")
        yield SinglePass("centre", lambda: self.fit_centers(passes.epoch(0)))
        batches = FeatureBatches(features, config.sampling, seed=self.seed)
        yield TrainingStage("boundary", self.training_module(), batches, config.epochs)
        yield from self.post_processing(data)
