"""Accuracy against the weakness of flaws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawsmith.figures.curve import measure, weak_sets, weakness, weakness_of_benchmark
from flawsmith.figures.sources import models
from flawsmith.runtime.errors import FlawsmithError


def grey(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(path)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Test sets of two strengths: bright flaws, and flaws of which one in two is as dark as a good part."""
    root = tmp_path / "weak"
    for weight, levels in ((0.3, (200, 210)), (0.7, (200, 10))):
        folder = root / f"weakness_{weight:g}"
        for number, level in enumerate((60, 61)):
            grey(folder / "bolt" / "train" / "good" / f"{number}.png", level)
            grey(folder / "bolt" / "test" / "good" / f"{number}.png", level)
            grey(folder / "bolt" / "test" / "forged" / f"{number}.png", levels[number])
        (folder / "manifest.json").write_text(json.dumps({"weakness": weight, "category": "bolt"}))
    return root


def test_models_are_measured_on_every_strength(sets: Path, tmp_path: Path, tiny) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")

    drawn = weakness(measure(models([tmp_path]), weak_sets([sets])), metrics=["image_auroc"])

    assert [(row["weakness"], float(row["mean"])) for row in drawn.rows] == [("0.3", 1.0), ("0.7", 0.5)]
    assert {row["line"] for row in drawn.rows} == {"pbas fast"}


def test_models_that_differ_in_their_seed_are_one_line_and_equal_ones_two(sets: Path, tmp_path: Path, tiny) -> None:
    for number, seed in enumerate((0, 1, 1)):
        (tmp_path / str(number)).mkdir()
        tiny.make_bundle(seed=seed).save(tmp_path / str(number) / "model.flaw")
    found = models([tmp_path / name for name in "012"])

    two = measure(found[:2], weak_sets([sets]))
    three = measure(found, weak_sets([sets]))

    assert {(model.name, model.bundle.spec.seed) for model, _, _ in two} == {("pbas fast", 0), ("pbas fast", 1)}
    assert {model.name for model, _, _ in three} == {"pbas fast", "pbas fast, 1", "pbas fast, 2"}


def test_model_of_another_category_is_refused(sets: Path, tmp_path: Path, tiny) -> None:
    spec = tiny.make_spec()
    tiny.make_bundle(training=spec.training.model_copy(update={"category": "nut"})).save(tmp_path / "model.flaw")

    with pytest.raises(FlawsmithError, match="learned nut, the test sets are of bolt"):
        measure(models([tmp_path]), weak_sets([sets]))


def test_folder_without_sets_says_which_command_makes_them(tmp_path: Path, sets: Path) -> None:
    with pytest.raises(FlawsmithError, match="flawsmith synthesize DATA --out FOLDER --test-set"):
        weak_sets([tmp_path / "weak" / "weakness_0.3"])
    (sets / "weakness_0.7" / "manifest.json").write_text("[]")
    with pytest.raises(FlawsmithError, match="is damaged"):
        weak_sets([sets])


def test_benchmark_over_such_sets_is_read_by_their_names(make_result) -> None:
    results = [
        make_result(dataset=f"weakness_{weight:g}", seed=seed, figures={"image_auroc": 1 - weight / 2 + 0.01 * seed})
        for weight in (0.1, 0.7)
        for seed in (0, 1)
    ]

    drawn = weakness_of_benchmark([*results, make_result()])

    assert [(row["weakness"], row["n"]) for row in drawn.rows] == [("0.1", 2), ("0.7", 2)]
    with pytest.raises(FlawsmithError, match="no run of the benchmark is of a test set of weak flaws"):
        weakness_of_benchmark([make_result()])
