"""Each oddity of a data set gives its own finding, and sound data give none."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.data import bursts, layouts
from flawsmith.data.doctor import Finding, Findings, check
from flawsmith.runtime import image


def named(findings: Findings, name: str) -> list[Finding]:
    return [item for item in findings.items if item.name == name]


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path, trees: ModuleType) -> Path:
    return trees.mvtec(tmp_path / "bolt", n_train=24)


def test_sound_data_give_no_warning(root: Path) -> None:
    findings = check(layouts.load(root))
    assert findings.sound
    assert [item.name for item in findings.items] == ["few-to-calibrate"]
    assert findings.of("note")[0].what.startswith("only 5 of your 24 images can be used to set the limit")


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    read = image.read_image

    def counted(stream: Any, name: str, most: int) -> Any:
        counts[name] += 1
        return read(stream, name, most)

    def not_again(*_: Any) -> Any:
        raise AssertionError("decoded for a thumbnail")

    monkeypatch.setattr(image, "read_image", counted)
    monkeypatch.setattr(bursts, "_read", not_again)

    findings = check(layouts.load(root))

    monkeypatch.undo()
    assert findings == check(layouts.load(root))
    assert set(counts.values()) == {1} and len(counts) >= 24


def _truncate(root: Path, trees: ModuleType) -> None:
    path = root / "train" / "good" / "003.png"
    path.write_bytes(path.read_bytes()[:150])


def _text_named_png(root: Path, trees: ModuleType) -> None:
    (root / "test" / "good" / "x.png").write_text("hello")


def _dead_link(root: Path, trees: ModuleType) -> None:
    (root / "train" / "good" / "gone.png").symlink_to(root / "nowhere.png")


def _broken_mask(root: Path, trees: ModuleType) -> None:
    (root / "ground_truth" / "crack" / "000_mask.png").write_bytes(b"")


def _leak(root: Path, trees: ModuleType) -> None:
    shutil.copy(root / "train" / "good" / "000.png", root / "test" / "good" / "copy.png")


def _duplicate(root: Path, trees: ModuleType) -> None:
    shutil.copy(root / "train" / "good" / "000.png", root / "train" / "good" / "copy.png")


def _contradiction(root: Path, trees: ModuleType) -> None:
    shutil.copy(root / "test" / "crack" / "000.png", root / "test" / "good" / "copy.png")


def _other_shape(root: Path, trees: ModuleType) -> None:
    trees.picture(root / "train" / "good" / "wide.png", seed=70, size=(12, 30))


def _other_size(root: Path, trees: ModuleType) -> None:
    trees.picture(root / "train" / "good" / "big.png", seed=70, size=(24, 20))


def _grey(root: Path, trees: ModuleType) -> None:
    trees.picture(root / "train" / "good" / "grey.png", seed=70, mode="L")


def _deep(root: Path, trees: ModuleType) -> None:
    ramp = np.linspace(0, 65535, 120).astype(np.uint16).reshape(12, 10)
    save(root / "train" / "good" / "deep.png", ramp)


def _constant(root: Path, trees: ModuleType) -> None:
    save(root / "train" / "good" / "even.png", np.full((12, 10, 3), (90, 91, 90), np.uint8))


def _dark(root: Path, trees: ModuleType) -> None:
    night = np.zeros((12, 10, 3), np.uint8)
    night[0, 0] = (40, 30, 20)
    save(root / "train" / "good" / "night.png", night)


def _mask_size(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "crack" / "000_mask.png", size=(10, 12))


def _empty_mask(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "crack" / "000_mask.png", empty=True)


def _missing_mask(root: Path, trees: ModuleType) -> None:
    (root / "ground_truth" / "crack" / "000_mask.png").unlink()


def _mask_of_good(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "good" / "000_mask.png")


def _orphan(root: Path, trees: ModuleType) -> None:
    trees.mask(root / "ground_truth" / "crack" / "999_mask.png")


def _stray(root: Path, trees: ModuleType) -> None:
    trees.picture(root / "test" / "stray.png", seed=99)


CASES: dict[str, tuple[Callable[[Path, ModuleType], None], str, str, str]] = {
    "truncated": (_truncate, "unreadable-image", "error", "003.png"),
    "text": (_text_named_png, "unreadable-image", "error", "x.png"),
    "dead link": (_dead_link, "unreadable-image", "error", "gone.png"),
    "broken mask": (_broken_mask, "unreadable-mask", "error", "000_mask.png"),
    "leak": (_leak, "leak", "error", "000.png"),
    "duplicate": (_duplicate, "duplicate", "warning", "000.png"),
    "contradiction": (_contradiction, "contradictory-labels", "error", "copy.png"),
    "other shape": (_other_shape, "odd-size", "warning", "wide.png"),
    "other size": (_other_size, "odd-size", "note", "big.png"),
    "grey": (_grey, "odd-colour", "warning", "grey.png"),
    "deep": (_deep, "mixed-depth", "error", "deep.png"),
    "constant": (_constant, "constant", "warning", "even.png"),
    "dark": (_dark, "dark", "warning", "night.png"),
    "mask size": (_mask_size, "mask-size", "error", "000_mask.png"),
    "empty mask": (_empty_mask, "empty-mask", "warning", "000_mask.png"),
    "missing mask": (_missing_mask, "missing-mask", "warning", "000.png"),
    "mask of good": (_mask_of_good, "mask-of-good", "warning", "000_mask.png"),
    "orphan": (_orphan, "orphan-mask", "warning", "999_mask.png"),
    "stray": (_stray, "not-used", "warning", "bolt"),
}


@pytest.mark.parametrize("case", CASES)
def test_oddity_is_found_named_and_mendable(root: Path, trees: ModuleType, case: str) -> None:
    spoil, name, severity, file = CASES[case]
    spoil(root, trees)
    findings = check(layouts.load(root))
    (finding,) = named(findings, name)
    assert finding.severity == severity
    assert file in [path.name for path in finding.where]
    assert finding.fix
    assert "\n" not in finding.what + finding.fix
    assert findings.sound == (severity != "error")


def test_few_images_are_a_warning(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "parts" / "a.png")
    findings = check(layouts.load(tmp_path / "parts"))
    assert named(findings, "few-to-train")[0].what == "1 different good image to learn from"
    assert named(findings, "few-to-calibrate")[0].severity == "warning"


def test_all_flawed_images_without_masks_are_a_note(tmp_path: Path, trees: ModuleType) -> None:
    trees.picture(tmp_path / "good" / "a.png", seed=1)
    trees.picture(tmp_path / "bad" / "b.png", seed=2)
    (finding,) = named(check(layouts.load(tmp_path)), "missing-mask")
    assert finding.severity == "note"


def test_own_validation_folder_counts_for_calibration(root: Path, trees: ModuleType) -> None:
    for i in range(99):
        trees.picture(root / "validation" / "good" / f"{i}.png", seed=1000 + i)
    assert check(layouts.load(root)).items == ()


def test_more_training_images_are_no_advice_where_validation_has_a_folder(root: Path, trees: ModuleType) -> None:
    (held_out,) = named(check(layouts.load(root)), "few-to-calibrate")
    trees.picture(root / "validation" / "good" / "0.png", seed=1000)
    (own,) = named(check(layouts.load(root)), "few-to-calibrate")
    assert "or 660 images in all" in held_out.fix
    assert "99 images into validation/good/" in own.fix
    assert "in all" not in own.fix


def test_gravest_comes_first_and_json_holds_everything(root: Path, trees: ModuleType) -> None:
    for spoil in (_orphan, _truncate, _duplicate):
        spoil(root, trees)
    findings = check(layouts.load(root), threads=1)
    order = [item.severity for item in findings.items]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    table = json.loads(json.dumps(findings.to_dict()))
    assert (table["errors"], table["warnings"], table["notes"]) == (1, 2, 1)
    assert table["findings"][0]["where"] == [str(root / "train" / "good" / "003.png")]
    assert table["summary"].startswith("bolt")


@pytest.mark.real_data
def test_known_oddities_of_real_sets_are_found(real_data: Path) -> None:
    tile = check(layouts.load(real_data / "magnetic_tile" / "magnetic_tile"))
    screw = check(layouts.load(real_data / "mvtec_ad" / "screw"))
    bottle = check(layouts.load(real_data / "mvtec_loco" / "juice_bottle"))
    assert [item.name for item in tile.items] == ["odd-size", "bursts"]
    assert [item.name for item in screw.items] == ["few-to-calibrate", "official-counts"]
    assert [item.name for item in bottle.items] == [
        "merged-masks",
        "few-to-calibrate",
        "official-counts",
    ], "validation/good/ and test/good/ share one numbering, which lacks nothing"
