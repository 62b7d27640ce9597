"""defects_config.json of MVTec LOCO AD: what it says of each mask, what is said when it is damaged or does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.data import layouts
from flawsmith.data.doctor import check
from flawsmith.data.loco import MERGED_FROM, DefectKind, read_defects_config, saturation_of
from flawsmith.runtime.errors import FlawsmithError

ENTRY = {"defect_name": "hole", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True}
LOGICAL = Path("ground_truth/logical_anomalies")


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.mvtec_loco(tmp_path / "loco" / "bottle")


def write(root: Path, content: Any) -> Path:
    path = root / "defects_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {**ENTRY, **changes}


def absolute(**changes: Any) -> dict[str, Any]:
    return entry(relative_saturation=False, **changes)


# The file


def test_entries_are_found_by_their_grey_value(tmp_path: Path) -> None:
    second = absolute(defect_name="crack", pixel_value=254, saturation_threshold=70400)

    kinds = read_defects_config(write(tmp_path, [ENTRY, second]))

    assert kinds == {255: DefectKind(**ENTRY), 254: DefectKind(**second)}


def test_file_may_begin_with_a_byte_order_mark_and_say_more(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + json.dumps([entry(comment="ours")]))

    assert list(read_defects_config(path)) == [255]


DAMAGED = {
    "empty": ("", "no intact JSON"),
    "cut off": ("[{", "no intact JSON"),
    "nested without end": ("[" * 100_000, "no intact JSON"),
    "no list": ({}, "it must be a list"),
    "no entry": ([], "has no entry"),
    "entry of another kind": ([3], "entry 1: it must hold names and values"),
    "nothing in an entry": ([ENTRY, {}], "entry 2: defect_name is missing"),
    "value as text": ([entry(pixel_value="255")], "entry 1: pixel_value must be a whole number"),
    "value of the background": ([entry(pixel_value=0)], "pixel_value must be at least 1"),
    "value beyond 8 bits": ([entry(pixel_value=256)], "pixel_value must be at most 255"),
    "value twice": ([ENTRY, ENTRY], "entry 2: pixel_value 255 is given twice"),
    "no saturation": ([entry(saturation_threshold=0)], "saturation_threshold must be greater than 0"),
    "saturation that is no number": (json.dumps([entry(saturation_threshold=float("nan"))]), "a finite number"),
    "more than the whole": ([entry(saturation_threshold=1.5)], "a relative saturation_threshold is at most 1"),
    "less than a pixel": ([absolute()], "an absolute saturation_threshold is at least 1 pixel"),
    "unit as text": ([entry(relative_saturation="yes")], "relative_saturation must be true or false"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_line_that_names_file_entry_and_remedy(root: Path, case: str) -> None:
    content, expected = DAMAGED[case]
    path = write(root, content)

    with pytest.raises(FlawsmithError) as caught:
        saturation_of(layouts.load(root))

    line = str(caught.value)
    assert str(path) in line
    assert expected in line
    assert "copy it anew" in line
    assert "\n" not in line


def test_folder_of_the_name_and_no_text_are_errors_too(root: Path) -> None:
    path = root / "defects_config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FlawsmithError, match="no intact JSON"):
        read_defects_config(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FlawsmithError, match=r"cannot read .*defects_config\.json"):
        read_defects_config(path)


# Masks and their kinds


def test_every_mask_has_the_kind_of_its_grey_value(root: Path) -> None:
    saturation = saturation_of(layouts.load(root))

    truth = root / "ground_truth"
    assert {path.relative_to(truth).as_posix(): kind.pixel_value for path, kind in saturation.kinds.items()} == {
        "logical_anomalies/000/000.png": 255,
        "logical_anomalies/000/001.png": 254,
        "logical_anomalies/001/000.png": 255,
        "structural_anomalies/000/000.png": 206,
        "structural_anomalies/000/001.png": 211,
        "structural_anomalies/001/000.png": 206,
    }
    assert saturation.notes == ()


def test_layout_without_saturation_has_none_and_says_nothing(tmp_path: Path, trees: ModuleType, root: Path) -> None:
    for dataset in (layouts.load(trees.mvtec(tmp_path / "bolt")), layouts.load(root, "mvtec")):
        saturation = saturation_of(dataset)

        assert (dict(saturation.kinds), saturation.notes) == ({}, ())


def test_without_the_file_nothing_is_known_and_the_note_says_so(root: Path) -> None:
    (root / "defects_config.json").unlink()

    saturation = saturation_of(layouts.load(root))

    assert saturation.kinds == {}
    (note,) = saturation.notes
    assert "no defects_config.json" in note
    assert "sPRO is undefined" in note


def test_mask_of_an_unknown_value_is_an_error_that_names_it(root: Path, trees: ModuleType) -> None:
    path = trees.mask(root / LOGICAL / "001" / "000.png", level=7)

    with pytest.raises(FlawsmithError, match=r"grey value 7, which stands for no defect; add its entry") as caught:
        saturation_of(layouts.load(root))

    assert str(path) in str(caught.value)


def test_mask_of_several_values_is_an_error(root: Path) -> None:
    pixels = np.zeros((12, 10), np.uint8)
    pixels[0, :2] = (255, 254)
    Image.fromarray(pixels).save(root / LOGICAL / "001" / "000.png")

    with pytest.raises(FlawsmithError, match=r"000\.png has 2 grey values"):
        saturation_of(layouts.load(root))


def test_black_mask_marks_no_defect(root: Path, trees: ModuleType) -> None:
    path = trees.mask(root / LOGICAL / "001" / "000.png", empty=True)

    assert path not in saturation_of(layouts.load(root)).kinds


def merge(root: Path, trees: ModuleType, number: int, level: int = 255) -> None:
    """Flawed images with one mask each, all of one grey value."""
    for mask in (root / "ground_truth").rglob("*.png"):
        mask.unlink()
    for i in range(number):
        trees.picture(root / "test" / "logical_anomalies" / f"{i:03d}.png", seed=300 + i)
        trees.mask(root / LOGICAL / f"{i:03d}" / "000.png", level=level)


def test_masks_merged_into_one_value_have_no_saturation_and_the_note_says_so(root: Path, trees: ModuleType) -> None:
    merge(root, trees, MERGED_FROM)

    saturation = saturation_of(layouts.load(root))

    assert saturation.kinds == {}
    (note,) = saturation.notes
    assert note.startswith("All masks have the grey value 255, though defects_config.json knows 4 kinds of defects")
    assert "sPRO is undefined" in note


def _fewer_images(root: Path, trees: ModuleType) -> None:
    merge(root, trees, MERGED_FROM - 1)


def _one_kind_alone(root: Path, trees: ModuleType) -> None:
    merge(root, trees, MERGED_FROM)
    write(root, [ENTRY])


def _another_value(root: Path, trees: ModuleType) -> None:
    merge(root, trees, MERGED_FROM)
    trees.mask(root / LOGICAL / "000" / "000.png", level=254)


def _several_masks_of_an_image(root: Path, trees: ModuleType) -> None:
    merge(root, trees, MERGED_FROM)
    trees.mask(root / LOGICAL / "000" / "001.png", top=6)


@pytest.mark.parametrize(
    "change",
    [_fewer_images, _one_kind_alone, _another_value, _several_masks_of_an_image],
    ids=lambda f: f.__name__[1:],
)
def test_masks_that_may_well_be_of_one_kind_are_not_called_merged(root: Path, trees: ModuleType, change: Any) -> None:
    change(root, trees)

    saturation = saturation_of(layouts.load(root))

    assert len(saturation.kinds) >= MERGED_FROM - 1
    assert saturation.notes == ()


def test_saturation_area_beyond_a_whole_image_is_noted(root: Path) -> None:
    kinds = [entry(pixel_value=value) for value in (254, 206, 211)]
    write(root, [absolute(saturation_threshold=121), *kinds])

    saturation = saturation_of(layouts.load(root))

    assert len(saturation.kinds) == 6
    (note,) = saturation.notes
    assert note.startswith("The saturation area of hole, 121 pixels, exceeds a whole image of 120")


# What the doctor says


def findings(root: Path) -> dict[str, tuple[str, int]]:
    found = [item for item in check(layouts.load(root)).items if not item.name.startswith("few-")]
    return {item.name: (item.severity, len(item.where)) for item in found}


def test_doctor_reports_a_missing_file_and_a_damaged_one(root: Path) -> None:
    write(root, "[{")
    assert findings(root) == {"defects-config": ("error", 1)}

    (root / "defects_config.json").unlink()

    assert findings(root) == {"no-saturation": ("note", 1)}


def test_doctor_finds_all_masks_of_no_entry(root: Path, trees: ModuleType) -> None:
    for name in ("000", "001"):
        trees.mask(root / LOGICAL / name / "000.png", level=7)

    assert findings(root) == {"unknown-defect": ("error", 2)}


def test_doctor_finds_merged_masks(root: Path, trees: ModuleType) -> None:
    merge(root, trees, MERGED_FROM)

    found = findings(root)

    assert found["merged-masks"] == ("note", MERGED_FROM)
    assert "unknown-defect" not in found


def test_doctor_finds_saturation_areas_beyond_the_image(root: Path) -> None:
    write(root, [absolute(saturation_threshold=121), *(entry(pixel_value=value) for value in (254, 206, 211))])

    assert findings(root) == {"saturation-too-large": ("warning", 1)}


def test_doctor_judges_the_masks_that_can_be_read(root: Path, trees: ModuleType) -> None:
    (root / LOGICAL / "000" / "000.png").write_bytes(b"no image")
    trees.mask(root / LOGICAL / "001" / "000.png", level=7)

    assert findings(root) == {"unreadable-mask": ("error", 1), "unknown-defect": ("error", 1)}


# Real images


@pytest.mark.real_data
def test_reduced_juice_bottle_with_merged_masks_has_no_saturation(real_data: Path) -> None:
    saturation = saturation_of(layouts.load(real_data / "mvtec_loco" / "juice_bottle"))

    assert saturation.kinds == {}
    assert "they were merged" in saturation.notes[0]
