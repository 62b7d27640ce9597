from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from flawsmith.metrics import ranking

labelled = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


@given(labelled)
def test_figures_equal_scikit_learn_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in pairs], dtype=float)
    flawed = np.array([label for _, label in pairs])

    auroc = ranking.auroc(scores, flawed)
    precision = ranking.average_precision(scores, flawed)

    assert auroc == (metrics.roc_auc_score(flawed, scores) if 0 < flawed.sum() < len(flawed) else None)
    assert precision == (metrics.average_precision_score(flawed, scores) if flawed.any() else None)


@given(labelled)
def test_best_f1_is_reached_at_its_threshold_and_never_exceeded(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in pairs], dtype=float)
    flawed = np.array([label for _, label in pairs])

    best, threshold = ranking.f1_max(scores, flawed), ranking.f1_max_threshold(scores, flawed)

    if not flawed.any():
        assert (best, threshold) == (None, None)
        return
    assert threshold is not None
    assert metrics.f1_score(flawed, scores >= threshold) == pytest.approx(best)
    assert best == pytest.approx(max(metrics.f1_score(flawed, scores >= limit) for limit in scores))


def test_infinite_scores_rank_by_order() -> None:
    scores = [-math.inf, 0.0, 1.0, math.inf]

    assert ranking.auroc(scores, [False, True, False, True]) == 0.75
    assert ranking.f1_max_threshold(scores, [False, False, False, True]) == math.inf


def test_only_flawed_images_leave_auroc_undefined_and_precision_one() -> None:
    assert ranking.auroc([1.0, 2.0], [True, True]) is None
    assert ranking.average_precision([1.0, 2.0], [True, True]) == 1.0
    assert ranking.roc_curve([1.0, 2.0], [True, True]) is None


def test_nan_score_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ranking.auroc([math.nan, 1.0], [False, True])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        ranking.average_precision([1.0], [True, False])


def test_roc_curve_runs_from_origin_to_one() -> None:
    curve = ranking.roc_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True])

    assert curve is not None
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.all(np.diff(curve.x) >= 0)
