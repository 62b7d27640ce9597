"""Cameras of a line: each trigger ends in one record, whatever the camera does."""

from __future__ import annotations

import functools
import http.server
import io
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.line.conftest import picture

from flawsmith.line import cameras, capture
from flawsmith.line.cameras import CameraError, CameraSettings, Frame, make_camera
from flawsmith.line.outputs import Outputs
from flawsmith.line.outputs.delivery import Offline
from flawsmith.line.queue import NotRecordedError
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import NoCameraError
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode

SECONDS = 10


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def folder_of(path: Path, *brightnesses: int) -> Path:
    path.mkdir()
    for number, brightness in enumerate(brightnesses):
        (path / f"{number:03}.png").write_bytes(picture(brightness, note=number))
    return path


class StandIn:
    """A camera that gives what is put before it, fails when told to, and hangs where there is nothing."""

    def __init__(self, *, streams: bool = False) -> None:
        self.streams = streams
        self.frames: queue.Queue[Any] = queue.Queue()
        self.unplugged = False
        self.reads = self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1
        if self.unplugged:
            raise CameraError("the cable is off")

    def read(self) -> Frame:
        self.reads += 1
        image = self.frames.get(timeout=SECONDS)
        if isinstance(image, Exception):
            raise image
        return Frame(image)

    def close(self) -> None:
        self.closed += 1

    def diagnose(self) -> str:
        return "no cable" if self.unplugged else "stand-in"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    camera = StandIn()
    monkeypatch.setitem(cameras._BUILT_IN, "stand-in", lambda settings: camera)
    monkeypatch.setattr(capture, "FIRST_WAIT", 0.02)
    return camera


def test_simulated_camera_gives_a_folders_images_in_order_or_in_a_seeded_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "parts", 20, 30, 40, 50, 60)

    def read(count: int, **settings: Any) -> list[bytes]:
        camera = make_camera(CameraSettings(kind="folder", path=folder, **settings))
        camera.open()
        return [bytes(camera.read().image) for _ in range(count)]  # type: ignore[arg-type]

    named = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert read(7) == [*named, *named[:2]]
    shuffled = read(10, order="random", seed=1)
    assert shuffled == read(10, order="random", seed=1) != read(10, order="random", seed=2)
    assert sorted(shuffled[:5]) == sorted(shuffled[5:]) == sorted(named)


def test_free_camera_beyond_what_can_be_judged_ends_every_picture_in_one_record(new_site: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "parts", *([20, 250] * 15))
    dropped: list[Any] = []
    settings = {"kind": "folder", "path": folder, "rate": 500, "trigger": "free", "loop": False}
    gate = threading.Event()

    site = new_site(queue=2, on_event=lambda kind, content: dropped.append(content) if kind == "dropped" else None)
    line = site.lines["bolt"]
    engine, run = line.model.inspector.engine, line.model.inspector.engine.run
    engine.run = lambda batch: (gate.wait(SECONDS), run(batch))[1]
    camera = capture.Capture(line, CameraSettings(**settings), site.store, site.on_event)
    camera.start()
    wait_for(lambda: len(dropped) >= 5)
    gate.set()
    wait_for(lambda: camera.facts().state == "ended")
    camera.close()
    site.close()

    records = site.store.page("bolt", after=0, count=100)
    hashes = [record.image_sha256 for record in records]
    refused = [record for record in records if record.verdict == "error"]
    judged = [record for record in records if record.verdict != "error"]
    assert len(records) == len(set(hashes)) == 30 == camera.facts().triggers
    assert {record.error_kind for record in refused} == {"dropped"}
    assert len(refused) == len(dropped) == camera.facts().dropped >= 5
    assert {record.verdict for record in judged} == {"pass", "reject"}
    assert [record.received for record in judged] == sorted(record.received for record in judged)
    assert {record.source for record in records} == {"camera"}


def test_picture_of_an_array_is_judged_and_kept_without_loss(new_site: Any, stand_in: StandIn) -> None:
    noise = np.random.default_rng(0).integers(230, 256, (32, 48, 3)).astype(np.uint8)
    site = new_site(camera={"kind": "stand-in"})
    line = site.lines["bolt"]
    stand_in.frames.put(noise)
    stand_in.frames.put(noise[:, :, 0])

    colour = line.trigger("A-1", "L-1").result(SECONDS)
    grey = line.trigger("A-2").result(SECONDS)

    assert (colour.verdict, colour.part_id, colour.lot_id, colour.source) == ("reject", "A-1", "L-1", "camera")
    kept = site.pictures.read(colour.image_sha256)
    assert (decode(kept) == noise).all()
    assert Image.open(io.BytesIO(kept)).format == "PNG"
    assert (decode(site.pictures.read(grey.image_sha256)) == noise[:, :, :1]).all()
    assert line.trigger("A-1").result(SECONDS) == colour  # asked for again: no other picture
    assert stand_in.reads == 2
    stand_in.frames.put(noise.astype(np.float32))
    assert "float32" in (line.trigger().result(SECONDS).error or "")


def test_camera_that_fails_ends_in_an_error_record_and_is_opened_again(new_site: Any, stand_in: StandIn) -> None:
    told: list[str] = []
    site = new_site(
        camera={"kind": "stand-in"},
        on_event=lambda kind, content: told.append(content["state"]) if kind == "camera" else None,
    )
    line = site.lines["bolt"]
    wait_for(lambda: line.camera.facts().state == "running")
    stand_in.unplugged = True
    stand_in.frames.put(OSError("the SDK gave up"))

    first = line.trigger("A-1").result(SECONDS)
    second = line.trigger("A-1").result(SECONDS)
    failing = line.camera.facts()
    stand_in.unplugged = False
    wait_for(lambda: line.camera.facts().state == "running")
    stand_in.frames.put(picture(20))
    third = line.trigger("A-1").result(SECONDS)

    assert (first.verdict, first.error_kind, first.error) == ("error", "camera", "the SDK gave up")
    assert (second.verdict, second.error_kind) == ("error", "camera")
    assert (failing.state, failing.diagnosis) == ("failing", "no cable")
    assert (third.verdict, third.part_id) == ("pass", "A-1")
    assert [record.id for record in site.store.page("bolt", after=0)] == [1, 2, 3]
    assert told == ["running", "failing", "running"]
    assert stand_in.closed >= 1
    assert site.store.verify().faults == ()


def test_camera_that_hangs_is_not_waited_for_and_its_late_picture_is_not_judged(
    new_site: Any, stand_in: StandIn
) -> None:
    site = new_site(camera={"kind": "stand-in", "seconds": 0.15})
    line = site.lines["bolt"]

    begin = time.monotonic()
    hung = line.trigger().result(SECONDS)
    took = time.monotonic() - begin
    stand_in.frames.put(picture(250))  # for the read that hangs
    wait_for(lambda: stand_in.closed)
    wait_for(lambda: line.camera.facts().state == "running")
    stand_in.frames.put(picture(20))

    assert (hung.verdict, hung.error_kind) == ("error", "camera")
    assert "does not answer" in (hung.error or "")
    assert took < 2
    assert line.trigger().result(SECONDS).verdict == "pass"


def test_hanging_reads_do_not_grow_without_bound(new_site: Any, stand_in: StandIn) -> None:
    site = new_site(camera={"kind": "stand-in", "seconds": 0.05})
    line = site.lines["bolt"]

    records = []
    for _ in range(6):
        wait_for(lambda: line.camera.facts().state == "running" or stand_in.reads >= capture.MOST_HANGING)
        records.append(line.trigger().result(SECONDS))

    assert stand_in.reads == capture.MOST_HANGING
    assert {record.error_kind for record in records} == {"camera"}
    wait_for(lambda: "restart the service" in line.camera.facts().says)
    for _ in range(capture.MOST_HANGING):
        stand_in.frames.put(OSError("at last"))


def test_picture_from_before_the_trigger_is_not_judged(
    new_site: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.streams = True
    site = new_site(camera={"kind": "stand-in"})
    line = site.lines["bolt"]
    stand_in.frames.put(picture(250))
    wait_for(lambda: line.camera.picture() is not None)

    future = line.trigger()
    with pytest.raises(futures.TimeoutError):  # until Python 3.11 not the built-in one
        future.exception(0.1)
    stand_in.frames.put(picture(20))

    assert future.result(SECONDS).verdict == "pass"
    assert line.camera.picture() == picture(20)
    stand_in.frames.put(OSError("gone"))  # while nobody asks
    wait_for(lambda: line.camera.facts().diagnosis and stand_in.closed)


def test_paused_line_takes_no_pictures_even_after_a_restart(new_site: Any, tmp_path: Path) -> None:
    camera = {"kind": "folder", "path": folder_of(tmp_path / "parts", 20, 30), "rate": 200, "trigger": "free"}
    site = new_site(camera=camera)
    line = site.lines["bolt"]
    wait_for(lambda: site.store.last_number() >= 2)

    line.camera.pause(True, who="anna", reason="cleaning")
    refused = line.trigger().result(SECONDS)
    told = line.outputs.state()
    site.close()
    again = new_site(camera=camera)
    held = again.lines["bolt"]
    number = again.store.last_number()
    wait_for(lambda: held.camera._connection == "running")
    facts = held.camera.facts()
    unchanged = again.store.last_number()
    held.camera.pause(False, who="otto", reason="clean")
    wait_for(lambda: again.store.last_number() > number + 2)

    assert (told, held.outputs.state()) == (Offline.PAUSED, Offline.ONLINE)
    assert (refused.verdict, refused.error_kind, refused.error) == ("error", "camera", "the line is paused: cleaning")
    assert (facts.state, facts.says, unchanged) == ("paused", "paused: cleaning", number)
    entries = again.store.entries(line="bolt", kind="camera")
    assert [(entry.who, entry.facts) for entry in entries] == [
        ("otto", {"paused": False, "reason": "clean"}),
        ("anna", {"paused": True, "reason": "cleaning"}),
    ]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames: good, to be reviewed, flawed."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "parts.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 32))
    assert writer.isOpened()
    for brightness in (20, 130, 250):
        writer.write(np.full((32, 48, 3), brightness, np.uint8))
    writer.release()
    return path


def test_video_file_is_judged_frame_by_frame_and_ends(new_site: Any, video: Path) -> None:
    site = new_site(camera={"kind": "video", "path": video, "loop": False})
    line = site.lines["bolt"]

    records = [line.trigger().result(SECONDS) for _ in range(4)]

    assert [record.verdict for record in records] == ["pass", "review", "reject", "error"]
    assert records[3].error == "the folder or video is over"
    assert line.camera.facts().state == "ended"
    assert "48 x 32 pixels" in line.camera.facts().diagnosis
    assert line.trigger().result(SECONDS).verdict == "error"


def test_colours_of_a_video_are_in_order_and_it_begins_anew(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 32))
    writer.write(np.full((32, 48, 3), (0, 0, 200), np.uint8))  # red, in OpenCV's order
    writer.release()
    camera = make_camera(CameraSettings(kind="video", path=path))
    camera.open()

    images = [camera.read().image for _ in range(3)]

    assert all(np.abs(image.mean((0, 1)) - (200, 0, 0)).max() < 12 for image in images)  # type: ignore[union-attr]
    camera.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_pictures_come_from_an_address(video: Path) -> None:
    handler = functools.partial(Quiet, directory=str(video.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://anna:secret@127.0.0.1:{server.server_port}"
        camera = make_camera(CameraSettings(kind="url", url=f"{address}/{video.name}", seconds=5))
        camera.open()
        image = camera.read().image
        camera.close()
        missing = make_camera(CameraSettings(kind="url", url=f"{address}/none.avi", seconds=5))
        with pytest.raises(CameraError, match="answers at port") as caught:
            missing.open()
        server.shutdown()

    assert image.shape == (32, 48, 3)  # type: ignore[union-attr]
    assert "secret" not in str(caught.value) + missing.diagnose()
    gone = make_camera(CameraSettings(kind="url", url=f"{address}/{video.name}", seconds=5))
    with pytest.raises(CameraError, match="does not answer at port"):
        gone.open()


def test_camera_of_a_vendor_is_found_by_its_entry_point(
    new_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_flawsmith.py").write_text(
        "import numpy\n"
        "from flawsmith.line.cameras import Frame\n"
        "class AcmeCamera:\n"
        "    streams = False\n"
        "    def __init__(self, settings): self.level = settings.options['level']\n"
        "    def open(self): pass\n"
        "    def read(self): return Frame(numpy.full((32, 48), self.level, numpy.uint8))\n"
        "    def close(self): pass\n"
        "    def diagnose(self): return 'acme 3'\n"
    )
    facts = tmp_path / "acme_flawsmith-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-flawsmith\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[flawsmith.cameras]\nacme = acme_flawsmith:AcmeCamera\n")
    monkeypatch.syspath_prepend(tmp_path)

    site = new_site(camera={"kind": "acme", "options": {"level": 250}})

    assert site.lines["bolt"].trigger().result(SECONDS).verdict == "reject"
    assert site.lines["bolt"].camera.facts().diagnosis == "acme 3"
    with pytest.raises(FlawsmithError, match="the plug-in for cameras of the kind acme fails: 'level'"):
        make_camera(CameraSettings(kind="acme"))
    with pytest.raises(FlawsmithError, match="no camera of the kind acne: known are folder, video, url, index, acme"):
        make_camera(CameraSettings(kind="acne"))


def test_cameras_without_opencv_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cameras, "import_module", missing)

    with pytest.raises(FlawsmithError, match=r"pip install \"flawsmith\[camera\]\""):
        make_camera(CameraSettings(kind="index"))


@pytest.mark.parametrize(
    ("camera", "reason"),
    [
        ("kind = 'folder'", "needs a path"),
        ("kind = 'folder'\npath = 'x'\ntrigger = 'free'", "needs a rate"),
        ("kind = 'url'\nurl = 'file:///etc/passwd'", "begins with rtsp://"),
        ("kind = 'folder'\npath = 'x'\nrat = 2", "rat is not known"),
    ],
)
def test_settings_of_a_camera_that_are_wrong_are_named(tmp_path: Path, camera: str, reason: str) -> None:
    path = tmp_path / "LINES.toml"
    path.write_text(f"[lines.bolt]\nmodel = 'a.flaw'\n[lines.bolt.camera]\n{camera}\n")

    with pytest.raises(FlawsmithError, match=reason):
        ServiceSettings.load(path)

    path.write_text("[lines.bolt]\nmodel = 'a.flaw'\n[lines.bolt.camera]\nkind = 'folder'\npath = 'parts'\n")
    camera_settings = ServiceSettings.load(path).lines["bolt"].camera
    assert camera_settings is not None and camera_settings.path == tmp_path / "parts"


def test_line_without_a_camera_takes_no_pictures(new_site: Any) -> None:
    with pytest.raises(NoCameraError):
        new_site().lines["bolt"].trigger()


def test_state_of_a_camera_is_what_the_audit_says_last_whoever_was_quicker(
    new_site: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site(camera={"kind": "stand-in"})
    camera, note = site.lines["bolt"].camera, site.store.note
    noted, go_on = threading.Event(), threading.Event()

    def slow(kind: str, **facts: Any) -> Any:
        entry = note(kind, **facts)
        if facts["who"] == "anna":  # who has written, and is not done yet
            noted.set()
            assert go_on.wait(SECONDS)
        return entry

    monkeypatch.setattr(site.store, "note", slow)
    asked = ((True, "anna"), (False, "otto"))
    threads = [
        threading.Thread(target=camera.pause, args=(paused,), kwargs={"who": who, "reason": "cleaning"})
        for paused, who in asked
    ]
    threads[0].start()
    assert noted.wait(SECONDS)
    threads[1].start()
    threads[1].join(0.3)
    go_on.set()
    for thread in threads:
        thread.join(SECONDS)

    (latest,) = site.store.entries(line="bolt", kind="camera", count=1)
    assert latest.facts["paused"] == (camera.state == "paused")


def test_free_camera_of_a_line_that_is_not_taught_yet_shows_pictures_and_writes_no_records(
    new_site: Any, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "parts", 20, 250)
    site = new_site(model=None, camera={"kind": "folder", "path": folder, "trigger": "free", "rate": 200})
    line = site.lines["bolt"]
    first, second = (path.read_bytes() for path in sorted(folder.iterdir()))
    for content in (first, second, first):
        wait_for(lambda content=content: line.camera.picture() == content)

    asked = line.trigger().result(SECONDS)  # which somebody has asked for, and so has a record

    assert (asked.verdict, asked.id, site.store.last_number()) == ("error", 1, 1)


def test_outputs_of_a_paused_line_never_say_that_it_takes_parts(
    new_site: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site(camera={"kind": "stand-in"})
    site.lines["bolt"].camera.pause(True, who="anna", reason="cleaning")
    site.close()
    told: list[Offline] = []
    start = Outputs.start

    def start_and_ask(outputs: Outputs, *arguments: Any, **named: Any) -> None:
        start(outputs, *arguments, **named)
        told.append(outputs.state())

    monkeypatch.setattr(Outputs, "start", start_and_ask)
    new_site(camera={"kind": "stand-in"})

    assert told == [Offline.PAUSED]


def test_camera_goes_on_after_a_trigger_that_has_no_record(
    new_site: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = new_site(camera={"kind": "stand-in"}).lines["bolt"]

    def fail(*_: object) -> None:
        raise OSError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(line, "write_error", fail)
        stand_in.frames.put(OSError("the cable is off"))
        with pytest.raises(NotRecordedError, match="a defect"):
            line.trigger().result(SECONDS)
    stand_in.frames.put(picture(20))

    wait_for(lambda: line.camera.facts().state == "running")
    assert line.trigger().result(SECONDS).verdict == "pass"


def test_free_camera_that_fails_writes_no_records_for_a_line_that_is_not_taught_yet(
    new_site: Any, stand_in: StandIn
) -> None:
    states: list[str] = []
    stand_in.frames.put(OSError("the cable is off"))

    site = new_site(
        on_event=lambda kind, content: states.append(content["state"]) if kind == "camera" else None,
        model=None,
        camera={"kind": "stand-in", "trigger": "free", "rate": 200},
    )
    wait_for(lambda: states[:3] == ["running", "failing", "running"])

    assert site.store.last_number() == 0
    stand_in.frames.put(picture(20))
