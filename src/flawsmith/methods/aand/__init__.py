"""AAND, and reverse distillation (RD4AD) as its base.

Stage 1 trains residual amplifiers on forged flaws, stage 2 a student that reconstructs the amplified features of normal
images; with both ideas switched off the same code is RD4AD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.methods.aand import diagnostics as shows
from flawsmith.methods.aand.amplification import Amplifiers
from flawsmith.methods.aand.batches import AdvancedTeacher, AmplificationBatches
from flawsmith.methods.aand.config import PRESETS, RD4AD_PRESETS, AANDConfig
from flawsmith.methods.aand.detector import DiscrepancyDetector, FusedLevels, GateDetector
from flawsmith.methods.aand.published_foregrounds import published_foreground
from flawsmith.methods.aand.stages import AmplificationModule, DistillationModule
from flawsmith.methods.aand.student import Student, layout_for, reverse_student
from flawsmith.methods.aand.tokens import token_student
from flawsmith.methods.base import ForgedSource, LightningStage, Method, MethodConfig, Stage, TrainingData
from flawsmith.methods.diagnostics import Diagnostic, forged_flaws
from flawsmith.methods.layers.finish import Finish
from flawsmith.methods.layers.patch_batches import PatchBatches, Sampling
from flawsmith.methods.registry import register
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import find_recipe

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
            if config.forges:
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
            found.append(LightningStage("amplification", first, self._forged_batches, first.epochs, completes=alone))
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
        if not self.config.forges:
            return ()
        source = self._forged(data)
        examples = source.examples(SHOWN_FLAWS)
        rows = np.unique(np.linspace(0, len(data) - 1, SHOWN_FLAWS).round().astype(int))  # those of the examples
        (forged,) = source.batches([rows], 0)
        detector = self._finish.applied(self._detector())
        bank, detector.bank = detector.bank, None
        with torch.no_grad():
            maps = {f"level {n}": one for n, one in enumerate(detector.score_maps(forged.levels), start=1)}
            if bank is not None:
                maps["memory bank"] = bank(forged.levels)
        return [*shows.charts(self.config), shows.level_pictures(examples, maps), forged_flaws(examples)]

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

    def _forged(self, data: TrainingData) -> ForgedSource:
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
        return data.forged(recipe, foreground, self.grids[0], match_grey=config.match_grey)

    def _forged_batches(self, data: TrainingData) -> AmplificationBatches:
        config = self.config
        sampling = Sampling(config.batch_size, config.amplification_steps)
        images = PatchBatches(data.features(), sampling, seed=self.seed, purpose="amplification")
        return AmplificationBatches(
            images, self._forged(data), share=config.cell_share, refresh=config.refresh, seed=self.seed
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
