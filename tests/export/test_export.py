"""The exported graph is the detector, and the parity gate notices where it is not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from tests.conftest import Graphs, tiny_of
from tests.contract.tester import initialise, small_backbone
from torch import Tensor, nn

from flawsmith.export import (
    MAP_TOLERANCE,
    OUTPUTS,
    SCORE_TOLERANCE,
    Tolerance,
    _AsTuple,
    _Head,
    _without_backbone,
    check_parity,
    export_model,
    non_square_copies,
    reference,
)
from flawsmith.features.cache import GraphCache
from flawsmith.features.extract import graph_key, to_onnx
from flawsmith.models.base import AnomalyModel, AnomalyOutput
from flawsmith.models.registry import find_method
from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector

SIZE = (24, 36)


class Brightness(nn.Module):
    """The map is the mean of the channels plus an error that a test may set."""

    def __init__(self, *, score_error: float = 0.0, map_error: float = 0.0) -> None:
        super().__init__()
        self.score_error, self.map_error = score_error, map_error
        self.folds = 0

    def forward(self, images: Tensor) -> AnomalyOutput:
        mean = images.mean(dim=1)
        return AnomalyOutput(mean + self.map_error, mean.amax(dim=(1, 2)) + self.score_error)

    def export_form(self) -> nn.Module:
        self.folds += 1
        return self


class Scaled(Brightness):
    """The same in another unit."""

    def __init__(self, unit: float, *, score_error: float = 0.0) -> None:
        super().__init__(score_error=score_error)
        self.unit = unit

    def forward(self, images: Tensor) -> AnomalyOutput:
        anomaly_map, score = super().forward(images)
        return AnomalyOutput(self.unit * anomaly_map, self.unit * (score - self.score_error) + self.score_error)


def bundle(model: bytes, *, limit: float = 0.9) -> Bundle:
    spec = BundleSpec(
        package_version="0",
        method="brightness",
        preset="fast",
        config={},
        backbone=BackboneSpec(name="none", weights="random", sha256="00" * 32, levels=(8,)),
        geometry=Geometry(size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3),
        decision=Decision(limit=limit, map_limit=limit, stated_false_reject_rate=0.5, n_good=1),
        training=TrainingSummary(layout="folder", category="c", n_train=1, n_calibration=1, images_sha256="00" * 32),
        seed=0,
    )
    return Bundle(spec, model)


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_model(Brightness(), SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs on disk, wide, tall and square."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(30, 50, 3), (50, 30, 3), (40, 40, 3)]):
        pixels = np.random.default_rng(number).integers(0, 180, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo {number}.png")
    return sorted(folder.iterdir())


# Graph


def test_a_model_is_exported_in_its_export_form() -> None:
    detector = Brightness()

    export_model(detector, SIZE)

    assert detector.folds == 1


def test_graph_has_one_image_in_and_map_and_score_out(model: bytes) -> None:
    graph = onnx.load_from_string(model).graph

    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == list(OUTPUTS)
    sizes = [dimension.dim_value for dimension in graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [0, 3, *SIZE], "a batch of any size"


def test_graph_computes_what_the_detector_computes(model: bytes, files: list[Path]) -> None:
    inspector = Inspector.load(bundle(model))

    for file in files:
        score, low = inspector.raw(file)
        expected_score, expected_map = reference(Brightness(), inspector.spec.geometry, file)
        restored = inspector.spec.geometry.invert(low, decode(file).shape[:2])
        assert score == pytest.approx(expected_score, abs=1e-5)
        np.testing.assert_allclose(restored, expected_map, atol=1e-5)
        assert expected_map.shape == decode(file).shape[:2]


def test_same_detector_gives_the_same_bytes(model: bytes) -> None:
    assert export_model(Brightness(), SIZE) == model


def without_names(graph: bytes) -> onnx.ModelProto:
    """A model whose values are numbered in their order: the exporter's names count what it has named before."""
    model = onnx.load_from_string(graph)
    numbers: dict[str, str] = {"": ""}

    def number(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    for value in (*model.graph.input, *model.graph.initializer, *model.graph.output):
        value.name = number(value.name)
    for node in model.graph.node:
        node.name = ""
        node.input[:] = map(number, node.input)
        node.output[:] = map(number, node.output)
    return model


def initialised(method: str) -> AnomalyModel:
    kind = find_method(method)
    config = kind.Config(**{**kind.presets["fast"].model_dump(), **tiny_of(method)})
    return initialise(kind(config, small_backbone(config.strides), 0))


@pytest.mark.parametrize("method", ["fusion", "glass", "patchcore", "slsg"])
def test_trace_of_another_model_with_the_numbers_of_this_one_gives_its_graph(method: str, tmp_path: Path) -> None:
    """What training runs of the tests rely on, see ``exported_once``."""
    model = initialised(method)
    form, size = model.export_form().eval(), model.config.image_size
    first, inputs, listed = _AsTuple(form), {"image": (3, *size)}, False
    if method != "slsg":  # which has an encoder of its own
        first, listed = _Head(_without_backbone(form)), True
        shapes = zip(model.backbone.channels, model.backbone.grids(size), strict=True)
        inputs = {f"level_{number}": (channels, *grid) for number, (channels, grid) in enumerate(shapes)}
    second = copy.deepcopy(first)
    with torch.no_grad():
        for learned in (*second.parameters(), *second.buffers()):
            learned.copy_(0.75 * learned)
    graphs = Graphs(tmp_path)

    of_first, of_second = (graphs(each, inputs, OUTPUTS, listed=listed) for each in (first, second))

    assert len(list(tmp_path.glob("*.traced"))) == 1
    assert of_first != of_second
    assert without_names(of_second) == without_names(to_onnx(second, inputs, OUTPUTS, listed=listed))


@pytest.mark.parametrize("method", ["padim", "pbas"])
def test_a_model_in_two_parts_is_the_model_in_one(method: str, graphs: Graphs) -> None:
    model = initialised(method)
    size = model.config.image_size
    whole = graphs(_AsTuple(model.export_form()).eval(), {"image": (3, *size)}, OUTPUTS)

    parts = export_model(model, size)

    images = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    expected, outputs = (
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(list(OUTPUTS), {"image": images})
        for graph in (whole, parts)
    )
    for one_part, two_parts in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(two_parts, one_part, rtol=1e-5, atol=1e-6)
    names, others = (
        {tensor.name for tensor in onnx.load_from_string(graph).graph.initializer if ".backbone." in tensor.name}
        for graph in (parts, whole)
    )
    assert names >= others > set(), "8 bits know features by the names of weights"


def test_a_model_whose_graph_of_the_backbone_is_kept_has_the_same_bytes(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = initialised("padim")
    size = model.config.image_size
    kept = GraphCache(graph_key(model.backbone, size), tmp_path)
    anew, first = export_model(model, size), export_model(model, size, kept)
    monkeypatch.setattr("flawsmith.export.backbone_to_onnx", not_again)

    assert anew == first == export_model(model, size, kept)


def test_a_backbone_that_was_trained_is_not_taken_from_where_it_was_kept(graphs: Graphs, tmp_path: Path) -> None:
    model = initialised("padim")
    model.backbone = copy.deepcopy(model.backbone)
    size = model.config.image_size
    kept = GraphCache(graph_key(model.backbone, size), tmp_path)
    export_model(model, size, kept)
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(0.5)

    assert export_model(model, size, kept) == export_model(model, size)


def not_again(*_: object) -> bytes:
    raise AssertionError("made anew")


# Parity


def test_equal_models_pass_and_report_their_differences(model: bytes, files: list[Path]) -> None:
    figures = check_parity(Brightness(), Inspector.load(bundle(model)), files, Tolerance())

    assert figures["images"] == 3
    assert 0 <= figures["score"] < SCORE_TOLERANCE
    assert 0 <= figures["map"] < MAP_TOLERANCE


@pytest.mark.parametrize("detector", [Brightness(score_error=2e-4), Brightness(map_error=2e-3)], ids=["score", "map"])
def test_difference_beyond_the_tolerance_fails_and_names_the_file(
    detector: nn.Module, model: bytes, files: list[Path]
) -> None:
    with pytest.raises(FlawsmithError, match=r"photo 0\.png") as error:
        check_parity(detector, Inspector.load(bundle(model)), files, Tolerance())

    assert "\n" not in str(error.value)


def test_looser_tolerance_lets_another_precision_pass(model: bytes, files: list[Path]) -> None:
    detector = Brightness(score_error=2e-4, map_error=2e-3)

    figures = check_parity(detector, Inspector.load(bundle(model)), files, Tolerance(score=1e-2, map=1e-2))

    assert figures["score"] == pytest.approx(2e-4, rel=0.1)
    assert figures["map"] == pytest.approx(2e-3, rel=0.1)


def test_non_finite_output_fails(model: bytes, files: list[Path]) -> None:
    with pytest.raises(FlawsmithError, match=r"finite|differs"):
        check_parity(Brightness(score_error=float("nan")), Inspector.load(bundle(model)), files, Tolerance())


def test_verdict_that_flips_within_the_tolerance_of_the_limit_is_no_failure(model: bytes, files: list[Path]) -> None:
    score, _ = Inspector.load(bundle(model)).raw(files[0])
    between = Inspector.load(bundle(model, limit=score + 2e-5))

    figures = check_parity(Brightness(score_error=5e-5), between, files[:1], Tolerance())

    assert figures["images"] == 1


@pytest.mark.parametrize("size", [1e-6, 0.02, 1.0, 35.0, 3000.0])
def test_tolerance_of_float32_is_a_share_of_the_size_of_good_scores_in_any_unit(size: float) -> None:
    scores, maxima, synthetic = np.linspace(0.5, 0.9, 5), np.linspace(0.6, 0.8, 5), np.linspace(0.1, 1.9, 5)

    tolerance = Tolerance.of_float32(size * scores, -size * maxima, size * synthetic)

    assert tolerance.size == pytest.approx(size, rel=1e-12)
    assert (tolerance.score, tolerance.map) == pytest.approx((1e-4 * size, 1e-3 * size))


def test_tolerance_of_a_model_that_says_nothing_of_its_calibration_images_is_that_of_flaws() -> None:
    tolerance = Tolerance.of_float32(np.zeros(1), np.zeros(1), np.array([20.0]))

    assert (tolerance.score, tolerance.map) == pytest.approx((2e-3, 2e-2))


def test_few_flaws_that_score_far_beyond_all_good_images_do_not_loosen_the_tolerance() -> None:
    good = np.linspace(1.0, 2.0, 7)

    tolerance = Tolerance.of_float32(good, good, np.array([1.0, 1.5, 2.0, 3e3, 3e3]))

    assert tolerance.size == 2.0


def test_an_image_beyond_the_size_may_differ_in_proportion_and_one_below_by_no_less() -> None:
    tolerance = Tolerance(score=1e-4, map=1e-3, size=10.0)
    low, high = np.full((2, 3), -1.0, np.float32), np.full((2, 3), -50.0, np.float32)

    assert tolerance.at(5.0, low) == (1e-4, 1e-3)
    assert tolerance.at(30.0, low) == pytest.approx((3e-4, 3e-3))
    assert tolerance.at(5.0, high) == pytest.approx((5e-4, 5e-3))


@pytest.mark.parametrize("unit", [1e-5, 1.0, 40.0])
@pytest.mark.parametrize(("relative_error", "passes"), [(5e-5, True), (2e-4, False)])
def test_the_gate_asks_how_large_a_difference_is_beside_the_scores(
    unit: float, relative_error: float, passes: bool, files: list[Path]
) -> None:
    exported = Inspector.load(bundle(export_model(Scaled(unit), SIZE), limit=unit))
    size = np.array([exported.raw(file)[0] for file in files])
    tolerance = Tolerance.of_float32(size, size, size)
    trained = Scaled(unit, score_error=relative_error * float(size.max()))

    if passes:
        figures = check_parity(trained, exported, files, tolerance)
        assert figures["score"] < figures["score_allowed"] == tolerance.score
        assert figures["map"] < figures["map_allowed"] == tolerance.map
    else:
        with pytest.raises(FlawsmithError, match=r"score by .*allowed .*--engine or --precision"):
            check_parity(trained, exported, files, tolerance)


@pytest.mark.parametrize(
    ("scores", "maxima", "expected"),
    [
        (np.linspace(0, 10, 101), np.linspace(0, 2, 101), (0.25 * 9, 0.25 * 1.8)),
        (np.linspace(0, 1, 101), np.full(101, 0.5), (0.25 * 0.9, 1e-3)),
        (np.full(5, 40.0), np.full(5, 30.0), (4e-3, 4e-2)),
    ],
    ids=["spread", "equal maps", "all equal"],
)
def test_relative_tolerance_is_a_quarter_of_the_spread_of_good_scores_and_no_less_than_that_of_float32(
    scores: np.ndarray, maxima: np.ndarray, expected: tuple[float, float]
) -> None:
    tolerance = Tolerance.relative(scores, maxima, scores)

    assert (tolerance.score, tolerance.map) == pytest.approx(expected)


def test_float32_gate_binds_the_worst_pixel_and_the_relative_gate_the_mean() -> None:
    first = np.zeros((10, 10), np.float32)
    second = first.copy()
    second[3, 4] = 1.0

    assert Tolerance().map_difference(first, second) == 1.0
    assert Tolerance(every_pixel=False).map_difference(first, second) == pytest.approx(0.01)


def test_copies_prove_geometry_on_wide_and_tall_files(files: list[Path], tmp_path: Path) -> None:
    shapes = [decode(file).shape[:2] for file in non_square_copies(files[2], tmp_path)]

    assert any(height < width for height, width in shapes)
    assert any(height > width for height, width in shapes)


def test_copies_of_one_pixel_still_have_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")

    shapes = [decode(file).shape for file in non_square_copies(tmp_path / "dot.png", tmp_path)]

    assert shapes == [(1, 1, 3)] * 2


def test_reference_leaves_the_detector_without_gradient(files: list[Path], model: bytes) -> None:
    detector = Brightness()
    detector.train()

    reference(detector, bundle(model).spec.geometry, files[0])

    assert not detector.training
    assert torch.is_grad_enabled()
