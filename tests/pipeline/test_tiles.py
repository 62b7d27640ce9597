"""Training in tiles: what is learned from, held out and scored, and which settings do not go together with it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flawsmith.models import METHODS
from flawsmith.pipeline.calibrate import calibrate
from flawsmith.pipeline.describe import describe_model, model_in_words
from flawsmith.pipeline.evaluate import evaluate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspection, Inspector
from flawsmith.runtime.tiles import Tiling


def raising(error: type[BaseException]) -> Callable[..., Any]:
    """A function that does nothing but raise: here training would begin."""

    def function(*_: Any) -> Any:
        raise error

    return function


TILES = {"tile": 56, "overlap": 8}
"""Images of the category `parts` have 80 x 112 pixels: two rows of two or three tiles."""


@pytest.fixture(scope="module")
def tiled(train_small: Callable[..., Any], parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_small("padim", parts, tmp_path_factory.mktemp("tiled") / "run", **TILES, report=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_tiles_and_sets_its_limit_on_whole_images(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path, method: str
) -> None:
    result = train_small(method, parts, tmp_path / "run", **TILES)

    spec, calibration = result.bundle.spec, result.bundle.calibration
    assert spec.tiling == Tiling(size=56, overlap=8)
    assert (spec.training.n_train, spec.decision.n_good) == (15, 5)
    assert len(calibration["good"]) == len(calibration["forged"]) == 5
    inspector = Inspector.load(result.model)
    image = decode(next((parts / "test" / "crack").iterdir()))
    inspection = inspector.inspect(image)
    assert inspection.map.shape == image.shape[:2]
    tiles = [np.ascontiguousarray(tile.of(image)) for tile in spec.tiling.tiles(image.shape[:2])]
    assert inspection.score == max(inspector.raw(tile)[0] for tile in tiles)


def test_tiles_are_named_by_info_card_and_report(tiled: Any) -> None:
    words = "56 × 56 pixels, overlapping by 8"

    assert words in model_in_words(describe_model(tiled.model))
    assert words in tiled.bundle.card
    assert words in tiled.report.read_text(encoding="utf-8")


def test_calibrating_with_the_held_out_images_gives_the_limits_of_training(
    tiled: Any, parts: Path, tmp_path: Path
) -> None:
    for record in json.loads((tiled.folder / "run.json").read_text())["held_out"]:
        source = parts / record["image"]
        (tmp_path / source.name).write_bytes(source.read_bytes())

    again = calibrate(tiled.model, tmp_path, group="none")

    assert again.after == tiled.bundle.spec.decision
    assert again.bundle.spec.tiling == tiled.bundle.spec.tiling


def test_figures_are_those_of_whole_images_and_the_networks_pixels_are_refused(tiled: Any, parts: Path) -> None:
    assert evaluate(tiled.model, parts, n_resamples=10).n_flawed == 2

    with pytest.raises(FlawsmithError, match=r"this model cuts images into tiles.*--protocol clean"):
        evaluate(tiled.model, parts, protocol="papers", n_resamples=10)


def test_tiles_of_images_that_fit_into_one_change_nothing(
    train_tiny: Callable[..., Any], trained: Callable[[str], Any], parts: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"--tile 128 changes nothing: every image fits into one tile"):
        result = train_tiny("padim", parts, tmp_path / "run", tile=128)

    plain = trained("padim").bundle
    assert result.bundle.spec.tiling == Tiling(size=128, overlap=16)
    assert result.bundle.model == plain.model
    assert result.bundle.spec.decision == plain.spec.decision
    np.testing.assert_array_equal(result.bundle.calibration["good"], plain.calibration["good"])


def test_images_that_are_much_reduced_are_worth_one_note(
    train_small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.pipeline.steps.TrainingSteps.finish", raising(KeyboardInterrupt))
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).save(tmp_path / "data" / f"{number}.png")

    with warnings.catch_warnings(record=True) as told, pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("always")
        train_small("padim", tmp_path / "data", tmp_path / "run")

    notes = [str(warning.message) for warning in told if "may be lost" in str(warning.message)]
    assert notes == [
        "images of 400 x 300 are seen at 96 x 64: flaws of fewer than about 38 pixels may be lost; --smallest-flaw 19 "
        "finds smaller ones, in 4.0 times the time"
    ]


def test_small_flaw_that_squashing_loses_is_found_in_tiles(train_small: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]

    def part() -> np.ndarray:
        waves = 120 + 30 * np.sin(x / 60 + rng.uniform(0, 0.5)) * np.cos(y / 70 + rng.uniform(0, 0.5))
        brightness, noise = rng.uniform(-10, 10), rng.normal(0, 4, (480, 640, 3))
        return np.clip(waves[:, :, None] + brightness + noise, 0, 255).astype(np.uint8)

    (tmp_path / "good").mkdir()
    for number in range(14):
        Image.fromarray(part()).save(tmp_path / "good" / f"{number}.png")
    flawed = part()
    flawed[300:304, 410:414] = 20

    def inspect(name: str, **tiles: int) -> Inspection:
        result = train_small("patchcore", tmp_path / "good", tmp_path / name, **tiles)
        return Inspector.load(result.bundle).inspect(flawed)

    squashed, piecewise = inspect("squashed"), inspect("tiled", tile=96)

    assert squashed.verdict == "pass"
    assert piecewise.verdict == "reject"
    x0, y0, x1, y1 = piecewise.regions[0].box
    assert x0 <= 410 and x1 >= 414 and y0 <= 300 and y1 >= 304


def test_region_of_interest_of_whole_images_holds_in_tiles(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    drawing = {"width": 112, "height": 80, "include": [[[0, 0], [50, 0], [50, 80], [0, 80]]]}
    (tmp_path / "roi.json").write_text(json.dumps(drawing), encoding="utf-8")

    result = train_small("glass", parts, tmp_path / "run", roi=tmp_path / "roi.json", select="best", **TILES)

    inspector = Inspector.load(result.bundle)
    image = decode(next(parts.rglob("*.png"))).copy()
    other = image.copy()
    other[:, 51:] = 255 - other[:, 51:]
    first, second = inspector.inspect(image), inspector.inspect(other)
    assert (first.score, first.verdict) == (second.score, second.verdict)
    np.testing.assert_array_equal(first.map, second.map)
    assert first.not_inspected is not None and first.not_inspected[:, 51:].all()


def test_tile_is_part_of_what_a_run_depends_on_and_runs_of_before_resume(
    train_tiny: Callable[..., Any],
    train_small: Callable[..., Any],
    trained: Callable[[str], Any],
    tiled: Any,
    parts: Path,
    tmp_path: Path,
) -> None:
    run = shutil.copytree(trained("padim").folder, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["tile"], config["overlap"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    with pytest.raises(FlawsmithError, match=r"it was begun with tile=None instead of 56"):
        train_tiny("padim", parts, run, resume=True, tile=56)
    result = train_tiny("padim", parts, run, resume=True)

    assert result.bundle.to_bytes() == trained("padim").bundle.to_bytes()
    with pytest.raises(FlawsmithError, match=r"it was begun with overlap=8 instead of 16"):
        train_small("padim", parts, tiled.folder, resume=True, tile=56, overlap=16)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tile": 31}, "tile=31 is not possible"),
        ({"tile": -512}, "tile=-512 is not possible"),
        ({"tile": "large"}, "tile='large' is not possible"),
        ({"tile": 64, "overlap": 32}, "overlap=32 must be below half of the tile, 64"),
        ({"tile": 64, "overlap": -1}, "overlap=-1 is not possible"),
        ({"tile": 64, "overlap": "some"}, "overlap='some' is not possible"),
        ({"overlap": 8}, "give their side too, as tile"),
        ({"tile": 64, "set": {"policy": "crop"}}, "--tile 64: the policy crop .* --set policy=squash"),
        ({"tile": 64, "select": "oracle", "method": "glass"}, "--tile 64: an oracle"),
        ({"tile": 64, "method": "glass", "set": {"foreground": {"mode": "disc"}}}, "--tile 64: foreground=disc"),
    ],
)
def test_settings_that_say_nothing_leave_no_folder(
    settings: dict[str, Any], words: str, train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    method = settings.get("method", "padim")
    with pytest.raises(FlawsmithError, match=words):
        train_small(method, parts, tmp_path / "run", **{k: v for k, v in settings.items() if k != "method"})

    assert not (tmp_path / "run").exists()
