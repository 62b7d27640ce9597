"""AAND, and reverse distillation (RD4AD) as its base.

Stage 1 trains residual amplifiers on synthetic flaws, stage 2 a student that reconstructs the amplified features of
normal images; with both ideas switched off the same code is RD4AD.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.models.aand.config import PRESETS, RD4AD_PRESETS, AANDConfig
from flawsmith.models.aand.functional import cosine_distance
from flawsmith.models.aand.networks import (
    Amplifier,
    Amplifiers,
    ConvNorm,
    Map,
    Student,
    layout_for,
    reverse_student,
    token_student,
)
from flawsmith.models.aand.training import (
    AdvancedTeacher,
    AmplificationBatches,
    AmplificationModule,
    DistillationModule,
)
from flawsmith.models.base import (
    AnomalyOutput,
    Detector,
    Diagnostic,
    LightningStage,
    Method,
    MethodConfig,
    MetricChart,
    Pictures,
    Stage,
    SyntheticSource,
    TrainingData,
    synthetic_flaws,
)
from flawsmith.models.components.detectors import ScoreMap, ScoreMapDetector, UpsampleAndSmooth
from flawsmith.models.components.patch_learner import PatchBatches, Sampling
from flawsmith.models.components.postprocessing import Finish
from flawsmith.models.registry import known_dataset, plain, register
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import find_recipe


class FusedLevels(ScoreMapDetector):
    """One low-resolution map a level, up-sampled between corner centres, summed and smoothed; the score is the maximum.

    Args:
        backbone: the frozen teacher.
        image_size: (height, width) of the network's input.
        sigma: of the Gaussian in pixels of the input.
    """

    def __init__(self, backbone: Backbone, image_size: tuple[int, int], *, sigma: float) -> None:
        super().__init__(backbone)
        self.smooth = nn.ModuleList(
            UpsampleAndSmooth(grid, image_size, sigma=sigma, align_corners=True) for grid in backbone.grids(image_size)
        )

    def from_levels(self, levels: Sequence[Map]) -> AnomalyOutput:
        """Map and score from the backbone's level maps (Eq. 14)."""
        maps = [smooth(low) for smooth, low in zip(self.smooth, self.score_maps(levels), strict=True)]
        fused = torch.stack(maps).sum(dim=0)
        return AnomalyOutput(fused, fused.amax(dim=(1, 2)))


class DiscrepancyDetector(FusedLevels):
    """Cosine distance between advanced teacher and student at every position (Eq. 13).

    Args:
        backbone: see :class:`FusedLevels`.
        amplifiers: what makes the teacher an advanced one; None leaves it as it is.
        student: reconstructs the teacher's features.
        image_size: see :class:`FusedLevels`.
        sigma: see :class:`FusedLevels`.
    """

    def __init__(
        self,
        backbone: Backbone,
        amplifiers: Amplifiers | None,
        student: Student,
        image_size: tuple[int, int],
        *,
        sigma: float,
    ) -> None:
        super().__init__(backbone, image_size, sigma=sigma)
        self.amplifiers, self.student = amplifiers, student
        self.eval()

    def raw_maps(self, levels: Sequence[Map]) -> list[ScoreMap]:
        teacher = list(levels) if self.amplifiers is None else self.amplifiers(levels)
        return [cosine_distance(*pair) for pair in zip(teacher, self.student(teacher), strict=True)]

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """The teacher's levels, each beside what its amplification makes of it (Fig. 6)."""
        levels = self.backbone(images)
        advanced = None if self.amplifiers is None else self.amplifiers(levels)
        found: dict[str, Tensor] = {}
        for number, level in enumerate(levels):
            found[f"teacher, level {number + 1}"] = level
            if advanced is not None:
                found[f"advanced teacher, level {number + 1}"] = advanced[number]
        return found

    def folded(self) -> Detector:
        folded = copy.copy(self)
        folded._modules = {**self._modules, "student": copy.deepcopy(self.student)}
        for module in folded.student.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return folded.requires_grad_(False)


class GateDetector(FusedLevels):
    """The gates' weights as anomaly maps (paper, Table V a)."""

    def __init__(
        self, backbone: Backbone, amplifiers: Amplifiers, image_size: tuple[int, int], *, sigma: float
    ) -> None:
        super().__init__(backbone, image_size, sigma=sigma)
        self.amplifiers = amplifiers
        self.eval()

    def raw_maps(self, levels: Sequence[Map]) -> list[ScoreMap]:
        found = []
        for amplifier, level in zip(self.amplifiers, levels, strict=True):
            assert isinstance(amplifier, Amplifier) and amplifier.gate is not None
            found.append(amplifier.gate(level)[:, 0])
        return found


SHOWN_HEIGHT = 160


def charts(config: AANDConfig) -> list[Diagnostic]:
    """Residual intensity and the gates' precision over the epochs of the first stage."""
    found: list[Diagnostic] = []
    if config.amplification in ("both", "generator"):
        found.append(
            MetricChart(
                "Residual intensity",
                "Length of the residuals over that of the features, weighted by the gate as in inspection, mean over "
                "the levels: on synthetic cells it should grow, on normal ones stay near zero.",
                "share of the feature's length",
                {"residual_anomalous": "synthetic cells", "residual_normal": "normal cells"},
            )
        )
    if config.amplification in ("both", "gate"):
        found.append(
            MetricChart(
                "Gates on synthetic flaws",
                "Of the cells with a gate above one half, the share that is synthesized (precision), and of the "
                "synthetic cells the share with such a gate (recall); training batches, mean over the levels.",
                "share of cells",
                {"gate_precision": "precision", "gate_recall": "recall"},
            )
        )
    return found


def level_pictures(
    examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]], maps: Mapping[str, Tensor]
) -> Pictures:
    """The maps that are summed, on synthetic flaws, beside the flaw and its mask.

    Args:
        examples: good image, mask and synthetic image of each.
        maps: low-resolution maps of the synthetic images by what they are called, each on a scale of its own.
    """
    scaled = {name: _on_own_scale(one.float().cpu().numpy()) for name, one in maps.items()}
    pictures = []
    for number, (_, mask, synthetic) in enumerate(examples):
        pictures += [("synthetic flaw", synthetic), ("mask", mask)]
        pictures += [(name, _enlarged(one[number])) for name, one in scaled.items()]
    return Pictures(
        "Anomaly maps by level",
        "Discrepancy of the finest to the coarsest level on synthetic flaws, and distances to the memory bank where "
        "there is one; white is the map's highest value here.",
        pictures,
        group=2 + len(scaled),
    )


def _on_own_scale(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, SHOWN_HEIGHT // picture.shape[0])
    size = (picture.shape[1] * times, picture.shape[0] * times)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST), np.uint8)


# Grey level after smoothing, whether darker is foreground, and the categories. The script means cable where it says
# bottle's disc, but misspells it: both get the disc here.
_THRESHOLDS: Mapping[str, tuple[tuple[float, bool, str], ...]] = MappingProxyType(
    {
        "mvtec": (
            (0, False, "carpet grid leather tile wood transistor"),
            (150, True, "capsule screw zipper"),
            (50, False, "hazelnut metal_nut pill toothbrush"),
        ),
        "visa": (
            (150, False, "candle cashew chewinggum fryum macaroni1 macaroni2 pcb1"),
            (100, False, "pcb2 pcb3 pipe_fryum"),
            (50, False, "pcb4"),
            (100, True, "capsules"),
        ),
        "mvtec_3d": ((50, False, "bagel cable_gland carrot cookie dowel peach potato rope"),),
    }
)
_DISC = Foreground(mode="disc", extent=(0.45, 0.45))
_BOX = Foreground(mode="box", extent=(0.35, 0.35))
_RULES: Mapping[tuple[str, str], Foreground] = MappingProxyType(
    {
        (dataset, plain(category)): Foreground(mode="threshold", level=level, inverted=inverted, pixels="file")
        for dataset, rules in _THRESHOLDS.items()
        for level, inverted, categories in rules
        for category in categories.split()
    }
    | {("mvtec", category): _DISC for category in ("bottle", "cable")}
    | {("mvtec_3d", category): _BOX for category in ("foam", "tire")}
)


def published_foreground(dataset: str, category: str) -> Foreground | None:
    """The released script's rule for a category, or None where there is none.

    Args:
        dataset: name of the data set or of its folder.
        category: name of the category.

    Example:
        >>> published_foreground("mvtec_anomaly_detection", "screw").level
        150.0
    """
    known = known_dataset(dataset)
    return None if known is None else _RULES.get((known, plain(category)))


SHOWN_FLAWS = 4


@register
class AAND(Method):
    """AAND on a frozen backbone."""

    name: ClassVar[str] = "aand"
    paper: ClassVar[str] = (
        "Tang et al., Advancing Pre-trained Teacher: Towards Robust Feature Discrepancy for Anomaly Detection, TIP 2026"
    )
    Config: ClassVar[type[MethodConfig]] = AANDConfig
    presets: ClassVar[Mapping[str, MethodConfig]] = PRESETS

    def __init__(self, config: AANDConfig, backbone: Backbone, seed: int) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.grids = backbone.grids(config.image_size)
        self.amplifiers: Amplifiers | None = None
        self.student: Student | None = None
        self._finish = Finish(config, config.score_norm, backbone.channels, seed)
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
                self.student = self._student()

    def stages(self) -> list[Stage]:
        config, found = self.config, list[Stage]()
        if self.amplifiers is not None:
            first = AmplificationModule(config, self.amplifiers, self.seed)
            alone = self.student is None
            found.append(LightningStage("amplification", first, self._synthetic_batches, first.epochs, completes=alone))
        if self.student is not None:
            second = DistillationModule(config, self.student, self.amplifiers)
            found.append(LightningStage("distillation", second, self._normal_batches, second.epochs))
        return found + self._finish.stages(self._detector)

    def network(self) -> FusedLevels:
        return self._finish.applied(self._detector())

    def _detector(self) -> FusedLevels:
        config = self.config
        if self.student is None:
            assert self.amplifiers is not None
            return GateDetector(self.backbone, self.amplifiers, config.image_size, sigma=config.sigma)
        return DiscrepancyDetector(self.backbone, self.amplifiers, self.student, config.image_size, sigma=config.sigma)

    def findings(self) -> Mapping[str, str | float]:
        return self._findings

    def diagnostics(self, data: TrainingData) -> Sequence[Diagnostic]:
        if not self.config.synthesizes:
            return ()
        source = self._synthetic(data)
        examples = source.examples(SHOWN_FLAWS)
        rows = np.unique(np.linspace(0, len(data) - 1, SHOWN_FLAWS).round().astype(int))  # those of the examples
        (synthetic,) = source.batches([rows], 0)
        detector = self._finish.applied(self._detector())
        bank, detector.bank = detector.bank, None
        with torch.no_grad():
            maps = {f"level {n}": one for n, one in enumerate(detector.score_maps(synthetic.levels), start=1)}
            if bank is not None:
                maps["memory bank"] = bank(synthetic.levels)
        return [*charts(self.config), level_pictures(examples, maps), synthetic_flaws(examples)]

    def _student(self) -> Student:
        config, strides = self.config, self.backbone.info.strides
        if len(strides) > 1 and len(set(self.grids)) == 1:
            return token_student(self.backbone.channels, self.grids[0])
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
        return reverse_student(self.backbone.channels, self.grids, layout)

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

    def _synthetic(self, data: TrainingData) -> SyntheticSource:
        config, foreground = self.config, self.config.foreground
        source = "given"
        if foreground == "published":
            found = published_foreground(data.dataset, data.category)
            foreground = found or Foreground(mode="auto")
            source = "published" if found else f"nothing published for {data.dataset}/{data.category}"
        self._findings = {"foreground": f"{foreground.mode} ({source})"}
        recipe = find_recipe(config.recipe)
        if config.normal_share is not None:
            recipe = recipe.model_copy(update={"normal_share": config.normal_share})
        return data.synthetic(recipe, foreground, self.grids[0], match_grey=config.match_grey)

    def _synthetic_batches(self, data: TrainingData) -> AmplificationBatches:
        config = self.config
        sampling = Sampling(config.batch_size, config.amplification_steps)
        images = PatchBatches(data.features(), sampling, seed=self.seed, purpose="amplification")
        return AmplificationBatches(
            images, self._synthetic(data), share=config.cell_share, refresh=config.refresh, seed=self.seed
        )

    def _normal_batches(self, data: TrainingData) -> PatchBatches:
        sampling, features = Sampling(self.config.batch_size, self.config.steps_per_epoch), data.features()
        teacher = features if self.amplifiers is None else AdvancedTeacher(features, self.amplifiers)
        return PatchBatches(teacher, sampling, seed=self.seed, purpose="distillation")


@register
class RD4AD(AAND):
    """Reverse distillation: a plain teacher, and the loss on flattened maps alone."""

    name: ClassVar[str] = "rd4ad"
    paper: ClassVar[str] = "Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022"
    presets: ClassVar[Mapping[str, MethodConfig]] = RD4AD_PRESETS
