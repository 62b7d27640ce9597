"""Model files drawn by tests/field/fuzz_bundles.py: each is inspected with, or refused in one clear line.

What was found by it stands in tests/field/test_bundle_boundary.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.conftest import load_helpers


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    return load_helpers("fuzz_bundles", "field/fuzz_bundles.py")


@pytest.fixture
def trial(fuzz: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[int, str], str]:
    """Tries the file of a number; raises what is no clear line, and where anything was printed on stdout."""

    def run(number: int, engine: str) -> str:
        path = tmp_path / "model.flaw"
        path.write_bytes(fuzz.drawn_file(number))
        outcome = fuzz.try_file(path, engine=engine)
        assert capfd.readouterr().out == ""
        return str(outcome)

    return run


def test_drawn_files_end_in_an_inspection_or_a_clear_line(seed: int, trial: Callable[[int, str], str]) -> None:
    outcomes = [trial(seed + number, "onnxruntime") for number in range(150)]

    assert {"refused", "inspected"} <= set(outcomes)


def test_the_sound_file_that_all_are_drawn_from_is_inspected_with(fuzz: ModuleType, tmp_path: Path) -> None:
    bundle = fuzz.Bundle(
        fuzz.BundleSpec.model_validate_json(fuzz.SOUND["spec.json"]),
        fuzz.SOUND["model.onnx"],
        {"good": np.linspace(0, 1, 19)},
    )
    bundle.save(tmp_path / "model.flaw")

    for engine in ("onnxruntime", "openvino"):
        assert fuzz.try_file(tmp_path / "model.flaw", engine=engine) == "inspected"


def test_program_tries_for_its_time_and_prints_counts(tmp_path: Path) -> None:
    program = Path(__file__).with_name("fuzz_bundles.py")
    command = [sys.executable, str(program), "--minutes", "0.08", "--seed", "1", "--keep", str(tmp_path / "finds")]

    result = subprocess.run([*command, "--engines", "onnxruntime"], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "files from seed 1" in result.stdout
    assert "; 0 finds" in result.stdout
