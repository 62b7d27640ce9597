"""Level maps in memory, for a method without a training loop in a plain script; and some images of a larger set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.models.base import FeatureSource
from flawsmith.runtime.errors import FlawsmithError


class LevelTable:
    """Level maps of images by row, as a :class:`flawsmith.models.base.FeatureSource`.

    Args:
        batches: level maps of some images at a time, finest first.

    Attributes:
        channels: of every level.
        grids: (height, width) of every level.

    Raises:
        FlawsmithError: there is no image.

    Example:
        >>> table = LevelTable([[torch.zeros(4, 8, 6, 6), torch.zeros(4, 16, 3, 3)]])
        >>> len(table), table.channels, table.grids
        (4, (8, 16), ((6, 6), (3, 3)))
    """

    def __init__(self, batches: Iterable[Sequence[Float[Tensor, "image channel height width"]]]) -> None:
        self._levels = [torch.cat(level) for level in zip(*batches, strict=True)]
        if not self._levels or not len(self):
            raise FlawsmithError("there is nothing to learn from: give at least one good image")
        self.channels = tuple(level.shape[1] for level in self._levels)
        self.grids = tuple((level.shape[2], level.shape[3]) for level in self._levels)

    def __len__(self) -> int:
        return len(self._levels[0])

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        """The level maps of some images, finest first: (rows, channels, height, width) each."""
        indices = torch.as_tensor(rows, dtype=torch.long)
        return [level[indices] for level in self._levels]


class Rows:
    """Some images of a larger set of level maps (:class:`flawsmith.models.base.FeatureSource`).

    Args:
        images: the larger set.
        rows: which of them, in order.
    """

    def __init__(self, images: FeatureSource, rows: NDArray[np.intp]) -> None:
        self._images, self._rows = images, rows
        self.channels, self.grids = images.channels, images.grids

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        return self._images.batch(self._rows[np.asarray(rows, np.intp)])
