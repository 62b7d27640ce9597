"""Every script of examples/ runs to its end on a few small images, and is as short as it says."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawsmith.models import registry
from flawsmith.runtime.inspector import Inspector

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "examples"
METHODS = ("aand", "glass", "padim", "patchcore", "pbas", "slsg")
UNTRAINED = ("padim", "patchcore")


@pytest.fixture(autouse=True)
def among_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import images.py from their own folder."""
    monkeypatch.syspath_prepend(EXAMPLES)


def run(script: str, *arguments: str | Path) -> None:
    runpy.run_path(str(EXAMPLES / script))["main"]([str(argument) for argument in arguments])


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines())


@pytest.mark.parametrize("method", METHODS)
def test_script_trains_its_method_and_prints_a_finite_auroc(
    method: str, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = () if method in UNTRAINED else ("--steps", "2")

    run(f"{method}_from_scratch.py", parts, "--image-size", "64", "96", "--batch-size", "4", *steps)

    assert 0 <= printed_auroc(capsys) <= 1


def test_lightning_trains_pbas_too(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--image-size", "64", "96", "--batch-size", "4", "--steps", "2")

    run("pbas_from_scratch.py", parts, *size, "--lightning")

    assert 0 <= printed_auroc(capsys) <= 1


def printed_auroc(capsys: pytest.CaptureFixture[str]) -> float:
    match = re.search(r"^image AUROC (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert match, "the script prints the AUROC on a line of its own"
    value = float(match[1])
    assert math.isfinite(value)
    return value


@pytest.mark.parametrize("method", METHODS)
def test_script_has_under_80_lines(method: str) -> None:
    assert lines_of(EXAMPLES / f"{method}_from_scratch.py") < 80


@pytest.fixture
def known_methods_restored() -> Iterator[None]:
    """A method that a test registers is gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        registry.method_names()
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))
        yield


def test_custom_method_is_trained_by_its_own_script(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_methods_restored: None, exported_once: None
) -> None:
    settings = ["--set", "image_size=[64,96]", "--backbone", "test_efficientnet@random", "--baseline", "none"]
    words = ["custom_method.py", "train", str(parts), "--method", "mean_feature", *settings, "--quiet"]
    words += ["--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", words)

    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / "custom_method.py"), run_name="__main__")

    assert not end.value.code
    inspection = Inspector.load(tmp_path / "run" / "model.flaw").inspect(next((parts / "test" / "crack").iterdir()))
    assert inspection.map.shape == (80, 112)
    assert math.isfinite(inspection.score)


def test_custom_method_has_at_most_60_lines() -> None:
    assert lines_of(EXAMPLES / "custom_method.py") <= 60


def test_tutorial_quotes_the_script() -> None:
    page = (PROJECT / "docs" / "research" / "custom_method.md").read_text()

    assert f"```python\n{(EXAMPLES / 'custom_method.py').read_text()}```" in page
