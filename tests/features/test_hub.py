"""The hub's own client against a stand-in on this machine, and what a user without internet reads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from flawsmith.features.backbones import ALIASES, checksum

MODEL = "test_resnet"  # timm's own model for tests: half a million parameters
CLIP = "clip_vit_b16"
LOAD = """
from flawsmith.features.backbones import load_backbone
from flawsmith.runtime.errors import FlawsmithError
try:
    info = load_backbone({name!r}, strides={strides}).info
    print(info.weights, info.sha256)
except FlawsmithError as error:
    print("refused:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks for one file of one repository."""

    content: bytes

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if not self.path.endswith("/resolve/main/model.safetensors") and "/resolve/" + "0" * 40 not in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if body:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return timm.create_model(MODEL)


@pytest.fixture(scope="module")
def hub(model: torch.nn.Module) -> Iterator[str]:
    """Address of the stand-in."""
    with serving(model) as address:
        yield address


@contextmanager
def serving(model: torch.nn.Module) -> Iterator[str]:
    """A hub whose every repository holds this model's weights."""
    handler = type("Handler", (Hub,), {"content": save(model.state_dict())})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def load_elsewhere(tmp_path: Path, name: str = MODEL, strides: tuple[int, ...] = (8, 16), **environment: str) -> str:
    """What LOAD prints in a process of its own: the client reads its settings when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD.format(name=name, strides=strides)],
        env={**inherited, **settings, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_backbone_comes_from_the_hub(hub: str, model: torch.nn.Module, tmp_path: Path) -> None:
    levels = timm.create_model(MODEL, features_only=True, out_indices=(2, 3))
    levels.load_state_dict(model.state_dict(), strict=False)

    printed = load_elsewhere(tmp_path, HF_ENDPOINT=hub)

    assert printed == f"hub {checksum(levels)}"


def test_the_image_encoder_of_clip_comes_from_the_hub(tmp_path: Path) -> None:
    architecture = ALIASES[CLIP].partition(".")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        encoder = timm.create_model(architecture)
    blocks = timm.create_model(architecture, features_only=True, out_indices=(3, 7, 11))
    weights = {f"model.{key}": value for key, value in encoder.state_dict().items()}
    taken = blocks.load_state_dict(weights, strict=False)
    assert not taken.missing_keys, "blocks 4, 8 and 12 with all that comes before them"

    with serving(encoder) as hub:
        printed = load_elsewhere(tmp_path, CLIP, (16, 16, 16), HF_ENDPOINT=hub)

    assert printed == f"hub {checksum(blocks)}"


def test_without_internet_the_error_names_both_ways_out(tmp_path: Path) -> None:
    printed = load_elsewhere(tmp_path, HF_HUB_OFFLINE="1")

    assert printed.startswith("refused:")
    assert "--backbone efficientnet_lite0" in printed
    assert f"--backbone {MODEL}@FILE" in printed
    assert "\n" not in printed
