"""Acceptance studies, limits from the random audit, and the good image beside a review, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import picture

LINE = "/v1/lines/bolt"


def place(running: Any, study: int, part: str, truth: str, brightness: int, note: int) -> Any:
    path = f"{LINE}/acceptance/{study}/placements?part={part}&truth={truth}"
    return running.call("POST", path, picture(brightness, note=note))


def test_a_study_is_planned_carried_out_and_signed(new_service: Callable[..., Any]) -> None:
    running = new_service()
    study = running.call("POST", f"{LINE}/acceptance", {"good": 2, "flawed": 1, "repeats": 2}).json["number"]

    second = running.call("POST", f"{LINE}/acceptance", {"good": 1, "flawed": 1, "repeats": 1})
    verdicts = [
        place(running, study, *each).json["verdict"]
        for each in (("g1", "good", 20, 1), ("g2", "good", 120, 2), ("b1", "flawed", 250, 3), ("b1", "flawed", 249, 4))
    ]
    twin = place(running, study, "g1", "good", 20, 1)
    wrong = place(running, study, "g3", "good", 240, 5).json
    withdrawn = running.call("DELETE", f"{LINE}/acceptance/{study}/placements/{wrong['id']}").json
    ended = running.call("POST", f"{LINE}/acceptance/{study}/end", {"signed": "M. Kern"}).json
    late = place(running, study, "g1", "good", 21, 6)
    table = running.call("GET", f"{LINE}/acceptance/{study}/table").body.decode().splitlines()
    kept = running.call("GET", f"{LINE}/acceptance").json
    records = running.call("GET", f"{LINE}/inspections").json["items"]

    assert (second.status, twin.status, late.status) == (409, 422, 422)
    assert verdicts == ["pass", "review", "reject", "reject"]
    assert (withdrawn["withdrawn"], len(withdrawn["placements"])) == (1, 4)
    assert (ended["signed"], ended["result"]["effective"], ended["result"]["alarmed_parts"]) == ("M. Kern", 2, ["g2"])
    assert ended["result"]["grade"] == "not acceptable"
    assert kept == [ended]
    assert (len(table), table[2].split(",")[:3]) == (5, ["g2", "good", "review"])
    assert records == []  # a study leaves none


def test_a_study_is_bound_to_model_and_limits(new_service: Callable[..., Any]) -> None:
    running = new_service()
    study = running.call("POST", f"{LINE}/acceptance", {"good": 1, "flawed": 1, "repeats": 1}).json["number"]

    running.call("PUT", f"{LINE}/limit", {"max_false_rejects": 0.2, "reason": "another one"})
    answer = place(running, study, "g1", "good", 20, 1)

    assert (answer.status, "other limits" in answer.json["detail"]) == (409, True)
    assert running.call("GET", f"{LINE}/acceptance").json[0]["in_use"] is False


def test_a_part_is_placed_before_the_camera(new_service: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(20))
    running = new_service({"camera": {"kind": "folder", "path": tmp_path}})
    study = running.call("POST", f"{LINE}/acceptance", {"good": 1, "flawed": 1, "repeats": 1}).json["number"]

    answer = running.call("POST", f"{LINE}/acceptance/{study}/camera?part=g1&truth=good")

    assert (answer.status, answer.json["verdict"]) == (201, "pass")
    assert running.call("GET", f"{LINE}/inspections").json["items"] == []


@pytest.fixture
def audited(new_service: Callable[..., Any], tmp_path: Path) -> Any:
    """A line of which 24 good parts and a flawed one, all drawn at random, were looked at."""
    running = new_service({"audit_share": 1.0}, records=tmp_path / "records")
    for number in range(25):
        brightness = 250 if number == 7 else 50 + number
        record = running.judge(picture(brightness, note=number), f"A-{number}").json
        label = "flawed" if number == 7 else "good"
        assert running.call("POST", f"{LINE}/reviews/{record['id']}", {"label": label}).status == 201
    return running


def test_limits_from_the_random_audit_are_previewed_set_moved_and_taken_back(
    audited: Any, new_service: Callable[..., Any], tmp_path: Path
) -> None:
    told = audited.call("GET", f"{LINE}/recalibration").json
    before, after = told["preview"]["before"], told["preview"]["after"]
    order = {"reason": "parts of the line", "expected": after["limits"]}

    stale = audited.call("POST", f"{LINE}/recalibration", {**order, "expected": "another"})
    made = audited.call("POST", f"{LINE}/recalibration", order).json
    audited.stop()
    again = new_service({"audit_share": 1.0}, records=tmp_path / "records")  # they outlive the service
    scores = again.call("GET", f"{LINE}/limit/scores").json
    moved = again.call("PUT", f"{LINE}/limit", {"max_false_rejects": 3 / 25, "review_rate": "none", "reason": "move"})
    back = again.call("PUT", f"{LINE}/limit", {"use": before["limits"], "reason": "back"}).json
    former = again.call("GET", f"{LINE}/limit/scores").json

    assert (told["parts"], told["flawed"], told["flaws"], told["flaws_caught"]) == (24, 1, 1, [1, 1])
    assert (after["good_images"], after["limit"]) == (24, pytest.approx(74 / 255, abs=0.01))
    assert stale.status == 409
    assert made["after"]["limits"] == after["limits"]
    assert (scores["now"]["limits"], scores["audited"], len(scores["good"])) == (after["limits"], True, 24)
    assert scores["steps"][2]["limit"] == pytest.approx(moved.json["after"]["limit"])
    assert moved.json["after"]["good_images"] == 24
    assert back["after"]["limits"] == before["limits"]
    assert (former["audited"], len(former["good"])) == (False, before["good_images"])


def test_parts_that_wait_hold_back_those_after_them(audited: Any) -> None:
    audited.judge(picture(60, note=90), "waits")
    record = audited.judge(picture(61, note=91), "later").json
    audited.call("POST", f"{LINE}/reviews/{record['id']}", {"label": "good"})

    told = audited.call("GET", f"{LINE}/recalibration").json

    assert (told["parts"], told["later"]) == (24, 1)


def test_few_audited_parts_say_why_they_set_no_limit(new_service: Callable[..., Any]) -> None:
    running = new_service({"audit_share": 1.0})
    record = running.judge(picture(60), "A-1").json
    running.call("POST", f"{LINE}/reviews/{record['id']}", {"label": "good"})

    told = running.call("GET", f"{LINE}/recalibration").json

    assert (told["parts"], told["preview"]) == (1, None)
    assert "19 more are needed" in told["why_not"]
    assert running.call("POST", f"{LINE}/recalibration", {"reason": "now", "expected": "x"}).status == 422


def test_a_review_has_the_most_alike_of_the_parts_that_passed_beside_it(new_service: Callable[..., Any]) -> None:
    running = new_service({"audit_share": 1.0})
    alone = running.judge(picture(30, note=1), "A-0").json
    lonely = running.call("GET", f"{LINE}/reviews/{alone['id']}/alike")
    for number, brightness in enumerate((40, 90, 60), 1):
        running.judge(picture(brightness, note=number), f"A-{number}")
    asked = running.judge(picture(200, note=9), "A-9").json

    told = running.call("GET", f"{LINE}/reviews/{asked['id']}/alike").json

    assert lonely.status == 204
    assert (told["name"], told["taught"], told["among"]) == ("A-2", None, 4)
