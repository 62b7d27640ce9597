"""What each of the two stages trains: the teacher's amplifiers, then the student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.losses import balanced_focal
from flawsmith.models.aand.config import AANDConfig
from flawsmith.models.aand.functional import (
    Rows,
    amplification_loss,
    as_rows,
    cells_of,
    distillation_loss,
    gate_precision,
    gate_recall,
    hard_distillation_loss,
    step_rate,
)
from flawsmith.models.aand.networks import Amplifier, Amplifiers, GateMap, Map, Student
from flawsmith.models.base import FeatureSource, SyntheticImages, SyntheticSource
from flawsmith.models.components.batches import BatchPool
from flawsmith.models.components.distributed import gathered, mean, own, total, total_count
from flawsmith.models.components.patch_learner import PatchBatch, PatchBatches
from flawsmith.models.components.precision import full_precision

Cells = Bool[Tensor, "batch height width"]

TEACHER_BYTES = 512 * 2**20
"""Most memory that the advanced teacher's maps of training images may take."""


@dataclass(frozen=True)
class SyntheticCells:
    """Synthetic images as the teacher sees them.

    Attributes:
        levels: level maps, finest first.
        anomalous: cells of each level that belong to a flaw.
        foreground: cells of each level that belong to the foreground.
        fell_back: share of the images whose mask is a fall-back, in [0, 1].
        step: (epoch, number of the step).
    """

    levels: list[Tensor]
    anomalous: list[Cells]
    foreground: list[Cells]
    fell_back: float = 0.0
    step: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, synthetic: SyntheticImages, *, share: float) -> SyntheticCells:
        """Masks reduced to cells, which is all that a pool has to keep of them."""
        grids = [(int(level.shape[-2]), int(level.shape[-1])) for level in synthetic.levels]
        masks, foregrounds = torch.from_numpy(synthetic.masks), torch.from_numpy(synthetic.foregrounds)
        return cls(
            synthetic.levels,
            [cells_of(masks, grid, share=share) for grid in grids],
            [cells_of(foregrounds, grid, share=share) for grid in grids],
            synthetic.share_fell_back,
        )

    def at(self, step: tuple[int, int]) -> SyntheticCells:
        """The same in another step."""
        return SyntheticCells(self.levels, self.anomalous, self.foreground, self.fell_back, step)

    def to(self, device: torch.device) -> SyntheticCells:
        """The same on a device."""
        levels, anomalous, foreground = (
            [part.to(device) for part in parts] for parts in (self.levels, self.anomalous, self.foreground)
        )
        return SyntheticCells(levels, anomalous, foreground, self.fell_back, self.step)


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
        self, images: PatchBatches, synthetic: SyntheticSource, *, share: float, refresh: int, seed: int
    ) -> None:
        self.synthetic, self._count = synthetic, len(images)
        self._pool = BatchPool(
            synthetic,
            lambda epoch: list(images.images(epoch)),
            lambda found: SyntheticCells.of(found, share=share),
            refresh=refresh,
            seed=seed,
        )

    def __len__(self) -> int:
        return self._count

    def epoch(self, epoch: int) -> Iterator[SyntheticCells]:
        for number, cells in enumerate(self._pool.epoch(epoch)):
            yield cells.at((epoch, number))


class AdvancedTeacher:
    """The advanced teacher's level maps of the training images (methods.base.FeatureSource).

    They do not change while the student learns. On a CPU those of an image are computed when it is first drawn, and
    kept while there is room; an image at a time, so that they are the same bits whenever they are computed.

    Args:
        features: the backbone's level maps.
        amplifiers: what makes the teacher an advanced one, trained; computes where they are.
        room: bytes that may be kept.
    """

    def __init__(self, features: FeatureSource, amplifiers: Amplifiers, *, room: int = TEACHER_BYTES) -> None:
        self.channels, self.grids = features.channels, features.grids
        self._features, self._amplifiers = features, amplifiers
        self._kept: dict[int, list[Tensor]] = {}
        values = sum(count * height * width for count, (height, width) in zip(self.channels, self.grids, strict=True))
        self._most = room // (4 * values)

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        if not len(rows):
            return self._features.batch(rows)
        if next(self._amplifiers.parameters()).device.type != "cpu":  # there a whole batch costs less than its way back
            return self._advanced(rows)
        return [torch.cat(level) for level in zip(*(self._row(int(row)) for row in rows), strict=True)]

    def _row(self, row: int) -> list[Tensor]:
        found = self._kept.get(row) or self._advanced([row])
        if len(self._kept) < self._most:
            self._kept[row] = found
        return found

    @torch.no_grad()
    def _advanced(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        device = next(self._amplifiers.parameters()).device
        with full_precision(device):
            return self._amplifiers([level.to(device) for level in self._features.batch(rows)])


def drawn(cells: Bool[Tensor, " cell"], count: int, source: torch.Generator) -> Tensor:
    """Indices of at most so many of the true cells, in random order."""
    found = cells.nonzero()[:, 0]
    order = torch.randperm(len(found), generator=source)[:count]
    return found[order.to(found.device)]


def channels_last(levels: Sequence[Tensor]) -> list[Tensor]:
    """Level maps in the memory format that convolutions run fastest in."""
    return [level.contiguous(memory_format=torch.channels_last) for level in levels]


RECORDED_CELLS = 128
"""Normal cells of a level and step whose residuals are computed for the record alone."""


class StageModule(pl.LightningModule):
    """Adam with a rate that falls at two milestones of the stage.

    Args:
        config: the method's settings.
        epochs: of this stage.
    """

    def __init__(self, config: AANDConfig, epochs: int) -> None:
        super().__init__()
        self.config, self.epochs = config, epochs

    def learners(self) -> Iterator[nn.Parameter]:
        """What the stage trains."""
        return self.parameters()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.learners(), lr=self.config.lr, betas=self.config.betas)

    def on_train_epoch_start(self) -> None:
        config = self.config
        milestones = tuple(share * self.epochs for share in config.lr_milestones)
        rate = step_rate(self.current_epoch, start=config.lr, factor=config.lr_decay, milestones=milestones)
        optimiser = self.optimizers()
        assert isinstance(optimiser, torch.optim.Optimizer)
        for group in optimiser.param_groups:
            group["lr"] = rate

    def transfer_batch_to_device(
        self, batch: SyntheticCells | PatchBatch, device: torch.device, dataloader_idx: int
    ) -> SyntheticCells | PatchBatch:
        return batch.to(device)


class AmplificationModule(StageModule):
    """The first stage: gates learn which cells are anomalous, generators what makes them stand out more.

    The generator runs on the drawn anomalous cells alone: L_A sees no others, and where the truth weights the
    residuals, none of the others has a gradient.
    """

    def __init__(self, config: AANDConfig, amplifiers: Amplifiers, seed: int) -> None:
        super().__init__(config, config.amplification_epochs)
        self.amplifiers, self.seed = amplifiers, seed

    def training_step(self, batch: SyntheticCells, batch_idx: int) -> dict[str, Tensor]:
        found = self.losses(batch)
        return {name: value if name == "loss" else value.detach() for name, value in found.items()}

    def losses(self, batch: SyntheticCells) -> dict[str, Tensor]:
        """L_1 of Eq. 9 and its parts, summed over the levels; precision and intensities are means over them."""
        config, found = self.config, dict[str, list[Tensor]]()
        parts = zip(self.amplifiers, batch.levels, batch.anomalous, batch.foreground, strict=True)
        for number, (amplifier, level, anomalous, foreground) in enumerate(parts):
            assert isinstance(amplifier, Amplifier)
            for name, value in self._level(amplifier, level, anomalous, foreground, (*batch.step, number)).items():
                found.setdefault(name, []).append(value)
        sums = {name: torch.stack(values).sum() for name, values in found.items() if name.startswith("loss")}
        means = {name: torch.stack(values).mean() for name, values in found.items() if name not in sums}
        weights = {"loss_focal": 1.0, "loss_amplification": config.amplification_weight}
        loss = torch.stack([weights[name] * value for name, value in sums.items()]).sum()
        if not loss.requires_grad:  # generators alone, and no anomalous cell in the batch: nothing to learn from it
            loss = loss + sum(parameter.sum() for parameter in self.amplifiers.parameters()) * 0.0
        return {"loss": loss, **sums, **means, "fell_back": total(torch.tensor(batch.fell_back))}

    def _level(
        self, amplifier: Amplifier, level: Map, anomalous: Cells, foreground: Cells, draw: tuple[int, int, int]
    ) -> dict[str, Tensor]:
        config, found = self.config, dict[str, Tensor]()
        gate = None if amplifier.gate is None else amplifier.gate(level)
        if gate is not None:
            found["loss_focal"] = balanced_focal(
                gate[:, 0], anomalous, alpha=config.focal_alpha, gamma=config.focal_gamma
            )
            found["gate_precision"] = gate_precision(gate, anomalous)
            found["gate_recall"] = gate_recall(gate, anomalous)
        if amplifier.generator is not None:
            found |= self._amplification(amplifier, level, gate, *self.drawn(anomalous, foreground, draw))
        return found

    def drawn(self, anomalous: Cells, foreground: Cells, draw: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Normal cells of the foreground and anomalous cells that L_A looks at, by row; a function of seed and step.

        They are rows of the whole batch, whatever part of it this process has.
        """
        source = torch.Generator().manual_seed(derived_seed(self.seed, "amplification cells", *draw))
        normal = drawn(gathered((~anomalous & foreground).flatten()), self.config.normal_cells, source)
        return normal, drawn(gathered(anomalous.flatten()), self.config.anomalous_cells, source)

    def _amplification(
        self, amplifier: Amplifier, level: Map, gate: GateMap | None, normal: Tensor, anomalous: Tensor
    ) -> dict[str, Tensor]:
        """L_A of a level, and how strong residuals are beside the features, weighted as in inspection (Fig. 8)."""
        features, weights = as_rows(level), None if gate is None else as_rows(gate)
        recorded = own(normal[:RECORDED_CELLS], len(features))
        normal, anomalous = own(normal, len(features)), own(anomalous, len(features))
        teacher = features[anomalous]
        residual = _residual(amplifier, teacher)
        predicted = weights is not None and self.config.gate_weight == "predicted"
        amplified = teacher + (weights[anomalous] * residual if weights is not None and predicted else residual)
        loss = amplification_loss(amplified, teacher, gathered(features[normal]), margin=self.config.margin)
        with torch.no_grad():
            kinds = {
                "residual_anomalous": (anomalous, residual),
                "residual_normal": (recorded, _residual(amplifier, features[recorded])),
            }
            shares = {name: _intensity(features, weights, *kind) for name, kind in kinds.items()}
        return {"loss_amplification": loss, **shares}


def _residual(amplifier: Amplifier, rows: Rows) -> Rows:
    assert amplifier.generator is not None
    return amplifier.generator(rows[:, :, None, None])[:, :, 0, 0]


def _intensity(features: Rows, weights: Rows | None, cells: Tensor, residual: Rows) -> Tensor:
    """Mean of ‖w·Δ‖ / ‖F‖ over some cells; 0 where there are none."""
    if not total_count(len(cells)):
        return features.new_zeros(())
    weighted = residual if weights is None else weights[cells] * residual
    return mean(weighted.float().norm(dim=1) / features[cells].norm(dim=1).clamp_min(1e-12))


class DistillationModule(StageModule):
    """The second stage: the student learns to reconstruct the teacher's features of normal images.

    Args:
        config: the method's settings.
        student: what learns.
        amplifiers: of an advanced teacher, whose maps the batches hold; they stay as they are, on the student's device.
    """

    def __init__(self, config: AANDConfig, student: Student, amplifiers: Amplifiers | None = None) -> None:
        super().__init__(config, config.epochs)
        self.amplifiers, self.student = amplifiers, student.to(memory_format=torch.channels_last)

    def learners(self) -> Iterator[nn.Parameter]:
        return self.student.parameters()

    def training_step(self, batch: PatchBatch, batch_idx: int) -> dict[str, Tensor]:
        found = self.losses(channels_last(batch.levels))
        return {name: value if name == "loss" else value.detach() for name, value in found.items()}

    def losses(self, teacher: Sequence[Map]) -> dict[str, Tensor]:
        """L_2 of Eq. 12 and its parts, summed over the levels."""
        pairs = list(zip(teacher, self.student(teacher), strict=True))
        found = {"loss_distillation": torch.stack([distillation_loss(*pair) for pair in pairs]).sum()}
        if self.config.hard_positions:
            hard = [hard_distillation_loss(*pair, self.config.hard_positions) for pair in pairs]
            found["loss_hard"] = torch.stack(hard).sum()
        return {"loss": torch.stack(list(found.values())).sum(), **found}
