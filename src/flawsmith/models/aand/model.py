"""AAND, and reverse distillation (RD4AD) as its base.

Stage 1 trains residual amplifiers on synthetic flaws, stage 2 a student that reconstructs the amplified features of
normal images; with both ideas switched off the same code is RD4AD.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.models.aand.config import (
    CONDITIONS,
    FUSION_PRESETS,
    PRESETS,
    RD4AD_CONDITIONS,
    RD4AD_PRESETS,
    AANDConfig,
    published_foreground,
)
from flawsmith.models.aand.functional import Map, anomaly_map, rate_factor, without_mean
from flawsmith.models.aand.networks import (
    Amplifier,
    Amplifiers,
    ConvNorm,
    Student,
    layout_for,
    reverse_student,
    token_student,
)
from flawsmith.models.aand.training import (
    AdvancedTeacher,
    AmplificationBatches,
    StageTraining,
    SyntheticCells,
    adam,
    amplification_losses,
    distillation_losses,
    random_cells,
)
from flawsmith.models.base import (
    AnomalyOutput,
    Conditions,
    FeatureSource,
    ModelConfig,
    Stage,
    SyntheticImages,
    SyntheticSource,
    TrainingData,
    TrainingStage,
)
from flawsmith.models.components.batches import FeatureBatch, FeatureBatches, Sampling
from flawsmith.models.components.fast import cosine_distance_map
from flawsmith.models.components.score_maps import ScoreMap, ScoreMapModel, UpsampleAndSmooth
from flawsmith.models.diagnostics import Diagnostic, MetricChart, Pictures, synthetic_flaws
from flawsmith.models.registry import register
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import find_recipe

SHOWN_FLAWS = 4
SHOWN_HEIGHT = 160

FlawedImages = tuple[Float[Tensor, "batch 3 height width"], Bool[Tensor, "batch height width"]]


@register
class AAND(ScoreMapModel):
    """AAND: the cosine distance between an advanced teacher and its student at every position, level by level.

    Args:
        config: every number of the method.
        backbone: the frozen teacher; levels each half the one before, or those of a plain transformer.
        seed: of the initial weights and of every draw.

    Attributes:
        smooth: brings each level's map to the input's size.
        amplifiers: what makes the teacher an advanced one; None leaves it as it is.
        student: reconstructs the teacher's features; None where the gates' weights are the map (Table V a).

    Raises:
        FlawsmithError: the student cannot follow the backbone's levels at this input size.

    Example:
        >>> model = AAND.from_preset("fast", backbone="efficientnet_lite0", image_size=(64, 96)).eval()
        >>> anomaly_map, score = model(torch.rand(2, 3, 64, 96))
        >>> anomaly_map.shape, score.shape
        (torch.Size([2, 64, 96]), torch.Size([2]))
    """

    name: ClassVar[str] = "aand"
    suits: ClassVar[str] = "the best of the published methods"
    training_time: ClassVar[str] = "4 to 5 min"
    paper: ClassVar[str] = (
        "Tang et al., Advancing Pre-trained Teacher: Towards Robust Feature Discrepancy for Anomaly Detection, TIP 2026"
    )
    licence: ClassVar[str | None] = None
    Config: ClassVar[type[ModelConfig]] = AANDConfig
    presets: ClassVar[Mapping[str, ModelConfig]] = PRESETS
    conditions: ClassVar[Mapping[str, Conditions]] = CONDITIONS

    config: AANDConfig
    amplifiers: Amplifiers | None
    student: Student | None

    def __init__(self, config: AANDConfig, backbone: Backbone, seed: int = 0) -> None:
        count = config.student_levels or len(backbone.channels)
        super().__init__(config, backbone, seed, maps=count, comparison=config.score_norm)
        self.grids = backbone.grids(config.image_size)[:count]
        self.smooth = nn.ModuleList(
            UpsampleAndSmooth(grid, config.image_size, sigma=config.sigma, align_corners=True) for grid in self.grids
        )
        self.amplifiers = self.student = None
        self._findings: Mapping[str, str | float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "aand amplifiers"))
            if config.synthesizes:
                self.amplifiers = Amplifiers(
                    backbone.channels,
                    self.grids,
                    components=config.amplification,
                    memories=config.memories,
                    temperature=config.temperature,
                    residual=config.residual,
                )
            torch.manual_seed(derived_seed(seed, "aand student"))
            if config.amplification != "gate":
                self.student = self._make_student()

    def advanced(self, levels: Sequence[Map]) -> list[Map]:
        """The advanced teacher's level maps from the backbone's, those that the student follows."""
        return list(levels[: len(self.grids)]) if self.amplifiers is None else self.amplifiers(levels)

    def raw_maps(self, levels: Sequence[Map]) -> list[ScoreMap]:
        """Discrepancies of teacher and student, or the gates' weights where there is no student."""
        if self.student is None:
            return [gate[:, 0] for gate in self._gates(levels)]
        teacher = self.advanced(levels)
        return [cosine_distance_map(*pair) for pair in zip(teacher, self.student(teacher), strict=True)]

    def from_levels(self, levels: Sequence[Map]) -> AnomalyOutput:
        """The levels' maps, up-sampled between corner centres, smoothed and summed; the score is the maximum.

        With ``score_share`` the score is that of the memory bank alone, which ranks images better than regions, and the
        map may leave out how strange the image is as a whole (``mean_share``).
        """
        maps = self.score_maps(levels)
        if self.config.score_share is None or self.bank is None:
            fused = anomaly_map(maps, self.smooth)
            return AnomalyOutput(fused, fused.amax(dim=(1, 2)))
        if self.config.mean_share > 0:  # before they are enlarged: sums of fewer numbers, which half precision holds
            maps = [without_mean(scores, self.config.mean_share) for scores in maps]
        evidence = self.bank.evidence(levels, "score").flatten(1)
        count = max(1, round(self.config.score_share * evidence.shape[1]))
        return AnomalyOutput(anomaly_map(maps, self.smooth), evidence.topk(count, dim=1).values.mean(dim=1))

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """The teacher's levels, each beside what its amplification makes of it (Fig. 6)."""
        if self.student is None:  # gates see the backbone's levels alone
            return {}
        levels = self.backbone(images)
        maps: dict[str, Tensor] = {}
        pairs = zip(levels[: len(self.grids)], self.advanced(levels), strict=True)
        for number, (level, advanced) in enumerate(pairs, start=1):
            maps[f"teacher, level {number}"] = level
            if self.amplifiers is not None:
                maps[f"advanced teacher, level {number}"] = advanced
        return maps

    def export_form(self) -> Self:
        """The same with the student's batch norms folded into its convolutions."""
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        for module in folded.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        bank = folded.bank
        del folded.bank
        folded.bank = bank  # last: exported models keep the order of their tensors
        return folded

    def _gates(self, levels: Sequence[Map]) -> Iterator[Tensor]:
        assert self.amplifiers is not None
        for amplifier, level in zip(self.amplifiers, levels, strict=True):
            assert isinstance(amplifier, Amplifier) and amplifier.gate is not None
            yield amplifier.gate(level)

    def amplification_losses(self, batch: SyntheticCells | FlawedImages) -> dict[str, Tensor]:
        """L_1 of synthetic flaws by name, ``loss`` the weighted sum; figures of gates and residuals beside it.

        Args:
            batch: level maps of images with synthetic flaws and the cells that belong to flaws; or such images,
                normalised, and their masks.
        """
        assert self.amplifiers is not None, "there is a first stage unless amplification is none"
        if isinstance(batch, tuple):
            images, masks = batch
            with torch.no_grad():
                levels = self.backbone(images)
            flaws = masks.numpy(force=True)
            seen = SyntheticImages(levels, flaws, np.ones_like(flaws))
            batch = SyntheticCells.of(seen, share=self.config.cell_share).to(images.device)
        return amplification_losses(
            self.amplifiers, batch, self.config, random_cells(self.config, self.seed, batch.step)
        )

    def losses(self, batch: FeatureBatch | Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """L_2 of normal images by name, ``loss`` the sum.

        Args:
            batch: the advanced teacher's level maps, or normalised images, which then pass the teacher here.

        Example:
            >>> model = RD4AD.from_preset("fast", image_size=(64, 64), student_widths=(8, 8, 8))
            >>> (optimizer,) = model.make_optimizers()
            >>> model.losses(torch.rand(2, 3, 64, 64))["loss"].backward()
            >>> optimizer.step()
        """
        assert self.student is not None, "gates alone have no student"
        if isinstance(batch, FeatureBatch):
            teacher = batch.levels[: len(self.grids)]
        else:
            with torch.no_grad():
                teacher = self.advanced(self.backbone(batch))
        return distillation_losses(self.student, teacher, hard_positions=self.config.hard_positions)

    def make_amplification_optimizers(self) -> list[torch.optim.Optimizer]:
        """What trains the amplifiers."""
        assert self.amplifiers is not None, "there is a first stage unless amplification is none"
        return [adam(self.amplifiers.parameters(), self.config)]

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """What trains the student; the amplifiers stay as they are."""
        assert self.student is not None, "gates alone have no student"
        return [adam(self.student.parameters(), self.config)]

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        config = self.config
        if self.amplifiers is not None:
            epochs = config.amplification_epochs
            self.amplifiers.to(memory_format=torch.channels_last)
            module = StageTraining(
                self, self.amplification_losses, self.make_amplification_optimizers, schedule=self._schedule(epochs)
            )
            batches = self._synthetic_batches(data)
            yield TrainingStage("amplification", module, batches, epochs, completes=self.student is None)
        if self.student is not None:
            self.student.to(memory_format=torch.channels_last)
            module = StageTraining(self, self.losses, self.make_optimizers, schedule=self._schedule(config.epochs))
            yield TrainingStage("distillation", module, self._normal_batches(data), config.epochs)
        yield from self.post_processing(data)

    def _schedule(self, epochs: int) -> Callable[[int], float]:
        config = self.config
        milestones = [share * epochs for share in config.lr_milestones]
        return lambda epoch: rate_factor(epoch, factor=config.lr_decay, milestones=milestones)

    def _synthetic_batches(self, data: TrainingData) -> AmplificationBatches:
        config = self.config
        sampling = Sampling(config.batch_size, config.amplification_steps)
        images, source = (
            FeatureBatches(data.features(), sampling, seed=self.seed, purpose="amplification"),
            self.training_flaws(data),
        )
        assert source is not None, "there is a first stage unless amplification is none"
        return AmplificationBatches(images, source, share=config.cell_share, refresh=config.refresh, seed=self.seed)

    def _normal_batches(self, data: TrainingData) -> FeatureBatches:
        sampling = Sampling(self.config.batch_size, self.config.steps_per_epoch)
        teacher: FeatureSource = data.features()
        if self.amplifiers is not None:
            teacher = AdvancedTeacher(teacher, self.amplifiers)
        return FeatureBatches(teacher, sampling, seed=self.seed, purpose="distillation")

    def training_flaws(self, data: TrainingData) -> SyntheticSource | None:
        if not self.config.synthesizes:
            return None
        config, foreground, origin = self.config, self.config.foreground, "given"
        if foreground == "published":
            published = published_foreground(data.dataset, data.category)
            foreground = published or Foreground(mode="auto")
            origin = "published" if published else f"nothing published for {data.dataset}/{data.category}"
        self._findings = {"foreground": f"{foreground.mode} ({origin})"}
        recipe = find_recipe(config.recipe)
        if config.normal_share is not None:
            recipe = recipe.model_copy(update={"normal_share": config.normal_share})
        return data.synthetic(recipe, foreground, self.grids[0], match_grey=config.match_grey)

    def findings(self) -> Mapping[str, str | float]:
        return {**super().findings(), **self._findings}

    @torch.no_grad()
    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        source = self.training_flaws(data)
        if source is None:
            return ()
        examples = source.examples(SHOWN_FLAWS)
        rows = np.unique(np.linspace(0, len(data) - 1, SHOWN_FLAWS).round().astype(int))  # those of the examples
        (synthetic,) = source.batches([rows], 0)
        device = next(self.parameters()).device
        levels = [level.to(device) for level in synthetic.levels]  # another engine may have left them elsewhere
        maps = {f"level {n}": scores for n, scores in enumerate(self.eval().normalised_maps(levels), start=1)}
        if self.bank is not None and self.bank.counts_on_map:
            maps["memory bank"] = self.bank(levels)
        return [*charts(self.config), level_pictures(examples, maps), synthetic_flaws(examples)]

    def _make_student(self) -> Student:
        config, count = self.config, len(self.grids)
        strides, channels = self.backbone.info.strides[:count], self.backbone.channels[:count]
        if len(strides) > 1 and len(set(self.grids)) == 1:
            return token_student(channels, self.grids[0])
        if len(strides) < 2 or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise FlawsmithError(
                f"{self.name} needs levels of which each is half as fine as the one before, not strides {strides}: "
                "--set strides=[4,8,16]"
            )
        self._check_grids()
        layout = layout_for(self.backbone.info.architecture, widths=config.student_widths, blocks=config.student_blocks)
        if len(layout.decoder) != len(strides):
            raise FlawsmithError(
                f"{self.name} on {len(strides)} levels needs as many numbers: --set student_blocks=[...]"
            )
        return reverse_student(channels, self.grids, layout)

    def _check_grids(self) -> None:
        """Refuse what the student's convolutions of stride 2 cannot follow, and maps too small for a batch norm."""
        halves = all(
            coarse == -(-fine // 2) for pair in pairwise(self.grids) for fine, coarse in zip(*pair, strict=True)
        )
        if not halves or min(self.grids[-1]) < 3:
            unit = 2 * self.backbone.info.strides[-1]
            height, width = (max(2, round(side / unit)) * unit for side in self.config.image_size)
            raise FlawsmithError(
                f"{self.name} cannot follow the levels {self.grids} of this backbone at {self.config.image_size}: "
                f"--set image_size=[{height},{width}]"
            )


@register
class RD4AD(AAND):
    """Reverse distillation: a plain teacher, and the loss on flattened maps alone.

    Example:
        >>> model = RD4AD.from_preset("fast", image_size=(64, 64)).eval()
        >>> model(torch.rand(1, 3, 64, 64)).map.shape
        torch.Size([1, 64, 64])
    """

    name: ClassVar[str] = "rd4ad"
    suits: ClassVar[str] = "plain reverse distillation, to compare with"
    training_time: ClassVar[str] = "1 to 2 min"
    paper: ClassVar[str] = "Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022"
    presets: ClassVar[Mapping[str, ModelConfig]] = RD4AD_PRESETS
    conditions: ClassVar[Mapping[str, Conditions]] = RD4AD_CONDITIONS


@register
class Fusion(AAND):
    """Memories of several scales for the verdict, and their sum with reverse distillation for the map.

    In no paper. The image score is the distance to what memories of good images hold, over patches of several sizes and
    down to stride 32; the map adds memories of whitened features and the discrepancy of RD4AD's student, which sees
    finer. docs/methods/fusion.md has what each part gives.

    Example:
        >>> model = Fusion.from_preset("fast", image_size=(64, 64)).eval()
        >>> [tuple(values.shape) for values in model(torch.rand(1, 3, 64, 64))]
        [(1, 64, 64), (1,)]
    """

    name: ClassVar[str] = "fusion"
    suits: ClassVar[str] = "to begin with: finds most"
    training_time: ClassVar[str] = "2 to 4 min"
    paper: ClassVar[str] = (
        "in no paper; after Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, and Deng and "
        "Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022"
    )
    presets: ClassVar[Mapping[str, ModelConfig]] = FUSION_PRESETS
    conditions: ClassVar[Mapping[str, Conditions]] = MappingProxyType({})


def charts(config: AANDConfig) -> list[Diagnostic]:
    """Residual intensity and the gates' precision over the epochs of the first stage."""
    diagnostics: list[Diagnostic] = []
    if config.amplification in ("both", "generator", "contrastive"):
        diagnostics.append(
            MetricChart(
                "Residual intensity",
                "Mean square of the residuals over positions and channels, weighted by the gate as in inspection, mean "
                "over the levels: on synthetic cells it should grow, on normal ones stay near zero (AAND, Fig. 8).",
                "mean square",
                {"residual_anomalous": "synthetic cells", "residual_normal": "normal cells"},
            )
        )
    if config.amplification in ("both", "gate"):
        diagnostics.append(
            MetricChart(
                "Gates on synthetic flaws",
                "Of the cells with a gate above one half, the share that is synthesized (precision), and of the "
                "synthetic cells the share with such a gate (recall); training batches, mean over the levels.",
                "share of cells",
                {"gate_precision": "precision", "gate_recall": "recall"},
            )
        )
    return diagnostics


def level_pictures(
    examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]], maps: Mapping[str, Tensor]
) -> Pictures:
    """The maps that are summed, on synthetic flaws, beside the flaw and its mask.

    Args:
        examples: good image, mask and synthetic image of each.
        maps: low-resolution maps of the synthetic images by what they are called, each on a scale of its own.
    """
    scaled = {name: _stretched(scores.float().numpy(force=True)) for name, scores in maps.items()}
    pictures = []
    for number, (_, mask, synthetic) in enumerate(examples):
        pictures += [("synthetic flaw", synthetic), ("mask", mask)]
        pictures += [(name, _enlarged(picture[number])) for name, picture in scaled.items()]
    return Pictures(
        "Anomaly maps by level",
        "Discrepancy of the finest to the coarsest level on synthetic flaws, and distances to the memory bank where "
        "there is one; white is the map's highest value here.",
        pictures,
        group=2 + len(scaled),
    )


def _stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, SHOWN_HEIGHT // picture.shape[0])
    size = (picture.shape[1] * times, picture.shape[0] * times)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST), np.uint8)
