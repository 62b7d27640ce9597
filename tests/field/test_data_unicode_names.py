"""Names with accents are one name, however a file system or an archive composes their letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.data.doctor import check
from flawsmith.data.layouts import load

FORMS = [("NFC", "NFD"), ("NFD", "NFC"), ("NFKD", "NFC")]
Form = Callable[[str], str]


@pytest.fixture(params=FORMS, ids="-".join)
def forms(request: pytest.FixtureRequest) -> tuple[Form, Form]:
    """Two ways to write one name."""
    first, second = request.param
    return lambda name: unicodedata.normalize(first, name), lambda name: unicodedata.normalize(second, name)


@pytest.mark.parametrize("name", ["prüfung", "Größe Ø5", "défaut", "가공", "ブラシ", "Å-ring"])
def test_masks_are_paired_whatever_the_form(
    tmp_path: Path, trees: ModuleType, forms: tuple[Form, Form], name: str
) -> None:
    one, other = forms
    root = trees.mvtec(tmp_path / one("Stück"), n_train=6, n_flawed=0)
    for number in range(3):
        trees.picture(root / "test" / one("Öl") / one(f"{name}{number}.png"), seed=300 + number)
        trees.mask(root / "ground_truth" / other("Öl") / other(f"{name}{number}_mask.png"))
    dataset = load(root)
    assert (dataset.without_mask, dataset.unused_masks) == ((), ())
    assert all(sample.masks[0].is_file() and sample.image.is_file() for sample in dataset.test_flawed)
    assert dataset.defects == (unicodedata.normalize("NFC", "Öl"),)
    assert dataset.category == unicodedata.normalize("NFC", "Stück")
    assert not [item for item in check(dataset).items if "mask" in item.name]


def test_masks_in_folders_of_their_own_are_paired(tmp_path: Path, trees: ModuleType, forms: tuple[Form, Form]) -> None:
    one, other = forms
    root = trees.mvtec(tmp_path / "bolt", n_flawed=0)
    trees.picture(root / "test" / "crack" / one("é.png"))
    trees.mask(root / "ground_truth" / "crack" / other("é") / "000.png")
    assert load(root).without_mask == ()


def test_cells_of_a_table_name_files_in_either_form(
    tmp_path: Path, trees: ModuleType, forms: tuple[Form, Form]
) -> None:
    one, other = forms
    rows = ["image,label,split,mask"]
    for number in range(4):
        trees.picture(tmp_path / one("Täler") / one(f"größe{number}.png"), seed=number)
        rows.append(other(f"Täler/größe{number}.png,good,train,"))
    trees.picture(tmp_path / one("schäden") / "0.png", seed=9)
    trees.mask(tmp_path / one("schäden") / one("maskë.png"))
    rows.append(other("schäden/0.png,flawed,test,schäden/maskë.png"))
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows), encoding="utf-8")
    dataset = load(table)
    assert len(dataset.good_train) == 4
    assert all(path.is_file() for sample in dataset.samples for path in (sample.image, *sample.masks))


def test_the_folder_itself_may_be_given_in_either_form(
    tmp_path: Path, trees: ModuleType, forms: tuple[Form, Form]
) -> None:
    one, other = forms
    trees.mvtec(tmp_path / one("Prüfung") / one("Ähre"))
    assert len(load(tmp_path / other("Prüfung") / other("Ähre")).good_train) == 6


def test_files_that_differ_in_form_alone_are_two_files(tmp_path: Path, trees: ModuleType) -> None:
    for number, form in enumerate(("NFC", "NFD")):
        trees.picture(tmp_path / "good" / unicodedata.normalize(form, "é.png"), seed=number)  # type: ignore[arg-type]
    assert len(load(tmp_path).good_train) == len(list((tmp_path / "good").iterdir()))
