"""An inspector can go to another process."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawsmith.runtime.inspector import Inspection, Inspector

IMAGES = [np.full((40, 60, 3), level, np.uint8) for level in (20, 120, 220)]


def told(inspections: list[Inspection]) -> list[tuple[Any, ...]]:
    return [(each.verdict, each.score, each.map.tobytes(), each.regions) for each in inspections]


@pytest.fixture(params=["onnxruntime", "openvino"])
def inspector(request: pytest.FixtureRequest, tiny: Any) -> Inspector:
    return Inspector.load(tiny.make_bundle(engine=request.param), threads=1, max_pixels=10_000)


@pytest.mark.parametrize("again", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy])
def test_copy_gives_the_same_verdicts_and_keeps_its_settings(again: Any, inspector: Inspector) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = again(inspector)

    assert told(other.inspect_many(IMAGES)) == told(inspector.inspect_many(IMAGES))
    assert (other.engine.name, other.engine.precision) == (inspector.engine.name, inspector.engine.precision)
    assert other.calibrated
    with pytest.raises(Exception, match="exceed the cap of 10000"):
        other.inspect((Path(__file__).parents[2] / "docs" / "images" / "heatmap.png").read_bytes())


def test_copy_of_another_engine_than_the_calibrated_stays_that(tiny: Any) -> None:
    with pytest.warns(UserWarning, match="calibrated with onnxruntime"):
        inspector = Inspector.load(tiny.make_bundle(), engine="openvino", threads=1)

    other = pickle.loads(pickle.dumps(inspector))

    assert other.engine.name == "openvino"
    assert not other.calibrated


def test_spawned_processes_inspect_with_it(tiny: Any) -> None:
    inspector = Inspector.load(tiny.make_bundle(), threads=1)

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        far = pool.map(inspector.inspect, IMAGES)

    assert told(far) == told(inspector.inspect_many(IMAGES))
