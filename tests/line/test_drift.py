"""Drift of a line: told once with its cause, the same after a restart, begun anew with limits or on request."""

from __future__ import annotations

import io
import sqlite3
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.line.conftest import picture

from flawsmith.line.capture import OnEvent
from flawsmith.line.drift import tie_of
from flawsmith.line.limits import LimitChange
from flawsmith.line.record import Record, Trigger
from flawsmith.line.station import Site
from flawsmith.line.store import FILE, Store

SECONDS = 10


def fill(site: Site, scores: list[float], *, verdict: str = "pass", brightness: float = 0.5) -> list[Record]:
    """Records as the line would write them of parts with these scores."""
    line = site.lines["bolt"]
    model = line.model
    assert model is not None
    records = []
    for number, score in enumerate(scores):
        trigger = Trigger("bolt", b"image")
        facts = {
            "verdict": verdict,
            "deciding": score,
            "limit": model.decision.deciding_limit,
            "limits": model.decision.identity,
            "statistics": {"brightness": brightness + 0.01 * np.sin(number * number), "contrast": 0.2},
        }
        record = Record.of_error(trigger, "image", "none", model_sha256=model.sha256)
        records.append(record.model_copy(update={**facts, "error": None, "error_kind": None}))
    return site.store.add(records)


def scores(seed: int, count: int, *, low: float = 0.2, high: float = 0.58) -> list[float]:
    return np.random.default_rng(seed).uniform(low, high, count).tolist()


def catch_up(site: Site) -> Any:
    site.drift.catch_up(site.lines["bolt"])
    return site.drift.facts(site.lines["bolt"])


def drift_into(told: list[dict[str, Any]]) -> OnEvent:
    """Keeps what a site tells of drift."""
    return lambda kind, content: told.append({"kind": kind, **content}) if kind == "drift" else None


def test_alarm_says_since_when_and_what_moved_and_is_told_once(new_site: Any) -> None:
    told: list[dict[str, Any]] = []
    site = new_site(on_event=drift_into(told))
    fill(site, scores(1, 300))
    calm = catch_up(site)
    odd = fill(site, scores(2, 60, low=0.5), brightness=0.455)

    facts = catch_up(site)

    assert (calm.state, calm.says, calm.parts, calm.reference) == ("calm", "calm", 300, "calibration")
    assert calm.evidence < 10
    alarm = facts.alarm
    assert (facts.state, alarm.direction, alarm.moved) == ("alarm", "higher", ("brightness -9 %",))
    assert abs(alarm.since_record - odd[0].id) <= 5
    assert alarm.since_record <= alarm.first_odd[0] <= alarm.record <= odd[-1].id
    assert told == [{"kind": "drift", **alarm.model_dump(mode="json"), "says": alarm.words}]
    entries = site.store.entries(line="bolt", kind="drift")
    assert [entry.facts["event"] for entry in entries] == ["alarm", "begin"]
    assert "brightness -9 %" in facts.says
    assert facts.curve[-1].evidence == pytest.approx(facts.evidence)
    assert sum(facts.p_values) == facts.parts


def test_thread_finds_an_alarm_that_nobody_asks_for(new_site: Any) -> None:
    told: list[dict[str, Any]] = []
    site = new_site(on_event=drift_into(told))
    site.drift.facts(site.lines["bolt"])
    fill(site, scores(1, 200) + scores(2, 100, low=0.55))

    end = time.monotonic() + SECONDS
    while not told and time.monotonic() < end:
        time.sleep(0.05)

    assert [alarm["direction"] for alarm in told] == ["higher"]


def test_evidence_and_alarm_are_the_same_after_a_restart_and_the_alarm_is_not_told_again(new_site: Any) -> None:
    told: list[dict[str, Any]] = []
    first = new_site(on_event=drift_into(told))
    fill(first, scores(1, 200) + scores(2, 80, low=0.52))
    before = catch_up(first)
    first.close()

    second = new_site(on_event=drift_into(told))
    after = catch_up(second)

    assert after == before
    assert after.alarm is not None and len(told) == 1
    assert second.store.verify().faults == ()


def test_new_limits_begin_the_test_anew_and_parts_of_the_old_ones_do_not_count(new_site: Any) -> None:
    site = new_site()
    fill(site, scores(1, 50))
    old = catch_up(site)
    site.lines["bolt"].set_limits(LimitChange(max_false_rejects=0.3), who="anna", reason="a trial")
    assert [entry.kind for entry in site.store.entries(count=2)] == ["drift", "limit"]  # noted beside the change
    new = catch_up(site)
    fill(site, scores(3, 10, high=0.4))

    facts = catch_up(site)

    limit = site.lines["bolt"].model.decision.limit
    assert (old.because, old.parts, old.reference_scores) == ("first", 50, 19)
    assert (new.because, new.parts, facts.parts) == ("limits", 0, 10)
    assert facts.reference_scores == 13 < 19  # those below the new limit
    assert limit < 0.6
    site.close()
    again = new_site()
    assert (catch_up(again).because, catch_up(again).parts) == ("limits", 10)


def test_acknowledged_drift_begins_anew_among_the_parts_to_come(new_site: Any) -> None:
    site = new_site()
    fill(site, scores(1, 100) + scores(2, 80, low=0.52))
    assert catch_up(site).state == "alarm"

    site.drift.acknowledge(site.lines["bolt"], who="anna", reason="new lamp")
    fill(site, scores(3, 300, low=0.52))
    facts = catch_up(site)

    assert (facts.state, facts.because, facts.reference, facts.parts) == ("calm", "acknowledged", "line", 300)
    entry = site.store.entries(line="bolt", kind="drift")[0]
    assert (entry.who, entry.facts["reason"]) == ("anna", "new lamp")
    site.close()
    assert catch_up(new_site()) == facts


def test_rejects_and_errors_are_left_out_of_the_test_and_rejects_are_charted(new_site: Any) -> None:
    site = new_site()
    limit = site.lines["bolt"].model.decision.limit
    fill(site, scores(1, 40))
    fill(site, [0.9] * 100, verdict="reject")
    fill(site, [limit], verdict="pass")  # on the limit
    site.store.add([Record.of_error(Trigger("bolt", b""), "image", "no image")])

    facts = catch_up(site)

    assert (facts.parts, facts.state) == (40, "calm")
    groups = facts.rejects.groups
    assert facts.rejects.size == 100  # 5 rejects of 100, as 1 of 20 is promised
    assert (groups[0].rejects, groups[0].out) == (60, True)
    assert "60 of the latest 100 parts rejected" in facts.says


def test_real_parts_have_statistics_in_their_records(new_site: Any) -> None:
    site = new_site()
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, ::2] = (60, 60, 20)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")

    records = [
        site.lines["bolt"].submit(Trigger("bolt", content))[0].result(SECONDS)
        for content in (picture(51), stream.getvalue(), b"no image")
    ]

    assert records[0].statistics == pytest.approx(
        {"brightness": 0.2, "contrast": 0.0, "sharpness": 0.0, "saturation": 0.0}, abs=0.01
    )
    assert records[1].statistics["sharpness"] > 0.05
    assert records[1].statistics["saturation"] == pytest.approx(20 / 255, abs=0.01)
    assert records[2].statistics is None
    assert catch_up(site).parts == 2


def test_records_of_before_there_were_statistics_are_read_verified_and_followed(new_site: Any, tmp_path: Any) -> None:
    site = new_site()
    fill(site, scores(1, 30))
    site.close()
    connection = sqlite3.connect(tmp_path / "records" / FILE)
    (content,) = connection.execute("SELECT content FROM records WHERE id = 1").fetchone()
    connection.close()
    old = Record.model_validate_json(content).model_copy(update={"statistics": None, "id": 0})
    store = Store(tmp_path / "records")
    (stored,) = store.add([old])
    assert "statistics" not in store.fields("bolt", ["statistics"], after=stored.id - 1, count=1)[0]
    store.close()

    reopened = new_site()

    assert catch_up(reopened).parts == 31
    assert reopened.store.get(stored.id) == stored
    assert reopened.store.verify().faults == ()


def test_ties_are_broken_by_numbers_as_good_as_drawn() -> None:
    ties = [tie_of(f"{number:064x}"[::-1]) for number in range(256)]

    assert all(0 < tie < 1 for tie in ties)
    assert abs(np.mean(ties) - 0.5) < 0.05


def test_hundred_thousand_records_are_followed_in_seconds(new_site: Any) -> None:
    """Rebuilt from the store, not from a state beside it: what it costs is what a start waits for its drift."""
    site = new_site()
    site.drift.close()
    fill(site, scores(1, 5000))

    begin = time.process_time()
    catch_up(site)

    assert (time.process_time() - begin) * 20 < 15
