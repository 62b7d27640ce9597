"""The commands of the inspection machine start fast and need the core packages alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flawsmith as package

_CORE_ONLY = """
import sys

class Absent:
    banned = set(sys.argv[1].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.banned:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from flawsmith.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
_TRAIN = "torch,torchvision,lightning,timm,cv2,onnx,onnxscript,safetensors,jaxtyping"
_BEYOND_CORE = f"{_TRAIN},scipy,sklearn,matplotlib,jinja2"


def run(*arguments: object, without: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a Python that lacks packages."""
    source = str(Path(package.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", _CORE_ONLY, without, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def parts(tmp_path, trees):
    return trees.mvtec(tmp_path / "bolt")


def test_info_predict_and_doctor_need_the_core_alone(model, parts, tmp_path):
    for arguments in (
        ["info", model],
        ["doctor", model],
        ["doctor", parts],
        ["predict", model, parts / "test", "--maps", "--overlays"],
    ):
        done = run(*arguments, without=_BEYOND_CORE, cwd=tmp_path)

        assert done.returncode == 0, done.stderr


def test_evaluate_needs_no_torch(model, parts, tmp_path):
    done = run("evaluate", model, parts, without=_TRAIN, cwd=tmp_path)

    assert done.returncode == 0, done.stderr


def test_figures_of_models_need_no_torch(model, parts, tmp_path):
    done = run("figure", "grid", model, "--data", parts, without=_TRAIN, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.pdf").is_file()


@pytest.mark.parametrize("command", ["evaluate", "train", "demo", "synthesize"])
def test_command_beyond_the_core_says_what_to_install(command, model, parts, tmp_path):
    given = {"evaluate": [model, parts], "train": [parts], "demo": [], "synthesize": [parts, "--out", "forged"]}

    done = run(command, *given[command], without=_BEYOND_CORE, cwd=tmp_path)

    tier = "eval" if command == "evaluate" else "train"
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: this command needs ")
    assert f"`pip install 'flawsmith[{tier}]'`" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_waits_for_no_array_library(arguments, tmp_path):
    # What makes a command slow to start is what it imports.
    done = run(*arguments, without=f"{_BEYOND_CORE},numpy,PIL,onnxruntime", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
