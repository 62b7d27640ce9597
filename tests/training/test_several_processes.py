"""Two processes on a CPU give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector
from flawsmith.training.trainer import LoopOptions, check_options

Found = dict[str, torch.Tensor]
SCRIPT = Path(__file__).with_name("several_processes.py")
PATIENCE = 900.0
WHOLE_PASS = {"steps_per_epoch": None, "patches_per_step": None, "batch_size": 19}
"""20 images in batches of 19: shares of 9 and 10 images, then of none and one."""
# Every method and stage; drawn positions and all of them, pools and fresh flaws, a worker and none, both hypotheses.
CASES: dict[str, dict[str, Any]] = {
    "pbas": {"method": "pbas", "set": {**WHOLE_PASS, "epochs": 1, "synthesis": "gaussian"}},
    "glass-manifold": {"method": "glass", "set": {"hypothesis": "manifold", "steps_per_epoch": 2}, "workers": 1},
    "glass-hypersphere": {
        "method": "glass",
        "set": {**WHOLE_PASS, "epochs": 1, "hypothesis": "hypersphere", "refresh": 1},
    },
    "aand": {"method": "aand", "set": {"batch_size": 3, "amplification_steps": 2, "steps_per_epoch": 2}},
    "rd4ad": {"method": "rd4ad", "set": {"steps_per_epoch": None, "batch_size": 19, "epochs": 1}},
    "slsg": {"method": "slsg", "set": {"pretraining_epochs": 1, "epochs": 1, "batch_size": 3}},
}
EXACT = {"rtol": 1e-6, "atol": 1e-8}
"""Float64: the order of sums over processes changes the last of sixteen digits, a few steps of Adam make more of it."""
OVER_HALVES = {"rtol": 2e-3, "atol": 2e-4}
"""SLSG's second stage reads features of the trained encoder in half precision: where one falls on the other side of a
rounding, it differs by 5e-4 of itself."""

IN_FLOAT32 = {"rtol": 1e-3, "atol": 1e-5}
"""Maps and scores, which inspection computes in float32."""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("several_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def folders(
    program: ModuleType,
    tiny_settings: dict[str, dict[str, Any]],
    parts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """What one process and two processes left behind."""
    root = tmp_path_factory.mktemp("several")
    cases = {name: {**case, "set": {**tiny_settings[case["method"]], **case["set"]}} for name, case in CASES.items()}
    (root / "cases.json").write_text(json.dumps(cases))
    one, two = root / "one", root / "two"
    two.mkdir()
    finished = run(SCRIPT, root / "cases.json", parts, two, "2")
    assert finished.returncode == 0, finished.stderr
    one.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the two: in float32, more threads add in another order
    try:
        program.train_all(cases, parts, one, 1)
    finally:
        torch.set_num_threads(threads)
    return one, two


@pytest.mark.parametrize("name", CASES)
def test_states_maps_and_scores_are_those_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    one, two = (load_file(folder / f"{name}.safetensors") for folder in folders)

    assert one.keys() == two.keys()
    tolerance = OVER_HALVES if name == "slsg" else EXACT
    for key in one:
        limits = IN_FLOAT32 if key in ("map", "score") else tolerance
        torch.testing.assert_close(two[key], one[key], **limits, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_recorded_figures_are_those_of_one_process(name: str, folders: tuple[Path, Path]) -> None:
    one, two = (
        [json.loads(row) for row in (folder / name / "metrics.jsonl").read_text().splitlines()] for folder in folders
    )

    assert len(one) == len(two)
    for expected, found in zip(one, two, strict=True):
        assert (found.pop("stage"), found.pop("epoch")) == (expected.pop("stage"), expected.pop("epoch"))
        assert found == pytest.approx(expected, rel=1e-3 if name == "slsg" else 1e-7)


@pytest.mark.parametrize("name", ["pbas", "glass-manifold", "rd4ad"])
def test_training_changed_what_is_compared(name: str, folders: tuple[Path, Path]) -> None:
    """A tolerance means something only where the figures are not those of the start."""
    found = load_file(folders[1] / f"{name}.safetensors")
    means = [value for key, value in found.items() if key.endswith("running_mean")]

    assert means
    assert all(value.abs().max() > 1e-3 for value in means)


def test_batch_norms_are_those_of_the_whole_batch(program: ModuleType, folders: tuple[Path, Path]) -> None:
    shares = [load_file(folders[1] / f"norms-{rank}.safetensors") for rank in range(2)]

    for kind, count, key, expected in program.every_norm(lambda module: None):
        first, second = (share[f"{kind} {count} {key}"] for share in shares)
        found = torch.cat([first, second]) if key in ("output", "gradient of input") else first
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")
        if key not in ("output", "gradient of input"):
            assert torch.equal(first, second), f"{kind} {count} {key}: the same bits in both processes"


def test_two_processes_of_the_command_line_speak_and_write_as_one(
    trained: Callable[[str], Any], tiny_settings: dict[str, dict[str, Any]], parts: Path, tmp_path: Path
) -> None:
    settings = [f"--set={key}={json.dumps(value)}" for key, value in tiny_settings["pbas"].items()]

    finished = run(
        "-m", "flawsmith", "train", parts, "--out", tmp_path / "run", "--preset", "fast", *settings,
        "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--json",
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    said = [line.partition(":")[0] for line in finished.stderr.splitlines()]
    assert said[0].startswith("bolt")
    assert said[2:4] == ["model", "report"]
    assert len(said) == 5
    assert json.loads(finished.stdout)["model"] == str(tmp_path / "run" / "model.flaw")
    one, two = trained("pbas").model, tmp_path / "run" / "model.flaw"
    assert Bundle.load(two).spec.training == Bundle.load(one).spec.training
    picture = next((parts / "test" / "crack").iterdir())
    (first, _), (second, _) = (Inspector.load(model).raw(picture) for model in (one, two))
    assert second == pytest.approx(first, abs=0.05)  # float32, where the bias before a batch norm wanders
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_other_strategies_for_several_processes_are_refused(strategy: str) -> None:
    with pytest.raises(FlawsmithError, match=rf"{strategy}.*--strategy ddp") as error:
        check_options(LoopOptions(accelerator="cpu", devices=2, strategy=strategy))

    assert "\n" not in str(error.value)
