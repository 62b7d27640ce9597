"""Records and audit in one SQLite file, append-only, each row chained to the one before it by a hash.

A row's hash is the SHA-256 of the former row's hash and its own content. Whoever changes, removes or inserts a row has
to change all that follow; an entry of the audit holds the head of the records at its time, which ties both chains
together. Against someone who writes the whole file anew helps only a head that was noted elsewhere: ``flawsmith audit
verify`` prints it and compares it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flawsmith.line.record import DRAWS, WITHDRAWN, Draw, Label, LabelRole, Outcome, Record, WatchedFile, now
from flawsmith.runtime.errors import FlawsmithError

FILE = "records.db"
MOST_LABELS = 20_000
"""Labels that are reckoned with, the latest ones: more would not change what they prove, and take seconds to read."""
START = "0" * 64
"""The hash before the first row."""
_BUSY_SECONDS = 10.0


class UnwritableError(FlawsmithError):
    """Nothing can be written: the disk is full, or another program holds the file, or it is damaged.

    What was written before stays.
    """


# Columns to search by are computed from the content, so that there is nothing beside it that could say otherwise.
_MIGRATIONS = (
    """
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        content TEXT NOT NULL,
        hash TEXT NOT NULL,
        line TEXT GENERATED ALWAYS AS (json_extract(content, '$.line')) VIRTUAL,
        part_id TEXT GENERATED ALWAYS AS (json_extract(content, '$.part_id')) VIRTUAL,
        lot_id TEXT GENERATED ALWAYS AS (json_extract(content, '$.lot_id')) VIRTUAL,
        verdict TEXT GENERATED ALWAYS AS (json_extract(content, '$.verdict')) VIRTUAL,
        received TEXT GENERATED ALWAYS AS (json_extract(content, '$.received')) VIRTUAL,
        inclusion REAL GENERATED ALWAYS AS (json_extract(content, '$.inclusion')) VIRTUAL
    );
    CREATE INDEX records_by_line ON records (line, id);
    CREATE INDEX records_by_verdict ON records (line, verdict, id);
    CREATE INDEX records_by_time ON records (line, received);
    CREATE INDEX records_by_lot ON records (line, lot_id, id) WHERE lot_id IS NOT NULL;
    CREATE INDEX records_by_part ON records (line, part_id) WHERE part_id IS NOT NULL;
    CREATE UNIQUE INDEX records_once ON records (line, part_id) WHERE part_id IS NOT NULL AND verdict <> 'error';
    CREATE INDEX records_to_review ON records (line, id) WHERE inclusion IS NOT NULL;

    CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        content TEXT NOT NULL,
        hash TEXT NOT NULL,
        kind TEXT GENERATED ALWAYS AS (json_extract(content, '$.kind')) VIRTUAL,
        line TEXT GENERATED ALWAYS AS (json_extract(content, '$.line')) VIRTUAL,
        record INTEGER GENERATED ALWAYS AS (json_extract(content, '$.facts.record')) VIRTUAL
    );
    CREATE INDEX audit_by_kind ON audit (line, kind, id);
    CREATE INDEX audit_by_record ON audit (record) WHERE record IS NOT NULL;

    CREATE TRIGGER records_stay BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'records are never changed'); END;
    CREATE TRIGGER records_remain BEFORE DELETE ON records BEGIN SELECT RAISE(ABORT, 'records are never removed'); END;
    CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is never changed'); END;
    CREATE TRIGGER audit_remains BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is never removed'); END;

    CREATE TABLE files (
        path TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        inode INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        record INTEGER NOT NULL REFERENCES records (id),
        PRIMARY KEY (path, sha256, mtime_ns)
    );
    CREATE INDEX files_by_time ON files (mtime_ns);
    """,
    "CREATE INDEX records_by_time_and_verdict ON records (line, received, verdict);",
    """
    CREATE TABLE shadow (
        run INTEGER NOT NULL,
        record INTEGER NOT NULL REFERENCES records (id),
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        times_limit REAL,
        milliseconds REAL NOT NULL,
        PRIMARY KEY (run, record)
    ) WITHOUT ROWID;
    CREATE INDEX shadow_flips ON shadow (run, record) WHERE before <> after;
    CREATE INDEX shadow_times ON shadow (run, milliseconds);
    """,
    # What waits for a review follows from records and audit; asked of them, every look would go through all records
    # that were ever drawn.
    """
    CREATE TABLE waiting (
        record INTEGER PRIMARY KEY REFERENCES records (id),
        line TEXT NOT NULL,
        verdict TEXT NOT NULL
    );
    CREATE INDEX waiting_by_line ON waiting (line, record, verdict);
    CREATE TRIGGER drawn_record_waits AFTER INSERT ON records
    WHEN NEW.inclusion IS NOT NULL AND NEW.verdict <> 'error' BEGIN
        INSERT INTO waiting VALUES (NEW.id, NEW.line, NEW.verdict);
    END;
    CREATE TRIGGER reviewed_record_waits_no_more AFTER INSERT ON audit WHEN NEW.kind = 'review' BEGIN
        DELETE FROM waiting WHERE record = NEW.record;
        INSERT INTO waiting SELECT id, line, verdict FROM records
            WHERE id = NEW.record AND inclusion IS NOT NULL AND verdict <> 'error'
            AND json_extract(NEW.content, '$.facts.label') = 'withdrawn';
    END;
    INSERT INTO waiting SELECT id, line, verdict FROM records
        WHERE inclusion IS NOT NULL AND verdict <> 'error' AND coalesce((
            SELECT json_extract(content, '$.facts.label') FROM audit
            WHERE audit.record = records.id AND audit.kind = 'review' ORDER BY audit.id DESC LIMIT 1
        ), 'withdrawn') = 'withdrawn';
    DROP INDEX records_to_review;
    """,
)
"""Scripts from one `PRAGMA user_version` to the next."""


@dataclass(frozen=True)
class AuditEntry:
    """Something that a person or the service did.

    Attributes:
        id: number of the entry.
        at: in UTC.
        kind: what was done, such as limit, review, model, teach, training, accept, drift, camera, start or stop.
        who: name that the token stands for.
        line: the line it concerns; empty: all.
        facts: what there is to say, by kind.
        hash: of the entry and all before it.
    """

    id: int
    at: str
    kind: str
    who: str
    line: str
    facts: Mapping[str, Any]
    hash: str


class ShadowVerdict(NamedTuple):
    """What another version would have said of a part.

    Attributes:
        run: of the shadow.
        record: number of the part's record.
        before, after: verdicts of the line and of the shadow.
        times_limit: the shadow's score as a multiple of its limit; None where there is none.
        milliseconds: that the shadow took.
    """

    run: int
    record: int
    before: str
    after: str
    times_limit: float | None
    milliseconds: float


@dataclass(frozen=True)
class Verification:
    """What the hash chains say.

    Attributes:
        records, entries: rows of either chain.
        records_head, audit_head: hashes of the last rows.
        faults: what is wrong, one line each; empty: nothing.
    """

    records: int
    entries: int
    records_head: str
    audit_head: str
    faults: tuple[str, ...]


class Store:
    """Records, audit and the states of watched files.

    Reading and writing are safe from several threads, and from several processes as far as SQLite is. Where a write
    returns, it is on the disk.

    Args:
        folder: where `FILE` is, or will be.

    Raises:
        FlawsmithError: the file is no store, is of a newer Flawsmith, or cannot be opened.

    Example:
        >>> import tempfile
        >>> from flawsmith.line.record import Trigger
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> (record,) = store.add([Record.of_error(Trigger("bolt", b""), "image", "no image")])
        >>> record.id, store.get(1) == record, store.verify().faults
        (1, True, ())
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        try:
            self._writer = self._connect()
            try:
                self._migrate()
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as error:
            raise FlawsmithError(f"{self.path}: cannot be used as a store ({error}); give another --out") from None

    def close(self) -> None:
        """Give the file back; what is still running then fails."""
        with self._lock:
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        connection.execute("PRAGMA synchronous = FULL")  # a commit in WAL is then on the disk, not only in the system
        return connection

    def _migrate(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise FlawsmithError(f"{self.path}: written by a newer Flawsmith; upgrade it, or give another --out")
        self._writer.execute("PRAGMA journal_mode = WAL")
        for number in range(version, len(_MIGRATIONS)):
            self._writer.executescript(
                f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            )

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:  # SQLite itself rolls back where the disk is full
                    with suppress(sqlite3.DatabaseError):  # the file may be damaged
                        self._writer.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
                    raise UnwritableError(f"{self.path}: cannot be written ({error}); {_advice(error)}") from None
                raise

    def _read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        # A connection a question: it takes 0.1 ms, none outlives its thread, and reading never waits for writing.
        with closing(self._connect()) as connection:
            return connection.execute(query, values).fetchall()

    # Records

    def add(self, records: Sequence[Record], files: Mapping[int, WatchedFile] | None = None) -> list[Record]:
        """Write records, all or none.

        Args:
            records: not stored yet.
            files: watched files, by the position of their record.

        Returns:
            The records with their numbers.

        Raises:
            UnwritableError: they cannot be written.
            sqlite3.IntegrityError: a part has a record already.
        """
        stored = []
        with self._writing() as connection:
            number, head = _head(connection, "records")
            for position, record in enumerate(records):
                number += 1
                record = record.model_copy(update={"id": number})
                head = _append(connection, "records", number, record.model_dump_json(exclude_none=True), head)
                stored.append(record)
                if files is not None and position in files:
                    file = files[position]
                    connection.execute(
                        "INSERT INTO files (path, sha256, inode, mtime_ns, record) VALUES (?, ?, ?, ?, ?)",
                        (file.path, file.sha256, _signed(file.inode), file.mtime_ns, number),
                    )
        return stored

    def get(self, number: int) -> Record | None:
        """The record of a number; None: there is none."""
        rows = self._read("SELECT content FROM records WHERE id = ?", (number,))
        return _record(rows[0][0]) if rows else None

    def of_part(self, line: str, part_id: str) -> list[Record]:
        """All records of a part, oldest first: at most one of them is no error."""
        rows = self._read("SELECT content FROM records WHERE line = ? AND part_id = ? ORDER BY id", (line, part_id))
        return [_record(row[0]) for row in rows]

    def page(
        self,
        line: str,
        *,
        verdict: Outcome | None = None,
        part_id: str | None = None,
        lot_id: str | None = None,
        since: str | None = None,
        before: int | None = None,
        after: int | None = None,
        count: int = 100,
    ) -> list[Record]:
        """Records of a line, the newest first.

        Args:
            line: its name.
            verdict, part_id, lot_id: of these alone.
            since: received then or later, UTC as `now` gives it.
            before: with a smaller number alone.
            after: with a larger number alone, and the oldest first.
            count: at most so many.
        """
        asked = {
            "line = ?": line,
            "verdict = ?": verdict,
            "part_id = ?": part_id,
            "lot_id = ?": lot_id,
            "received >= ?": since,
            "id < ?": before,
            "id > ?": after,
        }
        where, values = _where(asked)
        order = "DESC" if after is None else "ASC"
        rows = self._read(f"SELECT content FROM records WHERE {where} ORDER BY id {order} LIMIT ?", (*values, count))
        return [_record(row[0]) for row in rows]

    def after(self, line: str, number: int, *, count: int) -> list[tuple[Record, str]]:
        """Records of a line with a larger number, oldest first, each with its hash in the chain.

        Args:
            line: its name.
            number: of a record, or 0.
            count: at most so many.
        """
        rows = self._read(
            "SELECT content, hash FROM records WHERE line = ? AND id > ? ORDER BY id LIMIT ?", (line, number, count)
        )
        return [(_record(content), chained) for content, chained in rows]

    def count_after(self, line: str, number: int) -> int:
        """Records of a line with a larger number."""
        return int(self._read("SELECT count(*) FROM records WHERE line = ? AND id > ?", (line, number))[0][0])

    def number_from_end(self, line: str, count: int) -> int:
        """The number of the record of a line that has so many after it; 0: there are no more than these."""
        rows = self._read("SELECT id FROM records WHERE line = ? ORDER BY id DESC LIMIT 1 OFFSET ?", (line, count))
        return int(rows[0][0]) if rows else 0

    def fields(self, line: str, names: Sequence[str], *, after: int, count: int) -> list[tuple[Any, ...]]:
        """Some fields of a line's records, oldest first; far quicker than whole records.

        Args:
            line: its name.
            names: of the fields.
            after: with a larger number alone.
            count: at most so many.

        Returns:
            Number, hash and the fields of each; a field that is no plain value comes as JSON, a missing one as None.
        """
        columns = "".join(", json_extract(content, ?)" for _ in names)
        query = f"SELECT id, hash{columns} FROM records WHERE line = ? AND id > ? ORDER BY id LIMIT ?"
        return self._read(query, (*(f"$.{name}" for name in names), line, after, count))

    def last_number(self) -> int:
        """The number of the latest record of all lines; 0: there is none."""
        return int(self._read("SELECT coalesce(max(id), 0) FROM records")[0][0])

    # Audit

    def note(self, kind: str, *, who: str, line: str = "", facts: Mapping[str, Any]) -> AuditEntry:
        """Write an entry of the audit.

        Args:
            kind: what was done, such as limit, review, model, teach, training, accept, drift, camera, start or stop.
            who: name that the token stands for.
            line: the line it concerns; empty: all.
            facts: ready for JSON.

        Raises:
            UnwritableError: it cannot be written.
        """
        at = now()
        with self._writing() as connection:
            number, head = _head(connection, "audit")
            count, records_head = _head(connection, "records")
            entry = {"id": number + 1, "at": at, "kind": kind, "who": who, "line": line, "facts": facts}
            entry |= {"records": count, "records_head": records_head}
            content = json.dumps(entry, allow_nan=False)
            written = _append(connection, "audit", number + 1, content, head)
        return AuditEntry(number + 1, at, kind, who, line, facts, written)

    def entries(
        self,
        *,
        line: str | None = None,
        kind: str | Sequence[str] | None = None,
        before: int | None = None,
        count: int = 100,
    ) -> list[AuditEntry]:
        """Entries of the audit, the newest first.

        Args:
            line: of this one alone.
            kind: of this one, or of these, alone.
            before: with a smaller number alone.
            count: at most so many; -1: all.
        """
        kinds = [kind] if isinstance(kind, str) else list(kind or ())
        where, values = _where({"line = ?": line, "id < ?": before})
        if kinds:
            where, values = f"{where} AND kind IN ({', '.join('?' * len(kinds))})", [*values, *kinds]
        rows = self._read(f"SELECT content, hash FROM audit WHERE {where} ORDER BY id DESC LIMIT ?", (*values, count))
        return [_entry(*row) for row in rows]

    def reviews_of(self, number: int) -> list[AuditEntry]:
        """What people said of a record, oldest first; the latest counts."""
        rows = self._read("SELECT content, hash FROM audit WHERE record = ? AND kind = 'review' ORDER BY id", (number,))
        return [_entry(*row) for row in rows]

    def review(
        self,
        number: int,
        label: Label | None,
        *,
        who: str,
        line: str,
        comment: str = "",
        role: LabelRole = "calibrate",
        blind: bool = False,
    ) -> AuditEntry:
        """Write what a person says of a record, with how it came before that person.

        Args:
            number: of the record.
            label: good, flawed or unclear; None takes back what was said last, so that the part waits again.
            who: the person.
            line: of the record.
            comment: in the person's words.
            role: what the label may be used for.
            blind: whether verdict and score were hidden.

        Raises:
            UnwritableError: it cannot be written.
        """
        facts: dict[str, Any] = {"record": number, "label": label or WITHDRAWN, "comment": comment}
        if label is not None:
            record = self.get(number)
            drawn = None if record is None else record.inclusion
            facts |= {"role": role, "blind": blind, "inclusion": drawn}
            if record is not None and drawn is not None:
                facts["draw"] = next(draw for draw, verdict in DRAWS.items() if verdict == record.verdict)
        return self.note("review", who=who, line=line, facts=facts)

    def next_to_review(self, line: str) -> Record | None:
        """The oldest record that was drawn for a review and has none; None: there is none."""
        waiting = self.to_review(line, count=1)
        return waiting[0] if waiting else None

    def to_review(
        self, line: str, *, draw: Draw | None = None, after: int | None = None, count: int = 100
    ) -> list[Record]:
        """Records that were drawn for a review and have none, the oldest first.

        Args:
            line: its name.
            draw: those alone that came so.
            after: with a larger number alone.
            count: at most so many.
        """
        where, values = _where(
            {"waiting.line = ?": line, "waiting.verdict = ?": draw and DRAWS[draw], "waiting.record > ?": after}
        )
        rows = self._read(
            f"SELECT content FROM waiting JOIN records ON records.id = waiting.record WHERE {where} "
            "ORDER BY waiting.record LIMIT ?",
            (*values, count),
        )
        return [_record(row[0]) for row in rows]

    def count_to_review(self, line: str) -> int:
        """Records of a line that were drawn for a review and have none."""
        return sum(self.waiting(line).values())

    def waiting(self, line: str) -> dict[Draw, int]:
        """The same by how they came."""
        counts = dict(self._read("SELECT verdict, count(*) FROM waiting WHERE line = ? GROUP BY verdict", (line,)))
        return {draw: int(counts.get(verdict, 0)) for draw, verdict in DRAWS.items()}

    def labelled(self, line: str, *, count: int = MOST_LABELS) -> list[tuple[Record, AuditEntry]]:
        """Records of a line of which a person has said what they are, with the latest word, oldest first.

        Args:
            line: its name.
            count: at most so many, those of which it was said last.
        """
        rows = self._read(
            "SELECT records.content, audit.content, audit.hash FROM audit JOIN records ON records.id = audit.record "
            "WHERE audit.line = ? AND audit.kind = 'review' AND audit.id = (SELECT max(later.id) FROM audit AS later "
            "WHERE later.record = audit.record AND later.kind = 'review') "
            f"AND json_extract(audit.content, '$.facts.label') <> '{WITHDRAWN}' ORDER BY audit.id DESC LIMIT ?",
            (line, count),
        )
        labelled = [(_record(content), _entry(said, chained)) for content, said, chained in rows]
        return sorted(labelled, key=lambda pair: pair[0].id)

    def counts(self, line: str, since: str, seconds: int) -> list[tuple[int, Outcome, int]]:
        """Parts of a line by time and verdict.

        Args:
            line: its name.
            since: received then or later, UTC as `now` gives it.
            seconds: width of a slot of time.

        Returns:
            Begin of the slot in seconds since 1970, verdict, and number of parts; slots without any are left out.
        """
        slot = "CAST(strftime('%s', received) AS INTEGER) / ? * ?"
        return self._read(
            f"SELECT {slot}, verdict, count(*) FROM records WHERE line = ? AND received >= ? GROUP BY 1, 2 ORDER BY 1",
            (seconds, seconds, line, since),
        )

    # Shadows

    def add_shadow(self, verdicts: Sequence[ShadowVerdict]) -> None:
        """Write what a shadow said; records do not wait for the disk on its account, so a power cut may take the last.

        Raises:
            UnwritableError: it cannot be written.
        """
        if verdicts:
            with self._writing(durable=False) as connection:
                connection.executemany("INSERT OR IGNORE INTO shadow VALUES (?, ?, ?, ?, ?, ?)", verdicts)

    def shadow_changes(self, run: int) -> dict[str, int]:
        """Parts of a shadow run by change of verdict, such as ``pass -> reject``, those without a change included."""
        rows = self._read("SELECT before || ' -> ' || after, count(*) FROM shadow WHERE run = ? GROUP BY 1", (run,))
        return {str(change): int(count) for change, count in rows}

    def shadow_flips(self, run: int, count: int) -> list[ShadowVerdict]:
        """Parts of which the shadow said something else, the newest first, at most so many."""
        query = "SELECT * FROM shadow WHERE run = ? AND before <> after ORDER BY record DESC LIMIT ?"
        return [ShadowVerdict(*row) for row in self._read(query, (run, count))]

    def shadow_milliseconds(self, run: int, share: float) -> float | None:
        """The time that a share of a shadow's parts did not exceed; None: there are no parts yet."""
        count = self._read("SELECT count(*) FROM shadow WHERE run = ?", (run,))[0][0]
        query = "SELECT milliseconds FROM shadow WHERE run = ? ORDER BY milliseconds LIMIT 1 OFFSET ?"
        rows = self._read(query, (run, max(0, math.ceil(share * count) - 1)))
        return float(rows[0][0]) if rows else None

    # Watched files

    def file_record(self, file: WatchedFile) -> int | None:
        """The number of the record that a watched file has; None: it has none.

        A file that was renamed since has the same inode, content and time of writing.
        """
        rows = self._read(
            "SELECT record FROM files WHERE mtime_ns = ? AND sha256 = ? AND (path = ? OR inode = ?) LIMIT 1",
            (file.mtime_ns, file.sha256, file.path, _signed(file.inode)),
        )
        return int(rows[0][0]) if rows else None

    # Verification

    def verify(self, head: str | None = None) -> Verification:
        """As `verify`, of this store."""
        return verify(self.path.parent, head)


def verify(folder: Path, head: str | None = None) -> Verification:
    """Follow both hash chains from their beginning. The file is only read, whichever release wrote it.

    Args:
        folder: that holds `FILE`.
        head: the audit's head at some time, as it was noted elsewhere: it must be one of those since.

    Raises:
        FlawsmithError: there is no such file, or it is none of a service's.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> entry = Store(folder).note("start", who="local", facts={})
        >>> verify(folder).audit_head == entry.hash
        True
    """
    path = folder / FILE
    if not path.is_file():
        raise FlawsmithError(f"{folder}: holds no {FILE}; give the folder that `flawsmith serve` writes (--out)")
    log = path.with_name(f"{FILE}-wal")  # is there for as long as someone writes
    while True:
        is_alone = not log.exists()  # then nothing is made beside it, and it may lie where nothing can be written
        address = path.resolve().as_uri() + ("?mode=ro&immutable=1" if is_alone else "?mode=ro")
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("BEGIN")  # one state of the file, whatever is written meanwhile
                connection.execute("SELECT 1 FROM records, audit LIMIT 0")
                result = _verified(connection, head)
        except sqlite3.Error as error:
            raise FlawsmithError(f"{path}: cannot be read as records ({error}); give another folder") from None
        if not (is_alone and log.exists()):
            return result


def _verified(connection: sqlite3.Connection, head: str | None) -> Verification:
    faults: list[str] = []
    counts, heads = {"records": 0, "audit": 0}, {"records": START, "audit": START}
    is_known = head in (None, START)
    try:
        for heads["audit"] in _follow(connection, "audit", faults):
            counts["audit"] += 1
            is_known = is_known or heads["audit"] == head
        if not is_known:
            faults.append("audit: the head that was noted is none of its own: it was written anew, or cut off")
        ties = connection.execute(
            "SELECT id, json_extract(content, '$.records'), json_extract(content, '$.records_head') FROM audit "
            "ORDER BY id"
        )
        chain, is_tied = _follow(connection, "records", faults), True
        for number, count, records_head in ties:
            while isinstance(count, int) and counts["records"] < count and (following := next(chain, None)):
                heads["records"], counts["records"] = following, counts["records"] + 1
            if is_tied and (count, records_head) != (counts["records"], heads["records"]):
                is_tied = False  # said once, as all that follow differ too
                is_short = isinstance(count, int) and count > counts["records"]
                left = f"up to {count} were there, {counts['records']} are left"
                faults.append(f"audit {number}: records {left if is_short else f'up to {count} were others then'}")
        for heads["records"] in chain:
            counts["records"] += 1
    except sqlite3.DatabaseError as error:
        faults.append(f"{FILE} cannot be read to its end ({error}): see the disk, and the latest backup")
    return Verification(counts["records"], counts["audit"], heads["records"], heads["audit"], tuple(faults))


def _where(asked: Mapping[str, object]) -> tuple[str, list[object]]:
    """The condition for what is asked, and its values; what is None is not asked for."""
    filters = {condition: value for condition, value in asked.items() if value is not None}
    return " AND ".join(filters) or "TRUE", list(filters.values())


def _advice(error: sqlite3.Error) -> str:
    """What to do where something cannot be written."""
    if "locked" in str(error):
        return "another program holds it: close that"
    if "malformed" in str(error) or "not a database" in str(error):
        return "put the latest backup in its place"
    return "see its rights" if "readonly" in str(error) else "free some space"


def _signed(inode: int) -> int:
    """An inode as SQLite holds it: network shares have some of 64 bits."""
    return inode - 2**64 if inode >= 2**63 else inode


def _head(connection: sqlite3.Connection, table: str) -> tuple[int, str]:
    """Number and hash of the last row."""
    row = connection.execute(f"SELECT id, hash FROM {table} ORDER BY id DESC LIMIT 1").fetchone()
    return (0, START) if row is None else (int(row[0]), str(row[1]))


def _chained(head: str, content: str) -> str:
    return hashlib.sha256(f"{head}\n{content}".encode()).hexdigest()


def _append(connection: sqlite3.Connection, table: str, number: int, content: str, head: str) -> str:
    chained = _chained(head, content)
    connection.execute(f"INSERT INTO {table} (id, content, hash) VALUES (?, ?, ?)", (number, content, chained))
    return chained


def _follow(connection: sqlite3.Connection, table: str, faults: list[str]) -> Iterator[str]:
    """The hash of each row, recomputed; what does not fit is added to the faults, once for each table."""
    head, broken = START, False
    for place, (number, content, stored) in enumerate(
        connection.execute(f"SELECT id, content, hash FROM {table} ORDER BY id"), 1
    ):
        head = _chained(head, content)
        if not broken and (stored != head or number != place or _number_in(content) != number):
            broken = True
            faults.append(f"{table} {number}: was changed, or one before it was removed or inserted")
        yield head


def _number_in(content: object) -> object:
    """The number that a row says it has; None: it is none of ours, whatever its hash says."""
    with suppress(ValueError, TypeError, AttributeError):
        return json.loads(str(content)).get("id")
    return None


def _record(content: str) -> Record:
    return Record.model_validate_json(content)


def _entry(content: str, chained: str) -> AuditEntry:
    value = json.loads(content)
    return AuditEntry(**{name: value[name] for name in ("id", "at", "kind", "who", "line", "facts")}, hash=chained)
