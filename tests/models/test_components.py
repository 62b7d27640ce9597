"""Shared network parts: each equal to a plain implementation of its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from flawsmith.features.backbones import Backbone, BackboneInfo
from flawsmith.features.patch_embedding import PatchEmbedding, as_rows
from flawsmith.models import PBAS
from flawsmith.models.components.fast import distance_to_centers, mean_margins, ray_hidden
from flawsmith.models.components.heads import Discriminator
from flawsmith.models.components.score_maps import UpsampleAndSmooth
from flawsmith.models.pbas.config import PBASConfig
from flawsmith.models.pbas.functional import (
    aligned_update,
    boundary_loss,
    clustered_centers,
    embed,
    nearest_center,
    ray_anomalies,
    ray_lengths,
)

seeds = st.integers(0, 2**31 - 1)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Centres


def sequential_update(centers: Tensor, mean: Tensor, smoothing: float) -> Tensor:
    """The definition: rows one after another, matched against the table at the start."""
    nearest = (F.normalize(mean, dim=1) @ F.normalize(centers, dim=1).T).argmax(dim=1)
    table = centers.clone()
    for row, center in enumerate(nearest):
        table[center] = (1 - smoothing) * table[center] + smoothing * mean[row]
    return table


@settings(max_examples=50)
@given(count=st.integers(1, 12), width=st.integers(1, 5), smoothing=st.floats(0.01, 1.0), seed=seeds)
def test_aligned_update_equals_the_sequential_one(count: int, width: int, smoothing: float, seed: int) -> None:
    centers, mean = random(seed, 2, count, width, dtype=torch.float64)

    table = aligned_update(centers, mean, nearest_center(mean, centers), smoothing)

    torch.testing.assert_close(table, sequential_update(centers, mean, smoothing))


def test_nearest_center_goes_by_angle_not_by_distance() -> None:
    centers = torch.tensor([[10.0, 0.0], [0.6, 0.8]])

    assert nearest_center(torch.tensor([[1.0, 0.1], [1.0, 1.0]]), centers).tolist() == [0, 1]


def test_clustered_centers_find_the_clusters_and_follow_the_seed() -> None:
    places = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    batches = [places.repeat(20, 1) + 0.1 * random(number, 60, 2) for number in range(4)]

    centers = clustered_centers(batches, 3, seed=1)

    assert torch.cdist(places, centers).amin(dim=1).max() < 0.5
    assert torch.equal(centers, clustered_centers(batches, 3, seed=1))


# Fast forms against plain ones


def plain_hidden(
    features: Tensor, centers: Tensor, nearest: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    offset = (features - centers[nearest]).detach()
    return F.linear(torch.cat([features, features + lengths[:, None] * offset]), weight, bias)


@settings(max_examples=40)
@given(
    positions=st.integers(1, 9), count=st.integers(1, 5), width=st.integers(1, 6), hidden=st.integers(1, 6), seed=seeds
)
def test_hidden_layer_of_rays_and_its_gradients_equal_the_plain_ones(
    positions: int, count: int, width: int, hidden: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(positions, width), (hidden, width), (hidden,)]
    features, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    centers = torch.randn(count, width, generator=generator, dtype=torch.float64)
    nearest = torch.randint(count, (positions,), generator=generator)
    lengths = torch.rand(positions, generator=generator, dtype=torch.float64)
    outer = torch.randn(2 * positions, hidden, generator=generator, dtype=torch.float64)

    results = []
    for function in (ray_hidden, plain_hidden):
        output = function(features, centers, nearest, lengths, weight, bias)
        results.append([output, *torch.autograd.grad((output * outer).sum(), [features, weight, bias])])

    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


@settings(max_examples=40)
@given(positions=st.integers(1, 9), count=st.integers(1, 5), width=st.integers(1, 6), seed=seeds)
def test_fast_boundary_and_rays_equal_equations_6_and_7(positions: int, count: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(positions, width, generator=generator, dtype=torch.float64).requires_grad_()
    centers = torch.randn(count, width, generator=generator, dtype=torch.float64)
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)

    nearest = nearest_center(features, centers)
    distance, _ = distance_to_centers(features, centers, nearest)
    fast = distance.mean()
    lengths = ray_lengths(distance, fast, 0.3)
    anomalies = ray_hidden(features, centers, nearest, lengths, weight, bias)[positions:]
    plain = boundary_loss(features, centers)

    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(anomalies, ray_anomalies(features, centers, 0.3))
    (fast_gradient,), (plain_gradient,) = (torch.autograd.grad(loss, features) for loss in (fast, plain))
    torch.testing.assert_close(fast_gradient, plain_gradient)


@settings(max_examples=20)
@given(sizes=st.tuples(*[st.integers(1, 7)] * 4), width=st.integers(1, 20), seed=seeds)
def test_embedding_by_convolutions_equals_equations_1_to_4(
    sizes: tuple[int, int, int, int], width: int, seed: int
) -> None:
    fine, coarse, *grid = sizes
    levels = [random(seed, 2, fine, grid[0] * 2, grid[1] * 2), random(seed + 1, 2, coarse, *grid)]

    fast = as_rows(PatchEmbedding([fine, coarse], patch_size=3, level_width=width, width=width)(levels))

    torch.testing.assert_close(fast, embed(levels, level_width=width, width=width), atol=1e-5, rtol=1e-4)


class TwoLevels(nn.Module):
    """Two fixed convolutions, strides 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.fine = nn.Conv2d(3, 5, 3, stride=2, padding=1)
            self.coarse = nn.Conv2d(5, 7, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images).relu()
        return [fine, self.coarse(fine).relu()]


def patch_model(size: tuple[int, int], **changes: object) -> PBAS:
    """An untrained model on two levels; sizes below those of the settings are good enough to compare with."""
    info = BackboneInfo(
        name="two", architecture="two", weights="random", sha256="0", strides=(2, 4), channels=(5, 7),
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    config = PBASConfig(image_size=size, level_width=10, width=12, hidden=6, sigma=2.0)
    return PBAS(config.model_copy(update=changes), Backbone(TwoLevels(), info), seed=0).eval()


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(16, 30), st.integers(16, 30)),
    projector_depth=st.integers(0, 2),
    depth=st.integers(2, 4),
    hidden=st.sampled_from([None, 6]),
    seed=seeds,
)
def test_folded_model_equals_the_unfolded_one(
    size: tuple[int, int], projector_depth: int, depth: int, hidden: int | None, seed: int
) -> None:
    model = patch_model(size, projector_depth=projector_depth, discriminator_depth=depth, hidden=hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.discriminator.blocks:
            nn.init.uniform_(block.norm.weight, 0.5, 1.5)
            nn.init.normal_(block.norm.bias)
            nn.init.normal_(block.norm.running_mean)
            nn.init.uniform_(block.norm.running_var, 0.5, 1.5)
    images = random(seed, 2, 3, *size)

    with torch.inference_mode():
        plain, folded = model(images), model.export_form()(images)

    torch.testing.assert_close(folded.score, plain.score, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(folded.map, plain.map, atol=1e-5, rtol=1e-4)


def test_image_score_is_the_peak_before_smoothing() -> None:
    model = patch_model((24, 32), sigma=4.0)

    with torch.inference_mode():
        output = model(random(0, 2, 3, 24, 32))

    assert (output.score > output.map.amax(dim=(1, 2))).all()


def test_boundary_learning_alone_scores_by_euclidean_distance() -> None:
    model = patch_model((24, 32), synthesis="none")
    model.centers = random(1, 9, 12)
    levels = model.backbone(random(2, 1, 3, 24, 32))

    with torch.inference_mode():
        (low,) = model.raw_maps(levels)
        features = model.projector(as_rows(model.embedding(levels)))

    expected = torch.cdist(features, model.centers).amin(dim=1).reshape(1, 12, 16)
    torch.testing.assert_close(low, expected, atol=1e-4, rtol=1e-4)


def test_distance_to_a_center_that_is_the_feature_is_zero_not_nan() -> None:
    model = patch_model((24, 32), synthesis="none", projector_depth=0)
    levels = model.backbone(random(0, 1, 3, 24, 32))
    model.centers = as_rows(model.embedding(levels)).detach()

    with torch.inference_mode():
        (low,) = model.raw_maps(levels)

    assert torch.isfinite(low).all()
    assert low.max() < 1e-2


# Heads and post-processing


def test_discriminator_from_its_first_layer_is_the_discriminator() -> None:
    discriminator = Discriminator(8, None, 4).eval()
    features = random(0, 6, 8)

    with torch.no_grad():
        continued = discriminator.from_first_linear(discriminator.blocks[0].linear(features))
        torch.testing.assert_close(continued, discriminator(features))


# Margins


@pytest.mark.parametrize("learns", [False, True])
def test_margins_of_all_pairs_and_their_gradients_equal_the_plain_ones(
    learns: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_rows = 4 * 11 * 3  # at a time, and one left over
    monkeypatch.setattr("flawsmith.models.components.fast.CHUNK_BYTES", three_rows)
    moved, normal = random(seed, 7, 5), random(seed + 1, 11, 5)
    inputs = [[moved.clone().requires_grad_(), normal.clone().requires_grad_(learns)] for _ in range(2)]

    margins = mean_margins(*inputs[0], 0.3)
    plain = (inputs[1][0] @ inputs[1][1].T + 0.3).clamp_min(0).mean()
    (2 * margins).backward()
    (2 * plain).backward()

    torch.testing.assert_close(margins, plain)
    for fast_input, plain_input in zip(*inputs, strict=True):
        torch.testing.assert_close(fast_input.grad, plain_input.grad)


def test_discriminator_of_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="two layers"):
        Discriminator(8, depth=1)


def test_forward_without_gradient_leaves_its_input_alone() -> None:
    discriminator, features = Discriminator(8, 4).eval(), random(0, 6, 8)
    hidden = discriminator.blocks[0].linear(features).detach()
    before = hidden.clone()

    with torch.inference_mode():
        discriminator.from_first_linear(hidden)

    assert torch.equal(hidden, before)


sides = st.integers(1, 40)


@settings(max_examples=40)
@given(
    low=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(sides, sides),
    sigma=st.sampled_from([0.0, 0.7, 4.0]),
    align_corners=st.booleans(),
    seed=seeds,
)
def test_matrices_equal_interpolation_and_scipys_gaussian(
    low: tuple[int, int], size: tuple[int, int], sigma: float, align_corners: bool, seed: int
) -> None:
    maps = random(seed, 2, *low)

    found = UpsampleAndSmooth(low, size, sigma=sigma, align_corners=align_corners)(maps)

    up = F.interpolate(maps.double()[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0].numpy()
    expected = np.stack([gaussian_filter(image, sigma) if sigma else image for image in up])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
