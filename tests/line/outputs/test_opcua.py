"""The OPC UA server of a line, with a real client over loopback."""

from __future__ import annotations

import json
import math
import queue
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from asyncua import ua
from asyncua.sync import Client
from tests.line.outputs.conftest import SECONDS, judge, until

from flawsmith.line.outputs import opcua
from flawsmith.line.outputs.delivery import Offline
from flawsmith.line.record import Record, Trigger
from flawsmith.line.station import Site
from flawsmith.runtime.errors import FlawsmithError

OUTPUT = {"kind": "opcua", "port": 0}


class Reader:
    """A client of the line ``bolt``, which gets its events from the first on."""

    def __init__(self, site: Site) -> None:
        (facts,) = site.lines["bolt"].outputs.facts()
        self.site, self.client, self.events = site, Client(facts.target, timeout=SECONDS), queue.Queue[Any]()
        self.client.connect()
        self.space = self.client.get_namespace_index(opcua.NAMESPACE)
        kind = self.client.nodes.base_event_type.get_child(f"{self.space}:ResultReadyEventType")
        self.client.create_subscription(10, self).subscribe_events(evtypes=kind)

    def event_notification(self, event: Any) -> None:
        self.events.put(event)

    def node(self, name: str) -> Any:
        return self.client.get_node(f"ns={self.space};s=bolt.{name}")

    def read(self) -> dict[str, Any]:
        names = [*opcua._RESULT, *opcua._STATE]
        return dict(zip(names, self.client.read_values([self.node(name) for name in names]), strict=True))

    def result(self) -> tuple[Any, dict[str, Any]]:
        """The next event, and the variables."""
        return self.events.get(timeout=SECONDS), self.read()


@pytest.fixture
def new_reader() -> Iterator[Callable[[Site], Reader]]:
    readers: list[Reader] = []

    def connect(site: Site) -> Reader:
        readers.append(Reader(site))
        return readers[-1]

    yield connect
    for reader in readers:
        reader.client.disconnect()


def errs(site: Site, part_id: str) -> Record:
    return site.lines["bolt"].submit(Trigger("bolt", b"no image", part_id=part_id))[0].result(SECONDS)


def test_client_reads_each_result_in_the_words_of_the_standard(
    new_site: Callable[..., Site], new_reader: Callable[[Site], Reader]
) -> None:
    site = new_site(outputs=[OUTPUT])
    reader = new_reader(site)
    before = reader.read()
    assert (before["ResultCount"], before["ResultId"], before["Passed"], before["Verdict"]) == (0, "", False, "")

    for number, (brightness, verdict) in enumerate(
        [(20, "pass"), (250, "reject"), (140, "review"), (None, "error")], 1
    ):
        part = f"A-{number}"
        record = errs(site, part) if brightness is None else judge(site, brightness, part_id=part)
        event, values = reader.result()

        assert record.verdict == verdict
        assert values["Passed"] is (verdict == "pass")
        assert values["ResultState"] == (4 if verdict == "error" else 1)
        assert (values["ResultId"], values["PartId"], values["Verdict"]) == (str(record.id), part, verdict)
        assert (values["ResultCount"], values["IsPartial"], values["IsSimulated"]) == (number, False, False)
        assert values["CreationTime"] == datetime.fromisoformat(record.received)
        assert (values["InternalRecipeId"], values["ProductId"]) == (record.model_sha256, record.product)
        assert values["InternalConfigurationId"] == (record.limits or "")
        assert json.loads(values["ProcessingTimes"]) == record.timing
        told, score, limit, regions = (part.Value for part in values["ResultContent"])
        expected = [math.nan if value is None else value for value in (record.deciding, record.limit)]
        assert told == verdict
        assert [score, limit] == pytest.approx(expected, rel=1e-12, nan_ok=True)
        assert [region["box"] for region in json.loads(regions)] == [list(region.box) for region in record.regions]
        for name in opcua._RESULT:
            assert repr(getattr(event, name)) == repr(values[name]), name
    last = [json.loads(text) for text in reader.read()["LastResults"]]
    assert [(result["PartId"], result["Passed"]) for result in last] == [
        ("A-1", True), ("A-2", False), ("A-3", False), ("A-4", False)
    ]  # fmt: skip


def test_subscriber_sees_each_result_once_in_order_whatever_fails_between(
    new_site: Callable[..., Site], new_reader: Callable[[Site], Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, values_of = [], opcua._values_of

    def fail_once(record: Record, **named: Any) -> dict[str, Any]:
        if record.part_id == "P-10":
            raise ValueError("it does not fit")
        return values_of(record, **named)

    monkeypatch.setattr(opcua, "_values_of", fail_once)
    site = new_site(on_event=lambda kind, facts: told.append((kind, facts)), outputs=[OUTPUT])
    reader = new_reader(site)
    counts: queue.Queue[int] = queue.Queue()

    class Counter:
        def datachange_notification(self, node: Any, value: int, data: Any) -> None:
            counts.put(value)

    reader.client.create_subscription(10, Counter()).subscribe_data_change(reader.node("ResultCount"), queuesize=100)

    records = [judge(site, 20, part_id=f"P-{number}") for number in range(11)]
    failing = until(lambda: (facts := site.lines["bolt"].outputs.facts()[0]).failures and facts)
    is_passed = reader.read()["Passed"]
    records.append(judge(site, 20, part_id="P-11"))

    assert {record.verdict for record in records} == {"pass"}
    events = [reader.events.get(timeout=SECONDS) for _ in range(11)]
    assert [event.PartId for event in events] == [f"P-{number}" for number in range(12) if number != 10]
    assert [counts.get(timeout=SECONDS) for _ in range(12)] == [*range(11), 12]
    assert is_passed is False  # of the part of which it could not tell
    assert (failing.state, failing.skipped, failing.last_error) == ("failing", 1, "ValueError: it does not fit")
    assert [facts for kind, facts in told if kind == "output"] == [{"line": "bolt", "output": "opcua"}]
    after = until(lambda: (facts := site.lines["bolt"].outputs.facts()[0]).delivered == 11 and facts)
    assert (after.state, after.failures, after.behind, after.failing_since) == ("waiting", 1, 0, None)


def test_client_can_only_read_and_a_line_that_takes_no_parts_passes_none(
    new_site: Callable[..., Site], new_reader: Callable[[Site], Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opcua, "BEAT_SECONDS", 0.02)
    site = new_site(outputs=[OUTPUT])
    reader = new_reader(site)
    judge(site, 250, part_id="A-1")
    reader.result()

    with pytest.raises(ua.UaError):
        reader.node("Passed").write_value(True)
    with pytest.raises(ua.UaError):
        reader.client.nodes.objects.add_object(reader.space, "mine")
    with pytest.raises(ua.UaError):
        reader.client.nodes.server.call_method("0:GetMonitoredItems", 1)
    assert reader.read()["Passed"] is False

    judge(site, 20, part_id="A-2")
    _, values = reader.result()
    assert (values["Passed"], values["Online"], values["OfflineReason"]) == (True, True, "")
    until(lambda: reader.read()["Heartbeat"] > values["Heartbeat"])
    monkeypatch.setattr(site.lines["bolt"].outputs._servers[0], "_state", lambda: Offline.PAUSED)
    paused = until(lambda: not (values := reader.read())["Online"] and values)
    assert (paused["Passed"], paused["OfflineReason"], paused["PartId"]) == (False, "the camera is paused", "A-2")


def test_address_that_is_taken_is_told_before_parts_are(new_site: Callable[..., Site]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(FlawsmithError, match=f"output opcua cannot listen at 127.0.0.1:{port} .* another host or"):
            new_site(outputs=[{"kind": "opcua", "port": port}])
