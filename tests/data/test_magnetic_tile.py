"""The magnetic tile set as released: masks beside the images, a split of our own, and masks that mark nothing."""

from __future__ import annotations

import shutil
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
    return trees.magnetic_tile(tmp_path / "Magnetic-tile-defect-datasets.")


def stems(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.image.stem for sample in samples]


def test_every_fifth_good_image_is_a_test_image_and_the_others_are_learned_from(root: Path) -> None:
    dataset = layouts.load(root)

    assert dataset.layout == "magnetic_tile"
    assert stems(dataset.test_good) == ["exp1_num_00", "exp1_num_05", "exp1_num_10"]
    assert stems(dataset.good_train) == [f"exp1_num_{i:02d}" for i in (1, 2, 3, 4, 6, 7, 8, 9, 11)]
    assert {sample.image.suffix for sample in dataset.samples} == {".jpg"}


def test_flawed_images_have_the_mask_beside_them(root: Path) -> None:
    dataset = layouts.load(root)

    assert dataset.defects == ("blowhole", "break", "crack", "fray", "uneven")
    assert all(sample.masks == (sample.image.with_suffix(".png"),) for sample in dataset.test_flawed)
    assert dataset.unused_masks == ()


def test_flawed_images_whose_mask_marks_nothing_are_left_out_and_noted(root: Path) -> None:
    dataset = layouts.load(root)

    assert len(dataset.test_flawed) == 9
    assert dataset.left_out == (root / "MT_Uneven/Imgs/exp1_num_1.jpg",)
    assert dataset.notes == ("left out: 1 flawed image whose mask marks nothing (MT_Uneven/Imgs/exp1_num_1.jpg)",)


def test_order_on_disk_does_not_matter(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in sorted(root.rglob("*.*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    assert stems(layouts.load(copy).samples) == stems(layouts.load(root).samples)


def test_missing_mask_leaves_its_image_for_image_figures_and_doctor_names_it(root: Path) -> None:
    (root / "MT_Break/Imgs/exp1_num_0.png").unlink()

    (finding,) = (item for item in check(layouts.load(root)).items if item.name == "missing-mask")

    assert finding.where == (root / "MT_Break/Imgs/exp1_num_0.jpg",)


def test_missing_image_leaves_an_orphaned_mask(root: Path) -> None:
    (root / "MT_Break/Imgs/exp1_num_0.jpg").unlink()

    assert layouts.load(root).unused_masks == (root / "MT_Break/Imgs/exp1_num_0.png",)


def test_mask_that_cannot_be_read_is_an_error_of_the_doctor_and_not_of_reading(root: Path) -> None:
    (root / "MT_Break/Imgs/exp1_num_0.png").write_bytes(b"no image")

    findings = check(layouts.load(root))

    assert [item.where for item in findings.of("error")] == [(root / "MT_Break/Imgs/exp1_num_0.png",)]


def test_left_out_images_are_a_note_and_not_a_warning(root: Path) -> None:
    (finding,) = (item for item in check(layouts.load(root)).items if item.name == "left-out")

    assert (finding.severity, finding.where) == ("note", (root / "MT_Uneven/Imgs/exp1_num_1.jpg",))


def test_good_images_are_held_out_or_come_from_a_folder_beside_the_data(root: Path, trees: ModuleType) -> None:
    assert calibration_split(layouts.load(root), seed=0).source == "held-out"

    trees.picture(root / "validation" / "good" / "0.png", seed=99)

    assert calibration_split(layouts.load(root), seed=0).source == "validation"


def test_detection_names_what_it_saw(root: Path) -> None:
    assert layouts.load(root).recognised == (
        "magnetic_tile layout, because it has MT_Free/Imgs/, MT_Blowhole/Imgs/, MT_Break/Imgs/, MT_Crack/Imgs/, "
        "MT_Fray/Imgs/, MT_Uneven/Imgs/"
    )


def test_without_good_images_the_reason_is_said(root: Path) -> None:
    shutil.rmtree(root / "MT_Free")

    with pytest.raises(FlawsmithError, match=r"almost in magnetic_tile layout: MT_Blowhole/ is there, but no MT_F"):
        layouts.load(root)


def test_good_images_alone_are_not_read_together_with_their_masks(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "MT_Free" / "Imgs" / "a.jpg")

    with pytest.raises(FlawsmithError, match=r"layout: MT_Free/Imgs/ is there, but no folder of a defect type"):
        layouts.load(tmp_path)
    assert layouts.load(tmp_path, "folder").layout == "folder"


def test_empty_folder_of_good_images_is_an_error(root: Path) -> None:
    shutil.rmtree(root / "MT_Free")
    (root / "MT_Free" / "Imgs").mkdir(parents=True)

    with pytest.raises(FlawsmithError, match=r"put the \.jpg files of the set there"):
        layouts.load(root)


def test_asked_for_on_another_category_it_refuses_and_says_what_it_expects(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match=r"not in magnetic_tile layout; expected MT_Free/Imgs/"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "magnetic_tile")


@pytest.mark.real_data
def test_split_is_that_of_the_shared_set(real_data: Path, tmp_path: Path) -> None:
    """The shared copy of the set was split by the same rule before this layout was written."""
    shared = real_data / "magnetic_tile" / "magnetic_tile"
    for part in ("train/good", "test/good"):
        for image in (shared / part).iterdir():
            target = tmp_path / "MT_Free" / "Imgs" / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(image)
    for image in (shared / "test" / "fray").iterdir():
        target = tmp_path / "MT_Fray" / "Imgs" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(image)

    dataset = layouts.load(tmp_path)

    assert stems(dataset.test_good) == sorted(path.stem for path in (shared / "test/good").iterdir())
    assert len(dataset.good_train) == 761
