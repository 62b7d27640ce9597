"""MQTT with the mosquitto broker: acknowledged records in order, a status that stays, and a last will."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from tests.line.outputs.conftest import SECONDS, judge, until

from flawsmith.line.outputs.mqtt import MqttSink
from flawsmith.line.station import Site

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="there is no mosquitto (apt-get install mosquitto)")
TOPIC = "plant/hall 2/bolt/cam"
PLACE = {"site": "plant", "area": "hall 2", "station": "cam"}
NewSite = Callable[..., Site]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Broker:
    """Mosquitto on a port of its own, with a reader of everything.

    Attributes:
        messages: topic and content as they came; the content of a status is shortened to state and reason.
    """

    def __init__(self, folder: Path, *, port: int | None = None, password: str = "", tls: Path | None = None) -> None:
        self.port, self._tls = port or free_port(), tls
        lines = [f"listener {self.port} 127.0.0.1", "user root", "persistence false"]
        if tls is not None:
            lines += [f"certfile {tls / 'broker.pem'}", f"keyfile {tls / 'broker.pem'}"]
        if password:
            passwords = folder / "passwords"
            subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "line", password], check=True)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines.append("allow_anonymous true")
        (folder / "mosquitto.conf").write_text("\n".join(lines))
        self.messages: list[tuple[str, Any]] = []
        self._password = password
        self._process = subprocess.Popen(
            [str(MOSQUITTO), "-c", folder / "mosquitto.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._reader = self._listening()

    def _listening(self) -> Client:
        ready = threading.Event()
        reader = Client(CallbackAPIVersion.VERSION2)
        if self._password:
            reader.username_pw_set("line", self._password)
        if self._tls is not None:
            reader.tls_set(str(self._tls / "ca.pem"))
        reader.on_connect = lambda *_: reader.subscribe("#", qos=1)
        reader.on_subscribe = lambda *_: ready.set()
        reader.on_message = self._came

        def connected() -> bool:
            try:
                reader.connect("127.0.0.1", self.port)
            except OSError:
                return False
            return True

        until(connected)
        reader.loop_start()
        assert ready.wait(SECONDS)
        return reader

    def _came(self, _client: Any, _data: Any, message: Any) -> None:
        content = json.loads(message.payload)
        assert content["schema"] == 1
        if message.topic.endswith("/status"):
            assert ("since" in content) == (content["reason"] != "connection lost")
            content = (content["state"], content["reason"])
        self.messages.append((message.topic, content))

    @property
    def statuses(self) -> list[tuple[str, str]]:
        return [content for topic, content in self.messages if topic == f"{TOPIC}/status"]

    @property
    def parts(self) -> list[str]:
        return [content["part_id"] for topic, content in self.messages if topic == f"{TOPIC}/inspection"]

    def settings(self, **changes: Any) -> dict[str, Any]:
        return {"kind": "mqtt", "host": "127.0.0.1", "port": self.port, "seconds": 5, **changes}

    def stop(self) -> None:
        self._reader.disconnect()
        self._reader.loop_stop()
        self._process.kill()
        self._process.wait()


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    brokers: list[Broker] = []

    def start(**settings: Any) -> Broker:
        brokers.append(Broker(tmp_path, **settings))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.stop()


def facts(site: Site) -> Any:
    (output,) = site.lines["bolt"].outputs.facts()
    return output


def test_records_and_states_of_a_line_reach_the_broker(new_site: NewSite, new_broker: Callable[..., Broker]) -> None:
    broker = new_broker()
    site = new_site(outputs=[broker.settings()], **PLACE)

    until(lambda: broker.statuses == [("online", "")])
    records = [judge(site, brightness, part_id=f"P-{brightness}") for brightness in (20, 250)]
    until(lambda: len(broker.parts) == 2)
    site.lines["bolt"].unload(who="anna")
    until(lambda: broker.statuses[-1] == ("offline", "no model"))
    site.lines["bolt"].load(who="anna")
    until(lambda: broker.statuses[-1] == ("online", ""))
    site.close()
    until(lambda: broker.statuses[-1] == ("offline", "stopped"))

    contents = [content for topic, content in broker.messages if topic.endswith("/inspection")]
    stored = [
        {"schema": 1, "delivery": delivery, **json.loads(record.model_dump_json())}
        for record, delivery in new_site().store.after("bolt", 0, count=9)
    ]
    assert contents == stored
    assert [content["verdict"] for content in contents] == [record.verdict for record in records]
    assert {topic for topic, _ in broker.messages} == {f"{TOPIC}/inspection", f"{TOPIC}/status"}


def test_who_comes_later_learns_the_state_and_the_will_tells_of_a_lost_line(
    new_site: NewSite, new_broker: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = new_broker()
    site = new_site(outputs=[broker.settings()], **PLACE)
    until(lambda: broker.statuses == [("online", "")])
    broker.messages.clear()
    later = broker._listening()
    until(lambda: broker.statuses == [("online", "")])  # it is retained
    later.disconnect()

    (pump,) = site.lines["bolt"].outputs._pumps
    with monkeypatch.context() as patch:
        patch.setattr(MqttSink, "tend", lambda *_: None)  # nothing connects again meanwhile, as after a kill
        pump._sink._hang_up()
        until(lambda: broker.statuses[-1] == ("offline", "connection lost"))
    until(lambda: broker.statuses[-1] == ("online", ""))


def test_broker_that_was_away_gets_every_record_in_order(
    new_site: NewSite, new_broker: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = new_broker()
    site = new_site(outputs=[broker.settings()], **PLACE)
    judge(site, part_id="P-0")
    until(lambda: broker.parts == ["P-0"])
    broker.stop()
    for number in range(1, 131):
        judge(site, part_id=f"P-{number}")
    failing = until(lambda: facts(site).state == "failing" and facts(site))
    connected, is_read = MqttSink._connected, threading.Event()  # a broker forgets what nobody reads
    monkeypatch.setattr(MqttSink, "_connected", lambda sink: is_read.wait(SECONDS) and connected(sink))
    back = new_broker(port=broker.port)
    is_read.set()
    until(lambda: facts(site).behind == 0)
    until(lambda: len(back.parts) >= 130)

    assert failing.behind == 130
    assert "the broker 127.0.0.1" in failing.last_error
    assert back.parts == [f"P-{number}" for number in range(1, 131)]
    assert facts(site).delivered == 131
    assert back.statuses == [("online", "")]


def test_broker_that_acknowledges_nothing_delays_no_record(new_site: NewSite) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            connection.recv(4096)
            connection.sendall(b"\x20\x02\x00\x00")  # connected; nothing is answered from now on

    threading.Thread(target=accept, daemon=True).start()
    port = listener.getsockname()[1]
    site = new_site(outputs=[{"kind": "mqtt", "host": "127.0.0.1", "port": port, "seconds": 0.3}])

    records = [judge(site) for _ in range(20)]
    failing = until(lambda: facts(site).failures > 1 and facts(site))
    begun = time.monotonic()
    site.close()
    listener.close()
    for connection in taken:
        connection.close()

    assert [record.verdict for record in records] == ["pass"] * 20
    assert failing.last_error == f"the broker 127.0.0.1:{port} acknowledged nothing within 0.3 s"
    assert (failing.behind, failing.delivered) == (20, 0)
    assert time.monotonic() - begun < SECONDS


def test_password_and_certificate_are_asked_for(
    new_site: NewSite, new_broker: Callable[..., Broker], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "broker.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    broker = new_broker(password="right", tls=tmp_path)
    right = broker.settings(tls=True, ca_file=tmp_path / "ca.pem", username="line", password="right")
    errors = {}
    for wrong in ({"password": "wrong"}, {"ca_file": None}, {"tls": False, "ca_file": None}):
        site = new_site(outputs=[{**right, **wrong}], **PLACE)
        errors[next(iter(wrong))] = until(lambda site=site: facts(site).last_error)
        site.close()
    site = new_site(outputs=[right], **PLACE)
    judge(site, part_id="P-0")
    until(lambda: broker.parts == ["P-0"])

    assert "refuses the connection (Not authorized): see username and password" in errors["password"]
    assert "certificate verify failed" in errors["ca_file"]
    assert "the broker 127.0.0.1" in errors["tls"]
    assert facts(site).target == f"mqtts://127.0.0.1:{broker.port}/{TOPIC}"
    assert "right" not in json.dumps([fact.model_dump() for fact in site.lines["bolt"].outputs.facts()])
