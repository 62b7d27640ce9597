"""A graph that is not the trained model is refused, of every method: what the gate allows is rounding alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from flawsmith.export import SCORE_TOLERANCE, Tolerance, check_parity
from flawsmith.pipeline.restore import restore
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

METHODS = ("aand", "glass", "padim", "patchcore", "pbas", "rd4ad", "slsg")


def weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The matrices and kernels of a graph in the order of their use; not the sizes that operators take."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    used = [name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm") for name in node.input[1:2]]
    return [tensors[name] for name in dict.fromkeys(used) if name in tensors]


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)


def off_by_a_hundredth(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1.01)


DAMAGES: dict[str, Callable[[list[onnx.TensorProto]], Iterator[tuple[onnx.TensorProto, np.ndarray]]]] = {
    "weights in bfloat16": lambda used: ((each, as_bfloat16(numpy_helper.to_array(each))) for each in used),
    "first layer": lambda used: ((each, off_by_a_hundredth(numpy_helper.to_array(each))) for each in used[:1]),
    "last layer": lambda used: ((each, off_by_a_hundredth(numpy_helper.to_array(each))) for each in used[-1:]),
}


@pytest.mark.parametrize("method", METHODS)
def test_damaged_graph_is_refused_and_the_whole_one_is_not(
    trained: Callable[[str], Any], parts: Path, method: str
) -> None:
    run = trained(method)
    model, parity = restore(run.folder).model, run.bundle.spec.parity
    size = parity["score_allowed"] / SCORE_TOLERANCE
    tolerance = Tolerance(parity["score_allowed"], parity["map_allowed"], size=size)
    file = sorted((parts / "test" / "good").iterdir())[:1]
    whole = onnx.load_from_string(run.bundle.model)

    assert check_parity(model, Inspector.load(run.bundle), file, tolerance)["images"] == 1
    for damage in DAMAGES.values():
        damaged = onnx.ModelProto()
        damaged.CopyFrom(whole)
        for tensor, values in list(damage(weights(damaged))):
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        inspector = Inspector.load(Bundle(run.bundle.spec, damaged.SerializeToString()))
        with pytest.raises(FlawsmithError, match=file[0].name):
            check_parity(model, inspector, file, tolerance)
