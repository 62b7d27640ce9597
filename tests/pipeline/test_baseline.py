"""The baseline beside a model: a method that needs no training, on the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flawsmith.data.layouts import load
from flawsmith.data.splits import calibration_split
from flawsmith.pipeline.evaluate import baseline_of, evaluate_into
from flawsmith.runtime import image
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, draw_parts: Callable[..., Path]) -> Path:
    return draw_parts(tmp_path_factory.mktemp("data") / "bolt", good=14, test=6)


@pytest.fixture(scope="module")
def decoded() -> Counter[str]:
    """How often each file was decoded for the result."""
    return Counter()


@pytest.fixture(scope="module")
def result(
    train_small: Callable[..., Any], data: Path, tmp_path_factory: pytest.TempPathFactory, decoded: Counter[str]
) -> Any:
    decode_stream = image.read_image

    def counted(stream: Any, name: str, max_pixels: int) -> Any:
        decoded[name] += 1
        return decode_stream(stream, name, max_pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "read_image", counted)
        patch.setenv("FLAWSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("run") / "pbas"
        return train_small("pbas", data, folder, baseline="patchcore", report=True)


def test_baseline_sees_the_same_images_in_the_same_geometry(result: Any) -> None:
    baseline = baseline_of(result.bundle, result.folder)

    assert baseline is not None
    assert (baseline.spec.method, result.bundle.spec.method) == ("patchcore", "pbas")
    assert baseline.spec.geometry == result.bundle.spec.geometry
    assert baseline.spec.training.images_sha256 == result.bundle.spec.training.images_sha256
    assert baseline.spec.decision.n_good == result.bundle.spec.decision.n_good


def test_baseline_decodes_no_held_out_image_again(result: Any, data: Path, decoded: Counter[str]) -> None:
    held_out = calibration_split(load(data), 0).calibration

    assert [decoded[str(sample.image)] for sample in held_out] == [2] * len(held_out)


def test_model_does_not_depend_on_its_baseline(
    result: Any, train_small: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    alone = train_small("pbas", data, tmp_path / "alone")

    assert not (alone.folder / "baseline").exists()
    assert alone.model.read_bytes() == result.model.read_bytes()


def test_report_of_a_run_sets_both_side_by_side(result: Any) -> None:
    page = result.report.read_text(encoding="utf-8")

    assert "patchcore, which needs no training" in page
    assert "This model" in page


def test_evaluation_says_whether_training_was_worth_it(result: Any, data: Path, tmp_path: Path) -> None:
    written = evaluate_into(tmp_path / "evaluation", result.bundle, load(data), history=result.folder)

    found = written.evaluation.baseline
    assert found is not None
    assert found.method == "patchcore"
    value, low, high = found.gains["image_auroc"]
    assert low <= value <= high
    assert value == pytest.approx(written.evaluation.image_auroc - found.image_auroc)
    assert " of patchcore, which needs no training: " in written.evaluation.as_table()
    assert "Was training worth it?" in written.report.read_text(encoding="utf-8")


def test_baseline_of_other_images_is_not_compared(
    result: Any, train_small: Callable[..., Any], draw_parts: Callable[..., Path], tmp_path: Path
) -> None:
    other = train_small("pbas", draw_parts(tmp_path / "nut", good=9), tmp_path / "other")

    assert baseline_of(other.bundle, result.folder) is None
    assert baseline_of(result.bundle, None) is None


def test_damaged_baseline_is_passed_over(result: Any, tmp_path: Path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "model.flaw").write_bytes(b"damaged")

    assert baseline_of(result.bundle, tmp_path) is None


def test_baseline_that_cannot_be_trained_costs_no_model(
    train_small: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FlawsmithError("no such level")

    monkeypatch.setattr("flawsmith.pipeline.steps.baseline_settings", refuse)

    done = train_small("pbas", data, tmp_path / "run", baseline="padim", report=True)

    assert Bundle.load(done.model).spec.method == "pbas"
    assert "the baseline padim could not be trained: no such level" in done.report.read_text(encoding="utf-8")


def test_no_baseline_beside_a_baseline(train_small: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    done = train_small("padim", data, tmp_path / "run", baseline="patchcore")

    assert not (done.folder / "baseline").exists()


def test_unknown_baseline_is_refused_before_anything_is_written(
    train_small: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawsmithError, match="choose patchcore, padim or none"):
        train_small("pbas", data, tmp_path / "run", baseline="pathcore")

    assert not (tmp_path / "run").exists()


def test_baseline_has_no_checkpoint_to_choose(train_small: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="trains nothing"):
        train_small("padim", data, tmp_path / "run", select="best")
