"""Batches of both stages: forged cells for the amplification, level maps for the distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from flawsmith.methods.aand.amplification import Amplifiers
from flawsmith.methods.aand.losses import cells_of
from flawsmith.methods.base import FeatureSource, ForgedImages, ForgedSource
from flawsmith.methods.layers.forged_pool import ForgedPool
from flawsmith.methods.layers.patch_batches import PatchBatches
from flawsmith.methods.layers.precision import full_precision

Cells = Bool[Tensor, "batch height width"]

TEACHER_BYTES = 512 * 2**20
"""Most memory that the advanced teacher's maps of training images may take."""


@dataclass(frozen=True)
class ForgedCells:
    """Forged images as the teacher sees them.

    Attributes:
        levels: level maps, finest first.
        anomalous: cells of each level that belong to a flaw.
        foreground: cells of each level that belong to the foreground.
        fell_back: share of the images whose mask is a fall-back, in [0, 1].
        step: (epoch, number of the step).
    """

    levels: list[Tensor]
    anomalous: list[Cells]
    foreground: list[Cells]
    fell_back: float = 0.0
    step: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, forged: ForgedImages, *, share: float) -> ForgedCells:
        """Masks reduced to cells, which is all that a pool has to keep of them."""
        grids = [(int(level.shape[-2]), int(level.shape[-1])) for level in forged.levels]
        masks, foregrounds = torch.from_numpy(forged.masks), torch.from_numpy(forged.foregrounds)
        return cls(
            forged.levels,
            [cells_of(masks, grid, share=share) for grid in grids],
            [cells_of(foregrounds, grid, share=share) for grid in grids],
            forged.share_fell_back,
        )

    def at(self, step: tuple[int, int]) -> ForgedCells:
        """The same in another step."""
        return ForgedCells(self.levels, self.anomalous, self.foreground, self.fell_back, step)

    def to(self, device: torch.device) -> ForgedCells:
        """The same on a device."""
        levels, anomalous, foreground = (
            [part.to(device) for part in parts] for parts in (self.levels, self.anomalous, self.foreground)
        )
        return ForgedCells(levels, anomalous, foreground, self.fell_back, self.step)


class AmplificationBatches:
    """The batches of the first stage.

    Args:
        images: draws the images to forge on.
        forged: forges on them.
        share: see :func:`cells_of`.
        refresh: epochs that a pool serves.
        seed: of the pool's order.
    """

    def __init__(self, images: PatchBatches, forged: ForgedSource, *, share: float, refresh: int, seed: int) -> None:
        self.forged, self._count = forged, len(images)
        self._pool = ForgedPool(
            forged,
            lambda epoch: list(images.images(epoch)),
            lambda found: ForgedCells.of(found, share=share),
            refresh=refresh,
            seed=seed,
        )

    def __len__(self) -> int:
        return self._count

    def epoch(self, epoch: int) -> Iterator[ForgedCells]:
        for number, cells in enumerate(self._pool.epoch(epoch)):
            yield cells.at((epoch, number))


class AdvancedTeacher:
    """The advanced teacher's level maps of the training images (methods.base.FeatureSource).

    They do not change while the student learns. On a CPU those of an image are computed when it is first drawn, and
    kept while there is room; an image at a time, so that they are the same bits whenever they are computed.

    Args:
        features: the backbone's level maps.
        amplifiers: what makes the teacher an advanced one, trained; computes where they are.
        room: bytes that may be kept.
    """

    def __init__(self, features: FeatureSource, amplifiers: Amplifiers, *, room: int = TEACHER_BYTES) -> None:
        self.channels, self.grids = features.channels, features.grids
        self._features, self._amplifiers = features, amplifiers
        self._kept: dict[int, list[Tensor]] = {}
        values = sum(count * height * width for count, (height, width) in zip(self.channels, self.grids, strict=True))
        self._most = room // (4 * values)

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        if not len(rows):
            return self._features.batch(rows)
        if next(self._amplifiers.parameters()).device.type != "cpu":  # there a whole batch costs less than its way back
            return self._advanced(rows)
        return [torch.cat(level) for level in zip(*(self._row(int(row)) for row in rows), strict=True)]

    def _row(self, row: int) -> list[Tensor]:
        found = self._kept.get(row) or self._advanced([row])
        if len(self._kept) < self._most:
            self._kept[row] = found
        return found

    @torch.no_grad()
    def _advanced(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        device = next(self._amplifiers.parameters()).device
        with full_precision(device):
            return self._amplifiers([level.to(device) for level in self._features.batch(rows)])


def drawn(cells: Bool[Tensor, " cell"], count: int, source: torch.Generator) -> Tensor:
    """Indices of at most so many of the true cells, in random order."""
    found = cells.nonzero()[:, 0]
    order = torch.randperm(len(found), generator=source)[:count]
    return found[order.to(found.device)]


def channels_last(levels: Sequence[Tensor]) -> list[Tensor]:
    """Level maps in the memory format that convolutions run fastest in."""
    return [level.contiguous(memory_format=torch.channels_last) for level in levels]
