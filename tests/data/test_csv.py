"""A table of one's own: where it is found, how it is written, and one line where it is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.samples import Sample
from flawsmith.data.splits import calibration_split
from flawsmith.runtime.errors import FlawsmithError

HEADER = "image,label,split,defect,mask"
ROWS = [
    "images/0.png,good,train,,",
    "images/1.png,good,train,good,",
    "images/2.png,good,validation,,",
    "images/3.png,good,test,,",
    "images/4.png,flawed,test,scratch,masks/4_a.png;masks/4_b.png",
    "images/5.png,flawed,test,,",
]


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    folder = tmp_path / "line 3" / "bolt"
    for number in range(6):
        trees.picture(folder / "images" / f"{number}.png", seed=number)
    for name in ("4_a", "4_b"):
        trees.mask(folder / "masks" / f"{name}.png")
    write(folder)
    return folder


def write(root: Path, rows: list[str] | None = None, *, header: str = HEADER, name: str = "labels.csv") -> Path:
    path = root / name
    path.write_text("\n".join([header, *(ROWS if rows is None else rows)]) + "\n", encoding="utf-8")
    return path


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.image.name for sample in samples]


# Reading


@pytest.mark.parametrize("subject", ["", "labels.csv"])
def test_table_or_its_folder_gives_every_split(root: Path, subject: str) -> None:
    dataset = layouts.load(root / subject)

    assert (dataset.layout, dataset.category, dataset.dataset, dataset.root) == ("csv", "bolt", "line 3", root)
    assert names(dataset.good_train) == ["0.png", "1.png"]
    assert names(dataset.good_val) == ["2.png"]
    assert names(dataset.test_good) == ["3.png"]
    assert [(s.image.name, s.defect, len(s.masks)) for s in dataset.test_flawed] == [
        ("4.png", "scratch", 2),
        ("5.png", "defect", 0),
    ]
    assert dataset.notes == ()
    assert calibration_split(dataset, seed=0).source == "validation"


def test_named_by_hand_it_is_read_where_other_layouts_fit(root: Path, trees: ModuleType) -> None:
    trees.mvtec(root)

    assert layouts.load(root).layout == "mvtec"
    assert layouts.load(root, "csv").layout == "csv"
    assert layouts.load(root / "labels.csv").layout == "csv"
    assert "csv would fit too, but is less specific; --layout csv takes it" in layouts.load(root).near_misses


def _plain(text: str) -> bytes:
    return text.encode()


def _windows(text: str) -> bytes:
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


def _semicolons(text: str) -> bytes:
    return (
        text.replace("masks/4_a.png;masks/4_b.png", '"masks/4_a.png|masks/4_b.png"')
        .replace(",", ";")
        .replace("|", ";")
        .encode()
    )


def _tabs(text: str) -> bytes:
    return text.replace(",", "\t").encode()


def _no_last_newline(text: str) -> bytes:
    return text.rstrip("\n").encode()


def _blank_lines_and_spaces(text: str) -> bytes:
    return ("\n" + text.replace("\n", "\n\n,,,,\n").replace(",", " , ")).encode()


def _capitals(text: str) -> bytes:
    return text.replace(HEADER, HEADER.upper()).replace(",good,train", ",Good,TRAIN").encode()


def _other_order_and_columns(text: str) -> bytes:
    rows = [line.split(",") for line in text.splitlines()]
    return "\n".join(",".join(["x", *reversed(row)]) for row in rows).encode()


def _short_rows(text: str) -> bytes:
    return text.replace("train,,", "train").encode()


def _backslashes(text: str) -> bytes:
    return text.replace("/", "\\").encode()


@pytest.mark.parametrize(
    "spell",
    [
        *(_plain, _windows, _semicolons, _tabs, _no_last_newline, _blank_lines_and_spaces, _capitals),
        *(_other_order_and_columns, _short_rows, _backslashes),
    ],
    ids=lambda f: f.__name__[1:],
)
def test_spelling_does_not_matter(root: Path, spell: object) -> None:
    before = layouts.load(root)
    path = root / "labels.csv"

    path.write_bytes(spell(path.read_text()))  # type: ignore[operator]

    assert layouts.load(root).samples == before.samples


def test_paths_may_be_absolute_or_lead_elsewhere(root: Path, tmp_path: Path, trees: ModuleType) -> None:
    outside, beside = trees.picture(tmp_path / "far" / "x.png", seed=50), trees.picture(root.parent / "y.png", seed=51)
    write(root, [*ROWS, f"{outside},good,train,,", "../y.png,good,train,,"])

    dataset = layouts.load(root)

    assert {outside, beside} <= {sample.image for sample in dataset.good_train}
    assert dataset.name_of(beside) == "../y.png"
    assert check(dataset).sound


def test_tables_that_share_a_folder_give_categories_of_their_own_names(root: Path) -> None:
    write(root, name="nut.csv")

    assert [(d.category, d.dataset) for d in map(layouts.load, (root / "nut.csv", root / "labels.csv"))] == [
        ("nut", "bolt"),
        ("labels", "bolt"),
    ]
    with pytest.raises(FlawsmithError, match=r"has 2 tables \(labels.csv, nut.csv\); give one of them"):
        layouts.load(root)


def test_other_csv_files_are_left_alone(root: Path, trees: ModuleType) -> None:
    (root / "scores.csv").write_text("image,score\nimages/0.png,0.5\n")
    (root / "prices.csv").write_text("part,price\nbolt,3\n")

    assert layouts.load(root).category == "bolt"


def test_masks_of_good_images_are_left_out_and_noted(root: Path) -> None:
    write(root, [*ROWS[:-3], "images/3.png,good,test,,masks/4_a.png"])

    dataset = layouts.load(root)

    assert dataset.test_good[0].masks == ()
    assert dataset.notes == ("left out: masks that the table gives to 1 good image",)


def test_without_training_rows_it_is_a_test_set(root: Path) -> None:
    write(root, ROWS[3:])

    dataset = layouts.load(root)

    assert len(dataset.test) == 3
    with pytest.raises(FlawsmithError, match="which is a test set"):
        calibration_split(dataset, seed=0)


def test_detection_names_the_columns(root: Path) -> None:
    assert layouts.load(root).recognised == (
        "csv layout, because labels.csv has the columns image, label, split, defect, mask"
    )


def test_folder_whose_table_is_of_another_kind_says_so(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "a.png")
    (tmp_path / "scores.csv").write_text("image,score\na.png,0.5\n")

    dataset = layouts.load(tmp_path)

    assert dataset.layout == "folder"
    assert dataset.near_misses == ("not csv: scores.csv has the column image, but no column label and split",)


def test_empty_table_beside_unlabelled_folders_is_not_passed_over(root: Path) -> None:
    (root / "labels.csv").write_text("")

    with pytest.raises(FlawsmithError, match=r"almost in csv layout: labels\.csv is empty; .* --layout folder"):
        layouts.load(root)


# What is wrong

WRONG_ROWS = {
    "missing image": ("images/9.png,good,train,,", "line 8, names the image 'images/9.png', but there is no file"),
    "folder as image": ("images,good,train,,", "line 8, names the image 'images', but there is no file"),
    "missing mask": ("images/6.png,flawed,test,a,masks/9.png", "line 8, names the mask 'masks/9.png'"),
    "no image": (",good,train,,", "line 8, names no image"),
    "unknown label": ("images/6.png,ok,train,,", "line 8, has the label 'ok'; write good or flawed"),
    "label as written": ("images/6.png,Größe,train,,", "line 8, has the label 'Größe'; write good or flawed"),
    "unknown split": (
        "images/6.png,good,holdout,,",
        "line 8, has the split 'holdout'; write train, validation or test",
    ),
    "short row": ("images/6.png", "line 8, has the label ''"),
    "flawed to train on": ("images/6.png,flawed,train,,", "line 8, puts a flawed image into train"),
    "flawed to validate": ("images/6.png,flawed,val,,", "line 8, puts a flawed image into val"),
    "image twice": ("images/0.png,good,test,,", "line 8, names 'images/0.png' for test, as line 2 does for train"),
    "image twice, spelled otherwise": ("./images/../images/0.png,good,train,,", "as line 2 does for train"),
    "good image with a defect": ("images/6.png,good,test,crack,", "calls an image good and its defect 'crack'"),
    "flawed image called good": ("images/6.png,flawed,test,good,", "calls an image flawed and its defect 'good'"),
    "too many cells": ("images/6.png,good,train,,,x", "line 8, has 6 cells, the first line 5"),
    "open quotation mark": ('images/6.png,"good,train,,', "line 8: unexpected end of data; check its quotation marks"),
    "name too long": (f"{'x' * 300}.png,good,train,,", "line 8, names the image 'xxx"),
    "null byte": ("images/\0.png,good,train,,", "line 8"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_row_is_one_line_with_its_number(root: Path, trees: ModuleType, case: str) -> None:
    row, expected = WRONG_ROWS[case]
    trees.picture(root / "images" / "6.png", seed=6)
    write(root, [*ROWS, row])

    with pytest.raises(FlawsmithError) as caught:
        layouts.load(root)

    assert expected in str(caught.value)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_FILES = {
    "empty": (b"", "is empty; write a first line image,label,split"),
    "blank": (b"\xef\xbb\xbf \r\n\r\n", "is empty"),
    "header alone": (b"image,label,split\n", "names no image"),
    "no label and split": (b"image,mask\nimages/0.png,\n", "has no columns label and split"),
    "no image column": (b"file,label,split\nimages/0.png,good,train\n", "has no column image"),
    "no header": (b"images/0.png,good,train\n", "has no columns image and label and split"),
    "column twice": (b"image,label,split,label\nimages/0.png,good,train,good\n", "has the column label twice"),
    "latin-1": (
        "image,label,split\nimages/0.png,good,train\nf\xe4den.png,good,train\n".encode("latin-1"),
        "line 3, is not",
    ),
    "utf-16": ("image,label,split\nimages/0.png,good,train\n".encode("utf-16"), "is in UTF-16, not in UTF-8"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0", "is not in UTF-8 (byte 0x89)"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_file_is_one_line(root: Path, case: str) -> None:
    content, expected = WRONG_FILES[case]
    (root / "labels.csv").write_bytes(content)

    with pytest.raises(FlawsmithError) as caught:
        layouts.load(root / "labels.csv")

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_of_another_layout_is_refused(root: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"labels.csv is a table, which the layout csv reads, not mvtec"):
        layouts.load(root / "labels.csv", "mvtec")


def test_folder_without_a_table_is_refused(tmp_path: Path, trees: ModuleType) -> None:
    with pytest.raises(FlawsmithError, match=r"not in csv layout; expected a table \*.csv with the columns image"):
        layouts.load(trees.mvtec(tmp_path / "bolt"), "csv")


WITHOUT_A_FILE = {"missing": "there is no table ", "folder": "is empty", "pipe": "there is no table "}


@pytest.mark.parametrize("case", WITHOUT_A_FILE)
def test_what_is_no_file_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "labels.csv"
    if case == "folder":
        path.mkdir()
    if case == "pipe":
        os.mkfifo(path)

    with pytest.raises(FlawsmithError) as caught:
        layouts.load(path)

    assert WITHOUT_A_FILE[case] in str(caught.value)
    assert "labels.csv" in str(caught.value)
