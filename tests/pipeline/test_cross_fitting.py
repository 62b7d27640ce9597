"""Limits of small sets: every image is learned from, and every image stands behind the limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.splits import content_hash, cross_fit_split
from flawsmith.pipeline.steps import score_files
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector


@pytest.fixture(scope="module")
def pictures(trees: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bolt")
    for number in range(20):
        trees.picture(root / f"{number:02}.png", seed=number)
    return root


@given(count=st.integers(2, 20), seed=st.integers(0, 5), groups=st.lists(st.integers(0, 6), min_size=20, max_size=20))
def test_folds_part_the_images_and_keep_groups_whole(pictures: Path, count: int, seed: int, groups: list[int]) -> None:
    samples = tuple(
        Sample(pictures / f"{number:02}.png", "train", "good", "good", (), "bolt", "", f"day {group}" if group else "")
        for number, group in enumerate(groups)
    )
    dataset = Dataset(pictures, "bolt", "", "folder", "", samples, grouped_by="name")
    units = len({group for group in groups if group}) + groups.count(0)
    if units == 1:
        units = 20
    if units < count:
        with pytest.raises(FlawsmithError, match=f"there are {units}: give a smaller number"):
            cross_fit_split(dataset, seed, count)
        return

    split = cross_fit_split(dataset, seed, count)

    assert sorted(split.train, key=lambda s: s.image) == list(samples)
    assert [s for fold in split.folds for s in fold.calibration] == list(split.calibration)
    assert len(split.calibration) == 20
    for fold in split.folds:
        assert fold.calibration and fold.train
        assert {s.image for s in fold.calibration} | {s.image for s in fold.train} == {s.image for s in samples}
        if units != 20:
            assert not {s.group for s in fold.calibration} & {s.group for s in fold.train} - {""}


def test_copies_stay_in_one_fold_and_count_once(trees: ModuleType, tmp_path: Path) -> None:
    for number in range(8):
        trees.picture(tmp_path / f"{number}.png", seed=number % 4)

    split = cross_fit_split(load(tmp_path), 0, 4)

    assert len(split.calibration) == 4 and len(split.train) == 8
    for fold in split.folds:
        assert not {content_hash(s.image) for s in fold.calibration} & {content_hash(s.image) for s in fold.train}


def test_each_image_is_scored_by_a_model_that_did_not_learn_from_it(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    result = train_small("padim", parts, tmp_path / "run", cross_fit=4, group="none", alpha=0.1)

    decision, calibration = result.bundle.spec.decision, result.bundle.calibration
    assert (decision.n_good, decision.held_out, decision.cross_fitted) == (20, True, 4)
    assert "20 good images, scored by 4 models of the others" in decision.describe()
    assert result.bundle.spec.training.n_train == 20
    assert len(calibration["learned_sha256"]) == 20 and "held_out_sha256" not in calibration
    # The same by hand: a model of the other folds, on the images of the first.
    fold = cross_fit_split(load(parts), 0, 4).folds[0]
    others = tmp_path / "others"
    (others / "validation" / "good").mkdir(parents=True)
    for number, sample in enumerate(fold.train):
        (others / f"{number}.png").write_bytes(sample.image.read_bytes())
    for sample in fold.calibration:
        (others / "validation" / "good" / sample.image.name).write_bytes(sample.image.read_bytes())
    by_hand = train_small("padim", others, tmp_path / "by_hand", group="none")
    scores = score_files(Inspector.load(by_hand.bundle), [sample.image for sample in fold.calibration]).scores
    np.testing.assert_allclose(calibration["good"][: len(scores)], scores, rtol=1e-3)
    assert len(json.loads((result.folder / "run.json").read_text())["held_out"]) == 20


def test_trained_method_cross_fits_and_resumes_to_the_same_bytes(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    whole = train_small("pbas", parts, tmp_path / "whole", cross_fit=2, group="none")
    again = train_small("pbas", parts, tmp_path / "again", cross_fit=2, group="none")
    again.model.unlink()

    resumed = train_small("pbas", parts, tmp_path / "again", cross_fit=2, group="none", resume=True)

    assert whole.model.read_bytes() == resumed.model.read_bytes()
    assert whole.bundle.spec.decision.n_good == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cross_fit": 1}, "cross_fit=1 is not possible"),
        ({"cross_fit": 21}, "needs as many good images, and there are 20"),
        ({"cross_fit": 5, "fraction": 0.5}, "leave --fraction out"),
        ({"cross_fit": "few"}, "cross_fit='few' is not possible"),
    ],
)
def test_senseless_numbers_are_refused_before_training(
    settings: dict[str, Any], words: str, train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawsmithError, match=words):
        train_small("padim", parts, tmp_path / "run", group="none", **settings)

    assert not (tmp_path / "run").exists()
