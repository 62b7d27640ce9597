"""A detector small enough to be built for each test run, and a bundle around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.geometry import Geometry

SIZE = (32, 48)


def serialised(nodes: list, inputs: list, outputs: list) -> bytes:
    graph = helper.make_graph(nodes, "test", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def mean_detector(size: tuple[int, int] = SIZE, *, map_name: str = "map", score_first: bool = False) -> bytes:
    """A graph whose map is the mean of the channels and whose score is the map's maximum."""
    height, width = size
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[1])
    both = helper.make_node("Constant", [], ["both"], value_ints=[1, 2])
    mean = helper.make_node("ReduceMean", ["image", "axes"], [map_name], keepdims=0)
    peak = helper.make_node("ReduceMax", [map_name, "both"], ["score"], keepdims=0)
    outputs = [
        helper.make_tensor_value_info(map_name, TensorProto.FLOAT, ["b", height, width]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, height, width])
    return serialised([axes, both, mean, peak], [image], outputs[::-1] if score_first else outputs)


def make_spec(**changes: object) -> BundleSpec:
    values = {
        "package_version": "0.1.0",
        "method": "pbas",
        "preset": "fast",
        "config": {"width": 512, "levels": ["2", "3"], "margin": 0.5, "note": None},
        "backbone": BackboneSpec(name="tiny", weights="packaged", sha256="ab" * 32, levels=(2, "layer3")),
        "geometry": Geometry(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        "decision": Decision(limit=0.6, map_limit=0.5, review_limit=0.4, stated_false_reject_rate=0.05, n_good=19),
        "training": TrainingSummary(
            layout="mvtec", category="bolt", n_train=80, n_calibration=19, images_sha256="cd" * 32
        ),
        "parity": {"score": 1e-6},
        "seed": 0,
        **changes,
    }
    return BundleSpec(**values)


def make_bundle(**changes: object) -> Bundle:
    return Bundle(
        spec=make_spec(**changes),
        model=mean_detector(),
        calibration={
            "good_scores": np.linspace(0, 0.5, 19),
            "forged": np.arange(6, dtype=np.float32).reshape(2, 3),
        },
        card="# Bolt\n\nLearned from good parts: β.\n",
    )


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="session")
def new_bundle() -> Callable[..., Bundle]:
    """Builds a bundle with other settings; takes the fields of `BundleSpec`."""
    return make_bundle


@pytest.fixture(scope="session")
def new_detector() -> Callable[..., bytes]:
    """Builds a detector's graph; takes the arguments of `mean_detector`."""
    return mean_detector


@pytest.fixture(scope="session")
def new_graph() -> Callable[..., bytes]:
    """Builds any graph of nodes, inputs and outputs."""
    return serialised
