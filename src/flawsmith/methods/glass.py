"""GLASS: global and local anomaly co-synthesis strategy (Chen et al., ECCV 2024).

A discriminator learns to tell adapted normal features from anomalies of two kinds: global ones (GAS), normal features
with Gaussian noise that are moved by gradient ascent and truncated projection, and local ones (LAS), features of
images on which flaws were forged. The projection assumes that normal features lie near a manifold or within a
hypersphere; a look at the spectrum of the mean training image decides between the two. Equations are those of the
paper; where the released code differs, the presets ``paper`` and ``official`` do, and docs/methods/glass.md lists every
difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.methods.base import (
    Detector,
    LightningStage,
    Method,
    MethodConfig,
    SinglePass,
    Stage,
    TrainingData,
)
from flawsmith.methods.layers.centers import mean_embedding
from flawsmith.methods.layers.forged_batches import ForgedBatches, PairedBatch
from flawsmith.methods.layers.hidden_ascent import Forward, HiddenAscent, NormalHalf
from flawsmith.methods.layers.hypothesis import Decided, decide, evidence, given
from flawsmith.methods.layers.losses import hardest, two_class_focal
from flawsmith.methods.layers.patch_batches import PatchBatches, Sampling
from flawsmith.methods.layers.patch_learner import PatchConfig, PatchLearner, Rows
from flawsmith.methods.layers.projection import Shell, radius_of
from flawsmith.methods.layers.spectrogram import Hypothesis
from flawsmith.methods.registry import register
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import find_recipe


class GLASSConfig(PatchConfig):
    """Every number of GLASS; defaults are those of the authors' released code (preset ``official``)."""

    discriminator_optimiser: Literal["adamw", "adam"] = Field("adamw", description="adam in the paper.")
    hypothesis: Literal["auto", "manifold", "hypersphere", "published"] = Field(
        "auto",
        description="Where normal features are assumed to lie; auto judges the mean training image, published takes "
        "the authors' decision for a published category and judges any other.",
    )
    las: bool = Field(True, description="Local anomaly synthesis, from forged flaws (Table 4).")
    gas: Literal["none", "noise", "ascent", "projected"] = Field(
        "projected",
        description="Global anomaly synthesis (Table 4): none, Gaussian noise (GN), with gradient ascent (GA), with "
        "truncated projection (TP).",
    )
    noise: float = Field(0.015, gt=0, description="Standard deviation σ of the Gaussian noise (Eq. 5).")
    step_size: float = Field(0.001, gt=0, description="Length η of a step of gradient ascent (Eq. 6; released code).")
    steps: int = Field(20, ge=1, description="Steps of gradient ascent an iteration (released code).")
    project_every: int = Field(5, ge=1, description="Steps between two truncated projections (released code).")
    inner_radius: float = Field(0.5, ge=0, description="r1 of the manifold (Eq. 8); 1 in the paper.")
    outer_radius: float = Field(1.0, gt=0, description="r2 of the manifold (Eq. 8); 2 in the paper.")
    radius_quantile: float = Field(
        0.75, gt=0, le=1, description="Share of normal features within the hypersphere's radius r'1 (Eq. 9)."
    )
    shell: float = Field(2.0, gt=1, description="r'2 / r'1 of the hypersphere; local anomalies lie in the next shell.")
    center: Literal["position", "global"] = Field(
        "position", description="Centre of the hypersphere: one a position (released code) or one in all (paper)."
    )
    hard_quantile: float = Field(0.5, ge=0, lt=1, description="Share of easy positions that the LAS loss leaves out.")
    focal_gamma: float = Field(2.0, ge=0, description="γ of the focal loss.")
    recipe: str = Field("glass", description="Recipe of the forged flaws.")
    match_grey: bool = Field(
        False, description="Make textures grey where the image is: no camera that sees grey shows a coloured flaw."
    )
    foreground: Foreground = Field(
        Foreground(),
        description="Where flaws may be forged; the released scripts use mask files for MVTec AD, VisA, WFDD.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> GLASSConfig:
        if not self.las and self.gas == "none":
            raise ValueError("without local and without global anomalies there is nothing to learn from")
        if self.outer_radius < self.inner_radius:
            raise ValueError("outer_radius must be at least inner_radius")
        return self


# ---- Losses and synthesis: pure functions --------------------------------------------------------------------------


Watch = Callable[[Forward, Rows, HiddenAscent], None]
"""Sees every step of the ascent: its forward pass, the features at the last restart, and how far they have moved."""


class Anomalies(NamedTuple):
    """Global anomalies of one iteration.

    Attributes:
        features: g, a row a normal feature.
        moved: share of (feature, projection) pairs that the projection changed, in [0, 1].
    """

    features: Rows
    moved: Float[Tensor, ""]


def global_anomalies(
    offset: Rows,
    shell: Shell,
    learner: PatchLearner,
    hidden: Float[Tensor, "position hidden"],
    config: GLASSConfig,
    watch: Watch | None = None,
) -> Anomalies:
    """Eqs. 6 to 9: gradient ascent and truncated projection of features that noise has set off.

    Steps of the ascent are constants to the gradient, projections are not.

    Args:
        offset: of the synthetic features g from the shell's origin at the start (Eq. 5).
        shell: origin and radii of the projection.
        learner: holds the discriminator that is ascended.
        hidden: output of the discriminator's first layer for the normal features of the batch.
        config: steps, step size, projection.
        watch: called after every step, before a projection.
    """
    if config.gas == "noise":
        return Anomalies(shell.origin + offset, offset.new_zeros(()))
    first = learner.discriminator.blocks[0].linear
    with torch.no_grad():
        anchor = first(shell.origin).float()
        start = first(shell.origin + offset)
    ascent = HiddenAscent(learner.discriminator, NormalHalf.of(hidden), start, step_size=config.step_size)
    moved = []
    for begin in range(0, config.steps, config.project_every):
        steps = min(config.project_every, config.steps - begin)
        for _ in range(steps):
            seen = ascent.step()
            if watch is not None:
                watch(seen, shell.origin + offset, ascent)
        offset, scale = offset + ascent.moved(), anchor.new_ones(len(offset))
        if config.gas == "projected" and steps == config.project_every:
            found = shell.put(offset)
            offset, scale = found.offset, found.scale.detach()
            moved.append(found.moved.float().mean())
        ascent.restart(anchor + (ascent.hidden - anchor) * scale[:, None])
    return Anomalies(shell.origin + offset, torch.stack(moved).mean() if moved else offset.new_zeros(()))


def pushed_out(features: Rows, anomalous: Bool[Tensor, " position"], shell: Shell) -> Rows:
    """Local anomalies under the hypersphere: features of forged cells, put into the shell; the others stay."""
    pushed = shell.origin + shell.put(features - shell.origin).offset
    return torch.where(anomalous[:, None], pushed, features)


def local_loss(
    logits: Float[Tensor, " position"], anomalous: Bool[Tensor, " position"], *, hard_quantile: float, gamma: float
) -> Float[Tensor, ""]:
    """Eq. 12: the focal loss over the hardest positions of forged images."""
    probability, target = logits.float().sigmoid(), anomalous.float()
    kept = hardest(probability, target, hard_quantile).kept
    return two_class_focal(probability[kept], target[kept], gamma=gamma)


# ---- Training ------------------------------------------------------------------------------------------------------


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
        features = self.mean_embedding
        for layer in self.projector:
            features = layer(features)
        features = features.float()
        return features if self.config.center == "position" else features.mean(0, keepdim=True).expand_as(features)

    def on_train_epoch_start(self) -> None:
        self._centers = self.centers()

    def batch_losses(self, batch: PairedBatch) -> dict[str, Tensor]:
        normal = self.project(batch.normal.levels, batch.normal.rows)
        centers = self._centers if self._centers is not None else self.centers()
        positions = torch.arange(len(normal)) if batch.normal.rows is None else batch.normal.rows
        forged = None if batch.forged is None else self.project(batch.forged, batch.normal.rows)
        own = centers[positions.to(centers.device) % len(centers)]
        found = self.losses(normal.float(), forged, batch.cells, own, self.noise(normal, batch.normal.step))
        return found if forged is None else found | {"fell_back": torch.tensor(batch.fell_back)}

    def noise(self, like: Rows, step: tuple[int, int]) -> Rows:
        """ε of Eq. 5, a function of the seed and the step."""
        source = torch.Generator().manual_seed(derived_seed(self.seed, "glass noise", *step))
        return self.config.noise * torch.randn(like.shape, generator=source).to(like.device)

    def losses(
        self,
        normal: Rows,
        forged: Rows | None,
        anomalous: Bool[Tensor, " position"] | None,
        centers: Rows,
        noise: Rows,
        watch: Watch | None = None,
    ) -> dict[str, Tensor]:
        """L_n, L_gas, L_las and their sum (Eqs. 10 to 13), with the radius and the share of moved points.

        Args:
            normal: adapted features u of normal images.
            forged: adapted features of forged images; None without LAS.
            anomalous: which of them are forged flaws.
            centers: the centre of every normal feature's position.
            noise: Gaussian noise, a row a normal feature.
            watch: as in :func:`global_anomalies`.
        """
        config, spherical = self.config, self.hypothesis == "hypersphere"
        forged = None if forged is None else forged.float()
        radius = self._radius(normal, forged, anomalous, centers)
        first = self.discriminator.blocks[0].linear
        hidden = first(normal)
        results: dict[str, Tensor] = {}
        if config.gas == "none":
            logits = self.discriminator.from_first_linear(hidden)
        else:
            # Around the manifold g depends on u as identity; within the hypersphere the gradient reaches u through the
            # radial scaling of every projection.
            if spherical:
                shell, offset = Shell(centers, radius, config.shell * radius), normal + noise - centers
            else:
                shell, offset = Shell(normal, config.inner_radius, config.outer_radius), noise
            anomalies = global_anomalies(offset, shell, self, hidden, config, watch)
            both = self.discriminator.from_first_linear(torch.cat([hidden, first(anomalies.features)])).float()
            logits = both[: len(normal)]
            results |= {"loss_gas": F.softplus(-both[len(normal) :]).mean(), "moved": anomalies.moved}
        results["loss_normal"] = F.softplus(logits.float()).mean()
        if forged is not None and anomalous is not None:
            if spherical:
                shell = Shell(centers, config.shell * radius, config.shell**2 * radius)
                forged = pushed_out(forged, anomalous, shell)
            results["loss_las"] = local_loss(
                self.discriminator(forged), anomalous, hard_quantile=config.hard_quantile, gamma=config.focal_gamma
            )
        total = sum((value for name, value in results.items() if name.startswith("loss")), normal.new_zeros(()))
        return {"loss": total, **results, "radius": radius}

    def _radius(self, normal: Rows, forged: Rows | None, anomalous: Tensor | None, centers: Rows) -> Tensor:
        """r'1: the distance within which three quarters of the points known to be normal lie."""
        if forged is None or anomalous is None:
            return radius_of(normal.detach(), centers, self.config.radius_quantile)
        points = torch.cat([forged.detach()[~anomalous], normal.detach()])
        return radius_of(points, torch.cat([centers[~anomalous], centers]), self.config.radius_quantile)


FAST = GLASSConfig(
    image_size=(320, 320),
    policy="squash",
    strides=(16,),
    level_width=384,
    width=384,
    hidden=256,
    scale="logit",
    discriminator_lr=1e-3,
    epochs=30,
    steps_per_epoch=20,
    foreground=Foreground(mode="auto"),
    match_grey=True,
)


@register
class GLASS(Method):
    """GLASS on a frozen backbone."""

    name = "glass"
    paper = (
        "Chen et al., A Unified Anomaly Synthesis Strategy with Gradient Ascent for Industrial Anomaly Detection and "
        "Localization, ECCV 2024"
    )
    Config = GLASSConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = {
        "official": GLASSConfig(hypothesis="published"),
        "paper": GLASSConfig(
            inner_radius=1.0, outer_radius=2.0, center="global", discriminator_optimiser="adam", hypothesis="auto"
        ),
        "fast": FAST,
    }

    def __init__(self, config: GLASSConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.module = GLASSModule(config, backbone.channels, seed)
        self.grid = backbone.grids(config.image_size)[0]
        self._findings: Mapping[str, str | float] = {}
        if config.hypothesis == "manifold" or config.hypothesis == "hypersphere":
            self._accept_hypothesis(given(config.hypothesis))

    def stages(self) -> list[Stage]:
        stages: list[Stage] = [
            SinglePass("centre", self._compute_center, self._accept_center),
            LightningStage("discrimination", self.module, self._batches, self.config.epochs),
        ]
        if self.config.hypothesis in ("auto", "published"):
            published = self.config.hypothesis == "published"
            judging = SinglePass(
                "hypothesis",
                lambda data: evidence(data, published=published),
                lambda found: self._accept_hypothesis(decide(found)),
            )
            stages.insert(0, judging)
        return stages

    def network(self) -> Detector:
        return self.module.detector(self.backbone)

    def findings(self) -> Mapping[str, str | float]:
        return self._findings

    def _accept_hypothesis(self, decided: Decided) -> None:
        self.module.hypothesis, self._findings = decided

    def _compute_center(self, data: TrainingData) -> dict[str, Tensor]:
        sampling = Sampling(self.config.batch_size)
        batches = PatchBatches(data.features(), sampling, seed=self.seed, purpose="centre")
        return {"mean_embedding": mean_embedding(self.module.embedding, batches.epoch(0))}

    def _accept_center(self, tensors: dict[str, Tensor]) -> None:
        self.module.mean_embedding = tensors["mean_embedding"]

    def _batches(self, data: TrainingData) -> ForgedBatches:
        config = self.config
        normal = PatchBatches(data.features(), config.sampling, seed=self.seed)
        if not config.las:
            return ForgedBatches(normal, None, self.grid)
        recipe = find_recipe(config.recipe)
        forged = data.forged(recipe, config.foreground, self.grid, match_grey=config.match_grey)
        return ForgedBatches(normal, forged, self.grid)
