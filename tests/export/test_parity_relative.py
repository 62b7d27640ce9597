"""The gate of engines that do not compute in float32."""

from __future__ import annotations

import numpy as np

from flawsmith.export.parity import MAP_TOLERANCE, Tolerance


def test_relative_tolerance_is_a_quarter_of_the_spread_of_good_scores():
    scores, maxima = np.linspace(0.0, 10.0, 101), np.linspace(0.0, 2.0, 101)

    tolerance = Tolerance.relative(scores, maxima)

    assert np.isclose(tolerance.score, 0.25 * 9.0)
    assert np.isclose(tolerance.map, 0.25 * 1.8)


def test_relative_tolerance_of_equal_scores_is_not_zero():
    tolerance = Tolerance.relative(np.ones(5), np.ones(5))

    assert (tolerance.score, tolerance.map) == (MAP_TOLERANCE, MAP_TOLERANCE)


def test_float32_gate_binds_the_worst_pixel_and_the_relative_gate_the_mean():
    first = np.zeros((10, 10), np.float32)
    second = first.copy()
    second[3, 4] = 1.0

    assert Tolerance().map_difference(first, second) == 1.0
    assert np.isclose(Tolerance(every_pixel=False).map_difference(first, second), 0.01)
