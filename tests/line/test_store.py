"""Records and audit: nothing acknowledged is lost, nothing is changed unnoticed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from flawsmith.line import store as store_module
from flawsmith.line.record import Record, Trigger, WatchedFile
from flawsmith.line.store import FILE, Store, UnwritableError, verify
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
        verify(tmp_path / "nowhere")


def test_verification_writes_nothing_whichever_release_wrote_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_MIGRATIONS", store_module._MIGRATIONS[:1])
        earlier = Store(tmp_path)
        earlier.add([record("A")])
        earlier.close()
    before = (tmp_path / FILE).read_bytes()

    assert (verify(tmp_path).faults, verify(tmp_path).records) == ((), 1)

    assert (tmp_path / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_damaged_file_is_named_by_verification(store: Store, tmp_path: Path) -> None:
    store.add([record(f"{number}", error="x" * 500) for number in range(200)])
    store.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (len(content) // 2 - len(content) // 3)
    (tmp_path / FILE).write_bytes(content)

    faults = verify(tmp_path).faults

    assert faults
    assert all("\n" not in fault for fault in faults)
    (tmp_path / FILE).write_bytes(b"no data base" * 1000)
    with pytest.raises(FlawsmithError, match="cannot be read as records"):
        verify(tmp_path)


def test_row_that_is_no_record_is_found_even_where_its_hash_fits(store: Store, tmp_path: Path) -> None:
    store.add([record("A")])
    ((_, head),) = store.after("bolt", 0, count=10)
    store._writer.execute(
        "INSERT INTO records (id, content, hash) VALUES (2, '[]', ?)", (store_module._chained(head, "[]"),)
    )

    assert verify(tmp_path).faults == ("records 2: was changed, or one before it was removed or inserted",)


def test_file_that_another_program_holds_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BUSY_SECONDS", 0.05)
    store = Store(tmp_path)
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(UnwritableError, match="another program holds it"):
        store.add([record("A")])
    other.execute("ROLLBACK")
    other.close()

    assert store.add([record("A")])[0].id == 1


def test_parts_that_waited_under_an_earlier_release_wait_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_MIGRATIONS", store_module._MIGRATIONS[:3])
        earlier = Store(tmp_path)
        drawn = [record(name, verdict="review", inclusion=1.0) for name in "ABC"]
        earlier.add([*drawn, record("D", inclusion=0.1), record("E"), record("F", verdict="error", inclusion=1.0)])
        for number, label in ((1, "good"), (2, "flawed"), (2, None)):
            earlier.review(number, label, who="anna", line="bolt")  # type: ignore[arg-type]
        earlier.close()

    store = Store(tmp_path)

    assert [r.part_id for r in store.to_review("bolt")] == ["B", "C", "D"]
    assert store.waiting("bolt") == {"band": 2, "passes": 1, "rejects": 0}
    store.review(2, "good", who="anna", line="bolt")
    store.review(1, None, who="anna", line="bolt")
    assert [r.part_id for r in store.to_review("bolt", after=1)] == ["C", "D"]
    assert [r.part_id for r in store.to_review("bolt", draw="band")] == ["A", "C"]
    assert store.verify().faults == ()


def test_labels_that_are_reckoned_with_are_the_latest(store: Store) -> None:
    store.add([record(name, inclusion=1.0) for name in "ABC"])
    for number in (3, 1, 2):
        store.review(number, "good", who="anna", line="bolt")

    assert [r.part_id for r, _ in store.labelled("bolt", count=2)] == ["A", "B"]
    assert [r.part_id for r, _ in store.labelled("bolt")] == ["A", "B", "C"]


def test_damaged_file_is_told_from_a_defect_when_something_is_to_be_written(store: Store, tmp_path: Path) -> None:
    store.add([record(f"{number}", error="x" * 500) for number in range(50)])
    store.close()
    content = (tmp_path / FILE).read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    (tmp_path / FILE).write_bytes(b"".join(b"\xff" * 4096 if b"x" * 400 in page else page for page in pages))
    damaged = Store(tmp_path)

    with pytest.raises(UnwritableError, match="put the latest backup in its place"):
        damaged.add([record("A")])
