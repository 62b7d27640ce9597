"""MVTec 3D-AD: photographs and their masks are read, heights are left alone, validation images serve calibration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.splits import calibration_split
from flawsmith.pipeline.masks import read_mask
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.mvtec_3d(tmp_path / "mvtec_3d_anomaly_detection" / "bagel")


# Reading


def test_category_gives_the_photographs_of_every_split(root: Path) -> None:
    dataset = layouts.load(root)

    identity = (dataset.layout, dataset.category, dataset.dataset)
    assert identity == ("mvtec_3d", "bagel", "mvtec_3d_anomaly_detection")
    counts = (dataset.good_train, dataset.good_val, dataset.test_good, dataset.test_flawed)
    assert [len(samples) for samples in counts] == [6, 3, 2, 4]
    assert dataset.defects == ("crack", "hole")
    assert {(s.image.parent.name, s.image.suffix) for s in dataset.samples} == {("rgb", ".png")}
    assert dataset.notes == ()


def test_each_flawed_photograph_has_the_mask_beside_it(root: Path) -> None:
    dataset = layouts.load(root)

    assert {s.image.relative_to(root).as_posix(): s.masks for s in dataset.test_flawed} == {
        f"test/{defect}/rgb/{i:03d}.png": (root / "test" / defect / "gt" / f"{i:03d}.png",)
        for defect in ("crack", "hole")
        for i in range(2)
    }
    assert all(s.masks == () for s in (*dataset.good_train, *dataset.good_val, *dataset.test_good))
    assert [mask.sum() for mask in map(read_mask, dataset.test_flawed) if mask is not None] == [12] * 4


def test_masks_of_good_photographs_belong_to_no_flaw(root: Path) -> None:
    assert layouts.load(root).unused_masks == tuple(root / "test" / "good" / "gt" / f"{i:03d}.png" for i in range(2))


def test_validation_folder_serves_calibration_and_nothing_is_held_out(root: Path) -> None:
    split = calibration_split(layouts.load(root), seed=0)

    assert split.source == "validation"
    assert {s.image.parent for s in split.calibration} == {root / "validation" / "good" / "rgb"}
    assert (len(split.train), len(split.calibration)) == (6, 3)


def test_without_a_validation_folder_images_are_held_out(root: Path) -> None:
    shutil.rmtree(root / "validation")

    assert calibration_split(layouts.load(root), seed=0).source == "held-out"


def test_photographs_alone_are_enough(root: Path) -> None:
    before = layouts.load(root).samples
    for folder in root.glob("*/*/xyz"):
        shutil.rmtree(folder)

    assert layouts.load(root).samples == before


def test_flawed_photograph_without_a_mask_is_kept_and_counted(root: Path) -> None:
    (root / "test" / "hole" / "gt" / "001.png").unlink()

    (sample,) = layouts.load(root).without_mask

    assert sample.image == root / "test" / "hole" / "rgb" / "001.png"


def test_names_and_suffixes_may_be_in_either_case(root: Path) -> None:
    (root / "test" / "hole" / "rgb").rename(root / "test" / "hole" / "RGB")
    (root / "test" / "hole" / "RGB" / "000.png").rename(root / "test" / "hole" / "RGB" / "000.PNG")

    hole = [s for s in layouts.load(root).test_flawed if s.defect == "hole"]

    assert [(s.image.name, s.masks[0].name) for s in hole] == [("000.PNG", "000.png"), ("001.png", "001.png")]


@pytest.mark.parametrize(
    ("stray", "place"),
    [
        ("train/good", "train/good/rgb/"),
        ("validation/good", "validation/good/rgb/"),
        ("test/hole", "test/hole/rgb/"),
        ("test/new kind", "test/new kind/rgb/"),
        ("test", "test/<defect>/rgb/"),
    ],
)
def test_images_beside_the_photographs_are_noted(root: Path, trees: ModuleType, stray: str, place: str) -> None:
    before = layouts.load(root).samples
    trees.picture(root / stray / "999.png", seed=999)

    dataset = layouts.load(root)

    assert dataset.samples == before
    assert dataset.notes == (f"not used: 1 image directly in {stray}/; move them to {place}",)


# Detection


def _nothing(root: Path) -> str:
    return "train/good/rgb/, validation/, test/"


def _training_alone(root: Path) -> str:
    shutil.rmtree(root / "validation")
    shutil.rmtree(root / "test")
    return "train/good/rgb/"


def _other_case(root: Path) -> str:
    (root / "train" / "good" / "rgb").rename(root / "train" / "good" / "RGB")
    (root / "validation").rename(root / "Validation")
    return "train/good/RGB/, Validation/, test/"


@pytest.mark.parametrize("change", [_nothing, _training_alone, _other_case], ids=lambda f: f.__name__[1:])
def test_detection_names_what_it_saw(root: Path, change: Callable[[Path], str]) -> None:
    reason = change(root)

    assert layouts.load(root).recognised == f"mvtec_3d layout, because it has {reason}"


def test_root_of_the_set_lists_its_categories(root: Path, trees: ModuleType) -> None:
    trees.mvtec_3d(root.parent / "tire")

    with pytest.raises(FlawsmithError, match=r"2 categories \(bagel, tire\); pick one"):
        layouts.load(root.parent)


def test_test_split_alone_is_refused(root: Path) -> None:
    with pytest.raises(FlawsmithError, match="only the test/ part"):
        layouts.load(root / "test")


def test_asked_for_on_another_category_it_refuses_and_says_what_it_expects(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match="not in mvtec_3d layout; expected train/good/rgb/"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "mvtec_3d")


def test_empty_training_folder_is_an_error(root: Path) -> None:
    for image in (root / "train" / "good" / "rgb").iterdir():
        image.unlink()

    with pytest.raises(FlawsmithError, match="put images of good parts there"):
        layouts.load(root)


# What the doctor says


def oddities(root: Path) -> dict[str, list[str]]:
    """The files of each finding but those on numbers of images."""
    found = [item for item in check(layouts.load(root)).items if not item.name.startswith(("few-", "official-"))]
    return {item.name: [path.relative_to(root).as_posix() for path in item.where] for item in found}


def test_heights_and_black_masks_of_good_photographs_are_no_oddity(root: Path) -> None:
    assert oddities(root) == {}


def test_marked_mask_of_a_good_photograph_and_mask_without_one_are_found(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "test" / "good" / "gt" / "000.png")
    trees.mask(root / "test" / "hole" / "gt" / "777.png")

    assert oddities(root) == {
        "mask-of-good": ["test/good/gt/000.png"],
        "orphan-mask": ["test/hole/gt/777.png"],
    }
