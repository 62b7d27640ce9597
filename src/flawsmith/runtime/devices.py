"""Where ONNX Runtime computes: devices by name, which of them are here, and that none gives way to the CPU unseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import onnxruntime

from flawsmith.runtime.errors import FlawsmithError

DeviceName = Literal["cpu", "cuda", "tensorrt", "directml", "coreml", "openvino"]
"""``openvino`` is an Intel GPU by ONNX Runtime's provider; the engine of that name computes on the CPU."""

AUTO = "auto"


class Device(NamedTuple):
    """What ONNX Runtime calls a device.

    Attributes:
        provider: name of its execution provider.
        package: what to install where the provider is missing.
        options: of the provider: float32 computed as such, and nothing chosen by timing.
    """

    provider: str
    package: str
    options: Mapping[str, Any]


DEVICES: Mapping[DeviceName, Device] = {
    "cpu": Device("CPUExecutionProvider", "onnxruntime", {}),
    "cuda": Device(
        "CUDAExecutionProvider", "onnxruntime-gpu", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    ),
    "tensorrt": Device("TensorrtExecutionProvider", "onnxruntime-gpu and NVIDIA's TensorRT", {"trt_fp16_enable": "0"}),
    "directml": Device("DmlExecutionProvider", "onnxruntime-directml", {}),
    "coreml": Device("CoreMLExecutionProvider", "onnxruntime, on a Mac", {"ModelFormat": "MLProgram"}),
    "openvino": Device(
        "OpenVINOExecutionProvider", "onnxruntime-openvino", {"device_type": "GPU", "precision": "FP32"}
    ),
}

_BY_PREFERENCE: tuple[DeviceName, ...] = ("cuda", "directml", "coreml", "openvino", "cpu")
"""Of what `AUTO` takes the first that is here. TensorRT is left out: it compiles for minutes."""


def choose_device(name: str) -> DeviceName:
    """The device of a name, where this installation of ONNX Runtime knows it.

    Args:
        name: of `DEVICES`, or ``auto``: the first that is here. What was chosen stands in every result.

    Raises:
        FlawsmithError: no such name, or its provider is not installed.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    here = onnxruntime.get_available_providers()
    if name == AUTO:
        return next(device for device in _BY_PREFERENCE if DEVICES[device].provider in here)
    for device, (provider, package, _) in DEVICES.items():
        if device == name:
            if provider not in here:
                raise FlawsmithError(
                    f"--device {name} needs {package}, which is not installed: put that package in the place of "
                    "onnxruntime, or leave --device out"
                )
            return device
    raise FlawsmithError(f"there is no device {name!r}: give {', '.join(get_args(DeviceName))} or {AUTO}")


def providers_of(device: DeviceName, memory_bytes: int | None) -> list[Any]:
    """What an ``InferenceSession`` takes: the device's provider, then the CPU for what little it does not compute.

    Args:
        memory_bytes: the most that the device may take, where its provider can bound that; None: any.
    """
    if device == "cpu":
        return [DEVICES["cpu"].provider]
    provider, _, options = DEVICES[device]
    bound = {"gpu_mem_limit": str(memory_bytes)} if device == "cuda" and memory_bytes is not None else {}
    return [(provider, {**options, **bound}), DEVICES["cpu"].provider]


_RECORD = "session.record_ep_graph_assignment_info"


def record_assignment(options: onnxruntime.SessionOptions) -> None:
    """Have a session remember which provider computes which node, where this ONNX Runtime can."""
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        options.add_session_config_entry(_RECORD, "1")


def unusable(device: DeviceName, reason: str) -> FlawsmithError:
    """What is to be said where a device that is installed does not compute."""
    package = DEVICES[device].package
    return FlawsmithError(
        f"--device {device}: {reason}: the driver or a library of {package} is missing or does not fit; install them, "
        "or leave --device out"
    )


def refuse_fallback(session: onnxruntime.InferenceSession, device: DeviceName) -> None:
    """Hold a session against the device that was asked for: ONNX Runtime goes on with the CPU without a word.

    Raises:
        FlawsmithError: it has not the device's provider, or gives no node to it.
    """
    if device == "cpu":
        return
    provider = DEVICES[device].provider
    taken = provider in session.get_providers()
    if taken and hasattr(session, "get_provider_graph_assignment_info"):
        taken = any(part.ep_name == provider for part in session.get_provider_graph_assignment_info())
    if not taken:
        raise unusable(device, "ONNX Runtime has fallen back to the CPU")
