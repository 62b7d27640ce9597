"""Training goes on without images that cannot be read only when told, and then says which they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.field.image_files import tiff

import flawsmith
from flawsmith.cli.main import main
from flawsmith.data.layouts import load
from flawsmith.data.splits import leave_out_unreadable
from flawsmith.runtime.errors import FlawsmithError

COMMAND = ("--method", "padim", "--baseline", "none")


def _unreadable() -> dict[str, bytes]:
    """Damaged files, and whole ones of kinds that cannot be read."""
    values = np.arange(80 * 112, dtype=np.uint16)
    return {
        "bayer.tif": tiff((80, 112), [values.tobytes()], bits=(16,), photometric=32803),
        "empty.png": b"",
        "float16.tif": tiff((80, 112), [values.astype(np.float16).tobytes()], bits=(16,), more={339: (3,)}),
        "ten\nbits.tif": tiff((80, 112), [bytes(80 * 140)], bits=(10,)),
        "text.jpg": b"not an image at all",
    }


UNREADABLE = _unreadable()


def add_unreadable(folder: Path) -> None:
    for name, content in UNREADABLE.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def mixed(tmp_path: Path, parts: Path) -> Path:
    """Twenty good images, and five that cannot be read."""
    shutil.copytree(parts, tmp_path / "bolt")
    add_unreadable(tmp_path / "bolt" / "train" / "good")
    return tmp_path / "bolt"


def test_untold_it_refuses_and_names_the_option(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(mixed), *COMMAND, "--quiet", "--out", str(tmp_path / "run")]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"`flawsmith doctor {mixed}` lists all such files, and --skip-unreadable trains without them")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:. good images")
def test_told_it_trains_the_same_model_as_without_them(
    mixed: Path, train_tiny: Callable[..., Any], trained: Callable[[str], Any], tmp_path: Path
) -> None:
    result = train_tiny("padim", mixed, tmp_path / "run", skip_unreadable=True, report=True)

    assert result.model.read_bytes() == trained("padim").model.read_bytes()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    faults = {entry["image"]: entry["fault"] for entry in record["skipped"]}
    assert list(faults) == [f"train/good/{name}" for name in sorted(UNREADABLE)]
    assert "10 bits a value" in faults["train/good/ten\nbits.tif"]
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert settings["data"]["skipped"] == list(faults)
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "5 good images that cannot be read were left out: train/good/bayer.tif (" in report


def test_each_is_named_in_one_line_of_the_command(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_settings: Callable[[str], dict[str, Any]]
) -> None:
    settings = [f"--set={name}={json.dumps(value)}" for name, value in tiny_settings("padim").items()]
    options = [*COMMAND, *settings, "--skip-unreadable", "--out", str(tmp_path / "run")]

    assert main(["train", str(mixed), *options]) == 0

    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "cannot be read" in line]
    assert line.startswith("warning: 5 good images that cannot be read were left out: train/good/bayer.tif (a kind of")
    assert line.endswith("and 2 more, all of them in run.json")
    assert any(line.startswith("bolt: 20 good images (15 to learn, 5 to set the limit)") for line in lines)


def test_where_all_can_be_read_it_changes_nothing(
    parts: Path, train_tiny: Callable[..., Any], trained: Callable[[str], Any], tmp_path: Path
) -> None:
    result = train_tiny("padim", parts, tmp_path / "run", skip_unreadable=True, report=True)

    plain = trained("padim")
    for name in ("model.flaw", "config.yaml", "report.html"):
        assert (result.folder / name).read_bytes() == (plain.folder / name).read_bytes()


@pytest.mark.filterwarnings("ignore:. good images")
def test_run_is_continued_only_with_the_same_images_left_out(
    mixed: Path, train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"resume": True, "skip_unreadable": True}
    first = train_tiny("padim", mixed, tmp_path / "run", skip_unreadable=True).model.read_bytes()
    assert train_tiny("padim", mixed, tmp_path / "run", **options).model.read_bytes() == first

    (mixed / "train" / "good" / "empty.png").unlink()
    with pytest.raises(FlawsmithError, match="other images were left out as unreadable when it began"):
        train_tiny("padim", mixed, tmp_path / "run", **options)


@pytest.mark.parametrize("role", ["train/good", "validation/good"])
def test_none_that_can_be_read_is_one_line(
    role: str, parts: Path, train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(parts, tmp_path / "bolt")
    if role == "train/good":
        shutil.rmtree(tmp_path / "bolt" / role)
    (tmp_path / "bolt" / role).mkdir(parents=True)
    add_unreadable(tmp_path / "bolt" / role)

    with pytest.raises(FlawsmithError, match=r"none of the 5 (good|validation) images in .* can be read") as error:
        train_tiny("padim", tmp_path / "bolt", tmp_path / "run", skip_unreadable=True, report=True)

    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_test_images_are_never_left_out(mixed: Path, trained: Callable[[str], Any]) -> None:
    (mixed / "test" / "good" / "text.jpg").write_bytes(b"not an image either")

    dataset = load(mixed)

    assert leave_out_unreadable(dataset)[0].test == dataset.test
    with pytest.raises(FlawsmithError, match=r"test/good/text\.jpg"):
        flawsmith.evaluate(trained("padim").model, mixed)
