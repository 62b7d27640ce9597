"""A line: what listens to it cannot harm it, and limits change between two parts."""

from __future__ import annotations

import base64
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.line.conftest import picture

from flawsmith.line.limits import LimitChange
from flawsmith.line.queue import NoModelError, QueueClosedError
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import LineSettings
from flawsmith.line.station import Line, Site, SwapConflictError
from flawsmith.line.store import Store, UnwritableError
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError

SECONDS = 10
SECRET = f"whsec_{base64.b64encode(bytes(32)).decode()}"


def judge(site: Site, brightness: int, **facts: Any) -> Record:
    return site.lines["bolt"].submit(Trigger("bolt", picture(brightness), **facts))[0].result(SECONDS)


def test_listener_that_fails_neither_loses_nor_doubles_a_record(new_site: Any) -> None:
    def fail(record: Record) -> None:
        raise RuntimeError("an output is broken")

    site = new_site(fail)

    records = [judge(site, brightness) for brightness in (20, 250, 20)]

    assert [record.verdict for record in records] == ["pass", "reject", "pass"]
    assert [record.id for record in site.store.page("bolt", after=0)] == [1, 2, 3]


def test_full_disk_neither_holds_up_the_end_nor_looks_like_a_defect(
    new_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site()
    pages = site.store._writer.execute("PRAGMA page_count").fetchone()[0]
    site.store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UnwritableError, match="free some space"):
        for _ in range(100):
            site.store.note("limit", who="anna", facts={"reason": "x" * 5000})
    site.close()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_connect", limited(Store._connect, pages))
        with pytest.raises(FlawsmithError, match="free some space"):
            for _ in range(100):
                new_site().close()

    assert judge(new_site(), 20).verdict == "pass"


def limited(connect: Any, pages: int) -> Any:
    """Connections to a database that cannot grow."""

    def connected(store: Store) -> sqlite3.Connection:
        connection = connect(store)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    return connected


def test_part_that_was_taken_is_judged_by_the_limits_of_that_moment(new_site: Any) -> None:
    site = new_site()
    line = site.lines["bolt"]
    before, before_record = line.model.decision, judge(site, 145)

    line.set_limits(LimitChange(max_false_rejects=0.3), who="anna", reason="a trial")
    after_record = judge(site, 145)

    assert (before_record.limits, before_record.verdict) == (before.identity, "review")
    assert (after_record.limits, after_record.verdict) == (line.model.decision.identity, "reject")
    assert line.seen_again(before_record, picture(145)).verdict == "review"


def test_line_without_a_model_takes_no_parts_and_a_broken_file_changes_nothing(new_site: Any, tmp_path: Any) -> None:
    site = new_site()
    line = site.lines["bolt"]
    model, path = line.model, line.settings.model
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-50])
        with pytest.raises(FlawsmithError, match="not an intact model file"):
            line.load(who="anna")
    finally:
        path.write_bytes(content)

    assert line.model is model
    line.unload(who="anna")
    with pytest.raises(NoModelError):
        judge(site, 20)
    line.load(who="anna")
    assert judge(site, 20).verdict == "pass"


def test_share_of_parts_is_drawn_for_review_and_says_with_what_probability(new_site: Any) -> None:
    site = new_site(audit_share=0.3)

    records = [
        site.lines["bolt"].submit(Trigger("bolt", picture(20, note=number)))[0].result(SECONDS) for number in range(60)
    ]

    drawn = [record for record in records if record.inclusion is not None]
    assert 8 <= len(drawn) <= 30
    assert {record.inclusion for record in drawn} == {0.3}
    assert judge(site, 130).inclusion == 1.0
    assert site.store.count_to_review("bolt") == len(drawn) + 1


def test_line_is_added_and_removed_while_the_others_work_and_its_records_stay(new_site: Any) -> None:
    site = new_site()
    before = site.lines
    added = site.add_line("nut", site.lines["bolt"].settings, who="anna")
    record = added.submit(Trigger("nut", picture(250)))[0].result(SECONDS)

    assert list(before) == ["bolt"]  # whoever goes through the lines meanwhile is not disturbed
    with pytest.raises(FlawsmithError, match="there is a line nut already"):
        site.add_line("nut", LineSettings())
    with pytest.raises(FlawsmithError, match="letters, digits"):
        site.add_line("../nut", LineSettings())
    site.remove_line("nut", who="anna")
    with pytest.raises(QueueClosedError):
        added.submit(Trigger("nut", picture(20)))
    with pytest.raises(FlawsmithError, match="no line nut"):
        site.remove_line("nut")

    assert (list(site.lines), list(site.settings.lines)) == (["bolt"], ["bolt"])
    assert judge(site, 20).verdict == "pass"
    assert site.store.page("nut") == [record]
    noted = site.store.entries(line="nut", kind="line")
    assert [(entry.who, list(entry.facts)) for entry in noted] == [("anna", ["removed"]), ("anna", ["added"])]
    site.close()
    with pytest.raises(FlawsmithError, match="is ending"):
        site.add_line("nut", LineSettings())


def test_line_with_a_broken_model_is_not_added(new_site: Any, tmp_path: Any) -> None:
    (tmp_path / "broken.flaw").write_bytes(b"no model")
    site = new_site()
    entries = site.store.entries()

    with pytest.raises(FlawsmithError, match="not an intact model file"):
        site.add_line("nut", LineSettings(model=tmp_path / "broken.flaw"))

    assert (list(site.lines), site.store.entries()) == (["bolt"], entries)


def test_limits_that_somebody_changed_meanwhile_are_not_overwritten(new_site: Any) -> None:
    line = new_site().lines["bolt"]
    seen = line.model.decision.identity
    line.set_limits(LimitChange(max_false_rejects=0.3), who="anna", reason="a trial", expected=seen)
    changed = line.model.decision

    with pytest.raises(SwapConflictError, match=f"the limits in use are {changed.identity}, not {seen}"):
        line.set_limits(LimitChange(max_false_rejects=0.2), who="otto", reason="a trial", expected=seen)

    assert line.model.decision == changed


def test_model_file_that_is_written_anew_while_it_is_read_is_refused(
    new_site: Any, new_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or records would name the hash of another model than the one that judged."""
    path = tmp_path / "model.flaw"
    shutil.copy(new_model(1.0), path)
    other, load = new_model(2.0), Bundle.load

    def load_then_replace(source: Path) -> Bundle:
        bundle = load(source)
        shutil.copy(other, path)
        return bundle

    monkeypatch.setattr(Bundle, "load", load_then_replace)
    with pytest.raises(FlawsmithError, match="written anew while it was read"):
        new_site(model=path)


def test_line_computes_on_its_device_or_says_that_it_cannot(new_site: Any) -> None:
    with pytest.raises(FlawsmithError, match="tensorrt needs onnxruntime-gpu"):
        new_site(device="tensorrt")
    site = new_site(device="cpu")

    record = judge(site, 20)

    assert record.device == site.store.page("bolt")[0].device == "cpu"
    broken = site.lines["bolt"].submit(Trigger("bolt", b"no image"))[0].result(SECONDS)
    assert (broken.verdict, broken.device) == ("error", None)


def test_image_that_is_long_in_hashing_holds_up_no_other_part(new_site: Any) -> None:
    hashing, hashed = threading.Event(), threading.Event()

    class SlowTrigger(Trigger):
        @property
        def image_sha256(self) -> str:  # type: ignore[override]
            hashing.set()
            assert hashed.wait(SECONDS)
            return "ab" * 32

    site = new_site()
    line = site.lines["bolt"]
    slow = threading.Thread(target=line.submit, args=(SlowTrigger("bolt", picture(30), part_id="A-1"),), daemon=True)
    slow.start()
    assert hashing.wait(SECONDS)
    done: list[Record] = []
    other = threading.Thread(target=lambda: done.append(judge(site, 20, part_id="A-2")), daemon=True)
    other.start()
    other.join(SECONDS / 2)
    before = list(done)
    hashed.set()
    slow.join(SECONDS)

    assert [record.part_id for record in before] == ["A-2"]


def test_secrets_of_a_camera_stand_neither_in_the_audit_nor_where_settings_are_shown(new_site: Any) -> None:
    camera = {"kind": "url", "url": "rtsp://anna:secret@127.0.0.1:1/stream?key=secret", "seconds": 0.1}
    settings = LineSettings.model_validate({"camera": {**camera, "options": {"password": "secret"}}})
    pytest.importorskip("cv2")
    site = new_site()

    site.add_line("nut", settings, who="anna")

    (entry,) = site.store.entries(line="nut", kind="line")
    assert entry.facts["added"]["camera"]["url"] == "rtsp://127.0.0.1:1/stream"
    assert "secret" not in str(entry.facts)
    assert settings.camera is not None and settings.camera.url == camera["url"]


@pytest.mark.parametrize(
    "lacking",
    [
        {"outputs": [{"kind": "webhook", "url": "https://mes.example", "secret": SECRET, "ca_file": "nowhere.pem"}]},
        {"camera": {"kind": "no such camera"}},
    ],
)
def test_line_that_lacks_something_leaves_no_trace(new_site: Any, new_model: Any, lacking: Any) -> None:
    site = new_site()
    entries = site.store.entries()

    with pytest.raises(FlawsmithError, match=r"nowhere.pem|no such camera"):
        site.add_line("nut", LineSettings(model=new_model(2.0), **lacking))

    assert site.store.entries() == entries


def test_lines_end_at_the_same_time(new_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site, close, both_end = new_site(), Line.close, threading.Barrier(2)
    site.add_line("nut", LineSettings())

    def close_together(line: Line) -> None:
        both_end.wait(SECONDS)
        close(line)

    monkeypatch.setattr(Line, "close", close_together)

    site.close()  # where one waited for the other, the barrier would break

    assert site.is_closed
