"""Running an ONNX graph on the CPU: ONNX Runtime by default, OpenVINO on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from flawsmith.runtime.bundle import EngineName, Precision
from flawsmith.runtime.errors import FlawsmithError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL_DATA = 13

# Where messages hold messages that may hold tensors: field numbers of onnx.proto (IR version 3 and later).
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}


def refers_to_files(model: bytes) -> bool:
    """Tells whether any tensor of a graph is to be read from another file.

    Such a reference may name any path of the machine, and engines differ in which they follow.

    Args:
        model: an ONNX file.

    Raises:
        ValueError: the bytes are not a protocol-buffer message.
    """
    waiting = [("Model", memoryview(model))]
    while waiting:
        kind, content = waiting.pop()
        for number, child in _messages(content):
            if kind == "Tensor":
                if number == _EXTERNAL_DATA:
                    return True
            elif number in _CHILDREN[kind]:
                waiting.append((_CHILDREN[kind][number], child))
    return False


def _messages(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of each length-delimited field; the others are skipped."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        wire = key & 7
        if wire == _VARINT:
            _, position = _varint(content, position)
        elif wire == _BYTES:
            length, position = _varint(content, position)
            if position + length > len(content):
                raise ValueError("a field is longer than its message")
            yield key >> 3, content[position : position + length]
            position += length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("an unknown kind of field")


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is cut off or too long")


_SILENT = 4  # ONNX Runtime's severity "fatal": its messages to stderr are nothing a user could fix.


class Port(NamedTuple):
    """An input or output of a graph.

    Attributes:
        name: as the graph names it.
        shape: lengths of the axes, None where any length goes.
    """

    name: str
    shape: tuple[int | None, ...]


class Engine(Protocol):
    """A compiled graph with one input: a batch of normalised images, or whatever the graph takes."""

    name: EngineName
    precision: Precision
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Returns the outputs for a batch, in the graph's order. May be called from several threads."""


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU in float32.

    Args:
        model: the ONNX graph.
        threads: threads for one run; None: one a core.

    Raises:
        FlawsmithError: the graph cannot be read or needs an operator this ONNX Runtime has not.
    """

    name: EngineName = "onnxruntime"
    precision: Precision = "float32"

    def __init__(self, model: bytes, *, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _checked(threads) or 0
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = _SILENT
        _check_self_contained(model)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # Its exceptions share no public base but Exception.
            raise FlawsmithError(f"ONNX Runtime cannot load the model ({_line(error)}); export it anew") from None
        self.inputs = tuple(Port(port.name, _shape(port.shape)) for port in self._session.get_inputs())
        self.outputs = tuple(Port(port.name, _shape(port.shape)) for port in self._session.get_outputs())

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Runs the graph on one batch.

        Args:
            batch: float32 of the input's shape.

        Returns:
            The outputs, in the graph's order.
        """
        outputs: list[NDArray[np.float32]] = self._session.run(None, {self.inputs[0].name: batch})
        return outputs


class OpenVinoEngine:
    """OpenVINO on the CPU; much faster than ONNX Runtime where the CPU has matrix units for bfloat16.

    Args:
        model: the ONNX graph.
        precision: ``float32``, or ``bfloat16`` where the CPU has it (OpenVINO itself would choose by CPU;
            here it is set, so that machines agree).
        threads: threads for one run; None: one a core.

    Raises:
        FlawsmithError: OpenVINO is not installed or cannot read the graph.
    """

    name: EngineName = "openvino"

    def __init__(
        self,
        model: bytes,
        *,
        precision: Precision = "float32",
        threads: int | None = None,
        batch: int | None = None,
    ) -> None:
        try:
            import openvino
        except ImportError:
            raise FlawsmithError("the engine openvino is not installed; pip install 'flawsmith[openvino]'") from None
        _check_self_contained(model)
        self.precision = precision
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if _checked(threads) is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            graph = core.read_model(model)
            if batch is not None:
                shape = graph.input(0).get_partial_shape()
                shape[0] = batch
                graph.reshape(shape)
            compiled = core.compile_model(graph, "CPU", settings)
        except Exception as error:
            raise FlawsmithError(f"OpenVINO cannot load the model ({_line(error)}); export it anew") from None
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self.inputs = tuple(_openvino_port(port) for port in compiled.inputs)
        self.outputs = tuple(_openvino_port(port) for port in compiled.outputs)

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Runs the graph on one batch.

        Args:
            batch: float32 of the input's shape.

        Returns:
            The outputs, in the graph's order.
        """
        # A request holds one run's tensors: runs of several threads take turns, and results are copied out.
        with self._lock:
            results = self._request.infer([batch], share_inputs=True)
            return [np.array(results[index], np.float32) for index in range(len(self.outputs))]


def make_engine(
    name: str,
    model: bytes,
    *,
    precision: Precision = "float32",
    threads: int | None = None,
    batch: int | None = None,
) -> Engine:
    """Compiles a graph for an engine.

    Args:
        name: ``onnxruntime`` or ``openvino``.
        model: the ONNX graph.
        precision: what the engine shall compute in.
        threads: threads for one run; None: one a core.
        batch: the only batch size that will be run; None: any. ONNX Runtime gains nothing by knowing it.

    Raises:
        FlawsmithError: unknown engine, a precision it has not, not installed, or a graph it cannot read.
    """
    if name == "onnxruntime":
        if precision != "float32":
            raise FlawsmithError(f"the engine onnxruntime computes in float32, not in {precision}; use openvino")
        return OnnxRuntimeEngine(model, threads=threads)
    if name == "openvino":
        return OpenVinoEngine(model, precision=precision, threads=threads, batch=batch)
    raise FlawsmithError(f"unknown engine {name!r}; known are onnxruntime and openvino")


def check_detector(engine: Engine, size: tuple[int, int]) -> tuple[int, int]:
    """Checks that a graph is a detector for images of this size.

    Args:
        engine: the compiled graph.
        size: (h, w) of the geometry.

    Returns:
        Positions of ``map`` and ``score`` among the outputs.

    Raises:
        FlawsmithError: another input or other outputs than the bundle's contract says.
    """
    height, width = size
    names = [port.name for port in engine.outputs]
    if len(engine.inputs) != 1 or engine.inputs[0].name != "image" or sorted(names) != ["map", "score"]:
        raise FlawsmithError(
            f"the model takes {[port.name for port in engine.inputs]} and gives {names}; needed are "
            "the input 'image' and the outputs 'map' and 'score': export it anew"
        )
    ports = (engine.inputs[0], engine.outputs[names.index("map")], engine.outputs[names.index("score")])
    shapes: tuple[tuple[int | None, ...], ...] = ((None, 3, height, width), (None, height, width), (None,))
    for port, shape in zip(ports, shapes, strict=True):
        if not _fits(port.shape, shape):
            raise FlawsmithError(
                f"the model's {port.name!r} has the shape {port.shape}, its geometry needs {shape}; export it anew"
            )
    return names.index("map"), names.index("score")


def _check_self_contained(model: bytes) -> None:
    try:
        outside = refers_to_files(model)
    except ValueError as error:
        raise FlawsmithError(f"cannot load the model, it is not ONNX ({error}); export it anew") from None
    if outside:
        raise FlawsmithError("the model keeps weights in other files; export it as one self-contained ONNX graph")


def _fits(shape: tuple[int | None, ...], needed: tuple[int | None, ...]) -> bool:
    # The batch axis must take one image; unknown lengths elsewhere show themselves at the first run.
    return (
        len(shape) == len(needed)
        and shape[0] in (None, 1)
        and all(have is None or have == want for have, want in zip(shape[1:], needed[1:], strict=True))
    )


def _shape(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(length if isinstance(length, int) else None for length in shape)


def _openvino_port(port: Any) -> Port:
    shape = tuple(length.get_length() if length.is_static else None for length in port.get_partial_shape())
    return Port(port.get_any_name(), shape)


def _checked(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise FlawsmithError(f"threads must be at least 1, not {threads}")
    return threads


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
