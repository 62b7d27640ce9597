"""What `flawsmith.metrics` exports: documented with examples that run, torch-free, one figure by every way to it."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from importlib import import_module
from types import FunctionType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.metrics.strategies import map_sets

from flawsmith import metrics
from flawsmith.metrics import PixelMetrics, aupro, pixel_auroc, pixel_average_precision

MODULES = ["flawsmith.metrics", *sorted(set(metrics._PLACES.values()))]
FUNCTIONS = [name for name in metrics.__all__ if isinstance(getattr(metrics, name), FunctionType)]
ACCUMULATORS = ["LegacyPRO", "MetricCollection", "PixelMetrics", "SaturatedOverlap"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module: str) -> None:
    result = doctest.testmod(import_module(module))

    assert result.failed == 0


@pytest.mark.parametrize("name", [*FUNCTIONS, *ACCUMULATORS])
def test_public_names_have_an_example(name: str) -> None:
    _, _, example = (inspect.getdoc(getattr(metrics, name)) or "").partition(">>>")

    assert f"{name}(" in example


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_say_what_they_take_and_give(name: str) -> None:
    text = inspect.getdoc(getattr(metrics, name)) or ""

    assert "Args:" in text
    assert "Returns:" in text


def test_names_are_exported_from_where_they_are_listed() -> None:
    assert sorted(metrics._PLACES) == sorted(metrics.__all__) == sorted(set(metrics.__all__))
    assert {getattr(metrics, name).__module__ for name in metrics.__all__} <= set(MODULES)
    with pytest.raises(AttributeError, match="has no attribute 'accuracy'"):
        _ = metrics.accuracy


def test_metrics_need_no_torch() -> None:
    program = (
        "import sys; from flawsmith.metrics import *; "
        "assert round(aupro([[[0.5, 0.5]]], [[[1, 0]]]), 9) == 0.15; assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


@given(map_sets(), st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from([1, 10**6]))
def test_function_and_accumulator_give_the_same_number(
    case: tuple[list[np.ndarray], list[np.ndarray]], limit: float, in_memory_bytes: int
) -> None:
    maps, masks = case
    with PixelMetrics(limit=limit, in_memory_bytes=in_memory_bytes) as pixels:
        for anomaly_map, mask in zip(maps, masks, strict=True):
            pixels.update(anomaly_map, mask)
        result = pixels.compute()

    assert result.overlap == aupro(maps, masks, limit=limit)
    assert result.auroc == pixel_auroc(maps, masks)
    assert result.average_precision == pixel_average_precision(maps, masks)
