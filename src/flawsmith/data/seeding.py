"""Random numbers as a function of (seed, purpose, indices), so that resuming needs no generator state."""

from __future__ import annotations

import hashlib

import numpy as np


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
