"""GLASS: global and local anomaly co-synthesis strategy.

A discriminator learns to tell adapted normal features from anomalies of two kinds: global ones (GAS), normal features
with Gaussian noise that are moved by gradient ascent and truncated projection, and local ones (LAS), features of images
with synthetic flaws. The projection assumes that normal features lie near a manifold or within a hypersphere; a look at
the spectrum of the mean training image decides between the two. Where the released code differs from the paper, the
presets ``paper`` and ``official`` do; docs/research/glass.md lists every difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from flawsmith.data.seeding import generator
from flawsmith.features.backbones import Backbone
from flawsmith.models.base import (
    SinglePass,
    Stage,
    SyntheticSource,
    TrainingData,
    TrainingStage,
    full_precision,
)
from flawsmith.models.components.batches import (
    FeatureBatch,
    FeatureBatches,
    PairedBatch,
    PairedBatches,
    Sampling,
    Step,
    cells_of_flaws,
)
from flawsmith.models.components.fast import AscentStep, HiddenAscent
from flawsmith.models.components.heads import Discriminator, Projector
from flawsmith.models.components.patch_model import PatchModel, Rows
from flawsmith.models.diagnostics import Diagnostic, FeatureCloud, MetricChart, Pictures, synthetic_flaws
from flawsmith.models.glass.config import CONDITIONS, PRESETS, GLASSConfig
from flawsmith.models.glass.functional import (
    anomaly_loss,
    hypersphere_radius,
    local_loss,
    normal_loss,
    project_local,
    total_loss,
    truncated_projection,
)
from flawsmith.models.glass.hypothesis import (
    HYPOTHESES,
    JUDGED_GEOMETRY,
    Hypothesis,
    decide,
    mean_rgb,
    published_hypothesis,
    spectrum_picture,
)
from flawsmith.models.registry import register
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import find_recipe

SHOWN_FLAWS = 4
SHOWN_FEATURES = 400
RECORDED_ROWS = 256
"""Rows of a step whose radius is computed for the record alone."""
NONE_PUBLISHED = -1

OnStep = Callable[[AscentStep, Rows, HiddenAscent], None]
"""Sees every step of the ascent: its forward pass, the offset at the last restart, and how far it has moved."""


class Branches(NamedTuple):
    """Features of one iteration, a row a position.

    Attributes:
        normal: u, adapted features of normal images.
        hidden: output of the discriminator's first layer for them.
        gas: g, global anomalies, a row a normal feature; None where the settings leave them out.
        moved: share of (feature, projection) pairs that the projection changed, in [0, 1]; None likewise.
        las: features of images with synthetic flaws; None likewise.
        anomalous: which of the latter belong to flaws.
        radius: r'1.
    """

    normal: Rows
    hidden: Float[Tensor, "position hidden"]
    gas: Rows | None
    moved: Float[Tensor, ""] | None
    las: Rows | None
    anomalous: Bool[Tensor, " position"] | None
    radius: Float[Tensor, ""]


Images = Float[Tensor, "batch 3 height width"]
Batch = PairedBatch | Images | tuple[Images, Images, Bool[Tensor, "batch height width"]]


@register
class GLASS(PatchModel):
    """GLASS on a frozen backbone.

    Attributes:
        mean_embedding: mean of the embedding over the training images, a row a position. The adaptor is affine, so
            the mean of the adapted features, which every epoch needs anew, is the adapted mean.
        mean_image: the mean training image, 8-bit RGB, on which the hypothesis is judged.
        spherical: whether normal features are assumed to lie in a hypersphere.
        published: place of the authors' decision among ``HYPOTHESES``; −1 where there is none, or none was asked for.

    Example:
        A plain loop over normal images, images with synthetic flaws, and their masks.

        >>> model = GLASS.from_preset("fast", backbone="efficientnet_lite0@random", image_size=(64, 64), hidden=16)
        >>> normal, flawed = torch.randn(2, 4, 3, 64, 64)
        >>> masks = torch.zeros(4, 64, 64, dtype=torch.bool)
        >>> masks[:, 20:40, 20:40] = True
        >>> model.fit_center([normal])
        >>> optimizers = model.make_optimizers()
        >>> for _ in range(2):
        ...     losses = model.train().losses((normal, flawed, masks))
        ...     for optimizer in optimizers:
        ...         optimizer.zero_grad()
        ...     losses["loss"].backward()
        ...     for optimizer in optimizers:
        ...         optimizer.step()
        >>> map, score = model.eval()(normal)
        >>> map.shape, score.shape
        (torch.Size([4, 64, 64]), torch.Size([4]))
    """

    name = "glass"
    suits = "weak flaws on textures"
    training_time = "4 min"
    paper = (
        "Chen et al., A Unified Anomaly Synthesis Strategy with Gradient Ascent for Industrial Anomaly Detection and "
        "Localization, ECCV 2024"
    )
    licence = "MIT"
    Config = GLASSConfig
    presets = PRESETS
    conditions = CONDITIONS
    config: GLASSConfig
    mean_embedding: Float[Tensor, "position width"]
    mean_image: UInt8[Tensor, "height width 3"]
    spherical: Bool[Tensor, ""]
    published: Tensor

    def __init__(self, config: GLASSConfig, backbone: Backbone, seed: int = 0) -> None:
        super().__init__(config, backbone, seed)
        self.register_buffer("mean_embedding", torch.zeros(self.grid[0] * self.grid[1], self.embedding.width))
        self.register_buffer("mean_image", torch.zeros(*JUDGED_GEOMETRY.size, 3, dtype=torch.uint8))
        self.register_buffer("published", torch.tensor(NONE_PUBLISHED))
        self.register_buffer("spherical", torch.tensor(config.hypothesis == "hypersphere"))
        self._centers: Tensor | None = None

    @property
    def hypothesis(self) -> Hypothesis:
        """Where normal features are assumed to lie."""
        return "hypersphere" if bool(self.spherical) else "manifold"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_n, L_gas, L_las and their sum (Eqs. 5 to 8), with the radius and the share of moved features.

        Args:
            batch: normal images, images with synthetic flaws and their masks; normal images alone, which leaves the
                local branch out; or the level maps of both.
        """
        batch = self._paired(batch)
        folds = not bool(self.spherical) and self.projector.layers and batch.normal.rows is not None
        losses = self._folded_losses(batch) if folds else self.branch_losses(self.branches(batch))
        if batch.synthetic is None:
            return losses
        return losses | {"fallback_rate": torch.tensor(batch.fallback_rate)}

    def branches(self, batch: PairedBatch) -> Branches:
        """Features of the three branches: normal ones, global anomalies made of them, and synthetic flaws."""
        config, spherical = self.config, bool(self.spherical)
        normal = self.project(batch.normal.levels, batch.normal.rows).float()
        centers = self._centers_of(batch, len(normal))
        synthetic = None if batch.synthetic is None else self.project(batch.synthetic, batch.normal.rows).float()
        radius = self._radius(normal, synthetic, batch.cells, centers)
        hidden = self.discriminator.blocks[0].linear(normal)
        gas = moved = None
        if config.gas != "none":
            # Around the manifold g depends on u as identity; within the hypersphere the gradient reaches u through the
            # radial scaling of every projection.
            noise = self.noise(normal, batch.normal.step)
            radii: tuple[Tensor | float, Tensor | float]
            if spherical:
                radii = radius, config.shell * radius
                gas, moved = global_anomalies(
                    normal + noise - centers, centers, radii, self.discriminator, hidden, config
                )
            else:
                radii = config.inner_radius, config.outer_radius
                gas, moved = global_anomalies(noise, normal, radii, self.discriminator, hidden, config)
        if spherical and synthetic is not None and batch.cells is not None:
            inner, outer = config.shell * radius, config.shell**2 * radius
            synthetic = project_local(synthetic, batch.cells, centers, inner, outer)
        return Branches(normal, hidden, gas, moved, synthetic, batch.cells, radius)

    def branch_losses(self, branches: Branches) -> dict[str, Tensor]:
        """The losses of the three branches."""
        first = self.discriminator.blocks[0].linear
        gas, las = (None if features is None else first(features) for features in (branches.gas, branches.las))
        losses = self._hidden_losses(branches.hidden, gas, las, branches.anomalous)
        if branches.moved is not None:
            losses["moved"] = branches.moved
        return losses | {"radius": branches.radius}

    def _hidden_losses(
        self, normal: Tensor, gas: Tensor | None, las: Tensor | None, anomalous: Bool[Tensor, " position"] | None
    ) -> dict[str, Tensor]:
        """The losses of the branches, from the discriminator's first linear layer for the features of each."""
        config, discriminator, count = self.config, self.discriminator, len(normal)
        logits = discriminator.from_first_linear(normal if gas is None else torch.cat([normal, gas])).float()
        losses = {"loss_normal": normal_loss(logits[:count])}
        if gas is not None:
            losses["loss_gas"] = anomaly_loss(logits[count:])
        if las is not None and anomalous is not None:
            losses["loss_las"] = local_loss(
                discriminator.from_first_linear(las),
                anomalous,
                hard_quantile=config.hard_quantile,
                gamma=config.focal_gamma,
            )
        parts = (losses["loss_normal"], losses.get("loss_gas"), losses.get("loss_las"))
        return {"loss": total_loss(*parts, gas_weight=config.gas_weight), **losses}

    def _folded_losses(self, batch: PairedBatch) -> dict[str, Tensor]:
        """The same around the manifold, where no loss looks at an adapted feature itself, only at the hidden layer.

        Adaptor and first layer are one linear map of the embedding: their product is multiplied with it, a quarter as
        wide, and g = u + ε̃ has the hidden value of u and that of ε̃, a constant to the gradient.
        """
        config, first = self.config, self.discriminator.blocks[0].linear
        rows, synthetic = self._embedded(batch.normal.levels, batch.normal.rows), None
        if batch.synthetic is not None:
            synthetic = self._embedded(batch.synthetic, batch.normal.rows)
        weight, bias = folded(self.projector, first)
        normal = F.linear(rows, weight, bias)
        las = None if synthetic is None else F.linear(synthetic, weight, bias)
        gas, figures = None, dict[str, Tensor]()
        if config.gas != "none":
            offset, moved = self._offsets(normal.detach(), self.noise(rows, batch.normal.step))
            gas, figures["moved"] = normal + F.linear(offset, first.weight), moved
        losses = self._hidden_losses(normal, gas, las, batch.cells)
        return losses | figures | {"radius": self._recorded_radius(rows, synthetic, batch)}

    def _offsets(self, hidden: Float[Tensor, "position hidden"], noise: Rows) -> tuple[Rows, Float[Tensor, ""]]:
        """ε̃ of global anomalies around the manifold, and the share of it that projections moved."""
        config, first = self.config, self.discriminator.blocks[0].linear
        if config.gas == "noise":
            return noise, noise.new_zeros(())
        with torch.no_grad():
            anchor = hidden.float()
            start = anchor + F.linear(noise, first.weight)
        ascent = HiddenAscent(self.discriminator, hidden, start, step_size=config.step_size)
        return ascended(ascent, noise, anchor, (config.inner_radius, config.outer_radius), config)

    @torch.no_grad()
    def _recorded_radius(self, normal: Rows, synthetic: Rows | None, batch: PairedBatch) -> Tensor:
        """r'1 of some of the rows, for the record alone."""
        some = slice(RECORDED_ROWS)
        u = self.projector(normal[some]).float()
        flawed = None if synthetic is None else self.projector(synthetic[some]).float()
        cells = None if batch.cells is None else batch.cells[some]
        return self._radius(u, flawed, cells, self._centers_of(batch, len(normal))[some])

    def noise(self, like: Rows, step: Step | None) -> Rows:
        """ε of section 3.2, normal with standard deviation σ."""
        return self.config.noise * self.gaussian(like, "glass noise", step)

    def start_epoch(self) -> None:
        """Estimate the centres anew, as the adaptor is now."""
        self._centers = self.centers()

    @torch.no_grad()
    def centers(self) -> Float[Tensor, "position width"]:
        """The centres as the adaptor is now: one a position, or the same for all."""
        features = self.projector(self.mean_embedding).float()
        return features if self.config.center == "position" else features.mean(0, keepdim=True).expand_as(features)

    def _centers_of(self, batch: PairedBatch, count: int) -> Rows:
        """The centre of the position of every feature of a batch."""
        centers = self._centers if self._centers is not None else self.centers()
        positions = batch.normal.rows
        if positions is None:
            positions = torch.arange(count, device=centers.device)
        return centers[positions % len(centers)]

    def _radius(self, normal: Rows, synthetic: Rows | None, anomalous: Tensor | None, centers: Rows) -> Tensor:
        """r'1: the distance within which three quarters of the features known to be normal lie."""
        features = normal.detach()
        if synthetic is not None and anomalous is not None:
            features = torch.cat([synthetic.detach()[~anomalous], features])
            centers = torch.cat([centers[~anomalous], centers])
        return hypersphere_radius(features, centers, self.config.radius_quantile)

    def _paired(self, batch: Batch) -> PairedBatch:
        if isinstance(batch, PairedBatch):
            return batch
        if isinstance(batch, Tensor):
            return PairedBatch(self.feature_batch(batch), None, None)
        normal, flawed, masks = batch
        cells = cells_of_flaws(masks.cpu().numpy(), self.grid, self.backbone.info.strides[0]).to(normal.device)
        return PairedBatch(self.feature_batch(normal), self.feature_batch(flawed).levels, cells)

    @torch.no_grad()
    def fit_center(self, batches: Iterable[Images | FeatureBatch]) -> None:
        """The mean embedding of every position: the mean over batches of the means over their images.

        A short last batch thereby has excess weight, as in the released code.

        Args:
            batches: of normalised images, or of their level maps, all positions of each.

        Raises:
            FlawsmithError: there is no image.
        """
        means = [self.embedding(self.feature_batch(batch).levels).mean(dim=0).flatten(1).T for batch in batches]
        if not means:
            raise FlawsmithError("there is nothing to learn from: give at least one good image")
        self.mean_embedding = torch.stack(means).mean(dim=0)
        self._centers = None  # those of the table before

    def fit_hypothesis(self, images: Iterable[NDArray[np.float32]], *, dataset: str = "", category: str = "") -> None:
        """Judge the mean training image, and take the judgement unless the settings name or ask for another decision.

        Args:
            images: normalised training images (3, height, width), squashed to 288×288 pixels.
            dataset: name of the data set, for decisions that the authors have published.
            category: name of the category, likewise.
        """
        known = published_hypothesis(dataset, category) if self.config.hypothesis == "published" else None
        self.mean_image = torch.from_numpy(mean_rgb(images)).to(self.mean_image.device)
        self.published.fill_(NONE_PUBLISHED if known is None else HYPOTHESES.index(known))
        self.spherical.fill_(self._decision()["hypothesis"] == "hypersphere")

    def _decision(self) -> Mapping[str, str | float]:
        published = int(self.published)
        known = None if published == NONE_PUBLISHED else HYPOTHESES[published]
        return decide(self.mean_image.cpu().numpy(), self.config.hypothesis, known)

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        config = self.config

        def judge() -> None:
            self.fit_hypothesis(data.images(JUDGED_GEOMETRY), dataset=data.dataset, category=data.category)

        yield SinglePass("hypothesis", judge)  # before features: files are decoded once for both sizes
        passes = FeatureBatches(data.features(), Sampling(config.batch_size), seed=self.seed, purpose="centre")
        yield SinglePass("centre", lambda: self.fit_center(passes.epoch(0)))
        yield TrainingStage("discrimination", self.training_module(), self._batches(data), config.epochs)
        yield from self.post_processing(data)

    def _batches(self, data: TrainingData) -> PairedBatches:
        config = self.config
        normal, stride = FeatureBatches(data.features(), config.sampling, seed=self.seed), self.backbone.info.strides[0]
        source = self.training_flaws(data)
        return PairedBatches(normal, source, self.grid, stride, refresh=config.refresh, seed=self.seed)

    def training_flaws(self, data: TrainingData) -> SyntheticSource | None:
        config = self.config
        if not config.las:
            return None
        foreground = config.of_category(data.dataset, data.category).foreground
        assert isinstance(foreground, Foreground)
        return data.synthetic(find_recipe(config.recipe), foreground, self.grid, match_grey=config.match_grey)

    def findings(self) -> Mapping[str, str | float]:
        return self._decision() if self.mean_image.any() else {}

    def diagnostics(self, data: TrainingData) -> list[Diagnostic]:
        config = self.config
        shown = charts(projects=config.gas == "projected", spherical=bool(self.spherical))
        batches = self._batches(data)
        batch = next(iter(batches.epoch(config.epochs * config.refresh)))  # the start of a pool
        with torch.no_grad():  # on a copy: an ascent leaves its traces in the running statistics
            trained = copy.deepcopy(self).train()
            trained.start_epoch()  # centres of the adaptor as it is now
            branches = trained.branches(batch.to(self.mean_embedding.device))
        las = None if branches.las is None else branches.las[branches.anomalous]
        shown.append(cloud(branches.normal, branches.gas, las, self.seed))
        if batches.synthetic is not None:
            shown.append(synthetic_flaws(batches.synthetic.examples(SHOWN_FLAWS)))
        return [judged(self.mean_image.cpu().numpy()), *shown] if self.mean_image.any() else shown


def global_anomalies(
    offset: Rows,
    origin: Rows,
    radii: tuple[Tensor | float, Tensor | float],
    discriminator: Discriminator,
    hidden: Float[Tensor, "position hidden"],
    config: GLASSConfig,
    on_step: OnStep | None = None,
) -> tuple[Rows, Float[Tensor, ""]]:
    """Eqs. 1 and 2 in turn: gradient ascent and truncated projection of features that noise has set off.

    Steps of the ascent are constants to the gradient, projections are not.

    Args:
        offset: of the synthetic features g from the origin at the start.
        origin: normal features themselves (manifold) or their centres (hypersphere), a row a feature.
        radii: r1 and r2, or r'1 and r'2.
        discriminator: what is ascended.
        hidden: output of the discriminator's first layer for the normal features of the batch.
        config: steps, step size, projection.
        on_step: called after every step, before a projection.

    Returns:
        g, a row a feature, and the share of (feature, projection) pairs that the projection changed, in [0, 1].
    """
    if config.gas == "noise":
        return origin + offset, offset.new_zeros(())
    first = discriminator.blocks[0].linear
    with torch.no_grad():
        anchor = first(origin).float()
        start = first(origin + offset)
    ascent = HiddenAscent(discriminator, hidden, start, step_size=config.step_size)
    offset, moved = ascended(ascent, offset, anchor, radii, config, on_step)
    return origin + offset, moved


def ascended(
    ascent: HiddenAscent,
    offset: Rows,
    anchor: Float[Tensor, "position hidden"],
    radii: tuple[Tensor | float, Tensor | float],
    config: GLASSConfig,
    on_step: OnStep | None = None,
) -> tuple[Rows, Float[Tensor, ""]]:
    """The steps of :func:`global_anomalies`, whatever the features are set off from.

    Args:
        ascent: at the start.
        offset: of the synthetic features from the origin at the start.
        anchor: output of the discriminator's first layer for the origin.
        radii, config, on_step: as there.

    Returns:
        The offset, and the share of (feature, projection) pairs that a projection changed.
    """
    moved = []
    for begin in range(0, config.steps, config.project_every):
        steps = min(config.project_every, config.steps - begin)
        for _ in range(steps):
            forward = ascent.step()
            if on_step is not None:
                on_step(forward, offset, ascent)
        offset, scale = offset + ascent.moved(), anchor.new_ones(len(offset))
        if config.gas == "projected" and steps == config.project_every:
            projected = truncated_projection(offset, *radii)
            offset, scale = projected.offset, projected.scale.detach()
            moved.append(projected.moved.float().mean())
        ascent.restart(anchor + (ascent.hidden - anchor) * scale[:, None])
    return offset, torch.stack(moved).mean() if moved else offset.new_zeros(())


def folded(projector: Projector, first: nn.Linear) -> tuple[Float[Tensor, "hidden width"], Float[Tensor, " hidden"]]:
    """Weight and bias of the adaptor and the discriminator's first layer as one linear map, with their gradients.

    Example:
        >>> projector, first, rows = Projector(4), nn.Linear(4, 3), torch.rand(5, 4)
        >>> torch.allclose(F.linear(rows, *folded(projector, first)), first(projector(rows)), atol=1e-5)
        True
    """
    weight: Tensor = first.weight
    bias: Tensor = first.bias
    with full_precision(weight.device):
        for layer in reversed(projector.layers):
            bias = bias + weight @ layer.bias
            weight = weight @ layer.weight
    return weight, bias


def charts(*, projects: bool, spherical: bool) -> list[Diagnostic]:
    """The radius over the epochs and, where features are projected, the share of them that the projection moved."""
    shown: list[Diagnostic] = [
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
        shown.append(
            MetricChart(
                "Truncated projection",
                "Share of synthetic features that a projection moved because they lay outside of its two radii. With "
                "the manifold's radii of the released code and its noise none ever does.",
                "share of features",
                {"moved": "moved by the projection"},
            )
        )
    return shown


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
