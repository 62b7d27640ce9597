"""Records and audit: nothing acknowledged is lost, nothing is changed unnoticed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from flawsmith.line.record import Record, Trigger, WatchedFile
from flawsmith.line.store import FILE, Store, UnwritableError
from flawsmith.runtime.errors import FlawsmithError


def record(part_id: str | None = None, *, verdict: str = "pass", lot_id: str | None = None, **facts: object) -> Record:
    trigger = Trigger("bolt", b"image", part_id=part_id, lot_id=lot_id)
    return Record.of_error(trigger, "image", "no image").model_copy(update={"verdict": verdict, **facts})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def tamper(folder: Path, *statements: str) -> None:
    """Change the file as someone would who has it and SQLite."""
    connection = sqlite3.connect(folder / FILE)
    triggers = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
    for statement in (*(f"DROP TRIGGER {name}" for name in triggers), *statements):
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_records_are_numbered_in_order_and_survive_reopening(store: Store, tmp_path: Path) -> None:
    stored = [*store.add([record("A"), record("B")]), *store.add([record("C")])]
    store.close()

    reopened = Store(tmp_path)

    assert [r.id for r in stored] == [1, 2, 3]
    assert [reopened.get(number) for number in (1, 2, 3)] == stored
    assert reopened.get(4) is None
    assert reopened.verify().faults == ()


def test_part_has_one_record_that_is_no_error(store: Store) -> None:
    store.add([record("A", verdict="error"), record("A", verdict="pass")])

    with pytest.raises(sqlite3.IntegrityError):
        store.add([record("B"), record("A", verdict="reject")])

    assert [r.verdict for r in store.of_part("bolt", "A")] == ["error", "pass"]
    assert store.of_part("bolt", "B") == []  # all or none
    assert store.add([record("C")])[0].id == 3


def test_records_and_audit_refuse_to_be_changed(store: Store, tmp_path: Path) -> None:
    store.add([record("A")])
    store.note("limit", who="anna", facts={})
    connection = sqlite3.connect(tmp_path / FILE)

    for statement in ("UPDATE records SET content = '{}'", "DELETE FROM records", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE records SET content = replace(content, 'reject', 'pass') WHERE id = 2", "records 2"),
        ("DELETE FROM records WHERE id = 2", "records 3"),
        ("DELETE FROM records WHERE id = 3", "records up to 3 were there, 2 are left"),
        ("UPDATE audit SET content = replace(content, 'anna', 'otto')", "audit 1"),
    ],
)
def test_verification_finds_what_was_changed(store: Store, tmp_path: Path, statement: str, fault: str) -> None:
    store.add([record("A"), record("B", verdict="reject"), record("C")])
    store.note("limit", who="anna", facts={"reason": "dust"})
    assert store.verify().faults == ()

    tamper(tmp_path, statement)

    assert any(fault in line for line in store.verify().faults)


def test_noted_head_finds_an_audit_that_was_cut_off(store: Store, tmp_path: Path) -> None:
    first = store.note("start", who="service", facts={})
    last = store.note("limit", who="anna", facts={})
    assert store.verify(head=first.hash).faults == store.verify(head=last.hash).faults == ()

    tamper(tmp_path, "DELETE FROM audit WHERE id = 2")

    assert store.verify().faults == ()  # which a chain alone cannot see
    assert "noted" in store.verify(head=last.hash).faults[0]


def test_full_disk_leaves_no_half_record_and_writing_goes_on_later(store: Store) -> None:
    store.add([record("A")])
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(UnwritableError, match="full"):
        store.add([record(f"B{number}", error="x" * 2000) for number in range(50)])
    store._writer.execute("PRAGMA max_page_count = 1000000")

    assert store.add([record("C")])[0].id == 2
    assert store.verify().faults == ()


def test_pages_go_back_from_the_newest(store: Store) -> None:
    store.add([record(f"{n}", verdict="reject" if n % 3 == 0 else "pass", lot_id=f"L{n // 5}") for n in range(10)])

    page = store.page("bolt", count=4)
    rest = store.page("bolt", before=page[-1].id, count=100)

    assert [r.part_id for r in (*page, *rest)] == [str(n) for n in reversed(range(10))]
    assert [r.part_id for r in store.page("bolt", verdict="reject")] == ["9", "6", "3", "0"]
    assert [r.part_id for r in store.page("bolt", lot_id="L1", verdict="pass")] == ["8", "7", "5"]
    assert [r.id for r in store.page("bolt", after=8)] == [9, 10]
    assert store.page("bolt", since="2999-01-01") == store.page("nut") == []


def test_parts_that_were_drawn_wait_for_their_review(store: Store) -> None:
    store.add([record("A"), record("B", inclusion=1.0), record("C", inclusion=0.1)])

    first = store.next_to_review("bolt")
    assert first is not None
    store.review(first.id, "good", who="anna", line="bolt", comment="dust")
    store.review(first.id, "flawed", who="otto", line="bolt")
    second = store.next_to_review("bolt")

    assert second is not None
    assert (first.part_id, second.part_id, store.count_to_review("bolt")) == ("B", "C", 1)
    assert [(entry.who, entry.facts["label"]) for entry in store.reviews_of(first.id)] == [
        ("anna", "good"),
        ("otto", "flawed"),
    ]


def test_watched_file_is_known_again_by_name_or_inode(store: Store) -> None:
    file = WatchedFile("a.png", "ab" * 32, inode=2**64 - 5, mtime_ns=7)
    store.add([record(), record()], {1: file})

    known = [replace(file, **change) for change in ({}, {"path": "b.png"}, {"inode": 3})]
    others = [replace(file, **change) for change in ({"mtime_ns": 8}, {"sha256": "cd"}, {"path": "b", "inode": 3})]
    assert [store.file_record(same) for same in known] == [2, 2, 2]
    assert [store.file_record(other) for other in others] == [None] * 3


def test_store_of_a_newer_release_or_another_kind_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_text("no database, but long enough to be read as one" * 20)

    for folder, reason in ((tmp_path, "newer"), (tmp_path / "other", "cannot be used")):
        with pytest.raises(FlawsmithError, match=reason):
            Store(folder)
    with pytest.raises(FlawsmithError, match=r"holds no records\.db"):
        Store(tmp_path / "nowhere", must_exist=True)
