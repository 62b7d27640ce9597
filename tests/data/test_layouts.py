"""From folders to samples: what is recognised, how masks are paired, and what is said when nothing fits."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data import layouts
from flawsmith.data.layouts import base
from flawsmith.runtime.errors import FlawsmithError


def names(samples: tuple, root: Path) -> list[str]:
    return [s.image.relative_to(root).as_posix() for s in samples]


def test_mvtec_category_gives_every_split_with_its_masks(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "lines" / "bolt")
    dataset = layouts.load(root)
    assert (dataset.layout, dataset.category, dataset.dataset) == ("mvtec", "bolt", "lines")
    assert (len(dataset.good_train), len(dataset.test_good), len(dataset.test_flawed)) == (6, 2, 2)
    assert dataset.good_val == ()
    assert dataset.defects == ("crack",)
    assert [s.masks[0].name for s in dataset.test_flawed] == ["000_mask.png", "001_mask.png"]
    assert "train/good" in dataset.recognised
    assert "6 good images to learn from" in dataset.summary()


@pytest.mark.parametrize("folder", ["validation/good", "val/good", "val", "Valid"])
def test_validation_folder_gives_good_val(tmp_path: Path, trees: ModuleType, folder: str) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / folder / "x.png", seed=9)
    assert names(layouts.load(root).good_val, root) == [f"{folder}/x.png"]


@pytest.mark.parametrize("good", ["ok", "Normal", "GOOD"])
def test_validation_folder_may_call_good_images_by_other_names(tmp_path: Path, trees: ModuleType, good: str) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / "val" / good / "x.png", seed=9)
    (root / "val" / "nok").mkdir()
    assert names(layouts.load(root).good_val, root) == [f"val/{good}/x.png"]


@pytest.mark.parametrize("good", ["val/x.png", "val/good/x.png", "val/ok/x.png"])
@pytest.mark.parametrize("other", ["nok", "bad", "monday/early"])
@pytest.mark.parametrize("layout", ["mvtec", "folder"])
def test_images_that_nothing_calls_good_never_calibrate(
    tmp_path: Path, trees: ModuleType, layout: str, other: str, good: str
) -> None:
    trees.picture(tmp_path / ("train/good" if layout == "mvtec" else "good") / "a.png")
    trees.picture(tmp_path / good, seed=1)
    trees.picture(tmp_path / "val" / other / "y.png", seed=2)
    with pytest.raises(FlawsmithError) as caught:
        layouts.load(tmp_path, layout)
    assert str(tmp_path / "val" / other.split("/")[0]) in str(caught.value)
    assert "move them to val/good/" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validation_images_beside_the_good_folder_are_noted(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / "val" / "good" / "x.png", seed=9)
    trees.picture(root / "val" / "stray.png", seed=10)
    dataset = layouts.load(root)
    assert names(dataset.good_val, root) == ["val/good/x.png"]
    assert dataset.notes == ("not used: 1 image directly in val/, beside good/",)


@pytest.mark.parametrize("good", ["ok", "OK", "normal"])
def test_good_images_may_go_by_other_names_in_train_and_test(tmp_path: Path, trees: ModuleType, good: str) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    for part in ("train", "test"):
        (root / part / "good").rename(root / part / good)
    dataset = layouts.load(root)
    assert dataset.layout == "mvtec"
    assert f"train/{good}/" in dataset.recognised
    assert (len(dataset.good_train), len(dataset.test_good), len(dataset.test_flawed)) == (6, 2, 2)
    assert dataset.defects == ("crack",)
    assert {s.defect for s in dataset.test_good} == {"good"}


def test_all_folders_that_mean_good_are_learned_from(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt", n_train=1)
    trees.picture(root / "train" / "ok" / "b.png", seed=50)
    assert names(layouts.load(root).good_train, root) == ["train/good/000.png", "train/ok/b.png"]


def test_odd_names_and_cases_are_read_and_hidden_files_are_not(tmp_path: Path, trees: ModuleType) -> None:
    root = tmp_path / "Schraube M8 – größe"
    for name in ("a b.PNG", "häßlich.Jpg", "nested/deep/c.png", ".hidden.png", ".trash/d.png"):
        trees.picture(root / "Train" / "Good" / name)
    (root / "Train" / "Good" / "notes.txt").write_text("not an image")
    trees.picture(root / "Test" / "Kratzer quer" / "ü 1.PNG")
    trees.mask(root / "Ground_Truth" / "Kratzer quer" / "ü 1.png")
    dataset = layouts.load(root)
    assert sorted(s.image.name for s in dataset.good_train) == ["a b.PNG", "c.png", "häßlich.Jpg"]
    assert [s.defect for s in dataset.test] == ["Kratzer quer"]
    assert dataset.test[0].masks[0].name == "ü 1.png"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (["000_mask.png", "000.png"], ["000_mask.png"]),
        (["000.bmp"], ["000.bmp"]),
        (["000/000.png", "000/001.png"], ["000.png", "001.png"]),
        (["0000_mask.png"], []),
        ([], []),
    ],
)
def test_masks_pair_by_stem(tmp_path: Path, trees: ModuleType, stored: list[str], expected: list[str]) -> None:
    root = trees.mvtec(tmp_path / "bolt", n_flawed=0)
    trees.picture(root / "test" / "hole" / "000.jpg")
    for name in stored:
        trees.mask(root / "ground_truth" / "hole" / name)
    (sample,) = layouts.load(root).test_flawed
    assert [m.name for m in sample.masks] == expected
    assert sample.is_flawed


def test_flawed_image_without_mask_is_kept_and_counted(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (root / "ground_truth" / "crack" / "001_mask.png").unlink()
    dataset = layouts.load(root)
    assert names(dataset.without_mask, root) == ["test/crack/001.png"]
    assert "1 flawed without a mask" in dataset.summary()


def test_masks_of_good_images_and_orphans_are_reported_unused(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.mask(root / "ground_truth" / "good" / "000_mask.png")
    trees.mask(root / "ground_truth" / "crack" / "777_mask.png")
    trees.mask(root / "ground_truth" / "rust" / "000_mask.png")
    dataset = layouts.load(root)
    assert all(s.masks == () for s in dataset.test_good)
    assert [p.relative_to(root / "ground_truth").as_posix() for p in dataset.unused_masks] == [
        "crack/777_mask.png",
        "good/000_mask.png",
        "rust/000_mask.png",
    ]


def test_images_directly_in_test_are_noted(tmp_path: Path, trees: ModuleType) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    trees.picture(root / "test" / "stray.png")
    assert "1 image directly in test/" in layouts.load(root).notes[0]


def test_plain_folder_is_all_good_training(tmp_path: Path, trees: ModuleType) -> None:
    for name in ("b.png", "a.jpg", "monday/c.png"):
        trees.picture(tmp_path / name)
    dataset = layouts.load(tmp_path)
    assert dataset.layout == "folder"
    assert names(dataset.good_train, tmp_path) == ["a.jpg", "b.png", "monday/c.png"]
    assert dataset.test == ()


def test_sub_folders_alone_are_taken_as_good_and_said_so(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "monday" / "a.png")
    trees.picture(tmp_path / "tuesday" / "b.png")
    dataset = layouts.load(tmp_path)
    assert len(dataset.good_train) == 2
    assert "2 sub-folders" in dataset.recognised


@pytest.mark.parametrize("bad", ["bad", "NG", "Defective", "defect"])
def test_good_and_bad_folders(tmp_path: Path, trees: ModuleType, bad: str) -> None:
    trees.picture(tmp_path / "good" / "a.png")
    trees.picture(tmp_path / bad / "scratch" / "b.png")
    trees.picture(tmp_path / bad / "c.png")
    trees.picture(tmp_path / "val" / "d.png")
    dataset = layouts.load(tmp_path)
    assert names(dataset.good_train, tmp_path) == ["good/a.png"]
    assert names(dataset.good_val, tmp_path) == ["val/d.png"]
    assert {s.defect for s in dataset.test_flawed} == {"scratch", bad}


def test_folder_layout_pairs_masks(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "good" / "a.png")
    trees.picture(tmp_path / "bad" / "b.png")
    trees.picture(tmp_path / "bad" / "dent" / "c.png")
    trees.mask(tmp_path / "masks" / "b_mask.png")
    trees.mask(tmp_path / "masks" / "dent" / "c.png")
    trees.mask(tmp_path / "masks" / "orphan.png")
    dataset = layouts.load(tmp_path)
    assert [s.masks[0].name for s in dataset.test_flawed] == ["b_mask.png", "c.png"]
    assert [p.name for p in dataset.unused_masks] == ["orphan.png"]


def test_unknown_folders_beside_good_are_passed_over_with_a_note(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "good" / "a.png")
    trees.picture(tmp_path / "line 3" / "b.png")
    trees.picture(tmp_path / "c.png")
    dataset = layouts.load(tmp_path)
    assert names(dataset.good_train, tmp_path) == ["good/a.png"]
    assert len(dataset.notes) == 2
    assert "line 3/ (1 image)" in dataset.notes[0]


def test_category_bears_the_name_of_a_link(tmp_path: Path, trees: ModuleType) -> None:
    real = trees.mvtec(tmp_path / "3f2a")
    link = tmp_path / "bolt"
    link.symlink_to(real)
    assert layouts.load(link).category == "bolt"


def test_current_folder_has_a_name(tmp_path: Path, trees: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trees.mvtec(tmp_path / "bolt"))
    assert layouts.load(".").category == "bolt"
    monkeypatch.chdir(tmp_path / "bolt" / "train")
    assert layouts.load("..").category == "bolt"


def _zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x")
    return path


def _mkdir(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


BAD_INPUT = {
    "missing": (lambda tmp, trees: tmp / "nope", "there is no folder"),
    "image": (lambda tmp, trees: trees.picture(tmp / "a.png"), "is one image"),
    "model": (lambda tmp, trees: _zip(tmp / "m.flaw"), "is a trained model"),
    "zip": (lambda tmp, trees: _zip(tmp / "a.zip"), "is an archive"),
    "text": (lambda tmp, trees: _text(tmp / "a.txt"), "is a file"),
    "empty": (lambda tmp, trees: _mkdir(tmp / "e"), "is empty"),
    "texts only": (lambda tmp, trees: _text(tmp / "t" / "a.txt").parent, "found no good images"),
    "empty train/good": (
        lambda tmp, trees: _mkdir(tmp / "c" / "train" / "good").parents[1],
        "no good images",
    ),
    "name too long": (lambda tmp, trees: tmp / ("x" * 300), "there is no folder"),
    "home of nobody": (lambda tmp, trees: Path("~nobody-of-that-name/parts"), "there is no folder"),
    "train without good": (lambda tmp, trees: _tree(tmp, trees, "c/train/parts/a.png"), "or mvtec: train/good/"),
    "flawed only": (lambda tmp, trees: _tree(tmp, trees, "c/bad/a.png"), "no good images"),
    "masks only": (lambda tmp, trees: _tree(tmp, trees, "c/ground_truth/crack/a.png"), "no good images"),
    "test split": (lambda tmp, trees: trees.mvtec(tmp / "c") / "test", "only the test/ part"),
    "masks of a category": (lambda tmp, trees: trees.mvtec(tmp / "c") / "ground_truth", "ground_truth/ part"),
    "root of two": (
        lambda tmp, trees: _root(tmp, trees, "bolt", "nut"),
        "2 categories (bolt, nut); pick one",
    ),
    "root of one": (lambda tmp, trees: _root(tmp, trees, "bolt"), "holds the category bolt"),
    "root of roots": (lambda tmp, trees: _root(tmp / "a", trees, "bolt").parent, "category set/bolt"),
    "visa": (lambda tmp, trees: _tree(tmp, trees, "c/Data/Images/Anomaly/a.JPG"), "almost in visa layout"),
}


def _text(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hello")
    return path


def _tree(tmp: Path, trees: ModuleType, name: str) -> Path:
    trees.picture(tmp / name)
    return tmp / "c"


def _root(tmp: Path, trees: ModuleType, *categories: str) -> Path:
    for category in categories:
        trees.mvtec(tmp / "set" / category)
    return tmp / "set"


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_line_that_helps(tmp_path: Path, trees: ModuleType, case: str) -> None:
    arrange, expected = BAD_INPUT[case]
    with pytest.raises(FlawsmithError) as caught:
        layouts.load(arrange(tmp_path, trees))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_may_not_be_read_is_a_file_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(tarfile, "is_tarfile", refuse)

    with pytest.raises(FlawsmithError, match="is a file, but a folder of images is expected"):
        layouts.load(_text(tmp_path / "parts"))


def test_unknown_layout_name_lists_the_known_and_the_closest(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "a.png")
    with pytest.raises(
        FlawsmithError,
        match=r"known are mvtec_loco, btad, .*, magnetic_tile, ksdd2, csv, folder; did you mean mvtec\?",
    ):
        layouts.load(tmp_path, layout="mvtek")


def test_named_layout_refuses_what_it_is_not(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "a.png")
    with pytest.raises(FlawsmithError, match="not in mvtec layout"):
        layouts.load(tmp_path, layout="mvtec")


def test_registry_refuses_a_second_layout_of_one_name() -> None:
    with pytest.raises(ValueError, match="registered already"):
        base.register(type(layouts.by_name("mvtec")))


LABELS = '''
"""Labels in a table, two masks an image."""
from flawsmith.data.layouts.base import Layout, register
from flawsmith.data.samples import Dataset


@register
class LabelsLayout(Layout):
    name = "labels"
    expects = "labels.txt"

    def recognise(self, root):
        return "labels layout, because it has labels.txt" if (root / "labels.txt").is_file() else None

    def load(self, root):
        return Dataset(root, root.name, "tables", self.name, self.recognise(root), ())
'''


def test_a_layout_is_one_more_module_and_is_asked_before_the_plain_folder(
    tmp_path: Path, trees: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.picture(tmp_path / "part" / "a.png")
    (tmp_path / "part" / "labels.txt").write_text("image,label\n")
    (tmp_path / "more" / "labels.py").parent.mkdir()
    (tmp_path / "more" / "labels.py").write_text(LABELS)
    monkeypatch.setattr(base, "_LAYOUTS", dict(base._LAYOUTS))
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "more")])
    monkeypatch.delitem(sys.modules, "flawsmith.data.layouts.labels", raising=False)

    layouts.discover()

    assert layouts.load(tmp_path / "part").layout == "labels"
    assert [layout.name for layout in layouts.known()][-1] == "folder"


def test_more_specific_layouts_are_asked_first() -> None:
    names = [layout.name for layout in layouts.known()]

    assert names == ["mvtec_loco", "btad", "mvtec", "mvtec_3d", "visa", "magnetic_tile", "ksdd2", "csv", "folder"]


@pytest.mark.real_data
def test_shared_sets_are_read_whole(real_data: Path) -> None:
    tile = layouts.load(real_data / "magnetic_tile" / "magnetic_tile")
    screw = layouts.load(real_data / "mvtec_ad" / "screw")
    bottle = layouts.load(real_data / "mvtec_loco" / "juice_bottle")
    assert [each.layout for each in (tile, screw, bottle)] == ["mvtec", "mvtec", "mvtec_loco"]
    assert (len(tile.good_train), len(tile.test_good), len(tile.test_flawed)) == (761, 191, 388)
    assert (len(screw.good_train), len(screw.test_good), len(screw.test_flawed)) == (320, 41, 119)
    assert (len(bottle.good_train), len(bottle.good_val), len(bottle.test_good)) == (335, 27, 27)
    assert len(bottle.test_flawed) == 142
    assert not (tile.without_mask or screw.without_mask or bottle.without_mask)
