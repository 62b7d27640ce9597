"""PaDiM: embeddings, Gaussians and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from flawsmith.features.backbones import load_backbone
from flawsmith.models.padim.model import (
    ChosenChannels,
    PackedWhitening,
    PaDiM,
    PaDiMConfig,
    Whitening,
    gaussians,
    whitening,
)
from flawsmith.runtime.errors import FlawsmithError


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

    mean, packed = gaussians(lambda: iter(torch.from_numpy(good).split(3)), 0.01)

    factors = Whitening(packed, 6)()
    for position in range(4):
        own = good[:, :, position].astype(np.float64)
        covariance = np.cov(own.T) if images > 1 else np.zeros((6, 6))
        offset = probe[:, position] - own.mean(axis=0)
        expected = np.sqrt(offset @ np.linalg.inv(covariance + 0.01 * np.eye(6)) @ offset)
        found = (factors[position] @ (torch.from_numpy(probe[:, position]) - mean[position])).norm()
        assert float(found) == pytest.approx(expected, rel=0.01), "the factors are kept in half precision"


def test_whitening_holds_out_where_float32_loses_the_covariance() -> None:
    values = torch.full((1, 3, 3), 1e6, dtype=torch.float64)  # three copies of a channel: no inverse
    values[0, 0, 0] -= 0.1  # rounding has made it indefinite

    factors = whitening(values, 0.01)

    assert torch.isfinite(factors).all()


def test_packed_factors_are_the_same_matrices_in_a_quarter_of_the_space(seed: int) -> None:
    packed = torch.randn(5, 4950 + 100, generator=torch.Generator().manual_seed(seed)).half()
    plain, small = Whitening(packed, 100), PackedWhitening(packed, 100)

    assert torch.equal(small(), plain())
    assert torch.equal(plain(), plain().tril())
    assert small.packed.nbytes < plain.factors.nbytes / 3.9


def test_channels_are_as_many_as_the_paper_takes_or_as_there_are() -> None:
    backbone = load_backbone(strides=(8, 16))

    assert PaDiM(PaDiMConfig(strides=(8, 16)), backbone, 0).count == 100
    assert PaDiM(PaDiMConfig(strides=(8, 16), channels=9), backbone, 0).count == 9
    assert PaDiM(PaDiMConfig(strides=(8, 16), channels=9999), backbone, 0).count == sum(backbone.channels)


def test_gaussians_that_no_file_can_hold_are_refused_before_any_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawsmith.models.padim.model.LARGEST_FILE", 64 * 10 * 11)  # 64 positions of ten channels
    backbone = load_backbone(strides=(8, 16))
    small = {"image_size": (64, 64), "strides": (8, 16)}

    PaDiM(PaDiMConfig(**small, channels=10), backbone, 0)
    with pytest.raises(FlawsmithError, match=r"GB.*--set channels="):
        PaDiM(PaDiMConfig(**small, channels=11), backbone, 0)
