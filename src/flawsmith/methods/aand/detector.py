"""Detectors of AAND: discrepancy between advanced teacher and student, or the gates alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone
from flawsmith.methods.aand.amplification import Amplifier, Amplifiers, Map
from flawsmith.methods.aand.losses import cosine_distance
from flawsmith.methods.aand.student import ConvNorm, Student
from flawsmith.methods.base import AnomalyOutput, Detector
from flawsmith.methods.layers.postprocess import UpsampleAndSmooth
from flawsmith.methods.layers.score_norm import ScoreMap, ScoreMapDetector


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
