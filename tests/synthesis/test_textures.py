"""Texture sources: exact sizes, one generator one texture, any process, whatever was drawn before."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.synthesis.procedural import PAINTERS, ProceduralTextures
from flawsmith.synthesis.textures import (
    FolderTextures,
    SelfTextures,
    TextureSource,
    fitted,
    jittered,
    shuffled_patches,
    texture_source,
)

SIZES = [(1, 1), (2, 40), (33, 7), (48, 64)]


def write(path: Path, seed: int, size: tuple[int, int]) -> Path:
    """A smooth picture, so that resizing it differently would show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ProceduralTextures().draw(size, np.random.default_rng(seed))).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, size in enumerate([(50, 70), (90, 40), (64, 64), (30, 200)]):
        write(tmp_path / "textures" / f"kind{number % 2}" / f"{number}.png", number, size)
    return tmp_path / "textures"


@pytest.fixture(params=["folder", "self", "procedural"])
def source(request: pytest.FixtureRequest, folder: Path) -> TextureSource:
    files = sorted(folder.rglob("*.png"))
    sources: dict[str, TextureSource] = {
        "folder": FolderTextures(folder),
        "self": SelfTextures(files),
        "procedural": ProceduralTextures(),
    }
    return sources[request.param]


def draws(source: TextureSource, seed: int, size: tuple[int, int] = (24, 40), number: int = 12) -> list[np.ndarray]:
    return [source.draw(size, np.random.default_rng((seed, i))) for i in range(number)]


@pytest.mark.parametrize("size", SIZES)
def test_textures_have_exactly_the_size_asked_for(source: TextureSource, size: tuple[int, int], seed: int) -> None:
    for texture in draws(source, seed, size, number=20):
        assert (texture.shape, texture.dtype) == ((*size, 3), np.uint8)


def test_the_generator_decides_whatever_was_drawn_before(source: TextureSource, seed: int) -> None:
    first = draws(source, seed)
    draws(source, seed + 1, size=(17, 9))

    assert all(np.array_equal(a, b) for a, b in zip(first, draws(source, seed), strict=True))
    assert len({texture.tobytes() for texture in first}) > 1


def test_a_pickled_source_draws_the_same(source: TextureSource, seed: int) -> None:
    expected = draws(source, seed)

    copy = pickle.loads(pickle.dumps(source))

    assert all(np.array_equal(a, b) for a, b in zip(expected, draws(copy, seed), strict=True))


def test_a_pickled_source_leaves_its_pictures_behind(folder: Path) -> None:
    source = FolderTextures(folder)
    empty = len(pickle.dumps(source))

    draws(source, 0, size=(200, 200))

    assert len(pickle.dumps(source)) == empty


@pytest.mark.parametrize("cache_bytes", [0, 3 * 24 * 40 * 2])
def test_memory_bounds_do_not_change_results(folder: Path, cache_bytes: int, seed: int) -> None:
    bounded = FolderTextures(folder, cache_bytes=cache_bytes)

    assert all(
        np.array_equal(a, b) for a, b in zip(draws(bounded, seed), draws(FolderTextures(folder), seed), strict=True)
    )


def test_all_files_below_a_folder_are_equally_likely(folder: Path) -> None:
    source = FolderTextures(folder)
    rng = np.random.default_rng(0)
    counts: dict[bytes, int] = {}

    for _ in range(800):
        key = source.draw((8, 8), rng).tobytes()
        counts[key] = counts.get(key, 0) + 1

    assert len(counts) == 4
    assert all(140 < count < 260 for count in counts.values())


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (33, 101), (64, 64), (400, 398)])
def test_crop_equals_torchvision_up_to_one_grey_level(shape: tuple[int, int]) -> None:
    image = ProceduralTextures().draw(shape, np.random.default_rng(4))

    result = fitted(image, (32, 32), "crop")

    expected = np.asarray(v2.CenterCrop(32)(v2.Resize(32)(Image.fromarray(image))))
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_crop_keeps_the_aspect_and_squash_does_not() -> None:
    # A square in the middle of a picture twice as wide as high.
    image = np.zeros((100, 200, 3), np.uint8)
    image[30:70, 80:120] = 255

    cropped, squashed = (fitted(image, (50, 50), fit)[:, :, 0] > 127 for fit in ("crop", "squash"))

    assert (np.ptp(np.argwhere(cropped), axis=0) + 1).tolist() == [20, 20]
    assert (np.ptp(np.argwhere(squashed), axis=0) + 1).tolist() == [20, 10]


def test_very_long_pictures_need_no_more_memory_than_their_target() -> None:
    line = np.zeros((1, 60_000, 3), np.uint8)

    assert fitted(line, (256, 256), "crop").shape == (256, 256, 3)


def test_a_damaged_file_is_reported_once_and_another_drawn(folder: Path, seed: int) -> None:
    (folder / "kind0" / "broken.png").write_bytes(b"no picture")
    source = FolderTextures(folder)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        first = draws(source, seed, number=60)
        second = draws(source, seed, number=60)

    assert [str(one.message).startswith(str(folder / "kind0" / "broken.png")) for one in seen] == [True]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_folder_of_damaged_files_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")

    with pytest.warns(UserWarning), pytest.raises(FlawsmithError, match="none of 2 images can be read"):
        FolderTextures(tmp_path).draw((8, 8), np.random.default_rng(0))


def test_an_empty_or_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="no images to take textures from"):
        FolderTextures(tmp_path)
    with pytest.raises(FlawsmithError, match="no such folder of textures; give one, or self, or procedural"):
        texture_source(tmp_path / "gone")
    with pytest.raises(FlawsmithError, match="no good images to take textures from"):
        texture_source("self")


def test_names_and_folders_are_resolved(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = sorted(folder.rglob("*.png"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "self" / "0.png", 0, (8, 8))

    assert isinstance(texture_source(None, good), ProceduralTextures)
    assert isinstance(texture_source("procedural", good), ProceduralTextures)
    assert isinstance(texture_source("self", good), SelfTextures)
    assert isinstance(texture_source("./self", good), FolderTextures)
    squashing = texture_source(folder, good, fit="squash")
    assert isinstance(squashing, FolderTextures)
    assert squashing.fit == "squash"


def test_sixteen_bit_images_use_the_declared_range(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 20), 2048, np.uint16)).save(path)
    rng = np.random.default_rng

    declared = SelfTextures([path], value_range=(0, 4095)).draw((8, 8), rng(0))
    full = SelfTextures([path]).draw((8, 8), rng(0))

    assert decode(path).dtype == np.uint16
    # The same jitter on mid-grey and on nearly black.
    assert declared.mean() - full.mean() > 60


def test_shuffled_patches_come_from_the_source(seed: int) -> None:
    source = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)

    result = shuffled_patches(source, np.random.default_rng(seed))

    colours = {tuple(pixel) for pixel in source.reshape(-1, 3)}
    assert {tuple(pixel) for pixel in result.reshape(-1, 3)} <= colours
    assert not np.array_equal(result, source)


def test_jitter_makes_the_same_material_visible() -> None:
    plain = np.full((8, 8, 3), 128, np.uint8)

    changes = [abs(float(jittered(plain, np.random.default_rng(i)).mean()) - 128) for i in range(100)]

    assert np.mean(changes) > 15
    assert max(changes) < 128


@pytest.mark.parametrize("painter", PAINTERS)
def test_every_painter_fills_any_size(painter: str) -> None:
    for number, size in enumerate([*SIZES, (5, 300)]):
        field = PAINTERS[painter](size, np.random.default_rng(number))

        assert (field.shape, field.dtype) == (size, np.float32)
        assert np.isfinite(field).all()


def test_procedural_textures_are_various() -> None:
    textures = np.stack(draws(ProceduralTextures(), 7, size=(64, 64), number=200)).astype(np.float64)

    grey = np.ptp(textures, axis=3).max(axis=(1, 2)) == 0
    brightness, contrast = textures.mean(axis=(1, 2, 3)), textures.mean(axis=3).std(axis=(1, 2))

    assert 0.15 < grey.mean() < 0.5
    assert brightness.std() > 30
    assert np.median(contrast) > 8
    assert np.percentile(contrast, 90) > 30
    assert (contrast > 0.5).mean() > 0.97, "hardly any texture is a plain colour"
