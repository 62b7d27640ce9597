"""Hostile input on every endpoint: a clear answer, nothing written, nobody else waits."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import SECONDS, picture

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
        ("POST", "/v2/models/bolt/infer", b"x", {"Inference_Header_Content_Length": "99"}),
        ("POST", "/v2/models/bolt/infer", b"x", {"Inference_Header_Content_Length": "-1"}),
        ("GET", "/..%2f..%2f..%2fetc%2fpasswd", None, {}),
        ("DELETE", PARTS, None, {}),
        ("GET", "/v1/lines", None, {"Host": "evil.example"}),
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
    assert answer.json["detail"] if not path.startswith("/v2") else answer.json["error"]
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
    hashes = {name.removesuffix(".flaw") for name in files_below(folder) if not name.startswith(".flawsmith")}
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
        raw(running, head("Content-Length: 5", "Transfer-Encoding: chunked"), b"zz\r\n"),
    ]

    assert [answer[9:12] for answer in answers] == [b"400"] * 5
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
    assert running.service.budget.take(running.service.budget.capacity)  # nothing is held any more


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
