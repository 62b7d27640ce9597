"""Parts over HTTP: one record each, found again, changed by nobody."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import SECONDS, Gate, picture

from flawsmith.line.store import UnwritableError

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="part_id"\r\n\r\nM-1\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../x.png"\r\nContent-Type: image/png\r\n\r\n'
)


def test_part_is_judged_recorded_and_found_again(running: Any) -> None:
    answer = running.judge(picture(250), "A-1", Lot_Id="L-7")

    record = answer.json
    assert (answer.status, record["verdict"], record["part_id"], record["lot_id"]) == (201, "reject", "A-1", "L-7")
    assert record["score"] == pytest.approx(250 / 255, abs=0.01)
    assert (record["station"], record["product"], record["regions"][0]["box"]) == ("plant/bolt", "bolt", [0, 0, 48, 32])
    assert running.call("GET", answer.headers["location"]).json == record
    assert running.judge(picture(20), "A-2").json["verdict"] == "pass"
    assert running.judge(picture(130), "A-3").json["verdict"] == "review"


def test_part_sent_again_has_the_same_record_and_another_image_is_a_conflict(running: Any) -> None:
    first = running.judge(picture(20), "B-1")

    again, other = running.judge(picture(20), "B-1"), running.judge(picture(30), "B-1")

    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert again.json == first.json
    assert other.headers["content-type"] == "application/problem+json"
    assert running.judge(picture(20)).json["id"] != running.judge(picture(20)).json["id"]  # parts without a name


def test_part_sent_by_many_at_once_is_judged_once(running: Any, gate: Any) -> None:
    with gate() as closed, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(running.judge, picture(20), "C-1") for _ in range(8)]
        assert closed.reached.wait(SECONDS)
        assert running.judge(picture(30), "C-1").status == 409  # while it is in work
        closed.is_open.set()
        answers = [future.result() for future in futures]

    assert len({answer.json["id"] for answer in answers}) == 1
    assert sorted({answer.status for answer in answers}) in ([200, 201], [201])
    listed = running.call("GET", "/v1/lines/bolt/inspections?part_id=C-1").json["items"]
    assert len(listed) == 1


def test_broken_image_is_an_error_record_and_leaves_the_part_free(running: Any) -> None:
    broken = running.judge(picture(20)[:60], "D-1")

    assert (broken.status, broken.json["verdict"]) == (422, "error")
    assert running.judge(picture(20)[:60], "D-1").json["inspection"] == broken.json["inspection"]
    assert running.judge(picture(20), "D-1").status == 201
    verdicts = [r["verdict"] for r in running.call("GET", "/v1/lines/bolt/inspections?part_id=D-1").json["items"]]
    assert verdicts == ["pass", "error"]


def test_image_comes_as_a_form_too(running: Any) -> None:
    kind = "multipart/form-data; boundary=b"

    answer = running.judge(FORM + picture(250) + b"\r\n--b--\r\n", Content_Type=kind)

    assert (answer.status, answer.json["part_id"], answer.json["verdict"]) == (201, "M-1", "reject")


def test_records_are_listed_in_pages_by_what_is_asked(running: Any) -> None:
    for number in range(5):
        running.judge(picture(250 if number % 2 else 20), f"E-{number}", Lot_Id="E")
    path = "/v1/lines/bolt/inspections?lot_id=E"

    first = running.call("GET", f"{path}&limit=2").json
    second = running.call("GET", f"{path}&limit=4&cursor={first['next']}").json
    rejects = running.call("GET", f"{path}&verdict=reject&since=2020-01-01T00:00:00").json

    assert [r["part_id"] for r in first["items"] + second["items"]] == ["E-4", "E-3", "E-2", "E-1", "E-0"]
    assert second["next"] is None
    assert [r["part_id"] for r in rejects["items"]] == ["E-3", "E-1"]
    assert running.call("GET", f"{path}&since=2999-01-01T00:00:00Z").json["items"] == []


def test_image_overlay_and_map_of_a_record(running: Any) -> None:
    content = picture(250, size=(60, 40))
    place = running.judge(content, "F-1").headers["location"]

    image, overlay, anomaly_map = (running.call("GET", f"{place}/{kind}") for kind in ("image", "overlay", "map"))

    assert (image.body, image.headers["content-type"]) == (content, "image/png")
    assert Image.open(io.BytesIO(overlay.body)).width >= 60
    assert np.load(io.BytesIO(anomaly_map.body)).shape == (40, 60)
    assert running.call("GET", "/v1/lines/bolt/inspections/999999/image").status == 404


def test_overloaded_service_refuses_counts_and_loses_nothing(running: Any, gate: Any) -> None:
    capacity = running.service.site.lines["bolt"].queue.capacity
    parts = [f"G-{number}" for number in range(10 * capacity)]
    with gate() as closed, ThreadPoolExecutor(40) as pool:
        futures = {part: pool.submit(running.judge, picture(20), part) for part in parts}
        refused = threading.Event()
        for future in futures.values():
            future.add_done_callback(lambda done: refused.set() if done.result().status == 503 else None)
        assert refused.wait(SECONDS)
        assert running.call("GET", "/healthz").status == 200  # which waits for nobody
        closed.is_open.set()
        answers = {part: future.result() for part, future in futures.items()}

    taken = {part for part, answer in answers.items() if answer.status == 201}
    assert {answer.status for answer in answers.values()} == {201, 503}
    assert all(answer.headers["retry-after"] == "1" for answer in answers.values() if answer.status == 503)
    listed = running.call("GET", "/v1/lines/bolt/inspections?limit=1000").json["items"]
    assert {r["part_id"] for r in listed if r["part_id"] in answers} == taken
    counts = running.call("GET", "/metrics").body.decode()
    assert f'flawsmith_frames_dropped_total{{line="bolt",reason="busy"}} {len(parts) - len(taken)}.0' in counts


def test_late_part_is_recorded_all_the_same(new_service: Any) -> None:
    late = new_service(answer_seconds=0.7)
    with Gate(late) as closed:
        answer = late.judge(picture(20), "H-1")
        closed.is_open.set()

    assert answer.status == 504
    assert late.judge(picture(20), "H-1").json["verdict"] == "pass"


def test_full_disk_stops_keeping_images_not_judging(new_service: Any) -> None:
    full = new_service(images={"keep_free": 1e6})

    with pytest.warns(UserWarning, match="judged all the same"):
        answer = full.judge(picture(250), "I-1")

    assert (answer.status, answer.json["verdict"]) == (201, "reject")
    assert full.call("GET", f"{answer.headers['location']}/image").status == 410


def test_record_that_cannot_be_written_is_no_verdict(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise UnwritableError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(running.service.site.store, "add", full)
        patch.setattr(running.service.site.store, "note", full)
        answer = running.judge(picture(20), "J-1")
        review = running.call("POST", "/v1/lines/bolt/reviews/1", {"label": "good"})

    assert (answer.status, review.status) == (503, 503)
    assert "verdict" not in answer.json
    assert running.judge(picture(20), "J-1").status == 201


class Stream:
    """Reads server-sent events."""

    def __init__(self, running: Any, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=SECONDS)
        self.connection.request("GET", "/v1/events", headers=headers)
        self.response = self.connection.getresponse()
        assert self.response.readline() == b"retry: 1000\n"
        self.response.readline()

    def next(self) -> tuple[str, Any]:
        lines = {}
        while line := self.response.readline().strip():
            name, _, value = line.decode().partition(": ")
            lines[name] = value
        return lines["event"], json.loads(lines["data"])

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_events_tell_of_parts_and_repeat_what_was_missed(running: Any) -> None:
    stream = Stream(running)
    first = running.judge(picture(20), "K-1").json
    assert stream.next()[1]["id"] == first["id"]
    stream.close()
    missed = running.judge(picture(20), "K-2").json

    stream = Stream(running, **{"Last-Event-ID": str(first["id"])})
    running.judge(picture(250), "K-3")
    running.call("POST", f"/v1/lines/bolt/reviews/{missed['id']}", {"label": "good"})
    events = [stream.next() for _ in range(3)]
    stream.close()

    assert [(kind, facts.get("part_id")) for kind, facts in events] == [
        ("inspection", "K-2"),
        ("inspection", "K-3"),
        ("review", None),
    ]


def test_health_readiness_and_the_names_of_the_metrics(running: Any) -> None:
    names = "inspections_total inspection_seconds_bucket frames_dropped_total score_bucket limit review_queue"
    names += " last_inspection_timestamp_seconds model_info disk_free_bytes"

    text = running.call("GET", "/metrics").body.decode()

    assert [name for name in names.split() if f"\nflawsmith_{name}" not in text] == []
    assert running.call("GET", "/healthz").json == {"status": "alive"}
    assert running.call("GET", "/readyz").json == {"status": "ready"}


def test_answers_do_not_wait_for_the_network_to_confirm_their_beginning(running: Any) -> None:
    """Without TCP_NODELAY every answer on a kept connection takes 40 ms, the time of a delayed confirmation."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=SECONDS)
    seconds = []
    for _ in range(9):
        begin = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - begin)
    connection.close()

    assert min(seconds[2:]) < 0.03


def test_interface_is_described(running: Any) -> None:
    described = running.call("GET", "/v1/openapi.json").json

    paths = described["paths"]
    line = "/v1/lines/{line}"
    expected = {f"{line}/inspections", f"{line}/inspections/{{number}}", f"{line}/limit", f"{line}/limit/preview"}
    expected |= {f"{line}/inspections/{{number}}/{kind}" for kind in ("image", "overlay", "map")}
    assert expected | {f"{line}/reviews/next", f"{line}/reviews/{{number}}", "/v1/events", "/metrics"} <= set(paths)
    assert set(paths[f"{line}/inspections"]["post"]["requestBody"]["content"]) == {
        "application/octet-stream",
        "multipart/form-data",
    }
    assert "application/problem+json" in json.dumps(paths[f"{line}/limit"]["put"]["responses"])
