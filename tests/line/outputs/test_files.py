"""Files of records: whole lines, one file a day, nothing twice, nothing that a spreadsheet would compute."""

from __future__ import annotations

import csv
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.line.outputs.conftest import judge, until

from flawsmith.line.outputs import files
from flawsmith.line.outputs.delivery import DeliveryError, Letter
from flawsmith.line.outputs.files import COLUMNS, FileSink
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import FileOutput
from flawsmith.line.station import Site

NewSite = Callable[..., Site]


def letter(number: int, received: str = "2026-11-30T12:00:00.000000+00:00", **facts: Any) -> Letter:
    record = Record.of_error(Trigger("bolt", b"", part_id=f"P-{number}"), "image", "no image")
    return Letter(record.model_copy(update={"id": number, "received": received, **facts}), f"{number:064x}")


def sink(folder: Path, kind: str = "csv", **settings: Any) -> FileSink:
    return FileSink(FileOutput(kind=kind, folder=folder, **settings), "bolt")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_line_writes_its_records_into_both_kinds_of_file(new_site: NewSite, tmp_path: Path) -> None:
    kinds = [{"kind": kind, "folder": tmp_path / "files"} for kind in ("csv", "jsonl")]
    site = new_site(outputs=kinds)

    records = [judge(site, brightness, part_id=f"P-{brightness}") for brightness in (20, 250)]
    until(lambda: all(output.behind == 0 for output in site.lines["bolt"].outputs.facts()))

    day = records[0].received[:10]
    table = rows(tmp_path / "files" / f"bolt-{day}.csv")
    lines = (tmp_path / "files" / f"bolt-{day}.jsonl").read_text().splitlines()
    assert [(row["part_id"], row["verdict"]) for row in table] == [("P-20", "pass"), ("P-250", "reject")]
    assert [float(row["score"]) for row in table] == [record.score for record in records]
    assert list(table[0]) == list(COLUMNS)
    stored = [Record.model_validate_json(json.dumps(_without_envelope(line))) for line in lines]
    assert stored == records


def _without_envelope(line: str) -> dict[str, Any]:
    message = json.loads(line)
    assert (message.pop("schema"), len(message.pop("delivery"))) == (1, 64)
    return message


@pytest.fixture
def honolulu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Pacific/Honolulu")  # ten hours behind UTC
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("honolulu")
@pytest.mark.parametrize(("day", "days"), [("utc", ["11-30", "12-01"]), ("local", ["11-29", "11-30"])])
def test_day_ends_at_the_midnight_that_was_chosen(day: str, days: list[str], tmp_path: Path) -> None:
    moments = ("2026-11-30T09:59:59.000000+00:00", "2026-11-30T10:00:01.000000+00:00", "2026-12-01T00:00:00+00:00")
    letters = [letter(number, moment) for number, moment in enumerate(moments)]
    output = sink(tmp_path, day=day)
    while letters:
        letters = letters[output.deliver(letters) :]

    written = {path.name: [row["id"] for row in rows(path)] for path in sorted(tmp_path.iterdir())}
    split = 2 if day == "utc" else 1
    assert written == {
        f"bolt-2026-{days[0]}.csv": ["0", "1", "2"][:split],
        f"bolt-2026-{days[1]}.csv": ["0", "1", "2"][split:],
    }


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝"])
def test_text_that_a_spreadsheet_would_compute_is_text(start: str, tmp_path: Path) -> None:
    facts = {"part_id": f'{start}HYPERLINK("http://x")', "score": -0.5, "name": "a\nb,=1\tc"}

    sink(tmp_path).deliver([letter(1, **facts)])

    (row,) = rows(tmp_path / "bolt-2026-11-30.csv")
    assert row["part_id"] == f'\'{start}HYPERLINK("http://x")'
    assert row["score"] == "-0.5"
    assert row["name"] == "a\\nb,=1\\tc"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("torn", [1, 30, 10_000])
def test_half_written_line_is_cut_off_and_what_is_there_is_not_written_again(
    kind: str, torn: int, tmp_path: Path
) -> None:
    letters = [letter(number) for number in range(4)]
    sink(tmp_path, kind).deliver(letters[:3])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rpartition(b"\n")[2] + b"\n"
    path.write_bytes(whole[: len(whole) - min(torn, len(last) - 1)])

    sink(tmp_path, kind).deliver(letters)

    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 4 + (kind == "csv")


@pytest.mark.parametrize("written", [0, 7])
def test_full_disk_leaves_whole_lines_and_is_tried_again(
    written: int, new_site: NewSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site(outputs=[{"kind": "csv", "folder": tmp_path / "files"}])
    judge(site, part_id="P-0")
    until(lambda: site.lines["bolt"].outputs.facts()[0].behind == 0)
    (path,) = (tmp_path / "files").iterdir()
    before = path.read_bytes()
    write, is_full = os.write, True

    def write_some(file: int, content: bytes) -> int:
        if not is_full:
            return write(file, content)
        if written:
            return write(file, content[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", write_some)
        records = [judge(site, part_id=f"P-{number}") for number in range(1, 4)]
        failing = until(lambda: (fact := site.lines["bolt"].outputs.facts()[0]).failures > 3 and fact)
        meanwhile = path.read_bytes()
        is_full = False
        until(lambda: site.lines["bolt"].outputs.facts()[0].behind == 0)

    assert [record.verdict for record in records] == ["pass"] * 3
    assert meanwhile == before
    assert f"{path}: cannot be written" in failing.last_error
    assert [row["part_id"] for row in rows(path)] == ["P-0", "P-1", "P-2", "P-3"]


def test_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bolt-2026-11-30.csv"
    for content in ("id;verdict\n1;pass\n", "id\n", "delivery,id,verdict\n" + "1,2,3\n" * 100):
        path.write_text(content)

        with pytest.raises(DeliveryError, match="has other columns; move the file away"):
            sink(tmp_path).deliver([letter(1)])

        assert path.read_text() == content
