"""What Fusion takes off its map, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flawsmith.models import Fusion
from flawsmith.models.base import AnomalyOutput

SIZE = (64, 96)
IMAGES = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def output(**changes: Any) -> tuple[Fusion, AnomalyOutput]:
    """A model that knows a few images, and what it says of others."""
    settings: dict[str, Any] = {"image_size": SIZE, "bank_size": 16, "student_widths": (8, 8, 8), **changes}
    model = Fusion.from_preset("fast", seed=0, **settings).eval()
    model.fit_scores([torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(1))])
    with torch.no_grad():
        return model, model(IMAGES)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_map_leaves_out_a_share_of_how_strange_its_image_is_as_a_whole(share: float) -> None:
    model, plain = output(mean_share=0.0)
    _, found = output(mean_share=share)

    with torch.no_grad():
        means = torch.stack([maps.mean(dim=(1, 2)) for maps in model.score_maps(model.backbone(IMAGES))]).sum(dim=0)
    assert means.std() > 0.01 * plain.map.std(), "images that differ as a whole"
    torch.testing.assert_close(plain.map - found.map, share * means[:, None, None].expand_as(plain.map))
    assert torch.equal(plain.score, found.score)


def test_a_score_that_is_the_maps_maximum_keeps_how_strange_the_image_is_as_a_whole() -> None:
    plain, found = (output(mean_share=share, score_share=None)[1] for share in (0.0, 1.0))

    assert torch.equal(plain.map, found.map)
    assert torch.equal(found.score, found.map.amax(dim=(1, 2)))
