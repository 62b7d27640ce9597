"""Synthesis while training: what is drawn is a function of the seed and the place, wherever it is drawn."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.data.seeding import Shard
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import PixelExtractor
from flawsmith.models.base import SyntheticImages
from flawsmith.models.components.batches import FeatureBatch, PairedBatches
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import find_recipe
from flawsmith.training.data import SampleKey, TrainingSet

GEOMETRY = Geometry(size=(48, 64))
ROWS = [np.array([0, 1, 2]), np.array([3, 0])]
Make = Callable[..., TrainingSet]


@pytest.fixture
def images(parts: Path, tmp_path: Path) -> Make:
    def make(*, seed: int = 0, **options: object) -> TrainingSet:
        samples = load(parts).good_train[:4]
        cache = FeatureCache("pixels", tmp_path / "cache")
        return TrainingSet(samples, GEOMETRY, PixelExtractor("torch", "float32"), cache, seed=seed, **options)

    return make


def synthetic(data: TrainingSet, epoch: int = 0, recipe: str = "glass", mode: str = "none") -> list[SyntheticImages]:
    source = data.synthetic(find_recipe(recipe), Foreground(mode=mode), (6, 8), match_grey=True)
    return list(source.batches(ROWS, epoch))


def same(first: list[SyntheticImages], second: list[SyntheticImages]) -> bool:
    return all(
        torch.equal(one.levels[0], two.levels[0]) and np.array_equal(one.masks, two.masks)
        for one, two in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_what_one_process_draws(images: Make, workers: int) -> None:
    alone, shared = synthetic(images(workers=0)), synthetic(images(workers=workers))

    assert same(alone, shared)


def test_foregrounds_come_with_the_flaws_that_lie_on_them(images: Make) -> None:
    for batch in synthetic(images(workers=1), mode="disc", recipe="aand"):
        assert batch.foregrounds.shape == batch.masks.shape
        assert 0 < batch.foregrounds.mean() < 1
        assert batch.fallbacks or not (batch.masks & ~batch.foregrounds).any()
    assert all(batch.foregrounds.all() for batch in synthetic(images(workers=0), mode="none"))


@pytest.mark.parametrize("workers", [0, 2])
def test_jittered_good_halves_come_with_their_flaws(images: Make, workers: int) -> None:
    data = images(workers=workers)
    plain = np.stack(list(data.images()))

    for rows, batch in zip(ROWS, synthetic(data, recipe="slsg-official"), strict=True):
        assert batch.normal is not None
        (good,), (flawed,) = ([level.numpy() for level in levels] for levels in (batch.normal, batch.levels))
        outside = ~batch.masks[:, None].repeat(3, axis=1)
        assert np.array_equal(good[outside], flawed[outside])
        assert not np.array_equal(good, flawed)
        assert np.abs(good - plain[rows]).max() > 0.01, "jittered"


def test_jittered_halves_do_not_depend_on_the_workers(images: Make) -> None:
    alone, shared = (synthetic(images(workers=workers), recipe="slsg-official") for workers in (0, 2))

    assert same(alone, shared)
    assert all(torch.equal(one.normal[0], two.normal[0]) for one, two in zip(alone, shared, strict=True))


@pytest.mark.parametrize("recipe", ["glass", "slsg"])
def test_good_halves_are_left_out_where_they_are_the_training_images(images: Make, recipe: str) -> None:
    data = images(workers=0)

    assert all(batch.normal is None for batch in synthetic(data, recipe=recipe))
    source = data.synthetic(find_recipe(recipe), Foreground(), (6, 8), match_grey=True)
    assert source._loader.collate_fn([source._dataset[SampleKey(0, 0, 0)]])[1] is None, (
        "nothing more crosses the border of a process"
    )


def test_examples_show_the_good_image_that_the_flaw_was_put_on(images: Make) -> None:
    source = images(workers=0).synthetic(find_recipe("slsg-official"), Foreground(), (6, 8), match_grey=True)

    for good, mask, flawed in source.examples(3):
        assert np.array_equal(good[mask == 0], flawed[mask == 0])


def test_an_epoch_repeats_itself_and_no_other(images: Make) -> None:
    source = images(workers=1).synthetic(find_recipe("glass"), Foreground(), (6, 8), match_grey=True)

    first, second, again = (list(source.batches(ROWS, epoch)) for epoch in (0, 1, 0))

    assert same(first, again)
    assert not any(np.array_equal(one.masks, two.masks) for one, two in zip(first, second, strict=True))


def test_seeds_differ_and_an_image_drawn_twice_gets_two_flaws(images: Make) -> None:
    first, second = synthetic(images(workers=0)), synthetic(images(workers=0, seed=1))

    assert not same(first, second)
    assert not np.array_equal(first[0].masks[0], first[1].masks[1]), "both are synthesized on image 0"


def test_flaws_leave_the_rest_of_the_image_and_the_global_generator_alone(images: Make) -> None:
    data = images(workers=1)
    before = torch.random.get_rng_state()
    batches = synthetic(data)
    normal = np.stack(list(data.images()))

    for rows, batch in zip(ROWS, batches, strict=True):
        outside = ~batch.masks[:, None].repeat(3, axis=1)
        difference = np.abs(batch.levels[0].numpy() - normal[rows])
        assert difference[outside].max() < 1e-6
        assert difference[~outside].max() > 0.1
        assert batch.masks.any(axis=(1, 2)).all()
        assert batch.fallbacks == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cached_images_cross_process_borders_as_paths(images: Make) -> None:
    source = images().synthetic(find_recipe("glass"), Foreground(), (6, 8), match_grey=False)
    table = source._loader.dataset._images.table

    copied = pickle.dumps(table)

    assert len(copied) < 4000, "the pixels stay in their files"
    assert np.array_equal(pickle.loads(copied)[3], table[3])


@pytest.mark.parametrize("count", [2, 3])
def test_a_shard_of_an_epoch_has_the_flaws_of_the_whole(images: Make, count: int) -> None:
    source = images(workers=0).synthetic(find_recipe("glass"), Foreground(), (6, 8), match_grey=True)
    rows = [np.array([0, 1]), np.array([2]), np.array([3, 0])]

    whole = list(source.batches(rows, 1))
    shards = [list(source.batches(rows, 1, shard=Shard(rank, count))) for rank in range(count)]

    for rank, shard in enumerate(shards):
        assert same(shard, Shard(rank, count).of(whole))


def test_every_recipe_trains_on_any_texture_source(images: Make, parts: Path) -> None:
    for textures in ("self", "procedural", str(parts / "train" / "good")):
        for recipe in ("aand", "slsg-structural", "slsg-logical", "slsg", "slsg-official"):
            batches = synthetic(images(workers=0, textures=textures), recipe=recipe)
            assert all(torch.isfinite(batch.levels[0]).all() for batch in batches)


def test_a_recipe_says_how_pictures_of_textures_are_brought_to_size(images: Make, tmp_path: Path) -> None:
    bands = np.repeat(np.array([[10, 120, 240]], np.uint8), 100, axis=1).repeat(100, axis=0)
    Image.fromarray(np.repeat(bands[:, :, None], 3, axis=2)).save(tmp_path / "bands.png")
    data = images(workers=0, textures=str(tmp_path))

    drawn = {
        name: data.synthetic(
            find_recipe(name), Foreground(), (6, 8), match_grey=False
        )._dataset._synthesizer.textures.draw((48, 48), np.random.default_rng(0))
        for name in ("glass", "aand")
    }

    assert not {10, 240} & set(np.unique(drawn["glass"]).tolist()), "the middle of the picture alone"
    assert {10, 120, 240} <= set(np.unique(drawn["aand"]).tolist()), "the whole picture"


def test_missing_textures_and_masks_are_named_before_anything_is_forged(images: Make, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="nowhere"):
        synthetic(images(workers=0, textures=str(tmp_path / "nowhere")))
    with pytest.raises(FlawsmithError, match="no foreground mask"):
        synthetic(images(workers=0), mode="files")


class Normal:
    """Normal batches of two images each, three an epoch."""

    def __len__(self) -> int:
        return 3

    def images(self, epoch: int) -> Iterator[np.ndarray]:
        return (np.array([(epoch + step) % 4, step]) for step in range(3))

    def epoch(self, epoch: int, shard: Shard) -> Iterator[FeatureBatch]:
        return (FeatureBatch([torch.zeros(2, 3, 48, 64)], None, (epoch, step)) for step in range(3))


def batches_of(data: TrainingSet, refresh: int) -> PairedBatches:
    source = data.synthetic(find_recipe("glass"), Foreground(), (6, 8), match_grey=True)
    return PairedBatches(Normal(), source, (6, 8), 8, refresh=refresh)


def sums(batches: PairedBatches, epoch: int) -> list[float]:
    return [float(batch.synthetic[0].double().sum()) for batch in batches.epoch(epoch)]


def test_a_pool_serves_its_epochs_in_other_orders_and_is_then_forged_anew(images: Make) -> None:
    batches = batches_of(images(workers=0), refresh=3)

    epochs = [sums(batches, epoch) for epoch in range(4)]

    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) > 2
    assert not set(epochs[0]) & set(epochs[3])


def test_a_pool_is_drawn_once_though_a_trainer_stops_asking_after_the_last_batch(images: Make) -> None:
    batches = batches_of(images(workers=0), refresh=3)
    synthesize, drawn_in = batches.synthetic.batches, []
    batches.synthetic.batches = lambda rows, epoch, shard: drawn_in.append(epoch) or synthesize(rows, epoch, shard)

    for epoch in range(4):
        taken = list(islice(batches.epoch(epoch), len(batches)))

    assert len(taken) == len(batches)
    assert drawn_in == [0, 3]


def test_a_run_resumed_within_a_pool_sees_what_it_would_have_seen(images: Make) -> None:
    data = images(workers=0)
    uninterrupted, resumed = (batches_of(data, refresh=3) for _ in range(2))
    sums(uninterrupted, 0)

    assert sums(resumed, 2) == sums(uninterrupted, 2)


def test_flaws_are_cells_where_any_of_their_pixels_is(images: Make) -> None:
    batches = batches_of(images(workers=0), refresh=1)

    for batch in batches.epoch(0):
        assert batch.cells.shape == (2 * 6 * 8,)
        assert 0 < int(batch.cells.sum()) < len(batch.cells)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_mask_is_one_line_from_a_worker_too(images: Make, tmp_path: Path, workers: int) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()

    with pytest.raises(FlawsmithError, match="no foreground mask") as raised:
        synthetic(images(workers=workers, foregrounds=masks), mode="files")

    assert "\n" not in str(raised.value)
