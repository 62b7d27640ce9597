"""Exported graphs tell nothing of where they were made, and the same module gives the same bytes."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from flawsmith.features.extract import to_onnx

SCRIPT = """
import hashlib, torch
from torch import nn
from flawsmith.features.extract import to_onnx
torch.manual_seed(0)
module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
print(hashlib.sha256(to_onnx(module, {"image": (3, 6, 10)}, ["features"])).hexdigest())
"""


def small_module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


@pytest.fixture(scope="module")
def graph() -> bytes:
    return to_onnx(small_module(), {"image": (3, 6, 10)}, ["features"])


def test_graph_holds_no_path_trace_or_version(graph: bytes) -> None:
    for secret in (str(Path.cwd()), str(Path(__file__).parent), "site-packages", ".py", "pytorch", torch.__version__):
        assert secret.encode() not in graph, secret


def test_graph_holds_no_metadata(graph: bytes) -> None:
    model = onnx.load_from_string(graph)

    assert model.producer_name == "flawsmith"
    assert not model.producer_version
    assert not model.metadata_props
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props


def test_graph_is_the_module_at_any_batch_size(graph: bytes) -> None:
    module = small_module().eval()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    for batch in (1, 2, 5):
        images = np.random.default_rng(batch).normal(size=(batch, 3, 6, 10)).astype(np.float32)
        (found,) = session.run(["features"], {"image": images})
        with torch.no_grad():
            expected = module(torch.from_numpy(images))
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_two_processes_in_two_folders_write_the_same_bytes(graph: bytes, tmp_path: Path) -> None:
    script = tmp_path / "somewhere" / "export.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)

    result = subprocess.run(
        [sys.executable, str(script)], cwd=script.parent, capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == hashlib.sha256(graph).hexdigest()


@pytest.mark.parametrize("collects", [True, False])
def test_export_leaves_the_garbage_collector_as_it_was(collects: bool) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError("no graph")

    before = gc.isenabled()
    try:
        gc.enable() if collects else gc.disable()
        with pytest.raises(Exception, match="no graph"):
            to_onnx(Broken(), {"image": (3, 6, 10)}, ["features"])
        assert gc.isenabled() == collects
    finally:
        gc.enable() if before else gc.disable()


def test_export_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    to_onnx(small_module(), {"image": (3, 6, 10)}, ["features"])

    assert capfd.readouterr() == ("", "")
