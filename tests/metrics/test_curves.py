"""Thresholds beside scores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flawsmith.metrics.ranking import next_float

TINY = float(np.finfo(np.float32).tiny)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_next_float_is_larger_and_never_denormal(score: float) -> None:
    following = float(next_float(np.array([score], np.float32))[0])

    assert following > score
    assert following == 0 or abs(following) >= TINY


def test_next_float_of_zero_of_either_sign_is_the_smallest_normal_number() -> None:
    np.testing.assert_array_equal(next_float(np.array([0.0, -0.0], np.float32)), np.float32([TINY, TINY]))
