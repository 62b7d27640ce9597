"""BTAD: ok and ko instead of good and a defect's name, and suffixes that masks and images need not share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.splits import calibration_split
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.btad(tmp_path / "BTech_Dataset_transformed" / "01")


# Reading


@pytest.mark.parametrize(
    ("category", "image", "mask"), [("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")]
)
def test_each_category_is_read_whatever_its_suffixes(
    tmp_path: Path, trees: ModuleType, category: str, image: str, mask: str
) -> None:
    root = trees.btad(tmp_path / "BTAD" / category)

    dataset = layouts.load(root)

    assert (dataset.layout, dataset.category, dataset.dataset) == ("btad", category, "BTAD")
    assert [len(s) for s in (dataset.good_train, dataset.test_good, dataset.test_flawed)] == [6, 2, 3]
    assert {s.image.suffix for s in dataset.samples} == {image}
    truth = root / "ground_truth" / "ko"
    assert [s.masks for s in dataset.test_flawed] == [(truth / f"000{i}{mask}",) for i in range(3)]
    assert dataset.defects == ("ko",)
    assert (dataset.good_val, dataset.unused_masks, dataset.notes) == ((), (), ())


def test_good_images_are_held_out_or_come_from_a_folder_beside_the_data(root: Path, trees: ModuleType) -> None:
    assert calibration_split(layouts.load(root), seed=0).source == "held-out"

    trees.picture(root / "validation" / "ok" / "0.png", seed=99)

    assert calibration_split(layouts.load(root), seed=0).source == "validation"


# Detection


def _whole(root: Path) -> str:
    return "train/ok/ and test/ko/ and ground_truth/ko/"


def _no_masks(root: Path) -> str:
    shutil.rmtree(root / "ground_truth")
    return "train/ok/ and test/ko/"


def _no_test(root: Path) -> str:
    shutil.rmtree(root / "test")
    return "train/ok/ and ground_truth/ko/"


def _other_case(root: Path) -> str:
    for folder, other in (("test/ko", "test/KO"), ("train/ok", "train/OK"), ("ground_truth", "Ground_Truth")):
        (root / folder).rename(root / other)
    return "train/ok/ and test/KO/ and Ground_Truth/ko/"


@pytest.mark.parametrize("change", [_whole, _no_masks, _no_test, _other_case], ids=lambda f: f.__name__[1:])
def test_detection_names_what_it_saw(root: Path, change: Callable[[Path], str]) -> None:
    reason = change(root)

    assert layouts.load(root).recognised == f"btad layout, because it has {reason}"


def _other_defect(root: Path) -> None:
    (root / "test" / "ko").rename(root / "test" / "crack")
    (root / "ground_truth" / "ko").rename(root / "ground_truth" / "crack")


def _good(root: Path) -> None:
    (root / "train" / "ok").rename(root / "train" / "good")


@pytest.mark.parametrize("change", [_other_defect, _good], ids=lambda f: f.__name__[1:])
def test_without_its_names_a_category_is_mvtec(root: Path, change: Callable[[Path], None]) -> None:
    change(root)

    assert layouts.detect(root).name == "mvtec"


def test_root_of_the_set_lists_its_categories(root: Path, trees: ModuleType) -> None:
    trees.btad(root.parent / "02")

    with pytest.raises(FlawsmithError, match=r"2 categories \(01, 02\); pick one"):
        layouts.load(root.parent)


def test_empty_training_folder_is_an_error(root: Path) -> None:
    for image in (root / "train" / "ok").iterdir():
        image.unlink()

    with pytest.raises(FlawsmithError, match="put images of good parts there"):
        layouts.load(root)


def test_asked_for_on_another_category_it_refuses_and_says_what_it_expects(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match=r"not in btad layout; expected train/ok/, test/\{ok,ko\}/"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "btad")


# What the doctor says


def oddities(root: Path) -> dict[str, list[str]]:
    found = [item for item in check(layouts.load(root)).items if not item.name.startswith(("few-", "official-"))]
    return {item.name: [path.relative_to(root).as_posix() for path in item.where] for item in found}


def test_mixed_suffixes_are_no_oddity(root: Path) -> None:
    assert oddities(root) == {}


def test_missing_orphaned_and_empty_masks_are_found(root: Path, trees: ModuleType) -> None:
    truth = root / "ground_truth" / "ko"
    (truth / "0001.png").rename(truth / "0009.png")
    trees.mask(truth / "0002.png", empty=True)

    assert oddities(root) == {
        "missing-mask": ["test/ko/0001.bmp"],
        "orphan-mask": ["ground_truth/ko/0009.png"],
        "empty-mask": ["ground_truth/ko/0002.png"],
    }


def test_black_masks_of_good_images_are_no_oddity_but_marked_ones_are(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "ok" / "0000.png", empty=True)
    assert oddities(root) == {}

    trees.mask(root / "ground_truth" / "ok" / "0001.png")

    assert oddities(root) == {"mask-of-good": ["ground_truth/ok/0001.png"]}
