"""A service that is killed while parts come in: what it acknowledged is recorded, and nothing twice."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.conftest import PROJECT
from tests.serving.conftest import SECONDS, picture
from typer.testing import CliRunner

from flawsmith.cli.main import app
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site
from flawsmith.line.store import Store
from flawsmith.runtime.errors import FlawsmithError

SCRIPT = "import sys; from flawsmith.cli.main import main; sys.exit(main(sys.argv[1:]))"
ROUNDS, PARTS = 3, 40


class Killed:
    """``flawsmith serve`` in a process of its own."""

    processes: ClassVar[list[subprocess.Popen[str]]] = []

    def __init__(self, model: Path, records: Path) -> None:
        command = [sys.executable, "-c", SCRIPT, "serve", str(model), "--out", str(records), "--port", "0", "--quiet"]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.processes.append(self.process)
        assert self.process.stdout is not None
        address = self.process.stdout.readline()
        self.port = int(address.rpartition(":")[2])

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(SECONDS)


def send(port: int, part: str, image: bytes) -> dict[str, Any] | None:
    """The record of a part; None where no answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("POST", "/v1/lines/line1/inspections", image, {"Part-Id": part})
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status in (200, 201) else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_killed_service_has_recorded_all_it_acknowledged_and_nothing_twice(
    brightness_model: Path, tmp_path: Path
) -> None:
    images = {f"P-{number}": picture(250 if number % 3 == 0 else 20, note=number) for number in range(PARTS)}
    acknowledged: dict[str, dict[str, Any]] = {}
    for round_ in range(ROUNDS):
        service = Killed(brightness_model, tmp_path)
        enough = threading.Event()

        def sender(parts: list[str], port: int = service.port, goal: int = 10 * (round_ + 1), go: Any = enough) -> None:
            for part in parts:
                if (record := send(port, part, images[part])) is None:
                    return
                assert acknowledged.setdefault(part, record) == record
                if len(acknowledged) >= goal:
                    go.set()

        threads = [threading.Thread(target=sender, args=(list(images)[start::4],)) for start in range(4)]
        for thread in threads:
            thread.start()
        assert enough.wait(SECONDS)
        service.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
    service = Killed(brightness_model, tmp_path)
    with pytest.raises(FlawsmithError, match="another flawsmith command is writing there"):
        Site(ServiceSettings.load(brightness_model, records=tmp_path))
    for part, image in images.items():
        record = send(service.port, part, image)
        assert record is not None
        assert acknowledged.setdefault(part, record) == record
    code = service.end(signal.SIGTERM)

    stored = Store(tmp_path).page("line1", count=1000)
    assert code == 0
    assert sorted(str(record.part_id) for record in stored) == sorted(images)
    assert {record.part_id: record.model_dump(mode="json") for record in stored} == acknowledged
    shown = CliRunner().invoke(app, ["audit", "verify", str(tmp_path)])
    assert (shown.exit_code, shown.stdout.splitlines()[-1]) == (0, "intact")


def test_killed_service_has_the_version_live_that_the_audit_says(
    brightness_model: Path, new_model: Callable[..., Path], tmp_path: Path
) -> None:
    contents = [new_model(factor).read_bytes() for factor in (0.5, 2.0)]
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    path = "/v1/lines/line1/models"

    service = Killed(brightness_model, tmp_path)
    assert ask(service.port, "POST", path, contents[0]) == 201
    with socket.create_connection(("127.0.0.1", service.port), timeout=SECONDS) as half:
        request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(contents[1])}\r\n\r\n"
        half.sendall(request.encode() + contents[1][:-10])
        assert ask(service.port, "POST", f"{path}/{hashes[0]}/activate", {"reason": "a trial"}) == 200
        service.end(signal.SIGKILL)
    service = Killed(brightness_model, tmp_path)
    record = send(service.port, "P-1", picture(100))
    kept = {file.name for file in (tmp_path / "models").iterdir()}
    # Killed while it switches: whatever came of it, audit and parts agree.
    assert ask(service.port, "POST", path, contents[1]) == 201
    switch = threading.Thread(
        target=ask, args=(service.port, "POST", f"{path}/{hashes[1]}/activate", {"reason": "again"})
    )
    switch.start()
    service.end(signal.SIGKILL)
    switch.join()
    service = Killed(brightness_model, tmp_path)
    last = send(service.port, "P-2", picture(100))
    service.end(signal.SIGTERM)

    assert record is not None
    assert last is not None
    assert record["model_sha256"] == hashes[0]
    first = hashlib.sha256(brightness_model.read_bytes()).hexdigest()
    assert kept == {f"{first}.flaw", f"{hashes[0]}.flaw"}
    store = Store(tmp_path)
    noted = [entry.facts["sha256"] for entry in store.entries(kind="model") if entry.facts["action"] == "activated"]
    assert last["model_sha256"] == noted[0]
    assert store.verify().faults == ()


def ask(port: int, method: str, path: str, body: Any) -> int | None:
    """The status of an answer; None where none came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    sent = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
    try:
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, sent)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_service_that_cannot_begin_writes_nothing(tmp_path: Path, brightness_model: Path) -> None:
    (tmp_path / "broken.flaw").write_bytes(brightness_model.read_bytes()[:-100])

    for model, options in ((tmp_path / "broken.flaw", []), (brightness_model, ["--host", "0.0.0.0"])):
        shown = CliRunner().invoke(
            app, ["serve", str(model), "--out", str(tmp_path / "records"), "--port", "0", *options]
        )
        assert isinstance(shown.exception, FlawsmithError)

    assert not (tmp_path / "records").exists()


def test_audit_command_tells_what_was_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.note("limit", who="anna", facts={"reason": "dust"})
    store._writer.execute("DROP TRIGGER audit_stays")
    store._writer.execute("UPDATE audit SET content = replace(content, 'dust', 'dirt')")
    store.close()

    shown = CliRunner().invoke(app, ["audit", "verify", str(tmp_path), "--json"])

    assert shown.exit_code == 1
    assert re.match("audit 1: was changed", json.loads(shown.stdout)["faults"][0])


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    while Killed.processes:
        Killed.processes.pop().kill()
