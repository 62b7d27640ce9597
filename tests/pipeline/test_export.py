"""Exports: one model for several engines, precisions and languages, refused where it would inspect worse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.pipeline import export
from flawsmith.pipeline.calibrate import calibrate
from flawsmith.pipeline.describe import describe_model
from flawsmith.pipeline.export import TARGETS, export_bundle
from flawsmith.pipeline.quantize import to_float16, to_int8
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.onnxfile import check_graph
from flawsmith.synthesis.synthesizer import AnomalySample

SIZE = (32, 48)


def conv_detector() -> bytes:
    """A graph whose map is the length of features that see edges, as far as they exceed those of smooth images."""
    rng = np.random.default_rng(0)
    kernels = np.concatenate(
        [np.array([[[1, 0, -1]] * 3, [[1] * 3, [0] * 3, [-1] * 3]]), rng.normal(0, 0.2, (6, 3, 3))]
    )
    weights = np.repeat(kernels[:, None], 3, axis=1).astype(np.float32) / 9
    nodes = [
        helper.make_node("Conv", ["image", "detector.backbone.conv.weight"], ["edges"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["features"], "relu"),
        helper.make_node("Conv", ["features", "detector.backbone.last.weight"], ["deep"], "last"),
        helper.make_node("ReduceL2", ["deep", "axis"], ["map"], "length", keepdims=0),
        helper.make_node("ReduceMax", ["map", "axes"], ["score"], "peak", keepdims=0),
    ]
    last = np.concatenate([np.eye(8), rng.normal(0, 0.3, (4, 8))]).astype(np.float32)[:, :, None, None]
    stored = {
        "detector.backbone.conv.weight": weights,
        "detector.backbone.last.weight": last,
        "axis": np.array([1]),
        "axes": np.array([1, 2]),
    }
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, *SIZE])],
        [
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["b", *SIZE]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty smooth images with a little noise."""
    folder = tmp_path_factory.mktemp("images") / "good"
    folder.mkdir()
    for number in range(20):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(90, 150, (3, 4, 3), dtype=np.uint8)).resize((70, 50))
        noise = rng.integers(-6, 7, (50, 70, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def model(tiny: Any, good: Path, tmp_path: Path) -> Path:
    """A model file with limits from the good images."""
    bundle = tiny.make_bundle(geometry=Geometry(size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3))
    spec = bundle.spec.model_copy(update={"parity": {"score_allowed": 1e-4, "map_allowed": 1e-3}})
    plain = Bundle(spec, conv_detector(), bundle.calibration, bundle.card)
    calibrate(plain, good, rate=0.1, review_rate=0.2, out=tmp_path / "model.flaw")
    return tmp_path / "model.flaw"


@pytest.mark.parametrize("target", TARGETS)
def test_folder_holds_all_that_a_program_needs(model: Path, good: Path, tmp_path: Path, target: str) -> None:
    result = export_bundle(model, target, out=tmp_path / "out", images=good)

    facts = json.loads((tmp_path / "out" / "decision.json").read_text(encoding="utf-8"))
    files = {entry.name for entry in (tmp_path / "out").iterdir()}
    graphs = {"model.xml", "model.bin"} if target.startswith("openvino") else {"model.onnx"}
    assert files == {"decision.json", "README.md", "test_vectors", *graphs}
    assert facts["graph"]["file"] in graphs
    assert (facts["graph"]["engine"], facts["graph"]["precision"]) == TARGETS[target]  # type: ignore[index]
    assert set(facts["graph"]["sha256"]) == graphs
    assert (facts["decision"]["decides"], facts["decision"]["limit"]) == ("score", result.after.limit)
    assert facts["geometry"]["size"] == [*SIZE]
    text = "".join(file.read_text(errors="replace") for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert str(tmp_path) not in text


@pytest.mark.parametrize("target", TARGETS)
def test_graph_of_the_folder_gives_the_test_vectors(model: Path, good: Path, tmp_path: Path, target: str) -> None:
    folder = tmp_path / f"model-{target}"
    export_bundle(model, target, images=good, out=folder)
    facts = json.loads((folder / "decision.json").read_text(encoding="utf-8"))

    verdicts = set()
    for vector in facts["test_vectors"]:
        batch = np.fromfile(folder / vector["input"], "<f4").reshape(1, 3, *SIZE)
        np.testing.assert_array_equal(Geometry(**_settings(facts)).apply(decode(folder / vector["image"])), batch[0])
        score, anomaly_map = _run(folder, facts, batch)
        assert score == pytest.approx(vector["score"], abs=facts["tolerance"]["score"])
        expected = np.fromfile(folder / vector["map"], "<f4").reshape(SIZE)
        np.testing.assert_allclose(anomaly_map, expected, atol=facts["tolerance"]["map"])
        verdicts.add(vector["verdict"])
    assert {"pass", "reject"} <= verdicts


def _settings(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts["geometry"].items() if name in Geometry.model_fields}


def _run(folder: Path, facts: dict[str, Any], batch: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and map as a program without Flawsmith computes them."""
    file = folder / facts["graph"]["file"]
    if facts["graph"]["engine"] == "onnxruntime":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        anomaly_map, score = session.run(["map", "score"], {"image": batch})
    else:
        import openvino

        results = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([batch])
        anomaly_map, score = results["map"], results["score"]
    return float(score[0]), anomaly_map[0]


def test_float32_keeps_the_limits_and_needs_no_images(model: Path, tmp_path: Path) -> None:
    result = export_bundle(model, "openvino", out=tmp_path / "out")

    assert (result.after.limit, result.after.n_good) == (result.before.limit, result.before.n_good)
    assert result.separation is None
    facts = json.loads((tmp_path / "out" / "decision.json").read_text(encoding="utf-8"))
    assert len(facts["test_vectors"]) == 3
    assert facts["tolerance"]["score"] == 1e-4


def test_int8_computes_in_8_bits_and_is_measured(model: Path, good: Path) -> None:
    result = export_bundle(model, "onnx-int8", into=True, images=good)

    graph = onnx.load_from_string(Bundle.load(model).graphs["int8"])
    assert {node.op_type for node in graph.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert result.separation is not None
    assert result.separation.good == 20
    assert result.separation.before > 0.7
    assert result.separation.interval[0] <= result.separation.loss <= result.separation.interval[1]
    assert result.after.limit != result.before.limit
    assert (result.after.engine, result.after.precision, result.after.n_good) == ("onnxruntime", "int8", 20)
    assert result.parity["score_allowed"] > 1e-4


def test_new_limits_keep_their_promise_on_the_good_images(model: Path, good: Path) -> None:
    result = export_bundle(model, "openvino-int8", into=True, images=good)

    inspector = Inspector.load(model, engine="openvino", precision="int8")
    rejected = sum(inspector.inspect(file).verdict == "reject" for file in good.iterdir())
    assert inspector.calibrated
    assert inspector.spec.decision == result.after
    assert rejected <= result.after.stated_false_reject_rate * 21 - 1
    assert result.after.target_review_rate == 0.2
    assert result.after.review_limit is not None


def test_model_file_takes_engines_one_after_the_other_and_stays_itself(model: Path, good: Path) -> None:
    before = Bundle.load(model)

    for target in ("openvino", "onnx-int8", "openvino-int8", "onnx-fp16"):
        export_bundle(model, target, into=True, images=good)

    after = Bundle.load(model)
    assert after.model == before.model
    assert after.spec.decision == before.spec.decision
    assert len(after.spec.variants) == 4
    assert set(after.graphs) == {"float16", "int8"}
    assert sum("int8" in line for line in describe_model(model)["variants"]) == 2
    image = next(good.iterdir())
    assert Inspector.load(model).inspect(image).score == Inspector.load(before).inspect(image).score


def test_same_export_gives_the_same_bytes(model: Path, good: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.flaw"
    second.write_bytes(model.read_bytes())
    for file in (model, second):
        export_bundle(file, "onnx-int8", into=True, images=good)
        export_bundle(file, "openvino", out=tmp_path / file.stem)

    assert model.read_bytes() == second.read_bytes()
    for name in ("model.xml", "model.bin", "decision.json", "test_vectors/0.map.f32"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_what_follows_the_features_keeps_its_precision(good: Path) -> None:
    inputs = [Geometry(size=SIZE).apply(decode(file))[None] for file in sorted(good.iterdir())[:4]]

    quantized, halved = (
        onnx.load_from_string(b) for b in (to_int8(conv_detector(), inputs), to_float16(conv_detector()))
    )

    for graph in (quantized, halved):
        check_graph(graph.SerializeToString())
        makers = {output: node for node in graph.graph.node for output in node.output}
        head = next(node for node in graph.graph.node if node.op_type == "ReduceL2")
        assert makers[head.input[0]].op_type in ("Conv", "Cast")
    scores = [
        node for node in quantized.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in ("map", "score")
    ]
    assert not scores, "a score beyond those of good images would be cut off"


def test_loss_beyond_the_bound_is_refused_with_figures_and_nothing_is_written(
    model: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(graph: bytes, inputs: Any) -> bytes:
        loaded = onnx.load_from_string(graph)
        loaded.graph.initializer[0].raw_data = np.full((8, 3, 3, 3), 0.01, np.float32).tobytes()
        return loaded.SerializeToString()

    monkeypatch.setattr(export, "to_int8", worse)
    before = model.read_bytes()

    with pytest.raises(
        FlawsmithError, match=r"AUROC .* before 0\.\d+: a loss of 0\.\d+ \(95 %: .*0\.01 is allowed"
    ) as error:
        export_bundle(model, "onnx-int8", into=True, images=good)
    with pytest.raises(FlawsmithError):
        export_bundle(model, "onnx-int8", out=tmp_path / "out", images=good)

    assert "\n" not in str(error.value)
    assert model.read_bytes() == before
    assert not (tmp_path / "out").exists()
    assert export_bundle(model, "onnx-int8", out=tmp_path / "out", images=good, max_loss=0.9).separation is not None


@pytest.mark.parametrize(("level", "brightest"), [(110, 116), (300, 228), (50, 104)])
def test_flaws_are_faded_by_halves_as_long_as_the_model_finds_them(level: float, brightest: int) -> None:
    class Brightest:
        def measure(self, image: Any) -> Any:
            return SimpleNamespace(score=float(image.max()))

    normal = np.full((8, 8, 3), 100, np.uint8)
    flawed = normal.copy()
    flawed[2:4, 2:4] = 228

    faded = export._faded(AnomalySample(flawed, flawed[:, :, 0] > 100, normal), Brightest(), level)  # type: ignore[arg-type]

    assert (int(faded.max()), faded.dtype, faded[0, 0, 0]) == (brightest, np.uint8, 100)


def test_engine_that_differs_in_float32_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Inspector._infer

    def shifted(self: Inspector, batch: Any) -> Any:
        score, anomaly_map = plain(self, batch)
        return score + (0.1 if self.engine.name == "openvino" else 0.0), anomaly_map

    monkeypatch.setattr(Inspector, "_infer", shifted)

    with pytest.raises(FlawsmithError, match=r"openvino differs from onnxruntime: score by 0\.1"):
        export_bundle(model, "openvino", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_of_the_training_gives_the_images_that_set_the_limits(
    trained_small: Callable[[str], Any], parts: Path, tmp_path: Path
) -> None:
    bundle = trained_small("patchcore").bundle

    result = export_bundle(bundle, "onnx-int8", images=parts, out=tmp_path / "out", max_loss=0.5)

    assert result.after.n_good == bundle.spec.decision.n_good


def test_images_that_were_learned_from_are_refused(
    trained_small: Callable[[str], Any], parts: Path, tmp_path: Path
) -> None:
    bundle = trained_small("patchcore").bundle
    learned = {row.tobytes() for row in bundle.calibration["learned_sha256"]}
    from flawsmith.data.splits import content_hashes

    folder = tmp_path / "good"
    folder.mkdir()
    for file in sorted((parts / "train" / "good").iterdir()):
        if bytes.fromhex(content_hashes([file])[0]) in learned:
            (folder / file.name).write_bytes(file.read_bytes())

    with pytest.raises(FlawsmithError, match="the model learned from it"):
        export_bundle(bundle, "onnx-int8", images=folder, out=tmp_path / "out")


def test_precision_needs_images_and_says_which(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"--to onnx-int8 needs good images .* --images"):
        export_bundle(model, "onnx-int8", out=tmp_path / "out")


def test_graph_without_features_is_refused(tiny: Any, good: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="no backbone"):
        export_bundle(tiny.make_bundle(), "onnx-fp16", images=good, out=tmp_path / "out")


def test_former_export_is_replaced_and_other_folders_are_not(model: Path, tmp_path: Path) -> None:
    export_bundle(model, "openvino", out=tmp_path / "out")
    export_bundle(model, "onnx", out=tmp_path / "out")
    assert not (tmp_path / "out" / "model.xml").exists()
    (tmp_path / "out" / "notes.txt").write_text("mine")

    with pytest.raises(FlawsmithError, match="holds other files"):
        export_bundle(model, "onnx", out=tmp_path / "out")
    with pytest.raises(FlawsmithError, match="is a file"):
        export_bundle(model, "onnx", out=model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--to", "tflite"], "--to tflite is not possible: give onnx, openvino"),
        (["--to", "onnx", "--into"], "are those of onnx already"),
        (["--to", "openvino", "--into", "--out", "x"], "give one of them"),
        (["--to", "openvino", "--max-loss", "2"], "--max-loss 2 is not possible"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(model), *options]) == 2

    stderr = capsys.readouterr().err
    assert reason in stderr
    assert stderr.count("\n") == 1


def test_command_prints_both_models_side_by_side(model: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model), "--to", "onnx-fp16", "--images", str(good)]) == 0

    printed = capsys.readouterr()
    assert "AUROC, faint synthetic flaws" in printed.out
    assert "a loss of" in printed.err
    assert "The limit rejects about" in printed.err
    assert (model.parent / "model-onnx-fp16" / "model.onnx").exists()


def test_command_gives_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model), "--to", "openvino", "--json", "--quiet"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["target"] == "openvino"
    assert facts["parity"]["score"] <= facts["parity"]["score_allowed"]


def test_calibrating_anew_drops_exports_and_says_so(model: Path, good: Path) -> None:
    export_bundle(model, "openvino", into=True)

    result = calibrate(model, good, rate=0.15)

    assert not result.bundle.spec.variants
    assert any("export" in note for note in result.notes)
