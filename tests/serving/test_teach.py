"""Lines that are made, taught and trained over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.contract.test_padim import TINY
from tests.line.conftest import picture
from tests.line.test_teaching import zipped
from tests.serving.conftest import Running, _trial_in_this_process, brightness_model
from tests.serving.test_hostile import head, raw

from flawsmith.line.trainings import Trainings
from flawsmith.line.workspace import Workspace
from flawsmith.pipeline.progress import RunState, is_alive
from flawsmith.serving.server import Server, listen
from flawsmith.serving.service import Service

__all__ = ["_trial_in_this_process", "brightness_model"]
PATIENCE = 600
TOKENS = (
    {"name": "anna", "role": "engineer", "token": "an engineer's token"},
    {"name": "otto", "role": "operator", "token": "an operator's token"},
)


class RunningStudio(Running):
    """A studio in a thread."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        workspace = Workspace(folder)
        self.service = Service(workspace.settings(**settings), workspace)
        self.server = Server(self.service)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()

    def add(self, content: bytes, name: str, line: str = "bolt", **facts: str) -> Any:
        query = "&".join(f"{key}={quote(value)}" for key, value in {"name": name, **facts}.items())
        return self.call("POST", f"/v1/lines/{line}/teach/images?{query}", content)

    def teach(self, number: int = 12) -> None:
        """Make the line ``bolt`` and give it images."""
        assert self.call("POST", "/v1/lines", {"line": "bolt"}).status == 201
        for note in range(number):
            assert self.add(picture(100 + note % 5, note=note, size=(96, 64)), f"{note}.png").status == 201


@pytest.fixture(autouse=True)
def no_training_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test comes to, no process of it goes on; beside other tests a training has its share of a core."""
    monkeypatch.setattr("flawsmith.line.trainings._KINDER", 0)
    yield
    for progress in tmp_path.glob("studio/trainings/*/*/progress.json"):
        run = RunState.read(progress)
        if run is not None and is_alive(progress):
            os.killpg(run.pid, signal.SIGKILL)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[RunningStudio]:
    running = RunningStudio(tmp_path / "studio")
    yield running
    running.stop()


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)
    return value


def test_a_line_is_made_once_and_stays(tmp_path: Path) -> None:
    running = RunningStudio(tmp_path / "studio")
    assert running.call("POST", "/v1/lines", {"line": "bolt"}).status == 201
    assert running.call("POST", "/v1/lines", {"line": "Bolt"}).status == 409
    for name in ("", "../x", "a b", "a/b", "x" * 64):
        assert running.call("POST", "/v1/lines", {"line": name}).status == 422
    running.stop()

    running = RunningStudio(tmp_path / "studio")
    assert [line["line"] for line in running.call("GET", "/v1/lines").json] == ["bolt"]
    running.stop()


def test_images_are_added_listed_and_shown(studio: RunningStudio) -> None:
    studio.teach(7)
    assert studio.add(picture(100, note=0, size=(96, 64)), "again.png").json["outcome"] == "known"
    assert studio.add(picture(9), "flaw.png", role="flawed").json["role"] == "flawed"

    facts = studio.call("GET", "/v1/lines/bolt/teach").json
    page = studio.call("GET", "/v1/lines/bolt/teach/images?limit=3&sort=name&role=learn").json
    rest = studio.call("GET", f"/v1/lines/bolt/teach/images?limit=30&sort=name&role=learn&cursor={page['next']}").json
    first = page["items"][0]["id"]
    thumbnail = studio.call("GET", f"/v1/lines/bolt/teach/images/{first}/thumbnail")

    assert facts["counts"] == {"learn": 7, "calibrate": 0, "flawed": 1, "left-out": 0, "not-good": 0}
    assert facts["advice"][0] == "You have 7 good images."
    assert (len(page["items"]), page["total"], len(rest["items"]), rest["next"]) == (3, 7, 4, None)
    assert (thumbnail.status, thumbnail.body[:2]) == (200, b"\xff\xd8")
    assert studio.call("GET", f"/v1/lines/bolt/teach/images/{first}").body == picture(100, note=0, size=(96, 64))
    assert studio.call("GET", f"/v1/lines/bolt/teach/images/{'0' * 64}/thumbnail").status == 404
    assert studio.call("GET", "/v1/lines/bolt/teach/images/..%2f..%2fstudio.json").status in (404, 422)


def test_roles_settings_and_confirmations_change_and_are_audited(studio: RunningStudio) -> None:
    studio.teach(6)
    ids = [item["id"] for item in studio.call("GET", "/v1/lines/bolt/teach/images").json["items"]]
    drawing = {"width": 96, "height": 64, "include": [[[0, 0], [96, 0], [96, 64]]], "exclude": [], "zones": []}

    moved = studio.call("POST", "/v1/lines/bolt/teach/roles", {"images": ids[:2], "role": "not-good"}).json
    studio.call("POST", "/v1/lines/bolt/teach/confirmed", {"images": ids[3:4]})
    changed = studio.call("PATCH", "/v1/lines/bolt/teach", {"scale": 0.05, "region": drawing, "grouping": "day"})

    facts = studio.call("GET", "/v1/lines/bolt/teach").json
    kinds = [(entry["kind"], entry["who"]) for entry in studio.call("GET", "/v1/audit?kind=teach").json["items"]]
    assert moved == {"moved": ids[:2]}
    assert changed.status == 200
    assert (facts["scale"], facts["region"], facts["grouped_by"]) == (0.05, drawing, "day")
    assert facts["counts"]["not-good"] == 2
    assert kinds == [("teach", "local")] * 3
    back = studio.call("PATCH", "/v1/lines/bolt/teach", {"scale": "unknown", "region": "everywhere"})
    assert back.status == 200
    facts = studio.call("GET", "/v1/lines/bolt/teach").json
    assert (facts["scale"], facts["region"]) == (None, None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("teach", {"grouping": "week"}),
        ("teach", {"scale": -1}),
        ("teach", {"scale": 0}),
        ("teach", {"region": {"width": 9, "height": 9, "include": [[[0, 0], [1, 1]]]}}),
        ("teach", {"region": {"width": 9, "height": 9, "include": [[[0, 0], [1, 99], [5, 5]]]}}),
        ("teach", {"more": 1}),
        ("teach/roles", {"images": ["../x"], "role": "learn"}),
        ("teach/roles", {"images": ["0" * 64], "role": "deleted"}),
        ("teach/folders", {"path": "relative"}),
        ("teach/folders", {"path": "/nowhere/at/all"}),
        ("trainings", {"choice": "best"}),
        ("trainings", {"choice": "method", "method": "rm -rf"}),
        ("trainings", {"choice": "quick", "settings": {"--out": "/"}}),
        ("trainings", {"choice": "quick"}),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(studio: RunningStudio, path: str, body: dict[str, Any]) -> None:
    studio.call("POST", "/v1/lines", {"line": "bolt"})

    answer = studio.call("PATCH" if path == "teach" else "POST", f"/v1/lines/bolt/{path}", body)

    assert (answer.status, "\n" in answer.json["detail"]) == (422, False)
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_archive_is_taken_in_with_its_folders(studio: RunningStudio, tmp_path: Path) -> None:
    studio.call("POST", "/v1/lines", {"line": "bolt"})
    entries = {f"parts/{day}/{note}.png": picture(100, note=note) for note, day in enumerate(["mon", "mon", "tue"])}
    archive = zipped(tmp_path / "a.zip", entries).read_bytes()

    answer = studio.call("POST", "/v1/lines/bolt/teach/archives?name=a.zip", archive)
    facts = wait_until(lambda: (f := studio.call("GET", "/v1/lines/bolt/teach").json)["adding"]["is_over"] and f)

    assert answer.status == 202
    assert facts["adding"]["added"] == 3
    assert (facts["grouped_by"], [group["name"] for group in facts["groups"]]) == ("folder", ["mon", "tue"])
    assert studio.call("POST", "/v1/lines/bolt/teach/archives", b"no zip").status == 422
    assert not list((studio.service.workspace.folder / "incoming").iterdir())  # type: ignore[union-attr]


def test_an_archive_that_drips_is_cut_off_and_leaves_nothing(
    studio: RunningStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.call("POST", "/v1/lines", {"line": "bolt"})
    monkeypatch.setattr("flawsmith.serving.teach._ARCHIVE_SECONDS", 0.3)

    answer = raw(studio, head("Content-Length: 100", path="/v1/lines/bolt/teach/archives"), b"PK")

    assert answer[9:12] == b"408"
    assert not list((studio.service.workspace.folder / "incoming").iterdir())  # type: ignore[union-attr]


def test_the_audit_names_an_archive_however_soon_it_is_taken_in(
    studio: RunningStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(self: Workspace, job: Any, work: Callable[[], None], on_end: Callable[[], object]) -> None:
        work()
        job.is_over = True
        on_end()

    studio.call("POST", "/v1/lines", {"line": "bolt"})
    monkeypatch.setattr(Workspace, "_run", at_once)
    archive = zipped(tmp_path / "a.zip", {"good/1.png": picture(100)}).read_bytes()

    assert studio.call("POST", "/v1/lines/bolt/teach/archives?name=parts.zip", archive).status == 202
    (entry,) = studio.call("GET", "/v1/audit?kind=teach").json["items"]
    assert (entry["facts"]["from"], entry["facts"]["added"]) == ("parts.zip", 1)


def test_a_folder_of_the_server_is_copied(studio: RunningStudio, tmp_path: Path) -> None:
    studio.call("POST", "/v1/lines", {"line": "bolt"})
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "1.png").write_bytes(picture(100))

    answer = studio.call("POST", "/v1/lines/bolt/teach/folders", {"path": str(tmp_path / "camera")})

    assert answer.status == 202
    wait_until(lambda: studio.call("GET", "/v1/lines/bolt/teach").json["counts"]["learn"] == 1)


@pytest.mark.parametrize(("name", "body"), [("a.png", b""), ("a.png", b"x" * 100), ("a.txt", b"x")])
def test_an_upload_that_is_no_image_is_refused(studio: RunningStudio, name: str, body: bytes) -> None:
    studio.call("POST", "/v1/lines", {"line": "bolt"})

    assert studio.add(body, name).status in (400, 422)
    assert studio.call("GET", "/v1/lines/bolt/teach").json["counts"]["learn"] == 0


def test_operators_look_and_engineers_teach(tmp_path: Path) -> None:
    (tmp_path / "studio").mkdir()
    running = RunningStudio(tmp_path / "studio", tokens=TOKENS)
    otto, anna = TOKENS[1]["token"], TOKENS[0]["token"]

    assert running.call("POST", "/v1/lines", {"line": "bolt"}, token=otto).status == 403
    assert running.call("POST", "/v1/lines", {"line": "bolt"}, token=anna).status == 201
    assert running.call("POST", "/v1/lines/bolt/teach/folders", {"path": "/"}, token=otto).status == 403
    assert running.call("POST", "/v1/lines/bolt/trainings", {"choice": "quick"}, token=otto).status == 403
    assert running.call("GET", "/v1/lines/bolt/teach", token=otto).status == 200
    assert running.call("GET", "/v1/lines/bolt/teach").status == 401
    running.stop()


def test_a_service_alone_does_not_teach(running: Any) -> None:
    assert running.call("GET", "/v1/lines/bolt/teach").status == 404
    assert running.call("GET", "/studio/lines/bolt/teach").status == 404


def test_without_the_packages_the_page_says_what_to_install(
    studio: RunningStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.line.trainings.is_installed", lambda: False)
    monkeypatch.setattr("flawsmith.serving.teach.is_installed", lambda: False)
    studio.teach(6)

    choices = studio.call("GET", "/v1/lines/bolt/trainings").json
    answer = studio.call("POST", "/v1/lines/bolt/trainings", {"choice": "quick"})

    assert (choices["installed"], choices["to_install"]) == (False, "pip install 'flawsmith[train]'")
    assert answer.status == 422
    assert "pip install 'flawsmith[train]'" in answer.json["detail"]


# Trainings

TINY_ORDER = {"choice": "method", "method": "padim", "settings": TINY}


def start_studio(folder: Path) -> tuple[subprocess.Popen[str], Callable[..., Any]]:
    """A studio in a process of its own, and a way to call it."""
    command = [sys.executable, "-m", "flawsmith", "studio", str(folder), "--port", "0", "--no-browser", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    client = Running.__new__(Running)
    client.port = port
    return process, client.call


def pid_in_the_middle(progress: Path) -> int:
    """Number of a training's process once it has begun to read images; 0 before."""
    run = RunState.read(progress)
    return run.pid if run is not None and run.progress.words.startswith("step") else 0


def test_a_training_outlives_its_studio_and_its_own_death(tmp_path: Path) -> None:
    folder = tmp_path / "studio"
    running = RunningStudio(folder)
    running.teach(12)
    running.stop()
    process, call = start_studio(folder)
    place = folder / "trainings" / "bolt" / "1"
    try:
        begun = call("POST", "/v1/lines/bolt/trainings", TINY_ORDER)
        assert begun.status == 201, begun.body
        second = call("POST", "/v1/lines/bolt/trainings", TINY_ORDER)
        pid = wait_until(lambda: pid_in_the_middle(place / "progress.json"))
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(pid, 0)  # it lives
        process, call = start_studio(folder)
        state = call("GET", "/v1/lines/bolt/trainings/1").json["state"]
        os.killpg(pid, signal.SIGKILL)
        killed = wait_until(
            lambda: (f := call("GET", "/v1/lines/bolt/trainings/1").json)["state"] == "interrupted" and f
        )
        resumed = call("POST", "/v1/lines/bolt/trainings/1/resume").json["state"]
        ended = wait_until(
            lambda: (f := call("GET", "/v1/lines/bolt/trainings/1").json)["state"] not in ("starting", "running") and f,
            PATIENCE,
        )
        taken = wait_until(lambda: (f := call("GET", "/v1/lines/bolt/trainings/1").json)["model_sha256"] and f)
        refused = call("POST", "/v1/lines/bolt/inspections", picture(100, size=(96, 64)))
        used = call("POST", "/v1/lines/bolt/trainings/1/use", {})
        judged = call("POST", "/v1/lines/bolt/inspections", picture(100, size=(96, 64)))
        samples = call("GET", "/v1/lines/bolt/trainings/1/samples").json
        asked = call("GET", "/v1/lines/bolt/teach").json["oddest"]
        report = call("GET", "/v1/lines/bolt/trainings/1/report")
    finally:
        process.terminate()
        process.wait(30)

    assert (second.status, "is being trained" in second.json["detail"]) == (422, True)
    assert state == "running"
    assert "killed" in killed["error"]
    assert resumed == "starting"
    assert (ended["state"], ended["error"]) == ("done", "")
    assert (place / "run" / "model.flaw").exists()
    assert ended["images"] == {"learn": 12}
    assert (taken["live"], refused.status) == (False, 503)  # a model judges once a person says so
    assert (used.status, used.json["live"], judged.status) == (200, True, 201)
    assert judged.json["model_sha256"] == taken["model_sha256"]
    assert len(asked) == 6  # those that the training found least like the others
    assert {sample["is_forged"] for sample in samples} == {True, False}
    assert all(len(sample["pictures"]) == 2 and "×" not in sample["name"] for sample in samples)
    assert "sandbox" in report.headers["content-security-policy"]


def test_a_training_that_is_stopped_can_be_continued(tmp_path: Path) -> None:
    running = RunningStudio(tmp_path / "studio")
    running.teach(12)
    running.call("POST", "/v1/lines/bolt/trainings", TINY_ORDER)
    wait_until(lambda: running.call("GET", "/v1/lines/bolt/trainings/1").json["state"] == "running")

    running.call("POST", "/v1/lines/bolt/trainings/1/stop")
    stopped = wait_until(
        lambda: (f := running.call("GET", "/v1/lines/bolt/trainings/1").json)["state"] == "stopped" and f
    )

    assert stopped["error"] == ""
    assert "interrupted" in running.call("GET", "/v1/lines/bolt/trainings/1/log").body.decode()
    trainings = Trainings(tmp_path / "studio" / "trainings")
    assert trainings.working() is None
    running.stop()


def test_settings_that_no_method_has_fail_in_a_line(tmp_path: Path) -> None:
    running = RunningStudio(tmp_path / "studio")
    running.teach(6)
    running.call("POST", "/v1/lines/bolt/trainings", {"choice": "quick", "settings": {"epocs": 3}})

    failed = wait_until(
        lambda: (f := running.call("GET", "/v1/lines/bolt/trainings/1").json)["state"] == "failed" and f
    )

    assert "epocs" in failed["error"]
    running.stop()


def test_images_are_asked_for_by_name(studio: RunningStudio) -> None:
    studio.teach(6)
    ids = [item["id"] for item in studio.call("GET", "/v1/lines/bolt/teach/images").json["items"]]

    page = studio.call("GET", f"/v1/lines/bolt/teach/images?image={ids[4]}&image={ids[1]}&sort=name").json

    assert ({item["id"] for item in page["items"]}, page["total"]) == ({ids[4], ids[1]}, 2)


def test_a_region_that_cannot_be_read_is_a_finding_and_stops_a_training(studio: RunningStudio) -> None:
    studio.teach(6)
    (studio.service.workspace.folder / "lines/bolt/region.json").write_text("{")  # type: ignore[union-attr]

    facts = studio.call("GET", "/v1/lines/bolt/teach")
    begun = studio.call("POST", "/v1/lines/bolt/trainings", {"choice": "quick"})

    assert (facts.status, facts.json["region"]) == (200, None)
    assert any("region.json" in finding["what"] for finding in facts.json["findings"])
    assert (begun.status, "region.json" in begun.json["detail"]) == (422, True)


def test_a_picture_of_the_camera_is_taught_and_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "0.png").write_bytes(picture(100))
    (tmp_path / "studio").mkdir()
    (tmp_path / "studio" / "settings.toml").write_text('[lines.bolt.camera]\nkind = "folder"\npath = "../camera"\n')
    running = RunningStudio(tmp_path / "studio")

    taken = running.call("POST", "/v1/lines/bolt/teach/camera")
    again = running.call("POST", "/v1/lines/bolt/teach/camera")
    running.call("POST", "/v1/lines/bolt/camera/pause", {"paused": True, "reason": "cleaning"})
    paused = running.call("POST", "/v1/lines/bolt/teach/camera")
    records = running.call("GET", "/v1/lines/bolt/inspections").json["items"]
    other = running.call("POST", "/v1/lines", {"line": "nut"})
    without = running.call("POST", "/v1/lines/nut/teach/camera")
    running.stop()

    assert (taken.status, taken.json["outcome"], taken.json["role"]) == (201, "added", "learn")
    assert again.json["outcome"] == "known"
    assert (paused.status, "cleaning" in paused.json["detail"]) == (503, True)
    assert (records, other.status, without.status) == ([], 201, 404)
    assert list(json.loads((tmp_path / "studio" / "studio.json").read_text())["lines"]) == ["nut"]


def test_lines_made_here_put_some_parts_before_a_reviewer(studio: RunningStudio) -> None:
    studio.call("POST", "/v1/lines", {"line": "bolt"})

    assert studio.service.site.lines["bolt"].settings.audit_share == 0.01


@pytest.mark.usefixtures("_trial_in_this_process")
def test_a_review_has_the_most_alike_of_the_images_taught_beside_it(
    studio: RunningStudio, brightness_model: Path
) -> None:
    studio.teach(6)
    uploaded = studio.call("POST", "/v1/lines/bolt/models", brightness_model.read_bytes()).json["sha256"]
    studio.call("POST", f"/v1/lines/bolt/models/{uploaded}/activate", {"reason": "to judge"})
    wait_until(lambda: studio.call("GET", "/v1/lines/bolt/teach").json["checked"])
    record = studio.judge(picture(103, note=200)).json

    told = studio.call("GET", f"/v1/lines/bolt/reviews/{record['id']}/alike").json

    assert (told["name"], told["record"], told["among"]) == ("3.png", None, 6)
    assert studio.call("GET", f"/v1/lines/bolt/teach/images/{told['taught']}?width=64").body[:2] == b"\xff\xd8"
