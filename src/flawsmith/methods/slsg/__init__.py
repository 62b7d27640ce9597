"""SLSG: self-supervised learning with structural and logical anomalies, and a graph over the image.

GPT-Net pre-trains an encoder by painting in what was hidden of good images. Behind that encoder, SegNet learns to
segment simulated anomalies, with attention and a sparse graph where its view is widest. Equations are those of the
paper; where the released SegNet differs, the presets ``paper`` and ``official`` do, and docs/methods/slsg.md lists
every difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone, pixels_of, trained_trunk
from flawsmith.methods.base import (
    ForgedSource,
    LightningStage,
    Method,
    MethodConfig,
    SinglePass,
    Stage,
    TrainingData,
)
from flawsmith.methods.diagnostics import Diagnostic
from flawsmith.methods.layers.familiarity import Familiarity, LevelMaps, chosen_features, typical_peak
from flawsmith.methods.registry import register
from flawsmith.methods.slsg import diagnostics as shows
from flawsmith.methods.slsg.config import PRESETS, SLSGConfig
from flawsmith.methods.slsg.decoder import grid_of
from flawsmith.methods.slsg.detector import SegmentationDetector
from flawsmith.methods.slsg.encoder import make_encoder
from flawsmith.methods.slsg.pretraining import InpaintingBatches, PretrainingModule, settle_statistics
from flawsmith.methods.slsg.segmentation import SegNet, SegNetLayout
from flawsmith.methods.slsg.simulation import chosen_simulation
from flawsmith.methods.slsg.stages import SegmentationModule, SimulatedBatches


@register
class SLSG(Method):
    """SLSG with an encoder of its own."""

    name: ClassVar[str] = "slsg"
    paper: ClassVar[str] = (
        "Yang et al., SLSG: Industrial Image Anomaly Detection by Learning Better Feature Embeddings and One-Class "
        "Classification, Pattern Recognition 2024"
    )
    Config: ClassVar[type[MethodConfig]] = SLSGConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = PRESETS

    def __init__(self, config: SLSGConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        redrawn = None if config.frozen_backbone else seed
        self.encoder = make_encoder(backbone, config.topology, config.stem, redrawn).eval()
        with torch.no_grad():
            levels = self.encoder(torch.zeros(1, 3, *config.image_size))
        self.channels = [int(level.shape[1]) for level in levels]
        self.grids = [grid_of(level) for level in levels]
        self.pretraining = PretrainingModule(config, self.encoder, self.channels, seed) if config.pretraining else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "slsg segmentation"))
            network = SegNet(self.channels, self.grids, config.image_size, layout_of(config))
        learns = config.encoder_statistics == "batch"
        self.segmentation = SegmentationModule(config, network, self.encoder if learns else None)
        self._findings: Mapping[str, str | float] = {}

    def stages(self) -> list[Stage]:
        config, found = self.config, list[Stage]()
        if self.pretraining is not None:
            found.append(
                LightningStage(
                    "pretraining", self.pretraining, self._masked, config.pretraining_epochs, completes=False
                )
            )
        if self.pretraining is not None and config.encoder_statistics == "frozen":
            found.append(SinglePass("statistics", self._settled, self._accept_encoder))
        if config.memory_strides:
            found.append(SinglePass("memory", self._chosen, self._remember))
        found.append(LightningStage("segmentation", self.segmentation, self._simulated, config.epochs))
        return found

    def network(self) -> SegmentationDetector:
        config = self.config
        return SegmentationDetector(
            self.encoder,
            self.segmentation.network,
            scale=config.scale,
            top_pixels=config.top_pixels,
            strangeness_weight=config.strangeness_weight,
        )

    def findings(self) -> Mapping[str, str | float]:
        return self._findings

    @torch.no_grad()
    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        found = list[Diagnostic]()
        if self.pretraining is not None:
            batch = next(iter(self._masked(data).epoch(self.config.pretraining_epochs)))
            found.append(shows.reconstructions(self.pretraining.generator, batch, self.backbone.info))
        examples = self._source(self._seen(data)).examples(shows.SHOWN)
        images = shows.as_input(examples, self.backbone.info)
        found.append(shows.simulated(examples, self.network()(images).map))
        block = self.segmentation.network.sg_block
        if block is not None and block.has_graph:
            graph = block.graph(self.segmentation.network.norms[-1](self.encoder(images)[-1]))
            found.append(shows.neighbours(examples, graph, self.grids[-1]))
        return found

    def _masked(self, data: TrainingData) -> InpaintingBatches:
        return InpaintingBatches(data.through(pixels_of(self.backbone)).features(), self.config, self.seed)

    def _settled(self, data: TrainingData) -> dict[str, Tensor]:
        images = data.through(pixels_of(self.backbone)).features()
        return settle_statistics(self.encoder, images, 2 * self.config.batch_size)

    def _accept_encoder(self, tensors: dict[str, Tensor]) -> None:
        self.encoder.load_state_dict(tensors)

    def _chosen(self, data: TrainingData) -> dict[str, Tensor]:
        images, size = self._seen(data).features(), self.config.memory_size
        found = dict[str, Tensor]()
        for level in self.config.remembered:
            maps = LevelMaps(images, level)
            chosen = chosen_features(maps, size, self.seed, purpose="slsg memory")
            found |= {f"features {level}": chosen.features, f"unit {level}": typical_peak(chosen, maps)}
        return found

    def _remember(self, tensors: dict[str, Tensor]) -> None:
        for level in self.config.remembered:
            memory = self.segmentation.network.memories[str(level)]
            assert isinstance(memory, Familiarity)
            memory.remember(tensors[f"features {level}"], tensors[f"unit {level}"])

    def _seen(self, data: TrainingData) -> TrainingData:
        """The data as the encoder gives it, or as pixels where its statistics still change."""
        if self.config.encoder_statistics == "batch":
            return data.through(pixels_of(self.backbone))
        if self.config.frozen_backbone:
            return data
        form = f"{self.config.topology} {self.config.stem}"
        return data.through(trained_trunk(self.encoder, self.backbone, self.config.image_size, form))

    def _source(self, data: TrainingData) -> ForgedSource:
        recipe, foreground, self._findings = chosen_simulation(self.config, data.dataset, data.category)
        return data.forged(recipe, foreground, self.grids[0], match_grey=self.config.match_grey)

    def _simulated(self, data: TrainingData) -> SimulatedBatches:
        self.encoder.requires_grad_(False)
        seen = self._seen(data)
        return SimulatedBatches(seen.features(), self._source(seen), self.config, self.seed)


def layout_of(config: SLSGConfig) -> SegNetLayout:
    """How the settings say that SegNet is built."""
    block: dict[str, Any] | None = None
    if config.attention or config.graph:
        block = {
            "released": config.block == "released",
            "attention": config.attention,
            "graph": config.graph,
            "subtract_position": config.subtract_position,
            "neighbours": config.neighbours,
            "margin": config.neighbour_margin,
        }
    return SegNetLayout(
        widths=config.decoder_widths,
        skip_attention=config.skip_attention,
        bottleneck_skips=config.bottleneck_skips,
        full_resolution=config.full_resolution,
        added_auxiliary=config.added_auxiliary,
        normalised_levels=config.normalised_levels,
        remembered=config.remembered,
        memory_size=config.memory_size,
        sg_block=block,
    )
