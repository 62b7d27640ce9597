"""SLSG: self-supervised learning with structural and logical anomalies, and a graph over the image.

GPT-Net pre-trains an encoder by painting in what was hidden of good images. Behind that encoder, SegNet learns to
segment simulated anomalies, with attention and a sparse graph where its view is widest. Equations are those of the
paper; where the released SegNet differs, the presets ``paper`` and ``official`` do, and docs/research/slsg.md lists
every difference.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import Self

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone, BackboneInfo, pixels_of, trained_trunk
from flawsmith.models.base import (
    AnomalyModel,
    AnomalyOutput,
    FeatureSource,
    SinglePass,
    Stage,
    SyntheticSource,
    TrainingData,
    TrainingStage,
)
from flawsmith.models.components.level_table import LevelTable
from flawsmith.models.components.memory_bank import LevelMaps, MemoryBank, sample_coreset, typical_peak
from flawsmith.models.diagnostics import Diagnostic, Pictures
from flawsmith.models.registry import register
from flawsmith.models.slsg.config import CONDITIONS, PRESETS, SLSGConfig
from flawsmith.models.slsg.functional import (
    Grid,
    Images,
    anomaly_probability,
    cosine_rate,
    image_score,
    segmentation_loss,
)
from flawsmith.models.slsg.networks import Graph, SegNet, grid_of, make_encoder
from flawsmith.models.slsg.pretraining import (
    Generator,
    InpaintingBatch,
    InpaintingBatches,
    PretrainingModule,
    settle_statistics,
)
from flawsmith.models.slsg.simulation import SimulatedBatch, SimulatedBatches, choose_simulation


@register
class SLSG(AnomalyModel):
    """SLSG with an encoder of its own, made of a copy of the backbone.

    Args:
        config: every number of the method.
        backbone: what the encoder begins as.
        seed: of the initial weights and of every draw.

    Attributes:
        encoder: normalised images to level maps, finest first.
        network: SegNet, everything behind the encoder.

    Example:
        >>> model = SLSG.from_preset("fast", image_size=(64, 96))
        >>> images, mask = torch.zeros(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
        >>> model.losses((images, mask))["loss"].backward()
        >>> [tuple(values.shape) for values in model.eval()(images)]
        [(2, 64, 96), (2,)]
    """

    name = "slsg"
    suits = "where something is missing or misplaced"
    training_time = "6 min"
    paper = (
        "Yang et al., SLSG: Industrial Image Anomaly Detection by Learning Better Feature Embeddings and One-Class "
        "Classification, Pattern Recognition 2024"
    )
    Config = SLSGConfig
    presets = PRESETS
    conditions = CONDITIONS

    config: SLSGConfig

    def __init__(self, config: SLSGConfig, backbone: Backbone, seed: int = 0) -> None:
        super().__init__(config, backbone, seed)
        # Kept beside the modules: the encoder has a copy of its weights, which would stand in the state twice.
        del self.backbone
        self.__dict__["backbone"] = backbone
        self.encoder = make_encoder(backbone, config.topology, config.stem, None if config.frozen_backbone else seed)
        with torch.no_grad():
            levels = self.encoder(torch.zeros(1, 3, *config.image_size))
        self.channels = [int(level.shape[1]) for level in levels]
        self.grids = [grid_of(level) for level in levels]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "slsg segmentation"))
            network = SegNet(self.channels, self.grids, config.image_size, config)
        self.network = network.to(memory_format=torch.channels_last)
        if config.pretraining:  # the layout in which GPT-Net trains it
            self.encoder.to(memory_format=torch.channels_last)
        self._findings: Mapping[str, str | float] = {}
        self._reconstructions: tuple[Pictures, ...] = ()
        self.train()

    @property
    def highest_score(self) -> float | None:
        return 1.0 if self.config.scale == "probability" else None

    @property
    def continuous(self) -> bool:
        block = self.network.sg_block
        return block is None or block.continuous

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation mode unless its batch statistics are to follow SegNet's batches."""
        super().train(mode)
        if self.config.encoder_statistics == "frozen":
            self.encoder.eval()
        return self

    def forward(self, images: Images) -> AnomalyOutput:
        return self.from_levels(self.encoder(images))

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        """Map and score (section 4.2) from the encoder's level maps, finest first."""
        logits, _, novelty = self.network(levels)
        if novelty is not None:
            added = self.config.novelty_weight * novelty
            # Half to each class, so that their difference, which is all that counts, rises by the whole.
            logits = logits + torch.cat([-added, added], dim=1) / 2
        probability = self.config.scale == "probability"
        anomaly_map = anomaly_probability(logits) if probability else logits[:, 1] - logits[:, 0]
        return AnomalyOutput(anomaly_map, image_score(anomaly_map, top_pixels=self.config.top_pixels))

    def feature_maps(self, images: Images) -> Mapping[str, Tensor]:
        """The encoder's bottleneck, and the output of the decoder's first block (Fig. 7)."""
        levels, outputs = self.encoder(images), list[Tensor]()
        with self.network.blocks[0].register_forward_hook(lambda module, inputs, output: outputs.append(output)):
            self.network(levels)
        return {"encoder, bottleneck": levels[-1], "decoder, first block": outputs[0]}

    def losses(
        self, batch: SimulatedBatch | tuple[Images, Bool[Tensor, "batch height width"]]
    ) -> dict[str, Float[Tensor, ""]]:
        """L_S of Eq. 11 and its parts, with which SegNet learns; the encoder gets no gradient.

        Args:
            batch: normal images and images with anomalies, with the mask of these.

        Returns:
            ``loss``, its parts before they are weighted, and the batch's rate of fall-back masks.
        """
        config = self.config
        if isinstance(batch, tuple):
            batch = SimulatedBatch([batch[0]], batch[1])
        levels = batch.levels
        if len(levels) == 1:  # pixels: the encoder has two levels at least
            with torch.no_grad():
                levels = self.encoder(levels[0].contiguous(memory_format=torch.channels_last))
        logits = self.network([level.contiguous(memory_format=torch.channels_last) for level in levels])
        weights = (config.focal_weight, config.l1_weight, config.auxiliary_weight)
        losses = segmentation_loss(
            logits.final, logits.auxiliary, batch.mask, weights=weights, gamma=config.focal_gamma
        )
        return {**losses, "fallback_rate": torch.tensor(batch.fallback_rate)}

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """That of SegNet's stage."""
        config, parameters = self.config, self.network.parameters()
        return [torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)]

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        config = self.config
        if config.pretraining:
            yield from self._pretraining(data)
        data = self._encoded(data)
        if config.memory_strides:
            yield SinglePass("memory", lambda: self._fit_memories(data.features()))
        batches = SimulatedBatches(data.features(), self.training_flaws(data), config, self.seed)
        yield TrainingStage("segmentation", SegmentationModule(self), batches, config.epochs)

    def _pretraining(self, data: TrainingData) -> Iterator[Stage]:
        """GPT-Net, whose generator and discriminator live as long as this."""
        config = self.config
        images = data.with_backbone(pixels_of(self.backbone)).features()
        module = PretrainingModule(config, self.encoder, self.channels, self.seed)
        batches = InpaintingBatches(images, config, self.seed)
        yield TrainingStage("pretraining", module, batches, config.pretraining_epochs, completes=False)
        self.encoder.requires_grad_(False)
        batch = next(batches.epoch(config.pretraining_epochs))
        self._reconstructions = (reconstructions(module.generator, batch, self.backbone.info),)
        if config.encoder_statistics == "frozen":
            yield SinglePass("statistics", lambda: settle_statistics(self.encoder, images, 2 * config.batch_size))

    @torch.no_grad()
    def fit_memories(self, batches: Iterable[Images]) -> None:
        """Fill the memories of good features for a loop of one's own; nothing where the settings have none.

        Args:
            batches: normalised good images; the encoder's level maps are held in memory.

        Raises:
            FlawsmithError: there is no image.
        """
        device = next(self.encoder.parameters()).device
        self._fit_memories(LevelTable(self.encoder(images.to(device)) for images in batches))

    @torch.no_grad()
    def _fit_memories(self, features: FeatureSource) -> None:
        for level in self.config.memory_levels:
            maps, memory = LevelMaps(features, level), self.network.memories[str(level)]
            assert isinstance(memory, MemoryBank)
            coreset = sample_coreset(maps, self.config.memory_size, self.seed, purpose="slsg memory")
            memory.fit(coreset.features, typical_peak(coreset, maps))

    def _encoded(self, data: TrainingData) -> TrainingData:
        """The images as the encoder gives them, or as pixels where its statistics still change."""
        if self.config.encoder_statistics == "batch":
            return data.with_backbone(pixels_of(self.backbone))
        if self.config.frozen_backbone:
            return data
        form = f"{self.config.topology} {self.config.stem}"
        return data.with_backbone(trained_trunk(self.encoder, self.backbone, self.config.image_size, form))

    def training_flaws(self, data: TrainingData) -> SyntheticSource:
        recipe, foreground, name = choose_simulation(self.config, data.dataset, data.category)
        self._findings = {"simulation": name}
        return data.synthetic(recipe, foreground, self.grids[0], match_grey=self.config.match_grey)

    def findings(self) -> Mapping[str, str | float]:
        return self._findings

    @torch.no_grad()
    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        model = copy.deepcopy(self).eval()
        examples = model.training_flaws(model._encoded(data)).examples(SHOWN)
        seen = np.stack([self.geometry.normalise(synthetic) for _, _, synthetic in examples])
        images = torch.from_numpy(seen).to(next(self.parameters()).device)
        diagnostics: list[Diagnostic] = [*self._reconstructions, simulated_anomalies(examples, model(images).map)]
        block = model.network.sg_block
        if block is not None and block.has_graph:
            graph = block.graph(model.network.norms[-1](model.encoder(images)[-1]))
            diagnostics.append(graph_neighbours(examples, graph, self.grids[-1]))
        return diagnostics


class SegmentationModule(pl.LightningModule):
    """SegNet's stage: SGD, whose rate falls along a cosine from step to step.

    Args:
        model: its SegNet is trained in place.
    """

    def __init__(self, model: SLSG) -> None:
        super().__init__()
        self.model = model

    def on_train_start(self) -> None:
        self.model.train()

    def training_step(self, batch: SimulatedBatch, batch_idx: int) -> dict[str, Tensor]:
        losses = self.model.losses(batch)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}

    def configure_optimizers(self) -> Any:
        (optimizer,) = self.model.make_optimizers()
        # Where several processes train together, each makes a part of every epoch's steps.
        config, processes = self.model.config, self.trainer.world_size
        epochs, rest = divmod(config.steps, config.steps_per_epoch)
        total = epochs * math.ceil(config.steps_per_epoch / processes) + math.ceil(rest / processes)
        schedule = LambdaLR(optimizer, lambda step: cosine_rate(step, start=1.0, total=total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


SHOWN = 4
NODES = 3
"""Nodes of each image whose neighbours are drawn."""
LEAST_SIDE = 256
NODE_COLOUR, NEIGHBOUR_COLOUR = (0, 200, 0), (230, 30, 30)

Picture = NDArray[np.uint8]
Example = tuple[Picture, Picture, Picture]
"""Good image, mask and synthetic image."""


@torch.no_grad()
def reconstructions(generator: Generator, batch: InpaintingBatch, info: BackboneInfo) -> Pictures:
    """Good images, what GPT-Net saw of them, and what it painted from all levels and from the bottleneck alone.

    With batch statistics, as it was trained.
    """
    batch = batch.to(next(generator.parameters()).device)
    final, auxiliary = copy.deepcopy(generator).train()(batch.masked)
    columns = [
        ("good image", batch.images),
        ("what was seen", batch.masked),
        ("reconstruction", final),
        ("from the bottleneck", auxiliary),
    ]
    pictures = [
        (label, _picture(images[number], info))
        for number in range(min(SHOWN, len(batch.images)))
        for label, images in columns
    ]
    return Pictures(
        "Masked reconstructions",
        "What GPT-Net makes of good images of which most is hidden, after its last epoch.",
        pictures,
        group=len(columns),
    )


def simulated_anomalies(examples: Sequence[Example], maps: Float[Tensor, "batch height width"]) -> Pictures:
    """Simulated anomalies, their masks, and what the trained SegNet says of them; 0 is black, the highest white."""
    scale = max(float(maps.max() - maps.min()), 1e-12)
    grey = np.rint(((maps - maps.min()) / scale * 255).numpy(force=True)).astype(np.uint8)
    labels = ("good image", "simulated anomaly", "mask", "SegNet's map")
    pictures = [
        pair
        for (good, mask, synthetic), anomaly_map in zip(examples, grey, strict=True)
        for pair in zip(labels, (good, synthetic, mask, anomaly_map), strict=True)
    ]
    return Pictures(
        "Simulated anomalies",
        "Structural and logical anomalies as SegNet learns from them, and its own map of them, on one scale.",
        pictures,
        group=len(labels),
    )


def graph_neighbours(examples: Sequence[Example], graph: Graph, grid: Grid) -> Pictures:
    """The graph around a few nodes, as in the paper's Fig. 8: the node in green, its neighbours in red."""
    assert graph.neighbours is not None
    pictures = []
    for number, (_, _, synthetic) in enumerate(examples):
        for node in _spread(grid):
            drawn = _marked(synthetic, grid, node, graph.neighbours.indices[number, node].tolist())
            pictures.append((f"node {node // grid[1]}, {node % grid[1]}", drawn))
    return Pictures(
        "Neighbours in the graph",
        "Which cells the SG block relates to a node (green): those it finds alike whatever their place (red).",
        pictures,
        group=NODES,
    )


def _spread(grid: Grid) -> list[int]:
    """Nodes on the diagonal: near the corner, in the middle, near the other corner."""
    places = [(number + 1) / (NODES + 1) for number in range(NODES)]
    return [int(grid[0] * place) * grid[1] + int(grid[1] * place) for place in places]


def _marked(picture: Picture, grid: Grid, node: int, others: Sequence[int]) -> Picture:
    times = max(1, -(-LEAST_SIDE // min(picture.shape[:2])))
    size = (picture.shape[1] * times, picture.shape[0] * times)
    drawn = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    down, across = drawn.shape[0] / grid[0], drawn.shape[1] / grid[1]
    radius = max(2, round(min(down, across) / 4))
    for place, colour in [*((other, NEIGHBOUR_COLOUR) for other in others if other != node), (node, NODE_COLOUR)]:
        row, column = divmod(place, grid[1])
        centre = (round((column + 0.5) * across), round((row + 0.5) * down))
        cv2.circle(drawn, centre, radius, colour, thickness=-1, lineType=cv2.LINE_AA)
    return drawn


def _picture(image: Tensor, info: BackboneInfo) -> Picture:
    values = image.numpy(force=True).transpose(1, 2, 0) * np.array(info.std) + np.array(info.mean)
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
