"""The script of the report, in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from flawsmith.report.data import Example, LimitChoice, Picture, ReportData, TriedLimit
from flawsmith.report.html import render_report
from flawsmith.report.plots import data_address, encoded

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

MOVE = """<script>
const slider = document.querySelector("#try");
slider.value = 0;
slider.dispatchEvent(new Event("input"));
const text = (query) => [...document.querySelectorAll(query)].map((item) => item.textContent);
const names = (kind) => text(`#${kind} .name`).join("+");
const kinds = ["miss", "false_alarm", "found", "passed"];
document.querySelector("th button").click();
document.body.textContent = [
  text("[data-follows]").join(), text("#sentence").join(), text(".count").join(), kinds.map(names).join(),
  text("tr .verdict").join(), document.querySelector("#zoom").open, document.querySelector("#line").style.left !== "",
].join("|");
</script></body>"""


@pytest.fixture(scope="module")
def page() -> str:
    picture = Picture(data_address(encoded(np.full((30, 40, 3), 90, np.uint8), 10**6)), "image", "an image")
    cases = [("a", False, 1.0), ("b", False, 3.0), ("c", True, 2.0), ("d", True, 5.0), ("e", True, 4.0)]
    examples = [
        Example(name, "dent" if flawed else "good", flawed, score, "reject" if score > 3.5 else "pass", [picture])
        for name, flawed, score in cases
    ]
    steps = [
        TriedLimit(1.5, "0 of 3", "1 of 2", "A limit of 1.5 rejects one."),
        TriedLimit(3.5, "1 of 3", "0 of 2", "The limit in use.", in_use=True),
    ]
    scores = {"held_out": np.array([1.0, 3.0]), "forged": np.array([2.0, 4.0, 5.0])}
    choice = LimitChoice(["Limit"], [["3.5"]], [], steps)
    return render_report(ReportData(title="bolt", examples=examples, choice=choice, scores=scores, limit=3.5))


def browse(html: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The page as the browser has it, and what the browser says of it."""
    (folder / "page.html").write_text(html, encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder}/user",
    ]
    command = [str(BROWSER), *options, "--dump-dom", (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_counts_sentence_pictures_and_verdicts_follow_the_slider(page: str, tmp_path: Path) -> None:
    free = re.sub(r"<meta http-equiv[^>]*>", "", page)

    shown = browse(free.replace("</body>", MOVE), tmp_path).stdout

    *texts, opened, moved = re.sub("<[^>]*>", "", shown[shown.index("<body") :]).strip().split("|")
    assert texts == [
        "0 of 3,1 of 2",
        "A limit of 1.5 rejects one.",
        "0,1,3,1",
        ",b,c+e+d,a",
        "■ reject,■ reject,■ reject,■ reject,● pass",
    ]
    assert (opened, moved) == ("true", "true")


def test_policy_lets_this_script_run_and_no_other(page: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "changed").mkdir()

    whole = browse(page, tmp_path / "whole")
    changed = browse(page.replace('"use strict";', '"use strict"; '), tmp_path / "changed")

    assert "Content Security Policy" not in whole.stderr
    assert "Content Security Policy" in changed.stderr
