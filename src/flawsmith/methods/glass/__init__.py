"""GLASS: global and local anomaly co-synthesis strategy (Chen et al., ECCV 2024).

A discriminator learns to tell adapted normal features from anomalies of two kinds: global ones (GAS), normal features
with Gaussian noise that are moved by gradient ascent and truncated projection, and local ones (LAS), features of
images on which flaws were forged. The projection assumes that normal features lie near a manifold or within a
hypersphere; a look at the spectrum of the mean training image decides between the two. Equations are those of the
paper; where the released code differs, the presets ``paper`` and ``official`` do, and docs/methods/glass.md lists every
difference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.features.backbones import Backbone
from flawsmith.methods.base import (
    LightningStage,
    Method,
    MethodConfig,
    SinglePass,
    Stage,
    TrainingData,
)
from flawsmith.methods.diagnostics import Diagnostic, forged_flaws
from flawsmith.methods.glass import diagnostics as shows
from flawsmith.methods.glass.config import PRESETS, GLASSConfig
from flawsmith.methods.glass.hypothesis import decide, evidence
from flawsmith.methods.glass.module import GLASSModule
from flawsmith.methods.layers.centers import mean_embedding
from flawsmith.methods.layers.finish import Finish
from flawsmith.methods.layers.forged_batches import ForgedBatches
from flawsmith.methods.layers.patch_batches import PatchBatches, Sampling
from flawsmith.methods.layers.patch_detector import PositionDetector
from flawsmith.methods.registry import register
from flawsmith.synthesis.recipes import find_recipe

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
        shown = shows.charts(projects=config.gas == "projected", spherical=module.hypothesis == "hypersphere")
        batches = self._batches(data)
        batch = next(iter(batches.epoch(config.epochs * config.refresh)))  # the start of a pool
        with torch.no_grad():  # on a copy: an ascent leaves its traces in the running statistics
            found = copy.deepcopy(module).train().branches(batch)
        gas = None if found.gas is None else found.gas.features
        las = None if found.las is None else found.las[found.anomalous]
        shown.append(shows.cloud(found.normal, gas, las, self.seed))
        if batches.forged is not None:
            shown.append(forged_flaws(batches.forged.examples(SHOWN_FLAWS)))
        return shown if self._mean_image is None else [shows.judged(self._mean_image), *shown]

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

    def _batches(self, data: TrainingData) -> ForgedBatches:
        config = self.config
        normal, stride = PatchBatches(data.features(), config.sampling, seed=self.seed), self.backbone.info.strides[0]
        if not config.las:
            return ForgedBatches(normal, None, self.grid, stride)
        recipe = find_recipe(config.recipe)
        forged = data.forged(recipe, config.foreground, self.grid, match_grey=config.match_grey)
        return ForgedBatches(normal, forged, self.grid, stride, refresh=config.refresh, seed=self.seed)
