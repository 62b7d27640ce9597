"""Accuracy against latency."""

from __future__ import annotations

import pytest

from flawsmith.figures.latency import experiment_costs, latency
from flawsmith.runtime.errors import FlawsmithError


def experiments(make_result, *rows: tuple[str, float, float, int]):
    return [
        make_result(method, figures={"image_auroc": auroc}, costs={"latency_p50_ms": speed, "model_bytes": size})
        for method, speed, auroc, size in rows
    ]


def test_front_holds_the_experiments_that_no_other_beats(make_result) -> None:
    results = experiments(
        make_result, ("pbas", 40, 0.95, 1), ("glass", 60, 0.97, 1), ("aand", 100, 0.96, 1), ("slsg", 40, 0.9, 1)
    )

    found, notes = experiment_costs(results, "image_auroc", "whole")

    assert [(experiment.name, experiment.best) for experiment in found] == [
        ("pbas", True),
        ("slsg", False),
        ("glass", True),
        ("aand", False),
    ]
    assert notes == []


def test_equal_experiments_are_both_on_the_front(make_result) -> None:
    found, _ = experiment_costs(
        experiments(make_result, ("pbas", 40, 0.9, 1), ("glass", 40, 0.9, 1)), "image_auroc", "whole"
    )

    assert all(experiment.best for experiment in found)


def test_area_grows_with_the_model_and_legend_names_its_size(make_result) -> None:
    drawn = latency(experiments(make_result, ("pbas", 40, 0.95, 50_000_000), ("glass", 60, 0.97, 100_000_000)))

    (axis,) = drawn.figure.axes
    small, large = (float(points.get_sizes()[0]) for points in axis.collections)
    assert large == pytest.approx(2 * small)
    labels = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert labels == ["pbas (50 MB)", "glass (100 MB)", "Pareto front"]
    assert [row["pareto"] for row in drawn.rows] == [True, True]


def test_experiments_are_compared_on_the_categories_that_all_have(make_result) -> None:
    results = [
        make_result("pbas", category="bolt", figures={"image_auroc": 0.9}),
        make_result("pbas", category="nut", figures={"image_auroc": 0.5}),
        make_result("glass", category="bolt", figures={"image_auroc": 0.8}),
    ]

    found, notes = experiment_costs(results, "image_auroc", "whole")

    assert {experiment.name: experiment.accuracy for experiment in found} == {"pbas": 0.9, "glass": 0.8}
    assert notes == ["not all experiments have nut: left out"]
    with pytest.raises(FlawsmithError, match="no category in common"):
        experiment_costs(results[1:], "image_auroc", "whole")


def test_times_that_do_not_compare_are_told(make_result) -> None:
    shared = make_result("glass", costs={"jobs": 2}).model_copy(update={"machine": "another"})

    notes = latency([make_result(), shared]).notes

    assert any("--jobs 1" in note for note in notes)
    assert any("several machines" in note for note in notes)


def test_benchmark_without_latencies_is_refused(make_result) -> None:
    with pytest.raises(FlawsmithError, match="no run has both"):
        latency([make_result(costs={"latency_p50_ms": None})])
