"""MVTec LOCO AD: told from MVTec AD by what only it has, several masks an image, its own validation folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.splits import calibration_split
from flawsmith.pipeline.masks import read_mask
from flawsmith.runtime.errors import FlawsmithError

CONFIG = "defects_config.json"


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.mvtec_loco(tmp_path / "loco" / "bottle")


def masks_by_image(samples: tuple, truth: Path) -> dict[str, list[str]]:
    return {
        f"{s.defect}/{s.image.name}": [m.relative_to(truth / s.defect).as_posix() for m in s.masks] for s in samples
    }


# Reading


def test_category_gives_every_split(root: Path) -> None:
    dataset = layouts.load(root)

    assert (dataset.layout, dataset.category, dataset.dataset) == ("mvtec_loco", "bottle", "loco")
    counts = (dataset.good_train, dataset.good_val, dataset.test_good, dataset.test_flawed)
    assert [len(samples) for samples in counts] == [6, 3, 2, 4]
    assert dataset.defects == ("logical_anomalies", "structural_anomalies")
    assert dataset.notes == ()


def test_each_image_has_the_masks_of_its_own_folder_in_order(root: Path) -> None:
    dataset = layouts.load(root)

    assert masks_by_image(dataset.test_flawed, root / "ground_truth") == {
        "logical_anomalies/000.png": ["000/000.png", "000/001.png"],
        "logical_anomalies/001.png": ["001/000.png"],
        "structural_anomalies/000.png": ["000/000.png", "000/001.png"],
        "structural_anomalies/001.png": ["001/000.png"],
    }
    assert all(s.masks == () for s in (*dataset.good_train, *dataset.good_val, *dataset.test_good))
    assert dataset.unused_masks == ()


def test_truth_is_the_union_of_the_masks_whatever_their_grey_value(root: Path) -> None:
    first, second, *_ = layouts.load(root).test_flawed

    both, one = read_mask(first), read_mask(second)

    expected = np.zeros((12, 10), bool)
    expected[:3, :4] = True
    np.testing.assert_array_equal(one, expected)
    expected[6:9, :4] = True
    np.testing.assert_array_equal(both, expected)


def test_validation_folder_serves_calibration_and_nothing_is_held_out(root: Path) -> None:
    split = calibration_split(layouts.load(root), seed=0)

    assert split.source == "validation"
    assert {s.image.parent for s in split.calibration} == {root / "validation" / "good"}
    assert (len(split.train), len(split.calibration)) == (6, 3)


def test_without_a_validation_folder_images_are_held_out(root: Path) -> None:
    shutil.rmtree(root / "validation")

    split = calibration_split(layouts.load(root), seed=0)

    assert split.source == "held-out"


# Detection


def _nested_masks_alone(root: Path) -> str:
    (root / CONFIG).unlink()
    return "masks in ground_truth/logical_anomalies/000/"


def _structural_masks_alone(root: Path) -> str:
    (root / CONFIG).unlink()
    shutil.rmtree(root / "ground_truth" / "logical_anomalies")
    return "masks in ground_truth/structural_anomalies/000/"


def _config_alone(root: Path) -> str:
    for part in ("test", "ground_truth", "validation"):
        shutil.rmtree(root / part)
    return f"train/good/ and {CONFIG}"


def _other_case(root: Path) -> str:
    (root / CONFIG).unlink()
    (root / "ground_truth").rename(root / "Ground_Truth")
    (root / "Ground_Truth" / "logical_anomalies").rename(root / "Ground_Truth" / "Logical_Anomalies")
    return "masks in Ground_Truth/Logical_Anomalies/000/"


@pytest.mark.parametrize(
    "change", [_nested_masks_alone, _structural_masks_alone, _config_alone, _other_case], ids=lambda f: f.__name__[1:]
)
def test_either_mark_is_enough_and_is_named(root: Path, change: Callable[[Path], str]) -> None:
    reason = change(root)

    dataset = layouts.load(root)

    assert dataset.recognised.startswith("mvtec_loco layout, because it has train/good/")
    assert dataset.recognised.endswith(reason)


def _no_masks(root: Path) -> None:
    shutil.rmtree(root / "ground_truth")


def _merged_masks(root: Path) -> None:
    """One mask an image beside no folder: how some re-arrange the set to read it as MVTec AD."""
    for folder in (root / "ground_truth").glob("*/*"):
        (folder / "000.png").rename(folder.with_name(f"{folder.name}_mask.png"))
        shutil.rmtree(folder)


def _other_defects(root: Path) -> None:
    for part in ("test", "ground_truth"):
        (root / part / "logical_anomalies").rename(root / part / "hole")
        (root / part / "structural_anomalies").rename(root / part / "crack")


def _empty_folders(root: Path) -> None:
    for mask in (root / "ground_truth").rglob("*.png"):
        mask.unlink()


@pytest.mark.parametrize(
    "change", [_no_masks, _merged_masks, _other_defects, _empty_folders], ids=lambda f: f.__name__[1:]
)
def test_without_its_marks_a_category_is_mvtec(root: Path, change: Callable[[Path], None]) -> None:
    (root / CONFIG).unlink()
    change(root)

    assert layouts.detect(root).name == "mvtec"


def test_category_without_training_images_is_a_test_set(root: Path) -> None:
    shutil.rmtree(root / "train")

    dataset = layouts.load(root)

    assert (dataset.layout, len(dataset.good_train), len(dataset.test)) == ("mvtec_loco", 0, 6)
    assert "test set" in dataset.recognised
    with pytest.raises(FlawsmithError, match=r"no good image to train on .* run `flawsmith evaluate` here"):
        calibration_split(dataset, seed=0)


def test_config_alone_is_no_category(root: Path) -> None:
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "test")

    with pytest.raises(FlawsmithError, match=f"found no good images in .*{CONFIG}"):
        layouts.load(root)


def test_empty_training_folder_is_an_error(root: Path) -> None:
    for image in (root / "train" / "good").iterdir():
        image.unlink()

    with pytest.raises(FlawsmithError, match="put images of good parts there"):
        layouts.load(root)


def test_mvtec_can_be_asked_for_and_reads_the_same_samples(root: Path) -> None:
    detected, asked = layouts.load(root), layouts.load(root, "mvtec")

    assert (asked.layout, asked.recognised.split(",")[0]) == ("mvtec", "mvtec layout")
    assert asked.samples == detected.samples


def test_asked_for_on_another_category_it_refuses_and_says_what_it_expects(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match=rf"not in mvtec_loco layout; expected train/good/.*{CONFIG}"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "mvtec_loco")


def test_root_of_the_set_lists_its_categories(root: Path, trees: ModuleType) -> None:
    trees.mvtec_loco(root.parent / "pushpins")

    with pytest.raises(FlawsmithError, match=r"2 categories \(bottle, pushpins\); pick one"):
        layouts.load(root.parent)


# What the doctor says


def oddities(root: Path) -> dict[str, tuple[str, list[str]]]:
    """Findings but those on numbers of images, with the files concerned."""
    found = [item for item in check(layouts.load(root)).items if not item.name.startswith("few-")]
    return {item.name: (item.what, [path.relative_to(root).as_posix() for path in item.where]) for item in found}


def test_grey_values_and_several_masks_are_no_oddity(root: Path) -> None:
    assert oddities(root) == {}


def test_image_without_masks_and_masks_without_an_image_are_found(root: Path) -> None:
    shutil.rmtree(root / "ground_truth" / "logical_anomalies" / "001")
    (root / "test" / "structural_anomalies" / "000.png").unlink()

    assert oddities(root) == {
        "missing-mask": ("1 flawed image without a mask", ["test/logical_anomalies/001.png"]),
        "orphan-mask": (
            "2 masks without an image",
            [f"ground_truth/structural_anomalies/000/{name}.png" for name in ("000", "001")],
        ),
    }


def test_marked_masks_of_a_good_image_are_found_in_their_folder(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "good" / "000" / "000.png")

    assert oddities(root) == {
        "mask-of-good": ("1 mask of good images with marked pixels", ["ground_truth/good/000/000.png"])
    }


def test_one_empty_mask_among_several_and_one_of_another_size_are_found(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "logical_anomalies" / "000" / "001.png", empty=True)
    trees.mask(root / "ground_truth" / "structural_anomalies" / "001" / "000.png", size=(10, 12))

    found = oddities(root)

    assert found["empty-mask"][1] == ["ground_truth/logical_anomalies/000/001.png"]
    assert found["mask-size"][1] == ["ground_truth/structural_anomalies/001/000.png"]


# Real images


@pytest.mark.real_data
def test_juice_bottle_is_read_as_what_it_is(real_data: Path) -> None:
    root = real_data / "mvtec_loco" / "juice_bottle"

    dataset = layouts.load(root)

    assert dataset.recognised.startswith("mvtec_loco layout, because it has train/good/, validation/, test/")
    assert dataset.defects == ("logical_anomalies",)
    assert all(s.masks == (root / "ground_truth" / s.defect / s.image.stem / "000.png",) for s in dataset.test_flawed)
    assert dataset.unused_masks == ()
    assert calibration_split(dataset, seed=0).source == "validation"
    assert layouts.load(root, "mvtec").samples == dataset.samples
