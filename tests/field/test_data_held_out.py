"""One flawed image among those held out sets the limit: it is named, with picture and score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.data.layouts import load
from flawsmith.data.splits import calibration_split
from flawsmith.pipeline.describe import model_in_words
from flawsmith.pipeline.held_out import in_words, odd_scores, remarks
from flawsmith.runtime.bundle import Bundle

CLOSE = (15.2, 15.5, 15.9, 16.6)


@pytest.mark.parametrize("size", [4, 8, 14, 29, 80])
@pytest.mark.parametrize("shift", [0.0, -50.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_score_far_above_the_others_is_odd_in_any_unit(size: int, shift: float, scale: float) -> None:
    good = np.random.default_rng(size).normal(15, 0.5, size)
    assert odd_scores(scale * (np.append(good, 40.0) + shift)) == 1


@pytest.mark.parametrize(("odd", "size"), [(2, 12), (3, 20), (4, 30)])
def test_several_odd_images_do_not_hide_each_other(odd: int, size: int) -> None:
    good = np.random.default_rng(size).normal(15, 0.5, size)
    assert odd_scores(np.append(good, np.linspace(38, 42, odd))) == odd


@pytest.mark.parametrize("size", [3, 5, 9, 15, 30, 100])
@pytest.mark.parametrize(
    ("draw", "most"),
    [("normal", 0.03), ("gumbel", 0.04), ("exponential", 0.075), ("uniform", 0.02)],
)
def test_good_images_alone_are_rarely_called_odd(size: int, draw: str, most: float) -> None:
    generator = np.random.default_rng(7)
    alarms = [odd_scores(getattr(generator, draw)(size=size)) > 0 for _ in range(400)]
    assert np.mean(alarms) <= most


@pytest.mark.parametrize(
    "scores", [[], [1.0], [1.0, 9.0], [1.0, 1.0, 9.0], [2.0] * 5, [1.0, 1.0, 1.0, 1.0, 9.0], [0.0, 0.0, 0.0]]
)
def test_too_little_to_judge_by_is_no_oddity(scores: list[float]) -> None:
    assert odd_scores(scores) == 0


def test_a_low_score_is_no_concern() -> None:
    assert odd_scores([-20.0, *CLOSE, 16.9]) == 0


def test_the_odd_image_is_named_with_its_score_and_what_to_do() -> None:
    (remark,) = remarks(["a.png", "b.png", "c.png", "odd.png", "e.png"], [15.2, 15.5, 15.9, 36.6, 16.6])
    assert remark == (
        "held-out odd.png scores 36.6, the other 4 from 15.2 to 16.6: look at it; if it is flawed, remove it and train "
        "again"
    )


def test_several_odd_images_are_named_together() -> None:
    good = np.random.default_rng(0).normal(15, 0.5, 12)
    (remark,) = remarks([f"{i}.png" for i in range(14)], [*good, 40.0, 42.0])
    assert remark.startswith("held-out 13.png and 12.png score 42 and 40, the other 12 from ")
    assert "if they are flawed, remove them" in remark


@pytest.mark.parametrize("value", [0.008, 0.0, -3.0])
def test_scores_without_any_difference_are_told(value: float) -> None:
    (remark,) = remarks(["a", "b", "c"], [value, value, value])
    assert remark.startswith("all 3 held-out images have nearly the same score, ")
    assert "flawsmith doctor" in remark


def test_usual_scores_give_no_remark() -> None:
    assert remarks(list("abcde"), [*CLOSE, 17.0]) == ()
    assert in_words([*CLOSE, 17.0]) == "highest 17, then 16.6, lowest 15.2"


@pytest.fixture(scope="module")
def contaminated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 19 good images and a flawed one that is held out, and the run that learned from it."""
    data = tmp_path_factory.mktemp("field") / "parts"
    data.mkdir()
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :96]
    for number in range(20):
        waves = 120 + 40 * np.sin(x / 9) * np.cos(y / 7)
        Image.fromarray(np.clip(waves + rng.normal(0, 4, (64, 96)), 0, 255).astype(np.uint8)).save(
            data / f"{number}.png"
        )
    held_out = calibration_split(load(data), 0).calibration[0].image
    flawed = np.asarray(Image.open(held_out)).copy()
    held_out.unlink()
    for shade in range(256):  # the split goes by content: until a flawed one is held out
        flawed[20:44, 20:76] = rng.integers(0, 2, (24, 56)) * 255
        flawed[0, 0] = shade
        Image.fromarray(flawed).save(data / "odd.png")
        if "odd.png" in [sample.image.name for sample in calibration_split(load(data), 0).calibration]:
            break
    return data, data.parent / "run"


@pytest.fixture(scope="module")
def told(
    contaminated: tuple[Path, Path], exported_once: None, tiny_settings: Callable[[str], dict[str, object]]
) -> str:
    """What training said of it."""
    import contextlib
    import io

    data, run = contaminated
    settings = [f"--set={key}={json.dumps(value)}" for key, value in tiny_settings("patchcore").items()]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["train", str(data), "--method=patchcore", "--baseline=none", f"--out={run}", *settings])
    assert code == 0
    return said.getvalue()


def test_training_names_the_image_that_sets_the_limit(told: str) -> None:
    assert "note: held-out odd.png scores " in told
    assert "if it is flawed, remove it and train again" in told


def test_the_checks_are_told_in_one_line(told: str) -> None:
    assert told.count("checked 20 images: no problems\n") == 1


def test_run_and_report_list_held_out_images_by_score(told: str, contaminated: tuple[Path, Path]) -> None:
    _, run = contaminated
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    scores = [row["score"] for row in record["held_out"]]
    assert record["held_out"][0]["image"] == "odd.png"
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 5
    report = (run / "report.html").read_text(encoding="utf-8")
    listed = report[report.index("Scores of the held-out good images") :]
    assert listed.index("odd.png") < listed.index(record["held_out"][1]["image"])
    assert record["remarks"][0] in report


def test_the_model_tells_it_without_names(told: str, contaminated: tuple[Path, Path]) -> None:
    model = contaminated[1] / "model.flaw"
    words = model_in_words(Bundle.load(model))
    assert "the highest stands apart, look at its image in report.html" in words
    assert b"odd.png" not in model.read_bytes()
