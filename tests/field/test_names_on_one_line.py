"""Names of files and folders that hold newlines or steer a terminal stay within their line, in every list and table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flawsmith.benchmark.tables import Table
from flawsmith.cli.main import main

FORGED = "\nforged: \x1b[2Jall is well\r"


@pytest.fixture
def category(tmp_path: Path, draw_parts: Callable[..., Path]) -> Path:
    """A category whose every name forges a line, with faults that doctor lists."""
    root = draw_parts(tmp_path / f"bolt{FORGED}")
    (root / "test" / "crack").rename(root / "test" / f"crack{FORGED}")
    for folder in ("train/good", "test/good", f"test/crack{FORGED}"):
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(f"{path.stem}{FORGED}.png"))
    (root / "train" / f"night{FORGED}").mkdir()
    Image.new("RGB", (9, 9)).save(root / "train" / f"night{FORGED}" / f"a{FORGED}.png")
    for number in range(2):
        Image.new("L", (9, 9)).save(root / "test" / f"crack{FORGED}" / f"odd {number}{FORGED}.png")
    (root / "train" / "good" / f"raw{FORGED}.he{FORGED}ic").write_bytes(b"raw")
    return root


def assert_in_their_lines(said: str) -> None:
    assert "forged: " in said
    assert not any(line.startswith("forged") for line in said.splitlines())
    assert "\x1b" not in said
    assert "\r" not in said


def test_doctor(category: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (category / "train" / "good" / f"empty{FORGED}.png").touch()

    assert main(["doctor", str(category)]) == 1

    assert_in_their_lines(capsys.readouterr().out)
    assert main(["doctor", str(category), "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert any(FORGED in path for finding in json.loads(line)["findings"] for path in finding["where"])


def test_train_that_refuses(category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (category / "train" / "good" / f"empty{FORGED}.png").touch()
    options = ["--method", "padim", "--baseline", "none", "--out", str(tmp_path / "run")]

    assert main(["train", str(category), *options]) == 2

    assert_in_their_lines(capsys.readouterr().err)


def test_evaluate(category: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")

    assert main(["evaluate", str(tmp_path / "model.flaw"), str(category), "--out", str(tmp_path / "out")]) == 0

    said = capsys.readouterr()
    assert_in_their_lines(said.out + said.err)


def test_predict(category: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")

    assert main(["predict", str(tmp_path / "model.flaw"), str(category), "--out", str(tmp_path / "out")]) == 0

    said = capsys.readouterr()
    assert "warning: 1 file .he\\nforged: " in said.err
    assert_in_their_lines(said.out + said.err)


@pytest.mark.parametrize("style", ["pipe", "html", "latex", "plain"])
def test_tables_of_a_benchmark(style: str) -> None:
    text = Table("Runs", ("category", "seed"), [(f"bolt{FORGED}", "1")]).format(style)

    assert_in_their_lines(text)
