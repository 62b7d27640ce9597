"""``doctor DATA --model``: which good images look least like the others."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flawsmith.cli.main import main


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    (tmp_path / "good").mkdir()
    for number in range(30):
        level = 240 if number == 7 else 40 + number
        Image.fromarray(np.full((32, 48, 3), level, np.uint8)).save(tmp_path / "good" / f"{number:02}.png")
    return tmp_path / "good"


@pytest.fixture
def model(tiny: ModuleType, tmp_path: Path) -> Path:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    return tmp_path / "model.flaw"


def test_odd_image_is_named_and_shown(
    parts: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "odd.png"

    assert main(["doctor", str(parts), "--model", str(model), "--sheet", str(sheet), "--json"]) == 0

    findings = json.loads(capsys.readouterr().out)["findings"]
    (odd,) = [finding for finding in findings if finding["name"] == "least-like"]
    assert odd["severity"] == "warning"
    assert odd["what"].startswith("least like what the model learned from, of 30 good images: 07.png (0.9412), 29.png")
    assert "1 of them stand apart" in odd["what"]
    assert Path(odd["where"][0]).name == "07.png" and len(odd["where"]) == 12
    assert np.asarray(Image.open(sheet)).shape[2] == 3


def test_images_that_are_alike_are_a_note(parts: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "07.png").unlink()

    assert main(["doctor", str(parts), "--model", str(model)]) == 0

    assert "note: least like what the model learned from" in capsys.readouterr().out


def test_an_unreadable_image_is_left_out_and_stands_among_the_other_findings(
    parts: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "03.png").write_bytes(b"no image")
    sheet = tmp_path / "odd.png"

    assert main(["doctor", str(parts), "--model", str(model), "--sheet", str(sheet), "--json"]) == 1

    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert "of 29 good images (1 more cannot be inspected): 07.png" in findings["least-like"]["what"]
    assert any("03.png" in str(finding) and finding["severity"] == "error" for finding in findings.values())
    assert sheet.is_file()


def test_no_good_images_are_a_note_beside_the_other_findings(
    parts: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "parts.csv"
    rows = [f"good/{number:02}.png,{'good' if number % 2 else 'flawed'},test" for number in range(30)]
    table.write_text("\n".join(["image,label,split", *rows]), encoding="utf-8")
    before = main(["doctor", str(table), "--json"])
    alone = json.loads(capsys.readouterr().out)["findings"]

    assert main(["doctor", str(table), "--model", str(model), "--json"]) == before

    findings = json.loads(capsys.readouterr().out)["findings"]
    (note,) = [finding for finding in findings if finding not in alone]
    assert (note["name"], note["severity"]) == ("least-like", "note")
    assert note["what"] == "no good images but those of a test: the model has scored none"
    assert len(findings) == len(alone) + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["{model}", "--model", "{model}"], "give the folder"),
        (["{parts}", "--sheet", "odd.png"], "add --model"),
        (["{parts}", "--model", "{parts}/00.png"], "00.png"),
        (["{parts}", "--model", "none.flaw"], "no such model file"),
        (["{parts}", "--model", "{model}", "--sheet", "{parts}/00.png/x.png"], "cannot be written"),
    ],
)
def test_senseless_options_are_one_line(
    options: list[str], words: str, parts: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *(option.format(parts=parts, model=model) for option in options)]) == 2

    out, err = capsys.readouterr()
    assert words in err and len(err.splitlines()) == 1 and not out
