"""Batches of level maps of good images, alone or with synthetic anomalies on the same images beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import Self

from flawsmith.data.seeding import Shard, generator
from flawsmith.models.base import ALONE, FeatureSource, SyntheticImages, SyntheticSource
from flawsmith.synthesis.recipes import strided_cells

T = TypeVar("T")
Step = tuple[int, int]
"""(epoch, number of the batch in it), of which every draw of a training step is a function."""


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
class DeviceBatch:
    """A batch that goes to a device as a whole: its tensors, lists of them, and batches that it holds."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [part.to(device) for part in value]
            return value.to(device) if isinstance(value, (Tensor, DeviceBatch)) else value

        return replace(self, **{each.name: moved(getattr(self, each.name)) for each in fields(self)})


@dataclass(frozen=True)
class FeatureBatch(DeviceBatch):
    """Level maps of some images and, where positions are drawn, the rows of the embedding to use.

    Attributes:
        levels: level maps, finest first.
        rows: of the embedding of these images; None takes all.
        step: of which draws are a function; None draws from torch's global generator.
    """

    levels: list[Tensor]
    rows: Int[Tensor, " row"] | None = None
    step: Step | None = None


class FeatureBatches:
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

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[FeatureBatch]:
        positions = int(np.prod(self._features.grids[self._sampling.level]))
        for number, images in shard.of(list(enumerate(self.images(epoch)))):
            rows, count = None, self._sampling.patches_per_step
            if count is not None and count < len(images) * positions:
                rng = generator(self._seed, f"{self._purpose} positions", epoch, number)
                rows = torch.from_numpy(rng.choice(len(images) * positions, count, replace=False))
            yield FeatureBatch(self._features.batch(images), rows, (epoch, number))


@dataclass(frozen=True)
class PairedBatch(DeviceBatch):
    """Normal images and synthetic anomalies on them.

    Attributes:
        normal: level maps of the normal images.
        synthetic: level maps of the anomalous images, or None where a method draws none.
        cells: whether a position of the anomalous images, or of the rows drawn of them, is part of a flaw.
        fallback_rate: share of the anomalous images whose mask is a fall-back, in [0, 1].
    """

    normal: FeatureBatch
    synthetic: list[Tensor] | None
    cells: Bool[Tensor, " position"] | None
    fallback_rate: float = 0.0


class BatchPool(Generic[T]):
    """Synthetic batches by epoch, afresh each time or from a pool that serves several epochs.

    Args:
        source: synthesizes on images by row.
        rows: the images of every batch of an epoch.
        reduce: what is kept of a synthetic batch.
        refresh: epochs that a pool serves. With 1 every batch is drawn afresh on the images of its epoch; with more,
            the pool's batches come in another order each epoch.
        seed: of that order.
    """

    def __init__(
        self,
        source: SyntheticSource,
        rows: Callable[[int], Sequence[np.ndarray]],
        reduce: Callable[[SyntheticImages], T],
        *,
        refresh: int,
        seed: int,
    ) -> None:
        self._source, self._rows, self._reduce, self._refresh, self._seed = source, rows, reduce, refresh, seed
        self._pool: tuple[int, list[T]] = (-1, [])

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[T]:
        """The batches of an epoch: fresh ones, or those that its pool's first epoch has left."""
        first = epoch - epoch % self._refresh
        if self._refresh == 1:
            yield from self._fresh(first, shard)
        elif epoch == first:
            self._pool = (-1, [])  # the old pool makes room before the new one fills
            batches, count = list[T](), len(shard.of(self._rows(first)))
            for batch in self._fresh(first, shard):
                batches.append(batch)
                if len(batches) == count:  # before the last one is handed out: nobody need ask for one more
                    self._pool = first, batches
                yield batch
        else:
            if self._pool[0] != first:  # a run that was resumed between two refreshes
                self._pool = first, list(self._fresh(first, shard))
            for number in generator(self._seed, "forged order", epoch).permutation(len(self._pool[1])):
                yield self._pool[1][number]

    def _fresh(self, epoch: int, shard: Shard) -> Iterator[T]:
        return (self._reduce(synthetic) for synthetic in self._source.batches(self._rows(epoch), epoch, shard))


class PairedBatches:
    """The batches of a stage that learns from normal images and from synthetic flaws on training images.

    Args:
        normal: draws the normal batches.
        synthetic: synthesizes on images by row; None leaves that half out.
        grid: (h, w) of the positions to which masks are reduced: a cell is a flaw if any of its pixels is (GLASS).
        stride: pixels between two positions.
        refresh: epochs that a set of synthetic batches serves, see :class:`BatchPool`.
        seed: of their order.
    """

    def __init__(
        self,
        normal: FeatureBatches,
        synthetic: SyntheticSource | None,
        grid: tuple[int, int],
        stride: int,
        *,
        refresh: int = 1,
        seed: int = 0,
    ) -> None:
        self._normal, self.synthetic = normal, synthetic
        self._pool: BatchPool[tuple[list[Tensor], Bool[Tensor, " position"], float]] | None = None
        if synthetic is not None:

            def reduced(images: SyntheticImages) -> tuple[list[Tensor], Bool[Tensor, " position"], float]:
                """Level maps, cells, which are all that a pool has to keep of the masks, and the rate of fall-backs."""
                return images.levels, cells_of_flaws(images.masks, grid, stride), images.fallback_rate

            self._pool = BatchPool(
                synthetic, lambda epoch: list(normal.images(epoch)), reduced, refresh=refresh, seed=seed
            )

    def __len__(self) -> int:
        return len(self._normal)

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[PairedBatch]:
        if self._pool is None:
            yield from (PairedBatch(normal, None, None) for normal in self._normal.epoch(epoch, shard))
            return
        pairs = zip(self._normal.epoch(epoch, shard), self._pool.epoch(epoch, shard), strict=True)
        for normal, (levels, cells, fallback_rate) in pairs:
            yield PairedBatch(normal, levels, cells if normal.rows is None else cells[normal.rows], fallback_rate)


def cells_of_flaws(
    masks: Bool[np.ndarray, "images height width"], grid: tuple[int, int], stride: int
) -> Bool[Tensor, " position"]:
    """Whether each position of some images is part of a flaw, see :func:`strided_cells`; image-major, row by row."""
    return torch.from_numpy(np.array([strided_cells(mask, grid, stride) for mask in masks], bool).reshape(-1))
