"""Lines with outputs, a receiver that answers as it is told, and no long waits."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook
from tests.line.conftest import brightness_model, new_site, picture

from flawsmith.line.outputs import delivery
from flawsmith.line.record import Record, Trigger
from flawsmith.line.station import Site

__all__ = ["SECONDS", "SECRET", "Receiver", "brightness_model", "judge", "new_site", "picture", "until"]
SECONDS = 15
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it is true; fails where that takes too long."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
    return value


def judge(site: Site, brightness: int = 20, **facts: Any) -> Record:
    """Have a part judged on the line ``bolt``."""
    return site.lines["bolt"].submit(Trigger("bolt", picture(brightness), **facts))[0].result(SECONDS)


class Receiver:
    """Takes webhooks; a delivery counts where the library of Standard Webhooks says that it is signed rightly.

    Attributes:
        answer: gives the status for the number of a request.
        taken: contents of the deliveries that were answered with 2xx.
    """

    def __init__(self, port: int = 0, trust: ssl.SSLContext | None = None) -> None:
        self.answer: Callable[[int], int] = lambda number: 204
        self.taken: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.requests = 0
        self.headers: dict[str, str] = {}
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests += 1
                receiver.headers = {name.lower(): value for name, value in self.headers.items()}
                Webhook(SECRET).verify(body, receiver.headers)
                status = receiver.answer(receiver.requests)
                if 200 <= status < 300:
                    receiver.taken.append(json.loads(body))
                    receiver.ids.append(self.headers["webhook-id"])
                self.send_response(status)
                self.send_header("Content-Length", "0")
                if status == 302:
                    self.send_header("Location", receiver.elsewhere)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.elsewhere = ""
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        if trust is not None:
            self.server.socket = trust.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"{'http' if trust is None else 'https'}://127.0.0.1:{self.port}/hooks/PATHSECRET"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def parts(self) -> list[str]:
        """Part ids as they came."""
        return [delivery["data"]["part_id"] for delivery in self.taken]

    def webhook(self, **settings: Any) -> dict[str, Any]:
        """Settings of an output that posts here."""
        return {"kind": "webhook", "url": self.url, "secret": SECRET, **settings}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def new_receiver() -> Iterator[Callable[..., Receiver]]:
    """Starts receivers; those that still run are ended."""
    receivers: list[Receiver] = []

    def start(*arguments: Any, **named: Any) -> Receiver:
        receivers.append(Receiver(*arguments, **named))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.close()


@pytest.fixture
def receiver(new_receiver: Callable[..., Receiver]) -> Receiver:
    return new_receiver()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs try again at once, and look at everything each time."""
    for name, value in {"FIRST_DELAY": 0.01, "LONGEST_DELAY": 0.02, "TEND_SECONDS": 0.05, "LOOK_SECONDS": 0.0}.items():
        monkeypatch.setattr(delivery, name, value)
