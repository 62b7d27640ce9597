"""The second stage: SegNet learns to find simulated anomalies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from flawsmith.methods.base import FeatureSource, ForgedSource
from flawsmith.methods.layers.distributed import share, total
from flawsmith.methods.layers.patch_batches import PatchBatches, Sampling
from flawsmith.methods.slsg.config import SLSGConfig
from flawsmith.methods.slsg.encoder import Encoder
from flawsmith.methods.slsg.losses import cosine_rate, segmentation_losses
from flawsmith.methods.slsg.segmentation import SegNet


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
        forged: simulates anomalies on them.
        config: the method's settings.
        seed: of the order.
    """

    def __init__(self, features: FeatureSource, forged: ForgedSource, config: SLSGConfig, seed: int) -> None:
        self._features, self.forged, self._config = features, forged, config
        self._order = PatchBatches(features, Sampling(config.batch_size, config.steps_per_epoch), seed=seed)

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int) -> Iterator[SimulatedBatch]:
        left = self._config.steps - epoch * len(self)
        rows = list(self._order.images(epoch))[: max(0, left)]
        for some, forged in zip(rows, self.forged.batches(rows, epoch), strict=True):
            normal = self._features.batch(some[share(len(some))]) if forged.normal is None else forged.normal
            levels = [torch.cat(pair) for pair in zip(normal, forged.levels, strict=True)]
            mask = np.concatenate([np.zeros_like(forged.masks), forged.masks])
            yield SimulatedBatch(levels, torch.from_numpy(mask), forged.share_fell_back)


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
