"""The studio in a browser: each page's main action, keys, two people at once, and what a screen reader needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.browser.conftest import BROWSER, LINE, picture
from tests.line.test_shadow import until

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
PAGES = {
    "": "[data-testid='lines.card'] dl dt",
    "lines/bolt/limit": "[data-testid='limit.sentence']",
    "lines/bolt/try": "[data-testid='try.drop']",
    "lines/bolt/run": "rate-chart canvas",
    "lines/bolt/review": "[data-testid='review.says']",
    "lines/bolt/models": "[data-testid='models.row']",
    "lines/bolt/accept": "[data-testid='accept.plan']",
    "settings": "[data-testid='settings.versions']",
}
Visit = Callable[..., Any]


def files(tmp_path: Path, *brightnesses: int) -> list[str]:
    for brightness in brightnesses:
        (tmp_path / f"{brightness:03d}.png").write_bytes(picture(brightness, note=999))
    return sorted(str(path) for path in tmp_path.glob("*.png"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_serious_findings_of_axe(visit: Visit, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    findings = []
    page = visit("", color_scheme=scheme)
    home = page.url
    for path, filled in PAGES.items():
        page.goto(home + path)
        page.wait_for_selector(filled)
        for item in axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            if item["impact"] in ("serious", "critical"):
                findings += [(path, item["id"], node["html"][:200]) for node in item["nodes"]]

    assert findings == []


@pytest.mark.parametrize("width", [1280, 820])
def test_no_page_is_wider_than_the_screen(visit: Visit, width: int) -> None:
    page = visit("", viewport={"width": width, "height": 720})
    home, wide = page.url, []
    for path, filled in PAGES.items():
        page.goto(home + path)
        page.wait_for_selector(filled)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            wide.append(path)

    assert wide == []


def test_lines_show_what_runs_and_are_searched(visit: Visit) -> None:
    page = visit("")
    card = page.get_by_test_id("lines.card")

    card.get_by_text("of 12 parts").wait_for()
    assert "● running" in card.inner_text()
    page.get_by_test_id("lines.search").fill("nut")
    page.get_by_text("No line is called “nut”.").wait_for()
    page.get_by_test_id("lines.search").fill("bolt")
    card.get_by_role("link", name="Limit").click()
    page.get_by_test_id("limit.sentence").wait_for()


def test_light_and_dark_are_chosen_and_stay(visit: Visit) -> None:
    page = visit("settings", color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)

    page.get_by_test_id("nav.theme").click()
    page.goto(page.url)

    assert page.evaluate(colour) != light


def test_an_arrow_key_moves_the_limit_by_one_image_and_every_figure_follows_without_the_server(visit: Visit) -> None:
    page = visit("lines/bolt/limit")
    handle, sentence = page.get_by_test_id("limit.reject"), page.get_by_test_id("limit.sentence")
    page.locator('[data-testid="limit.reject"][aria-valuenow]').wait_for()
    handle.focus()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/image" not in request.url else None)

    told = []
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
        told.append(re.search(r"About (\d+) of 1,000 .* more than (\d+)", sentence.inner_text()).groups())

    assert told == [("100", "227"), ("150", "296")]
    page.locator(
        '[data-testid="limit.reject"][aria-valuetext="150 of 1,000 good parts rejected, at worst 296"]'
    ).wait_for()
    assert "reject" in page.get_by_test_id("limit.preview").inner_text()
    assert page.get_by_test_id("limit.edge").locator("img").count() >= 4
    assert asked == []


def test_the_limit_is_dragged_and_beyond_the_last_image_nothing_is_promised(visit: Visit) -> None:
    page = visit("lines/bolt/limit")
    page.locator('[data-testid="limit.reject"][aria-valuenow]').wait_for()  # drawn once the scores are there
    handle = page.get_by_test_id("limit.reject")
    before = handle.get_attribute("aria-valuenow")
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 200, y, steps=5)
    page.locator(f'[data-testid="limit.reject"]:not([aria-valuenow="{before}"])').wait_for()
    dragged = handle.get_attribute("aria-valuenow")
    page.mouse.move(x + 600, y, steps=5)
    page.mouse.up()

    assert int(dragged) > int(before)
    page.get_by_test_id("limit.beyond").wait_for()
    page.locator('[data-testid="limit.reject"][aria-valuenow="1"]').wait_for()
    assert page.get_by_test_id("limit.rate").get_by_role("button", name="10", exact=True).is_disabled()


def test_a_limit_is_applied_with_a_reason_and_taken_back(visit: Visit, site: Any) -> None:
    before = site.call("GET", f"{LINE}/limit").json
    page = visit("lines/bolt/limit")
    apply = page.get_by_test_id("limit.apply")
    page.get_by_test_id("limit.rate").get_by_role("button", name="50").click()
    page.get_by_test_id("limit.band").click()
    page.get_by_test_id("limit.band").click()
    assert apply.is_disabled()

    page.get_by_test_id("limit.reason").fill("complaint 4711")
    apply.click()
    page.get_by_text("Applied. Good parts rejected: about").wait_for()
    applied = site.call("GET", f"{LINE}/limit").json
    page.get_by_test_id("limit.undo").click()
    page.get_by_text("Back. Good parts rejected: about").wait_for()

    assert applied["limits"] != before["limits"]
    assert applied["review_limit"] is not None
    assert site.call("GET", f"{LINE}/limit").json == before
    audit = site.call("GET", "/v1/audit?kind=limit&line=bolt").json["items"]
    assert [entry["facts"]["reason"] for entry in audit] == ["back to the limits before", "complaint 4711"]


def test_somebody_elses_change_of_limits_is_not_overwritten(visit: Visit, site: Any) -> None:
    page = visit("lines/bolt/limit")
    page.get_by_test_id("limit.reject").focus()
    page.keyboard.press("ArrowLeft")
    before = site.call("GET", f"{LINE}/limit").json["limits"]
    site.call("PUT", f"{LINE}/limit", {"max_false_rejects": 0.2, "review_rate": "none", "reason": "meanwhile"})

    page.get_by_test_id("limit.reason").fill("mine")
    page.get_by_test_id("limit.apply").click()
    page.get_by_text("Somebody else has changed the limits").wait_for()

    assert site.call("GET", "/v1/audit?kind=limit&line=bolt&limit=1").json["items"][0]["facts"]["reason"] == "meanwhile"
    site.call("PUT", f"{LINE}/limit", {"use": before, "reason": "as it was"})
    visit.wrong[:] = [text for text in visit.wrong if "409" not in text]  # the browser logs what was refused


def test_a_step_that_was_chosen_goes_with_the_images_that_it_was_a_step_of(visit: Visit, site: Any) -> None:
    def of_another_model(route: Any) -> None:
        told = route.fetch().json()
        now = {**told["now"], "limits": "those of another model"}
        route.fulfill(json={**told, "steps": told["steps"][:2], "good": told["good"][:2], "now": now})

    page = visit("lines/bolt/limit")
    page.get_by_test_id("limit.reject").focus()
    page.keyboard.press("Home")
    page.get_by_test_id("limit.reset").wait_for()
    page.route("**/limit/scores", of_another_model)

    site.service.events.tell("model", {"line": "bolt"})

    page.get_by_test_id("limit.reset").wait_for(state="detached")


def test_images_are_tried_sorted_and_leave_nothing_behind(visit: Visit, site: Any, tmp_path: Path) -> None:
    store = site.service.site.store
    before = len(store.page("bolt", count=1000)), len(store.entries(count=1000))
    page = visit("lines/bolt/try")

    page.set_input_files("[data-testid='try.files']", files(tmp_path, 30, 120, 155, 240))
    page.get_by_text("4 images: 1 pass, 1 review, 2 reject").wait_for()
    rows = page.get_by_test_id("try.row")
    nearest = rows.first.inner_text()
    page.get_by_test_id("try.sort").select_option("highest")

    assert "155.png" in nearest
    assert "240.png" in rows.first.inner_text()
    assert (len(store.page("bolt", count=1000)), len(store.entries(count=1000))) == before


def test_tried_images_are_gone_through_by_keys_and_kept(visit: Visit, site: Any, tmp_path: Path) -> None:
    page = visit("lines/bolt/try")
    page.set_input_files("[data-testid='try.files']", files(tmp_path, 155, 250))
    page.get_by_text("2 images: 0 pass, 0 review, 2 reject").wait_for()

    page.keyboard.press("ArrowDown")
    page.locator("tr[aria-selected='true']", has_text="250.png").wait_for()
    page.keyboard.press("m")
    hidden = page.get_by_test_id("try.map").get_attribute("aria-pressed")
    page.locator("[data-testid='try.view'] canvas").hover(position={"x": 200, "y": 120})
    value = page.locator("[data-testid='try.view'] output").inner_text()
    page.keyboard.press("b")
    page.get_by_text("Kept as flawed, to measure with.").wait_for()

    assert hidden == "false"
    assert re.search(r"x \d+, y \d+ · map 0\.98\d* = 1\.96 × limit", value)
    entry = site.call("GET", "/v1/audit?kind=picked&line=bolt&limit=1").json["items"][0]
    assert (entry["facts"]["name"], entry["facts"]["label"]) == ("250.png", "flawed")


def test_an_image_that_cannot_be_kept_is_said_at_once(visit: Visit, tmp_path: Path) -> None:
    page = visit("lines/bolt/try")
    page.set_input_files("[data-testid='try.files']", files(tmp_path, 30))
    page.get_by_text("1 image: 1 pass, 0 review, 0 reject").wait_for()
    page.route("**/try?label=*", lambda route: route.fulfill(status=503, json={"detail": "nothing can be written"}))

    page.get_by_test_id("try.good").click()

    page.get_by_test_id("notices").get_by_text("nothing can be written").wait_for()
    assert "unreadable" not in page.get_by_test_id("try.summary").inner_text()
    visit.wrong[:] = [text for text in visit.wrong if "503" not in text]  # the browser logs what was refused


def test_an_unreadable_file_is_named_and_stops_no_other(visit: Visit, tmp_path: Path) -> None:
    page = visit("lines/bolt/try")
    (tmp_path / "000.png").write_bytes(b"no image")

    page.set_input_files("[data-testid='try.files']", files(tmp_path, 30))
    page.get_by_text("1 image: 1 pass, 0 review, 0 reject, 1 unreadable").wait_for()

    visit.wrong[:] = [text for text in visit.wrong if "422" not in text]  # the browser logs what was refused


def test_a_part_appears_as_it_is_judged(visit: Visit, site: Any) -> None:
    page = visit("lines/bolt/run")
    page.get_by_text("service live").wait_for()
    rejects = page.locator("[data-count='reject']")
    before = int(rejects.inner_text())

    site.judge(picture(230, note=500), "R-1")

    page.locator("[data-testid='run.verdict'][data-verdict='reject']").wait_for()
    page.get_by_text("part R-1").wait_for()
    assert int(rejects.inner_text()) == before + 1
    first = page.get_by_test_id("run.strip").get_by_role("button").first
    assert first.get_attribute("aria-label") == "reject, part R-1"
    site.judge(b"no image", "R-2")
    page.locator("[data-testid='run.verdict'][data-verdict='error']").wait_for()
    page.get_by_text("Treat it as a reject.").wait_for()


def test_a_part_of_the_strip_is_looked_at_while_others_come(visit: Visit, site: Any) -> None:
    page = visit("lines/bolt/run")
    page.get_by_text("service live").wait_for()
    part = page.get_by_role("button", name="part A-11")
    part.click()
    page.get_by_text("part A-11").wait_for()

    site.judge(picture(30, note=501), "R-3")
    page.get_by_role("button", name="part R-3").wait_for()

    assert page.get_by_test_id("run.verdict").get_attribute("data-verdict") == "reject"
    page.get_by_test_id("run.live").click()
    page.locator("[data-testid='run.verdict'][data-verdict='pass']").wait_for()


def test_a_page_that_lost_the_service_says_so_and_misses_no_part(visit: Visit, site: Any) -> None:
    page = visit("lines/bolt/run")
    page.get_by_text("service live").wait_for()
    events = site.service.events

    for reader in list(events._readers):
        events._loop.call_soon_threadsafe(events._cut_off, reader)
    page.get_by_test_id("run.alarm").wait_for()
    site.judge(picture(60, note=502), "R-4")

    page.get_by_role("button", name="pass, part R-4").wait_for()
    page.get_by_text("service live").wait_for()
    visit.wrong[:] = [text for text in visit.wrong if "ERR_" not in text]


def test_parts_are_reviewed_blind_by_keys_and_taken_back(visit: Visit, site: Any) -> None:
    first = site.call("GET", f"{LINE}/reviews/next").json
    page = visit("lines/bolt/review")
    page.get_by_text(f"part {first['part_id']}", exact=True).wait_for()
    page.locator("[data-main] canvas:not([aria-label='no image'])").wait_for()
    text = page.locator("main .viewer").inner_text()

    page.keyboard.press("2")
    page.keyboard.press("g")
    page.locator("[data-testid='review.undo']", has_text="good").wait_for()
    said = site.call("GET", f"{LINE}/reviews/{first['id']}").json[-1]["facts"]
    page.keyboard.press("z")
    page.get_by_text(f"part {first['part_id']}", exact=True).wait_for()

    assert not re.search("pass|reject|× limit", text)
    assert (said["label"], said["comment"], said["blind"], said["draw"]) == ("good", "dent", True, "passes")
    assert site.call("GET", f"{LINE}/reviews/next").json["id"] == first["id"]


def test_evidence_grows_with_each_audited_part(visit: Visit, site: Any) -> None:
    page = visit("lines/bolt/review")
    page.get_by_test_id("review.filter").get_by_role("button", name="audit of passes").click()
    says = page.get_by_test_id("review.says")
    before = re.search(r"in (\d+) audited passes", says.inner_text())

    page.get_by_test_id("review.good").click()

    looked_at = 1 + (int(before[1]) if before else 0)
    says.get_by_text(f"Misses: 0 flawed in {looked_at} audited pass").wait_for()
    page.keyboard.press("z")


def test_two_people_review_without_labelling_a_part_twice(visit: Visit, site: Any) -> None:
    anna, otto = visit("lines/bolt/review"), visit("lines/bolt/review")
    number = site.call("GET", f"{LINE}/reviews/next").json["part_id"]
    for page in (anna, otto):
        page.get_by_text(f"part {number}", exact=True).wait_for()
    waiting = otto.get_by_test_id("review.queue").inner_text()

    anna.keyboard.press("u")

    otto.get_by_text(f"Part {number} was labelled elsewhere: unclear.").wait_for()
    assert int(otto.get_by_test_id("review.queue").inner_text().split()[0]) == int(waiting.split()[0]) - 1
    anna.keyboard.press("z")
    anna.get_by_text(f"part {number}", exact=True).wait_for()


@pytest.mark.usefixtures("_trial_in_this_process")
def test_a_model_is_brought_judges_beside_the_line_goes_live_and_back(
    visit: Visit, new_service: Callable[..., Any], new_model: Callable[..., Path]
) -> None:
    running = new_service()
    page = visit("lines/bolt/models", running=running)
    row = page.locator("[data-testid='models.row'][data-number='2']")

    page.set_input_files("[data-testid='models.upload']", new_model(1.0, limit=0.3, map_limit=0.3))
    row.get_by_text("kept").wait_for()
    row.get_by_test_id("models.shadow").click()
    row.get_by_text("▲ shadow").wait_for()
    line = running.service.site.lines["bolt"]
    until(lambda: line.shadow._is_open)
    for brightness in (40, 90):
        running.judge(picture(brightness))
    page.get_by_test_id("models.flips").get_by_text("2 parts judged by both").wait_for()
    page.get_by_role("button", name="part 2 is good").click()
    row.get_by_test_id("models.activate").click()
    page.get_by_text("As a shadow it judged 2 parts, 1 of them differently.").wait_for()
    page.get_by_test_id("models.reason").fill("dents were missed")
    page.get_by_test_id("models.confirm").click()
    page.locator("[data-testid='models.row'][data-number='2'][data-state='live']").wait_for()
    page.get_by_test_id("models.rollback").click()
    page.get_by_test_id("models.reason").fill("too strict")
    page.get_by_test_id("models.confirm").click()
    page.locator("[data-testid='models.row'][data-number='1'][data-state='live']").wait_for()

    assert running.call("GET", f"{LINE}/reviews/2").json[-1]["facts"]["label"] == "good"
    audit = page.get_by_test_id("models.audit")
    audit.get_by_text("“dents were missed”").wait_for()
    audit.get_by_text("made live again, “too strict”").wait_for()


def test_entries_of_the_audit_stand_once_however_many_things_happen(visit: Visit, site: Any) -> None:
    before = site.call("GET", f"{LINE}/limit").json["limits"]
    site.call("PUT", f"{LINE}/limit", {"max_false_rejects": 0.3, "review_rate": "none", "reason": "once"})
    site.call("PUT", f"{LINE}/limit", {"use": before, "reason": "and back"})
    page, held, answered = visit("lines/bolt/models"), [], []
    entries = page.get_by_test_id("models.audit").locator("tbody tr")
    entries.get_by_text("“once”").wait_for()
    number = entries.count()

    def hold(route: Any) -> None:
        held.append(route)
        for each in held if len(held) == 2 else ():
            each.continue_()

    page.route("**/v1/audit?**", hold)
    page.on("requestfinished", lambda request: answered.append(request) if "/v1/audit?" in request.url else None)
    for _ in range(2):
        site.service.events.tell("model", {"line": "bolt"})
    while len(answered) < 2:
        page.wait_for_timeout(20)
    page.wait_for_timeout(20)

    assert entries.count() == number


def test_flips_that_were_closed_stay_closed(visit: Visit, site: Any) -> None:
    run = {"run": 1, "began": "2026-11-30T08:00:00", "who": "anna", "asked": 9, "parts": 2, "missed": 0, "flips": {}}
    (version,) = site.call("GET", f"{LINE}/models").json
    page, held = visit(""), []
    shadow = {**run, "ended": "complete", "flipped": [], "milliseconds": {}}
    page.route(f"**{LINE}/models", lambda route: route.fulfill(json=[{**version, "shadow": {**run, "ended": None}}]))
    page.route("**/shadow?limit=*", lambda route: route.fulfill(json=shadow))
    page.goto(page.url + "lines/bolt/models")
    page.get_by_test_id("models.compare").click()
    panel = page.get_by_test_id("models.flips")
    panel.wait_for()
    page.route("**/shadow?limit=*", lambda route: held.append(route))

    site.service.events.tell("model", {"line": "bolt"})
    while not held:
        page.wait_for_timeout(20)
    panel.get_by_role("button", name="Close").click()
    held[0].fulfill(json=shadow)
    page.wait_for_timeout(100)

    assert panel.count() == 0


def test_an_operator_signs_in_and_may_look_but_not_apply(visit: Visit, new_service: Callable[..., Any]) -> None:
    tokens = [{"name": "otto", "role": "operator", "token": "an operator's token"}]
    running = new_service(tokens=tokens)
    page = visit("lines/bolt/limit", running=running)

    page.get_by_test_id("signin.token").fill("an operator's token")
    page.get_by_test_id("signin.send").click()
    page.get_by_test_id("limit.sentence").wait_for()
    page.get_by_test_id("limit.reject").focus()
    page.keyboard.press("ArrowLeft")

    assert page.get_by_test_id("limit.reason").is_disabled()
    assert "otto" in page.locator("header").inner_text()
    page.get_by_test_id("nav.sign_out").click()
    page.get_by_test_id("signin.token").wait_for()


def test_a_line_without_a_model_says_so_on_every_page(visit: Visit, new_service: Callable[..., Any]) -> None:
    running = new_service({"model": None})
    page = visit("", running=running)

    page.get_by_text("no model yet").wait_for()
    for name, text in (
        ("limit", "The line has no model yet"),
        ("try", "The line has no model yet"),
        ("run", "The line has no model yet"),
        ("accept", "The line has no model yet"),
        ("models", "The line has no model yet"),
    ):
        page.goto(f"http://127.0.0.1:{running.port}/studio/lines/bolt/{name}")
        page.get_by_text(text).first.wait_for()


def test_a_study_is_carried_out_part_by_part_and_signed(
    visit: Visit, new_service: Callable[..., Any], tmp_path: Path
) -> None:
    running = new_service()
    page = visit("lines/bolt/accept", running=running)
    for name, number in (("good", 1), ("flawed", 1), ("repeats", 2)):
        page.get_by_test_id(f"accept.{name}").fill(str(number))
    page.get_by_text("4 placements.").wait_for()
    page.get_by_test_id("accept.begin").click()

    for note in range(4):
        asked = page.locator(".place").inner_text()
        image = tmp_path / f"{note}.png"
        image.write_bytes(picture(240 if asked.startswith("bad") else 20, note=note))
        page.get_by_test_id("accept.image").set_input_files(str(image))
        page.get_by_test_id("accept.run").get_by_text(f"{note + 1} of 4").wait_for()
    page.get_by_test_id("accept.run").get_by_text("All parts were placed").wait_for()
    page.get_by_test_id("accept.end").click()
    page.get_by_test_id("accept.signed").fill("M. Kern")
    page.get_by_test_id("accept.confirm").click()

    result = page.get_by_test_id("accept.result")
    result.get_by_text("signed by M. Kern").wait_for()
    assert "● acceptable" in result.inner_text()
    page.get_by_test_id("nav.models").click()
    page.get_by_test_id("models.row").get_by_text("acceptable").wait_for()


def test_limits_from_audited_parts_are_seen_before_they_are_used(visit: Visit, new_service: Callable[..., Any]) -> None:
    running = new_service({"audit_share": 1.0})
    for number in range(21):
        record = running.judge(picture(40 + number, note=number)).json
        running.call("POST", f"{LINE}/reviews/{record['id']}", {"label": "good"})
    page = visit("lines/bolt/models", running=running)

    page.get_by_test_id("models.hint").get_by_text("21 good parts of the random audit").wait_for()
    page.get_by_test_id("recal.preview").click()
    page.get_by_test_id("recal.before_after").get_by_text("from audited parts").wait_for()
    page.get_by_test_id("recal.apply").click()
    page.get_by_test_id("models.reason").fill("parts of this line")
    page.get_by_test_id("models.confirm").click()

    page.get_by_test_id("models.hint").get_by_text("the limits rest on them").wait_for()
    assert running.call("GET", f"{LINE}/limit").json["good_images"] == 21


def test_the_part_that_is_chosen_keeps_its_shape_and_colour(visit: Visit) -> None:
    page = visit("lines/bolt/run")
    button = page.get_by_test_id("run.strip").get_by_role("button").first
    button.wait_for()
    colour = "element => getComputedStyle(element).color"
    before = button.evaluate(colour)

    button.click()
    page.locator("[data-testid='run.strip'] button[aria-pressed='true']").wait_for()

    assert button.evaluate(colour) == before
