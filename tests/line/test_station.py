"""A line: what listens to it cannot harm it, and limits change between two parts."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from tests.line.conftest import picture

from flawsmith.line.queue import QueueClosedError
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import LineSettings
from flawsmith.line.station import LimitChange, NoModelError, Site
from flawsmith.line.store import Store, UnwritableError
from flawsmith.runtime.errors import FlawsmithError

SECONDS = 10


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
