"""The search for a mask that counts: draw, cut, look, and draw again, but not for ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flawsmith.synthesis.mask_rules import Acceptance, MaskRule
from flawsmith.synthesis.overlay import Mask
from flawsmith.synthesis.perlin import Field
from flawsmith.synthesis.recipes import Grid, max_pool_cells

Attempt = tuple[float, Iterable[Field]]
"""A uniform draw in [0, 1) and noise fields, as many as the draw asks for; a lazy iterable computes no more."""


@dataclass(frozen=True)
class FoundMask:
    """What a search for a mask came to.

    Attributes:
        mask: (height, width); empty where none was accepted.
        cells: (rows, columns), the mask by cells; None without a grid.
        tries: masks that were looked at.
        accepted: whether the mask counts.
    """

    mask: Mask
    cells: Mask | None
    tries: int
    accepted: bool


def find_mask(
    attempts: Iterable[Attempt],
    rule: MaskRule,
    acceptance: Acceptance,
    *,
    foreground: Mask | None = None,
    grid: Grid | None = None,
) -> FoundMask:
    """The first mask that counts.

    Args:
        attempts: draws and turned noise fields, one entry a try; where they end, the search ends.
        rule: how a mask is cut from them.
        acceptance: when it counts.
        foreground: (height, width), where flaws may be; None: everywhere.
        grid: cells for the pooled mask; None: pixels alone decide.

    Raises:
        ValueError: no attempt at all, or more cells than pixels.

    Source:
        GLASS: both noises and the combination are drawn again until the pooled mask is not empty, without an
        end in the released code. AAND: at most 11 tries. SLSG: until 49 pixels are set, without an end.
    """
    mask, tries = None, 0
    for tries, (draw, fields) in enumerate(attempts, 1):
        mask = rule.mask(float(draw), fields)
        if foreground is not None:
            mask &= foreground
        cells = None if grid is None else max_pool_cells(mask, grid)
        if acceptance.holds(mask, cells):
            return FoundMask(mask, cells, tries, accepted=True)
    if mask is None:
        raise ValueError("no attempt to find a mask in")
    return FoundMask(np.zeros_like(mask), None if grid is None else np.zeros(grid, bool), tries, accepted=False)
