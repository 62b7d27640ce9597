"""Evaluating files by the papers' protocols: the model's own crop, masks cropped with it, results labelled."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from tests.metrics import brute_force

import flawsmith
from flawsmith.data.layouts import load
from flawsmith.pipeline.evaluate import evaluate, evaluate_into
from flawsmith.pipeline.settings import check_settings, method_config
from flawsmith.runtime.bundle import ORACLE, Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector

CROP = Geometry(policy="crop", size=(32, 48), resize=50, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


CUT = {"policy": "crop", "resize": 110}


@pytest.fixture
def category(trees: ModuleType, tmp_path: Path) -> Path:
    """Noise images of 120×90 pixels, masks at the left edge and across; one mask lies outside of the crop."""
    root = tmp_path / "bolt"
    for number in range(6):
        trees.picture(root / "train" / "good" / f"{number}.png", seed=number)
    for number in range(3):
        trees.picture(root / "test" / "good" / f"{number}.png", seed=100 + number, size=(90, 120))
        trees.picture(root / "test" / "crack" / f"{number}.png", seed=200 + number, size=(90, 120))
        pixels = np.zeros((90, 120), np.uint8)
        pixels[30 : 40 + 5 * number, : 40 + 10 * number] = 255
        if number == 2:
            pixels[:] = 0
            pixels[:4, :4] = 255
        file = root / "ground_truth" / "crack" / f"{number}_mask.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root


def released(inspector: Inspector, root: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps and masks as the released code of GLASS and PBAS makes them: the shorter side to 50, the middle cut out."""
    maps, masks = [], []
    for image in sorted((root / "test").glob("*/*.png")):
        maps.append(inspector.raw(image)[1])
        truth = root / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
        if truth.exists():
            # 50×66 pixels, of which rows 9 to 41 and columns 9 to 57 are kept.
            mask = np.asarray(Image.open(truth).resize((66, 50), Image.Resampling.BILINEAR))[9:41, 9:57]
            masks.append(mask.astype(np.float32) / np.float32(255))
        else:
            masks.append(np.zeros((32, 48), np.float32))
    return maps, masks


def test_papers_measures_as_the_released_code_does(tiny: ModuleType, category: Path) -> None:
    inspector = Inspector.load(tiny.make_bundle(geometry=CROP, method="glass"))

    result = evaluate(inspector, category, protocol="papers", n_resamples=0)

    maps, masks = released(inspector, category)
    scores, flawed = np.concatenate([one.ravel() for one in maps]), np.concatenate([one.ravel() for one in masks]) >= 1
    assert result.protocol == "papers"
    assert result.pixel_auroc == pytest.approx(metrics.roc_auc_score(flawed, scores), abs=1e-9)
    assert result.aupro == pytest.approx(brute_force.legacy_pro(maps, masks, dilated=True), abs=1e-9)
    # The crop cut one flaw away; its image stays flawed.
    assert (result.n_flawed, result.n_annotated) == (3, 3)
    assert any("lost every flawed pixel" in note for note in result.notes)


def test_a_switch_may_be_changed_and_the_result_says_so(tiny: ModuleType, category: Path) -> None:
    inspector = Inspector.load(tiny.make_bundle(geometry=CROP, method="glass"))

    result = evaluate(inspector, category, protocol="papers", set={"pro": "exact"}, n_resamples=0)

    maps, masks = released(inspector, category)
    assert result.aupro == pytest.approx(brute_force.aupro(maps, [mask >= 1 for mask in masks], 0.3), abs=1e-9)
    assert (result.protocol, "pro" in result.deviations) == ("custom", False)


def test_mask_of_another_size_goes_through_the_size_of_the_image(tiny: ModuleType, category: Path) -> None:
    file = category / "ground_truth" / "crack" / "0_mask.png"
    inspector = Inspector.load(tiny.make_bundle(geometry=CROP, method="glass"))
    before = evaluate(inspector, category, protocol="papers", n_resamples=0)
    Image.fromarray(np.kron(np.asarray(Image.open(file)), np.ones((2, 2), np.uint8))).save(file)

    result = evaluate(inspector, category, protocol="papers", n_resamples=0)

    assert (result.pixel_auroc, result.aupro) == (before.pixel_auroc, before.aupro)
    assert any("the mask was resized" in note for note in result.notes)


def test_files_of_another_protocol_are_stamped_and_those_of_clean_are_not(
    tiny: ModuleType, category: Path, tmp_path: Path
) -> None:
    bundle, dataset = tiny.make_bundle(geometry=CROP, method="glass"), load(category)

    written = evaluate_into(tmp_path / "papers", bundle, dataset, protocol="papers")
    clean = evaluate_into(tmp_path / "clean", bundle, dataset)

    (stamp,) = written.evaluation.stamps
    assert json.loads(written.figures.read_text())["stamps"] == [stamp]
    report = written.report.read_text()
    # At the head, and on each of the five tables of figures.
    assert report.count(stamp) == 6
    assert "It is inflated." in report
    assert "PRO, dilated" in report
    assert "AUPRO" not in report
    rows = list(csv.DictReader(written.scores.open()))
    assert {row["remark"] for row in rows} == {stamp}
    assert "not comparable" not in clean.report.read_text()
    assert "remark" not in clean.scores.read_text()


def test_limits_and_calibration_stay_out_of_a_histogram_of_other_scores(
    tiny: ModuleType, category: Path, tmp_path: Path
) -> None:
    bundle, dataset = tiny.make_bundle(), load(category)

    written = evaluate_into(tmp_path / "e", bundle, dataset, set={"image_score": "map_maximum"})

    assert "Images right of the solid line" not in written.report.read_text()
    assert written.evaluation.protocol == "custom"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, draw_parts: Callable[..., Path]) -> Path:
    """A category with two good and two flawed test images, one of them with a mask."""
    root = draw_parts(tmp_path_factory.mktemp("line") / "bolt", good=12)
    pixels = np.zeros((80, 112), np.uint8)
    pixels[26:32, 28:-28] = 255
    file = root / "ground_truth" / "crack" / "000_mask.png"
    file.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(file)
    return root


@pytest.fixture(scope="module")
def oracle(train_small: Callable[..., Any], line: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose checkpoint was chosen on test data, with a crop that cuts more away than it must."""
    folder = tmp_path_factory.mktemp("oracle") / "run"
    return train_small("pbas", line, folder, select="oracle", set=dict(CUT), report=True)


def test_oracle_chooses_by_image_and_pixel_auroc_on_test_data(oracle: Any) -> None:
    rows = [json.loads(row) for row in (oracle.folder / "metrics.jsonl").read_text().splitlines()]

    measured = [row for row in rows if "oracle_image_auroc" in row]
    assert measured
    assert all(0 <= row[name] <= 1 for row in measured for name in ("oracle_image_auroc", "oracle_pixel_auroc"))
    assert oracle.bundle.spec.training.n_train == 7, "an oracle holds nothing back for selection"


def test_oracle_does_not_change_what_is_learned(
    oracle: Any, train_small: Callable[..., Any], line: Path, tmp_path: Path
) -> None:
    rows = [json.loads(row) for row in (oracle.folder / "metrics.jsonl").read_text().splitlines()]
    best = max(range(len(rows)), key=lambda at: rows[at]["oracle_image_auroc"] + rows[at]["oracle_pixel_auroc"])
    other = train_small("pbas", line, tmp_path / "run", set=dict(CUT))

    losses = [json.loads(row)["loss"] for row in (other.folder / "metrics.jsonl").read_text().splitlines()]
    assert losses == [row["loss"] for row in rows]
    assert (other.bundle.model == oracle.bundle.model) == (best == len(rows) - 1)


def test_everything_an_oracle_gives_is_stamped(oracle: Any, line: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(oracle.model)
    evaluation = flawsmith.evaluate(oracle.model, line, n_resamples=0)
    written = evaluate_into(tmp_path / "e", bundle, load(line), protocol="papers")

    assert bundle.spec.training.selection == "oracle"
    assert ORACLE in bundle.card
    assert ORACLE in oracle.report.read_text()
    assert json.loads((oracle.folder / "run.json").read_text())["stamps"] == [ORACLE]
    assert (evaluation.selection, evaluation.protocol, evaluation.stamps) == ("oracle", "clean", [ORACLE])
    assert evaluation.as_table().startswith(ORACLE)
    assert written.evaluation.stamps[0] == ORACLE
    assert len(written.evaluation.stamps) == 2
    assert ORACLE in written.report.read_text()
    assert ORACLE in written.scores.read_text()


def test_crop_may_cut_more_away_than_it_must(oracle: Any) -> None:
    assert (oracle.bundle.spec.geometry.policy, oracle.bundle.spec.geometry.resize) == ("crop", 110)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"resize": 329}, "policy=crop alone"), ({"resize": 100, "policy": "crop"}, "smaller than image_size")],
)
def test_resizing_that_no_crop_follows_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FlawsmithError, match=said) as raised:
        method_config(check_settings({"method": "pbas", "preset": "fast", "set": changes}))

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["good", "flawed"])
def test_oracle_without_labelled_test_images_is_refused_before_anything_is_written(
    kind: str, draw_parts: Callable[..., Path], train_small: Callable[..., Any], tmp_path: Path
) -> None:
    root = draw_parts(tmp_path / "bolt", good=6)
    for file in (root / "test" / ("good" if kind == "good" else "crack")).iterdir():
        file.unlink()

    with pytest.raises(FlawsmithError, match=f"has no {kind} ones: leave --oracle out"):
        train_small("pbas", root, tmp_path / "run", select="oracle")

    assert not (tmp_path / "run").exists()
