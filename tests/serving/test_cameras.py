"""A line's camera over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import SECONDS, picture

LINE = "/v1/lines/bolt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, brightness in enumerate((20, 250)):
        (tmp_path / f"{number}.png").write_bytes(picture(brightness))
    return tmp_path


def test_picture_is_taken_judged_and_shown_on_request(new_service: Any, folder: Path) -> None:
    running = new_service(line={"camera": {"kind": "folder", "path": folder}})
    assert running.call("GET", f"{LINE}/camera/picture").status == 404

    first = running.call("POST", f"{LINE}/trigger", Part_Id="T-1", Lot_Id="L-1")
    again = running.call("POST", f"{LINE}/trigger", Part_Id="T-1")
    second = running.call("POST", f"{LINE}/trigger")

    assert (first.status, first.json["verdict"], first.json["part_id"], first.json["lot_id"]) == (
        201,
        "pass",
        "T-1",
        "L-1",
    )
    assert (again.status, again.json) == (200, first.json)
    assert (second.json["verdict"], second.json["source"]) == ("reject", "camera")
    assert running.call("GET", first.headers["location"]).json == first.json
    shown = running.call("GET", f"{LINE}/camera/picture")
    assert (shown.body, shown.headers["content-type"]) == (picture(250), "image/png")
    facts = running.call("GET", f"{LINE}/camera").json
    assert (facts["state"], facts["triggers"]) == ("running", 2)
    assert "2 images" in facts["diagnosis"]
    assert running.call("POST", f"{LINE}/trigger", Part_Id="x" * 200).status == 400


def test_paused_camera_refuses_with_a_record_and_says_why(new_service: Any, folder: Path) -> None:
    running = new_service(line={"camera": {"kind": "folder", "path": folder}})

    paused = running.call("POST", f"{LINE}/camera/pause", {"paused": True, "reason": "cleaning"})
    refused = running.call("POST", f"{LINE}/trigger", Part_Id="T-1")
    unsaid = running.call("POST", f"{LINE}/camera/pause", {"paused": False, "reason": ""})
    resumed = running.call("POST", f"{LINE}/camera/pause", {"paused": False, "reason": "clean"})

    assert (paused.status, paused.json["state"]) == (200, "paused")
    assert (refused.status, refused.json["verdict"], unsaid.status) == (503, "error", 422)
    assert "cleaning" in refused.json["detail"]
    record = running.call("GET", f"{LINE}/inspections/{refused.json['inspection']}").json
    assert (record["error_kind"], record["part_id"]) == ("camera", "T-1")
    assert resumed.json["state"] in ("running", "starting")
    assert running.call("POST", f"{LINE}/trigger", Part_Id="T-1").status == 201
    whos = [entry["who"] for entry in running.call("GET", "/v1/audit?kind=camera").json["items"]]
    assert whos == ["local", "local"]


def test_pictures_that_come_too_fast_are_counted(new_service: Any, folder: Path) -> None:
    camera = {"kind": "folder", "path": folder, "trigger": "free", "rate": 1000}
    running = new_service(line={"camera": camera, "queue": 1})

    end = time.monotonic() + SECONDS
    while running.call("GET", f"{LINE}/camera").json["dropped"] < 3:
        assert time.monotonic() < end
    running.call("POST", f"{LINE}/camera/pause", {"paused": True, "reason": "enough"})
    assert running.call("POST", f"{LINE}/trigger").status == 503  # served after all that came before

    text = running.call("GET", "/metrics").body.decode()
    dropped = running.call("GET", f"{LINE}/camera").json["dropped"]
    assert f'flawsmith_frames_dropped_total{{line="bolt",reason="busy"}} {dropped:.1f}' in text
    assert f'flawsmith_errors_total{{kind="dropped",line="bolt"}} {dropped:.1f}' in text


def test_line_without_a_camera_says_so(running: Any) -> None:
    for method, path in (("POST", "trigger"), ("GET", "camera"), ("GET", "camera/picture")):
        answer = running.call(method, f"{LINE}/{path}")
        assert (answer.status, "no camera" in answer.json["detail"]) == (404, True)
