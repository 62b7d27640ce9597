"""Training with a region of interest and a smallest area: what lies outside is not learned from and decides nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flawsmith.pipeline.calibrate import calibrate
from flawsmith.runtime.bundle import read_arrays, write_arrays
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector

DRAWING = {"width": 112, "height": 80, "include": [[[0, 0], [56, 0], [56, 80], [0, 80]]]}
TOP = {"name": "top", "include": [[[0, 0], [112, 0], [112, 40], [0, 40]]], "min_area": 2}


@pytest.fixture
def left_half(tmp_path: Path) -> Path:
    path = tmp_path / "roi.json"
    path.write_text(json.dumps(DRAWING), encoding="utf-8")
    return path


def test_what_lies_outside_changes_neither_score_nor_map_nor_verdict(
    train_small: Callable[..., Any], parts: Path, left_half: Path, tmp_path: Path
) -> None:
    result = train_small("padim", parts, tmp_path / "run", roi=left_half, min_area=4)

    inspector = Inspector.load(result.bundle)
    image = decode(next(parts.rglob("*.png"))).copy()
    other = image.copy()
    other[:, 57:] = 255 - other[:, 57:]
    flawed = image.copy()
    flawed[30:50, 10:30] = 255 - flawed[30:50, 10:30]
    first, second, third = (inspector.inspect(each) for each in (image, other, flawed))
    assert (first.score, first.verdict) == (second.score, second.verdict)
    np.testing.assert_array_equal(first.map, second.map)
    assert first.not_inspected is not None and first.not_inspected[:, 58:].all()
    assert third.verdict == "reject" and all(region.box[2] <= 58 for region in third.regions)
    assert result.bundle.spec.decision.by_regions and result.bundle.spec.decision.minimum_area == 4


def test_calibrating_with_the_held_out_images_gives_the_limits_of_training(
    train_small: Callable[..., Any], parts: Path, left_half: Path, tmp_path: Path
) -> None:
    zones = tmp_path / "zones.json"
    zones.write_text(json.dumps({**DRAWING, "zones": [TOP]}), encoding="utf-8")
    settings_by_name: dict[str, dict[str, Any]] = {
        "plain": {},
        "roi": {"roi": left_half, "alpha": 0.2, "review_alpha": 0.4},
        "zones": {"roi": zones, "alpha": 0.2},
    }
    for name, settings in settings_by_name.items():
        result = train_small("padim", parts, tmp_path / name, **settings)
        held_out = tmp_path / f"{name}-good"
        held_out.mkdir()
        for record in json.loads((result.folder / "run.json").read_text())["held_out"]:
            source = parts / record["image"]
            (held_out / source.name).write_bytes(source.read_bytes())

        again = calibrate(result.model, held_out, group="none")

        assert again.after == result.bundle.spec.decision
        assert again.changed == ()


def test_stored_maps_stand_for_the_held_out_images(
    train_small: Callable[..., Any], parts: Path, left_half: Path, tmp_path: Path
) -> None:
    result = train_small("padim", parts, tmp_path / "run", group="none", alpha=0.2)
    held_out = tmp_path / "good"
    held_out.mkdir()
    for record in json.loads((result.folder / "run.json").read_text())["held_out"]:
        source = parts / record["image"]
        (held_out / source.name).write_bytes(source.read_bytes())

    zones = tmp_path / "zones.json"
    zones.write_text(json.dumps({"width": 112, "height": 80, "zones": [TOP]}), encoding="utf-8")
    several: list[dict[str, Any]] = [{"roi": left_half}, {"min_area": 30}, {"roi": zones}]
    for options in (*several, {"roi": left_half, "min_area": 30, "rate": 0.3}):
        by_maps, by_images = (
            calibrate(result.model, **options),
            calibrate(result.model, held_out, group="none", **options),
        )

        assert by_maps.after == by_images.after
        assert by_maps.after.by_regions


def test_maps_of_another_model_or_damaged_ones_are_refused(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    result = train_small("padim", parts, tmp_path / "run", group="none")
    elsewhere = tmp_path / "elsewhere.flaw"
    elsewhere.write_bytes(result.model.read_bytes())

    with pytest.raises(FlawsmithError, match="--min-area needs good images"):
        calibrate(elsewhere, min_area=9)
    (result.folder / "held_out_maps.npz").write_bytes(b"maps")
    with pytest.raises(FlawsmithError, match=r"held_out_maps\.npz is damaged"):
        calibrate(result.model, min_area=9)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sizes", lambda sizes: sizes * 0),
        ("sizes", lambda sizes: sizes - 1000),
        ("sizes", lambda sizes: sizes * 0 + 10**6),
        ("sizes", lambda sizes: sizes * 0 + (2 * 10**6, 1)),
        ("sizes", lambda sizes: sizes.astype(np.float64)),
        ("maps", lambda maps: maps * 0 + np.float32(1e38)),
        ("scores", lambda scores: scores[0]),
    ],
)
def test_stored_maps_of_impossible_images_take_no_memory(
    name: str,
    change: Callable[[Any], Any],
    trained: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    result = trained("padim")
    (tmp_path / "model.flaw").write_bytes(result.model.read_bytes())
    arrays = read_arrays((result.folder / "held_out_maps.npz").read_bytes())
    arrays[name] = np.asarray(change(arrays[name]))
    (tmp_path / "held_out_maps.npz").write_bytes(write_arrays(arrays))

    with pytest.raises(FlawsmithError, match=r"held_out_maps\.npz is damaged"):
        calibrate(tmp_path / "model.flaw", min_area=9)


def test_images_learned_from_are_refused_after_training(trained: Callable[[str], Any], parts: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"the model learned from it, and \d+ more of these images like it"):
        calibrate(trained("padim").model, parts)


def test_region_is_part_of_what_a_run_depends_on(
    train_small: Callable[..., Any], parts: Path, left_half: Path, tmp_path: Path
) -> None:
    train_small("padim", parts, tmp_path / "run", roi=left_half)
    assert len(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["region"]) == 64
    left_half.write_text(json.dumps({**DRAWING, "include": [[[0, 0], [90, 0], [90, 80], [0, 80]]]}), encoding="utf-8")

    with pytest.raises(FlawsmithError, match="another region of interest in --roi: give another --out"):
        train_small("padim", parts, tmp_path / "run", roi=left_half, resume=True)


def test_zones_are_trained_with_and_what_is_outside_of_all_of_them_is_still_seen(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    zones = tmp_path / "zones.json"
    zones.write_text(json.dumps({"width": 112, "height": 80, "zones": [TOP]}), encoding="utf-8")

    result = train_small("padim", parts, tmp_path / "run", roi=zones, alpha=0.2, trim=0.05, report=True)

    spec = result.bundle.spec
    assert spec.geometry.region is None and spec.decision.region_of_interest is None
    assert list(spec.decision.zone_limits) == ["top", "elsewhere"]
    assert spec.decision.zones[0].minimum_area == 2 and spec.decision.by_regions
    scores, levels = (result.bundle.calibration[name] for name in ("good_levels", "good_zone_levels"))
    np.testing.assert_array_equal(spec.decision.level_of(levels), scores)
    assert "zone top" in (result.folder / "report.html").read_text(encoding="utf-8")
    zones.write_text(json.dumps({"width": 112, "height": 80, "zones": [TOP | {"min_area": 3}]}), encoding="utf-8")
    with pytest.raises(FlawsmithError, match="other zones in --roi: give another --out"):
        train_small("padim", parts, tmp_path / "run", roi=zones, alpha=0.2, trim=0.05, resume=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roi": "none.json"}, "there is no file none.json"),
        ({"min_area": "2mm2"}, "add --scale"),
        ({"min_area": "small"}, "--min-area small is not possible"),
        ({"min_area": -3}, "--min-area -3 is not possible"),
        ({"scale": "0"}, "--scale 0 is not possible"),
        ({"scale": "2 m"}, "--scale 2 m is not possible"),
        ({"scale": "fine"}, "--scale fine is not possible"),
    ],
)
def test_settings_that_say_nothing_leave_no_folder(
    settings: dict[str, Any], words: str, train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawsmithError, match=words):
        train_small("padim", parts, tmp_path / "run", **settings)

    assert not (tmp_path / "run").exists()
