"""A model's graph in other precisions and forms: half precision, 8 bits, OpenVINO's own files.

The features alone change their precision. What follows them stays in float32: ranges of 8 bits are those of good
images, and whatever the end of a network says beyond them, such as the score of a flaw, would be cut off; distances,
whose squares exceed what half precision holds, would too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.errors import FlawsmithError

_FEATURES = (".backbone.", ".encoder.")
"""What stands in the names of weights that make features."""


def to_float16(model: bytes) -> bytes:
    """A graph whose features are computed in half precision; its input and outputs stay float32.

    Args:
        model: an ONNX graph of Flawsmith's.

    Raises:
        FlawsmithError: a package is missing, or nothing in the graph makes features.
    """
    onnx = _import_onnx()
    with _quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        graph = onnx.load_from_string(model)
        converted = convert_float_to_float16(graph, keep_io_types=True, node_block_list=_behind_features(graph))
        ordered = OnnxModel(converted)
        ordered.topological_sort()
    return bytes(ordered.model.SerializeToString(deterministic=True))


def to_int8(model: bytes, inputs: Sequence[NDArray[np.float32]]) -> bytes:
    """A graph whose features are computed in 8 bits, by NNCF's post-training quantization.

    Weights use half of their range, so that no sum overflows: CPUs without instructions for 8 bits would cut it off,
    and give other scores than those with them. One range a tensor, which is all that ONNX Runtime's kernels take.

    Args:
        model: an ONNX graph of Flawsmith's.
        inputs: (1, 3, h, w) of good images each, which set the ranges.

    Raises:
        FlawsmithError: a package is missing, or nothing in the graph makes features.
    """
    onnx = _import_onnx()
    with _quiet():
        try:
            import nncf
            from nncf.quantization.advanced_parameters import QuantizationParameters
        except ImportError:
            raise FlawsmithError("8 bits need nncf, which is not installed; pip install 'flawsmith[int8]'") from None
        nncf.set_log_level(logging.ERROR)
        graph = onnx.load_from_string(model)
        quantized = nncf.quantize(
            graph,
            nncf.Dataset([{"image": batch} for batch in inputs]),
            subset_size=len(inputs),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=_behind_features(graph)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                disable_bias_correction=_has_computed_bias(graph),
                activations_quantization_params=QuantizationParameters(per_channel=False),
            ),
        )
    return bytes(quantized.SerializeToString(deterministic=True))


def write_openvino(model: bytes, folder: Path) -> None:
    """Write a graph as OpenVINO's own files, ``model.xml`` and ``model.bin``, which say nothing of this machine.

    Raises:
        FlawsmithError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise FlawsmithError("OpenVINO is not installed; pip install 'flawsmith[openvino]'") from None
    graph = openvino.convert_model(io.BytesIO(model))
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)


def _has_computed_bias(graph: Any) -> bool:
    """Whether a bias comes from a node, as in SLSG's graph module: NNCF 3.4 looks for all of them among the weights."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    return any(
        node.op_type in ("Conv", "ConvTranspose", "Gemm") and not stored.issuperset(filter(None, node.input[2:]))
        for node in graph.graph.node
    )


def _behind_features(graph: Any) -> list[str]:
    """Names of the nodes that compute no features.

    Raises:
        FlawsmithError: none computes features.
    """
    stored = {tensor.name for tensor in graph.graph.initializer}
    makers = {output: node for node in graph.graph.node for output in node.output}
    waiting = [
        node
        for node in graph.graph.node
        if any(name in stored and any(part in name for part in _FEATURES) for name in node.input)
    ]
    features: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in features:
            features.add(node.name)
            waiting += [makers[name] for name in node.input if name in makers]
    if not features:
        raise FlawsmithError("the model has no backbone whose precision could change: export it as onnx or openvino")
    return [node.name for node in graph.graph.node if node.name not in features]


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise FlawsmithError(
            "another precision needs onnx, which is not installed; pip install 'flawsmith[int8]'"
        ) from None
    return onnx


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """These packages tell of their workings on every channel; their failures still raise."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
