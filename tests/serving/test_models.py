"""Models swapped over HTTP: brought, tried, made live between two parts, rolled back."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.line.test_shadow import STRICT, until
from tests.serving.conftest import SECONDS, picture
from tests.serving.test_hostile import head, raw, state_of

from flawsmith.line import versions
from flawsmith.serving import requests

MODELS = "/v1/lines/bolt/models"
HERE = pytest.mark.usefixtures("_trial_in_this_process")


def bring(running: Any, path: Path) -> Any:
    answer = running.call("POST", MODELS, path.read_bytes())
    assert answer.status == 201, answer
    return answer.json


def go_live(running: Any, version: Any, **order: str) -> Any:
    return running.call("POST", f"{MODELS}/{version['sha256']}/activate", {"reason": "a trial", **order})


def test_model_is_brought_tried_in_a_process_of_its_own_and_made_live(
    new_service: Any, new_model: Callable[..., Path]
) -> None:
    running = new_service()
    content = new_model(0.5).read_bytes()
    (first,) = running.call("GET", MODELS).json

    brought = running.call("POST", MODELS, content)
    again = running.call("POST", MODELS, content)
    before = running.judge(picture(200)).json
    made = running.call("POST", f"{MODELS}/{brought.json['sha256'][:12]}/activate", {"reason": "dents were missed"})
    after = running.judge(picture(200)).json

    version = brought.json
    assert (brought.status, again.status, made.status) == (201, 200, 200)
    assert version == again.json
    assert (version["number"], version["state"], version["source"], version["who"]) == (2, "kept", "upload", "local")
    assert (version["method"], version["learned_from"], version["size"]) == ("pbas", 80, len(content))
    assert version["limit"]["rejected_of_1000_at_worst"] > version["limit"]["rejected_of_1000"] == 50
    assert version["sha256"] == hashlib.sha256(content).hexdigest()
    assert (before["model_sha256"], after["model_sha256"]) == (first["sha256"], version["sha256"])
    assert after["score"] == pytest.approx(before["score"] / 2)
    assert [(v["number"], v["state"]) for v in running.call("GET", MODELS).json] == [(2, "live"), (1, "kept")]
    assert running.call("GET", f"{MODELS}/{version['sha256']}/file").body == content
    entry = running.call("GET", "/v1/audit?kind=model").json["items"][0]
    assert (entry["who"], entry["facts"]["action"], entry["facts"]["reason"]) == (
        *("local", "activated"),
        "dents were missed",
    )
    assert entry["facts"]["former"] == first["sha256"]
    text = running.call("GET", "/metrics").body.decode()
    assert f'flawsmith_model_info{{device="cpu",line="bolt",model="pbas",sha256="{version["sha256"]}"}} 1.0' in text
    assert first["sha256"] not in text


@HERE
def test_shadow_run_is_watched_and_its_flips_stand_beside_the_switch(
    new_service: Any, new_model: Callable[..., Path]
) -> None:
    running = new_service()
    line = running.service.site.lines["bolt"]
    version = bring(running, new_model(1.0, **STRICT))
    path = f"{MODELS}/{version['sha256']}/shadow"
    none = running.call("GET", path)

    begun = running.call("POST", path, {"parts": 50})
    until(lambda: line.shadow._is_open)
    records = [running.judge(picture(brightness)).json for brightness in (20, 90, 250)]
    until(lambda: sum(line.shadow.counts.values()) == 3)
    until(lambda: running.call("GET", path).json["flipped"])
    seen = running.call("GET", path).json
    text = running.call("GET", "/metrics").body.decode()
    stopped = running.call("DELETE", path)

    assert (none.status, begun.status, stopped.status) == (404, 202, 204)
    assert (seen["asked"], seen["parts"], seen["missed"], seen["ended"]) == (50, 3, 0, None)
    assert seen["flips"] == {"pass -> reject": 1}
    assert [(flip["record"], flip["before"], flip["after"]) for flip in seen["flipped"]] == [
        (records[1]["id"], "pass", "reject")
    ]
    assert 0 < seen["milliseconds"]["p50"] <= seen["milliseconds"]["p95"]
    assert 'flawsmith_shadow_parts{line="bolt",result="changed"} 1.0' in text
    listed = running.call("GET", MODELS).json[0]
    assert (listed["state"], listed["shadow"]["flips"], listed["shadow"]["ended"]) == (
        *("kept", {"pass -> reject": 1}),
        "stopped",
    )
    assert running.call("DELETE", path).status == 409
    assert running.call("POST", path, {"parts": 0}).status == 422
    assert go_live(running, version).status == 200
    entry = running.call("GET", "/v1/audit?kind=model").json["items"][0]
    assert entry["facts"]["shadow"]["flipped"] == [records[1]["id"]]


@HERE
def test_switch_needs_a_reason_and_the_version_that_was_looked_at(
    new_service: Any, new_model: Callable[..., Path]
) -> None:
    running = new_service()
    version = bring(running, new_model(0.5))
    path = f"{MODELS}/{version['sha256']}/activate"

    answers = [
        running.call("POST", path, {}),
        running.call("POST", path, {"reason": ""}),
        running.call("POST", path, {"reason": "a race", "expected": version["sha256"]}),
        running.call("POST", f"{MODELS}/{'0' * 64}/activate", {"reason": "unknown"}),
        running.call("POST", f"{MODELS}/rollback", {"reason": "nothing before"}),
    ]

    assert [answer.status for answer in answers] == [422, 422, 409, 404, 409]
    assert go_live(running, version, expected=running.call("GET", MODELS).json[1]["sha256"]).status == 200
    assert go_live(running, version).status == 409
    back = running.call("POST", f"{MODELS}/rollback", {"reason": "a trial", "expected": version["sha256"]})
    assert (back.status, back.json["number"], back.json["state"]) == (200, 1, "live")


@HERE
def test_swapping_under_load_loses_no_part_and_mixes_no_models(
    new_service: Any, new_model: Callable[..., Path]
) -> None:
    running = new_service(line={"queue": 64})
    first = running.call("GET", MODELS).json[0]
    others = [bring(running, new_model(factor)) for factor in (0.5, 2.0)]
    factors = dict(zip([first["sha256"], *(other["sha256"] for other in others)], (1.0, 0.5, 2.0), strict=True))
    limits = {version["sha256"]: version["limit"]["limits"] for version in (first, *others)}
    records: list[Any] = []
    failures: list[Any] = []
    numbers, ended = itertools.count(), threading.Event()

    def send() -> None:
        while not ended.is_set():
            number = next(numbers)
            brightness = 20 + number * 37 % 200
            answer = running.judge(picture(brightness, note=number), f"S-{number}")
            (records if answer.status == 201 else failures).append((number, brightness, answer.json))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for round_ in range(12):
        goal = len(records) + 5
        until(lambda goal=goal: len(records) + len(failures) >= goal)
        assert go_live(running, others[round_ % 2]).status == 200
        if round_ % 4 == 3:
            assert running.call("POST", f"{MODELS}/rollback", {"reason": "to and fro"}).status == 200
            assert go_live(running, others[round_ % 2]).status == 200
    ended.set()
    for thread in threads:
        thread.join(SECONDS)

    assert failures == []
    for _, brightness, record in records:
        sha256 = record["model_sha256"]
        # The single pixel that makes the content another one is darker, and so decides nothing.
        assert record["score"] == pytest.approx(factors[sha256] * brightness / 255, rel=1e-5)
        assert record["limits"] == limits[sha256]
    stored = running.service.site.store.page("bolt", count=1000, after=0)
    assert sorted(record.part_id for record in stored) == sorted(f"S-{number}" for number, _, _ in records)
    assert {record.model_sha256 for record in stored} == set(factors)
    # In the order in which parts were taken, a model never comes back between two switches.
    runs = [sha256 for sha256, _ in itertools.groupby(record.model_sha256 for record in stored)]
    switches = [e for e in running.service.site.store.entries(kind="model", count=1000) if "former" in e.facts]
    assert len(runs) <= len(switches)


@HERE
def test_what_is_done_with_models_is_told_as_it_happens(new_service: Any, new_model: Callable[..., Path]) -> None:
    running = new_service()
    with socket.create_connection(("127.0.0.1", running.port), timeout=SECONDS) as connection:
        connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stream = lines_of(connection)
        next(line for line in stream if line.startswith(b"retry"))
        version = bring(running, new_model(0.5))
        go_live(running, version)
        told = [json.loads(line[6:]) for line in itertools.islice((n for n in stream if n.startswith(b"data:")), 2)]

    assert [(event["action"], event["line"], event["sha256"], event["who"]) for event in told] == [
        ("added", "bolt", version["sha256"], "local"),
        ("activated", "bolt", version["sha256"], "local"),
    ]


def lines_of(connection: socket.socket) -> Iterator[bytes]:
    rest = b""
    while piece := connection.recv(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def test_model_that_takes_too_long_or_ends_its_process_is_refused(
    new_service: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = new_service()
    content, before = new_model(0.5).read_bytes(), state_of(running)
    monkeypatch.setattr(versions, "TRIAL_SECONDS", 0.05)
    slow = running.call("POST", MODELS, content)
    monkeypatch.setattr(versions, "TRIAL_SECONDS", 30)
    monkeypatch.setattr(versions, "_tried", os.kill)  # with a path in place of a number: nothing foresees that
    deadly = running.call("POST", MODELS, content)

    assert (slow.status, deadly.status) == (422, 422)
    assert "takes more than 0.05 s" in slow.json["detail"]
    assert "ended the process that tried it" in deadly.json["detail"]
    assert state_of(running) == before
    assert running.judge(picture(20)).status == 201


@HERE
def test_hostile_uploads_are_refused_and_leave_nothing(
    new_service: Any, new_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = new_service(model_megabytes=0.1)
    before = state_of(running)
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    declared = raw(running, head("Content-Length: 99999999999", path=MODELS), b"x")
    endless = raw(running, head("Transfer-Encoding: chunked", path=MODELS), *[chunk] * 20)
    text = running.call("POST", MODELS, b"no model")
    monkeypatch.setattr(requests, "PIECE_SECONDS", 0.2)
    slow = raw(running, head("Content-Length: 10", path=MODELS), b"12345")

    assert [answer[9:12] for answer in (declared, slow)] == [b"413", b"408"]
    assert endless[9:12] in (b"413", b"")
    assert (text.status, text.json["detail"][:11]) == (422, "not an inta")
    assert state_of(running) == before


@HERE
def test_another_upload_waits_and_a_full_disk_takes_none(new_service: Any, new_model: Callable[..., Path]) -> None:
    running = new_service(images={"keep_free": 10**6})
    before = state_of(running)
    with socket.create_connection(("127.0.0.1", running.port), timeout=SECONDS) as connection:
        connection.sendall(head("Content-Length: 1000", path=MODELS) + b"x")
        until(lambda: running.service.uploading_model.locked())
        second = running.call("POST", MODELS, b"a model")
    until(lambda: not running.service.uploading_model.locked())
    full = running.call("POST", MODELS, new_model(0.5).read_bytes())

    assert (second.status, second.headers["retry-after"]) == (503, "10")
    assert (full.status, full.json["detail"]) == (503, "the disk has no room for another model")
    assert state_of(running) == before
