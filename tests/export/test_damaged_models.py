"""A graph that is not the trained model is refused, of every method: what the gate allows is rounding alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flawsmith.export import SCORE_TOLERANCE, Tolerance, check_parity
from flawsmith.pipeline.restore import restore
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

METHODS = ("aand", "glass", "padim", "patchcore", "pbas", "rd4ad", "slsg")


def round_weights_to_bfloat16(model: onnx.ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    used = [name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm") for name in node.input[1:2]]
    for tensor in (tensors[name] for name in dict.fromkeys(used) if name in tensors):
        bits = numpy_helper.to_array(tensor).view(np.uint32)
        rounded = (bits + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def change_first_layer_by_a_hundredth(model: onnx.ModelProto) -> None:
    name = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(1.01), name))


def scale_output(model: onnx.ModelProto, output: str, factor: float) -> None:
    for node in model.graph.node:
        node.input[:] = ["undamaged" if name == output else name for name in node.input]
        node.output[:] = ["undamaged" if name == output else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["undamaged", "factor"], [output]))


DAMAGES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "weights in bfloat16": round_weights_to_bfloat16,
    "first layer off by a hundredth": change_first_layer_by_a_hundredth,
    "score off by a thousandth": lambda model: scale_output(model, "score", 1.001),
    "map off by a hundredth": lambda model: scale_output(model, "map", 1.01),
}


@pytest.mark.parametrize("method", METHODS)
def test_damaged_graph_is_refused_and_the_whole_one_is_not(
    trained: Callable[[str], Any], parts: Path, method: str
) -> None:
    run = trained(method)
    model, parity = restore(run.folder)[0], run.bundle.spec.parity
    tolerance = Tolerance(
        parity["score_allowed"], parity["map_allowed"], size=parity["score_allowed"] / SCORE_TOLERANCE
    )
    files = sorted(parts.rglob("*.png"))[::6]  # several, as in the gate: a saturated score shows no damage

    missed = []
    for name, damage in DAMAGES.items():
        damaged = onnx.load_from_string(run.bundle.model)
        damage(damaged)
        inspector = Inspector.load(Bundle(run.bundle.spec, damaged.SerializeToString()))
        try:
            check_parity(model, inspector, files, tolerance)
        except FlawsmithError as error:
            assert "the exported model" in str(error)
        else:
            missed.append(name)

    assert not missed
    assert check_parity(model, Inspector.load(run.bundle), files, tolerance)["images"] == 4
