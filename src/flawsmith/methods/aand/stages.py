"""What each of the two stages trains: the teacher's amplifiers, then the student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.methods.aand.amplification import Amplifier, Amplifiers, GateMap, Map
from flawsmith.methods.aand.batches import ForgedCells, channels_last, drawn
from flawsmith.methods.aand.config import AANDConfig
from flawsmith.methods.aand.losses import (
    Rows,
    amplification_loss,
    as_rows,
    distillation_loss,
    gate_precision,
    gate_recall,
    hard_distillation_loss,
    step_rate,
)
from flawsmith.methods.aand.student import Student
from flawsmith.methods.layers.distributed import gathered, mean, own, total, total_count
from flawsmith.methods.layers.losses import balanced_focal
from flawsmith.methods.layers.patch_batches import PatchBatch

RECORDED_CELLS = 128
"""Normal cells of a level and step whose residuals are computed for the record alone."""

Cells = Bool[Tensor, "batch height width"]


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
        self, batch: ForgedCells | PatchBatch, device: torch.device, dataloader_idx: int
    ) -> ForgedCells | PatchBatch:
        return batch.to(device)


class AmplificationModule(StageModule):
    """The first stage: gates learn which cells are anomalous, generators what makes them stand out more.

    The generator runs on the drawn anomalous cells alone: L_A sees no others, and where the truth weights the
    residuals, none of the others has a gradient.
    """

    def __init__(self, config: AANDConfig, amplifiers: Amplifiers, seed: int) -> None:
        super().__init__(config, config.amplification_epochs)
        self.amplifiers, self.seed = amplifiers, seed

    def training_step(self, batch: ForgedCells, batch_idx: int) -> dict[str, Tensor]:
        found = self.losses(batch)
        return {name: value if name == "loss" else value.detach() for name, value in found.items()}

    def losses(self, batch: ForgedCells) -> dict[str, Tensor]:
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
