"""Running an ONNX graph: ONNX Runtime on the CPU by default, OpenVINO or another device on request."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from flawsmith.runtime.bundle import EngineName, Precision
from flawsmith.runtime.devices import DeviceName, providers_of, record_assignment, refuse_fallback, unusable
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.onnxfile import FOLDED_BYTES, check_graph
from flawsmith.runtime.system import confine

if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
    onnxruntime.disable_telemetry_events()  # on Windows, where the variable is not asked for

_SILENT = 4  # ONNX Runtime's severity "fatal": its messages to stderr are nothing a user could fix.
onnxruntime.set_default_logger_severity(_SILENT)
MEMORY_BYTES = 4 * 2**30
"""The most that ONNX Runtime takes for the weights and values of all models that inspect in a process; with OpenVINO,
the most that the values of one model may take at a time by their shapes."""
MAX_SECONDS = 600.0
"""The most that an inspector lets the network work on one image, or on one tile of it."""
_FLOATS = ("tensor(float)", "f32")  # the element type in either engine's words


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

    precision: Precision
    device: DeviceName
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def name(self) -> str:
        """What computes the graph."""

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Returns the outputs for a batch, in the graph's order. May be called from several threads."""


@dataclass(eq=False)
class _TimedRun:
    seconds_left: float
    stop: Callable[[], object]


class _Watchdog:
    """Stops runs that take too long.

    One thread of the process counts the seconds while something runs, instead of a timer for each run, which would cost
    more than a tenth of a millisecond. Time in which the whole process stands still, as after Ctrl-Z, does not count.
    """

    TICK = 1.0  # seconds

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[_TimedRun] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, seconds: float | None, stop: Callable[[], object]) -> Iterator[None]:
        """Calls ``stop`` from another thread, again and again, where the block takes longer; None: any time.

        Raises:
            FlawsmithError: the block took longer and ended in an error.
        """
        if seconds is None:
            yield
            return
        run = _TimedRun(seconds, stop)
        with self._lock:
            self._runs.add(run)
            if self._thread is None or not self._thread.is_alive():  # it does not live on in a forked process
                self._thread = threading.Thread(target=self._count, name="flawsmith-watchdog", daemon=True)
                self._thread.start()
        try:
            yield
        except Exception:
            if run.seconds_left > 0:
                raise
            raise FlawsmithError(
                f"the model works on one image for more than {seconds:g} s and was stopped; use another model, or give "
                "Inspector.load a larger max_seconds"
            ) from None
        finally:
            with self._lock:
                self._runs.discard(run)

    def _count(self) -> None:
        while True:
            time.sleep(self.TICK)
            with self._lock:
                if not self._runs:
                    self._thread = None
                    return
                for run in self._runs:
                    run.seconds_left -= self.TICK
                    if run.seconds_left <= 0:
                        run.stop()


_watchdog = _Watchdog()


class OnnxRuntimeEngine:
    """ONNX Runtime, in whatever precision the graph has; float32 is computed as such on every device.

    Args:
        model: the ONNX graph.
        precision: that of the graph: ``float32``, ``float16`` or ``int8``.
        device: where it computes, of those that are here; see :func:`flawsmith.runtime.devices.choose_device`.
        threads: threads for one run; None: one a core.
        bounded: take no more than `MEMORY_BYTES`, from a store that all such engines of the process share and that
            stays with the process.
        max_seconds: stop a run that takes longer, between two nodes of the graph; None: any time.

    Raises:
        FlawsmithError: the graph cannot be read or needs an operator this ONNX Runtime has not, or the device does not
            compute it.
    """

    name: EngineName = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        *,
        precision: Precision = "float32",
        device: DeviceName = "cpu",
        threads: int | None = None,
        bounded: bool = False,
        max_seconds: float | None = None,
    ) -> None:
        check_graph(model)
        self.precision, self.device = precision, device
        options = _session_options(model)
        options.intra_op_num_threads = _checked(threads) or 0
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        if bounded:
            _share_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
        if device == "directml":
            options.enable_mem_pattern = False  # its provider asks for that
        if device != "cpu":
            record_assignment(options)
        self._session = _session(model, options, device, MEMORY_BYTES if bounded else None)
        refuse_fallback(self._session, device)
        self.inputs = tuple(_port(port.name, port.type, port.shape) for port in self._session.get_inputs())
        self.outputs = tuple(_port(port.name, port.type, port.shape) for port in self._session.get_outputs())
        self._max_seconds = max_seconds
        self._remake = partial(
            OnnxRuntimeEngine,
            model,
            precision=precision,
            device=device,
            threads=threads,
            bounded=bounded,
            max_seconds=max_seconds,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self._remake, ()  # another process compiles the graph anew

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Runs the graph on one batch.

        Args:
            batch: float32 of the input's shape.

        Returns:
            The outputs, in the graph's order.

        Raises:
            FlawsmithError: the graph cannot be computed, such as for want of memory, or takes too long.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        try:
            with _watchdog.watch(self._max_seconds, partial(setattr, options, "terminate", True)):
                outputs: list[NDArray[np.float32]] = self._session.run(None, {self.inputs[0].name: batch}, options)
        except FlawsmithError:
            raise
        except Exception as error:
            raise FlawsmithError(f"ONNX Runtime cannot run the model ({_line(error)}); export it anew") from None
        return outputs


class OpenVinoEngine:
    """OpenVINO on the CPU; much faster than ONNX Runtime where the CPU has matrix units for bfloat16.

    Args:
        model: the ONNX graph.
        precision: ``float32``, or ``bfloat16`` where the CPU has it (OpenVINO itself would choose by CPU;
            here it is set, so that machines agree); ``int8`` of a graph that is quantized.
        threads: threads for one run; None: one a core.
        batch: the batch size that is usually run; another one is compiled when it first comes. None: any.
        bounded: refuse a graph whose values take more than `MEMORY_BYTES` at a time, or whose shapes do not say; needs
            ``batch``.
        max_seconds: stop a run that takes longer, between two nodes of the graph; None: any time.

    Raises:
        FlawsmithError: OpenVINO is not installed or cannot read the graph, or it takes too much memory.
    """

    name: EngineName = "openvino"
    device: DeviceName = "cpu"

    def __init__(
        self,
        model: bytes,
        *,
        precision: Precision = "float32",
        threads: int | None = None,
        batch: int | None = None,
        bounded: bool = False,
        max_seconds: float | None = None,
    ) -> None:
        openvino = _import_openvino()
        check_graph(model)
        _check_operators(model)
        self.precision = precision
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
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
            if bounded:
                _check_memory(graph)
            compiled = core.compile_model(graph, "CPU", settings)
        except FlawsmithError:
            raise
        except Exception as error:
            raise FlawsmithError(f"OpenVINO cannot load the model ({_line(error)}); export it anew") from None
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self.inputs = tuple(_openvino_port(port) for port in compiled.inputs)
        self.outputs = tuple(_openvino_port(port) for port in compiled.outputs)
        self._max_seconds, self._batch = max_seconds, batch
        self._other: OpenVinoEngine | None = None
        self._remake = partial(
            OpenVinoEngine,
            model,
            precision=precision,
            threads=threads,
            batch=batch,
            bounded=bounded,
            max_seconds=max_seconds,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self._remake, ()

    def _of_size(self, batch: int) -> OpenVinoEngine:
        """The same graph for another batch size; the last of them is kept."""
        with self._lock:
            if self._other is None or self._other._batch != batch:
                self._other = self._remake(batch=batch)
            return self._other

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Runs the graph on one batch.

        Args:
            batch: float32 of the input's shape.

        Returns:
            The outputs, in the graph's order.

        Raises:
            FlawsmithError: the graph cannot be computed, such as for want of memory, or takes too long.
        """
        if self._batch not in (None, len(batch)):
            return self._of_size(len(batch)).run(batch)
        # A request holds one run's tensors: runs of several threads take turns, and results are copied out.
        with self._lock:
            try:
                with _watchdog.watch(self._max_seconds, self._request.cancel):
                    self._request.start_async([batch], share_inputs=True)
                    self._request.wait()
                    results = self._request.results
            except FlawsmithError:
                raise
            except Exception as error:
                raise FlawsmithError(f"OpenVINO cannot run the model ({_line(error)}); export it anew") from None
            return [np.array(results[index], np.float32) for index in range(len(self.outputs))]


def make_engine(
    name: str,
    model: bytes,
    *,
    precision: Precision = "float32",
    device: DeviceName = "cpu",
    threads: int | None = None,
    batch: int | None = None,
    max_seconds: float | None = None,
) -> Engine:
    """Compiles a graph for an engine.

    Args:
        name: ``onnxruntime`` or ``openvino``.
        model: the ONNX graph.
        precision: what the engine shall compute in; the graph has ``float16`` and ``int8`` in itself.
        device: where ONNX Runtime computes, of those that are here.
        threads: threads for one run; None: one a core.
        batch: the batch size that is usually run; None: any. ONNX Runtime gains nothing by knowing it, but the
            memory of either engine is bounded where it is 1, which is an inspector's.
        max_seconds: stop a run that takes longer; None: any time.

    Raises:
        FlawsmithError: unknown engine, a precision it has not, not installed, or a graph it cannot read.
    """
    if name == "onnxruntime":
        if precision == "bfloat16":
            raise FlawsmithError("the engine onnxruntime computes in float32, not in bfloat16; use openvino")
        return OnnxRuntimeEngine(
            model, precision=precision, device=device, threads=threads, bounded=batch == 1, max_seconds=max_seconds
        )
    if name == "openvino":
        if device != "cpu":
            raise FlawsmithError(
                f"the engine openvino computes on the CPU: leave --device {device} out, or --engine openvino"
            )
        if precision == "float16":
            raise FlawsmithError("the engine openvino computes in float32, bfloat16 or int8, not in float16")
        return OpenVinoEngine(
            model, precision=precision, threads=threads, batch=batch, bounded=batch == 1, max_seconds=max_seconds
        )
    raise FlawsmithError(f"unknown engine {name!r}; known are onnxruntime and openvino")


_TRIAL = "import json, pickle, sys; sys.path[:] = json.loads(sys.argv[1]); pickle.load(sys.stdin.buffer)()"
_REFUSED = 3


def run_apart(work: Callable[[], Any], *, seconds: float, too_long: str, is_memory_bounded: bool = True) -> Any:
    """Runs a function in a process of its own, which is ended where it takes too long.

    On Linux its memory is bounded too, by twice `MEMORY_BYTES`. Should this process be killed meanwhile, the other ends
    when its time is over.

    Args:
        work: can be pickled; what it returns is ready for JSON.
        seconds: for all of it, the start of Python included, which takes one or two.
        too_long: what is said where it takes longer.
        is_memory_bounded: whether its memory is bounded.

    Returns:
        What the function returned.

    Raises:
        FlawsmithError: the function raised it, takes too long, or ended the process.
    """
    command = [sys.executable, "-c", _TRIAL, json.dumps(sys.path)]
    confined = pickle.dumps(partial(_confined, work, math.ceil(seconds), is_memory_bounded))
    try:
        child = subprocess.run(command, input=confined, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise FlawsmithError(too_long) from None
    except OSError as error:
        raise FlawsmithError(f"cannot start a process to try the model in ({error.strerror})") from None
    words = child.stderr.decode(errors="replace").strip()
    if child.returncode == _REFUSED:
        raise FlawsmithError(words)
    answers = child.stdout.splitlines()
    if child.returncode or not answers:  # native code can end a process with any code, 0 too
        reason = " ".join(words.split())[-160:] or f"code {child.returncode}"
        raise FlawsmithError(f"the model ended the process that tried it ({reason}); use another model")
    return json.loads(answers[-1])


def _confined(work: Callable[[], Any], seconds: int, is_memory_bounded: bool) -> None:
    confine(seconds, 2 * MEMORY_BYTES if is_memory_bounded else None)
    try:
        print(json.dumps(work()))
    except FlawsmithError as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)


def try_engine(
    name: str,
    model: bytes,
    size: tuple[int, int],
    *,
    seconds: float,
    precision: Precision = "float32",
    device: DeviceName = "cpu",
    threads: int | None = None,
) -> None:
    """Compiles a graph and runs it once in a process of its own, which is ended where it takes too long.

    What cannot be bounded from within is bounded so: a single node that computes for hours, and compiling. On Linux
    memory is bounded too, by twice `MEMORY_BYTES`.

    Args:
        name: ``onnxruntime`` or ``openvino``.
        model: the ONNX graph.
        size: (h, w) of the black image that it is given.
        seconds: for all of it, the start of Python included, which takes one or two.
        precision, device, threads: as of `make_engine`.

    Raises:
        FlawsmithError: as of `make_engine`; it takes longer, or ends the process.
    """
    run_apart(
        partial(_run_once, name, model, size, precision=precision, device=device, threads=threads),
        seconds=seconds,
        too_long=f"the model takes more than {seconds:g} s to be loaded and to work on one image; use another model, "
        "or give Inspector.load a larger trial_seconds",
        is_memory_bounded=device == "cpu",  # drivers of GPUs map more than any machine has
    )


def _run_once(name: str, model: bytes, size: tuple[int, int], **settings: Any) -> None:
    make_engine(name, model, batch=1, **settings).run(np.zeros((1, 3, *size), np.float32))


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


def _check_operators(model: bytes) -> None:
    """Lets ONNX Runtime look at every node: OpenVINO follows a missing input into the void, which ends the process."""
    options = _session_options(model)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    _session(model, options)


def _session_options(model: bytes) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    # Should a file get past `check_graph`: it is ONNX, there is no folder of its own, and constants stay small.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    folded = str(max(FOLDED_BYTES, len(model)))
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", folded)
    return options


def _session(
    model: bytes,
    options: onnxruntime.SessionOptions,
    device: DeviceName = "cpu",
    memory_bytes: int | None = None,
) -> onnxruntime.InferenceSession:
    try:
        # Without its way of trying again, which prints a banner on stdout.
        return onnxruntime.InferenceSession(
            model, options, providers=providers_of(device, memory_bytes), enable_fallback=0
        )
    except Exception as error:
        # Its exceptions share no public base but Exception.
        if device != "cpu":
            raise unusable(device, f"ONNX Runtime cannot use it ({_line(error)})") from None
        raise FlawsmithError(f"ONNX Runtime cannot load the model ({_line(error)}); export it anew") from None


@cache
def _share_memory() -> None:
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": MEMORY_BYTES}))


def _check_memory(graph: Any) -> None:
    """Refuses an OpenVINO graph whose values take too much at a time; OpenVINO itself takes what the system gives.

    A value counts from the node that gives it to the last one that takes it, at its shape; what an operator needs
    besides is not known here.
    """
    nodes = graph.get_ordered_ops()
    place = {node.get_name(): index for index, node in enumerate(nodes)}
    taken, freed = 0, [0] * (len(nodes) + 1)
    for index, node in enumerate(nodes):
        for value in node.outputs():
            shape = value.get_partial_shape()
            if shape.is_dynamic:
                raise FlawsmithError(
                    "the size of its values depends on the image, which no detector needs; export it anew"
                )
            size = math.prod(shape.to_shape()) * value.get_element_type().size
            takers = [place[taker.get_node().get_name()] for taker in value.get_target_inputs()]
            taken += size
            freed[max(takers, default=index)] += size
        if taken > MEMORY_BYTES:
            raise FlawsmithError(f"it takes more than {MEMORY_BYTES // 2**30} GiB of memory; use another model")
        taken -= freed[index]


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise FlawsmithError("the engine openvino is not installed; pip install 'flawsmith[openvino]'") from None
    return openvino


def _fits(shape: tuple[int | None, ...], needed: tuple[int | None, ...]) -> bool:
    # The batch axis must take one image; unknown lengths elsewhere show themselves at the first run.
    return (
        len(shape) == len(needed)
        and shape[0] in (None, 1)
        and all(have is None or have == want for have, want in zip(shape[1:], needed[1:], strict=True))
    )


def _port(name: str, element: str, shape: Iterable[Any]) -> Port:
    if element not in _FLOATS:
        raise FlawsmithError(f"the model's {name!r} holds {element}, needed is float32; export it anew")
    return Port(name, tuple(length if isinstance(length, int) else None for length in shape))


def _openvino_port(port: Any) -> Port:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise FlawsmithError(f"the model's {port.get_any_name()!r} has any number of axes; export it anew")
    lengths = (length.get_length() if length.is_static else None for length in shape)
    return _port(port.get_any_name(), port.get_element_type().get_type_name(), lengths)


def _checked(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise FlawsmithError(f"threads must be at least 1, not {threads}")
    return threads


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
