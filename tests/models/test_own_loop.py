"""What a loop of one's own may get wrong: no images, strides in disorder, tables of other images."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from flawsmith.models import GLASS, PBAS
from flawsmith.models.pbas.functional import clustered_centers
from flawsmith.runtime.errors import FlawsmithError

SMALL = {"backbone": "efficientnet_lite0@random", "image_size": (64, 64), "hidden": 16}


def test_glass_without_images_has_no_centres() -> None:
    with pytest.raises(FlawsmithError, match="at least one good image"):
        GLASS.from_preset("fast", **SMALL).fit_center([])


def test_pbas_without_images_has_no_centres() -> None:
    with pytest.raises(FlawsmithError, match="at least one good image"):
        PBAS.from_preset("fast", **SMALL).fit_centers([])


def test_clusters_need_a_feature_each() -> None:
    with pytest.raises(FlawsmithError, match="as many features as centres, which are 3"):
        clustered_centers([torch.zeros(2, 4)], 3, seed=0)


def test_losses_take_the_centres_of_the_latest_table() -> None:
    model = GLASS.from_preset("fast", hypothesis="hypersphere", **SMALL)
    first, second = torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.fit_center([first])
    model.start_epoch()
    model.fit_center([second])
    radius = model.losses(first)["radius"]

    fresh = GLASS.from_preset("fast", hypothesis="hypersphere", **SMALL)
    fresh.load_state_dict(model.state_dict())

    torch.testing.assert_close(radius, fresh.losses(first)["radius"])


@pytest.mark.parametrize("strides", [(), (16, 8), (0, 8)])
def test_strides_are_positive_and_finest_first(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="finest first"):
        PBAS.from_preset("fast", strides=strides, **SMALL)
