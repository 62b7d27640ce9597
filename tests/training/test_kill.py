"""A run that the system kills in the middle of training, and that goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The second epoch hangs when it is done, so that the kill always falls between two checkpoints.
TRAIN = """
import json, sys, time
import flawsmith
from flawsmith.training import trainer
from flawsmith.training.trainer import MetricsFile

append = MetricsFile.append
def hang(self, epoch, values):
    append(self, epoch, values)
    time.sleep(3600 if epoch else 0)

trainer.SECONDS_BETWEEN_CHECKPOINTS = -1.0
MetricsFile.append = hang
data, out, settings = sys.argv[1:]
flawsmith.train(data, out=out, quiet=True, method="pbas", preset="fast", set=json.loads(settings))
"""
PATIENCE = 180.0


def rows(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def test_run_killed_by_the_system_resumes_to_the_same_bytes(
    trained: Callable[[str], Any], train_tiny: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    whole, folder = trained("pbas"), tmp_path / "killed"
    settings = json.dumps(whole.bundle.spec.config | {"epochs": 2})
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(parts), str(folder), settings])

    end = time.monotonic() + PATIENCE
    while rows(folder / "metrics.jsonl") < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)  # another process is waited for
    process.kill()
    assert process.wait() == -9
    assert (folder / "checkpoints" / "boundary.safetensors").exists()
    assert not (folder / "model.flaw").exists()
    resumed = train_tiny("pbas", parts, folder, set=json.loads(settings), resume=True)

    assert resumed.model.read_bytes() == whole.model.read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
