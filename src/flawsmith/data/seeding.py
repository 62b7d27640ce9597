"""Random numbers as a function of (seed, purpose, indices), so that resuming needs no generator state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def derived_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that depends on every argument.

    >>> derived_seed(0, "order", 1) != derived_seed(0, "order", 2)
    True
    """
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A numpy generator for one purpose, such as the order of the images in one epoch."""
    return np.random.default_rng(derived_seed(seed, purpose, *indices))


@dataclass(frozen=True)
class Shard:
    """The part of an epoch's batches that one of several processes computes, as a distributed sampler deals them.

    Attributes:
        rank: number of the process, from 0.
        count: processes that train together, at least 1.
    """

    rank: int = 0
    count: int = 1

    def of(self, batches: Sequence[T]) -> list[T]:
        """Every ``count``-th batch from ``rank`` on; the first ones again where the last round is not full.

        All processes get equally many, so none waits for another for ever.

        Example:
            >>> Shard(1, 2).of(["a", "b", "c"])
            ['b', 'a']
        """
        rounds = -(-len(batches) // self.count)
        return [batches[(number * self.count + self.rank) % len(batches)] for number in range(rounds)]
