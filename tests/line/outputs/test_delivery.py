"""Each record is told in order and at least once, and no receiver can hold up judging."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PROJECT
from tests.line.outputs.conftest import SECONDS, SECRET, Receiver, judge, until

from flawsmith.line import outputs
from flawsmith.line.outputs import delivery
from flawsmith.line.outputs.delivery import Cursors
from flawsmith.line.outputs.webhook import WebhookSink
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site
from flawsmith.line.store import Store
from flawsmith.runtime.errors import FlawsmithError

NewSite = Callable[..., Site]
NewReceiver = Callable[..., Receiver]


def facts(site: Site) -> Any:
    (output,) = site.lines["bolt"].outputs.facts()
    return output


def names(count: int, start: int = 0) -> list[str]:
    return [f"P-{number}" for number in range(start, start + count)]


def test_receiver_that_was_away_gets_every_record_in_order(
    new_site: NewSite, new_receiver: NewReceiver, brightness_model: Path, tmp_path: Path
) -> None:
    receiver = new_receiver()
    receiver.close()  # its port is free, and nobody listens there
    failed: list[tuple[str, str]] = []

    def heard(kind: str, content: Mapping[str, Any]) -> None:
        if kind == "output":
            failed.append((content["line"], content["output"]))

    line = {"model": brightness_model, "threads": 1, "outputs": [receiver.webhook(name="mes")]}
    values = {"records": tmp_path / "records", "images": {"keep_free": 0}, "lines": {"bolt": line}}
    with Site(ServiceSettings.model_validate(values), on_event=heard) as site:
        for part in names(120):
            judge(site, part_id=part)
        failing = until(lambda: facts(site).state == "failing" and facts(site))
        back = new_receiver(receiver.port)
        until(lambda: facts(site).behind == 0)
        well = facts(site)

    assert (failing.behind, failing.delivered) == (120, 0)
    assert "cannot be reached (Connection refused)" in failing.last_error
    assert len(failed) == well.failures > 0
    assert set(failed) == {("bolt", "mes")}
    assert (well.state, well.delivered, well.skipped) == ("waiting", 120, 0)
    assert back.parts == names(120)
    assert len(set(back.ids)) == 120


def test_receiver_that_never_answers_delays_no_record(new_site: NewSite, receiver: Receiver) -> None:
    go, reached = threading.Event(), threading.Event()

    def answer(number: int) -> int:
        reached.set()
        return 200 if go.wait(SECONDS) else 500

    receiver.answer = answer
    site = new_site(outputs=[receiver.webhook()])

    judge(site, part_id="P-0")
    assert reached.wait(SECONDS)
    records = [judge(site, part_id=part) for part in names(40, 1)]
    waiting = facts(site).behind

    assert [record.part_id for record in records] == names(40, 1)
    assert waiting == 41
    go.set()
    until(lambda: receiver.parts == names(41))


def test_new_output_begins_with_the_next_part_and_goes_on_there_after_a_restart(
    new_site: NewSite, receiver: Receiver
) -> None:
    site = new_site()
    judge(site, part_id="before")
    site.close()
    for part in ("P-0", "P-1"):
        site = new_site(outputs=[receiver.webhook()])
        judge(site, part_id=part)
        site.close()  # which delivers what is left

    assert receiver.parts == ["P-0", "P-1"]
    assert facts(new_site(outputs=[receiver.webhook()])).delivered == 2


CHILD = """
import os, signal, sys
from pathlib import Path
from flawsmith.line.outputs.delivery import Cursors
from flawsmith.line.record import Trigger
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site

image, last = Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
remember = Cursors.set
def killed(self, line, output, progress):
    if progress.delivered >= last:  # files take several at a time
        os.kill(os.getpid(), signal.SIGKILL)
    remember(self, line, output, progress)
Cursors.set = killed
with Site(ServiceSettings.load(Path(sys.argv[1]))) as site:
    for part in sys.argv[4:]:
        site.lines["bolt"].submit(Trigger("bolt", image, part_id=part))[0].result(15)
"""


@pytest.mark.parametrize("kind", ["webhook", "jsonl"])
def test_kill_between_delivering_and_remembering_loses_nothing_and_repeats_one_delivery_with_its_id(
    kind: str, receiver: Receiver, brightness_model: Path, tmp_path: Path
) -> None:
    from tests.line.conftest import picture

    (tmp_path / "part.png").write_bytes(picture(20))
    output = f'kind = "webhook"\nurl = "{receiver.url}"\nsecret = "{SECRET}"'
    (tmp_path / "lines.toml").write_text(
        f'[images]\nkeep_free = 0\n[lines.bolt]\nmodel = "{brightness_model}"\nthreads = 1\n[[lines.bolt.outputs]]\n'
        + (output if kind == "webhook" else 'kind = "jsonl"\nfolder = "files"')
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}

    def run(last: int, parts: list[str]) -> int:
        command = [sys.executable, "-c", CHILD, tmp_path / "lines.toml", tmp_path / "part.png", str(last), *parts]
        return subprocess.run(command, env=environment, check=False, timeout=60).returncode

    codes = run(3, names(6)), run(1000, names(6))  # parts that were judged before have their record

    recorded = [record.part_id for record in Store(tmp_path / "records").page("bolt", after=0)]
    assert codes == (-signal.SIGKILL, 0)
    assert recorded == names(6)
    if kind == "webhook":
        repeated = [part for part, count in Counter(receiver.parts).items() if count > 1]
        assert (len(repeated), len(receiver.ids), len(set(receiver.ids))) == (1, 7, 6)
        assert list(dict.fromkeys(receiver.parts)) == names(6)
    else:  # a file shows what it holds already
        import json

        (path,) = (tmp_path / "files").iterdir()
        assert [json.loads(line)["part_id"] for line in path.read_text().splitlines()] == names(6)


def test_output_that_falls_too_far_behind_skips_the_oldest_and_says_which(
    new_site: NewSite, receiver: Receiver
) -> None:
    receiver.answer = lambda _: 500
    site = new_site(outputs=[receiver.webhook(name="mes", behind=10)])
    for part in names(10):
        judge(site, part_id=part)
    until(lambda: facts(site).failures > 3)
    nothing_yet = facts(site).skipped
    for part in names(15, 10):
        judge(site, part_id=part)
    until(lambda: facts(site).behind <= 10)
    receiver.answer = lambda _: 200
    until(lambda: facts(site).behind == 0)

    skipped = [entry.facts for entry in site.store.entries(line="bolt", kind="output")]
    assert nothing_yet == 0
    assert facts(site).skipped == sum(entry["skipped"] for entry in skipped) == 25 - len(receiver.parts)
    assert receiver.parts == names(25)[-len(receiver.parts) :]
    assert 9 <= len(receiver.parts) <= 10
    assert (skipped[-1]["output"], skipped[-1]["after"], skipped[0]["up_to"]) == ("mes", 0, 25 - len(receiver.parts))
    assert site.store.verify().faults == ()


def test_verdicts_that_are_not_asked_for_are_passed_over(new_site: NewSite, receiver: Receiver) -> None:
    site = new_site(outputs=[receiver.webhook(verdicts=["reject", "error"])])

    for number, brightness in enumerate((20, 250, 140, 20, 255)):
        judge(site, brightness, part_id=f"P-{number}")
    until(lambda: facts(site).behind == 0)

    assert receiver.parts == ["P-1", "P-4"]


def test_defect_of_an_output_is_shown_and_tried_again(
    new_site: NewSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, times = WebhookSink.deliver, []

    def fail_first(sink: WebhookSink, letters: Any) -> int:
        times.append(1)
        if len(times) == 1:
            raise ZeroDivisionError("a defect")
        return deliver(sink, letters)

    monkeypatch.setattr(WebhookSink, "deliver", fail_first)
    site = new_site(outputs=[receiver.webhook()])

    judge(site, part_id="P-0")
    until(lambda: receiver.parts == ["P-0"])

    assert facts(site).last_error == "ZeroDivisionError: a defect"


def test_records_that_are_others_than_remembered_are_told_from_now_on(
    new_site: NewSite, receiver: Receiver, tmp_path: Path
) -> None:
    site = new_site(outputs=[receiver.webhook()])
    for part in names(3):
        judge(site, part_id=part)
    site.close()
    for file in (tmp_path / "records").glob("records.db*"):
        file.unlink()

    site = new_site(outputs=[receiver.webhook()])
    judge(site, part_id="new")
    until(lambda: facts(site).behind == 0)

    assert receiver.parts == [*names(3), "new"]


def test_what_outputs_remember_cannot_be_used(new_site: NewSite, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / delivery.FILE).write_bytes(b"something else" * 100)

    with pytest.raises(FlawsmithError, match=r"outputs\.db: cannot be used .* remove it"):
        new_site(outputs=[receiver.webhook()])
    (tmp_path / "records" / delivery.FILE).unlink()
    assert judge(new_site(outputs=[receiver.webhook()])).verdict == "pass"


def test_full_disk_does_not_stop_deliveries(
    new_site: NewSite, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # forgets what libraries that silence all loggers have left behind
    site = new_site(outputs=[receiver.webhook()])
    (pump,) = site.lines["bolt"].outputs._pumps
    connection = pump._cursors._connection
    connection.close()
    pump._cursors._connection = sqlite3.connect("file::memory:?mode=ro", uri=True, check_same_thread=False)

    for part in names(3):
        judge(site, part_id=part)
    until(lambda: receiver.parts == names(3))

    told = [record for record in caplog.records if "may be delivered again" in record.message]
    assert len(told) == 1
    pump._cursors._connection.close()


def test_end_waits_for_no_receiver_for_long(
    new_site: NewSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "END_SECONDS", 0.1)
    go = threading.Event()
    receiver.answer = lambda _: 200 if go.wait(SECONDS) else 500
    site = new_site(outputs=[receiver.webhook()])
    for part in names(3):
        judge(site, part_id=part)

    site.close()  # while the first delivery is under way
    go.set()
    until(lambda: len(receiver.parts) == 1)
    site = new_site(outputs=[receiver.webhook()])
    until(lambda: facts(site).behind == 0)

    assert list(dict.fromkeys(receiver.parts)) == names(3)


def test_file_of_the_cursors_that_cannot_be_opened_is_not_to_be_removed(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="free some space") as caught:
        Cursors(tmp_path / "gone").get("bolt", "mes")

    assert "remove" not in str(caught.value)
