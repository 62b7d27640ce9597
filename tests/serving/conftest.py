"""A service in a thread, and a client that sends what it is told."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.line.conftest import GOOD_SCORES, _trial_in_this_process, brightness_model, new_model, picture

from flawsmith.line.settings import ServiceSettings
from flawsmith.serving.server import Server, listen
from flawsmith.serving.service import Service

__all__ = [
    "GOOD_SCORES",
    "SECONDS",
    "Gate",
    "Running",
    "_trial_in_this_process",
    "brightness_model",
    "new_model",
    "picture",
]
SECONDS = 15


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A service in a thread."""

    def __init__(self, settings: ServiceSettings) -> None:
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.service = Service(settings)
        self.server = Server(self.service)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()

    def call(self, method: str, path: str, body: Any = None, *, token: str = "", **headers: str) -> Answer:
        """Send a request; headers have underscores for hyphens, a dictionary goes as JSON."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if isinstance(body, dict):
            body, sent["Content-Type"] = json.dumps(body), "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def judge(self, image: bytes, part: str = "", line: str = "bolt", **headers: str) -> Answer:
        """Send a part."""
        named = {"Part_Id": part} if part else {}
        return self.call("POST", f"/v1/lines/{line}/inspections", image, **named, **headers)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(SECONDS)


@pytest.fixture(scope="module")
def new_service(brightness_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts a service with the line ``bolt``; ``line`` changes it, other settings are those of the service."""
    started: list[Running] = []

    def start(line: Mapping[str, Any] | None = None, **settings: Any) -> Running:
        values = {"records": tmp_path_factory.mktemp("records"), "images": {"keep_free": 0, "passes": 1}, **settings}
        values["lines"] = {"bolt": {"model": brightness_model, "threads": 1, "site": "plant", **(line or {})}}
        started.append(Running(ServiceSettings.model_validate(values)))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="module")
def running(new_service: Callable[..., Running]) -> Running:
    """A service that the tests of a file share."""
    return new_service()


class Gate:
    """Stands before a line's network: parts wait there until it is opened."""

    def __init__(self, running: Running) -> None:
        self.is_open = threading.Event()
        self._line = running.service.site.lines["bolt"]
        model = self._line.model
        assert model is not None
        self._engine, self._run = model.inspector.engine, model.inspector.engine.run
        self.reached = threading.Event()

    def __enter__(self) -> Gate:
        def run(batch: Any) -> Any:
            self.reached.set()
            assert self.is_open.wait(SECONDS)
            return self._run(batch)

        self._engine.run = run  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open.set()
        self._engine.run = self._run  # type: ignore[method-assign]


@pytest.fixture
def gate(running: Running) -> Callable[[], Gate]:
    """Closes the way to the network of the shared service."""
    return lambda: Gate(running)
