"""Hostile input on every endpoint: a clear answer, nothing written, nobody else waits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import SECONDS, picture

from flawsmith.serving import requests as requests_module
from flawsmith.serving import server as server_module

PARTS = "/v1/lines/bolt/inspections"


def files_below(folder: Path) -> set[str]:
    """Files, but for those of the database."""
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith("records.db")}


def state_of(running: Any) -> tuple[Any, ...]:
    site = running.service.site
    return len(site.store.page("bolt", count=1000)), len(site.store.entries()), files_below(site.settings.records)


def raw(running: Any, *pieces: bytes) -> bytes:
    """What comes back until the connection is closed, or nothing more comes."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=SECONDS) as connection:
        with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
            for piece in pieces:
                connection.sendall(piece)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def head(*lines: str, method: str = "POST", path: str = PARTS) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/v1/lines/..%2f..%2fetc/inspections", picture(20), {}),
        ("POST", "/v1/lines/%00/inspections", picture(20), {}),
        ("POST", "/v1/lines/nut/inspections", picture(20), {}),
        ("POST", PARTS, b"", {}),
        ("POST", PARTS, {"image": "x"}, {}),
        ("POST", PARTS, picture(20), {"Part_Id": "x" * 129}),
        ("POST", PARTS, picture(20), {"Part_Id": "\xe4"}),
        ("POST", PARTS, picture(20), {"Lot_Id": "a\tb"}),
        ("POST", PARTS, b"--b\r\n", {"Content_Type": "multipart/form-data; boundary=b"}),
        ("POST", PARTS, b"no form", {"Content_Type": "multipart/form-data; boundary=b"}),
        ("POST", PARTS, b"x", {"Content_Type": "multipart/form-data"}),
        ("POST", PARTS, b"x", {"Content_Type": f"multipart/form-data; boundary={'b' * 5000}"}),
        ("GET", f"{PARTS}/0", None, {}),
        ("GET", f"{PARTS}/..%2f..%2frecords.db", None, {}),
        ("GET", f"{PARTS}/99999999999999999999999/image", None, {}),
        ("GET", f"{PARTS}?verdict=fine", None, {}),
        ("GET", f"{PARTS}?cursor=x&limit=100000", None, {}),
        ("GET", f"{PARTS}?since=yesterday", None, {}),
        ("PUT", "/v1/lines/bolt/limit", b"[" * 100_000, {"Content_Type": "application/json"}),
        ("PUT", "/v1/lines/bolt/limit", b'{"max_false_rejects": NaN}', {"Content_Type": "application/json"}),
        ("POST", "/v1/lines/bolt/limit/preview", {"max_false_rejects": {"a": 1}}, {}),
        ("POST", "/v1/lines/bolt/reviews/1", {"label": "good", "comment": "x" * 2000}, {}),
        ("POST", "/v1/lines/bolt/reviews/987654", {"label": "good"}, {}),
        ("POST", "/v1/lines/bolt/models", b"", {}),
        ("POST", "/v1/lines/..%2fx/models", b"x", {}),
        ("GET", "/v1/lines/bolt/models/..%2f..%2frecords.db/file", None, {}),
        ("GET", f"/v1/lines/bolt/models/{'0' * 64}/file", None, {}),
        ("POST", f"/v1/lines/bolt/models/{'0' * 12}/activate", {"reason": "none"}, {}),
        ("POST", f"/v1/lines/bolt/models/{'0' * 12}/shadow", {"parts": 3}, {}),
        ("POST", "/v1/lines/bolt/models/rollback", {"reason": "none"}, {}),
        ("POST", "/v1/lines/bolt/models/rollback", {"reason": "none", "to": "1"}, {}),
        ("POST", "/v2/repository/models/..%2f..%2fx/load", None, {}),
        ("GET", "/v2/models/bolt?version=a%0d%0ab", None, {}),
        ("POST", "/v2/models/bolt/infer", b"x", {"Inference_Header_Content_Length": "99"}),
        ("POST", "/v2/models/bolt/infer", b"x", {"Inference_Header_Content_Length": "-1"}),
        ("GET", "/..%2f..%2f..%2fetc%2fpasswd", None, {}),
        ("DELETE", PARTS, None, {}),
        ("GET", "/v1/lines", None, {"Host": "evil.example"}),
        ("GET", "/v1/lines", None, {"Origin": "http://["}),
        ("GET", "/v1/lines", None, {"Origin": "\xff"}),
        ("GET", f"{PARTS}?since=0001-01-01T00:00:00%2B14:00", None, {}),
        ("GET", "/v1/lines/bolt/counts?since=9999-12-31T23:59:59-14:00", None, {}),
        ("GET", "/v1/lines/bolt/reviews/evidence?since=0001-01-01T00:00:00%2B14:00", None, {}),
        ("GET", "/v1/lines/bolt/picked/99999999999999999999/image", None, {}),
        ("POST", "/v1/lines/bolt/limit/preview", {"max_false_rejects": "1/0"}, {}),
        ("POST", "/v1/lines/bolt/limit/preview", {"max_false_rejects": "9" * 5000}, {}),
        ("POST", "/v1/lines/bolt/limit/preview", {"max_false_rejects": 1e-320}, {}),
        ("POST", "/v1/lines/bolt/limit/preview", {"use": "\ud800"}, {}),
        ("GET", "/v1/audit?kind=%ff&line=%00&cursor=1e3", None, {}),
        ("POST", PARTS, picture(20), {"Origin": "https://evil.example"}),
        ("POST", PARTS, picture(20), {"Origin": "null"}),
    ],
)
def test_hostile_request_is_refused_and_writes_nothing(
    running: Any, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    before = state_of(running)

    answer = running.call(method, path, body, **headers)

    assert 400 <= answer.status < 500, answer
    said = answer.json["detail"] if not path.startswith("/v2") else answer.json["error"]
    assert said
    assert said.isprintable()
    assert b"Traceback" not in answer.body
    assert b"root:" not in answer.body
    assert state_of(running) == before


def test_names_never_lead_out_of_the_folder(running: Any) -> None:
    folder = running.service.site.settings.records
    outside = {path.name for path in folder.parent.iterdir()}

    answers = [
        running.judge(picture(250, note=number), name) for number, name in enumerate(("../../x", "/etc/x", "a/b"))
    ]

    assert [answer.status for answer in answers] == [201] * 3
    assert {path.name for path in folder.parent.iterdir()} == outside
    databases = (".flawsmith", "outputs.db")
    hashes = {name.removesuffix(".flaw") for name in files_below(folder) if not name.startswith(databases)}
    assert {len(name) for name in hashes} == {64}


@pytest.mark.parametrize("damage", ["cut", "bomb", "text"])
def test_broken_images_end_in_one_error_record_each_and_are_not_kept(running: Any, damage: str) -> None:
    bomb = picture(20)[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + picture(20)[24:]
    content = {"cut": picture(20)[:70], "bomb": bomb, "text": b"<svg onload=alert(1)>"}[damage]
    records, entries, files = state_of(running)

    answer = running.judge(content, f"broken-{damage}")

    assert (answer.status, answer.json["verdict"]) == (422, "error")
    assert state_of(running) == (records + 1, entries, files)
    assert running.call("GET", f"{PARTS}/{answer.json['inspection']}/map").status == 410


def test_huge_headers_and_garbage_are_cut_off(running: Any) -> None:
    before = state_of(running)
    answers = [
        raw(running, head(f"X-Large: {'x' * 100_000}")),
        raw(running, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"),
        raw(running, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100),
        raw(running, head("Content-Length: 5", "Content-Length: 6"), b"12345"),
        raw(running, head(f"Content-Length: {'9' * 5000}"), b"12345"),
        raw(running, head("Content-Length: 5", "Transfer-Encoding: chunked"), b"zz\r\n"),
    ]

    assert [answer[9:12] for answer in answers] == [b"400"] * 6
    assert state_of(running) == before


def test_request_that_is_too_large_is_refused_before_it_is_read(new_service: Any) -> None:
    running = new_service(upload_megabytes=0.1)
    before = state_of(running)
    declared = raw(running, head("Content-Length: 99999999999"), b"x")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    endless = raw(running, head("Transfer-Encoding: chunked"), *[chunk] * 20)

    assert declared[9:12] == b"413"
    assert endless[9:12] in (b"413", b"")  # or the connection was reset while it still sent
    assert json.loads(declared.partition(b"\r\n\r\n")[2])["title"] == "Too large"
    for path in ("/v1/lines/bolt/limit/preview", "/v1/lines/bolt/reviews/1"):
        small = raw(
            running, head("Content-Type: application/json", "Transfer-Encoding: chunked", path=path), *[chunk] * 3
        )
        assert small[9:12] in (b"413", b"")
    assert state_of(running) == before
    for budget in (running.service.budget, running.service.budget_of_parts):
        assert budget.take(budget.capacity)  # nothing is held any more


def test_slow_clients_are_cut_off_and_others_do_not_wait(new_service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 1.5)
    running = new_service(upload_seconds=1.5)
    slow = [socket.create_connection(("127.0.0.1", running.port), timeout=SECONDS) for _ in range(30)]
    for number, connection in enumerate(slow):
        connection.sendall(b"POST /v1/lin" if number % 2 else head("Content-Length: 500") + b"x")

    assert running.judge(picture(20), "fast").status == 201
    ends = [connection.recv(65536)[9:12] for connection in slow]
    for connection in slow:
        connection.close()

    assert ends == [b"408", b""] * 15
    assert len(running.service.site.store.page("bolt")) == 1


def test_request_that_drips_is_cut_off_however_often_something_comes(
    new_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "_SMALL_SECONDS", 0.6)
    running = new_service()
    path = "/v1/lines/bolt/limit/preview"
    with socket.create_connection(("127.0.0.1", running.port), timeout=SECONDS) as connection:
        connection.sendall(head("Content-Type: application/json", "Content-Length: 60000", path=path))
        connection.settimeout(0.1)
        answer, begin = b"", time.monotonic()
        while not answer and time.monotonic() < begin + SECONDS:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
            if not answer:
                connection.sendall(b" ")

    assert answer[9:12] == b"408"


def test_answer_that_is_not_read_is_let_go_with_its_connection(
    new_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "READ_SECONDS", 0.3)
    running = new_service(megapixels=20)
    number = running.judge(picture(250, size=(4000, 3000))).json["id"]
    connections = running.server.server_state.connections
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.settimeout(SECONDS)
        stalled.connect(("127.0.0.1", running.port))
        stalled.sendall(head(method="GET", path=f"{PARTS}/{number}/map"))  # 48 MB
        end = time.monotonic() + SECONDS
        while not any(connection.transport.get_write_buffer_size() for connection in list(connections)):
            assert time.monotonic() < end
            time.sleep(0.01)
        while connections:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_parts_do_not_wait_for_pages_that_look_on(new_service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = new_service()
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        begun.release()
        assert go_on.wait(SECONDS)
        return []

    monkeypatch.setattr(running.service.site.store, "entries", slow)
    pages = [threading.Thread(target=running.call, args=("GET", "/v1/audit"), daemon=True) for _ in range(50)]
    for page in pages:
        page.start()
    for _ in range(40):  # as many as there are threads for such requests
        assert begun.acquire(timeout=SECONDS)

    try:
        assert running.judge(picture(20), "in-time").status == 201
    finally:
        go_on.set()
        for page in pages:
            page.join(SECONDS)


def test_images_that_are_tried_take_no_room_from_parts(new_service: Any) -> None:
    running = new_service()
    assert running.service.budget.take(running.service.budget.capacity)  # as many tries that wait would

    assert running.call("POST", "/v1/lines/bolt/try", picture(20)).status == 503
    assert running.judge(picture(20)).status == 201
