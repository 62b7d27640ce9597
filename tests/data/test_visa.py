"""VisA: one table for all categories, masks of small numbers, and one line where table and files disagree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.samples import Sample
from flawsmith.data.splits import calibration_split
from flawsmith.pipeline.masks import read_mask
from flawsmith.runtime.errors import FlawsmithError

HEADER = "object,split,label,image,mask\n"


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.visa(tmp_path / "VisA" / "candle")


@pytest.fixture
def table(root: Path, trees: ModuleType) -> Path:
    return trees.visa_table(root)


def edit(table: Path, old: str, new: str) -> None:
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [s.image.name for s in samples]


# Reading


def test_category_gives_every_split_of_the_table(root: Path) -> None:
    dataset = layouts.load(root)

    assert (dataset.layout, dataset.category, dataset.dataset) == ("visa", "candle", "VisA")
    assert names(dataset.good_train) == [f"{i:04d}.JPG" for i in range(6)]
    assert names(dataset.test_good) == ["0006.JPG", "0007.JPG"]
    assert names(dataset.test_flawed) == ["000.JPG", "001.JPG", "002.JPG"]
    assert (dataset.good_val, dataset.notes, dataset.unused_masks) == ((), (), ())
    assert {(s.category, s.dataset) for s in dataset.samples} == {("candle", "VisA")}
    assert dataset.defects == ("anomaly",)


def test_each_flawed_image_has_the_mask_of_its_row(root: Path) -> None:
    dataset = layouts.load(root)

    truth = root / "Data" / "Masks" / "Anomaly"
    assert [s.masks for s in dataset.test_flawed] == [(truth / f"{i:03d}.png",) for i in range(3)]
    assert all(s.masks == () for s in (*dataset.good_train, *dataset.test_good))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_any_number_but_zero_marks_a_flaw(root: Path, mode: str) -> None:
    pixels = np.zeros((12, 10), np.uint8)
    pixels[0, :4] = (1, 2, 3, 255)
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 1, 0, 0, 0, 9])
        pixels[0, 3] = 0  # a number without a colour of its own is black
    picture.save(root / "Data" / "Masks" / "Anomaly" / "000.png")

    truth = [read_mask(sample) for sample in layouts.load(root).test_flawed]

    np.testing.assert_array_equal(truth[0], pixels > 0)
    assert [int(mask.sum()) for mask in truth[1:] if mask is not None] == [12, 12]


def test_order_of_the_rows_does_not_matter(root: Path, table: Path) -> None:
    before = layouts.load(root)
    header, *rows = table.read_text().splitlines(keepends=True)
    table.write_text(header + "".join(sorted(rows)))

    assert layouts.load(root) == before


def test_rows_of_other_objects_are_left_alone(root: Path, table: Path) -> None:
    before = layouts.load(root)
    with table.open("a") as stream:
        stream.write("pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,\n")
        stream.write("pcb1,holiday,unheard-of,nowhere.JPG,nothing.png\n")

    assert layouts.load(root) == before


def test_categories_of_one_table_are_read_apart(root: Path, trees: ModuleType) -> None:
    other = trees.visa(root.parent / "pcb1", n_train=4)

    candle, board = layouts.load(root), layouts.load(other)

    assert (len(candle.good_train), len(board.good_train)) == (6, 4)
    assert {s.image.relative_to(other).parts[0] for s in board.samples} == {"Data"}


def test_suffix_may_be_in_either_case_on_disk_and_in_the_table(root: Path, table: Path) -> None:
    folder = root / "Data" / "Images" / "Normal"
    (folder / "0000.JPG").rename(folder / "0000.jpg")
    (folder / "0001.JPG").rename(folder / "0001.jpg")
    edit(table, "Normal/0001.JPG", "Normal/0001.jpg")

    dataset = layouts.load(root)

    assert sorted(names(dataset.good_train))[:3] == ["0000.jpg", "0001.jpg", "0002.JPG"]
    assert dataset.notes == ()


def test_table_saved_by_a_spreadsheet_is_read(root: Path, table: Path) -> None:
    before = layouts.load(root)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))

    assert layouts.load(root) == before


def test_good_images_are_held_out_or_come_from_a_folder_beside_the_data(root: Path, trees: ModuleType) -> None:
    assert calibration_split(layouts.load(root), seed=0).source == "held-out"

    trees.picture(root / "validation" / "good" / "0.png", seed=99)

    assert calibration_split(layouts.load(root), seed=0).source == "validation"


def test_empty_mask_cell_leaves_a_flawed_image_without_a_mask(root: Path, table: Path) -> None:
    edit(table, "candle/Data/Masks/Anomaly/001.png", "")

    dataset = layouts.load(root)

    assert names(dataset.without_mask) == ["001.JPG"]
    assert dataset.unused_masks == (root / "Data" / "Masks" / "Anomaly" / "001.png",)


def test_mask_of_a_normal_image_belongs_to_no_flaw(root: Path, table: Path, trees: ModuleType) -> None:
    mask = trees.mask(root / "Data" / "Masks" / "Normal" / "0006.png")
    edit(table, "Normal/0006.JPG,", "Normal/0006.JPG,candle/Data/Masks/Normal/0006.png")

    dataset = layouts.load(root)

    assert all(s.masks == () for s in dataset.test_good)
    assert dataset.unused_masks == (mask,)


def test_image_without_a_row_is_noted(root: Path, trees: ModuleType) -> None:
    trees.picture(root / "Data" / "Images" / "Normal" / "0999.JPG", seed=99)

    (note,) = layouts.load(root).notes

    assert note.startswith("not used: 1 image without a row in ")


# Detection


def test_detection_names_what_it_saw(root: Path) -> None:
    assert layouts.detect(root).recognise(root) == (
        "visa layout, because it has Data/Images/Normal/ and Data/Images/Anomaly/"
    )


def test_root_of_the_set_lists_its_categories(root: Path, trees: ModuleType) -> None:
    trees.visa(root.parent / "pcb1")

    with pytest.raises(FlawsmithError, match=r"2 categories \(candle, pcb1\); pick one"):
        layouts.load(root.parent)


def test_category_that_was_rearranged_in_place_is_still_mvtec(root: Path, trees: ModuleType) -> None:
    trees.mvtec(root)

    assert layouts.detect(root).name == "mvtec"


def test_good_images_beside_normal_ones_alone_are_still_a_plain_folder(root: Path, trees: ModuleType) -> None:
    shutil.rmtree(root / "Data" / "Images" / "Anomaly")
    trees.picture(root / "good" / "a.png")

    assert layouts.detect(root).name == "folder"


def test_asked_for_on_another_category_it_refuses_and_says_what_it_expects(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match=r"not in visa layout; expected Data/Images/\{Normal,Anomaly\}/"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "visa")


# Where table and files disagree


def _no_table(root: Path, table: Path) -> None:
    table.unlink()


def _no_folder_of_tables(root: Path, table: Path) -> None:
    shutil.rmtree(table.parent)


def _table_is_a_folder(root: Path, table: Path) -> None:
    table.unlink()
    table.mkdir()


def _empty_table(root: Path, table: Path) -> None:
    table.write_text("")


def _not_text(root: Path, table: Path) -> None:
    table.write_bytes(b"\xff\xfe\x00candle")


def _another_table(root: Path, table: Path) -> None:
    edit(table, HEADER, "object,set,label,image,mask\n")


def _renamed_category(root: Path, table: Path) -> None:
    edit(table, "\ncandle,", "\npcb1,")


def _missing_image(root: Path, table: Path) -> None:
    (root / "Data" / "Images" / "Normal" / "0003.JPG").unlink()


def _missing_mask(root: Path, table: Path) -> None:
    (root / "Data" / "Masks" / "Anomaly" / "002.png").unlink()


def _image_elsewhere(root: Path, table: Path) -> None:
    edit(table, "candle/Data/Images/Normal/0003.JPG", "candle/Data/../../candle/Data/Images/Normal/0003.JPG")


def _image_twice(root: Path, table: Path) -> None:
    with table.open("a") as stream:
        stream.write("candle,test,normal,candle/Data/Images/Normal/0003.JPG,\n")


def _unknown_split(root: Path, table: Path) -> None:
    edit(table, "candle,test,normal", "candle,val,normal")


def _flawed_to_learn_from(root: Path, table: Path) -> None:
    edit(table, "candle,test,anomaly", "candle,train,anomaly")


def _short_row(root: Path, table: Path) -> None:
    with table.open("a") as stream:
        stream.write("candle,train\n")


def _nothing_to_learn_from(root: Path, table: Path) -> None:
    edit(table, "candle,train,normal", "candle,test,normal")


DISAGREEMENTS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "no table": (_no_table, "1cls.csv, which splits VisA's images; copy split_csv/1cls.csv to "),
    "no folder of tables": (_no_folder_of_tables, "there is no "),
    "table is a folder": (_table_is_a_folder, "cannot read "),
    "empty table": (_empty_table, "has no column object; expected object,split,label,image,mask"),
    "not text": (_not_text, "copy it anew from VisA's archive"),
    "another table": (_another_table, "has no column split"),
    "renamed category": (_renamed_category, "has no row of the object candle"),
    "missing image": (_missing_image, "names 'candle/Data/Images/Normal/0003.JPG', but there is no such image"),
    "missing mask": (_missing_mask, "names 'candle/Data/Masks/Anomaly/002.png', but there is no such image"),
    "image elsewhere": (_image_elsewhere, "but there is no such image"),
    "image twice": (
        _image_twice,
        "line 13, names 'candle/Data/Images/Normal/0003.JPG', but an earlier row",
    ),
    "unknown split": (_unknown_split, "has 'val','normal'; expected train,normal or test,normal or test,anomaly"),
    "flawed to learn from": (_flawed_to_learn_from, "has 'train','anomaly'"),
    "short row": (_short_row, "line 13, has 'train',''"),
    "nothing to learn from": (_nothing_to_learn_from, "no good images to train on"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_disagreement_is_one_line_that_helps(root: Path, table: Path, case: str) -> None:
    spoil, expected = DISAGREEMENTS[case]
    spoil(root, table)

    with pytest.raises(FlawsmithError) as caught:
        layouts.load(root)

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# What the doctor says


def test_small_numbers_in_masks_are_no_oddity(root: Path) -> None:
    assert [
        item.name for item in check(layouts.load(root)).items if not item.name.startswith(("few-", "official-"))
    ] == []


def test_black_mask_and_missing_mask_are_found(root: Path, table: Path, trees: ModuleType) -> None:
    edit(table, "candle/Data/Masks/Anomaly/001.png", "")
    trees.mask(root / "Data" / "Masks" / "Anomaly" / "000.png", empty=True)

    found = {item.name: [path.name for path in item.where] for item in check(layouts.load(root)).items}

    assert found["empty-mask"] == ["000.png"]
    assert found["missing-mask"] == ["001.JPG"]
    assert found["orphan-mask"] == ["001.png"]
