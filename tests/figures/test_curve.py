"""Accuracy against what a benchmark varied."""

from __future__ import annotations

import pytest

from flawsmith.figures.curve import Measurement, check_metrics, curve, lines, sort_key, varied
from flawsmith.figures.sources import benchmark_results
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def fractions(make_result):
    """Two methods at three fractions on two categories with three seeds."""
    return [
        make_result(
            method,
            category=category,
            seed=seed,
            fraction=fraction,
            figures={"image_auroc": base + 0.05 * fraction + 0.01 * (seed - 1) + bonus},
        )
        for method, base in (("pbas", 0.80), ("glass", 0.85))
        for fraction in (0.1, 0.5, 1.0)
        for category, bonus in (("bolt", 0.02), ("nut", -0.02))
        for seed in (0, 1, 2)
    ]


def test_points_are_means_over_categories_with_the_spread_over_seeds(fractions) -> None:
    drawn = curve(fractions)

    row = next(row for row in drawn.rows if (row["line"], row["fraction"]) == ("pbas", "0.5"))
    assert float(row["mean"]) == pytest.approx(0.825)
    assert (float(row["high"]) - float(row["low"])) / 2 == pytest.approx(0.01)
    assert (row["metric"], row["category"], row["n"]) == ("image_auroc", "mean over categories", 3)
    assert len(drawn.rows) == 6


def test_axis_counts_per_cent_of_the_images_and_has_a_line_a_method_and_a_band(fractions) -> None:
    (axis,) = curve(fractions).figure.axes

    assert [list(line.get_xdata()) for line in axis.lines] == [[10, 50, 100], [10, 50, 100]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["10", "50", "100"]
    assert len(axis.collections) == 2
    assert axis.get_xscale() == "log"


def test_by_category_gives_a_row_of_panels_each(fractions) -> None:
    drawn = curve(fractions, by_category=True)

    assert [axis.get_title() for axis in drawn.figure.axes] == ["bolt", "nut"]
    assert len(drawn.rows) == 12


def test_setting_that_was_varied_is_found_and_its_default_counts(make_result) -> None:
    results = [make_result(set={"patch_size": 1}), make_result(), make_result(set={"patch_size": 5})]

    assert varied(results) == "patch_size"
    drawn = curve(results)
    assert [row["patch_size"] for row in drawn.rows] == ["1", "3", "5"]
    assert {row["line"] for row in drawn.rows} == {"pbas"}


def test_other_settings_stay_apart_as_lines(make_result) -> None:
    results = [
        make_result(set={"patch_size": size, "memories": count}, config={"memories": 50})
        for size in (1, 3)
        for count in (10, 50)
    ]

    with pytest.raises(FlawsmithError, match="several quantities were varied, memories, patch_size: choose one"):
        curve(results)
    drawn = curve(results, x="patch_size")
    assert sorted({row["line"] for row in drawn.rows}) == ["pbas, memories=10", "pbas, memories=50"]


def test_lists_and_words_have_places_of_their_own_in_order(make_result) -> None:
    values = ([4, 8, 16], [16], [8, 16], [8])
    (axis,) = curve([make_result(set={"strides": value}) for value in values]).figure.axes

    assert [label.get_text() for label in axis.get_xticklabels()] == ["[8]", "[16]", "[8,16]", "[4,8,16]"]
    assert sorted(["b", 10, [2, 1], 9, True], key=sort_key) == [9, 10, [2, 1], "b", True]


def test_mean_over_other_categories_is_never_mixed_in() -> None:
    found = [
        Measurement("pbas", "bolt", 1, 0, 0.9),
        Measurement("pbas", "nut", 1, 0, 0.7),
        Measurement("pbas", "bolt", 3, 0, 0.9),
        Measurement("glass", "bolt", 1, 0, 0.8),
        Measurement("glass", "nut", 1, 0, 0.8),
    ]

    drawn, notes = lines(found)

    assert [(point.x, point.mean) for point in drawn["pbas"]] == [(1, pytest.approx(0.8))]
    assert notes == ["pbas at 3, seed 0: left out, for it lacks nut"]
    drawn, notes = lines([one for one in found if (one.line, one.category) != ("glass", "nut")])
    assert [point.mean for point in drawn["pbas"]] == [0.9, 0.9]
    assert notes == ["not all lines have nut: left out of the means"]


def test_nothing_varied_says_how_to_vary(make_result) -> None:
    with pytest.raises(FlawsmithError, match="--fractions"):
        curve([make_result()])


def test_unknown_quantity_and_metric_are_named_with_the_closest(make_result) -> None:
    results = [make_result()]

    with pytest.raises(FlawsmithError, match="--x patchsize: no run has such a setting: did you mean patch_size"):
        curve(results, x="patchsize")
    with pytest.raises(FlawsmithError, match="--metric auro: no such figure: did you mean"):
        check_metrics(["auro"])
    with pytest.raises(FlawsmithError, match="--metric aupro: no result has it"):
        curve(results, x="patch_size", metrics=["aupro"])
    with pytest.raises(FlawsmithError, match="--part B: was not measured"):
        curve(results, x="patch_size", part="B")


def test_failed_runs_are_passed_over_and_other_folders_refused(benchmark_folder, make_result, tmp_path) -> None:
    root = benchmark_folder([make_result(), make_result("glass", status="failed")])

    assert [one.run.experiment.method for one in benchmark_results([root])] == ["pbas"]
    with pytest.raises(FlawsmithError, match="flawsmith benchmark"):
        benchmark_results([tmp_path])
    with pytest.raises(FlawsmithError, match="no run has finished"):
        benchmark_results([benchmark_folder([make_result(status="failed")], name="other")])
