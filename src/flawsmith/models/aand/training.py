"""What both stages of AAND learn from, and their losses: first the teacher's amplifiers, then the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from flawsmith.data.seeding import Shard, derived_seed
from flawsmith.features.patch_embedding import as_rows
from flawsmith.losses import balanced_focal_loss
from flawsmith.models.aand.config import AANDConfig
from flawsmith.models.aand.functional import (
    Cells,
    Map,
    WeightMap,
    amplification_stage_loss,
    amplify,
    amplify_by_truth,
    cells_of,
    contrastive_loss,
    distillation_stage_loss,
    gate_precision,
    gate_recall,
    residual_intensity,
    worst_mean,
)
from flawsmith.models.aand.networks import Amplifier, Amplifiers, Student
from flawsmith.models.base import ALONE, FeatureSource, SyntheticImages, SyntheticSource, TrainingModule, full_precision
from flawsmith.models.components.batches import BatchPool, DeviceBatch, FeatureBatches, Step
from flawsmith.models.components.fast import amplification_loss, cosine_distances

TEACHER_BYTES = 512 * 2**20
"""Most memory that the advanced teacher's maps of training images may take."""
RECORDED_CELLS = 128
"""Normal cells of a level and step whose residuals are computed for the record alone."""

CellRows = Int[Tensor, " row"]
CellDraw = Callable[[Cells, Cells, int], tuple[CellRows, CellRows]]
"""From anomalous cells, cells of the foreground and a level's number to the normal and anomalous cells of L_A."""


@dataclass(frozen=True)
class SyntheticCells(DeviceBatch):
    """Synthetic images as the teacher sees them.

    Attributes:
        levels: level maps, finest first.
        anomalous: cells of each level that belong to a flaw.
        foreground: cells of each level that belong to the foreground.
        fallback_rate: share of the images whose mask is a fall-back, in [0, 1].
        step: of which draws are a function; None draws from torch's global generator.
    """

    levels: list[Tensor]
    anomalous: list[Cells]
    foreground: list[Cells]
    fallback_rate: float = 0.0
    step: Step | None = None

    @classmethod
    def of(cls, synthetic: SyntheticImages, *, share: float) -> SyntheticCells:
        """Masks reduced to cells, which is all that a pool has to keep of them; see :func:`cells_of`."""
        grids = [(int(level.shape[-2]), int(level.shape[-1])) for level in synthetic.levels]
        masks, foregrounds = torch.from_numpy(synthetic.masks), torch.from_numpy(synthetic.foregrounds)
        return cls(
            synthetic.levels,
            [cells_of(masks, grid, share=share) for grid in grids],
            [cells_of(foregrounds, grid, share=share) for grid in grids],
            synthetic.fallback_rate,
        )


class AmplificationBatches:
    """The batches of the first stage.

    Args:
        images: draws the images to synthesize on.
        synthetic: synthesizes on them.
        share: see :func:`cells_of`.
        refresh: epochs that a pool serves.
        seed: of the pool's order.
    """

    def __init__(
        self, images: FeatureBatches, synthetic: SyntheticSource, *, share: float, refresh: int, seed: int
    ) -> None:
        self.synthetic, self._count = synthetic, len(images)
        self._pool = BatchPool(
            synthetic,
            lambda epoch: list(images.images(epoch)),
            lambda batch: SyntheticCells.of(batch, share=share),
            refresh=refresh,
            seed=seed,
        )

    def __len__(self) -> int:
        return self._count

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[SyntheticCells]:
        for number, cells in zip(shard.of(range(len(self))), self._pool.epoch(epoch, shard), strict=True):
            yield replace(cells, step=(epoch, number))


def random_subset(
    cells: Bool[Tensor, " cell"], count: int, generator: torch.Generator | None = None
) -> Int[Tensor, " row"]:
    """Indices of at most so many of the true cells, in random order.

    Example:
        >>> sorted(random_subset(torch.tensor([True, False, True]), 5).tolist())
        [0, 2]
    """
    indices = cells.nonzero()[:, 0]
    order = torch.randperm(len(indices), generator=generator)[:count]
    return indices[order.to(indices.device)]


def random_cells(config: AANDConfig, seed: int, step: Step | None) -> CellDraw:
    """Draws normal cells of the foreground and anomalous cells of a step, rows of the whole level.

    Args:
        config: how many at most.
        seed: of the run.
        step: of which, with the seed and the level, the draw is a function; None: of torch's global generator.
    """

    def draw(anomalous: Cells, foreground: Cells, level: int) -> tuple[CellRows, CellRows]:
        generator = None
        if step is not None:
            generator = torch.Generator().manual_seed(derived_seed(seed, "amplification cells", *step, level))
        normal = random_subset((~anomalous & foreground).flatten(), config.normal_cells, generator)
        return normal, random_subset(anomalous.flatten(), config.anomalous_cells, generator)

    return draw


def amplification_losses(
    amplifiers: Amplifiers, batch: SyntheticCells, config: AANDConfig, draw: CellDraw
) -> dict[str, Tensor]:
    """The first stage: gates learn which cells are anomalous, generators what makes them stand out more.

    The generator runs on the drawn anomalous cells alone: L_A sees no others, and where the truth weights the
    residuals, none of the others has a gradient.

    Args:
        amplifiers: what learns.
        batch: synthetic flaws.
        config: margins and weights.
        draw: which cells L_A takes.

    Returns:
        ``loss`` (L_1), its parts summed over the levels, and figures beside them: the gates' precision and recall and
        the residuals' intensity, means over the levels.
    """
    by_level: list[dict[str, Tensor]] = []
    parts = zip(amplifiers, channels_last(batch.levels), batch.anomalous, batch.foreground, strict=True)
    for number, (amplifier, level, anomalous, foreground) in enumerate(parts):
        assert isinstance(amplifier, Amplifier)
        figures: dict[str, Tensor] = {}
        gate = None
        if amplifier.gate is not None:
            gate = amplifier.gate(level)
            figures |= _gate_figures(gate, anomalous, config)
        if amplifier.generator is not None:
            figures |= _residual_figures(amplifier, level, gate, anomalous, draw(anomalous, foreground, number), config)
        by_level.append(figures)
    stacked = {name: torch.stack([figures[name] for figures in by_level]) for name in by_level[0]}
    sums = {name: values.sum() for name, values in stacked.items() if name.startswith("loss")}
    means = {name: values.mean() for name, values in stacked.items() if name not in sums}
    absent = torch.zeros(())
    loss = amplification_stage_loss(
        sums.get("loss_focal", absent),
        sums.get("loss_amplification", absent),
        weight=config.amplification_weight,
    )
    if not loss.requires_grad:  # generators alone, and no anomalous cell in the batch: nothing to learn from it
        loss = loss + sum(parameter.sum() for parameter in amplifiers.parameters()) * 0.0
    return {"loss": loss, **sums, **means, "fallback_rate": torch.tensor(batch.fallback_rate)}


def _gate_figures(gate: WeightMap, anomalous: Cells, config: AANDConfig) -> dict[str, Tensor]:
    return {
        "loss_focal": balanced_focal_loss(gate[:, 0], anomalous, alpha=config.focal_alpha, gamma=config.focal_gamma),
        "gate_precision": gate_precision(gate, anomalous),
        "gate_recall": gate_recall(gate, anomalous),
    }


def _residual_figures(
    amplifier: Amplifier,
    level: Map,
    gate: WeightMap | None,
    anomalous: Cells,
    rows: tuple[CellRows, CellRows],
    config: AANDConfig,
) -> dict[str, Tensor]:
    """L_A of a level, or what takes its place, and how strong residuals are, weighted as in inspection."""
    assert amplifier.generator is not None
    normal_rows, anomalous_rows = rows
    features, weights = as_rows(level), None if gate is None else as_rows(gate)
    teacher = features[anomalous_rows]
    residual = amplifier.generator.of_rows(teacher)
    if weights is not None and config.gate_weight == "predicted":
        amplified = amplify(teacher, residual, weights[anomalous_rows])
    else:
        amplified = amplify_by_truth(teacher, residual, anomalous.flatten()[anomalous_rows])
    with torch.no_grad():
        recorded_rows = normal_rows[:RECORDED_CELLS]
        residual_normal = amplifier.generator.of_rows(features[recorded_rows])
        of_anomalous, of_normal = (None, None) if weights is None else (weights[anomalous_rows], weights[recorded_rows])
        intensities = {
            "residual_anomalous": residual_intensity(residual, of_anomalous),
            "residual_normal": residual_intensity(residual_normal, of_normal),
        }
    normal = features[normal_rows]
    if config.amplification == "contrastive":  # normal features move too, and nothing keeps what the teacher knew
        loss = contrastive_loss(amplified, amplify(normal, amplifier.generator.of_rows(normal)))
    else:
        loss = amplification_loss(amplified, teacher, normal, margin=config.margin)
    return {"loss_amplification": loss, **intensities}


class AdvancedTeacher:
    """The advanced teacher's level maps of the training images, as a :class:`~flawsmith.models.base.FeatureSource`.

    They do not change while the student learns: those of an image are computed when it is first drawn, and kept while
    there is room; an image at a time, so that they are the same bits whenever they are computed.

    Args:
        features: the backbone's level maps.
        amplifiers: what makes the teacher an advanced one, trained; computes where they are.
        room: bytes that may be kept.
    """

    def __init__(self, features: FeatureSource, amplifiers: Amplifiers, *, room: int = TEACHER_BYTES) -> None:
        self.channels, self.grids = features.channels, features.grids
        self._features, self._amplifiers = features, amplifiers
        self._maps: dict[int, list[Tensor]] = {}
        values = sum(count * height * width for count, (height, width) in zip(self.channels, self.grids, strict=True))
        self._most = room // (4 * values)

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        if not len(rows):
            return self._features.batch(rows)
        return [torch.cat(level) for level in zip(*(self._image(int(row)) for row in rows), strict=True)]

    @torch.no_grad()
    def _image(self, row: int) -> list[Tensor]:
        if row in self._maps:
            return self._maps[row]
        device = next(self._amplifiers.parameters()).device
        with full_precision(device):
            maps = self._amplifiers([level.to(device) for level in self._features.batch([row])])
        if len(self._maps) < self._most:
            self._maps[row] = maps
        return maps


def distillation_losses(student: Student, teacher: Sequence[Map], *, hard_positions: int) -> dict[str, Tensor]:
    """The second stage: the student learns to reconstruct the teacher's features of normal images.

    Args:
        student: what learns.
        teacher: level maps of normal images, the advanced teacher's where there is one.
        hard_positions: K_h; 0 leaves that loss out.

    Returns:
        ``loss`` (L_2) and its parts, summed over the levels.
    """
    teacher = channels_last(teacher)
    # Eqs. 10 and 11 of a level look at the same sums; see `distillation_loss` and `hard_distillation_loss`.
    distances = [cosine_distances(*pair) for pair in zip(teacher, student(teacher), strict=True)]
    distillation = torch.stack([of_image.mean() for of_image, _ in distances]).sum()
    if not hard_positions:
        return {"loss": distillation, "loss_distillation": distillation}
    hard = torch.stack([worst_mean(of_position, hard_positions) for _, of_position in distances]).sum()
    loss = distillation_stage_loss(distillation, hard)
    return {"loss": loss, "loss_distillation": distillation, "loss_hard": hard}


def channels_last(levels: Sequence[Map]) -> list[Map]:
    """Level maps in the memory format that convolutions run fastest in."""
    return [level.contiguous(memory_format=torch.channels_last) for level in levels]


def adam(parameters: Iterable[nn.Parameter], config: AANDConfig) -> torch.optim.Adam:
    """The optimizer of either stage."""
    # Not fused: that kernel walks weights and moments in the order of memory, and a resumed run's moments are laid out
    # otherwise than its channels-last weights.
    return torch.optim.Adam(parameters, lr=config.lr, betas=config.betas)


class StageTraining(TrainingModule):
    """Training of either stage; gradients are computed outside autocast.

    Similarities are float32 on their way forward, and would lose that on their way back within it.
    """

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with full_precision(loss.device):
            super().backward(loss, *args, **kwargs)
