"""Level maps in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flawsmith.models.components.level_table import LevelTable
from flawsmith.runtime.errors import FlawsmithError


def test_rows_of_several_batches_are_looked_up_in_the_order_asked_for() -> None:
    fine, coarse = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 3, 4, 6), torch.rand(5, 8, 2, 3)

    table = LevelTable(zip(fine.split(2), coarse.split(2), strict=True))

    assert (len(table), table.channels, table.grids) == (5, (3, 8), ((4, 6), (2, 3)))
    for rows in ([4, 0], np.array([4, 0])):
        first, second = table.batch(rows)
        assert torch.equal(first, fine[[4, 0]])
        assert torch.equal(second, coarse[[4, 0]])


@pytest.mark.parametrize("batches", [[], [[torch.zeros(0, 3, 4, 4)]]])
def test_no_images_are_refused(batches: list[list[torch.Tensor]]) -> None:
    with pytest.raises(FlawsmithError, match="at least one good image"):
        LevelTable(batches)
