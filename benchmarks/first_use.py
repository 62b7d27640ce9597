"""A stopwatch beside someone who uses the studio for the first time: from the command to a verdict on an own image.

    python benchmarks/first_use.py [--choice quick|accurate] [--pictures FOLDER]

60 drawn parts are taught in a browser as a person would, every click counted; a person's own seconds (reading, aiming)
are not simulated. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from flawsmith.synthesis.demo_parts import render_product_line

TRAINED = 900_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choice", choices=["quick", "accurate"], default="accurate")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    render_product_line(folder / "parts", parts=["bracket"], seed=0)
    parts = folder / "parts" / "bracket"
    steps: list[tuple[str, int, float]] = []
    start = time.perf_counter()
    command = [sys.executable, "-m", "flawsmith", "studio", str(folder / "studio"), "--port", "0", "--no-browser"]
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        home = process.stdout.readline().strip()
        steps.append(("`flawsmith studio` has printed its address", 0, time.perf_counter() - start))
        with sync_playwright() as driver:
            path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            _walk(page, home, parts, options, steps, start)
            browser.close()
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
    clicks = 0
    print("| step | clicks so far | seconds so far |\n|---|---|---|")
    for words, more, seconds in steps:
        clicks += more
        print(f"| {words} | {clicks} | {seconds:.1f} |")


def _walk(
    page: Any, home: str, parts: Path, options: argparse.Namespace, steps: list[tuple[str, int, float]], start: float
) -> None:
    def step(words: str, clicks: int) -> None:
        steps.append((words, clicks, time.perf_counter() - start))
        if options.pictures is not None:
            options.pictures.mkdir(exist_ok=True)
            page.screenshot(path=options.pictures / f"{len(steps):02d}.png")

    page.goto(f"{home}/studio/")
    page.get_by_test_id("lines.name").wait_for()
    step("the first page is there", 0)
    page.get_by_test_id("lines.name").click()
    page.keyboard.type("bracket")
    page.keyboard.press("Enter")
    page.get_by_test_id("teach.drop").wait_for()
    step("a line is made: name, Enter", 1)
    with page.expect_file_chooser() as chooser:
        page.get_by_test_id("teach.files").click()
    chooser.value.set_files(sorted(map(str, (parts / "train" / "good").iterdir())))
    page.get_by_text("You have 60 good images").wait_for(timeout=60_000)
    step("60 images are in (Choose images, all of them, Open)", 3)
    page.get_by_test_id("teach.findings").get_by_text("looking at the images").wait_for(
        state="detached", timeout=60_000
    )
    step("they are checked, what is odd is shown", 0)
    page.get_by_test_id("teach.next").click()
    page.get_by_test_id("train.choice").wait_for()
    if options.choice == "quick":
        page.get_by_text("Quick check").click()
    page.get_by_test_id("train.start").click()
    page.get_by_test_id("train.progress").wait_for()
    step(f"training works ({options.choice})", 2 + (options.choice == "quick"))
    page.wait_for_timeout(15_000)
    step("(a look while it trains)", 0)
    page.get_by_test_id("train.next").get_by_text("Set the limit").wait_for(timeout=TRAINED)
    step("it is trained", 0)
    page.get_by_test_id("train.next").click()
    page.get_by_test_id("limit.sentence").wait_for(timeout=30_000)
    step("the limit is shown and in use", 1)
    page.get_by_test_id("nav.try").click()
    page.get_by_test_id("try.drop").wait_for()
    page.get_by_test_id("try.files").set_input_files(str(sorted((parts / "test" / "scratch").iterdir())[0]))
    page.locator("[data-testid='try.list'] .verdict").first.wait_for(timeout=30_000)
    step("the first verdict on an own image", 4)


if __name__ == "__main__":
    main()
