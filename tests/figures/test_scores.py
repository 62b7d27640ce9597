"""Histograms of scores from every kind of folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flawsmith.figures.scores import limit_from_verdicts, score_histograms
from flawsmith.figures.sources import ImageScore, ModelScores, scored
from flawsmith.runtime.errors import FlawsmithError


def images(*rows: tuple[str, float, str]) -> tuple[ImageScore, ...]:
    return tuple(
        ImageScore(f"{number}.png", defect, score, verdict) for number, (defect, score, verdict) in enumerate(rows)
    )


SOME = images(("good", 0.1, "pass"), ("good", 0.4, "pass"), ("dent", 0.3, "pass"), ("dent", 0.9, "reject"))


@pytest.fixture
def run(tmp_path: Path, tiny) -> Path:
    """A run folder with an evaluation in it."""
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    tiny.make_bundle().save(folder / "model.flaw")
    with (folder / "evaluation" / "scores.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "defect", "score", "verdict"))
        rows.writerows((one.image, one.defect, one.score, one.verdict) for one in SOME)
    return folder


def heights(axis) -> float:
    return sum(patch.get_height() for patch in axis.patches if patch.get_height() < 1.01)


@pytest.mark.parametrize("inner", ["", "evaluation", "model.flaw"])
def test_run_evaluation_and_model_give_the_same_scores_and_the_models_limits(inner: str, run: Path) -> None:
    (found,) = scored([run / inner])

    assert found.images == SOME
    assert (found.category, found.experiment, found.limit, found.review_limit) == ("bolt", "pbas fast", 0.6, 0.4)


def test_evaluation_without_a_model_tells_no_limit(run: Path, tmp_path: Path) -> None:
    alone = (run / "evaluation").rename(tmp_path / "elsewhere")

    (found,) = scored([alone])

    assert (found.category, found.limit) == ("elsewhere", None)


def test_limit_lies_between_the_scores_that_the_verdicts_tell_apart() -> None:
    assert limit_from_verdicts(ModelScores("bolt", "pbas", SOME)) == (0.4, 0.9)
    assert limit_from_verdicts(ModelScores("bolt", "pbas", SOME[:3])) is None


def test_good_and_flawed_bars_each_add_up_to_one_and_show_every_defect() -> None:
    more = (*SOME, *images(("stain", 0.8, "reject")))

    drawn = score_histograms([ModelScores("bolt", "pbas", more, limit=0.6)])

    (axis,) = drawn.figure.axes
    assert heights(axis) == pytest.approx(2.0)
    labels = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert labels == ["good", "dent", "stain", "reject limit"]
    assert [line.get_xdata()[0] for line in axis.lines] == [0.6]
    assert len(drawn.rows) == len(more)


def test_benchmark_gives_a_row_a_category_and_a_column_an_experiment(benchmark_folder, make_result) -> None:
    results = [
        make_result(method, category=category, seed=seed)
        for method in ("pbas", "glass")
        for category in ("bolt", "nut", "pin")
        for seed in (0, 1)
    ]
    root = benchmark_folder(results)

    drawn = score_histograms(scored([root]))

    shape = {axis.get_subplotspec().get_gridspec().get_geometry() for axis in drawn.figure.axes}
    assert shape == {(3, 2)}
    assert [axis.get_title() for axis in drawn.figure.axes[:3]] == ["bolt, glass", "bolt, pbas", "nut, glass"]
    assert [text.get_text() for text in drawn.figure.legends[0].get_texts()][:2] == ["good", "flawed"]


def test_seed_chooses_the_runs(benchmark_folder, make_result) -> None:
    root = benchmark_folder([make_result(seed=seed) for seed in (0, 1)])

    first, second = scored([root]), scored([root], seed=1)

    assert len(first) == len(second) == 1
    assert first[0].images != second[0].images
    with pytest.raises(FlawsmithError, match="no run has the seed 7: there are 0, 1"):
        scored([root], seed=7)


def test_kept_model_of_a_run_tells_its_limit(benchmark_folder, make_result) -> None:
    (found,) = scored([benchmark_folder([make_result()], models=True)])

    assert found.limit == 0.6


def test_folder_without_scores_says_which_command_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="flawsmith evaluate"):
        scored([tmp_path])


@pytest.mark.parametrize(
    "text", ["image,defect\n1.png,good\n", "image,defect,score,verdict\n" + "x" * 200_000 + ",good,1,pass\n"]
)
def test_damaged_scores_are_named(run: Path, text: str) -> None:
    path = run / "evaluation" / "scores.csv"
    path.write_text(text)

    with pytest.raises(FlawsmithError, match=f"{path}: is no intact scores.csv"):
        scored([run])


def test_scores_that_are_no_numbers_are_left_out_and_said() -> None:
    drawn = score_histograms([ModelScores("bolt", "pbas", (*SOME, *images(("dent", float("nan"), "pass"))))])

    assert drawn.notes == ["1 scores are no finite numbers and are not shown"]
    with pytest.raises(FlawsmithError, match="no score is a finite number"):
        score_histograms([ModelScores("bolt", "pbas", images(("dent", float("inf"), "pass")))])
