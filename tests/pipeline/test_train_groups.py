"""Training holds out whole groups of images, and goes on with runs that were begun before there were groups."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flawsmith.pipeline.train import train
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def lots(parts: Path, tmp_path: Path) -> Path:
    """Four lots of five images."""
    for number, image in enumerate(sorted((parts / "train" / "good").iterdir())):
        folder = tmp_path / "bolt" / f"lot {number // 5}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    return tmp_path / "bolt"


def test_whole_lots_are_held_out_and_the_run_says_how_many(
    lots: Path, train_small: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"one group alone \(lot \d\)"):
        result = train_small("padim", lots, tmp_path / "run")
    record = yaml.safe_load((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert "5 of 20 good images, 1 of 4 groups, held out whole" in record["hold_out"]
    assert len({Path(row["image"]).parts[0] for row in record["held_out"]}) == 1
    assert result.bundle.spec.training.n_calibration == 5
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["group"] == "auto"


@pytest.mark.parametrize("group", ["auto", "none"])
def test_a_run_from_before_there_were_groups_goes_on(
    parts: Path, train_small: Callable[..., Any], tmp_path: Path, group: str
) -> None:
    train_small("padim", parts, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert settings.pop("group") == "none", "images without groups are split as ever"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    train_small("padim", parts, tmp_path / "run", resume=True, group=group)


def test_a_run_from_before_there_were_groups_names_the_way_out_where_there_are_some_now(
    lots: Path, train_small: Callable[..., Any], tmp_path: Path
) -> None:
    train_small("padim", lots, tmp_path / "run", group="none")
    config = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    del settings["group"]
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    with (
        pytest.warns(UserWarning, match="one group alone"),
        pytest.raises(FlawsmithError, match=r"group='none' instead of 'auto' \(continue it with --group none\)"),
    ):
        train_small("padim", lots, tmp_path / "run", resume=True)
    train_small("padim", lots, tmp_path / "run", resume=True, group="none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group": "folder"}, "begun with group='auto' instead of 'folder': give another --out"),
        ({"cross_fit": 2}, "begun with cross_fit=None instead of 2: give another --out"),
        ({"seed": 7}, "begun with seed=0 instead of 7: give another --out"),
    ],
)
@pytest.mark.filterwarnings("ignore:the limit rests on images of one group alone")
def test_a_setting_that_chooses_other_images_is_named_in_place_of_the_images(
    lots: Path, train_small: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    train_small("padim", lots, tmp_path / "run", seed=0)

    with pytest.raises(FlawsmithError, match=words):
        train_small("padim", lots, tmp_path / "run", **{"seed": 0, **changes}, resume=True)


def test_a_way_to_tell_groups_that_does_not_fit_is_refused_before_any_work(lots: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="no date of exposure"):
        train(lots, out=tmp_path / "run", group="date")
    with pytest.raises(FlawsmithError, match=r"did you mean folder\?"):
        train(lots, out=tmp_path / "run", group="folders")
    assert not (tmp_path / "run").exists()
