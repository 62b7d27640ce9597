"""A line from an empty folder to its first verdicts, in a browser; and what the pages of teaching do besides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from tests.browser.conftest import BROWSER, picture
from tests.contract.test_patchcore import TINY
from tests.serving.test_teach import RunningStudio

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
TRAINED = 600_000
Visit = Callable[..., Any]


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningStudio]:
    monkeypatch.setattr("flawsmith.line.trainings._KINDER", 0)  # beside other tests it has its share of a core
    running = RunningStudio(tmp_path / "studio")
    yield running
    running.stop()


def files(folder: Path, number: int, *, first: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    for note in range(first, first + number):
        (folder / f"{note:03d}.png").write_bytes(picture(90 + note % 7, note=note, size=(96, 64)))
    return sorted(str(path) for path in folder.iterdir())


def choose(page: Any, button: str, paths: list[str]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_test_id(button).click()
    chooser.value.set_files(paths)


def small(route: Any) -> None:
    """Lets what a page trains be trained in seconds."""
    if route.request.method != "POST":
        route.continue_()
        return
    order = {**json.loads(route.request.post_data), "settings": TINY}
    route.continue_(post_data=json.dumps(order))


def test_from_an_empty_folder_to_a_running_line_with_a_limit(
    visit: Visit, studio: RunningStudio, tmp_path: Path
) -> None:
    page = visit("", running=studio)
    page.route("**/trainings", small)

    page.get_by_test_id("lines.name").fill("cap 1")
    page.get_by_test_id("lines.new").click()
    page.get_by_text("Drop images of good parts.").wait_for()
    choose(page, "teach.files", files(tmp_path / "good", 14))
    page.get_by_test_id("teach.advice").get_by_text("You have 14 good images").wait_for()
    page.get_by_label("003.png is not good").last.click()
    page.get_by_test_id("teach.advice").get_by_text("You have 13 good images").wait_for()
    page.get_by_test_id("teach.next").click()
    page.get_by_text("Quick check").click()
    page.get_by_test_id("train.start").click()
    page.get_by_test_id("train.progress").wait_for()
    page.get_by_test_id("train.next").get_by_text("Set the limit").wait_for(timeout=TRAINED)
    samples = page.get_by_test_id("train.samples").get_by_role("listitem").count()
    page.get_by_test_id("train.next").click()
    page.get_by_test_id("limit.sentence").wait_for()
    judged = studio.judge(picture(95, note=500, size=(96, 64)), line="cap-1")
    page.get_by_test_id("nav.run").click()
    page.get_by_test_id("run.verdict").get_by_text(judged.json["verdict"]).first.wait_for()

    assert judged.status == 201
    assert samples >= 4
    assert studio.call("GET", "/v1/lines/cap-1/limit").json["good_images"] > 0
    assert (tmp_path / "studio/lines/cap-1/aside/not-good/003.png").is_file()


def test_images_that_were_unfolded_stay_so_while_others_are_looked_at(studio: RunningStudio, visit: Visit) -> None:
    studio.teach(1)
    (image,) = studio.call("GET", "/v1/lines/bolt/teach/images").json["items"]
    page = visit("", running=studio)

    def answer(route: Any) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        begin, number = int(query["cursor"][0]), int(query["limit"][0])
        shown = [{**image, "name": f"{place}.png"} for place in range(150)][begin : begin + number]
        route.fulfill(json={"items": shown, "next": begin + number if begin + number < 150 else None, "total": 150})

    page.route("**/teach/images?**", answer)
    page.goto(f"http://127.0.0.1:{studio.port}/studio/lines/bolt/teach")
    tiles = page.get_by_test_id("teach.grid").get_by_role("listitem")
    page.get_by_role("button", name="Show more (90 left)").click()
    page.get_by_role("button", name="Show more (30 left)").wait_for()

    with page.expect_response("**/teach/images?**"):
        studio.service.events.tell("teach", {"line": "bolt"})
    page.wait_for_timeout(50)

    assert tiles.count() == 120


def test_a_training_is_followed_as_it_learns(studio: RunningStudio, visit: Visit) -> None:
    studio.teach(6)
    page = visit("", running=studio)
    image = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    asked = 0

    def training() -> dict[str, Any]:
        looks = [{"words": f"epoch {n + 1} of 9", "share": n / 8, "caught": n, "count": 8} for n in range(asked + 1)]
        return {
            "number": 1,
            "state": "running",
            "error": "",
            "choice": "accurate",
            "method": "fusion",
            "images": {"learn": 6},
            "groups": 0,
            "grouped_by": "none",
            "who": "local",
            "at": "2026-11-30T08:00:00",
            "words": f"step 2 of 6: learning, epoch {asked + 1} of 9",
            "share": asked / 9,
            "seconds": asked,
            "left": 60.0,
            "stopping": False,
            "losses": [],
            "caught": looks,
            "comparison": {},
            "model_sha256": "",
            "live": False,
        }

    def answer(route: Any) -> None:
        nonlocal asked
        if route.request.url.endswith("/samples"):
            samples = [{"name": "0.png", "is_forged": True, "pictures": [image, image], "words": ""}]
            return route.fulfill(json=samples)
        if route.request.url.endswith("/1"):
            asked += 1
            return route.fulfill(json=training())
        return route.fulfill(json={**route.fetch().json(), "working": "bolt", "trainings": [training()]})

    page.route("**/trainings**", answer)
    page.goto(page.url + "lines/bolt/train")

    page.get_by_test_id("train.progress").get_by_text("epoch 4 of 9").wait_for()
    page.get_by_test_id("train.progress").get_by_text("about 1 min left").wait_for()
    page.get_by_test_id("train.curve").get_by_text("of 8 synthetic flaws score above all of 8 good images").wait_for()
    page.get_by_test_id("train.curve").get_by_text("at first 0 of 8 (epoch 1)").wait_for()
    page.get_by_test_id("train.samples").get_by_text("synthetic flaw · 0.png").wait_for()


def test_parts_before_the_camera_are_taught(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "camera").mkdir()
    for note in range(2):
        (tmp_path / "camera" / f"{note}.png").write_bytes(picture(90, note=note, size=(96, 64)))
    (tmp_path / "studio").mkdir()
    (tmp_path / "studio" / "settings.toml").write_text('[lines.bolt.camera]\nkind = "folder"\npath = "../camera"\n')
    running = RunningStudio(tmp_path / "studio")
    page = visit("lines/bolt/teach", running=running)

    page.get_by_test_id("teach.camera").click()
    page.get_by_test_id("teach.advice").get_by_text("You have 1 good image.").wait_for()
    page.get_by_test_id("teach.camera").click()
    page.get_by_test_id("teach.advice").get_by_text("You have 2 good images.").wait_for()

    page.close()
    running.stop()


def test_a_tiff_can_be_looked_at_and_drawn_on(studio: RunningStudio, visit: Visit, tmp_path: Path) -> None:
    studio.teach(5)
    Image.fromarray(np.full((64, 96), 30_000, np.uint16)).save(tmp_path / "0.tif")
    assert studio.add((tmp_path / "0.tif").read_bytes(), "0.tif").status == 201
    page = visit("lines/bolt/teach", running=studio)

    page.get_by_label("Look at 0.tif").last.click()
    width = page.locator("#look img").evaluate("async image => { await image.decode(); return image.naturalWidth; }")
    page.keyboard.press("Escape")
    for name in range(5):
        page.get_by_label(f"{name}.png is not good").last.click()
        page.get_by_test_id("teach.advice").get_by_text(f"You have {5 - name} good image").wait_for()
    page.get_by_test_id("teach.roi").click()

    page.locator("canvas:focus").wait_for()
    assert width == 96


def test_two_people_see_what_the_other_does(studio: RunningStudio, visit: Visit, tmp_path: Path) -> None:
    studio.teach(6)
    first, second = (visit("lines/bolt/teach", running=studio) for _ in range(2))
    second.get_by_test_id("teach.advice").get_by_text("You have 6 good images").wait_for()

    choose(first, "teach.files", files(tmp_path / "more", 2, first=50))
    second.get_by_test_id("teach.advice").get_by_text("You have 8 good images").wait_for()
    second.get_by_label("050.png is not good").last.click()

    first.get_by_test_id("teach.advice").get_by_text("You have 7 good images").wait_for()
    second.get_by_text("Undo").click()
    first.get_by_test_id("teach.advice").get_by_text("You have 8 good images").wait_for()


def test_a_region_is_drawn_with_keys_and_with_the_mouse(studio: RunningStudio, visit: Visit) -> None:
    studio.teach(5)
    page = visit("lines/bolt/teach", running=studio)
    page.get_by_test_id("teach.roi").click()
    canvas = page.get_by_test_id("teach.canvas")
    canvas.wait_for()
    page.locator("canvas:focus").wait_for()

    for keys in ("Enter", "Shift+ArrowRight", "Enter", "Shift+ArrowDown", "Enter", "c"):
        page.keyboard.press(keys)
    page.get_by_test_id("teach.exclude").click()
    box = canvas.bounding_box()
    for x, y in ((2, 2), (30, 2), (30, 20), (2, 2)):
        page.mouse.click(box["x"] + x, box["y"] + y)
    page.get_by_test_id("teach.keep").click()
    page.get_by_text("1 shape to look at, 1 left out").wait_for()

    region = studio.call("GET", "/v1/lines/bolt/teach").json["region"]
    assert (region["width"], region["height"]) == (96, 64)
    assert region["include"] == [[[48, 32], [68, 32], [68, 52]]]
    assert len(region["exclude"][0]) == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_teach_and_train_can_be_used_by_all(studio: RunningStudio, visit: Visit, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    studio.teach(12)
    studio.add(picture(200, size=(96, 64)), "bright.png")
    page = visit("lines/bolt/teach", running=studio, color_scheme=scheme, viewport={"width": 820, "height": 720})
    page.get_by_test_id("teach.oddest").wait_for()
    findings, widths = [], []
    for name, filled in (("teach", "teach.grid"), ("train", "train.choice")):
        page.goto(page.url.replace("/teach", f"/{name}"))
        page.get_by_test_id(filled).wait_for()
        widths.append(page.evaluate("document.documentElement.scrollWidth"))
        for item in axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            if item["impact"] in ("serious", "critical"):
                findings += [(name, item["id"], node["html"][:200]) for node in item["nodes"]]

    assert findings == []
    assert max(widths) <= 820
