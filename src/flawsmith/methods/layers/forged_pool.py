"""A pool of forged batches that serves several epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from flawsmith.data.seeding import generator
from flawsmith.methods.base import ForgedImages, ForgedSource

T = TypeVar("T")


class ForgedPool(Generic[T]):
    """Forged batches by epoch, afresh each time or from a pool.

    Args:
        source: forges on images by row.
        rows: the images of every batch of an epoch.
        reduce: what is kept of a forged batch.
        refresh: epochs that a pool serves. With 1 every batch is forged afresh on the images of its epoch; with more,
            the pool's batches come in another order each epoch.
        seed: of that order.
    """

    def __init__(
        self,
        source: ForgedSource,
        rows: Callable[[int], Sequence[np.ndarray]],
        reduce: Callable[[ForgedImages], T],
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
            for forged in self._fresh(rows, first):
                held.append(forged)
                if len(held) == len(rows):  # before the last one is handed out: nobody need ask for one more
                    self._held = first, held
                yield forged
        else:
            if self._held[0] != first:  # a run that was resumed between two refreshes
                self._held = first, list(self._fresh(self._rows(first), first))
            for number in generator(self._seed, "forged order", epoch).permutation(len(self._held[1])):
                yield self._held[1][number]

    def _fresh(self, rows: Sequence[np.ndarray], epoch: int) -> Iterator[T]:
        return (self._reduce(forged) for forged in self._source.batches(rows, epoch))
