"""A part that is not inspected is always named, whatever its file is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.field.image_files import saved

from flawsmith.cli.main import main
from flawsmith.data import doctor
from flawsmith.data.layouts import load
from flawsmith.runtime.files import find_images, left_out, left_out_note

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
NOT_READ = [
    ".heic", ".HEIF", ".avif", ".npy", ".npz", ".dng", ".cr2", ".CR3", ".nef", ".arw", ".raw", ".bin", ".exr", ".jxl",
    ".dcm", ".mp4", ".zip", ".svg", ".tga", ".hdr", "",
]  # fmt: skip
BESIDE = [
    "notes.txt",
    "boxes.json",
    "boxes.xml",
    "list.csv",
    "README",
    "LICENSE",
    ".DS_Store",
    "Thumbs.db",
    "model.flaw",
]


@pytest.fixture
def model(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.flaw"
    tiny.make_bundle().save(path)
    return path


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JFIF", ".jpg", ".jif"])
def test_jpegs_under_their_other_names_are_inspected(ending: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"part{ending}").write_bytes(saved(PICTURE, "JPEG"))

    assert main(["predict", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert len((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("ending", [".j2k", ".jpx", ".jp2"])
def test_jpeg_2000_is_read_under_its_names(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"part{ending}").write_bytes(saved(PICTURE, "JPEG2000"))

    assert find_images(tmp_path) == [tmp_path / f"part{ending}"]


@pytest.mark.parametrize("ending", NOT_READ)
def test_other_files_are_named_and_the_rest_is_inspected(
    ending: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.png").write_bytes(saved(PICTURE, "PNG"))
    for number in range(9):
        (folder / "deeper" / f"b{number}{ending}").write_bytes(b"\0\0\0\x18ftypheic")

    code = main(["predict", str(model), str(folder), "--out", str(tmp_path / "out"), "--quiet", "--json"])

    said = capsys.readouterr()
    assert code == 0
    assert f"9 files {ending.lower() or 'without an ending'} were left out: save them as PNG or JPEG" in said.err
    assert [json.loads(line)["image"] for line in said.out.splitlines()] == [str(folder / "a.png")]


def test_folder_without_a_readable_image_is_an_error_that_names_what_is_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.heic").touch()

    assert main(["predict", str(model), str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "1 file .heic was left out: save it as PNG or JPEG" in capsys.readouterr().err


def test_what_lies_beside_images_is_not_named(tmp_path: Path) -> None:
    for name in BESIDE:
        (tmp_path / name).touch()
    (tmp_path / "verdicts" / "maps").mkdir(parents=True)
    (tmp_path / "verdicts" / "maps" / "0.npy").touch()

    assert left_out([tmp_path, tmp_path / "notes.txt"], results=tmp_path / "verdicts") == {}
    assert left_out_note({}) == ""


def test_note_of_many_endings_stays_short() -> None:
    note = left_out_note({f".x{number}": 20 - number for number in range(12)})

    assert note.startswith("20 files .x0, 19 files .x1")
    assert "of other endings were left out" in note
    assert len(note) < 160


def test_doctor_and_training_name_what_is_not_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.fromarray(PICTURE + np.uint8(number)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.heic").touch()

    (finding,) = [item for item in doctor.check(load(tmp_path)).items if item.name == "unread-files"]
    main(["train", str(tmp_path), "--backbone", "no such backbone", "--out", str(tmp_path / "run")])

    assert (finding.what, finding.fix) == ("3 files .heic were left out", "save them as PNG or JPEG")
    assert "warning: 3 files .heic were left out: save them as PNG or JPEG" in capsys.readouterr().err
