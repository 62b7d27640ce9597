"""What deploying.md names exists, parses, and works as the unit expects it."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PROJECT
from tests.serving.conftest import SECONDS
from tests.serving.test_kill import SCRIPT
from typer.testing import CliRunner

from flawsmith.cli.main import app

PAGE = (PROJECT / "docs" / "line" / "deploying.md").read_text(encoding="utf-8")
UNIT = PROJECT / "examples" / "deploy" / "flawsmith.service"
CONTAINER = PROJECT / "examples" / "deploy" / "Containerfile"
BUILDING, RUNNING = {"FROM", "WORKDIR", "COPY", "RUN", "ENV"}, {"USER", "VOLUME", "EXPOSE", "STOPSIGNAL"}
INSTRUCTIONS = BUILDING | RUNNING | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}


def value(unit: str, name: str) -> str:
    match = re.search(rf"^{name}=(.*)$", unit, re.MULTILINE)
    assert match is not None, name
    return match[1]


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", CONTAINER.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(name, rest.strip()) for name, rest in pairs]


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"examples/deploy/[A-Za-z.]+", PAGE))

    assert named == {"examples/deploy/flawsmith.service", "examples/deploy/Containerfile"}
    assert all((PROJECT / name).is_file() for name in named)


def test_commands_of_unit_and_container_are_taken_by_the_command_line(tmp_path: Path) -> None:
    container = dict(instructions())
    commands = (
        shlex.split(value(UNIT.read_text(encoding="utf-8"), "ExecStart")),
        ast.literal_eval(container["ENTRYPOINT"]) + ast.literal_eval(container["CMD"]),
    )

    for command in commands:
        assert Path(command[0]).name == "flawsmith"
        settings = command[2]
        missing = str(tmp_path / "LINES.toml")
        result = CliRunner().invoke(app, [missing if word == settings else word for word in command[1:]])
        assert f"{missing}: cannot be read" in str(result.exception)  # so that no option is unknown


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    program = value(UNIT.read_text(encoding="utf-8"), "ExecStart").split()[0]
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(program, "/bin/true"))

    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=SECONDS
    )

    ours = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert not ours, result.stderr


def test_unit_lets_the_service_write_its_records_alone() -> None:
    unit = UNIT.read_text(encoding="utf-8")
    folder = value(unit, "ReadWritePaths")

    assert f"--out {folder}/" in value(unit, "ExecStart")
    assert f"/var/lib/{value(unit, 'StateDirectory')}" == folder
    for name, wanted in (("ProtectSystem", "strict"), ("NoNewPrivileges", "yes"), ("Type", "notify")):
        assert value(unit, name) == wanted
    assert "User=root" not in unit


def test_container_is_built_of_known_instructions_and_runs_as_nobody_in_particular() -> None:
    steps = instructions()
    last_stage = steps[max(place for place, (name, _) in enumerate(steps) if name == "FROM") :]
    names = {name for name, _ in steps}

    assert names <= INSTRUCTIONS, names - INSTRUCTIONS
    assert dict(last_stage)["USER"].split(":")[0] not in ("0", "root")
    assert dict(last_stage)["VOLUME"] in dict(last_stage)["CMD"]
    sources = [word for name, rest in steps if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]]
    assert sources and all((PROJECT / source).exists() for source in sources)
    check = dict(last_stage)["HEALTHCHECK"].partition("CMD ")[2]
    compile(ast.literal_eval(check)[2], "healthcheck", "exec")
    assert "/readyz" in check


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is where sockets of this kind are")
def test_systemd_is_told_when_parts_are_taken_and_again_and_again(brightness_model: Path, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(SECONDS)
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT / "src"),
            "NOTIFY_SOCKET": address,
            "WATCHDOG_USEC": "400000",
        }
        command = ["serve", str(brightness_model), "--out", str(tmp_path / "records"), "--port", "0", "--quiet"]
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *command], env=environment, stdout=subprocess.DEVNULL)
        try:
            messages = [listener.recv(100) for _ in range(3)]
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0
        while messages[-1] == b"WATCHDOG=1":
            messages.append(listener.recv(100))

    assert sorted(messages[:3]) == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    assert messages[-1] == b"STOPPING=1"


def test_service_behind_a_proxy_answers_to_its_name_and_asks_for_tokens(new_service: Any) -> None:
    token = "operator-0123456789"
    with pytest.raises(ValueError, match="tokens"):
        new_service(host="127.0.0.2")
    running = new_service(host="127.0.0.2", tokens=[{"name": "plc", "role": "operator", "token": token}])
    order = {"reason": "new lamp"}
    path = "/v1/lines/bolt/drift/acknowledge"
    host = "inspection.plant.example"

    answers = [
        running.call("POST", path, order, token=token, Host=host, Origin=f"https://{host}"),
        running.call("POST", path, order, token=token, Host=host, Origin="https://elsewhere.example"),
        running.call("POST", path, order, Host=host),
    ]

    assert [answer.status for answer in answers] == [200, 403, 401]
