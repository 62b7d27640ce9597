"""What an evaluation says of the test images it could not use in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tests.metrics import brute_force

from flawsmith.data.layouts import load
from flawsmith.pipeline.evaluate import evaluate, evaluate_into
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector


def test_flawed_image_without_a_mask_is_noted_as_such(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (root / "ground_truth" / "crack" / "001_mask.png").unlink()

    result = evaluate(Inspector.load(tiny.make_bundle()), root, n_resamples=0)

    assert result.n_annotated == 1
    assert "1 image flawed without a mask: left out of the pixel figures." in result.notes
    assert not any("without an anomaly map" in note for note in result.notes)


def test_saturated_overlap_is_that_of_the_files(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec_loco(tmp_path / "loco" / "bottle")
    for index, kind in enumerate(("logical_anomalies", "structural_anomalies")):
        # Channels of one image that overlap.
        trees.mask(root / "ground_truth" / kind / "001" / "001.png", level=trees.LOCO_LEVELS[kind][1], top=1 + index)
    inspector = Inspector.load(tiny.make_bundle())

    result = evaluate(inspector, root, n_resamples=0)

    parts = {}
    for kind in ("good", *trees.LOCO_LEVELS):
        images = sorted((root / "test" / kind).iterdir())
        masks = [sorted((root / "ground_truth" / kind / image.stem).glob("*.png")) for image in images]
        maps = [inspector.inspect(image).map for image in images]
        parts[kind] = (maps, [[np.asarray(Image.open(path)) > 0 for path in own] for own in masks])
    expected = {}
    for name, kinds in (("logical", ["good", "logical_anomalies"]), ("structural", ["good", "structural_anomalies"])):
        maps = [one for kind in kinds for one in parts[kind][0]]
        own = [masks for kind in kinds for masks in parts[kind][1]]
        # Every kind in the trees' configuration saturates at half its area.
        defects = [(index, mask, 0.5, True) for index, masks in enumerate(own) for mask in masks]
        points = brute_force.spro_points(maps, defects)
        assert points is not None
        expected[name] = brute_force.area_below(points, 0.05)
    assert result.spro_logical == pytest.approx(expected["logical"], abs=1e-9)
    assert result.spro_structural == pytest.approx(expected["structural"], abs=1e-9)
    assert result.spro_loco_mean == pytest.approx((expected["logical"] + expected["structural"]) / 2, abs=1e-9)


def test_without_the_file_that_says_when_defects_are_found_all_but_that_is_measured(
    tiny: ModuleType, trees: ModuleType, tmp_path: Path
) -> None:
    root = trees.mvtec_loco(tmp_path / "loco" / "bottle", config=False)

    result = evaluate(Inspector.load(tiny.make_bundle()), root, n_resamples=0)

    assert (result.spro, result.spro_logical, result.spro_structural, result.spro_loco_mean) == (None,) * 4
    assert None not in (result.image_auroc_loco_mean, result.aupro, result.pixel_auroc)
    assert any("no defects_config.json" in note for note in result.notes)


@pytest.mark.real_data
def test_reduced_juice_bottle_has_no_saturated_overlap(tiny: ModuleType, real_data: Path) -> None:
    dataset = load(real_data / "mvtec_loco" / "juice_bottle")
    few = replace(dataset, samples=(*dataset.test_good[:3], *dataset.test_flawed[:12]))

    result = evaluate(Inspector.load(tiny.make_bundle()), few, n_resamples=0)

    assert (result.spro, result.spro_logical) == (None, None)
    assert result.image_auroc_logical == result.image_auroc is not None
    assert any("merged" in note for note in result.notes)


@pytest.mark.parametrize(("place", "dataset"), [("MAD-man/Person_3/screw", "MAD-man/Person_3"), ("weak/bolt", "weak")])
def test_test_set_without_training_images_measures_a_model_from_elsewhere(
    tiny: ModuleType, trees: ModuleType, tmp_path: Path, place: str, dataset: str
) -> None:
    root = trees.mad(tmp_path / place)

    data = load(root)
    result = evaluate(Inspector.load(tiny.make_bundle()), data, n_resamples=0)

    assert (data.dataset, data.category) == (dataset, root.name)
    assert (result.n_good, result.n_flawed, result.n_annotated) == (2, 6, 6)
    assert result.image_auroc is not None


def test_out_writes_the_files_of_the_command(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    tiny.make_bundle().save(tmp_path / "model.flaw")

    evaluation = evaluate(tmp_path / "model.flaw", root, out=tmp_path / "python", n_resamples=50)
    written = evaluate_into(tmp_path / "command", tiny.make_bundle(), load(root), history=tmp_path, n_resamples=50)

    assert evaluation == written.evaluation
    for name in ("report.html", "evaluation.json", "scores.csv"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()


def test_files_of_an_inspector_are_refused(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="give the file in place of the inspector"):
        evaluate(Inspector.load(tiny.make_bundle()), trees.mvtec(tmp_path / "bolt"), out=tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_table_of_files_elsewhere_is_measured_and_its_scores_name_them(
    tiny: ModuleType, trees: ModuleType, tmp_path: Path
) -> None:
    for number in range(4):
        trees.picture(tmp_path / "camera" / f"{number}.png", seed=number)
    table = tmp_path / "tables" / "bolt.csv"
    table.parent.mkdir()
    rows = [f"../camera/{number}.png,{'good' if number < 2 else 'flawed'},test" for number in range(4)]
    table.write_text("\n".join(["image,label,split", *rows]))

    written = evaluate_into(tmp_path / "out", tiny.make_bundle(), load(table))

    assert (written.evaluation.n_good, written.evaluation.n_flawed) == (2, 2)
    assert "../camera/3.png,defect," in written.scores.read_text()
