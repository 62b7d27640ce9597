"""The exported graph is the detector, and the parity gate notices where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from flawsmith.export import (
    MAP_TOLERANCE,
    OUTPUTS,
    SCORE_TOLERANCE,
    Tolerance,
    check_parity,
    export_model,
    non_square_copies,
    reference,
)
from flawsmith.models.base import AnomalyOutput
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


@pytest.mark.parametrize(
    ("scores", "maxima", "expected"),
    [
        (np.linspace(0, 10, 101), np.linspace(0, 2, 101), (0.25 * 9, 0.25 * 1.8)),
        (np.linspace(0, 1, 101), np.full(101, 0.5), (0.25 * 0.9, 1e-3)),
        (np.ones(5), np.ones(5), (MAP_TOLERANCE, MAP_TOLERANCE)),
    ],
    ids=["spread", "equal maps", "all equal"],
)
def test_relative_tolerance_is_a_quarter_of_the_spread_of_good_scores_and_never_zero(
    scores: np.ndarray, maxima: np.ndarray, expected: tuple[float, float]
) -> None:
    tolerance = Tolerance.relative(scores, maxima)

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
