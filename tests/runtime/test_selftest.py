"""A model file knows what its model says of small images that it holds, and notices where it says something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.line.conftest import multiplied

from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector, self_test, self_test_arrays
from flawsmith.runtime.tiles import Tiling

IMAGES = [
    np.full((64, 90, 3), 40, np.uint8),
    np.arange(50 * 70 * 3, dtype=np.uint16).reshape(50, 70, 3),
    np.zeros((9, 9, 3), np.uint8),
]


def with_test(bundle: Bundle) -> Bundle:
    return dataclasses.replace(bundle, calibration=self_test_arrays(Inspector.load(bundle), IMAGES))


def test_model_that_is_the_same_passes_from_its_file(tiny: ModuleType, tmp_path: Path) -> None:
    with_test(tiny.make_bundle()).save(tmp_path / "model.flaw")

    bundle = Bundle.load(tmp_path / "model.flaw")

    assert bundle.calibration["self_test_1"].shape == bundle.calibration["self_test_2"].shape == (32, 48, 3)
    assert self_test(Inspector.load(bundle), bundle) == 2


def test_images_are_tested_as_tiles_where_the_model_sees_tiles(tiny: ModuleType) -> None:
    bundle = with_test(tiny.make_bundle(tiling=Tiling(size=40, overlap=8)))

    assert self_test(Inspector.load(bundle), bundle) == 2


@pytest.mark.parametrize(("factor", "name"), [(1.01, "score"), (0.0, "score")])
def test_model_that_says_something_else_here_is_refused(tiny: ModuleType, factor: float, name: str) -> None:
    bundle = with_test(tiny.make_bundle())
    other = dataclasses.replace(bundle, model=multiplied(bundle.model, factor))

    with pytest.raises(FlawsmithError, match=f"gives another {name} here"):
        self_test(Inspector.load(other), other)


def test_difference_within_what_the_file_allows_is_none(tiny: ModuleType) -> None:
    bundle = with_test(tiny.make_bundle(parity={"score_allowed": 0.01, "map_allowed": 0.01}))
    other = dataclasses.replace(bundle, model=multiplied(bundle.model, 1.01))

    assert self_test(Inspector.load(other), other) == 2


def test_file_of_before_holds_no_images_and_is_run_once(tiny: ModuleType) -> None:
    bundle = tiny.make_bundle()
    inspector = Inspector.load(bundle)

    assert self_test(inspector, bundle) == 0
    inspector.engine.run = lambda batch: [np.full((1, 32, 48), np.nan, np.float32), np.array([np.nan], np.float32)]  # type: ignore[method-assign]
    with pytest.raises(FlawsmithError, match="not finite"):
        self_test(inspector, bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"self_test": np.zeros((3, 2))},
        {"self_test": np.zeros((2, 3))},
        {"self_test": np.zeros(2)},
        {"self_test": np.zeros((10**6, 2))},
        {"self_test_1": np.zeros((4, 4, 3), np.float32)},
        {"self_test_2": np.zeros((4, 4), np.uint8)},
        {"self_test_2": np.zeros((0, 4, 3), np.uint8)},
    ],
)
def test_file_whose_test_is_not_as_it_should_be_is_no_model(tiny: ModuleType, tmp_path: Path, changes: Any) -> None:
    bundle = with_test(tiny.make_bundle())
    dataclasses.replace(bundle, calibration={**bundle.calibration, **changes}).save(tmp_path / "model.flaw")

    with pytest.raises(FlawsmithError, match="self_test"):
        Bundle.load(tmp_path / "model.flaw")
