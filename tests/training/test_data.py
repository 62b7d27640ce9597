"""Training images: decoded once, kept at the network's size, normalised last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.data.bursts import read_thumbnails
from flawsmith.data.layouts import load
from flawsmith.data.splits import calibration_split
from flawsmith.features import extract
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import PixelExtractor
from flawsmith.runtime import image
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.roi import RegionOfInterest
from flawsmith.runtime.tiles import Tiling
from flawsmith.synthesis.views import View
from flawsmith.training.data import FirstLook, TrainingImages, TrainingSet

NETWORK, OTHER = Geometry(size=(48, 64)), Geometry(size=(40, 40), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PIXELS = PixelExtractor("torch", "float32")
Make = Callable[..., TrainingSet]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is decoded from here on."""
    counts: Counter[str] = Counter()
    decode_stream = image.read_image

    def counted(stream: Any, name: str, max_pixels: int) -> Any:
        counts[name] += 1
        return decode_stream(stream, name, max_pixels)

    monkeypatch.setattr(image, "read_image", counted)
    return counts


@pytest.fixture
def training_set(tmp_path: Path) -> Make:
    def make(folder: Path, geometry: Geometry = NETWORK) -> TrainingSet:
        cache = FeatureCache("pixels", tmp_path / "cache")
        return TrainingSet(load(folder).good_train, geometry, PIXELS, cache, seed=0)

    return make


def test_a_run_decodes_an_image_that_is_learned_from_once_and_a_held_out_one_twice(
    train_small: Callable[..., Any],
    parts: Path,
    tmp_path: Path,
    decoded: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GLASS asks for images in two sizes; their values are looked at, and thumbnails tell bursts, then the split."""
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flawsmith.data.bursts.open_image", lambda *_: pytest.fail("read for its thumbnail alone"))

    train_small("glass", parts, tmp_path / "run")

    split = calibration_split(load(parts), 0)
    assert {decoded[str(sample.image)] for sample in split.train} == {1}
    assert {decoded[str(sample.image)] for sample in split.calibration} == {2}


def test_a_training_on_other_images_takes_the_graph_of_its_backbone_from_the_cache(
    train_small: Callable[..., Any],
    draw_parts: Callable[..., Path],
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "cache"))
    made: list[str] = []
    to_onnx = extract.to_onnx

    def counted(module: Any, *arguments: Any, **options: Any) -> bytes:
        made.append(type(module).__name__)
        return to_onnx(module, *arguments, **options)

    monkeypatch.setattr(extract, "to_onnx", counted)
    others = draw_parts(tmp_path / "others", good=6)
    train_small("padim", others, tmp_path / "first")
    train_small("padim", parts, tmp_path / "second")

    assert made == ["Backbone"]


@pytest.mark.parametrize("tiling", [None, Tiling(size=56, overlap=8)])
def test_first_look_leaves_pixels_and_thumbnails_in_the_cache(
    parts: Path, tmp_path: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch, tiling: Tiling | None
) -> None:
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "cache"))
    paths = [sample.image for sample in load(parts).good_train]
    look = FirstLook((NETWORK, OTHER), tiling, paths[:3])
    expected = [thumbnail.tobytes() for thumbnail in read_thumbnails(paths)]
    decoded.clear()

    thumbnails = [thumbnail.tobytes() for thumbnail in look.thumbnails(paths)]
    again = [thumbnail.tobytes() for thumbnail in FirstLook((NETWORK, OTHER), tiling, ()).thumbnails(paths)]
    cache = FeatureCache("pixels", tmp_path / "cache")
    data = TrainingSet(load(parts).good_train, NETWORK, PIXELS, cache, seed=0, tiling=tiling)
    images = list(data.images(OTHER))

    assert set(decoded.values()) == {1}
    assert thumbnails == again == expected
    assert set(look.values) == set(paths[:3])
    assert look.images == set(paths)
    first = decode(paths[0]) if tiling is None else data.rows[0].tile.of(decode(paths[0]))
    np.testing.assert_array_equal(images[0], OTHER.apply(np.ascontiguousarray(first)))


@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
def test_features_and_images_of_any_size_equal_what_inspection_sees(
    training_set: Make, parts: Path, policy: str, decoded: Counter[str]
) -> None:
    network = NETWORK.model_copy(update={"policy": policy})
    data = training_set(parts, network)

    images, small = np.stack(list(data.images())), np.stack(list(data.images(OTHER)))
    features = data.features().batch([0, 1])[0].numpy()

    files = [decode(sample.image) for sample in data.samples]
    np.testing.assert_array_equal(images, np.stack([network.apply(file) for file in files]))
    np.testing.assert_array_equal(small, np.stack([OTHER.apply(file) for file in files]))
    np.testing.assert_array_equal(features, images[:2].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("policy", ["squash", "letterbox"])
def test_views_are_made_of_the_pixels_that_the_network_sees_and_kept(
    training_set: Make, tmp_path: Path, decoded: Counter[str], policy: str
) -> None:
    """Squashed images are turned as the part is, not as their squashed picture."""
    folder = tmp_path / "bars" / "train" / "good"
    folder.mkdir(parents=True)
    bar = np.zeros((48, 96, 3), np.uint8)
    bar[16:32, 24:72] = 200
    for number in range(2):
        Image.fromarray(bar + np.uint8(number)).save(folder / f"{number}.png")
    (tmp_path / "bars" / "test" / "good").mkdir(parents=True)
    geometry = Geometry(size=(48, 48), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), policy=policy)
    data = training_set(tmp_path / "bars", geometry)
    wanted = [(1, View()), (0, View(mirrored=True, exposure=0.5)), (0, View(degrees=90))]

    as_it_is, mirrored, turned = data.views(wanted).batch([0, 1, 2])[0].numpy()
    again = training_set(tmp_path / "bars", geometry).views(wanted).batch([2])[0].numpy()[0]

    images = data.features().batch([0, 1])[0].numpy()
    np.testing.assert_allclose(as_it_is, images[1], atol=1e-3)
    np.testing.assert_allclose(mirrored, images[0][..., ::-1] / 2, atol=1e-3)
    rows, columns = np.nonzero(turned[0] > 0.4)
    width = 48 if policy == "squash" else 24  # of 48 network pixels, squashed to half or not
    assert np.ptp(columns) + 1 == pytest.approx(8, abs=1)
    assert np.ptp(rows) + 1 == pytest.approx(width, abs=1)
    np.testing.assert_array_equal(again, turned)
    assert set(decoded.values()) == {1}


def test_another_size_that_is_asked_for_first_shares_the_decoding(
    training_set: Make, parts: Path, decoded: Counter[str]
) -> None:
    data = training_set(parts)

    list(data.images(OTHER))
    data.features()
    list(data.images())
    list(training_set(parts).images(OTHER))

    assert set(decoded.values()) == {1}


def test_files_of_all_depths_keep_what_inspection_sees(training_set: Make, tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "mixed"
    folder.mkdir()
    for number in range(4):
        deep = number % 2 == 1
        values = rng.integers(0, 65536 if deep else 256, (60, 50 + 10 * number), dtype=np.uint16 if deep else np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    network = NETWORK.model_copy(update={"policy": "letterbox"})

    data = training_set(folder, network)

    for sample, array in zip(data.samples, data.images(), strict=True):
        np.testing.assert_array_equal(array, network.apply(decode(sample.image)))
    table = data._table(network)
    assert {table[row].dtype.name for row in range(4)} == {"uint8", "float32"}


def test_file_is_decoded_once_for_all_of_its_tiles_and_sizes(
    tmp_path: Path, parts: Path, decoded: Counter[str]
) -> None:
    def make(tiling: Tiling | None) -> TrainingSet:
        cache = FeatureCache("pixels", tmp_path / "cache")
        return TrainingSet(load(parts).good_train, NETWORK, PIXELS, cache, seed=0, tiling=tiling)

    tiled, whole = make(Tiling(size=56, overlap=8)), make(None)
    images, small = np.stack(list(tiled.images())), np.stack(list(tiled.images(OTHER)))
    tiled.features()
    once = dict(decoded)
    make(Tiling(size=56, overlap=8)).features()

    assert set(once.values()) == {2}  # once more for another size that is asked for later
    assert dict(decoded) == once
    assert len(tiled) == 6 * len(tiled.samples) == 6 * len(whole)
    for row, image_of_tile, small_tile in zip(tiled.rows, images, small, strict=True):
        tile = np.ascontiguousarray(row.tile.of(decode(row.path)))
        np.testing.assert_array_equal(image_of_tile, NETWORK.apply(tile))
        np.testing.assert_array_equal(small_tile, OTHER.apply(tile))
    np.testing.assert_array_equal(np.stack(list(whole.images()))[0], NETWORK.apply(decode(whole.samples[0].image)))


def test_tiles_outside_of_the_region_are_not_learned_from_and_flaws_stay_inside(tmp_path: Path, parts: Path) -> None:
    left = RegionOfInterest(include=[[(0, 0), (0.3, 0), (0.3, 1), (0, 1)]])
    geometry = NETWORK.model_copy(update={"region": left})
    cache = FeatureCache("pixels", tmp_path / "cache")
    samples = load(parts).good_train[:2]
    data = TrainingSet(samples, geometry, PIXELS, cache, seed=0, tiling=Tiling(size=56, overlap=8))

    table = data._table(geometry)
    seen = TrainingImages(table, data.rows, geometry).seen(0)

    assert {row.tile.left for row in data.rows if row.tile is not None} == {0, 28}
    assert seen[:, : int(64 * 0.3 * 112 / 56) - 1].all() and not seen[:, int(64 * 0.3 * 112 / 56) + 1 :].any()
    assert (table[0][:, 45:] == 128).all()
