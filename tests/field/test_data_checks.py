"""What training says of its data before it begins, from headers and contents' hashes alone."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flawsmith.data.doctor import check, glance, missing_numbers
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset
from flawsmith.runtime import image as images

Spoil = Callable[[Path, ModuleType], None]


def convert(folder: Path, suffix: str, **options: int) -> None:
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(suffix), **options)
        path.unlink()


def resize(folder: Path, size: tuple[int, int]) -> None:
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            resized = picture.resize(size)
        resized.save(path)


def deepen(folder: Path, mode: str = "L") -> None:
    for position, path in enumerate(sorted(folder.iterdir())):
        if position % 2:
            values = np.random.default_rng(position).integers(0, 65536, (12, 10)).astype(np.uint16)
            Image.fromarray(values).save(path)


def _flawed_as_jpeg(root: Path, trees: ModuleType) -> None:
    convert(root / "test" / "crack", ".jpg")


def _good_as_jpeg(root: Path, trees: ModuleType) -> None:
    convert(root / "train" / "good", ".jpg")
    convert(root / "test" / "good", ".jpg")


def _flawed_as_jpeg_named_png(root: Path, trees: ModuleType) -> None:
    for path in (root / "test" / "crack").iterdir():
        with Image.open(path) as picture:
            picture.load()
        picture.save(path, format="JPEG")


def _flawed_larger(root: Path, trees: ModuleType) -> None:
    resize(root / "test" / "crack", (20, 24))


def _test_as_bmp(root: Path, trees: ModuleType) -> None:
    convert(root / "test" / "good", ".bmp")


def _mixed_depth(root: Path, trees: ModuleType) -> None:
    deepen(root / "train" / "good")


def _other_shape(root: Path, trees: ModuleType) -> None:
    resize(root / "train" / "good", (30, 12))


def _contradiction(root: Path, trees: ModuleType) -> None:
    shutil.copy(root / "test" / "crack" / "000.png", root / "test" / "good" / "copy.png")


def _leak(root: Path, trees: ModuleType) -> None:
    shutil.copy(root / "train" / "good" / "000.png", root / "test" / "crack" / "copy.png")


def _twins(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "train" / "good" / "000.bmp")


SPOILT: dict[str, tuple[Spoil, str, tuple[str, ...]]] = {
    "flawed images are JPEG": (_flawed_as_jpeg, "format-by-label", ("JPEG", "PNG", "flawed")),
    "good images are JPEG": (_good_as_jpeg, "format-by-label", ("JPEG", "PNG", "flawed")),
    "endings hide the format": (_flawed_as_jpeg_named_png, "format-by-label", ("JPEG", "PNG", "flawed")),
    "flawed images are larger": (_flawed_larger, "size-by-label", ("20 x 24", "10 x 12")),
    "good test images are stored otherwise": (_test_as_bmp, "format-by-label", ("BMP", "PNG", "good test")),
    "depths are mixed": (_mixed_depth, "mixed-depth", ("bit depths",)),
    "shapes differ": (_other_shape, "odd-size", ("--set policy=letterbox",)),
    "one content has two labels": (_contradiction, "contradictory-labels", ("both good and flawed",)),
    "a mask has the name of an image": (_twins, "twin-names", ("000.bmp and 000.png", "masks")),
    "a learned image is tested": (_leak, "leak", ("test, train",)),
}


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.mvtec(tmp_path / "bolt", n_train=6, n_good=4, n_flawed=4)


@pytest.mark.parametrize("case", SPOILT)
def test_what_spoils_a_training_is_said_before_it(root: Path, trees: ModuleType, case: str) -> None:
    spoil, name, words = SPOILT[case]
    spoil(root, trees)
    dataset = load(root)
    quick = {finding.name: finding for finding in glance(dataset)}
    thorough = {finding.name: finding for finding in check(dataset).items}
    assert quick[name] == thorough[name]
    assert all(word in quick[name].in_a_line for word in words)


def test_sound_data_are_not_remarked_on(root: Path) -> None:
    assert glance(load(root)) == ()


@pytest.mark.parametrize("look", [glance, check])
def test_threads_that_read_images_leave_the_filters_of_warnings_alone(
    root: Path, look: Callable[[Dataset], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that silence warnings for a moment can leave them silenced: the command's own were lost at times."""
    dataset = load(root)
    monkeypatch.setattr(warnings, "catch_warnings", lambda *_, **__: pytest.fail("filters were replaced"))

    look(dataset)


def test_a_glance_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load(root)
    monkeypatch.setattr(images, "read_image", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert glance(dataset) == ()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_cannot_be_read_does_not_stop_a_glance(root: Path, content: bytes) -> None:
    (root / "train" / "good" / "broken.png").write_bytes(content)
    assert glance(load(root)) == ()


def test_sizes_that_vary_freely_do_not_go_with_the_label(tmp_path: Path, trees: ModuleType) -> None:
    for number in range(12):
        for position, folder in enumerate(("good", "bad")):
            size = (12 + number % 5, 12 + number % 5)
            trees.picture(tmp_path / folder / f"{number}.png", seed=number + 100 * position, size=size)
    assert [finding.name for finding in glance(load(tmp_path))] == []


@pytest.mark.parametrize("turned", [1, 6])
def test_a_turned_photograph_has_the_size_that_it_is_shown_in(tmp_path: Path, trees: ModuleType, turned: int) -> None:
    for number in range(4):
        trees.picture(tmp_path / f"{number}.jpg", seed=number, size=(12, 24))
    exif = Image.Exif()
    exif[0x0112] = turned
    with Image.open(trees.picture(tmp_path / "x.jpg", seed=9, size=(24, 12) if turned == 6 else (12, 24))) as picture:
        picture.save(tmp_path / "x.jpg", exif=exif)
    assert glance(load(tmp_path)) == ()


# One numbering over several folders


@pytest.mark.parametrize("folders", [("train/good", "test/good"), ("train/good", "test/good", "test/crack")])
def test_a_numbering_spread_over_folders_lacks_nothing(
    tmp_path: Path, trees: ModuleType, folders: tuple[str, ...]
) -> None:
    for number in range(24):
        trees.picture(tmp_path / "bolt" / folders[number % len(folders)] / f"{number:03d}.png", seed=number)
    assert missing_numbers(load(tmp_path / "bolt")) == []


def test_a_gap_in_a_numbering_over_folders_is_found(tmp_path: Path, trees: ModuleType) -> None:
    for number in range(24):
        if number != 11:
            trees.picture(
                tmp_path / "bolt" / ("train/good", "test/good")[number % 2] / f"{number:03d}.png", seed=number
            )
    assert [path.name for path in missing_numbers(load(tmp_path / "bolt"))] == ["011.png"]


def test_folders_that_number_from_the_start_each_are_told_apart(tmp_path: Path, trees: ModuleType) -> None:
    for number in range(12):
        for position, folder in enumerate(("train/good", "test/good")):
            if (number, folder) != (5, "train/good"):
                trees.picture(tmp_path / "bolt" / folder / f"{number:03d}.png", seed=number + 100 * position)
    (missing,) = missing_numbers(load(tmp_path / "bolt"))
    assert missing == tmp_path / "bolt" / "train" / "good" / "005.png"
