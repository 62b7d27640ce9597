"""What stands in the reports of an evaluation and of a training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.pipeline.describe import expected_verdicts
from flawsmith.pipeline.evaluate import evaluate_into
from flawsmith.pipeline.reporting import MOST_STEPS, _more_good_images, limits_to_try
from flawsmith.pipeline.train import TrainResult
from flawsmith.runtime.decision import Decision, GroupFigures
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.roi import RegionOfInterest, Zone

_SEAL = Zone(
    name="seal", region=RegionOfInterest(include=[((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))]), offset=0.1
)


def test_each_note_stands_in_the_report_once(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (root / "ground_truth" / "crack" / "001_mask.png").unlink()
    trees.picture(root / "test" / "stray.png", seed=300)
    dataset = load(root)

    written = evaluate_into(tmp_path / "evaluation", tiny.make_bundle(), dataset)

    report = written.report.read_text(encoding="utf-8")
    notes = (*dataset.notes, *written.evaluation.notes)
    assert len(notes) > 2
    assert [report.count(f"<li>{escape(note)}</li>") for note in notes] == [1] * len(notes)


def test_report_has_no_date_unless_it_is_asked_for(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    dataset, bundle = load(trees.mvtec(tmp_path / "bolt")), tiny.make_bundle()

    plain, again, dated = (
        evaluate_into(tmp_path / name, bundle, dataset, dated=name == "dated").report.read_text(encoding="utf-8")
        for name in ("plain", "again", "dated")
    )

    assert plain == again
    assert str(tmp_path) not in plain
    digest = hashlib.sha256(bundle.to_bytes()).hexdigest()
    assert all(text in dated for text in (str(dataset.root), digest, " UTC", f"Images <bdi>{len(dataset.samples)}"))


def test_every_test_image_stands_in_the_report_with_its_picture(
    tiny: ModuleType, trees: ModuleType, tmp_path: Path
) -> None:
    dataset = load(trees.mvtec(tmp_path / "bolt"))

    report = evaluate_into(tmp_path / "evaluation", tiny.make_bundle(), dataset).report.read_text(encoding="utf-8")

    assert report.count("<tr data-score=") == report.count('<figure class="example"') == len(dataset.test)
    assert report.count('<div><img src="data:image/jpeg') >= len(dataset.test)


@pytest.mark.parametrize("setting", [{"minimum_area": 30}, {"zones": (_SEAL,)}])
def test_other_limits_can_be_tried_where_spots_of_the_map_decide(
    setting: dict[str, Any], tiny: ModuleType, trees: ModuleType, tmp_path: Path
) -> None:
    dataset = load(trees.mvtec(tmp_path / "bolt"))
    decision = Decision(limit=9.0, map_limit=0.5, stated_false_reject_rate=0.05, n_good=19, **setting)
    bundle = tiny.make_bundle(decision=decision)

    written = evaluate_into(tmp_path / "evaluation", bundle, dataset)

    page, inspector = written.report.read_text(encoding="utf-8"), Inspector.load(bundle)
    maps = {sample.image.name + sample.defect: inspector.inspect(sample.image).map for sample in dataset.test}
    levels = {name: decision.level(anomaly_map) for name, anomaly_map in maps.items()}
    rows = re.findall(r'<tr data-score="([^"]+)" data-flawed="(\d)">', page)
    assert sorted(float(level) for level, _ in rows) == pytest.approx(sorted(levels.values()))
    assert 'id="try"' in page
    assert "strongest spot" in page and "so that this page cannot try other limits" not in page
    (used,) = (step for step in written.evaluation.what_if if step.in_use)
    assert used.limit == 0.5
    assert (used.missed, used.rejected) == (written.evaluation.n_missed, written.evaluation.n_rejected)
    for step in written.evaluation.what_if:
        other = inspector.with_limits(decision.model_copy(update={"map_limit": step.limit}))
        verdicts = [(other.inspect(sample.image).verdict == "reject", sample.is_flawed) for sample in dataset.test]
        assert step.missed == verdicts.count((False, True))
        assert step.rejected == verdicts.count((True, False))


def test_report_says_where_only_the_score_rejects(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    dataset = load(trees.mvtec(tmp_path / "bolt"))
    decision = Decision(limit=0.0, map_limit=9.0, stated_false_reject_rate=0.05, n_good=19)

    written = evaluate_into(tmp_path / "evaluation", tiny.make_bundle(decision=decision), dataset)

    page = written.report.read_text(encoding="utf-8")
    assert len(re.findall(r"<span>map, below its limit: [^<]*, dashed: its strangest place</span>", page)) == len(
        dataset.test
    )


@pytest.fixture(scope="module")
def trained(
    parts: Path, train_small: Callable[..., TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    folder = tmp_path_factory.mktemp("reporting")
    mask = np.zeros((80, 112), np.uint8)
    mask[:, :60] = 255
    Image.fromarray(mask).save(folder / "roi.png")
    return train_small("patchcore", parts, folder / "run", roi=str(folder / "roi.png"), report=True)


def test_training_report_shows_strange_good_images_synthetic_flaws_and_where_the_model_looks(
    trained: TrainResult,
) -> None:
    page = trained.report.read_text(encoding="utf-8")

    held_out, synthetic = (len(trained.bundle.calibration[name]) for name in ("good", "forged"))
    assert page.count(' data-flawed="0">\n    <div class="tiles"') == held_out
    assert page.count(' data-flawed="1">\n    <div class="tiles"') == synthetic
    assert "Where the model looks" in page
    assert re.search(rf"Synthetic flaws missed</dt><dd><span class=\"value\">\d of {synthetic}<", page)
    assert "What to do next" in page
    assert "this page cannot try other limits" in page
    assert f"Only {held_out} good images set the limit" in page


def test_pictures_of_synthetic_flaws_are_of_those_whose_scores_the_model_holds(trained: TrainResult) -> None:
    shown = re.findall(
        r'"name">synthetic flaw (\d+)</bdi>.*?score ([0-9.]+)', trained.report.read_text(encoding="utf-8")
    )

    scores = trained.bundle.calibration["forged"]
    assert {int(number): float(score) for number, score in shown} == {
        place: float(f"{score:.4g}") for place, score in enumerate(scores, 1)
    }


def test_limits_to_try_say_what_each_of_them_promises() -> None:
    decision = Decision(limit=9.0, map_limit=1.0, stated_false_reject_rate=0.1, n_good=9)

    choice = limits_to_try(np.arange(1.0, 10.0), np.array([0.5, 20.0]), decision, promises=True)

    assert choice is not None
    (used,) = (step for step in choice.steps if step.in_use)
    assert (used.limit, used.missed, used.rejected) == (9.0, "1 of 2", "0 of 9")
    assert "Promise: about 100 of 1,000; 95 % sure: no more than 284." in used.sentence
    assert [step.limit for step in choice.steps] == sorted(step.limit for step in choice.steps)


def test_limits_to_try_are_few_enough_for_a_page() -> None:
    decision = Decision(limit=0.5, map_limit=1.0, stated_false_reject_rate=0.1, n_good=9)

    choice = limits_to_try(np.linspace(0, 1, 3000), np.linspace(0.4, 2, 3000), decision, promises=False)

    assert choice is not None
    assert MOST_STEPS <= len(choice.steps) <= MOST_STEPS + 1
    assert sum(step.in_use for step in choice.steps) == 1


def test_limits_to_try_are_those_of_the_map_where_regions_decide() -> None:
    decision = Decision(limit=0.5, map_limit=2.5, stated_false_reject_rate=0.1, n_good=9, minimum_area=4)

    choice = limits_to_try(np.arange(4.0), np.array([2.0, 5.0]), decision, promises=False)

    assert choice is not None
    (used,) = (step for step in choice.steps if step.in_use)
    assert (used.limit, used.missed, used.rejected) == (2.5, "1 of 2", "1 of 4")


def test_model_without_test_images_says_what_its_limits_would_miss_and_reject(tiny: ModuleType) -> None:
    decision = Decision(limit=9.0, map_limit=1.0, stated_false_reject_rate=0.1, n_good=9)
    calibration = {"good": np.arange(1.0, 10.0), "forged": np.array([2.5, 20.0])}
    bundle = replace(tiny.make_bundle(decision=decision), calibration=calibration)

    lines = expected_verdicts(bundle)

    assert lines[0] == "flaws missed: 1 of 2 synthetic ones; real ones may be harder to see"
    assert lines[1] == decision.describe()
    assert [line.split() for line in lines[4:]] == [
        ["9", "1", "of", "2", "100", "284", "in", "use"],
        ["2.25", "0", "of", "2", "800", "959"],
    ]


def test_model_that_scores_its_own_images_promises_nothing(tiny: ModuleType) -> None:
    decision = Decision(limit=9.0, map_limit=1.0, stated_false_reject_rate=0.1, n_good=9, held_out=False)
    bundle = replace(tiny.make_bundle(decision=decision), calibration={"good": np.arange(1.0, 10.0)})

    (line,) = expected_verdicts(bundle)
    assert line.startswith("WARNING: the reject limit rests on 9 good images that the model learned from too.")


@pytest.mark.parametrize(("count", "is_said"), [(2, True), (40, False)])
def test_report_asks_for_more_groups_where_few_set_the_limit(count: int, *, is_said: bool) -> None:
    groups = GroupFigures(by="sub-folder", count=count, variance_share=0.0)
    decision = Decision(limit=1.0, map_limit=1.0, stated_false_reject_rate=2 / 201, n_good=200, groups=groups)

    steps = _more_good_images(decision)

    assert any("2 groups (sub-folder) set the limit" in step for step in steps) == is_said
