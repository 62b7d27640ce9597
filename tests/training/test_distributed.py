"""Two processes on a CPU: that they end, agree and speak as one, and that what one of them suffers ends both."""

from __future__ import annotations

import importlib.util
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
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.distributed import SyncBatchNorm
from flawsmith.training.run import RunFolder
from flawsmith.training.trainer import LoopOptions, check_options

SCRIPT = Path(__file__).with_name("two_processes.py")
PATIENCE = 900.0
SEEDS = 3
LEAST_SPREAD = 0.05
"""Of the AUROC over seeds: on twenty images three seeds may happen to agree."""
# Without a bank, which is no matter of training; 8 steps an epoch, of which each of two processes computes 4.
LONGER = {"bank": [], "epochs": 8, "steps_per_epoch": 8, "patches_per_step": 128}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, env=environment)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_end_agree_bit_by_bit_and_are_as_accurate_as_one(
    program: ModuleType,
    tiny_settings: Callable[[str], dict[str, Any]],
    draw_parts: Callable[..., Path],
    tmp_path: Path,
) -> None:
    data = draw_parts(tmp_path / "bolt", good=20, test=10)
    settings = {name: {**tiny_settings(name), **LONGER} for name in ("pbas", "glass")}
    # Twice the epochs, so that as many steps are taken, each with the mean gradient of two batches.
    cases = {
        name: {"method": name, "seed": 0, "set": {**case, "epochs": 2 * case["epochs"]}}
        for name, case in settings.items()
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))

    finished = run(SCRIPT, tmp_path / "cases.json", data, tmp_path, "2")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == ""
    for name, case in settings.items():
        first, second = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(2))
        assert first["sha256"] == second["sha256"]
        alone = [
            program.train(
                {"method": name, "seed": seed, "set": case},
                data,
                RunFolder(tmp_path / f"{name}-seed{seed}", LoopOptions(accelerator="cpu")),
            )["auroc"]
            for seed in range(SEEDS)
        ]
        assert first["auroc"] >= min(alone) - max(LEAST_SPREAD, max(alone) - min(alone)), (first["auroc"], alone)


def test_two_processes_of_the_command_line_speak_and_write_as_one(
    tiny_settings: Callable[[str], dict[str, Any]], parts: Path, tmp_path: Path
) -> None:
    settings = [f"--set={key}={json.dumps(value)}" for key, value in tiny_settings("pbas").items()]

    finished = run(
        "-m", "flawsmith", "train", parts, "--out", tmp_path / "run", "--method", "pbas", *settings, "--backbone",
        "test_efficientnet@random", "--baseline", "none", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp",
        "--json",
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    said = [line.partition(":")[0] for line in finished.stderr.splitlines()]
    assert said[0].startswith("method pbas, preset fast")
    assert said[1] == "bolt"
    assert [said.count(word) for word in ("bolt", "model", "report")] == [1, 1, 1]
    lines = [line for line in finished.stderr.splitlines() if line]
    assert len(lines) == len(set(lines))  # each of them by one process
    assert json.loads(finished.stdout)["model"] == str(tmp_path / "run" / "model.flaw")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert not list((tmp_path / "run").glob(".*"))


# Both processes meet once; then one of them fails while the other waits for it.
FAILING = """
import sys
from flawsmith.cli.app import run
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.distributed import broadcast_from_rank_zero, is_rank_zero, process_group
from flawsmith.training.trainer import LoopOptions, check_options

def program():
    with process_group(check_options(LoopOptions(accelerator="cpu", devices=2))):
        broadcast_from_rank_zero(lambda: None)
        if is_rank_zero() == (sys.argv[1] == "0"):
            raise FlawsmithError("the lens is dirty: wipe it")
        for _ in range(2):
            broadcast_from_rank_zero(lambda: None)

sys.exit(run(program))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_fails_says_why_once_and_ends_the_other(rank: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FAILING)

    finished = run(tmp_path / "program.py", str(rank))

    assert finished.returncode != 0
    assert finished.stderr.count("error: the lens is dirty: wipe it\n") == 1
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_other_strategies_for_several_processes_are_refused(strategy: str) -> None:
    with pytest.raises(FlawsmithError, match=rf"{strategy}.*--strategy ddp") as error:
        check_options(LoopOptions(accelerator="cpu", devices=2, strategy=strategy))

    assert "\n" not in str(error.value)


def test_synchronised_norms_keep_state_and_activation_and_are_undone(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNormAct2d(4))
    modules, images, sync = list(model), torch.randn(2, 3, 5, 5), SyncBatchNorm()
    model(images)
    expected = model.eval()(images)

    synchronised = sync.apply(model)

    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in list(synchronised)[1:])
    assert torch.equal(synchronised(images), expected)
    synchronised[1].running_mean += 1
    assert list(sync.revert(synchronised)) == modules
    assert not torch.equal(model(images), expected), "what was learned in between stays"
