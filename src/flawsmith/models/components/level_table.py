"""Level maps by row: in memory, some of a larger set, and images with the views that a memory holds beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.data.seeding import generator
from flawsmith.models.base import FeatureSource, TrainingData
from flawsmith.models.components.memory_bank import LevelMaps, MemoryBank, Neighbourhood, sample_coreset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.views import TURNED, Turn, View, draw_view

FEW = 600
"""Views that are drawn at least, of few images up to ``MORE`` times the usual number of each."""
MORE = 5
MOST = 3000
JUDGED = 30
"""Good images that decide how parts lie."""
FOLDS = 5
AS_USUAL = 0.8
"""Area under the ROC curve, of turned against upright images, up to which a turned one is as usual as another."""


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


class WithViews:
    """Images, and views of them behind (:class:`flawsmith.models.base.FeatureSource`).

    Args:
        shown: the image of each view.

    Attributes:
        shown: the image that every row shows.
    """

    def __init__(self, images: FeatureSource, views: FeatureSource, shown: Sequence[int]) -> None:
        self._images, self._views = images, views
        self.channels, self.grids = images.channels, images.grids
        self.shown = torch.tensor([*range(len(images)), *shown])

    def __len__(self) -> int:
        return len(self.shown)

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        count = len(self._images)
        parts = [(self._images, int(row)) if row < count else (self._views, int(row) - count) for row in rows]
        levels = [source.batch([row]) for source, row in parts]
        return [torch.cat(level) for level in zip(*levels, strict=True)]


def views_of_all(images: int, each: int, seed: int, turns: Sequence[Turn]) -> list[tuple[int, View]]:
    """Views of good images: an image, by its row, and how it is seen again.

    Args:
        each: views of each; more where that makes few, and of some images alone where it makes too many.

    Example:
        >>> [len(views_of_all(images, 3, 0, ())) for images in (4, 100, 500, 5000)]
        [60, 600, 1500, 3000]
        >>> [row for row, _ in views_of_all(2, 1, 0, ())]
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    """
    count = min(MOST, max(each * images, min(MORE * each * images, FEW)))
    rng = generator(seed, "views")
    rows = np.linspace(0, images, count, endpoint=False).astype(int)
    return [(int(row), draw_view(rng, turns)) for row in rows]


@torch.no_grad()
def usual_turns(data: TrainingData, neighbourhood: Neighbourhood, level: int, seed: int) -> tuple[Turn, ...]:
    """The turns after which good images look about as usual as other good images do, by what they show alone.

    Some of the images are remembered, and others compared with them, as they are and turned: a bolt that lies at any
    angle is no less usual when it is turned, a bottle that always stands is.
    """
    count = min(len(data), JUDGED)
    if count < 2:
        return ()
    rows = np.linspace(0, len(data) - 1, count).round().astype(int)
    upright = data.features()
    views = [(int(row), view) for view in TURNED.values() for row in rows]
    turned = data.views(views)
    of_upright = [Rows(upright, rows), *(Rows(turned, np.arange(count) + k * count) for k in range(len(TURNED)))]
    maps = [LevelMaps(each, level, neighbourhood.side, joined=neighbourhood.levels) for each in of_upright]
    peaks = np.zeros((len(maps), count))
    for fold in np.array_split(generator(seed, "turns").permutation(count), min(count, FOLDS)):
        others = LevelMaps(Rows(upright, np.delete(rows, fold)), level, neighbourhood.side, joined=neighbourhood.levels)
        coreset = sample_coreset(others, len(others) * others.positions, seed, purpose="turns")
        memory = MemoryBank(coreset.features.shape[1], len(coreset.features))
        memory.fit(coreset.features)
        for row in fold.tolist():
            peaks[:, row] = [float(memory(each[row]).amax()) for each in maps]
    usual = (peaks[1:, :, None] > peaks[0, None, None, :]).mean(axis=(1, 2))
    return tuple(turn for turn, share in zip(TURNED, usual, strict=True) if share <= AS_USUAL)
