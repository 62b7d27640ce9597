"""The Run page of a line with a camera whose parts grow dark, and with outputs, one of which nobody receives."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser.conftest import BROWSER, LINE, picture
from tests.line.outputs.conftest import SECRET
from tests.line.test_shadow import until

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
BRIGHT, DARK = 120, 60
"""Parts of the first and of the second half."""
Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def drifted(new_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service whose camera has shown all of its folder, the second half darker, and is over."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    for number in range(BRIGHT + DARK):
        brightness = rng.integers(60, 140) if number < BRIGHT else rng.integers(20, 40)
        (folder / f"{number:03}.png").write_bytes(picture(int(brightness), note=number))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # where nobody listens afterwards
    webhook = {"kind": "webhook", "name": "mes", "url": f"http://127.0.0.1:{port}/", "secret": SECRET}
    running = new_service(
        {
            "camera": {"kind": "folder", "path": folder, "trigger": "free", "rate": 300, "loop": False},
            "outputs": [webhook, {"kind": "csv", "folder": tmp_path_factory.mktemp("table")}],
            "queue": 1000,
        }
    )
    until(lambda: running.call("GET", f"{LINE}/camera").json["state"] == "ended")
    until(lambda: running.call("GET", f"{LINE}/drift").json["record"] >= BRIGHT + DARK)
    until(lambda: running.call("GET", f"{LINE}/outputs").json[0]["failing_since"])
    return running


@pytest.fixture
def busy(new_service: Callable[..., Any], tmp_path: Path) -> Any:
    """A service whose camera takes pictures."""
    (tmp_path / "0.png").write_bytes(picture(40))
    return new_service({"camera": {"kind": "folder", "path": tmp_path, "trigger": "free", "rate": 5}})


def test_a_drift_is_told_on_the_card_and_leads_to_what_is_known(visit: Visit, drifted: Any) -> None:
    page = visit("", running=drifted)

    page.get_by_test_id("lines.card").get_by_role("link", name="drift since").click()

    panel = page.get_by_test_id("run.drift")
    panel.locator("drift-chart canvas").wait_for()
    assert "Scores are lower than before since" in panel.get_by_test_id("drift.says").inner_text()
    label = panel.get_by_test_id("drift.curve").get_attribute("aria-label")
    assert "an alarm at 1,000. It began about" in label
    moved = panel.locator("tr[data-moved='true']", has_text="brightness")
    assert "yes" in moved.inner_text()
    odd = panel.get_by_test_id("drift.odd").get_by_role("link")
    odd.first.wait_for()
    number = odd.first.get_attribute("href").removeprefix("?part=")
    odd.first.click()
    page.get_by_test_id("run.image").get_by_text(f"part number {number}").wait_for()
    assert int(number) > BRIGHT


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_alarm_and_the_panel_of_drift_have_no_serious_findings_of_axe(
    visit: Visit, drifted: Any, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit("lines/bolt/run#drift", running=drifted, color_scheme=scheme, viewport={"width": 820, "height": 1100})
    page.locator("drift-chart canvas").wait_for()

    findings = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]

    assert [item["id"] for item in findings if item["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 820


def test_a_drift_is_acknowledged_with_a_reason(visit: Visit, drifted: Any) -> None:
    page = visit("lines/bolt/run", running=drifted)
    alarm = page.get_by_test_id("run.alarm")
    alarm.get_by_text("Parts are not as they were since").wait_for()
    alarm.get_by_test_id("run.why").click()
    page.get_by_test_id("drift.says").wait_for()
    below = page.evaluate("document.querySelector('#drift').getBoundingClientRect().top")
    assert below >= alarm.bounding_box()["y"] + alarm.bounding_box()["height"]  # not hidden behind it
    assert page.evaluate("document.activeElement.closest('#drift') !== null")

    page.get_by_test_id("run.reason").fill("lamp cleaned")
    page.get_by_test_id("run.reference").select_option("calibration")
    page.get_by_test_id("run.reference").press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Acknowledged: the test of drift begins anew").wait_for()

    page.get_by_test_id("run.drift").get_by_role("heading", name="calm").wait_for()
    assert "Parts are not" not in alarm.inner_text()
    begun = drifted.call("GET", "/v1/audit?kind=drift&line=bolt&limit=1").json["items"][0]["facts"]
    assert (begun["because"], begun["reason"], begun["reference"]) == ("acknowledged", "lamp cleaned", "calibration")


def test_outputs_and_camera_are_told_in_words_and_a_failure_across_the_top(visit: Visit, drifted: Any) -> None:
    page = visit("lines/bolt/run", running=drifted)
    page.get_by_test_id("run.alarm").get_by_text("Output mes has failed since").wait_for()

    camera = page.get_by_test_id("health.camera").inner_text()
    mes, table = (place.inner_text() for place in page.get_by_test_id("health.output").all())

    assert "○ camera ended since" in camera
    assert f"{BRIGHT + DARK} images" in camera
    assert "■ mes failing since" in mes
    assert f"0 delivered · {BRIGHT + DARK} behind" in mes
    assert "cannot be reached" in mes
    assert "● csv up to date" in table
    assert f"{BRIGHT + DARK} delivered" in table


def test_a_camera_is_paused_and_resumed_with_a_reason_by_keys(visit: Visit, busy: Any) -> None:
    page = visit("lines/bolt/run", running=busy)
    button = page.get_by_test_id("run.pause")

    button.focus()
    page.keyboard.press("Enter")
    page.get_by_test_id("run.pause_reason").fill("cleaning")
    page.keyboard.press("Enter")
    bar = page.get_by_test_id("run.paused")
    bar.get_by_text("cleaning. The camera takes no pictures. Line told: offline.").wait_for()
    paused = busy.call("GET", "/v1/lines").json[0]["camera"]
    page.get_by_test_id("health.camera").get_by_text("paused", exact=True).wait_for()
    button.click()
    page.get_by_test_id("run.pause_reason").fill("clean")
    page.get_by_test_id("run.confirm").click()
    bar.wait_for(state="detached")

    assert (paused, busy.call("GET", "/v1/lines").json[0]["camera"]) == ("paused", "running")
    entries = busy.call("GET", "/v1/audit?kind=camera&line=bolt").json["items"]
    assert [entry["facts"] for entry in entries] == [
        {"paused": False, "reason": "clean"},
        {"paused": True, "reason": "cleaning"},
    ]


def test_a_lost_camera_is_told_across_the_top_as_it_happens(visit: Visit, busy: Any) -> None:
    page = visit("lines/bolt/run", running=busy)
    page.get_by_test_id("health.camera").get_by_text("running").wait_for()
    camera = busy.service.site.lines["bolt"].camera

    folder = camera.settings.path
    (folder / "0.png").unlink()
    page.get_by_test_id("run.alarm").get_by_text("The camera has failed since").wait_for()

    assert "failing" in page.get_by_test_id("health.camera").inner_text()
    page.goto(page.url.replace("lines/bolt/run", ""))
    page.get_by_test_id("lines.card").get_by_text("■ camera failing").wait_for()


def test_a_line_without_a_camera_has_nothing_to_pause(visit: Visit, site: Any) -> None:
    page = visit("lines/bolt/run")
    page.get_by_test_id("run.health").get_by_text("drift: calm").wait_for()

    assert page.get_by_test_id("run.pause").count() == page.get_by_test_id("health.camera").count() == 0
