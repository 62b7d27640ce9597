"""SLSG: self-supervised learning with structural and logical anomalies, and a graph over the image.

GPT-Net pre-trains an encoder by painting in what was hidden of good images. Behind that encoder, SegNet learns to
segment simulated anomalies, with attention and a sparse graph where its view is widest. Equations are those of the
paper; where the released SegNet differs, the presets ``paper`` and ``official`` do, and docs/methods/slsg.md lists
every difference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone, BackboneInfo, pixels_of, trained_trunk
from flawsmith.models.base import (
    AnomalyOutput,
    Detector,
    Diagnostic,
    FeatureSource,
    LightningStage,
    Method,
    MethodConfig,
    Pictures,
    SinglePass,
    Stage,
    SyntheticSource,
    TrainingData,
)
from flawsmith.models.components.distributed import share, total
from flawsmith.models.components.memory_bank import LevelMaps, MemoryBank, sample_coreset, typical_peak
from flawsmith.models.components.patch_learner import PatchBatches, Sampling
from flawsmith.models.registry import register
from flawsmith.models.slsg.config import PRESETS, Scale, SLSGConfig
from flawsmith.models.slsg.functional import cosine_rate, segmentation_losses
from flawsmith.models.slsg.networks import (
    Encoder,
    Grid,
    SegNet,
    SegNetLayout,
    anomaly_probability,
    grid_of,
    make_encoder,
)
from flawsmith.models.slsg.pretraining import (
    Generator,
    InpaintingBatch,
    InpaintingBatches,
    PretrainingModule,
    settle_statistics,
)
from flawsmith.models.slsg.sg_block import Graph
from flawsmith.models.slsg.simulation import chosen_simulation


@dataclass(frozen=True)
class SimulatedBatch:
    """Normal images, then as many with simulated anomalies, as the encoder gives them, or as pixels.

    Attributes:
        levels: level maps, finest first; with an encoder that keeps learning statistics, the images themselves.
        mask: anomalous pixels, (batch, height, width).
        fell_back: share of the simulated images whose mask is a fall-back, in [0, 1].
    """

    levels: list[Tensor]
    mask: Bool[Tensor, "batch height width"]
    fell_back: float = 0.0

    def to(self, device: torch.device) -> SimulatedBatch:
        """The same on a device."""
        return SimulatedBatch([level.to(device) for level in self.levels], self.mask.to(device), self.fell_back)


class SimulatedBatches:
    """The batches of the second stage, simulated afresh every time.

    Args:
        features: level maps of the good images.
        synthetic: simulates anomalies on them.
        config: the method's settings.
        seed: of the order.
    """

    def __init__(self, features: FeatureSource, synthetic: SyntheticSource, config: SLSGConfig, seed: int) -> None:
        self._features, self.synthetic, self._config = features, synthetic, config
        self._order = PatchBatches(features, Sampling(config.batch_size, config.steps_per_epoch), seed=seed)

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int) -> Iterator[SimulatedBatch]:
        left = self._config.steps - epoch * len(self)
        rows = list(self._order.images(epoch))[: max(0, left)]
        for some, synthetic in zip(rows, self.synthetic.batches(rows, epoch), strict=True):
            normal = self._features.batch(some[share(len(some))]) if synthetic.normal is None else synthetic.normal
            levels = [torch.cat(pair) for pair in zip(normal, synthetic.levels, strict=True)]
            mask = np.concatenate([np.zeros_like(synthetic.masks), synthetic.masks])
            yield SimulatedBatch(levels, torch.from_numpy(mask), synthetic.share_fell_back)


class SegmentationModule(pl.LightningModule):
    """SGD along a cosine on focal, ℓ1 and auxiliary ℓ1 loss.

    Args:
        config: the method's settings.
        network: what learns.
        encoder: frozen in its weights, whose batch statistics follow the batches; None where batches hold levels.
    """

    def __init__(self, config: SLSGConfig, network: SegNet, encoder: Encoder | None) -> None:
        super().__init__()
        self.config = config
        self.network = network.to(memory_format=torch.channels_last)
        self.encoder = encoder

    def on_train_start(self) -> None:
        self.train()  # the encoder's batch norms too, whatever it was before

    def training_step(self, batch: SimulatedBatch, batch_idx: int) -> dict[str, Tensor]:
        found = self.losses(batch)
        return {name: value if name == "loss" else value.detach() for name, value in found.items()}

    def losses(self, batch: SimulatedBatch) -> dict[str, Tensor]:
        """L_S of Eq. 11 and its parts."""
        config, levels = self.config, batch.levels
        if self.encoder is not None:
            with torch.no_grad():
                levels = self.encoder(levels[0].contiguous(memory_format=torch.channels_last))
        logits = self.network([level.contiguous(memory_format=torch.channels_last) for level in levels])
        parts = segmentation_losses(logits, batch.mask, focal_gamma=config.focal_gamma)
        weights = (config.focal_weight, config.l1_weight, config.auxiliary_weight)
        loss = torch.stack([weight * value for weight, value in zip(weights, parts.values(), strict=True)]).sum()
        return {"loss": loss, **parts, "fell_back": total(torch.tensor(batch.fell_back))}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.SGD(
            self.network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def on_train_batch_start(self, batch: SimulatedBatch, batch_idx: int) -> None:
        rate = cosine_rate(self.global_step, start=self.config.lr, total=self.config.steps)
        optimiser = self.optimizers()
        assert isinstance(optimiser, torch.optim.Optimizer)
        for group in optimiser.param_groups:
            group["lr"] = rate

    def transfer_batch_to_device(
        self, batch: SimulatedBatch, device: torch.device, dataloader_idx: int
    ) -> SimulatedBatch:
        return batch.to(device)


class SegmentationDetector(Detector):
    """The probability of every pixel, or its logit; an image's score is the mean of its highest pixels.

    Args:
        encoder: gives the levels.
        network: everything behind it.
        scale: what a pixel's value means.
        top_pixels: so many pixels make the score; all where there are fewer.
        novelty_weight: what is added to a pixel's logit for each unit of its novelty, where there is a memory.
    """

    def __init__(
        self, encoder: nn.Module, network: SegNet, *, scale: Scale, top_pixels: int, novelty_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network
        self.scale, self.top_pixels = scale, top_pixels
        self.novelty_weight = novelty_weight
        self.eval()

    @property
    def highest_score(self) -> float | None:
        return 1.0 if self.scale == "probability" else None

    @property
    def continuous(self) -> bool:
        block = self.network.sg_block
        return block is None or block.continuous

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        found = self.network(self.encoder(images))
        logits = found.final
        if found.novelty is not None:
            added = self.novelty_weight * found.novelty
            # Half to each class, so that their difference, which is all that counts, rises by the whole.
            logits = logits + torch.cat([-added, added], dim=1) / 2
        return scored(logits, scale=self.scale, top_pixels=self.top_pixels)

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """The encoder's bottleneck, and the output of the decoder's first block (Fig. 7)."""
        levels, seen = self.encoder(images), list[Tensor]()
        hook = self.network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        with hook:
            self.network(levels)
        return {"encoder, bottleneck": levels[-1], "decoder, first block": seen[0]}


def scored(logits: Float[Tensor, "batch 2 height width"], *, scale: Scale, top_pixels: int) -> AnomalyOutput:
    """Map and image score (section 4.2)."""
    found = anomaly_probability(logits) if scale == "probability" else logits[:, 1] - logits[:, 0]
    pixels = found.flatten(1)
    highest = torch.topk(pixels, min(top_pixels, pixels.shape[1]), dim=1).values
    return AnomalyOutput(found, highest.mean(dim=1))


SHOWN = 4
NODES = 3
"""Nodes of each image whose neighbours are drawn."""
LEAST_SIDE = 256
NODE_COLOUR, NEIGHBOUR_COLOUR = (0, 200, 0), (230, 30, 30)

Picture = NDArray[np.uint8]
Example = tuple[Picture, Picture, Picture]


def as_input(examples: Sequence[Example], info: BackboneInfo) -> Float[Tensor, "batch 3 height width"]:
    """The simulated images as the encoder sees them."""
    pictures = np.stack([synthetic for _, _, synthetic in examples]).astype(np.float32) / 255
    values = (pictures - np.array(info.mean, np.float32)) / np.array(info.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


@torch.no_grad()
def reconstructions(generator: Generator, batch: InpaintingBatch, info: BackboneInfo) -> Pictures:
    """Good images, what GPT-Net saw of them, and what it painted from all levels and from the bottleneck alone.

    With batch statistics, as it was trained: the encoder's running ones are those of whole images by now.
    """
    found = copy.deepcopy(generator).train()(batch.masked)
    columns = [
        ("good image", batch.images),
        ("what was seen", batch.masked),
        ("reconstruction", found.final),
        ("from the bottleneck", found.auxiliary),
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


def simulated(examples: Sequence[Example], maps: Float[Tensor, "batch height width"]) -> Pictures:
    """Simulated anomalies, their masks, and what the trained SegNet says of them; 0 is black, the highest white."""
    scale = max(float(maps.max() - maps.min()), 1e-12)
    said = np.rint(((maps - maps.min()) / scale * 255).numpy()).astype(np.uint8)
    pictures = [
        pair
        for (good, mask, synthetic), found in zip(examples, said, strict=True)
        for pair in (("good image", good), ("simulated anomaly", synthetic), ("mask", mask), ("SegNet's map", found))
    ]
    return Pictures(
        "Simulated anomalies",
        "Structural and logical anomalies as SegNet learns from them, and its own map of them, on one scale.",
        pictures,
        group=4,
    )


def neighbours(examples: Sequence[Example], graph: Graph, grid: Grid) -> Pictures:
    """The graph around a few nodes, as in the paper's Fig. 8: the node in green, its neighbours in red."""
    assert graph.neighbours is not None
    pictures = []
    for number, (_, _, synthetic) in enumerate(examples):
        for node in _spread(grid):
            drawn = _marked(synthetic, grid, node, graph.neighbours[number, node].tolist())
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
    values = image.numpy().transpose(1, 2, 0) * np.array(info.std) + np.array(info.mean)
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


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
            novelty_weight=config.novelty_weight,
        )

    def findings(self) -> Mapping[str, str | float]:
        return self._findings

    @torch.no_grad()
    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        found = list[Diagnostic]()
        if self.pretraining is not None:
            batch = next(iter(self._masked(data).epoch(self.config.pretraining_epochs)))
            found.append(reconstructions(self.pretraining.generator, batch, self.backbone.info))
        examples = self._source(self._seen(data)).examples(SHOWN)
        images = as_input(examples, self.backbone.info)
        found.append(simulated(examples, self.network()(images).map))
        block = self.segmentation.network.sg_block
        if block is not None and block.has_graph:
            graph = block.graph(self.segmentation.network.norms[-1](self.encoder(images)[-1]))
            found.append(neighbours(examples, graph, self.grids[-1]))
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
            chosen = sample_coreset(maps, size, self.seed, purpose="slsg memory")
            found |= {f"features {level}": chosen.features, f"unit {level}": typical_peak(chosen, maps)}
        return found

    def _remember(self, tensors: dict[str, Tensor]) -> None:
        for level in self.config.remembered:
            memory = self.segmentation.network.memories[str(level)]
            assert isinstance(memory, MemoryBank)
            memory.remember(tensors[f"features {level}"], tensors[f"unit {level}"])

    def _seen(self, data: TrainingData) -> TrainingData:
        """The data as the encoder gives it, or as pixels where its statistics still change."""
        if self.config.encoder_statistics == "batch":
            return data.through(pixels_of(self.backbone))
        if self.config.frozen_backbone:
            return data
        form = f"{self.config.topology} {self.config.stem}"
        return data.through(trained_trunk(self.encoder, self.backbone, self.config.image_size, form))

    def _source(self, data: TrainingData) -> SyntheticSource:
        recipe, foreground, self._findings = chosen_simulation(self.config, data.dataset, data.category)
        return data.synthetic(recipe, foreground, self.grids[0], match_grey=self.config.match_grey)

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
