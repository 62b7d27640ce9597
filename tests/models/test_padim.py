"""PaDiM: embeddings, Gaussians and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.models.components.level_table import LevelTable
from flawsmith.models.padim import PaDiM
from flawsmith.models.padim.functional import (
    covariances,
    mahalanobis,
    means,
    packed_whitening,
    regularised,
    whitening,
)
from flawsmith.models.padim.model import ChosenChannels, PackedWhitening
from flawsmith.runtime.errors import FlawsmithError

SIZE = (64, 64)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet_lite0@random", strides=(8, 16))


def padim(backbone: Backbone, *, seed: int = 0, channels: int | None = 10) -> PaDiM:
    return PaDiM.from_preset("fast", backbone=backbone, seed=seed, image_size=SIZE, channels=channels)


def test_coarse_values_are_repeated_and_channels_chosen(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    fine, coarse = torch.randn(2, 3, 4, 8, generator=rng), torch.randn(2, 5, 2, 4, generator=rng)
    chosen = np.array([1, 3, 7])

    embedding = ChosenChannels((3, 5), ((4, 8), (2, 4)), chosen)([fine, coarse])

    whole = torch.cat([fine, interpolate(coarse, size=(4, 8), mode="nearest")], dim=1)
    assert torch.equal(embedding, whole[:, chosen].flatten(2))


def test_a_level_without_chosen_channels_is_left_out() -> None:
    levels = [torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 1, 1)]

    embedding = ChosenChannels((2, 2), ((2, 2), (1, 1)), np.array([3]))(levels)

    assert embedding.tolist() == [[[1.0, 1.0, 1.0, 1.0]]]


@pytest.mark.parametrize("images", [1, 2, 5, 40])
def test_distances_are_those_of_numpy(images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    good = rng.normal(3, 2, (images, 6, 4)).astype(np.float32)
    probe = rng.normal(3, 2, (6, 4)).astype(np.float32)
    batches = torch.from_numpy(good).split(3)

    mean, count = means(batches)
    packed = packed_whitening(covariances(batches, mean, count), 0.01)
    (distances,) = mahalanobis((torch.from_numpy(probe) - mean).T[..., None], PackedWhitening(packed, 6)())

    assert count == images
    for position in range(4):
        features = good[:, :, position].astype(np.float64)
        covariance = np.cov(features.T) if images > 1 else np.zeros((6, 6))
        offset = probe[:, position] - features.mean(axis=0)
        expected = np.sqrt(offset @ np.linalg.inv(covariance + 0.01 * np.eye(6)) @ offset)
        assert float(distances[position]) == pytest.approx(expected, rel=0.01), "factors are in half precision"


def test_whitening_holds_out_where_float32_loses_the_covariance() -> None:
    values = torch.full((1, 3, 3), 1e6, dtype=torch.float64)  # three copies of a channel: no inverse
    values[0, 0, 0] -= 0.1  # rounding has made it indefinite

    factors = whitening(regularised(values, 0.01))

    assert torch.isfinite(factors).all()


def test_packed_factors_are_the_same_matrices_in_a_quarter_of_the_space(seed: int) -> None:
    packed = torch.randn(5, 4950 + 100, generator=torch.Generator().manual_seed(seed)).half()
    plain, (rows, columns) = torch.zeros(5, 100, 100), np.tril_indices(100)
    plain[:, rows, columns] = packed.float()

    small = PackedWhitening(packed, 100)

    assert torch.equal(small(), plain)
    assert small.packed.nbytes < plain.nbytes / 3.9


def test_channels_are_as_many_as_the_paper_takes_or_as_there_are(backbone: Backbone) -> None:
    assert padim(backbone, channels=None).count == 100
    assert padim(backbone, channels=9).count == 9
    assert padim(backbone, channels=9999).count == sum(backbone.channels)


def test_gaussians_that_no_file_can_hold_are_refused_before_any_image_is_read(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.models.padim.model.LARGEST_FILE", 64 * 10 * 11)  # 64 positions of ten channels

    padim(backbone, channels=10)
    with pytest.raises(FlawsmithError, match=r"GB.*--set channels="):
        padim(backbone, channels=11)


def test_state_is_the_whole_model_with_the_channels_that_another_seed_drew(backbone: Backbone, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    good, probe = torch.randn(5, 3, *SIZE, generator=rng), torch.randn(2, 3, *SIZE, generator=rng)
    model, copy = padim(backbone).fit([good[:3], good[3:]]), padim(backbone, seed=1)

    copy.load_state_dict(model.state_dict())

    for loaded, trained in zip(copy(probe), model(probe), strict=True):
        assert torch.equal(loaded, trained)


def test_images_and_their_level_maps_give_the_same_gaussians(backbone: Backbone, seed: int) -> None:
    good = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(seed))

    by_images, by_levels = padim(backbone).fit([good]), padim(backbone).fit_features(LevelTable([backbone(good)]))

    assert torch.equal(by_images.mean, by_levels.mean)
    assert torch.equal(by_images.whitening.packed, by_levels.whitening.packed)


def test_export_form_gives_the_same_maps_and_leaves_the_model_as_it_is(backbone: Backbone, seed: int) -> None:
    good = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    model = padim(backbone).fit([good])
    expected = model(good).map

    form = model.export_form()

    assert torch.equal(form(good).map, expected)
    assert isinstance(form.whitening, PackedWhitening)
    assert not isinstance(model.whitening, PackedWhitening)


def test_model_computes_on_the_device_it_is_moved_to(backbone: Backbone) -> None:
    model = PaDiM.from_preset("fast", backbone="efficientnet_lite0@random", image_size=SIZE).to("meta")

    output = model(torch.zeros(2, 3, *SIZE, device="meta"))

    assert (output.map.device.type, output.map.shape, output.score.shape) == ("meta", (2, *SIZE), (2,))
