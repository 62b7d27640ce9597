"""``flawsmith synthesize``: sheets, test sets that ``evaluate`` takes, and one line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bolt(tmp_path: Path, trees: Any) -> Path:
    return trees.mvtec(tmp_path / "bolt", n_good=4)


def test_sheet_is_written_and_named(flawsmith, bolt: Path, tmp_path: Path) -> None:
    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "flaws", "--n", 3, "--size", 32, 24, "--pictures")

    assert outcome.code == 0, outcome.err
    assert f"sheet:    {tmp_path / 'flaws' / 'sheet.png'}" in outcome.out
    assert (tmp_path / "flaws" / "sheet.png").is_file()
    assert len(list((tmp_path / "flaws" / "pictures").iterdir())) == 12
    assert "3 samples, " in outcome.out


def test_json_names_what_was_written(flawsmith, bolt: Path, tmp_path: Path) -> None:
    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "flaws", "--json", "--textures", "self")

    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out)
    assert Path(made["sheet"]).is_file()
    assert (made["pictures"], made["n"]) == (None, 16)
    assert made["mean_tries"] >= 1


@pytest.mark.parametrize(
    "strengths",
    [("--weakness", "0.1", "0.5"), ("--weakness", "0.5", "--weakness", "0.1"), ("--weakness=0.1", "--weakness", "0.5")],
)
def test_test_sets_can_be_evaluated(flawsmith, bolt: Path, model: Path, tmp_path: Path, strengths) -> None:
    outcome = flawsmith("synthesize", "--test-set", *strengths, bolt, "--out", tmp_path / "weak", "--json")

    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out)
    assert [one["weakness"] for one in made["sets"]] == [0.1, 0.5]
    assert (made["base"], made["n_good"], made["n_synthetic"]) == ("test", 4, 4)
    for one in made["sets"]:
        evaluation = flawsmith("evaluate", model, one["category"], "--json", "--out", tmp_path / "evaluation")
        assert evaluation.code == 0, evaluation.err
        figures = json.loads(evaluation.out)
        assert (figures["n_good"], figures["n_flawed"]) == (4, 4)
        assert figures["pixel_auroc"] is not None


def test_four_strengths_by_default_said_on_stdout(flawsmith, bolt: Path, tmp_path: Path) -> None:
    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "weak", "--test-set", "--per-image", 2, "--n", 2)

    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["0.1", "0.3", "0.5", "0.7"]
    assert "each with 4 good and 2 synthetic images" in lines[4]
    assert outcome.err == "flaws are synthesized on the 4 good test images\n"


def test_quiet_says_nothing_on_stderr(flawsmith, bolt: Path, tmp_path: Path) -> None:
    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "weak", "--test-set", "--quiet", "--weakness", 0.3)

    assert (outcome.code, outcome.err) == (0, "")


Arguments = Callable[[Path], list[object]]
MISTAKES: dict[str, tuple[Arguments, str]] = {
    "unknown recipe": (lambda p: ["--recipe", "glas"], "glass"),
    "no such textures": (lambda p: ["--textures", p / "gone"], "no such folder of textures"),
    "empty textures": (lambda p: ["--textures", p / "empty"], "no images to take textures from"),
    "textures in a file": (lambda p: ["--textures", p / "note"], "is a file where a folder of images is needed"),
    "no such foreground": (lambda p: ["--foreground", p / "gone"], "is no folder of foreground masks"),
    "missing foreground mask": (lambda p: ["--foreground", p / "empty"], "no foreground mask"),
    "no samples": (lambda p: ["--n", 0], "must be at least 1"),
    "negative seed": (lambda p: ["--seed", -1], "must not be negative"),
    "no size": (lambda p: ["--size", 0, 32], "give 8 to 8192 pixels with --size"),
    "half a size": (lambda p: ["--size", 32], "--size"),
    "too many bits": (lambda p: ["--bits", 99], "bits=99 is not possible"),
    "weakness of a sheet": (lambda p: ["--weakness", 0.3], "--weakness has no meaning without --test-set"),
    "several flaws of a sheet": (lambda p: ["--per-image", 2], "--per-image has no meaning without --test-set"),
    "size of a test set": (lambda p: ["--test-set", "--size", 32, 32], "--size has no meaning with --test-set"),
    "pictures of a test set": (lambda p: ["--test-set", "--pictures"], "--pictures has no meaning with --test-set"),
    "no flaw": (lambda p: ["--test-set", "--weakness", 1], "must be from 0 to below 1"),
    "weakness in words": (lambda p: ["--test-set", "--weakness", "weak"], "Invalid value for '--weakness'"),
    "weakness twice": (lambda p: ["--test-set", "--weakness", 0.3, 0.3], "given twice"),
    "no flaws on an image": (lambda p: ["--test-set", "--per-image", 0], "must be 1 to 100"),
    "flaws nobody can see": (lambda p: ["--test-set", "--weakness", 0.99999], "no visible flaw"),
    "unknown layout": (lambda p: ["--layout", "mvtek"], "did you mean mvtec?"),
    "two data folders": (lambda p: [p / "bolt"], "unexpected extra argument"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_gives_one_line_and_writes_nothing(name: str, flawsmith, bolt: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note").write_text("text")
    before = sorted(tmp_path.iterdir())
    build, fragment = MISTAKES[name]

    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "out", "--quiet", *build(tmp_path))

    assert outcome.code == 2, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("error: ")
    assert fragment in outcome.err
    assert outcome.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("options", [[], ["--test-set"]])
def test_existing_folder_is_refused(options: list[str], flawsmith, bolt: Path) -> None:
    outcome = flawsmith("synthesize", bolt, "--out", bolt, *options)

    assert outcome.code == 2
    assert outcome.err == f"error: {bolt} is there already: give the name of a new folder with --out\n"


def test_folder_below_a_file_is_refused(flawsmith, bolt: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("text")

    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "note" / "out")

    assert outcome.code == 2
    assert "with --out" in outcome.err


def test_damaged_image_is_named(flawsmith, bolt: Path, tmp_path: Path) -> None:
    (bolt / "test/good/001.png").write_bytes(b"no image")

    outcome = flawsmith("synthesize", bolt, "--out", tmp_path / "weak", "--test-set", "--quiet")

    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {bolt / 'test/good/001.png'}: ")
