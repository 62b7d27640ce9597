"""What the pages of docs/line show is taken as it stands there: settings, commands, a plug-in, a message."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PROJECT
from tests.line.conftest import picture
from tests.line.outputs.conftest import SECRET

from flawsmith.line.cameras import CameraSettings
from flawsmith.line.outputs.delivery import Letter
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import ServiceSettings, tomllib

PAGES = sorted((PROJECT / "docs" / "line").glob("*.md"))


def blocks(language: str) -> list[tuple[str, str]]:
    """Name of the page and text of each block of code."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(page.name, text) for page in PAGES for text in pattern.findall(page.read_text(encoding="utf-8"))]


def test_settings_of_the_pages_are_taken() -> None:
    settings = {}
    for name, text in blocks("toml"):
        values = tomllib.loads(text.replace("whsec_...", SECRET).replace("# device", "device"))
        if "project" not in values:  # a package's own
            settings[name] = ServiceSettings.checked({"lines": {}, **values}, Path(name))

    assert set(settings) == {"cameras.md", "deploying.md", "index.md", "outputs.md", "plc.md"}
    assert settings["index.md"].lines["bolt"].device == "cuda"


def test_a_message_and_a_camera_of_the_pages_are_what_they_are_said_to_be() -> None:
    ((_, message),) = blocks("json")
    ((_, source),) = blocks("python")
    record = Record.of_error(Trigger("bolt", b""), "camera", "no picture")
    scope: dict[str, Any] = {}
    exec(source, scope)

    assert set(json.loads(message)["data"]) <= set(Letter(record, "5e0c").message())
    camera = scope["AcmeCamera"](CameraSettings(kind="acme", options={"serial": "4711"}))
    assert camera.serial == "4711"


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="needs curl and bash")
@pytest.mark.usefixtures("_trial_in_this_process")
def test_requests_of_the_pages_are_answered(
    new_service: Callable[..., Any], new_model: Callable[..., Path], tmp_path: Path
) -> None:
    running = new_service()
    (tmp_path / "part.png").write_bytes(picture(250))
    shutil.copy(new_model(2.0), tmp_path / "new.flaw")
    version = hashlib.sha256((tmp_path / "new.flaw").read_bytes()).hexdigest()
    lines = [line for _, text in blocks("sh") for line in text.splitlines() if re.match(r"curl |LINE=", line)]
    script = "\n".join(["set -e", 'curl() { command curl --silent --show-error --fail "$@" >> answers; }', *lines])
    script = script.replace("3f9c0a71be52", version[:12]).replace("127.0.0.1:8470", f"127.0.0.1:{running.port}")

    result = subprocess.run(
        ["bash", "-c", script.replace("line1", "bolt")], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert len(lines) >= 9
    actions = [entry["facts"]["action"] for entry in running.call("GET", "/v1/audit?kind=model").json["items"]]
    assert actions[:2] == ["rolled back", "shadow ended"]
