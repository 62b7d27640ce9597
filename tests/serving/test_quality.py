"""What the studio asks of the service: scores behind limits, queues, trials, figures over time, settings."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import GOOD_SCORES, picture

from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import worst_rate

LINE = "/v1/lines/bolt"


@pytest.fixture(scope="module")
def judged(new_service: Callable[..., Any]) -> Any:
    """A line that has judged ten parts, and puts all of them before a reviewer."""
    running = new_service({"audit_share": 1.0})
    for number, brightness in enumerate((20, 40, 60, 80, 90, 110, 120, 140, 160, 200)):
        assert running.judge(picture(brightness, note=number), f"A-{number}").status == 201
    return running


def test_each_step_of_the_limit_has_its_promise_and_is_what_the_service_would_set(judged: Any) -> None:
    scores = judged.call("GET", f"{LINE}/limit/scores").json
    steps, n = scores["steps"], len(GOOD_SCORES)

    assert scores["good"] == sorted(GOOD_SCORES.tolist(), reverse=True)
    assert [step["rejected_of_1000"] for step in steps] == pytest.approx([1000 * r / (n + 1) for r in range(1, n + 1)])
    assert steps[2]["rejected_of_1000_at_worst"] == pytest.approx(1000 * worst_rate(3, n))
    for rank in (1, 3):
        change = {"max_false_rejects": rank / (n + 1), "review_rate": "none"}
        preview = judged.call("POST", f"{LINE}/limit/preview", change).json["after"]
        assert preview["limit"] == pytest.approx(steps[rank - 1]["limit"], abs=1e-12)
        assert preview["rejected_of_1000_at_worst"] == pytest.approx(steps[rank - 1]["rejected_of_1000_at_worst"])


def test_groups_stay_beside_the_scores_of_their_images(
    new_service: Callable[..., Any], new_model: Callable[..., Path]
) -> None:
    groups = np.arange(len(GOOD_SCORES)) // 7

    def grouped(bundle: Bundle) -> Bundle:
        return dataclasses.replace(bundle, calibration={**bundle.calibration, "good_groups": groups})

    running = new_service({"model": new_model(1.0, grouped)})
    scores = running.call("GET", f"{LINE}/limit/scores").json

    assert scores["groups"] == groups[::-1].tolist()


def test_scores_of_synthetic_flaws_are_taken_in_whatever_shape_a_file_holds_them(
    new_service: Callable[..., Any], new_model: Callable[..., Path]
) -> None:
    def shaped(bundle: Bundle) -> Bundle:
        forged = np.array([[0.5, 0.9], [0.7, 0.1]], np.float32)
        return dataclasses.replace(bundle, calibration={**bundle.calibration, "forged": forged})

    running = new_service({"model": new_model(1.0, shaped)})

    assert running.call("GET", f"{LINE}/limit/scores").json["forged"] == pytest.approx([0.9, 0.7, 0.5, 0.1])


def test_recent_parts_come_with_what_decided_and_whether_their_image_is_there(judged: Any) -> None:
    recent = judged.call("GET", f"{LINE}/limit/scores").json["recent"]

    assert len(recent["id"]) == 10
    assert recent["deciding"][0] == pytest.approx(200 / 255, abs=0.01)
    assert all(recent["image"])


def test_queue_tells_how_parts_came_and_a_label_says_so_too(judged: Any) -> None:
    before = judged.call("GET", f"{LINE}/reviews?limit=3").json
    passes = judged.call("GET", f"{LINE}/reviews?draw=passes").json["items"]
    order = {"label": "good", "role": "test", "blind": True}

    said = judged.call("POST", f"{LINE}/reviews/{passes[0]['id']}", order).json
    after = judged.call("GET", f"{LINE}/reviews").json
    page = judged.call("GET", f"{LINE}/reviews?cursor={before['next']}").json

    assert {record["verdict"] for record in passes} == {"pass"}
    assert sum(before["waiting"].values()) == 10
    assert after["waiting"]["passes"] == before["waiting"]["passes"] - 1
    assert {name: said["facts"][name] for name in ("role", "blind", "draw", "inclusion")} == {
        "role": "test",
        "blind": True,
        "draw": "passes",
        "inclusion": 1.0,
    }
    assert page["items"][0]["id"] > before["items"][-1]["id"]


def test_what_was_said_can_be_taken_back_and_stays_in_the_audit(judged: Any) -> None:
    number = judged.call("GET", f"{LINE}/reviews/next").json["id"]
    judged.call("POST", f"{LINE}/reviews/{number}", {"label": "flawed"})
    is_gone = judged.call("GET", f"{LINE}/reviews/next").json["id"] != number

    withdrawn = judged.call("DELETE", f"{LINE}/reviews/{number}")

    assert is_gone
    assert withdrawn.status == 200
    assert judged.call("GET", f"{LINE}/reviews/next").json["id"] == number
    labels = [entry["facts"]["label"] for entry in judged.call("GET", f"{LINE}/reviews/{number}").json]
    assert labels[-2:] == ["flawed", "withdrawn"]
    assert all(item["id"] != number for item in judged.call("GET", f"{LINE}/limit/scores").json["reviewed"])


def test_evidence_speaks_of_audited_passes(new_service: Callable[..., Any]) -> None:
    running = new_service({"audit_share": 1.0})
    for number in range(4):
        running.judge(picture(40, note=number), f"P-{number}")
    for number in range(1, 4):
        running.call("POST", f"{LINE}/reviews/{number}", {"label": "good"})

    result = running.call("GET", f"{LINE}/reviews/evidence?since=2020-01-01T00:00:00Z").json

    assert result["misses"]["looked_at"] == 3
    assert result["misses"]["words"].startswith("Misses: 0 flawed in 3 audited passes. 95 % sure: no more than 632 of")
    assert (result["today"], result["waiting"]["passes"]) == ({"good": 3}, 1)


def test_a_pass_that_was_drawn_for_a_review_keeps_its_image(new_service: Callable[..., Any]) -> None:
    running = new_service({"audit_share": 1.0}, images={"keep_free": 0, "passes": 0})

    number = running.judge(picture(30)).json["id"]

    assert running.call("GET", f"{LINE}/inspections/{number}/image").body == picture(30)


def test_a_trial_leaves_nothing_behind(judged: Any) -> None:
    image = picture(170, note=77)
    site = judged.service.site
    before = len(site.store.page("bolt", count=1000)), len(site.store.entries(count=1000))

    result = judged.call("POST", f"{LINE}/try", image).json
    heat = result["heat"]
    levels = np.frombuffer(base64.b64decode(heat["levels"]), "<u2").reshape(heat["height"], heat["width"])
    values = heat["low"] + levels / 65535 * (heat["high"] - heat["low"])

    assert (result["verdict"], result["width"], result["height"], result["kept"]) == ("reject", 48, 32, None)
    assert values[16, 24] == pytest.approx(170 / 255, abs=0.01)
    assert (len(site.store.page("bolt", count=1000)), len(site.store.entries(count=1000))) == before
    assert not site.pictures.has(hashlib.sha256(image).hexdigest())


def test_a_trial_that_is_kept_has_its_role_and_stands_beside_known_flaws(judged: Any) -> None:
    image = picture(180, note=78)

    kept = judged.call("POST", f"{LINE}/try?label=flawed&role=test&name=dent.png", image).json["kept"]

    (entry,) = judged.call("GET", "/v1/audit?kind=picked&line=bolt").json["items"]
    assert (entry["id"], entry["facts"]["label"], entry["facts"]["role"]) == (kept, "flawed", "test")
    assert judged.call("GET", f"{LINE}/picked/{kept}/image").body == image
    assert judged.call("GET", f"{LINE}/picked/{kept + 1}/image").status == 404
    reviewed = judged.call("GET", f"{LINE}/limit/scores").json["reviewed"]
    assert [(item["picked"], item["label"]) for item in reviewed if item["id"] is None] == [(kept, "flawed")]


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"no image", 422), (b"x" * 3000, 413)])
def test_a_trial_is_bounded_as_parts_are(new_service: Callable[..., Any], body: bytes, status: int) -> None:
    running = new_service(upload_megabytes=0.002)

    assert running.call("POST", f"{LINE}/try", body).status == status


def test_an_operator_may_try_but_not_keep(new_service: Callable[..., Any]) -> None:
    tokens = [{"name": "otto", "role": "operator", "token": "an operator's token"}]
    running = new_service(tokens=tokens)

    answers = [
        running.call("POST", f"{LINE}/try{query}", picture(90), token="an operator's token")
        for query in ("", "?label=good")
    ]

    assert [answer.status for answer in answers] == [200, 403]
    assert running.call("POST", f"{LINE}/try", picture(90)).status == 401


def test_counts_add_up_over_verdicts_and_time(judged: Any) -> None:
    result = judged.call("GET", f"{LINE}/counts?minutes=60").json
    later = judged.call("GET", f"{LINE}/counts?since=2100-01-01T00:00:00").json

    slots = [slot["verdicts"].get("pass", 0) for slot in result["slots"]]
    assert result["verdicts"] == {"pass": 5, "review": 3, "reject": 2, "error": 0}
    assert sum(slots) == 5
    assert (result["dropped"], result["in_work"]) == (0, 0)
    assert result["milliseconds"] > 0
    assert sum(later["verdicts"].values()) == 0


def test_settings_are_shown_without_secrets(new_service: Callable[..., Any]) -> None:
    tokens = [
        {"name": "anna", "role": "engineer", "token": "a secret of sixteen"},
        {"name": "otto", "role": "operator", "token": "an operator's token"},
    ]
    running = new_service(tokens=tokens)

    full = running.call("GET", "/v1/settings", token="a secret of sixteen")
    less = running.call("GET", "/v1/settings", token="an operator's token")

    assert full.json["tokens"] == [{"name": "anna", "role": "engineer"}, {"name": "otto", "role": "operator"}]
    assert less.json["tokens"] is None
    assert b"secret of sixteen" not in full.body
    assert full.json["lines"]["bolt"]["site"] == "plant"


def test_images_come_scaled_as_any_browser_shows_them(judged: Any) -> None:
    number = judged.call("GET", f"{LINE}/inspections?limit=1").json["items"][0]["id"]

    small = judged.call("GET", f"{LINE}/inspections/{number}/image?width=16")
    heat = judged.call("GET", f"{LINE}/inspections/{number}/heat").json

    assert (small.headers["content-type"], small.body[:2]) == ("image/jpeg", b"\xff\xd8")
    assert (heat["width"], heat["height"], heat["cell"]) == (48, 32, 1)


def test_events_say_whether_an_image_was_kept(judged: Any) -> None:
    import http.client

    last = judged.call("GET", f"{LINE}/inspections?limit=2").json["items"][1]["id"]
    connection = http.client.HTTPConnection("127.0.0.1", judged.port, timeout=15)
    connection.request("GET", f"/v1/events?after={last}")
    stream = connection.getresponse()
    lines = [stream.readline() for _ in range(5)]
    connection.close()

    assert json.loads(lines[4].removeprefix(b"data: "))["image"] is True


def test_the_audit_is_asked_for_several_kinds_of_one_line(judged: Any) -> None:
    entries = judged.call("GET", "/v1/audit?kind=start&kind=review&limit=1000").json["items"]
    of_line = judged.call("GET", "/v1/audit?kind=start&kind=review&line=bolt&limit=1000").json["items"]

    assert {entry["kind"] for entry in entries} == {"start", "review"}
    assert {entry["kind"] for entry in of_line} == {"review"}


def test_figures_say_where_the_network_is_computed(judged: Any) -> None:
    (line,) = judged.call("GET", "/v1/lines").json
    record = judged.call("GET", f"{LINE}/inspections?limit=1").json["items"][0]

    assert (line["device"], record["device"]) == ("cpu", "cpu")
    assert 'flawsmith_model_info{device="cpu",line="bolt"' in judged.call("GET", "/metrics").body.decode()
