"""Flawed parts among the good images: they are named and shown, and left out when asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flawsmith.data.splits import content_hash
from flawsmith.models.base import AnomalyOutput
from flawsmith.pipeline.steps import unlikeness
from flawsmith.runtime.errors import FlawsmithError


class Nearest:
    """A baseline whose score is the distance to the nearest image that it was fitted to."""

    def fit_features(self, features: Any) -> None:
        self.known = features.batch(np.arange(len(features)))[0].flatten()

    def from_levels(self, levels: Any) -> AnomalyOutput:
        scores = (levels[0].flatten()[:, None] - self.known).abs().amin(dim=1)
        return AnomalyOutput(scores[:, None, None], scores)


class Values:
    channels, grids = (1,), ((1, 1),)

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values)

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: Any) -> list[torch.Tensor]:
        return [self.values[np.asarray(rows)].reshape(-1, 1, 1, 1)]


def test_each_image_is_scored_by_images_of_other_folds() -> None:
    scores = unlikeness(Nearest(), Values([0.0, 1.0, 2.0, 3.0, 4.0, 50.0]), [""] * 6)

    assert scores.argmax() == 5
    assert scores[5] == 46
    assert (scores[:5] <= 1).all()


def test_twins_of_an_odd_image_do_not_hide_it() -> None:
    values = [0.0, 50.0, 50.1, 50.2, 1.0, 2.0, 3.0, 4.0]

    alone, together = (unlikeness(Nearest(), Values(values), groups) for groups in (
        [""] * 8, ["", "burst", "burst", "burst", "", "", "", ""])
    )  # fmt: skip

    assert alone[1:4].max() < 1
    assert together[1:4].min() > 40


def test_too_few_images_are_all_alike() -> None:
    assert not unlikeness(Nearest(), Values([0.0, 9.0]), ["", ""]).any()


@pytest.fixture
def contaminated(parts: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """Good parts in a training folder and another two with a large dark flaw; five good ones to validate."""
    root, odd = tmp_path / "bolt", []
    images = sorted(parts.rglob("*.png"))[:17]
    for number, image in enumerate(images):
        target = root / ("validation/good" if number < 5 else "good") / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    for number in range(2):
        pixels = np.asarray(Image.open(images[6 + number])).copy()
        pixels[20:60, 20 + 30 * number : 60 + 30 * number] = 0
        odd.append(root / "good" / f"odd{number}.png")
        Image.fromarray(pixels).save(odd[-1])
    return root, odd


def test_odd_images_are_named_and_shown(
    train_small: Callable[..., Any], contaminated: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    root, odd = contaminated
    for method, baseline in (("patchcore", "none"), ("pbas", "padim")):
        result = train_small(method, root, tmp_path / method, baseline=baseline, group="none", report=True)

        record = json.loads((result.folder / "run.json").read_text())
        assert {entry["image"] for entry in record["least_like_others"][:2]} == {f"good/{path.name}" for path in odd}
        assert "look least like the others" in result.report.read_text(encoding="utf-8")


def test_trimmed_images_are_neither_learned_from_nor_counted(
    train_small: Callable[..., Any], contaminated: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    root, odd = contaminated

    result = train_small("padim", root, tmp_path / "run", trim=0.14, group="none", alpha=0.2)
    again = train_small("padim", root, tmp_path / "again", trim=0.14, group="none", alpha=0.2)

    learned = {row.tobytes().hex() for row in result.bundle.calibration["learned_sha256"]}
    assert len(learned) == 12 and not learned & {content_hash(path) for path in odd}
    decision = result.bundle.spec.decision
    assert (decision.n_good, decision.trimmed) == (4, 1)
    assert "; 1 higher left out as flawed" in decision.describe()
    trimmed = json.loads((result.folder / "run.json").read_text())["trimmed"]
    assert {f"good/{path.name}" for path in odd} < set(trimmed) and len(trimmed) == 3
    assert result.model.read_bytes() == again.model.read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trim": 0}, "trim=0 is not possible"),
        ({"trim": 0.6}, "trim=0.6 is not possible"),
        ({"trim": "few"}, "trim='few' is not possible"),
        ({"trim": 0.1, "cross_fit": 3}, "give one of them"),
    ],
)
def test_senseless_shares_are_refused_before_training(
    settings: dict[str, Any], words: str, train_small: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawsmithError, match=words):
        train_small("padim", parts, tmp_path / "run", **settings)

    assert not (tmp_path / "run").exists()
