"""PatchCore: candidates, memory and scores."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from flawsmith.features.backbones import Backbone, load_backbone, pixels_of
from flawsmith.models.components.level_table import LevelTable
from flawsmith.models.patchcore import PatchCore, PatchCoreConfig
from flawsmith.models.patchcore.functional import neighbourhood_features, neighbours
from flawsmith.models.patchcore.model import AverageEmbedding, Candidates, memory_of
from flawsmith.runtime.errors import FlawsmithError

SIZE = (16, 20)


def random_levels(images: int, seed: int) -> LevelTable:
    rng = torch.Generator().manual_seed(seed)
    shapes = ((images, 3, 4, 6), (images, 5, 2, 3))
    return LevelTable([[torch.randn(shape, generator=rng) for shape in shapes]])


@pytest.fixture(scope="module")
def pixels() -> Backbone:
    """The image itself as the only level."""
    return pixels_of(load_backbone("efficientnet_lite0@random"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet_lite0@random")


def model_of(memory: torch.Tensor, pixels: Backbone, **settings: object) -> PatchCore:
    """A model whose patches are single pixels."""
    changes = {"image_size": SIZE, "patch_size": 1, "sigma": 0.0, "neighbours": 3, **settings}
    model = PatchCore.from_preset("fast", backbone=pixels, **changes)
    model.fit_memory(memory)
    return model


def random_memory_and_images(seed: int, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return 20 + torch.randn(rows, 3, generator=rng), 20 + torch.randn(2, 3, *SIZE, generator=rng)


def test_embedding_averages_over_the_neighbourhood_with_zeros_beyond_the_border() -> None:
    level = torch.zeros(1, 1, 3, 3)
    level[0, 0, 0, 0] = 9.0

    (embedding,) = neighbourhood_features([level], 3)[0]

    assert embedding.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_even_neighbourhood_is_refused() -> None:
    with pytest.raises(ValidationError, match="odd"):
        PatchCoreConfig(patch_size=2)


def test_candidates_are_drawn_evenly_from_many_images_and_looked_up_by_index(seed: int) -> None:
    source = random_levels(20, seed)
    candidates = Candidates(source, AverageEmbedding(3), most=100, seed=1)

    everything = torch.cat(list(candidates.batches()))

    assert len(candidates) == len(everything) == 100
    assert torch.equal(candidates.rows(torch.tensor([99, 3, 40])), everything[[3, 40, 99]])
    assert torch.equal(everything, torch.cat(list(candidates.batches()))), "drawn again the same"
    other = Candidates(source, AverageEmbedding(3), most=100, seed=2)
    assert not torch.equal(everything, torch.cat(list(other.batches())))


@pytest.mark.parametrize(("images", "expected"), [(1, 24), (5, 30), (20, 48)])
def test_memory_holds_its_share_and_at_least_some_rows(images: int, expected: int, seed: int) -> None:
    candidates = Candidates(random_levels(images, seed), AverageEmbedding(3), most=10_000, seed=0)

    memory = memory_of(candidates, PatchCoreConfig(coreset_ratio=0.1, least_rows=30), seed=0)

    assert memory.shape == (expected, 8)
    assert len(memory.unique(dim=0)) == expected


@pytest.mark.parametrize("projection", [4, 128])
def test_memory_follows_its_seed(projection: int, seed: int) -> None:
    config = PatchCoreConfig(coreset_ratio=0.1, least_rows=10, projection=projection)
    candidates = Candidates(random_levels(6, seed), AverageEmbedding(3), most=10_000, seed=0)

    first, again, other = (memory_of(candidates, config, seed=number) for number in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scores_are_exact_distances_to_the_nearest_row(pixels: Backbone, seed: int) -> None:
    memory, images = random_memory_and_images(seed)

    output = model_of(memory, pixels)(images)

    patches = images.flatten(2).transpose(1, 2).double()
    expected = torch.cdist(patches, memory.double()).amin(dim=2)
    torch.testing.assert_close(output.map.flatten(1).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.score.double(), expected.amax(dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [2, 3])
def test_map_shows_a_farther_row_where_asked_and_the_score_stays(rank: int, pixels: Backbone, seed: int) -> None:
    memory, images = random_memory_and_images(seed)

    output, nearest = model_of(memory, pixels, map_neighbour=rank)(images), model_of(memory, pixels)(images)

    patches = images.flatten(2).transpose(1, 2).double()
    expected = torch.cdist(patches, memory.double()).sort(dim=2).values[:, :, rank - 1]
    torch.testing.assert_close(output.map.flatten(1).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.score, nearest.score)


def test_a_flaw_remembered_once_hides_no_other_like_it_on_the_map(pixels: Backbone, seed: int) -> None:
    good = 0.1 * torch.randn(20, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    flaw = torch.tensor([5.0, 5.0, 5.0])
    good[0, :, 1, 1] = flaw
    fitted = model_of(flaw[None], pixels, least_rows=60).fit([good])
    memory = fitted.memory + fitted.center
    assert (memory > 3).all(dim=1).sum() == 1, "the coreset keeps the odd patch"
    test = 0.1 * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed + 1))
    test[0, :, 2, 2] = flaw

    hidden, shown = (model_of(memory, pixels, map_neighbour=rank)(test).map[0] for rank in (1, 2))

    assert hidden[2, 2] < 0.1
    assert shown[2, 2] > 8
    assert shown[2, 2] == shown.max()


def test_a_memory_of_one_row_has_no_farther_one(pixels: Backbone) -> None:
    output = model_of(torch.zeros(1, 3), pixels, map_neighbour=3)(torch.ones(1, 3, *SIZE))

    assert float(output.map.max()) == pytest.approx(3**0.5)


def test_a_patch_of_the_memory_has_the_distance_zero_far_from_the_origin(pixels: Backbone) -> None:
    memory = 1000 + torch.arange(12.0).reshape(4, 3)
    images = memory[2][None, :, None, None].expand(1, 3, *SIZE)

    output = model_of(memory, pixels)(images)

    assert output.map.abs().max() == 0


def test_image_score_is_weighted_by_the_neighbours_of_the_nearest_row(pixels: Backbone, seed: int) -> None:
    memory, images = random_memory_and_images(seed)

    scores = model_of(memory, pixels, weighting="paper")(images).score

    for image, score in zip(images, scores, strict=True):  # Eqs. 6 and 7, word by word
        distances = torch.cdist(image.flatten(1).T.double(), memory.double())
        farthest = int(distances.amin(dim=1).argmax())
        nearest = int(distances[farthest].argmin())
        support = torch.cdist(memory[[nearest]].double(), memory.double())[0].argsort()[:3]
        star = distances[farthest, nearest]
        weight = 1 - star.exp() / distances[farthest, support].exp().sum()
        assert float(score) == pytest.approx(float(weight * star), abs=1e-4)


def test_weighting_by_neighbours_is_not_continuous_and_says_so(pixels: Backbone) -> None:
    memory = torch.eye(3)

    assert model_of(memory, pixels).continuous
    assert not model_of(memory, pixels, weighting="paper").continuous


def test_a_single_row_is_not_weighted_to_nothing(pixels: Backbone) -> None:
    score = model_of(torch.zeros(1, 3), pixels, weighting="paper")(torch.ones(1, 3, *SIZE)).score

    assert float(score) == pytest.approx(3**0.5)


def test_a_row_is_its_own_first_neighbour_even_among_copies() -> None:
    memory = torch.tensor([[0.0], [0.0], [1.0], [5.0]])

    nearest = neighbours(memory, 2)

    assert nearest[:, 0].tolist() == [0, 1, 2, 3]
    assert set(nearest[0].tolist()) == {0, 1}


def test_neighbours_do_not_depend_on_how_many_rows_are_looked_at_in_a_pass(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed))
    expected = torch.cdist(memory.double(), memory.double()).argsort(dim=1)[:, :4]

    monkeypatch.setattr("flawsmith.models.patchcore.functional.ROWS_A_PASS", 7)

    assert torch.equal(neighbours(memory, 4), expected)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_state_is_the_whole_model_whatever_its_memory_holds(preset: str, backbone: Backbone, seed: int) -> None:
    good = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    settings = {"backbone": backbone, "image_size": (64, 64), "width": 32, "least_rows": 50}
    model = PatchCore.from_preset(preset, **settings).fit([good[:2], good[2:]])

    copy = PatchCore.from_preset(preset, seed=1, **settings)
    copy.load_state_dict(model.state_dict())

    assert copy.memory.shape == (50, model.memory.shape[1])
    probe = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed + 1))
    for loaded, trained in zip(copy(probe), model(probe), strict=True):
        assert torch.equal(loaded, trained)


def test_images_and_their_level_maps_give_the_same_memory(backbone: Backbone, seed: int) -> None:
    good = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    by_images, by_levels = (PatchCore.from_preset("fast", backbone=backbone, image_size=(64, 64)) for _ in range(2))

    by_images.fit([good])
    by_levels.fit_features(LevelTable([backbone(good)]))

    assert torch.equal(by_images.memory, by_levels.memory)
    assert by_images(good).map.max() < 1e-3, "all patches are remembered: there are fewer than the least"


def test_no_images_are_refused(backbone: Backbone) -> None:
    with pytest.raises(FlawsmithError, match="at least one good image"):
        PatchCore.from_preset("fast", backbone=backbone, image_size=(64, 64)).fit([])


def test_model_computes_on_the_device_it_is_moved_to(pixels: Backbone) -> None:
    model = model_of(torch.eye(3), pixels, weighting="paper").to("meta")

    output = model(torch.zeros(2, 3, *SIZE, device="meta"))

    assert (output.map.device.type, output.map.shape, output.score.shape) == ("meta", (2, *SIZE), (2,))
