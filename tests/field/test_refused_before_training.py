"""What can be known of settings and data before a training is not said after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.worker import run_task
from flawsmith.features.backbones import load_backbone
from flawsmith.models import PatchCore, registry
from flawsmith.pipeline.settings import check_settings, method_config
from flawsmith.pipeline.train import train
from flawsmith.runtime.errors import FlawsmithError

NUMBERS = [
    (name, field)
    for name in registry.method_names()
    for field, info in registry.find_method(name).Config.model_fields.items()
    if info.annotation is float
]


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(("method", "field"), NUMBERS)
def test_a_number_without_end_is_no_setting(method: str, field: str, number: str) -> None:
    with pytest.raises(FlawsmithError, match=field) as error:
        method_config(check_settings({"method": method, "set": {field: float(number)}}))

    assert "\n" not in str(error.value)


def test_engine_that_is_not_installed_is_refused_by_training_and_plan(
    train_tiny: Callable[..., Any], parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not there

    with pytest.raises(FlawsmithError, match=r"--engine openvino is not installed: run `pip install '"):
        train_tiny("padim", parts, tmp_path / "run", engine="openvino")
    with pytest.raises(FlawsmithError, match="--engine openvino is not installed"):
        tasks(Plan.checked({"data": parts, "methods": {"method": "padim", "engine": "openvino"}}, source="test"))
    assert not (tmp_path / "run").exists()


def test_plan_refuses_a_precision_that_its_engine_has_not(parts: Path) -> None:
    plan = Plan.checked({"data": parts, "methods": {"method": "padim", "precision": "bfloat16"}}, source="test")

    with pytest.raises(FlawsmithError, match="onnxruntime computes in float32"):
        tasks(plan)


def test_weights_that_no_model_file_can_hold_are_refused_before_any_stage(
    train_tiny: Callable[..., Any], parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.pipeline.steps.LARGEST_FILE", 10**6)

    with pytest.raises(FlawsmithError, match=r"rd4ad on \S+ makes a model file of 0\.0 GB.*smaller --backbone"):
        train_tiny("rd4ad", parts, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


class Images:
    """Training data that must not be looked at."""

    def __len__(self) -> int:
        return 300


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"coreset_ratio": 1.0}, False),
        ({"coreset_ratio": 1e-4, "least_rows": 5000}, True),
        ({"coreset_ratio": 1e-4, "least_rows": 15_000}, False),
        ({"coreset_ratio": 1.0, "most_candidates": 6000}, True),
        ({"aggregation": "pooled", "width": 40, "coreset_ratio": 0.1}, True),
        ({"aggregation": "pooled", "width": 40, "coreset_ratio": 0.1, "weighting": "paper", "neighbours": 900}, False),
    ],
    ids=str,
)
def test_a_memory_that_no_model_file_can_hold_is_refused_before_any_image_is_read(
    changes: dict[str, Any], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.models.patchcore.model.LARGEST_FILE", 6000 * 152 * 4)
    backbone = load_backbone("efficientnet_lite0@random", strides=(8, 16))
    model = PatchCore.from_preset("fast", backbone=backbone, image_size=(64, 96), **changes)

    if fits:
        assert next(iter(model.stages(Images()))).name == "coreset"  # type: ignore[arg-type]
    else:
        with pytest.raises(FlawsmithError, match=r"patchcore would remember \d+ patches.*--set coreset_ratio="):
            next(iter(model.stages(Images())))  # type: ignore[arg-type]


def test_a_category_whose_name_is_not_utf_8_gets_a_model(
    train_tiny: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    data = Path(os.fsdecode(os.fsencode(tmp_path) + b"/schr\xe4ube"))
    try:
        data.symlink_to(parts, target_is_directory=True)
    except OSError:  # a file system that holds UTF-8 alone cannot ask for it
        data = parts
    expected = "bolt" if data == parts else "schr\\xe4ube"

    result = train_tiny("padim", data, tmp_path / "run")

    assert result.bundle.spec.training.category == expected
    assert expected in result.bundle.card


def truncate(root: Path) -> Path:
    file = next((root / "test" / "crack").iterdir())
    file.write_bytes(file.read_bytes()[:60])
    return file


def truncate_mask(root: Path) -> Path:
    file = next((root / "ground_truth" / "crack").iterdir())
    file.write_bytes(file.read_bytes()[:60])
    return file


@pytest.mark.parametrize("damage", [truncate, truncate_mask])
def test_benchmark_looks_at_test_images_and_masks_before_it_trains(
    damage: Callable[[Path], Path], trees: ModuleType, tmp_path: Path
) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (task,) = tasks(Plan.checked({"data": root, "methods": "padim"}, source="test"))
    file = damage(root)

    with pytest.raises(FlawsmithError, match=file.name):
        run_task(task, tmp_path, train=never)


def test_benchmark_knows_before_it_trains_that_a_half_is_empty(draw_parts: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "bolt", good=3, test=1)
    for file in (root / "test").rglob("*.png"):  # one content, so one half
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    (task,) = tasks(Plan.checked({"data": root, "methods": "padim", "parts": ["A", "B"]}, source="test"))

    with pytest.raises(FlawsmithError, match="of the test split holds no image; report the whole alone"):
        run_task(task, tmp_path, train=never)


def never(*_: Any) -> Any:
    raise AssertionError("a model is trained")


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("padim", {"trim": 0.1, "cross_fit": 3}, "--trim leaves images out and --cross-fit takes all"),
        ("padim", {"fraction": 0.5, "cross_fit": 3}, "--cross-fit takes all images, leave --fraction out"),
        ("padim", {"select": "best"}, "padim trains nothing"),
        ("padim", {"textures": "self"}, "padim synthesizes no flaws"),
        ("padim", {"scale": "fine"}, "--scale fine is not possible"),
        ("padim", {"min_area": "0.2mm2"}, "needs the size of a pixel"),
        ("padim", {"tile": 64, "set": {"policy": "crop"}}, "the policy crop would cut the rim off every tile"),
        ("glass", {"tile": 64, "select": "oracle"}, "an oracle measures whole images"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_data_is_looked_at(
    method: str, settings: dict[str, Any], words: str, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.pipeline.train.load", lambda *_: pytest.fail("the data was looked at"))

    with pytest.raises(FlawsmithError, match=words):
        train(parts, method=method, quiet=True, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cross_fit": 50}, "--cross-fit 50 needs as many"),
        ({"min_area": "99999999"}, "more than an image of"),
        ({"select": "oracle", "method": "rd4ad"}, "--oracle needs labelled test images"),
    ],
)
def test_data_that_does_not_fit_the_settings_is_refused_before_images_are_decoded(
    settings: dict[str, Any], words: str, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.runtime.image.read_image", lambda *_: pytest.fail("an image was decoded"))

    with pytest.raises(FlawsmithError, match=words):
        train(parts / "train" / "good", quiet=True, **{"method": "padim", **settings})
