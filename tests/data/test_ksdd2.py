"""KolektorSDD2: masks say what is good, flawed training images are left out, and images without a mask are not used."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.samples import Sample
from flawsmith.data.splits import calibration_split
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.ksdd2(tmp_path / "KolektorSDD2")


def stems(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.image.stem for sample in samples]


def test_masks_say_which_images_are_flawed(root: Path) -> None:
    dataset = layouts.load(root)

    assert (dataset.layout, dataset.category) == ("ksdd2", "KolektorSDD2")
    assert stems(dataset.good_train) == ["10000", "10001", "10002", "10004", "10005", "10006"]
    assert stems(dataset.test_good) == ["20000", "20001", "20002"]
    assert stems(dataset.test_flawed) == ["20003"]
    assert dataset.test_flawed[0].masks == (root / "test/20003_GT.png",)
    assert dataset.unused_masks == ()


def test_flawed_training_images_are_left_out_and_counted(root: Path) -> None:
    dataset = layouts.load(root)

    assert [path.name for path in dataset.left_out] == ["10003.png", "10007.png"]
    assert dataset.notes == ("left out: 2 flawed images of train/, since good images alone are learned from",)
    assert [item.severity for item in check(dataset).items if item.name == "left-out"] == ["note"]


def test_images_without_a_mask_are_not_used_and_named(root: Path) -> None:
    (root / "train/10001_GT.png").unlink()
    (root / "test/20003_GT.png").unlink()

    dataset = layouts.load(root)

    assert "10001" not in stems(dataset.good_train)
    assert dataset.test_flawed == ()
    assert dataset.notes[-1] == (
        "not used: 2 images without a readable mask to tell good from flawed (train/10001.png, test/20003.png); "
        "copy the masks <name>_GT.png anew"
    )


def test_unreadable_mask_is_an_error_of_the_doctor_and_its_image_is_not_used(root: Path) -> None:
    (root / "train/10001_GT.png").write_bytes(b"no image")

    dataset = layouts.load(root)

    assert "10001" not in stems(dataset.good_train)
    assert [item.where for item in check(dataset).of("error")] == [(root / "train/10001_GT.png",)]


def test_mask_without_an_image_is_an_orphan(root: Path) -> None:
    (root / "train/10001.png").unlink()

    assert layouts.load(root).unused_masks == (root / "train/10001_GT.png",)


def test_mask_that_is_mended_is_read_again(root: Path, trees: ModuleType) -> None:
    assert "10001" in stems(layouts.load(root).good_train)

    trees.mask(root / "train/10001_GT.png", size=(12, 11))

    assert "10001" not in stems(layouts.load(root).good_train)


def test_good_images_are_held_out_or_come_from_a_folder_beside_the_data(root: Path, trees: ModuleType) -> None:
    assert calibration_split(layouts.load(root), seed=0).source == "held-out"

    trees.picture(root / "validation" / "good" / "0.png", seed=99)

    assert calibration_split(layouts.load(root), seed=0).source == "validation"


def test_detection_names_what_it_saw(root: Path) -> None:
    assert layouts.load(root).recognised == (
        "ksdd2 layout, because in train/ and test/ images have a mask <name>_GT beside them"
    )


def test_without_any_mask_nothing_is_learned_and_the_reason_is_said(root: Path) -> None:
    for path in root.rglob("*_GT.png"):
        path.unlink()

    with pytest.raises(
        FlawsmithError, match=r"nearest is .*ksdd2 \(train/ has numbered images, but train/ none with a"
    ):
        layouts.load(root)


def test_training_images_that_are_all_flawed_are_an_error(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "train" / "10000.png")
    trees.mask(tmp_path / "train" / "10000_GT.png")

    with pytest.raises(FlawsmithError, match="no image has a black mask"):
        layouts.load(tmp_path)


def test_asked_for_on_another_category_it_refuses_and_says_what_it_expects(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match=r"not in ksdd2 layout; expected train/ and test/"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "ksdd2")
