"""Three engines behind one interface: each equal to torch, image by image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flawsmith.features import extract as graphs
from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.features.cache import GraphCache
from flawsmith.features.extract import (
    LOOK_AHEAD,
    TOLERANCE,
    EngineName,
    Precision,
    extract,
    extractor_key,
    graph_key,
    make_extractor,
    read_files,
)
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector

SIZE = (64, 96)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="module")
def geometry(backbone: Backbone) -> Geometry:
    return Geometry(size=SIZE, mean=backbone.info.mean, std=backbone.info.std)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)


ENGINES: list[tuple[EngineName, Precision]] = [
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_engine_equals_torch_within_the_precision_it_declares(
    engine: EngineName, precision: Precision, backbone: Backbone, images: np.ndarray, exported_once: None
) -> None:
    with torch.no_grad():
        expected = [level.numpy() for level in backbone(torch.from_numpy(images))]

    extractor = make_extractor(backbone, SIZE, engine, precision)
    levels = extractor(images)

    assert (extractor.engine, extractor.precision) == (engine, precision)
    for level, reference in zip(levels, expected, strict=True):
        assert level.dtype == np.float32
        assert np.abs(level - reference).max() <= TOLERANCE[precision] * np.abs(reference).max()


def test_onnx_runtime_refuses_bfloat16(backbone: Backbone, exported_once: None) -> None:
    with pytest.raises(FlawsmithError, match="bfloat16"):
        make_extractor(backbone, SIZE, "onnxruntime", "bfloat16")


class Counting:
    """An extractor whose level is the mean of the image; notes the batch sizes."""

    engine: EngineName = "torch"
    precision: Precision = "float32"
    device = torch.device("cpu")

    def __init__(self, batch: int = 1) -> None:
        self.batch, self.batches = batch, list[int]()

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        self.batches.append(len(images))
        return [images.mean(axis=(2, 3), keepdims=True)]


def test_files_are_extracted_one_at_a_time_in_order(parts: Path, geometry: Geometry) -> None:
    files = sorted((parts / "train" / "good").iterdir())
    assert len(files) > LOOK_AHEAD
    extractor = Counting()

    images = [geometry.normalise(pixels) for (pixels,) in read_files(files, [[geometry]] * len(files))]
    forwards = [levels[0] for levels in extract(extractor, images)]
    backwards = [levels[0] for levels in extract(extractor, images[::-1])]

    assert set(extractor.batches) == {1}
    assert forwards[0].shape == (3, 1, 1)
    np.testing.assert_array_equal(np.stack(forwards), np.stack(backwards[::-1]))
    assert len(np.unique(np.stack(forwards))) > 3


def test_an_extractor_that_takes_whole_batches_gets_them(images: np.ndarray) -> None:
    extractor = Counting(batch=4)

    levels = [level for (level,) in extract(extractor, np.concatenate([images] * 3))]

    assert extractor.batches == [4, 2]
    np.testing.assert_array_equal(np.stack(levels), np.concatenate([images] * 3).mean(axis=(2, 3), keepdims=True))


def test_torch_computes_on_the_device_under_test_and_leaves_the_models_backbone_alone(
    backbone: Backbone, images: np.ndarray
) -> None:
    device = torch.device(os.environ.get("FLAWSMITH_TEST_DEVICE", "cpu"))
    with torch.no_grad():
        expected = backbone(torch.from_numpy(images))

    levels = make_extractor(backbone, SIZE, "torch", device=device).levels(torch.from_numpy(images))

    assert {level.device.type for level in levels} == {device.type}
    assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}
    for level, reference in zip(levels, expected, strict=True):
        assert not level.requires_grad
        assert (level.cpu() - reference).abs().max() <= TOLERANCE["float32"] * reference.abs().max()


def test_level_maps_of_tensors_never_leave_the_device(backbone: Backbone, images: np.ndarray) -> None:
    """On torch's device without contents, from which nothing can be copied."""
    extractor = make_extractor(backbone, SIZE, "torch", device=torch.device("meta"))

    assert {level.device.type for level in extractor.levels(torch.from_numpy(images))} == {"meta"}
    with pytest.raises(NotImplementedError):
        extractor(images)


def test_unreadable_file_is_named(parts: Path, geometry: Geometry, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = [*sorted((parts / "train" / "good").iterdir())[:3], broken]

    with pytest.raises(FlawsmithError, match=r"broken\.png"):
        list(read_files(files, [[geometry]] * len(files)))


def test_key_tells_extractors_apart(backbone: Backbone, geometry: Geometry) -> None:
    other_levels = load_backbone(strides=(16,))
    other_geometry = geometry.model_copy(update={"size": (96, 64)})

    keys = {
        extractor_key(backbone, geometry, "onnxruntime", "float32"),
        extractor_key(backbone, geometry, "openvino", "float32"),
        extractor_key(backbone, geometry, "openvino", "bfloat16"),
        extractor_key(backbone, other_geometry, "onnxruntime", "float32"),
        extractor_key(other_levels, geometry, "onnxruntime", "float32"),
        extractor_key(backbone, geometry, "torch", "float32"),
        extractor_key(backbone, geometry, "torch", "float32", torch.device("cuda")),
    }

    assert len(keys) == 7
    assert extractor_key(load_backbone(), geometry, "onnxruntime", "float32") in keys


def test_graph_of_a_backbone_is_made_by_the_first_run_and_taken_from_the_cache_by_later_ones(
    images: np.ndarray, exported_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("test_efficientnet@random", seed=1)
    made: list[bytes] = []

    def counted(*arguments: object) -> bytes:
        made.append(to_onnx(*arguments))  # type: ignore[arg-type]
        return made[-1]

    to_onnx = graphs.to_onnx
    monkeypatch.setattr(graphs, "to_onnx", counted)

    def levels_of_a_run() -> list[np.ndarray]:
        cache = GraphCache(graph_key(backbone, SIZE), tmp_path)
        return make_extractor(backbone, SIZE, graphs=cache)(images)

    first, second = levels_of_a_run(), levels_of_a_run()

    assert len(made) == 1
    assert GraphCache(graph_key(backbone, SIZE), tmp_path).graph(lambda: b"anew") == made[0]
    for level, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(level, again)


def test_key_of_a_graph_tells_weights_levels_and_sizes_apart() -> None:
    backbone = load_backbone("test_efficientnet@random", seed=1)

    keys = {
        graph_key(backbone, SIZE),
        graph_key(backbone, SIZE[::-1]),
        graph_key(load_backbone("test_efficientnet@random", seed=2), SIZE),
        graph_key(load_backbone("test_efficientnet@random", strides=(16,), seed=1), SIZE),
    }

    assert len(keys) == 4
    assert graph_key(load_backbone("test_efficientnet@random", seed=1), SIZE) in keys


def test_a_training_with_torch_gives_a_model_that_inspects_in_onnx_runtime(
    trained_small: Callable[[str], Any], train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    device = torch.device(os.environ.get("FLAWSMITH_TEST_DEVICE", "cpu"))
    expected = trained_small("pbas").bundle.spec

    result = train_small("pbas", parts, tmp_path / "run", engine="torch", accelerator=device.type)

    spec = result.bundle.spec
    assert yaml.safe_load((result.folder / "config.yaml").read_text(encoding="utf-8"))["engine"] == "torch"
    assert (spec.engine, spec.precision, spec.decision.engine) == ("onnxruntime", "float32", "onnxruntime")
    assert spec.decision.limit == pytest.approx(expected.decision.limit, rel=0.1)
    assert Inspector.load(result.model).calibrated
    with pytest.raises(FlawsmithError, match="torch computes in float32"):
        train_small("pbas", parts, tmp_path / "other", engine="torch", precision="bfloat16")
