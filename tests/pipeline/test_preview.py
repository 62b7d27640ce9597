"""What a model in the making sees is shown, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from tests.contract.test_fusion import TINY

import flawsmith
from flawsmith.pipeline import preview
from flawsmith.pipeline.progress import Preview, PreviewImage, ProgressFile, preview_path, read_preview
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.training.run import TRAINED


@pytest.fixture
def parts(trees: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flawsmith.pipeline.steps.export_model", no_export)
    for number in range(10):
        trees.picture(tmp_path / "bolt" / f"{number}.png", seed=number)
    return tmp_path / "bolt"


def no_export(*_: object) -> None:
    raise FlawsmithError("no export: what was learned is enough here")


def train(parts: Path, out: str, shown: list[Preview] | None) -> bytes:
    """Learn without making a model file; what was learned."""
    show = None if shown is None else shown.append
    with pytest.raises(FlawsmithError, match="no export"):
        flawsmith.train(
            parts, out=parts.parent / out, method="fusion", set=TINY, baseline="none", quiet=True, on_preview=show
        )
    return (parts.parent / out / TRAINED).read_bytes()


def test_a_preview_shows_flaws_and_good_images_and_the_model_stays_the_same(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(preview, "_TIMES_ITS_COST", 0)
    shown: list[Preview] = []

    watched, alone = train(parts, "watched", shown), train(parts, "alone", None)

    assert watched == alone
    assert len(shown) == TINY["epochs"] * TINY["steps_per_epoch"]  # type: ignore[operator]
    last = shown[-1]
    assert (last.words, last.share, 0 <= last.caught <= last.count) == ("epoch 2 of 2", 1.0, True)
    assert {image.is_flawed for image in last.images} == {True, False}
    assert all(image.picture.startswith("data:image/jpeg;base64,") for image in last.images)


def test_what_cannot_be_shown_stops_no_training(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(preview.LearningPreview, "_seen", fail)
    shown: list[Preview] = []

    assert train(parts, "run", shown)
    assert shown == []


def test_a_run_that_is_resumed_shows_its_later_looks_anew(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    for share, caught in ((0.2, 1), (0.6, 4), (0.4, 3)):  # resumed from a checkpoint after the first
        file.show(Preview(f"at {share}", share, caught, 8, (PreviewImage("a.png", True, "data:a", "data:b"),)))

    told = read_preview(preview_path(tmp_path / "progress.json"))

    assert [(look["share"], look["caught"]) for look in told["history"]] == [(0.2, 1), (0.4, 3)]
    assert told["images"] == [{"name": "a.png", "is_flawed": True, "picture": "data:a", "heat": "data:b"}]
