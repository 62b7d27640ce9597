"""A watched folder: exactly one record a file, whatever happens to it meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PROJECT
from tests.line.conftest import picture

from flawsmith.cli.main import main
from flawsmith.line import watch as watch_module
from flawsmith.line.queue import QueueFullError
from flawsmith.line.record import Record, Trigger
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site
from flawsmith.line.watch import FolderWatch, check_policy
from flawsmith.runtime.errors import FlawsmithError

SETTLE = 1.0


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Bench:
    """A watched folder with its clock, and the records that came of it."""

    def __init__(self, site: Site, folder: Path, **policy: Any) -> None:
        self.site, self.folder, self.clock = site, folder, Clock()
        self.records: list[Record] = []
        folder.mkdir(exist_ok=True)
        line = site.lines["bolt"]
        policy = {"settle": SETTLE, **policy}
        self.watch = FolderWatch(folder, line, site.store, on_record=self.records.append, clock=self.clock, **policy)

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def pass_time(self, seconds: float = 2 * SETTLE) -> list[tuple[str | None, str]]:
        """Look, wait, judge; returns name and verdict of all records so far."""
        self.watch.look()
        self.watch.step()
        self.clock.seconds += seconds
        self.watch.step()
        self.watch.finish()
        return [(record.name, record.verdict) for record in self.records]


@pytest.fixture
def new_bench(new_site: Callable[..., Site], tmp_path: Path) -> Callable[..., Bench]:
    return lambda **policy: Bench(new_site(), tmp_path / "incoming", **policy)


def test_each_file_has_one_record_and_none_again_after_a_restart(new_site: Any, tmp_path: Path) -> None:
    first = Bench(new_site(), tmp_path / "incoming")
    for number in range(5):
        first.put(f"day/{number}.png", picture(20, note=number))
    first.put("dark.png", picture(20, note=0))  # the same content is another file
    first.put("bright.png", picture(250))
    first.put("notes.txt", b"no image")
    assert len(first.pass_time()) == 7
    assert len(first.pass_time()) == 7
    first.site.close()

    second = Bench(new_site(), tmp_path / "incoming")

    assert second.pass_time() == []
    assert {r.name: r.verdict for r in first.records}["bright.png"] == "reject"


def test_file_that_is_still_written_waits_until_it_is_whole(new_bench: Any) -> None:
    bench, content = new_bench(), picture(20, size=(200, 150))
    path = bench.put("a.png", content[:100])
    assert bench.pass_time(0.5 * SETTLE) == []
    with path.open("ab") as stream:
        stream.write(content[100:200])
    assert bench.pass_time(0.9 * SETTLE) == []  # it has grown
    assert bench.pass_time() == []  # it stands still, but is no image yet
    with path.open("ab") as stream:
        stream.write(content[200:])

    assert bench.pass_time() == [("a.png", "pass")]


def test_file_that_stays_unreadable_ends_in_an_error(new_bench: Any) -> None:
    bench = new_bench()
    bench.put("a.png", picture(20)[:100])

    assert bench.pass_time() == []
    assert bench.pass_time(11 * SETTLE) == [("a.png", "error")]
    assert bench.pass_time(11 * SETTLE) == [("a.png", "error")]


def test_renamed_file_is_the_same_and_a_rewritten_one_is_another(new_bench: Any) -> None:
    bench = new_bench()
    path = bench.put("a.png", picture(20))
    bench.pass_time()
    path.rename(bench.folder / "b.png")
    assert len(bench.pass_time()) == 1

    bench.put("b.png", picture(250))

    assert bench.pass_time() == [("a.png", "pass"), ("b.png", "reject")]


def test_sentinel_says_that_a_file_is_whole(new_bench: Any) -> None:
    bench = new_bench(ready="sentinel", then="move")
    path = bench.put("a.png", picture(20))
    assert bench.pass_time(100) == []

    bench.put("a.png.done", b"")

    assert bench.pass_time(0) == [("a.png", "pass")]
    assert sorted(p.name for p in bench.folder.rglob("*") if p.is_file()) == ["a.png"]
    assert not path.exists()


def test_file_that_was_renamed_when_whole_is_taken_at_once(new_bench: Any) -> None:
    bench = new_bench(ready="rename")
    bench.put("a.png.tmp", picture(20))
    assert bench.pass_time(0) == []

    (bench.folder / "a.png.tmp").rename(bench.folder / "a.png")

    assert bench.pass_time(0) == [("a.png", "pass")]


@pytest.mark.parametrize("then", ["move", "delete"])
def test_file_that_has_its_record_is_put_away(new_bench: Any, then: str) -> None:
    bench = new_bench(then=then)
    for content in (picture(20), picture(250)):  # the second time under the same name
        bench.put("x/a.png", content)
        bench.pass_time()

    left = sorted(p.relative_to(bench.folder).as_posix() for p in bench.folder.rglob("*.png"))

    assert left == (["done/x/a-2.png", "done/x/a.png"] if then == "move" else [])
    assert len(bench.records) == 2


def test_record_comes_before_the_file_is_moved(new_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill between the two leaves: the file is moved later, and not judged again."""
    bench = new_bench(then="move")
    bench.put("a.png", picture(20))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.watch, "_move", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.pass_time()
    again = Bench(bench.site, bench.folder, then="move")

    assert again.pass_time() == []
    assert (bench.folder / "done" / "a.png").exists()
    assert len(bench.site.store.page("bolt")) == 1


def test_locked_file_is_tried_again(new_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench()
    bench.put("a.png", picture(20))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "locked")))
        with pytest.warns(UserWarning, match="tried again"):
            assert bench.pass_time() == []

    assert bench.pass_time() == [("a.png", "pass")]


@pytest.mark.parametrize("polling", [False, True])
def test_watch_hears_of_files_that_arrive_and_ends_when_told(new_site: Any, tmp_path: Path, polling: bool) -> None:
    site, arrived, stop = new_site(), threading.Event(), threading.Event()
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    watch = FolderWatch(
        incoming,
        site.lines["bolt"],
        site.store,
        settle=0.05,
        ready="rename",
        polling=polling,
        on_record=lambda record: arrived.set() if record.name == "late.png" else None,
    )
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()

    (incoming / "late.png.tmp").write_bytes(picture(20))
    (incoming / "late.png.tmp").rename(incoming / "late.png")
    assert arrived.wait(20)
    stop.set()
    thread.join(20)

    assert not thread.is_alive()


def test_wrong_policies_and_folders_are_refused(new_bench: Any, new_site: Any, tmp_path: Path) -> None:
    for arguments, reason in (
        (("whole", "leave", 1), "--ready"),
        (("stable", "burn", 1), "--then"),
        (("stable", "leave", 0), "--settle"),
    ):
        with pytest.raises(FlawsmithError, match=reason):
            check_policy(*arguments)
    site = new_site()
    with pytest.raises(FlawsmithError, match="no such folder"):
        FolderWatch(tmp_path / "nowhere", site.lines["bolt"], site.store)
    with pytest.raises(FlawsmithError, match="lies in the watched folder"):
        FolderWatch(tmp_path, site.lines["bolt"], site.store)


def test_a_folder_that_is_not_there_leaves_no_records(
    brightness_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records"

    code = main(["watch", str(tmp_path / "nowhere"), "--model", str(brightness_model), "--out", str(records)])

    assert code == 2
    assert "no such folder" in capsys.readouterr().err
    assert not records.exists()


def test_killed_watch_judges_each_file_once(brightness_model: Path, tmp_path: Path) -> None:
    """Killed at another moment each time; at the end every file has one record and was moved."""
    incoming, records = tmp_path / "incoming", tmp_path / "records"
    incoming.mkdir()
    names = [f"{number:03d}.png" for number in range(150)]
    script = "import sys; from flawsmith.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "watch", incoming, "--model", brightness_model, "--out", records]
    command += ["--ready", "rename", "--then", "move", "--json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}

    codes = []
    for begin, (seen, number) in enumerate(((1, signal.SIGKILL), (5, signal.SIGKILL), (5, signal.SIGTERM))):
        for note in range(50 * begin, 50 * begin + 50):  # however far the one before came, there is work
            (incoming / names[note]).write_bytes(picture(20 if note % 4 else 250, note=note))
        process = subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for _ in range(seen):
                json.loads(process.stdout.readline())
            process.send_signal(number)
            process.communicate(timeout=30)
        finally:
            process.kill()
        codes.append(process.returncode)
    settings = ServiceSettings.load(brightness_model, records=records)
    with Site(settings) as site:
        watch = FolderWatch(incoming, site.lines["line1"], site.store, ready="rename", then="move")
        watch.look()
        watch.step()
        watch.finish()
        judged = [record.name for record in site.store.page("line1", count=1000)]
        faults = site.store.verify().faults

    assert sorted(map(str, judged)) == names
    assert sorted(path.name for path in (incoming / "done").iterdir()) == names
    assert (faults, codes[-1]) == ((), 0)


def test_files_that_were_put_away_are_not_looked_through_again(new_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench(then="move")
    bench.put("x/a.png", picture(20))
    bench.pass_time()
    listed: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path)), scandir(path))[1])

    bench.watch.look()

    assert listed == [bench.folder, bench.folder / "x"]


def test_file_that_is_too_large_is_named_and_passed_over(new_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_LARGEST_FILE", 50)
    bench = new_bench()
    bench.put("a.png", picture(20))

    with pytest.warns(UserWarning, match=r"a\.png: has more than .* passed over"):
        assert bench.pass_time() == []
    assert bench.pass_time() == []  # and not named again


def test_folder_that_the_system_cannot_watch_says_what_to_do(new_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Any:
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr(watch_module, "watch", full)

    with pytest.raises(FlawsmithError, match=r"watch limit reached\); give --poll"):
        new_bench().watch.run(threading.Event())


def test_file_that_is_put_away_while_another_waits_for_room_disturbs_nothing(
    new_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(new_site(), tmp_path / "incoming", then="move")
    line = bench.site.lines["bolt"]
    submit, held = line.submit, []

    def submit_one_at_a_time(trigger: Trigger) -> tuple[Future[Record], bool]:
        if not held:
            held.append((trigger, Future()))
            return held[0][1], True
        if not held[0][1].done():
            held[0][1].set_result(submit(held[0][0])[0].result())
            raise QueueFullError
        return submit(trigger)

    monkeypatch.setattr(line, "submit", submit_one_at_a_time)
    growing = bench.put("a.png", picture(20)[:100])
    bench.put("b.png", picture(21))
    bench.watch.look()
    bench.clock.seconds += 2 * SETTLE
    growing.write_bytes(picture(20))
    bench.watch.step()  # takes b
    bench.clock.seconds += 2 * SETTLE
    bench.watch.step()  # finds no room for a, so b is moved first
    bench.watch.finish()

    assert [record.name for record in bench.records] == ["b.png", "a.png"]
    assert sorted(path.name for path in (bench.folder / "done").iterdir()) == ["a.png", "b.png"]


def test_file_that_cannot_be_put_away_is_not_read_again_for_that(
    new_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench(then="move")
    read, reads = bench.watch._read, []
    monkeypatch.setattr(bench.watch, "_read", lambda path: reads.append(path) or read(path))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    bench.put("a.png", picture(20))
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be put away"):
        patch.setattr(bench.watch, "_move", refuse)
        for _ in range(5):
            bench.pass_time()
    bench.put("a.png", picture(250))  # another one under its name
    told = bench.pass_time()

    assert told == [("a.png", "pass"), ("a.png", "reject")]
    assert len(reads) == 2
    assert [path.name for path in (bench.folder / "done").iterdir()] == ["a.png"]
