"""Batches of cached level maps for methods that learn from single positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flawsmith.data.seeding import generator
from flawsmith.methods.base import FeatureSource


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn.

    Attributes:
        batch_size: images a batch.
        steps_per_epoch: batches an epoch; None makes one pass over all images.
        patches_per_step: positions drawn at random from a batch; None takes all.
        most_steps: a pass over all images ends after so many batches at the latest; None lets it end.
    """

    batch_size: int
    steps_per_epoch: int | None = None
    patches_per_step: int | None = None
    most_steps: int | None = None


@dataclass(frozen=True)
class PatchBatch:
    """Level maps of some images and, where positions are drawn, the rows of the embedding to use."""

    levels: list[Tensor]
    rows: Tensor | None
    step: tuple[int, int]

    def to(self, device: torch.device) -> PatchBatch:
        """The same on a device."""
        rows = None if self.rows is None else self.rows.to(device)
        return PatchBatch([level.to(device) for level in self.levels], rows, self.step)


class PatchBatches:
    """The batches of one stage; those of an epoch are a function of (seed, purpose, epoch)."""

    def __init__(self, features: FeatureSource, sampling: Sampling, *, seed: int, purpose: str = "train") -> None:
        self._features, self._sampling, self._seed, self._purpose = features, sampling, seed, purpose

    def __len__(self) -> int:
        sampling = self._sampling
        whole = sampling.steps_per_epoch or -(-len(self._features) // sampling.batch_size)
        return whole if sampling.most_steps is None else min(whole, sampling.most_steps)

    def images(self, epoch: int) -> Iterator[np.ndarray]:
        """The images of every batch of an epoch, by row."""
        size, total = self._sampling.batch_size, len(self._features)
        rng = generator(self._seed, f"{self._purpose} order", epoch)
        passes = -(-len(self) * size // total)
        order = np.concatenate([rng.permutation(total) for _ in range(passes)])
        stop = len(self) * size if self._sampling.steps_per_epoch else min(total, len(self) * size)
        for start in range(0, stop, size):
            yield order[start : min(start + size, stop)]

    def epoch(self, epoch: int) -> Iterator[PatchBatch]:
        positions = int(np.prod(self._features.grids[0]))
        for step, images in enumerate(self.images(epoch)):
            rows, wanted = None, self._sampling.patches_per_step
            if wanted is not None and wanted < len(images) * positions:
                rng = generator(self._seed, f"{self._purpose} positions", epoch, step)
                rows = torch.from_numpy(rng.choice(len(images) * positions, wanted, replace=False))
            yield PatchBatch(self._features.batch(images), rows, (epoch, step))
