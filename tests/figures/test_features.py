"""Features as a trained method sees them, restored from its run folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.figures.features import feature_planes
from flawsmith.models.diagnostics import FeatureCloud
from flawsmith.models.registry import method_names
from flawsmith.pipeline.restore import TorchEngine, _in_network, _places, check_run, feature_clouds, restore
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.training.data import SyntheticLoader

DEVICE = torch.device(os.environ.get("FLAWSMITH_TEST_DEVICE", "cpu"))


@pytest.mark.parametrize("method", method_names())
def test_restored_method_scores_as_its_model_file(method: str, trained, parts: Path) -> None:
    result, photo = trained(method), decode(parts / "test" / "crack" / "000.png")

    model, spec = restore(result.folder)

    with torch.no_grad():
        output = model(torch.from_numpy(spec.geometry.apply(photo))[None])
    score, _ = Inspector.load(result.bundle).raw(photo)
    assert float(output.score) == pytest.approx(score, rel=1e-3, abs=1e-3)


def test_model_on_the_device_under_test_inspects_as_its_exported_graph(trained, parts: Path) -> None:
    result, photo = trained("pbas"), decode(parts / "test" / "crack" / "000.png")
    exported = Inspector.load(result.model)

    there = Inspector(exported.spec, TorchEngine(result.folder, DEVICE))

    expected, inspection = exported.inspect(photo), there.inspect(photo)
    assert inspection.score == pytest.approx(expected.score, rel=1e-3, abs=1e-3)
    assert inspection.verdict == expected.verdict
    np.testing.assert_allclose(inspection.map, expected.map, rtol=1e-2, atol=1e-2)
    assert (there.engine.name, there.calibrated) == ("torch", False)


@pytest.mark.parametrize("method", method_names())
def test_feature_maps_of_a_method_are_maps_of_the_image(method: str, trained) -> None:
    model, spec = restore(trained(method).folder)

    with torch.no_grad():
        maps = model.feature_maps(torch.zeros(2, 3, *spec.geometry.size))

    assert all(value.ndim == 4 and len(value) == 2 for value in maps.values())
    assert all(torch.isfinite(value).all() for value in maps.values())


def test_adaptation_is_shown_beside_what_it_adapts(trained) -> None:
    names = {}
    for method in ("pbas", "aand", "slsg"):
        model, spec = restore(trained(method).folder)
        with torch.no_grad():
            names[method] = list(model.feature_maps(torch.zeros(1, 3, *spec.geometry.size)))

    assert names["pbas"] == ["embedding", "adapted", "refined"]
    assert names["aand"][:2] == ["teacher, level 1", "advanced teacher, level 1"]
    assert names["slsg"] == ["encoder, bottleneck", "decoder, first block"]


@pytest.fixture
def annotated(parts: Path, tmp_path: Path) -> Path:
    """The shared parts with masks where their scratches are."""
    root = tmp_path / "bolt"
    shutil.copytree(parts, root)
    mask = np.zeros((80, 112), np.uint8)
    mask[26:32, 28:84] = 255
    for number in range(2):
        path = root / "ground_truth" / "crack" / f"{number:03d}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return root


def test_clouds_hold_good_flawed_and_forged_positions_and_depend_on_the_seed_alone(trained, annotated: Path) -> None:
    run, data = trained("pbas").folder, load(annotated)

    first, again, other = (feature_clouds(run, data, seed=seed, positions=4) for seed in (0, 0, 1))

    assert [cloud.title for cloud in first] == ["embedding", "adapted", "refined"]
    assert set(first[0].groups) - {"good, rejected", "flawed, missed"} <= {"good", "flawed", "forged"}
    assert _count(first[0], "good", "good, rejected") == 8
    assert 2 <= _count(first[0], "flawed", "flawed, missed") <= 8
    assert all(np.array_equal(first[1].groups[name], again[1].groups[name]) for name in first[1].groups)
    assert not np.array_equal(first[0].groups["good"], other[0].groups["good"])


def test_data_without_masks_gives_no_flawed_group(trained, parts: Path) -> None:
    clouds = feature_clouds(trained("pbas").folder, load(parts), positions=4)

    assert not {"flawed", "flawed, missed"} & set(clouds[0].groups)
    assert "forged" in clouds[0].groups


def _count(cloud: FeatureCloud, *groups: str) -> int:
    return sum(len(cloud.groups.get(name, ())) for name in groups)


def test_misclassified_images_have_groups_of_their_own(
    trained, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SLSG marks them in its Fig. 7."""
    run, data = trained("pbas").folder, load(annotated)
    decision = Inspector.load(run / "model.flaw").spec.decision
    monkeypatch.setattr(type(decision), "verdict_of", lambda self, score: "reject")
    rejecting = feature_clouds(run, data, positions=2)[0].groups
    monkeypatch.setattr(type(decision), "verdict_of", lambda self, score: "pass")
    passing = feature_clouds(run, data, positions=2)[0].groups

    assert {"good, rejected", "flawed"} <= set(rejecting)
    assert {"good", "flawed, missed"} <= set(passing)
    assert not {"good", "flawed, missed"} & set(rejecting)


def test_forged_positions_are_of_the_methods_own_flaws(trained, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = trained("slsg").folder, list[tuple[int, float]]()
    examples = SyntheticLoader.examples

    def noted(self: SyntheticLoader, count: int) -> list[Any]:
        drawn = examples(self, count)
        asked.append((len(drawn), float(np.mean([mask.any() for _, mask, _ in drawn]))))
        return drawn

    monkeypatch.setattr(SyntheticLoader, "examples", noted)
    monkeypatch.setattr("flawsmith.pipeline.restore.held_out_flaws", None)

    clouds = feature_clouds(run, load(parts), images=3, positions=4)

    assert asked[0][0] == 3
    assert all("forged" in cloud.groups for cloud in clouds)


def test_features_are_shown_through_the_stages_of_pbas(trained, parts: Path) -> None:
    """Its Fig. 9: AFS mixes anomalies among good features, RBO tells them apart."""
    embedding, adapted, refined = feature_clouds(trained("pbas").folder, load(parts), positions=4)

    assert "anomalous features" not in embedding.groups
    for cloud in (adapted, refined):
        good = cloud.groups.get("good", cloud.groups.get("good, rejected"))
        assert cloud.groups["anomalous features"].shape[1] == good.shape[1]
    assert adapted.groups["anomalous features"].shape[1] != refined.groups["anomalous features"].shape[1]


def test_positions_lie_in_the_flaw_and_never_in_the_padding() -> None:
    geometry = Geometry(size=(64, 64), policy="letterbox", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    everywhere, mask = np.ones((32, 64), bool), np.zeros((32, 64), bool)
    mask[8:24, 32:48] = True
    rng = np.random.default_rng(0)

    def share(marked: np.ndarray) -> np.ndarray:
        return F.adaptive_avg_pool2d(_in_network(marked, geometry)[None, None], (8, 8)).flatten().numpy()

    anywhere, flawed = _places(share(everywhere), False, 99, rng), _places(share(mask), True, 99, rng)

    assert sorted({place // 8 for place in anywhere}) == [2, 3, 4, 5]
    assert {(place // 8, place % 8) for place in flawed} == {(3, 4), (3, 5), (4, 4), (4, 5)}


def test_flaw_smaller_than_a_position_counts_where_most_of_it_is() -> None:
    share = np.array([0.0, 0.1, 0.3, 0.0])

    assert _places(share, True, 9, np.random.default_rng(0)).tolist() == [2]
    assert _places(share, False, 9, np.random.default_rng(0)).tolist() == []


def test_planes_have_a_row_a_map_and_a_column_a_projection() -> None:
    rng = np.random.default_rng(0)
    groups = {"good": rng.normal(size=(30, 6)), "flawed": rng.normal(3, 1, (20, 6))}

    drawn = feature_planes([FeatureCloud("embedding", "", groups), FeatureCloud("adapted", "", groups)])

    titles = [axis.get_title() for axis in drawn.figure.axes]
    assert titles == ["embedding\nPCA", "embedding\nt-SNE", "adapted\nPCA", "adapted\nt-SNE"]
    assert len(drawn.rows) == 4 * 50
    assert {row["group"] for row in drawn.rows} == {"good", "flawed"}
    assert len(feature_planes([FeatureCloud("a", "", groups)], planes=["tsne"]).figure.axes) == 1


def test_features_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(FlawsmithError, match="too few features"):
        feature_planes([FeatureCloud("embedding", "", {"good": np.ones((9, 3))})])


def test_model_alone_and_runs_without_checkpoints_are_refused(trained, tmp_path: Path) -> None:
    result = trained("pbas")
    shutil.copy(result.model, tmp_path / "model.flaw")

    with pytest.raises(FlawsmithError, match="has no checkpoints beside it"):
        check_run(tmp_path / "model.flaw")
    with pytest.raises(FlawsmithError, match=r"config\.yaml: cannot be read"):
        restore(tmp_path)
    shutil.copy(result.folder / "config.yaml", tmp_path)
    with pytest.raises(FlawsmithError, match="run `flawsmith train` again"):
        restore(tmp_path)
    assert check_run(result.model) == result.folder
