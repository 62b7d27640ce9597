"""A memory bank beside a trained detector: what no good image shows counts, whether or not a flaw like it was forged.

In none of the papers on GLASS, PBAS and AAND; the idea is PatchCore's (Roth et al., CVPR 2022). A discriminator or a
student knows the flaws that it was taught and what resembles them, a memory knows what it has seen: each misses what
the other finds, so the sum of both maps is better than either. Several neighbourhoods are remembered because single
positions show small flaws on parts that lie anywhere, and means over neighbours large ones on textures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from flawsmith.features.patch_embedding import average_embedding
from flawsmith.methods.base import FeatureSource, MethodConfig
from flawsmith.methods.layers.familiarity import (
    LEAST,
    Familiarity,
    Level,
    LevelMaps,
    chosen_features,
    distances_to_others,
)

CANDIDATES = 50_000
MEASURED = 200
"""Good images, evenly spaced, whose scores and distances say how much the two scatter."""


Side = Annotated[int, Field(ge=1)]


class Neighbourhood(BaseModel):
    """What one memory remembers: means over the neighbours of a position, on as many levels as there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Side = Field(description="Of the square of neighbours, in positions of each level, odd.")
    levels: int = Field(
        1,
        ge=1,
        description="Levels that are concatenated: the coarsest and the next finer ones, on its grid.",
    )

    def of(self, levels: Sequence[Level]) -> Level:
        """The map to remember, or to compare with what is remembered, from all levels, finest first."""
        return average_embedding(levels[-self.levels :], self.side, levels[-1].shape[-2:])


class BankConfig(MethodConfig):
    """Settings of the memory bank; by default there is none, as in every paper."""

    bank: tuple[Side | Neighbourhood, ...] = Field(
        (),
        description="Neighbourhoods whose means over good images are remembered, each the odd side of one on the "
        "coarsest level, or {side: 3, levels: 2} to join levels; maps and scores count the distance to the nearest of "
        "them too. PatchCore's idea, in no paper on this method; [] remembers nothing.",
    )
    bank_size: int = Field(2000, ge=1, description="Means remembered of each neighbourhood.")
    bank_weight: float = Field(
        0.75,
        gt=0,
        description="How much the distances of a neighbourhood scatter on good images, as a share of what the method's "
        "own map does.",
    )

    @model_validator(mode="after")
    def _consistent_bank(self) -> BankConfig:
        found = self.neighbourhoods
        if len(set(found)) < len(found) or any(one.side % 2 == 0 for one in found):
            raise ValueError("bank needs odd sides, each once, such as [1,5]; [] remembers nothing")
        return self

    @property
    def neighbourhoods(self) -> tuple[Neighbourhood, ...]:
        """All that is remembered."""
        return tuple(Neighbourhood(side=one) if isinstance(one, int) else one for one in self.bank)


class MemoryBank(nn.Module):
    """Distances to remembered features, over some neighbourhoods, in the unit of the scores that they are added to.

    Args:
        channels: of all levels, finest first.
        neighbourhoods: what is remembered.
        size: features remembered of each.
    """

    means: Tensor
    scale: Tensor

    def __init__(self, channels: Sequence[int], neighbourhoods: Sequence[Neighbourhood], size: int) -> None:
        super().__init__()
        self.neighbourhoods = tuple(neighbourhoods)
        self.memories = nn.ModuleList(Familiarity(sum(channels[-one.levels :]), size) for one in neighbourhoods)
        self.register_buffer("means", torch.zeros(len(neighbourhoods)))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "batch height width"]:
        """Σ over neighbourhoods of (distance − mean) / spread, times the scale; about 0 on good images.

        Args:
            levels: all level maps, finest first.
        """
        pairs = zip(self.neighbourhoods, self.memories, strict=True)
        found = [memory(one.of(levels))[:, 0] for one, memory in pairs]
        return (torch.stack(found).sum(dim=0) - self.means.sum()) * self.scale


@torch.no_grad()
def filled_bank(images: FeatureSource, config: BankConfig, seed: int) -> MemoryBank:
    """A bank of the good images, of scale 1.

    Mean and spread are those of the distances to other images' features. One image has no others, and copies of one
    do not differ: nothing says what is usual then, so the bank says 0 everywhere.
    """
    bank = MemoryBank(images.channels, config.neighbourhoods, config.bank_size)
    for number, (one, memory) in enumerate(zip(bank.neighbourhoods, bank.memories, strict=True)):
        assert isinstance(memory, Familiarity)
        maps = LevelMaps(images, len(images.grids) - 1, one.side, joined=one.levels)
        chosen = chosen_features(maps, config.bank_size, seed, purpose=f"bank {one.side}", candidates=CANDIDATES)
        spread, mean = torch.tensor(torch.inf), torch.tensor(0.0)
        if len(maps) > 1:
            spread, mean = _scatter(distances_to_others(chosen, maps, measured_rows(len(maps))))
        memory.remember(chosen.features, spread)
        bank.means[number] = mean / spread
    return bank


def measured_rows(images: int) -> list[int]:
    """Rows of the images that are measured: all, or evenly spaced ones of many."""
    return sorted({int(row) for row in np.linspace(0, images - 1, min(images, MEASURED)).round()})


def _scatter(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of all values; an infinite one where they do not differ, which gives no unit."""
    values = torch.cat([one.flatten() for one in maps]).double()
    spread = values.std(correction=0)
    return torch.where(spread > LEAST, spread, torch.inf).float(), values.mean().float()
