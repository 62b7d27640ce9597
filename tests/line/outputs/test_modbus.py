"""The handshake with a PLC: over loopback with a real Modbus client, and its rules alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import ModbusTcpClient
from pymodbus.constants import ExcCodes
from tests.conftest import PROJECT
from tests.line.outputs.conftest import SECONDS, judge, picture, until

from flawsmith.cli.main import main
from flawsmith.line.outputs import Outputs
from flawsmith.line.outputs.delivery import Offline
from flawsmith.line.outputs.handshake import (
    CONTROL,
    STATUS,
    STATUS_REGISTERS,
    Control,
    Fault,
    Handshake,
    Status,
    Verdict,
    part_registers,
    values_of,
)
from flawsmith.line.outputs.modbus import SimulatedPlc
from flawsmith.line.queue import NoModelError, NotRecordedError, PartConflictError, QueueFullError
from flawsmith.line.record import Record, Trigger
from flawsmith.line.station import Line, Site
from flawsmith.runtime.errors import FlawsmithError

ENABLE, TRIGGER, ACK = Control.TRIGGER_ENABLE, Control.TRIGGER, Control.RESULTS_ACK
OUTPUT = {"kind": "modbus", "port": 0}


class Camera:
    """Takes pictures of the brightness that it is told; None is no picture."""

    def __init__(self) -> None:
        self.brightness: list[int | None] = []
        self.taken = 0
        self.line: Line | None = None

    def trigger(self, part_id: str | None) -> Future[Record]:
        assert self.line is not None
        self.taken += 1
        brightness = self.brightness.pop(0) if self.brightness else 20
        image = b"" if brightness is None else picture(brightness, note=self.taken)
        return self.line.submit(Trigger("bolt", image, part_id=part_id))[0]


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Camera:
    """Lines have a camera."""
    camera, start = Camera(), Outputs.start

    def start_with_camera(outputs: Outputs, line: Line, *arguments: Any, **named: Any) -> None:
        camera.line = line
        start(outputs, line, *arguments, **{**named, "trigger": camera.trigger})

    monkeypatch.setattr(Outputs, "start", start_with_camera)
    return camera


def port_of(site: Site) -> int:
    (server,) = site.lines["bolt"].outputs._servers
    return server.port


@pytest.fixture
def new_plc() -> Iterator[Callable[[Site], SimulatedPlc]]:
    plcs: list[SimulatedPlc] = []

    def connect(site: Site) -> SimulatedPlc:
        plcs.append(SimulatedPlc("127.0.0.1", port_of(site), seconds=SECONDS))
        return plcs[-1]

    yield connect
    for plc in plcs:
        plc.close()


# Over loopback


def test_whole_handshake_with_a_modbus_client(new_site: Callable[..., Site], camera: Camera) -> None:
    """Step by step as docs/line/plc.md tells it, with pymodbus alone."""
    site = new_site(outputs=[OUTPUT])
    client = ModbusTcpClient("127.0.0.1", port=port_of(site), timeout=SECONDS, retries=0)
    assert client.connect()

    def read() -> dict[str, Any]:
        answer = client.read_input_registers(STATUS, count=STATUS_REGISTERS)
        values = values_of(answer.registers)
        return {**values, "status": Status(values["status"])}

    def write(control: int) -> None:
        assert not client.write_register(CONTROL, int(control)).isError()

    def wait(bit: Status, *, is_set: bool = True) -> dict[str, Any]:
        return until(lambda: (values := read()) and (bit in values["status"]) is is_set and values)

    camera.brightness = [20, 250, 140]
    seen = []
    assert read()["status"] == Status.ONLINE  # not ready before triggers are enabled
    write(ENABLE)
    for part in ("A-1", "A-2", "A-3"):
        before = wait(Status.TRIGGER_READY)
        client.write_registers(CONTROL, [int(ENABLE | TRIGGER), *part_registers(part)])
        acknowledged = wait(Status.TRIGGER_ACK)
        write(ENABLE)
        wait(Status.TRIGGER_ACK, is_set=False)
        result = wait(Status.RESULTS_VALID)
        write(ENABLE | ACK)
        cleared = wait(Status.RESULTS_VALID, is_set=False)
        write(ENABLE)
        assert acknowledged["acquisition"] == result["inspection"] == before["acquisition"] + 1
        assert (Status.INSPECTION_COMPLETED in before["status"]) != (Status.INSPECTION_COMPLETED in result["status"])
        assert [cleared[name] for name in ("verdict", "inspection", "score", "part_id")] == [0, 0, 0, bytes(128)]
        seen.append((result["part_id"].rstrip(b"\0").decode(), result["verdict"], Status.PASSED in result["status"]))
        record = site.store.get(result["record"])
        assert record is not None
        assert result["score"] == pytest.approx(record.score, rel=1e-6)
        assert result["times_limit"] == pytest.approx(record.times_limit, rel=1e-6)
        assert (result["regions"], record.part_id) == (record.region_count, part)
    client.close()

    assert seen == [("A-1", 1, True), ("A-2", 2, False), ("A-3", 3, False)]
    assert [record.part_id for record in site.store.page("bolt", after=0)] == ["A-1", "A-2", "A-3"]
    assert site.lines["bolt"].outputs.facts()[0].delivered == 3


def test_registers_are_guarded(new_site: Callable[..., Site]) -> None:
    site = new_site(outputs=[OUTPUT])
    with ModbusTcpClient("127.0.0.1", port=port_of(site), timeout=SECONDS, retries=0) as client:
        refused = [
            client.write_register(STATUS, 99),
            client.write_registers(CONTROL, [0] * 100),
            client.read_holding_registers(70, count=2),
            client.read_holding_registers(STATUS, count=120),
        ]
        no_coils = [client.read_coils(0), client.write_coil(0, True), client.read_discrete_inputs(0)]
        written = client.write_registers(CONTROL, [0xFFFF, *part_registers("x" * 128)])
        other_unit = client.read_holding_registers(STATUS, count=1, device_id=17)

        assert [answer.exception_code for answer in refused] == [ExcCodes.ILLEGAL_ADDRESS] * 4
        assert [answer.exception_code for answer in no_coils] == [ExcCodes.ILLEGAL_FUNCTION] * 3
        assert not written.isError()
        assert not Status.ONLINE & other_unit.registers[0]  # bit 4 has set it offline


def test_result_waits_for_a_plc_that_was_away_and_names_its_trigger(
    new_site: Callable[..., Site], camera: Camera, new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[OUTPUT])
    plc = new_plc(site)
    camera.brightness = [20, 250]
    plc.write(ENABLE)
    plc.write(ENABLE | TRIGGER)
    stale = until(lambda: (reading := plc.read()).inspection and reading)
    plc.close()  # in the middle of the handshake
    (server,) = site.lines["bolt"].outputs._servers
    until(lambda: server._clients == 0)

    plc = new_plc(site)
    again = plc.read()
    assert (again.inspection, again.record, again.is_pass) == (stale.inspection, stale.record, True)
    assert Status.TRIGGER_ACK not in again.status  # its control word is 0 again
    result = plc.inspect()  # passes the old result over

    assert (result.inspection, result.verdict, result.is_pass) == (stale.inspection + 1, Verdict.REJECT, False)
    assert camera.taken == 2


def test_second_client_looks_on_and_disturbs_nothing(
    new_site: Callable[..., Site], camera: Camera, new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[OUTPUT])
    plc = new_plc(site)
    over, readings = threading.Event(), []
    panel = ModbusTcpClient("127.0.0.1", port=port_of(site), timeout=SECONDS, retries=0)
    assert panel.connect()

    def look_on() -> None:
        while not over.is_set():
            readings.append(values_of(panel.read_holding_registers(STATUS, count=STATUS_REGISTERS).registers))
        panel.close()

    watcher = threading.Thread(target=look_on)
    watcher.start()
    results = [plc.inspect(f"A-{number}") for number in range(10)]
    over.set()
    watcher.join(SECONDS)

    assert [result.part_id for result in results] == [f"A-{number}" for number in range(10)]
    assert [result.inspection for result in results] == list(range(1, 11))
    assert len(readings) > 5
    assert not panel.connected
    assert plc.inspect("A-10").is_pass  # the control word stayed when the panel left


def test_parts_that_come_by_other_ways_are_reported_where_there_is_no_camera(
    new_site: Callable[..., Site], new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[OUTPUT])
    plc = new_plc(site)
    plc.write(ENABLE)
    assert Status.TRIGGER_READY not in plc.read().status

    records = [judge(site, brightness, part_id=f"P-{brightness}") for brightness in (20, 250)]
    results = [plc.next_result() for _ in records]
    plc.write(ENABLE | TRIGGER)
    refused = plc.read()

    told = [(result.inspection, result.record, result.part_id) for result in results]
    assert told == [(0, records[0].id, "P-20"), (0, records[1].id, "P-250")]
    assert [result.is_pass for result in results] == [True, False]
    assert (refused.error, Status.TRIGGER_ACK in refused.status) == (Fault.NOT_READY, False)


def test_results_beyond_the_buffer_are_left_out_and_said_to_be(
    new_site: Callable[..., Site], new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[{**OUTPUT, "buffer": 3}])
    plc = new_plc(site)

    records = [judge(site, part_id=f"P-{number}") for number in range(5)]
    full = plc.read()
    kept = [plc.next_result().part_id for _ in range(full.waiting)]
    plc.write(Control.CLEAR_ERROR)
    cleared = plc.read()

    assert [record.verdict for record in records] == ["pass"] * 5  # judging waits for no PLC
    assert (full.waiting, full.error) == (3, Fault.OVERRUN)
    assert Status.RESULTS_OVERRUN | Status.ERROR in full.status
    assert kept == ["P-0", "P-1", "P-2"]
    assert (cleared.waiting, cleared.error, cleared.status & Status.RESULTS_OVERRUN) == (0, Fault.NONE, 0)
    output = site.lines["bolt"].outputs.facts()[0]
    assert (output.delivered, output.skipped, output.failures, output.last_error) == (3, 2, 2, "overrun")


def test_trigger_without_an_image_ends_in_a_record_and_a_reject(
    new_site: Callable[..., Site], camera: Camera, new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[OUTPUT])
    plc = new_plc(site)
    camera.brightness = [None]

    result = plc.inspect("A-1")
    good = plc.inspect("A-2")

    assert (result.verdict, result.fault, result.is_pass) == (Verdict.ERROR, Fault.IMAGE, False)
    assert good.is_pass
    assert [(record.part_id, record.verdict) for record in site.store.page("bolt", after=0)] == [
        ("A-1", "error"),
        ("A-2", "pass"),
    ]


def test_part_that_another_image_was_judged_for_is_a_reject(
    new_site: Callable[..., Site], camera: Camera, new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[OUTPUT])
    plc = new_plc(site)

    results = [plc.inspect("A-1"), plc.inspect("A-1")]

    assert [result.is_pass for result in results] == [True, False]
    assert (results[1].verdict, results[1].fault) == (Verdict.ERROR, Fault.PART_CONFLICT)


def test_line_that_takes_no_parts_says_why(
    new_site: Callable[..., Site], camera: Camera, new_plc: Callable[[Site], SimulatedPlc]
) -> None:
    site = new_site(outputs=[OUTPUT])
    plc = new_plc(site)
    plc.write(ENABLE)
    online = plc.read()
    site.lines["bolt"].unload(who="anna")
    without_model = plc.read()
    site.lines["bolt"].load(who="anna")
    plc.write(ENABLE | Control.SET_OFFLINE)
    asked = plc.read()
    site.lines["bolt"].outputs.end()
    plc.write(ENABLE)
    ending = plc.read()

    reasons = [reading.offline for reading in (online, without_model, asked, ending)]
    assert reasons == [Offline.ONLINE, Offline.NO_MODEL, Offline.ASKED, Offline.ENDING]
    assert [Status.TRIGGER_READY in reading.status for reading in (online, without_model, asked, ending)] == [
        *(True, False, False, False),
    ]


def test_plc_triggers_the_camera_of_the_line(
    new_site: Callable[..., Site], new_plc: Callable[[Site], SimulatedPlc], tmp_path: Path
) -> None:
    for name, brightness in (("a.png", 20), ("b.png", 250)):
        (tmp_path / name).write_bytes(picture(brightness))
    site = new_site(outputs=[OUTPUT], camera={"kind": "folder", "path": tmp_path, "trigger": "call"})
    camera = site.lines["bolt"].camera
    assert camera is not None
    plc = new_plc(site)

    readings = [plc.inspect(part) for part in ("A-1", "A-2")]
    camera.pause(True, who="anna", reason="cleaning")
    paused = plc.read()
    camera.pause(False, who="anna", reason="cleaned")
    again = plc.read()
    repeated = plc.inspect("A-1")  # another part under a name that was used: the old verdict is none for it

    assert [reading.verdict for reading in readings] == [Verdict.PASS, Verdict.REJECT]
    assert (repeated.verdict, repeated.fault, repeated.is_pass) == (Verdict.ERROR, Fault.PART_CONFLICT, False)
    assert [record.source for record in site.store.page("bolt", after=0)] == ["camera", "camera"]
    assert (paused.offline, again.offline) == (Offline.PAUSED, Offline.ONLINE)
    assert Status.TRIGGER_READY not in paused.status


SERVED = """
import sys, time
from pathlib import Path
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site
with Site(ServiceSettings.load(Path(sys.argv[1]))) as site:
    print(site.lines["bolt"].outputs._servers[0].port, flush=True)
    time.sleep(60)
"""


def test_heartbeat_ends_with_a_service_that_is_killed(brightness_model: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.toml").write_text(
        f'[lines.bolt]\nmodel = "{brightness_model}"\nthreads = 1\n[[lines.bolt.outputs]]\nkind = "modbus"\nport = 0\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, "-c", SERVED, tmp_path / "lines.toml"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            plc = SimulatedPlc("127.0.0.1", int(process.stdout.readline()), seconds=SECONDS)
            first = plc.read().heartbeat
            until(lambda: plc.read().heartbeat > first)
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)

        with pytest.raises(FlawsmithError, match="the connection was lost: a PLC rejects every part"):
            plc.read()
        plc.close()


def test_address_that_is_taken_is_told_before_parts_are(new_site: Callable[..., Site]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(FlawsmithError, match=f"output modbus cannot listen at 127.0.0.1:{port} .* another host or"):
            new_site(outputs=[{"kind": "modbus", "port": port}])

    assert judge(new_site(outputs=[OUTPUT])).verdict == "pass"


def test_command_plays_a_plc(new_site: Callable[..., Site], camera: Camera, capsys: pytest.CaptureFixture[str]) -> None:
    site = new_site(outputs=[OUTPUT])
    camera.brightness = [20, 250]
    address = f"127.0.0.1:{port_of(site)}"

    code = main(["plc", address, "--count", "2", "--part-id", "A"])
    lines = capsys.readouterr().out.splitlines()
    refusals = [main(["plc", wrong]) for wrong in (":5020", "host:x", "127.0.0.1:1")]
    errors = capsys.readouterr().err.splitlines()

    assert code == 0
    assert [line.split()[:2] for line in lines] == [["1", "pass"], ["2", "reject"]]
    assert [line.split()[3] for line in lines] == ["A-1", "A-2"]
    assert refusals == [2, 2, 2]
    assert "is no HOST[:PORT]: write for example 127.0.0.1:5020" in errors[0]
    assert "nobody listens there" in errors[-1]  # pymodbus may have logged before, where a program has set up a log


# The rules alone


class Parts:
    """Parts that are judged when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.futures: list[Future[Record]] = []

    def acquire(self, part_id: str | None) -> Future[Record]:
        self.asked.append(part_id)
        self.futures.append(Future())
        return self.futures[-1]

    def judged(self, number: int, verdict: str = "pass") -> None:
        record = Record.of_error(Trigger("bolt", b""), "image", "")
        update = {"id": number + 1, "verdict": verdict, "error_kind": None}
        self.futures[number].set_result(record.model_copy(update=update))


@pytest.fixture
def parts() -> Parts:
    return Parts()


def trigger(handshake: Handshake, parts: Parts, part: str = "") -> int:
    """Trigger once; returns the acquisition id."""
    taken = len(parts.futures)
    handshake.write(ENABLE)
    handshake.write(ENABLE | TRIGGER, part_registers(part))
    until(lambda: len(parts.futures) == taken + 1 and not Status.ACQUIRING & values_of(handshake.read())["status"])
    handshake.write(ENABLE)
    return int(values_of(handshake.read())["acquisition"])


def shown(handshake: Handshake) -> tuple[int, int]:
    values = values_of(handshake.read())
    return values["inspection"], values["verdict"]


def test_trigger_that_stays_set_triggers_once(parts: Parts) -> None:
    handshake = Handshake(parts.acquire)

    for _ in range(5):
        handshake.write(ENABLE | TRIGGER)
    until(lambda: parts.asked)
    handshake.close()

    values = values_of(handshake.read())
    assert (parts.asked, values["acquisition"], values["error"]) == ([None], 1, Fault.NONE)


def test_results_wait_in_order_and_each_needs_an_acknowledgement_of_its_own(parts: Parts) -> None:
    handshake = Handshake(parts.acquire)
    ids = [trigger(handshake, parts) for _ in range(3)]
    nothing = shown(handshake)
    for number, verdict in enumerate(("pass", "reject", "pass")):
        parts.judged(number, verdict)

    seen = [shown(handshake)]
    for control in (ACK, ACK, ENABLE, ACK, ENABLE, ENABLE, ACK, ENABLE, ACK):
        handshake.write(ENABLE | control)
        seen.append(shown(handshake))

    none, first, second, third = (0, 0), (ids[0], 1), (ids[1], 2), (ids[2], 1)
    assert nothing == none
    assert seen == [first, none, none, second, none, third, third, none, none, none]
    assert handshake.delivered == 3


def test_no_trigger_is_taken_that_could_overrun(parts: Parts) -> None:
    handshake = Handshake(parts.acquire, capacity=2)
    for _ in range(2):
        trigger(handshake, parts)
    parts.judged(0)
    not_ready = Status(values_of(handshake.read())["status"])

    handshake.write(ENABLE | TRIGGER)
    refused = values_of(handshake.read())
    handshake.write(ENABLE | ACK | Control.CLEAR_ERROR)
    handshake.write(ENABLE)
    ready = Status(values_of(handshake.read())["status"])

    assert Status.TRIGGER_READY not in not_ready
    assert (refused["error"], refused["acquisition"], len(parts.asked)) == (Fault.NOT_READY, 2, 2)
    assert not Status.TRIGGER_ACK & refused["status"]
    assert Status.TRIGGER_READY in ready
    assert handshake.overruns == 0


def test_line_without_room_is_not_ready(parts: Parts) -> None:
    has_room = [False]
    handshake = Handshake(parts.acquire, has_room=lambda: has_room[0])
    handshake.write(ENABLE)

    before = values_of(handshake.read())["status"]
    has_room[0] = True

    assert not Status.TRIGGER_READY & before
    assert Status.TRIGGER_READY & values_of(handshake.read())["status"]


def test_setting_offline_drops_what_is_under_way(parts: Parts) -> None:
    handshake = Handshake(parts.acquire)
    ids = [trigger(handshake, parts) for _ in range(2)]
    parts.judged(0)

    handshake.write(ENABLE | Control.SET_OFFLINE)
    offline = values_of(handshake.read())
    handshake.write(ENABLE)
    parts.judged(1)  # of a trigger before: nobody waits for it any more
    next_id = trigger(handshake, parts)
    parts.judged(2)

    assert (offline["offline"], offline["waiting"], offline["verdict"]) == (Offline.ASKED, 0, 0)
    assert (ids, next_id) == ([1, 2], 3)
    assert shown(handshake) == (3, 1)
    assert handshake.waiting == 1


def test_acquisition_ids_are_never_zero_and_go_on_after_a_restart(parts: Parts) -> None:
    handshake = Handshake(parts.acquire, first=65533, capacity=5)

    ids = [trigger(handshake, parts) for _ in range(4)]

    assert ids == [65534, 65535, 1, 2]


@pytest.mark.parametrize("part", ["A\t1", "caf\xe9", " A"])
def test_part_id_that_is_none_is_no_trigger(part: str, parts: Parts) -> None:
    handshake = Handshake(parts.acquire)
    content = part.encode("latin-1").ljust(128, b"\0")

    handshake.write(ENABLE | TRIGGER, [content[at] << 8 | content[at + 1] for at in range(0, 128, 2)])

    values = values_of(handshake.read())
    assert (values["error"], values["acquisition"], parts.asked) == (Fault.PART_ID, 0, [])


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (PartConflictError(), Fault.PART_CONFLICT),
        (QueueFullError(), Fault.NO_ROOM),
        (NoModelError(), Fault.NO_ROOM),
        (NotRecordedError("full"), Fault.NOT_RECORDED),
        (ZeroDivisionError(), Fault.INTERNAL),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_trigger_that_comes_to_nothing_is_a_reject_with_a_reason(
    error: Exception, fault: Fault, later: bool, parts: Parts
) -> None:
    def acquire(part_id: str | None) -> Future[Record]:
        future = parts.acquire(part_id)
        if not later:
            raise error
        return future

    handshake = Handshake(acquire)
    acquisition = trigger(handshake, parts)
    if later:
        parts.futures[0].set_exception(error)

    values = values_of(handshake.read())
    assert (values["inspection"], values["verdict"], values["fault"]) == (acquisition, Verdict.ERROR, fault)
    assert values["error"] == fault
    assert not Status.PASSED & values["status"]


def test_nothing_but_a_valid_pass_looks_like_one(parts: Parts) -> None:
    handshake = Handshake(None)
    passed = []
    for number, verdict in enumerate(("pass", "review", "reject", "error")):
        record = Record.of_error(Trigger("bolt", b""), "image", "").model_copy(
            update={"id": number, "verdict": verdict}
        )
        handshake.recorded(record)
        for control in (Control(0), ACK, Control(0)):
            values = values_of(handshake.read())
            passed.append((verdict, bool(Status.PASSED & values["status"]), values["verdict"] == Verdict.PASS))
            handshake.write(control)

    assert [case for case in passed if case[1] or case[2]] == [("pass", True, True)] * 2
    assert handshake.waiting == 0


def test_numbers_fit_into_their_registers() -> None:
    now = [100.0]
    handshake = Handshake(None, clock=lambda: now[0])
    update = {"id": 2**32 + 7, "verdict": "reject", "score": 1e300, "times_limit": None, "region_count": 10**6}
    handshake.recorded(Record.of_error(Trigger("bolt", b""), "image", "").model_copy(update=update))
    now[0] += 0.5 * (65536 + 3) + 0.1

    values = values_of(handshake.read())

    assert (values["record"], values["regions"], values["times_limit"], values["heartbeat"]) == (7, 65535, 0.0, 3)
    assert values["score"] == pytest.approx(3.4e38, rel=1e-6)
