"""Batches of normal images with synthetic copies of the same images beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from flawsmith.data.seeding import generator
from flawsmith.models.base import SyntheticImages, SyntheticSource
from flawsmith.models.components.patch_learner import PatchBatch, PatchBatches
from flawsmith.synthesis.recipes import strided_cells

T = TypeVar("T")


class BatchPool(Generic[T]):
    """Synthetic batches by epoch, afresh each time or from a pool.

    Args:
        source: synthesizes on images by row.
        rows: the images of every batch of an epoch.
        reduce: what is kept of a synthetic batch.
        refresh: epochs that a pool serves. With 1 every batch is synthesized afresh on the images of its epoch; with
            more,
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
        self._held: tuple[int, list[T]] = (-1, [])

    def epoch(self, epoch: int) -> Iterator[T]:
        """The batches of an epoch: fresh ones, or those that its pool's first epoch has left."""
        first = epoch - epoch % self._refresh
        if self._refresh == 1:
            yield from self._fresh(self._rows(first), first)
        elif epoch == first:
            self._held = (-1, [])  # the old pool makes room before the new one fills
            rows, held = self._rows(first), list[T]()
            for synthetic in self._fresh(rows, first):
                held.append(synthetic)
                if len(held) == len(rows):  # before the last one is handed out: nobody need ask for one more
                    self._held = first, held
                yield synthetic
        else:
            if self._held[0] != first:  # a run that was resumed between two refreshes
                self._held = first, list(self._fresh(self._rows(first), first))
            for number in generator(self._seed, "forged order", epoch).permutation(len(self._held[1])):
                yield self._held[1][number]

    def _fresh(self, rows: Sequence[np.ndarray], epoch: int) -> Iterator[T]:
        return (self._reduce(synthetic) for synthetic in self._source.batches(rows, epoch))


@dataclass(frozen=True)
class PairedBatch:
    """Normal images and synthetic copies of them.

    Attributes:
        normal: level maps of the normal images.
        synthetic: level maps of the synthetic images, or None where a method synthesizes none.
        cells: whether a position of the synthetic images, or of the rows drawn of them, is part of a flaw.
        fell_back: share of the synthetic images whose mask is a fall-back, in [0, 1].
    """

    normal: PatchBatch
    synthetic: list[Tensor] | None
    cells: Bool[Tensor, " position"] | None
    fell_back: float = 0.0

    def to(self, device: torch.device) -> PairedBatch:
        """The same on a device."""
        synthetic = None if self.synthetic is None else [level.to(device) for level in self.synthetic]
        cells = None if self.cells is None else self.cells.to(device)
        return PairedBatch(self.normal.to(device), synthetic, cells, self.fell_back)


class _SyntheticImages(NamedTuple):
    """A synthetic batch with its masks reduced to cells, which is all that a pool has to keep of them."""

    levels: list[Tensor]
    cells: Bool[Tensor, " position"]
    fell_back: float

    @classmethod
    def of(cls, synthetic: SyntheticImages, grid: tuple[int, int], stride: int) -> _SyntheticImages:
        cells = np.array([strided_cells(mask, grid, stride) for mask in synthetic.masks], bool)
        return cls(synthetic.levels, torch.from_numpy(cells.reshape(-1)), synthetic.share_fell_back)


class PairedBatches:
    """The batches of a stage that learns from normal images and from flaws synthesized on training images.

    Args:
        normal: draws the normal batches.
        synthetic: synthesizes on images by row; None leaves the synthetic half out.
        grid: (h, w) of the positions to which masks are reduced: a cell is a flaw if any of its pixels is (GLASS).
        stride: pixels between two positions.
        refresh: epochs that a set of synthetic batches serves. With 1 every batch is synthesized afresh on the images
            of its
            normal half; with more, the set's batches come in another order each epoch.
        seed: of that order.
    """

    def __init__(
        self,
        normal: PatchBatches,
        synthetic: SyntheticSource | None,
        grid: tuple[int, int],
        stride: int,
        *,
        refresh: int = 1,
        seed: int = 0,
    ) -> None:
        self._normal, self.synthetic, self._pool = normal, synthetic, None
        if synthetic is not None:
            self._pool = BatchPool(
                synthetic,
                lambda epoch: list(normal.images(epoch)),
                lambda found: _SyntheticImages.of(found, grid, stride),
                refresh=refresh,
                seed=seed,
            )

    def __len__(self) -> int:
        return len(self._normal)

    def epoch(self, epoch: int) -> Iterator[PairedBatch]:
        if self._pool is None:
            yield from (PairedBatch(normal, None, None) for normal in self._normal.epoch(epoch))
            return
        for normal, synthetic in zip(self._normal.epoch(epoch), self._pool.epoch(epoch), strict=True):
            cells = synthetic.cells if normal.rows is None else synthetic.cells[normal.rows]
            yield PairedBatch(normal, synthetic.levels, cells, synthetic.fell_back)
