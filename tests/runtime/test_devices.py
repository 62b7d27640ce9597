"""Devices are chosen by name, say what is missing, and never give way to the CPU unseen."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from flawsmith.cli.main import main
from flawsmith.pipeline.describe import doctor
from flawsmith.runtime import devices
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.devices import DEVICES, choose_device, providers_of
from flawsmith.runtime.engine import make_engine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

IMAGE = np.full((32, 48, 3), 140, np.uint8)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An ONNX Runtime that knows CUDA by name and computes on the CPU; says what sessions are asked for."""
    seen: dict[str, Any] = {"has": [CUDA, CPU], "computes": [CUDA]}
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any, providers: list[Any], **more: Any) -> Any:
        seen["providers"] = providers
        made = real(model, options, providers=[CPU], **more)
        return SimpleNamespace(
            run=made.run,
            get_inputs=made.get_inputs,
            get_outputs=made.get_outputs,
            get_providers=lambda: seen["has"],
            get_provider_graph_assignment_info=lambda: [SimpleNamespace(ep_name=name) for name in seen["computes"]],
        )

    session.get_provider_graph_assignment_info = None  # type: ignore[attr-defined]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return seen


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "cpu"])
def test_device_that_is_not_here_names_the_package_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])

    with pytest.raises(FlawsmithError, match=f"--device {name} needs onnxruntime") as error:
        choose_device(name)

    assert "\n" not in str(error.value)


def test_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(FlawsmithError, match="no device 'gpu': give cpu, cuda, tensorrt"):
        choose_device("gpu")


def test_auto_takes_what_is_here_and_says_so_in_every_result(bundle: Bundle, with_cuda: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="this is onnxruntime in float32 on cuda"):
        inspector = Inspector.load(bundle, device="auto")

    assert (inspector.device, inspector.calibrated) == ("cuda", False)
    assert inspector.inspect(IMAGE).to_dict()["device"] == "cuda"


def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", CPU])

    assert choose_device("auto") == "cpu"


def test_results_of_the_cpu_are_as_before(bundle: Bundle) -> None:
    assert "device" not in Inspector.load(bundle).inspect(IMAGE).to_dict()


@pytest.mark.parametrize(
    ("has", "computes"), [([CPU], [CPU]), ([CUDA, CPU], [CPU])], ids=["no provider", "provider without a node"]
)
def test_fall_back_to_the_cpu_is_refused(
    bundle: Bundle, with_cuda: dict[str, Any], has: list[str], computes: list[str]
) -> None:
    with_cuda.update(has=has, computes=computes)

    with pytest.raises(FlawsmithError, match="--device cuda: ONNX Runtime has fallen back to the CPU"):
        Inspector.load(bundle, device="cuda")


def test_device_whose_libraries_are_missing_is_named(
    bundle: Bundle, with_cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)

    with pytest.raises(FlawsmithError, match=r"--device cuda: .*libcudart.*onnxruntime-gpu is missing or does not fit"):
        Inspector.load(bundle, device="cuda")


def test_cuda_computes_float32_as_such_within_the_memory_that_is_allowed(
    bundle: Bundle, with_cuda: dict[str, Any]
) -> None:
    make_engine("onnxruntime", bundle.model, device="cuda", batch=1)

    (name, options), beside = with_cuda["providers"]
    assert (name, beside) == (CUDA, CPU)
    assert options["use_tf32"] == "0"
    assert int(options["gpu_mem_limit"]) == 4 * 2**30
    assert providers_of("cpu", None) == [CPU]


def test_inspector_of_a_device_comes_back_on_it_from_a_pickle(bundle: Bundle, with_cuda: dict[str, Any]) -> None:
    engine = make_engine("onnxruntime", bundle.model, device="cuda", batch=1)

    assert pickle.loads(pickle.dumps(engine)).device == "cuda"


def test_engine_openvino_knows_no_device(bundle: Bundle, with_cuda: dict[str, Any]) -> None:
    with pytest.raises(FlawsmithError, match="openvino computes on the CPU"):
        Inspector.load(bundle, engine="openvino", device="cuda")


def test_commands_say_in_one_line_that_a_device_is_missing(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.onnxruntime, "get_available_providers", lambda: [CPU])
    bundle.save(tmp_path / "model.flaw")
    model = str(tmp_path / "model.flaw")
    for command in (["doctor", model], ["predict", model, model], ["calibrate", model, str(tmp_path)]):
        assert main([*command, "--device", "directml"]) == 2
        stderr = capsys.readouterr().err
        assert "error" in stderr and stderr.count("\n") == 1, command


@pytest.mark.parametrize(("difference", "severity"), [(0.0, "note"), (5e-3, "warning"), (0.5, "error")])
def test_doctor_holds_a_device_against_the_cpu(
    bundle: Bundle,
    with_cuda: dict[str, Any],
    difference: float,
    severity: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = bundle.spec.model_copy(update={"parity": {"score_allowed": 5e-5, "map_allowed": 5e-4}})
    good = {"good": np.linspace(0.1, 0.5, 19), "good_levels": np.linspace(0.1, 0.5, 19)}
    Bundle(spec, bundle.model, good).save(tmp_path / "model.flaw")
    plain = Inspector._infer

    def shifted(self: Inspector, batch: Any) -> Any:
        score, anomaly_map = plain(self, batch)
        return score + (difference if self.device == "cuda" else 0.0), anomaly_map

    monkeypatch.setattr(Inspector, "_infer", shifted)

    findings = doctor(tmp_path / "model.flaw", device="cuda")

    (item,) = [item for item in findings.items if item.name.startswith("device")]
    assert item.severity == severity
    assert "cuda against cpu on 3 drawn images" in item.what
