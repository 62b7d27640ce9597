"""Batches of cached level maps for methods that learn from single positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flawsmith.data.seeding import generator
from flawsmith.methods.base import FeatureSource
from flawsmith.methods.layers.distributed import Part, part_of, share


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn.

    Attributes:
        batch_size: images a batch.
        steps_per_epoch: batches an epoch; None makes one pass over all images.
        patches_per_step: positions drawn at random from a batch; None takes all.
        most_steps: a pass over all images ends after so many batches at the latest; None lets it end.
        level: the level whose positions are drawn.
    """

    batch_size: int
    steps_per_epoch: int | None = None
    patches_per_step: int | None = None
    most_steps: int | None = None
    level: int = 0


@dataclass(frozen=True)
class PatchBatch:
    """Level maps of some images and, where positions are drawn, the rows of the embedding to use.

    Attributes:
        levels: level maps, finest first.
        rows: of the embedding of these images; None takes all.
        step: (epoch, number of the step).
        images: which images of the batch these are, where several processes share it.
        positions: likewise, which of the batch's positions.
    """

    levels: list[Tensor]
    rows: Tensor | None
    step: tuple[int, int]
    images: Part | None = None
    positions: Part | None = None

    def to(self, device: torch.device) -> PatchBatch:
        """The same on a device."""
        rows = None if self.rows is None else self.rows.to(device)
        return replace(self, levels=[level.to(device) for level in self.levels], rows=rows)


class PatchBatches:
    """The batches of one stage; those of an epoch are a function of (seed, purpose, epoch).

    Processes that train together get their shares of the same batches.
    """

    def __init__(self, features: FeatureSource, sampling: Sampling, *, seed: int, purpose: str = "train") -> None:
        self._features, self._sampling, self._seed, self._purpose = features, sampling, seed, purpose

    def __len__(self) -> int:
        sampling = self._sampling
        whole = sampling.steps_per_epoch or -(-len(self._features) // sampling.batch_size)
        return whole if sampling.most_steps is None else min(whole, sampling.most_steps)

    def images(self, epoch: int) -> Iterator[np.ndarray]:
        """The images of every batch of an epoch, by row; those of all processes."""
        size, total = self._sampling.batch_size, len(self._features)
        rng = generator(self._seed, f"{self._purpose} order", epoch)
        passes = -(-len(self) * size // total)
        order = np.concatenate([rng.permutation(total) for _ in range(passes)])
        stop = len(self) * size if self._sampling.steps_per_epoch else min(total, len(self) * size)
        for start in range(0, stop, size):
            yield order[start : min(start + size, stop)]

    def epoch(self, epoch: int) -> Iterator[PatchBatch]:
        positions = int(np.prod(self._features.grids[self._sampling.level]))
        for step, images in enumerate(self.images(epoch)):
            rows, wanted = None, self._sampling.patches_per_step
            if wanted is not None and wanted < len(images) * positions:
                rng = generator(self._seed, f"{self._purpose} positions", epoch, step)
                rows = torch.from_numpy(rng.choice(len(images) * positions, wanted, replace=False))
            levels = self._features.batch(images[share(len(images))])
            whole = PatchBatch(levels, rows, (epoch, step), part_of(len(images)))
            yield whole if whole.images is None else _with_own_rows(whole, whole.images, positions)


def _with_own_rows(batch: PatchBatch, images: Part, positions: int) -> PatchBatch:
    """A batch whose rows are drawn from all images, with those of this process's images in their order."""
    assert isinstance(images.rows, slice)
    first, stop = images.rows.start * positions, images.rows.stop * positions
    if batch.rows is None:
        return replace(batch, positions=Part(slice(first, stop), images.count * positions))
    mine = ((batch.rows >= first) & (batch.rows < stop)).nonzero()[:, 0]
    return replace(batch, rows=batch.rows[mine] - first, positions=Part(mine, len(batch.rows)))
