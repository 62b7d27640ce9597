"""Qualitative grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawsmith.figures.grid import PICKS, chosen, datasets, grid_rows, qualitative_grid
from flawsmith.figures.sources import models
from flawsmith.runtime.errors import FlawsmithError


def picture(path: Path, level: int, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """Seven flawed parts of rising brightness, which is the tiny model's score; all but the first are annotated."""
    root = tmp_path / "parts" / "bolt"
    picture(root / "train" / "good" / "0.png", 50)
    picture(root / "test" / "good" / "0.png", 50)
    for number in range(7):
        picture(root / "test" / "dent" / f"{number}.png", 80 + 20 * number)
        mask = np.zeros((20, 30), np.uint8)
        mask[5:9, 5:9] = 255
        if number:
            path = root / "ground_truth" / "dent" / f"{number}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root


@pytest.fixture
def model(tmp_path: Path, tiny) -> Path:
    (tmp_path / "run").mkdir()
    tiny.make_bundle().save(tmp_path / "run" / "model.flaw")
    return tmp_path / "run"


def test_worst_typical_and_best_are_chosen_without_repeats() -> None:
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0])

    assert chosen(scores, n=1, picks=PICKS) == [("worst", 1), ("typical", 4), ("best", 0)]
    assert chosen(scores, n=2, picks=PICKS) == [("worst", 1), ("worst", 3), ("typical", 4), ("best", 2), ("best", 0)]
    assert chosen(scores, n=9, picks=("best",)) == [("best", place) for place in (1, 3, 4, 2, 0)]


def test_rows_hold_image_truth_and_what_the_model_says(category: Path, model: Path) -> None:
    rows = list(grid_rows(models([model]), datasets([category]), n=1))

    assert [(row.pick, row.sample.image.stem) for row in rows] == [("worst", "0"), ("typical", "3"), ("best", "6")]
    assert rows[0].truth is None
    assert rows[1].truth is not None
    assert np.unique(rows[1].truth).tolist() == [0, 255]
    view = rows[2].views[0]
    assert (view.model, view.verdict, view.limit) == ("pbas fast", "reject", 0.6)
    assert view.score == pytest.approx(200 / 255, abs=1e-3)


def test_grid_has_a_row_an_image_and_a_column_a_model(category: Path, model: Path, tmp_path: Path, tiny) -> None:
    (tmp_path / "other").mkdir()
    tiny.make_bundle().save(tmp_path / "other" / "model.flaw")

    drawn = qualitative_grid(list(grid_rows(models([model, tmp_path / "other"]), datasets([category]), n=1)))

    pictures = [axis for axis in drawn.figure.axes if axis.images]
    titles = [axis.get_title().replace("\n", " ") for axis in drawn.figure.axes if axis.get_title()]
    assert len(pictures) == 3 * 4 - 1  # one image was never annotated
    assert titles == ["image", "ground truth", "pbas fast, run", "pbas fast, other"]
    assert len(drawn.rows) == 6


def test_tiny_flaw_stays_visible_in_the_thumbnail_of_a_large_mask(category: Path, model: Path) -> None:
    picture(category / "test" / "dent" / "9.png", 250, (900, 1400))
    mask = np.zeros((900, 1400), np.uint8)
    mask[400:402, 700:702] = 255
    Image.fromarray(mask).save(category / "ground_truth" / "dent" / "9_mask.png")

    (row,) = grid_rows(models([model]), datasets([category]), n=1, picks=["best"])

    assert row.truth is not None
    assert row.truth.max() == 255
    assert max(row.truth.shape) == 320


def test_categories_of_a_folder_go_to_the_models_that_learned_them(
    category: Path, benchmark_folder, make_result
) -> None:
    picture(category.parent / "nut" / "train" / "good" / "0.png", 50)
    picture(category.parent / "nut" / "test" / "dent" / "0.png", 90)
    root = benchmark_folder([make_result(), make_result("glass")], models=True)

    rows = list(grid_rows(models([root]), datasets([category.parent]), n=1, picks=["worst"]))

    assert [(row.category, [view.model for view in row.views]) for row in rows] == [("bolt", ["glass", "pbas"])]


def test_sources_that_lack_something_say_how_to_make_it(
    category: Path, model: Path, tmp_path: Path, benchmark_folder, make_result, tiny
) -> None:
    with pytest.raises(FlawsmithError, match="--keep-models"):
        models([benchmark_folder([make_result()])])
    with pytest.raises(FlawsmithError, match="flawsmith train"):
        models([category])
    with pytest.raises(FlawsmithError, match="no flawed test images"):
        picture(tmp_path / "good" / "0.png", 50)
        list(grid_rows(models([model]), datasets([tmp_path / "good"])))
    picture(category.parent / "nut" / "train" / "good" / "0.png", 50)
    spec = tiny.make_spec()
    tiny.make_bundle(training=spec.training.model_copy(update={"category": "pin"})).save(tmp_path / "pin.flaw")
    with pytest.raises(FlawsmithError, match="learned pin, which --data does not hold"):
        list(grid_rows(models([model, tmp_path / "pin.flaw"]), datasets([category.parent])))
    with pytest.raises(FlawsmithError, match="no image to show"):
        qualitative_grid([])
