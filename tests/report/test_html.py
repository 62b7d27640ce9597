from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flawsmith.metrics.collect import EvaluationState, ScoredImage, accumulate
from flawsmith.metrics.summary import summarise
from flawsmith.models.diagnostics import FeatureCloud, LineChart, Pictures
from flawsmith.report.data import (
    Example,
    FactGroup,
    LimitChoice,
    Picture,
    ReportData,
    TriedLimit,
)
from flawsmith.report.html import render_report, write_report
from flawsmith.report.plots import COLOURS, data_address, encoded
from flawsmith.report.style import page_style
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;.png"
SIZE = (48, 64)


class Page(HTMLParser):
    """Collects what the tests ask about, and checks that tags close."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


def records() -> Iterator[ScoredImage]:
    generator = np.random.default_rng(0)
    for index in range(24):
        flawed = index % 2 == 1
        scores = generator.normal(size=SIZE).astype(np.float32)
        mask = np.zeros(SIZE, dtype=bool)
        if flawed:
            mask[5:15, 10:20] = True
            scores[mask] += 1.0
        score = float(generator.normal() + flawed)
        verdict = "reject" if score > 0.8 else "review" if score > 0.6 else "pass"
        defect = ("dent", "scratch")[index % 4 // 2] if flawed else "good"
        yield ScoredImage(f"{index:02d}.png", score, verdict, defect, flawed, scores, mask if flawed else None)


JPEG = data_address(encoded(np.full((30, 40, 3), 90, np.uint8), 10**6))


def example(index: int = 0, **changes: object) -> Example:
    fields: dict = {
        "name": f"test/dent/{index:03d}.png",
        "defect": "dent",
        "flawed": True,
        "score": 0.1 * index,
        "verdict": "pass",
        "pictures": [Picture(JPEG, "image", "an image"), Picture(JPEG, "stretched map: 0 to 1", "its map")],
    }
    return Example(**(fields | changes))


def choice() -> LimitChoice:
    steps = [
        TriedLimit(0.2, "1 of 12", "9 of 12", "A limit of 0.2."),
        TriedLimit(0.8, "5 of 12", "3 of 12", "The limit in use 0.8.", in_use=True),
    ]
    rows = [["0.8", "5 of 12", "3 of 12", "in use"]]
    return LimitChoice(["Limit", "Flaws missed", "Good parts rejected", ""], rows, ["The lowest limit is 0.9."], steps)


@pytest.fixture(scope="module")
def evidence() -> EvaluationState:
    return accumulate(records())


@pytest.fixture(scope="module")
def full(evidence: EvaluationState) -> ReportData:
    return ReportData(
        title="bolt",
        subtitle="pbas fast",
        facts=[FactGroup("Model", [("Method", "PBAS"), ("Seed", "0")]), FactGroup("Data", [("Good", "170")])],
        evaluation=summarise(evidence, n_resamples=50),
        curves={
            "image_auroc": evidence.roc_curve(),
            "aupro": evidence.pro_curve(),
            "pixel_auroc": evidence.pixel_roc_curve(),
        },
        scores={
            "good": evidence.scores[~evidence.flawed],
            "flawed": evidence.scores[evidence.flawed],
            "held_out": np.linspace(-1, 1, 20),
            "forged": np.linspace(0, 4, 20),
        },
        limit=0.8,
        review_limit=0.6,
        limit_statement="20 good images stand behind the limit.",
        promise="about 10 of 1,000; 95 % sure: no more than 24",
        choice=choice(),
        examples=[
            example(),
            example(1, flawed=False, defect="good", verdict="reject"),
            example(2, verdict="reject"),
            example(3, flawed=False, defect="good"),
        ],
        training=[{"step": step, "loss": 1.0 / (step + 1), "lr": 0.1} for step in range(30)],
        diagnostics=[
            FactGroup("Hypothesis", [("Radius", "14")]),
            LineChart("Radii", "Over training.", [0, 1], {"r1": [2.0, 1.5]}, "distance"),
            FeatureCloud("Features", "Of single positions.", {"normal": np.random.default_rng(0).normal(size=(20, 6))}),
            Pictures("Synthetic flaws", "As seen.", [("mask", np.zeros((20, 30), dtype=np.uint8))] * 4, group=2),
        ],
        notes=["Two duplicates were left out."],
    )


@pytest.fixture(scope="module")
def html(full: ReportData) -> str:
    return render_report(full)


def good_only() -> ReportData:
    return ReportData(
        title="bolt",
        scores={"held_out": np.linspace(0, 1, 20), "forged": np.array([0.5, 2.0])},
        limit=1.0,
        training=[{"epoch": 1, "loss": 0.5}],
    )


def test_page_is_well_formed_and_shows_every_part(html: str) -> None:
    page = Page(html)

    assert page.open == []
    for heading in (
        "What to do next",
        "Verdicts and scores",
        "Other limits",
        "By type of defect",
        "Flaws missed: 1",
        "Good images rejected: 1",
        "Flaws found: 1",
        "Good images passed: 1",
        "All 4 images in one table",
        "Figures for researchers",
        "Training",
        "Model and data",
        "Notes",
    ):
        assert heading in page.words
    for text in (
        "image AUROC",
        "AUPRO",
        "dent",
        "scratch",
        "95 % interval",
        "Two duplicates",
        "stand behind",
        "Of single positions.",
        "t-SNE",
    ):
        assert text in page.words
    assert "No test images were evaluated" not in page.words


def test_page_refers_to_nothing_outside(html: str) -> None:
    page = Page(html)

    assert not re.search(r"(https?:)?//\w", re.sub(r"data:[\w/+]+;base64,[\w+/=]+", "", html))
    assert page.all("link") == page.all("iframe") == []
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert "url(" not in html
    assert "@import" not in html
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_no_script_runs_but_the_one_that_the_policy_names(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"script-src 'sha256-{digest}'" in html
    assert not re.search(r"fetch|XMLHttp|import\(|eval|innerHTML", script)
    assert not any(name.startswith("on") for _, given in Page(html).tags for name in given)


def test_counts_and_promise_come_before_any_other_number(html: str) -> None:
    words = Page(html).words

    places = [words.index(text) for text in ("Flaws missed", "Good parts rejected", "Promised", "What to do next")]
    assert places == sorted(places)
    assert places[-1] < words.index("image AUROC")
    assert "10 of 1,000good parts rejected on average; 95 % sure: no more than 24" in words


def test_figures_for_researchers_are_folded_away(html: str) -> None:
    head = html[: html.index("Figures for researchers")]

    assert "AUROC" not in re.sub(r"data:[^\"]+", "", head)
    assert head.rindex("<details>") > head.rindex("</details>")


def test_page_tells_its_script_every_limit_and_every_image(html: str) -> None:
    page = Page(html)

    (slider,) = (given for given in page.all("input") if given.get("id") == "try")
    assert json.loads(slider["data-steps"] or "") == [
        [step.limit, step.missed, step.rejected, step.sentence] for step in choice().steps
    ]
    assert (slider["value"], slider["data-review"]) == ("1", "0.6")
    cards = [given for given in page.all("figure") if "data-score" in given]
    assert sorted((card["data-score"], card["data-flawed"]) for card in cards) == [
        ("0.0", "1"),
        ("0.1", "0"),
        ("0.2", "1"),
        ("0.30000000000000004", "0"),
    ]
    assert {given["data-show"] for given in page.all("button") if "data-show" in given} == {
        card["id"] for card in cards
    }
    (line,) = (given for given in page.all("i") if given.get("id") == "line")
    left, right, low, high = map(float, (line["data-axis"] or "").split())
    assert 0 < left < right < 1 and low < 0.8 < high


def test_verdicts_have_a_shape_beside_their_colour(html: str) -> None:
    assert {"● pass", "■ reject"} <= {text.strip() for text in Page(html).text}


def test_page_says_when_and_of_what_it_was_made_where_it_is_told() -> None:
    data = ReportData(title="bolt", made=[("Made", "2026-11-30 12:00 UTC"), ("Images", "45")])

    assert "Made 2026-11-30 12:00 UTC · Images 45" in Page(render_report(data)).words


@pytest.mark.parametrize(("rejected", "marked"), [(9, "bad"), (0, "fine")])
def test_broken_promise_is_marked(rejected: int, marked: str) -> None:
    good = [ScoredImage(f"{n}.png", 1.0, "reject" if n < rejected else "pass", "good", False) for n in range(9)]
    decision = Decision(limit=0.5, map_limit=0.5, stated_false_reject_rate=0.01, n_good=199)
    result = summarise(accumulate(good), decision=decision, n_resamples=0)

    page = Page(render_report(ReportData(title="bolt", evaluation=result, promise=result.promise())))

    assert {given.get("class") for given in page.all("div")} & {"bad", "fine"} == {marked}
    assert ("set the limit anew" in page.words) == (marked == "bad")


def test_options_in_advice_do_not_break_at_the_end_of_a_line() -> None:
    html = render_report(ReportData(title="bolt", next_steps=["train with --smallest-flaw <8>"]))

    assert "train with <code>--smallest-flaw</code> &lt;8&gt;" in html
    assert "code { white-space: nowrap;" in html


def test_pictures_have_alternative_texts_and_tables_have_headers(html: str) -> None:
    page = Page(html)

    assert all(image.get("alt") for image in page.all("img"))
    assert all(header.get("scope") in {"row", "col"} for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 9
    assert page.all("html")[0]["lang"] == "en"


def test_same_data_give_the_same_bytes(full: ReportData, tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", full)
    write_report(tmp_path / "b.html", full)

    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_worst_misses_come_first() -> None:
    examples = [example(index, score=score) for index, score in enumerate((0.5, 0.1, 0.3))]

    words = Page(render_report(ReportData(title="bolt", examples=examples))).words

    places = [words.index(text) for text in ("001.png", "002.png", "000.png")]
    assert places == sorted(places)


def test_hostile_names_are_text_and_nothing_else(evidence: EvaluationState) -> None:
    renamed = [
        ScoredImage(HOSTILE, 1.0, "pass", HOSTILE, True),
        ScoredImage("good.png", 0.0, "pass", "good", False),
    ]
    data = ReportData(
        title=HOSTILE,
        subtitle=HOSTILE,
        facts=[FactGroup(HOSTILE, [(HOSTILE, HOSTILE)])],
        evaluation=summarise(accumulate(renamed), n_resamples=0),
        limit_statement=HOSTILE,
        made=[(HOSTILE, HOSTILE)],
        choice=LimitChoice([HOSTILE], [[HOSTILE]], [HOSTILE], [TriedLimit(1.0, HOSTILE, HOSTILE, HOSTILE, True)]),
        examples_are=HOSTILE,
        examples=[example(name=HOSTILE, defect=HOSTILE, verdict=HOSTILE, pictures=[Picture(JPEG, HOSTILE, HOSTILE)])],
        training=[{"step": 0, "_loss$" + HOSTILE: 1.0}, {"step": 1, "_loss$" + HOSTILE: 0.5}],
        diagnostics=[
            LineChart(HOSTILE, HOSTILE, [0, 1], {"_$" + HOSTILE: [0.0, 1.0]}, HOSTILE, HOSTILE),
            FeatureCloud(HOSTILE, HOSTILE, {"_$" + HOSTILE: np.eye(3)}),
            Pictures(HOSTILE, HOSTILE, [(HOSTILE, np.zeros((8, 8), dtype=np.uint8))]),
        ],
        next_steps=[HOSTILE],
        notes=[HOSTILE],
    )

    page = Page(render_report(data))

    assert len(page.all("script")) == 1
    assert not any("onerror" in image for image in page.all("img"))
    assert page.words.count("<script>alert('x')</script>") >= 8


def test_names_that_are_no_text_do_not_stop_the_report(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")

    write_report(tmp_path / "report.html", ReportData(title="bolt", examples=[example(name=name)]))

    assert "caf" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_test_images_it_shows_training_and_calibration_and_says_so() -> None:
    page = Page(render_report(good_only()))

    assert "No test images were evaluated" in page.words
    assert "Synthetic flaws missed1 of 2" in page.words
    assert "Held-out good images rejected0 of 20" in page.words
    assert "Training" in page.words
    assert "By type of defect" not in page.words
    assert len(page.all("img")) == 2


def test_histogram_shows_held_out_good_images_and_forged_flaws() -> None:
    (histogram,) = (
        image for image in Page(render_report(good_only())).all("img") if "Histogram" in (image["alt"] or "")
    )

    assert histogram["alt"] == "Histogram of image scores: 20 held-out good, 2 synthetic flaws."
    drawn = base64.b64decode((histogram["src"] or "").split(",")[1]).decode()
    assert COLOURS["held_out"].lower() in drawn
    assert COLOURS["forged"].lower() in drawn


def test_diagnostics_follow_the_losses_in_their_order(html: str) -> None:
    words = Page(html).words

    places = [
        words.index(text) for text in ("Losses", "Hypothesis", "Radii", "Features", "Synthetic flaws", "Model and")
    ]
    assert places == sorted(places)


def test_diagnostics_need_no_losses() -> None:
    table = FactGroup("Hypothesis", [("Radius", "14")])

    page = Page(render_report(ReportData(title="bolt", diagnostics=[table])))

    assert "Training Hypothesis Radius14" in page.words


def test_pictures_of_a_group_stay_in_one_row(html: str) -> None:
    page = Page(html)

    strip = next(index for index, (tag, given) in enumerate(page.tags) if given.get("class") == "strip")
    inside = [given.get("class") for tag, given in page.tags[strip + 1 :] if tag == "div"]
    assert page.tags[strip][1]["style"] == "--group: 2"
    assert inside[:6] == ["tiles", None, None, "tiles", None, None]


def test_nothing_but_a_title_is_a_page() -> None:
    page = Page(render_report(ReportData(title="bolt")))

    assert page.open == []
    assert page.all("img") == []


def test_undefined_figures_are_dashes() -> None:
    good = (record for record in records() if not record.flawed)
    result = summarise(accumulate(good), n_resamples=0)

    page = Page(render_report(ReportData(title="bolt", evaluation=result)))

    assert "image AUROC––" in page.words
    assert "Good parts rejected" in page.words
    assert "Flaws missed" not in page.words
    assert "0 of 0" not in page.words


def test_odd_numbers_do_not_stop_the_plots() -> None:
    data = ReportData(
        title="bolt",
        scores={
            "good": np.array([np.inf, -np.inf]),
            "held_out": np.array([]),
            "forged": np.full(3, 7.0),
        },
        limit=float("inf"),
        training=[
            {"stage": "one", "step": 5, "loss": float("nan")},
            {"stage": "two", "step": 1, "loss": 2.0, "note": "text"},
            {"stage": "two", "step": 2, "loss": None},
        ],
    )

    page = Page(render_report(data))

    assert len(page.all("img")) == 2


def test_report_replaces_an_older_one_and_leaves_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old", encoding="utf-8")

    write_report(target, good_only())

    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [target]


def test_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="cannot be written") as caught:
        write_report(tmp_path / "missing" / "report.html", good_only())

    assert "\n" not in str(caught.value)


def test_failed_report_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old", encoding="utf-8")

    def full_disk(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(FlawsmithError, match="No space left"):
        write_report(target, good_only())

    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_page_is_dark_where_the_reader_wants_it_and_light_on_paper() -> None:
    style = page_style()
    dark = re.search(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?)\n\}", style, re.S)

    assert dark is not None
    light = set(re.findall(r"(--\w+): #", style[: dark.start()])) - {"--heat"}
    assert set(re.findall(r"(--\w+): #", dark[1])) == light, "a colour that stays as it was is hard to read"
    assert style.index("@media print") > dark.end()
