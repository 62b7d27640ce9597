"""The networks of GLASS and one training step over its three branches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.data.seeding import generator
from flawsmith.features.backbones import Backbone
from flawsmith.models.base import (
    Diagnostic,
    FeatureCloud,
    LightningStage,
    Method,
    MethodConfig,
    MetricChart,
    Pictures,
    SinglePass,
    Stage,
    TrainingData,
    synthetic_flaws,
)
from flawsmith.models.components.batches import PairedBatch, PairedBatches
from flawsmith.models.components.centers import mean_embedding
from flawsmith.models.components.detectors import PositionDetector
from flawsmith.models.components.distributed import Part, mean, total
from flawsmith.models.components.patch_learner import PatchBatches, PatchLearner, Rows, Sampling
from flawsmith.models.components.postprocessing import Finish
from flawsmith.models.components.projection import Shell, radius_of
from flawsmith.models.glass.config import PRESETS, GLASSConfig
from flawsmith.models.glass.functional import Anomalies, global_anomalies, local_loss, pushed_out
from flawsmith.models.glass.hypothesis import Hypothesis, decide, evidence, spectrum_picture
from flawsmith.models.registry import register
from flawsmith.synthesis.recipes import find_recipe


class Branches(NamedTuple):
    """Features of one iteration, a row a position.

    Attributes:
        normal: u, adapted features of normal images.
        hidden: output of the discriminator's first layer for them.
        gas: global anomalies; None where the settings leave them out.
        las: features of synthetic images; None likewise.
        anomalous: which of the latter belong to flaws.
        radius: r'1.
    """

    normal: Rows
    hidden: Float[Tensor, "position hidden"]
    gas: Anomalies | None
    las: Rows | None
    anomalous: Bool[Tensor, " position"] | None
    radius: Float[Tensor, ""]


class GLASSModule(PatchLearner):
    """Feature adaptor and discriminator; one training step is the three branches together.

    Attributes:
        mean_embedding: mean of the embedding over the training images, a row a position. The adaptor is affine, so
            the mean of the adapted features, which every epoch needs anew, is the adapted mean.
        hypothesis: where normal features are assumed to lie.
    """

    name = "glass"
    mean_embedding: Tensor
    hypothesis: Hypothesis = "manifold"

    def __init__(self, config: GLASSConfig, channels: Sequence[int], seed: int) -> None:
        super().__init__(config, channels, seed)
        self.config = config
        self.register_buffer("mean_embedding", torch.zeros(0, config.width))
        self._centers: Tensor | None = None

    @torch.no_grad()
    def centers(self) -> Float[Tensor, "position width"]:
        """The centres as the adaptor is now: one a position, or the same for all."""
        features = self.projector(self.mean_embedding).float()
        return features if self.config.center == "position" else features.mean(0, keepdim=True).expand_as(features)

    def on_train_epoch_start(self) -> None:
        self._centers = self.centers()

    def batch_losses(self, batch: PairedBatch) -> dict[str, Tensor]:
        losses = self.losses(self.branches(batch))
        return losses if batch.synthetic is None else losses | {"fell_back": total(torch.tensor(batch.fell_back))}

    def noise(self, like: Rows, step: tuple[int, int], part: Part | None = None) -> Rows:
        """ε of Eq. 5, a function of the seed and the step."""
        return self.config.noise * self.gaussian(like, "glass noise", step, part)

    def branches(self, batch: PairedBatch) -> Branches:
        """Features of the three branches: normal ones, global anomalies made of them, and synthetic flaws."""
        config, spherical = self.config, self.hypothesis == "hypersphere"
        normal = self.project(batch.normal.levels, batch.normal.rows).float()
        centers = self._centers_of(batch, len(normal))
        synthetic = None if batch.synthetic is None else self.project(batch.synthetic, batch.normal.rows).float()
        radius = self._radius(normal, synthetic, batch.cells, centers)
        hidden = self.discriminator.blocks[0].linear(normal)
        anomalies = None
        if config.gas != "none":
            # Around the manifold g depends on u as identity; within the hypersphere the gradient reaches u through the
            # radial scaling of every projection.
            noise = self.noise(normal, batch.normal.step, batch.normal.positions)
            shell, offset = Shell(normal, config.inner_radius, config.outer_radius), noise
            if spherical:
                shell, offset = Shell(centers, radius, config.shell * radius), normal + noise - centers
            anomalies = global_anomalies(offset, shell, self.discriminator, hidden, config)
        if spherical and synthetic is not None and batch.cells is not None:
            shell = Shell(centers, config.shell * radius, config.shell**2 * radius)
            synthetic = pushed_out(synthetic, batch.cells, shell)
        return Branches(normal, hidden, anomalies, synthetic, batch.cells, radius)

    def losses(self, branches: Branches) -> dict[str, Tensor]:
        """L_n, L_gas, L_las and their sum (Eqs. 10 to 13), with the radius and the share of moved points."""
        config, discriminator, hidden = self.config, self.discriminator, branches.hidden
        found: dict[str, Tensor] = {}
        if branches.gas is not None:
            hidden = torch.cat([hidden, discriminator.blocks[0].linear(branches.gas.features)])
        logits = discriminator.from_first_linear(hidden).float()
        count = len(branches.normal)
        found["loss_normal"] = mean(F.softplus(logits[:count]))
        if branches.gas is not None:
            found["loss_gas"] = mean(F.softplus(-logits[count:]))
        if branches.las is not None and branches.anomalous is not None:
            found["loss_las"] = local_loss(
                discriminator(branches.las),
                branches.anomalous,
                hard_quantile=config.hard_quantile,
                gamma=config.focal_gamma,
            )
        weights = {"loss_gas": config.gas_weight}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in found.items()]).sum()
        moved = {} if branches.gas is None else {"moved": branches.gas.moved}
        return {"loss": loss, **found, **moved, "radius": branches.radius}

    def _centers_of(self, batch: PairedBatch, count: int) -> Rows:
        """The centre of the position of every feature of a batch."""
        centers = self._centers if self._centers is not None else self.centers()
        positions = torch.arange(count) if batch.normal.rows is None else batch.normal.rows
        return centers[positions.to(centers.device) % len(centers)]

    def _radius(self, normal: Rows, synthetic: Rows | None, anomalous: Tensor | None, centers: Rows) -> Tensor:
        """r'1: the distance within which three quarters of the points known to be normal lie."""
        points, own = normal.detach(), centers
        if synthetic is not None and anomalous is not None:
            points, own = torch.cat([synthetic.detach()[~anomalous], points]), torch.cat([centers[~anomalous], centers])
        return radius_of(points, own, self.config.radius_quantile)


SHOWN_FEATURES = 400


def charts(*, projects: bool, spherical: bool) -> list[Diagnostic]:
    """The radius over the epochs and, where features are projected, the share of them that the projection moved."""
    found: list[Diagnostic] = [
        MetricChart(
            "Radius of the normal features",
            "Distance from their centre within which the set share of normal features lies, mean of every epoch. "
            + (
                "Anomalies are pushed beyond it." if spherical else "Recorded alone: the manifold has radii of its own."
            ),
            "distance in feature space",
            {"radius": "radius"},
        )
    ]
    if projects:
        found.append(
            MetricChart(
                "Truncated projection",
                "Share of synthetic features that a projection moved because they lay outside of its two radii. With "
                "the manifold's radii of the released code and its noise none ever does.",
                "share of features",
                {"moved": "moved by the projection"},
            )
        )
    return found


def cloud(normal: Tensor, gas: Tensor | None, las: Tensor | None, seed: int) -> FeatureCloud:
    """Features of one batch by kind, a seeded sample of each; None where a kind is not trained on."""
    kinds = {"normal": normal, "GAS": gas, "LAS": las}
    return FeatureCloud(
        "Features after training",
        "Adapted features of one batch: normal ones, global anomalies (GAS) made of them, and synthetic flaws (LAS).",
        {name: _sample(rows, seed, name) for name, rows in kinds.items() if rows is not None and len(rows)},
    )


def _sample(features: Tensor, seed: int, name: str) -> NDArray[np.float32]:
    rows = generator(seed, f"shown {name}").permutation(len(features))[:SHOWN_FEATURES]
    return features.detach().float().cpu().numpy()[np.sort(rows)]


def judged(mean_image: NDArray[np.uint8]) -> Pictures:
    """The mean training image with the spectrum that the judge looks at."""
    return Pictures(
        "What the judge sees",
        "The mean training image and the middle of its spectrum; frequencies above the limit are marked.",
        [("mean image", mean_image), ("spectrum", spectrum_picture(mean_image))],
    )


SHOWN_FLAWS = 4


@register
class GLASS(Method):
    """GLASS on a frozen backbone."""

    name = "glass"
    paper = (
        "Chen et al., A Unified Anomaly Synthesis Strategy with Gradient Ascent for Industrial Anomaly Detection and "
        "Localization, ECCV 2024"
    )
    Config = GLASSConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = PRESETS

    def __init__(self, config: GLASSConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.module = GLASSModule(config, backbone.channels, seed)
        self._finish = Finish(config, config.score_norm, backbone.channels, seed)
        self.grid = self.module.embedding.finest(backbone.grids(config.image_size))
        self._findings: Mapping[str, str | float] = {}
        self._mean_image: NDArray[np.uint8] | None = None

    def stages(self) -> list[Stage]:
        published = self.config.hypothesis == "published"
        found: list[Stage] = [
            SinglePass("hypothesis", lambda data: evidence(data, published=published), self._accept_evidence),
            SinglePass("centre", self._compute_center, self._accept_center),
            LightningStage("discrimination", self.module, self._batches, self.config.epochs),
        ]
        return found + self._finish.stages(lambda: self.module.detector(self.backbone))

    def network(self) -> PositionDetector:
        return self._finish.applied(self.module.detector(self.backbone))

    def diagnostics(self, data: TrainingData) -> list[Diagnostic]:
        module, config = self.module, self.config
        shown = charts(projects=config.gas == "projected", spherical=module.hypothesis == "hypersphere")
        batches = self._batches(data)
        batch = next(iter(batches.epoch(config.epochs * config.refresh)))  # the start of a pool
        with torch.no_grad():  # on a copy: an ascent leaves its traces in the running statistics
            found = copy.deepcopy(module).train().branches(batch)
        gas = None if found.gas is None else found.gas.features
        las = None if found.las is None else found.las[found.anomalous]
        shown.append(cloud(found.normal, gas, las, self.seed))
        if batches.synthetic is not None:
            shown.append(synthetic_flaws(batches.synthetic.examples(SHOWN_FLAWS)))
        return shown if self._mean_image is None else [judged(self._mean_image), *shown]

    def findings(self) -> Mapping[str, str | float]:
        return self._findings

    def _accept_evidence(self, found: dict[str, Tensor]) -> None:
        chosen = self.config.hypothesis
        given = chosen if chosen == "manifold" or chosen == "hypersphere" else None
        self._mean_image = found["mean_image"].numpy()
        self.module.hypothesis, self._findings = decide(found, given)

    def _compute_center(self, data: TrainingData) -> dict[str, Tensor]:
        sampling = Sampling(self.config.batch_size)
        batches = PatchBatches(data.features(), sampling, seed=self.seed, purpose="centre")
        return {"mean_embedding": mean_embedding(self.module.embedding, batches.epoch(0))}

    def _accept_center(self, tensors: dict[str, Tensor]) -> None:
        self.module.mean_embedding = tensors["mean_embedding"]

    def _batches(self, data: TrainingData) -> PairedBatches:
        config = self.config
        normal, stride = PatchBatches(data.features(), config.sampling, seed=self.seed), self.backbone.info.strides[0]
        if not config.las:
            return PairedBatches(normal, None, self.grid, stride)
        recipe = find_recipe(config.recipe)
        synthetic = data.synthetic(recipe, config.foreground, self.grid, match_grey=config.match_grey)
        return PairedBatches(normal, synthetic, self.grid, stride, refresh=config.refresh, seed=self.seed)
