"""Several images at a time: the same verdicts, whatever is beside an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.pipeline.predict import predict
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
from flawsmith.runtime.tiles import Tiling

LEVELS = (20, 110, 153, 154, 60, 240, 101)  # of 255; the limits lie at 0.6 (153) and 0.4 (102)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, level in enumerate(LEVELS):
        Image.fromarray(np.full((40, 50, 3), level, np.uint8)).save(folder / f"{number}.png")
    (folder / "3b.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


def outcomes(results: list[Inspection | Unreadable]) -> list[tuple[str | None, str]]:
    return [(r.image, "unreadable" if isinstance(r, Unreadable) else r.verdict) for r in results]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [2, 3, 16])
@pytest.mark.filterwarnings("ignore:the limits were calibrated")
def test_batches_give_the_results_of_single_images_in_order(
    bundle: Bundle, photos: list[Path], engine: str, batch: int
) -> None:
    inspector = Inspector.load(bundle, engine=engine)

    alone = list(inspector.stream(photos))
    together = list(inspector.stream(photos, batch=batch))

    assert outcomes(together) == outcomes(alone)
    assert [verdict for _, verdict in outcomes(alone)].count("unreadable") == 1
    assert {verdict for _, verdict in outcomes(alone)} >= {"pass", "review", "reject"}
    for first, second in zip(alone, together, strict=True):
        if isinstance(first, Inspection) and isinstance(second, Inspection):
            np.testing.assert_allclose(second.map, first.map, atol=1e-6)
            assert set(second.timing) == set(first.timing)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Inspector, float], list[int]]:
    """Has an engine round what it sees in a batch otherwise; returns the sizes of what it was given."""

    def change(inspector: Inspector, error: float) -> list[int]:
        plain, sizes = inspector.engine.run, []

        def run(batch: Any) -> Any:
            sizes.append(len(batch))
            outputs = plain(batch)
            return [output + np.float32(error if len(batch) > 1 else 0.0) for output in outputs]

        monkeypatch.setattr(inspector.engine, "run", run)
        return sizes

    return change


@pytest.mark.parametrize("minimum_area", [1, 4], ids=["score decides", "map decides"])
def test_image_near_a_limit_is_seen_once_more_alone(
    new_bundle: Callable[..., Bundle], photos: list[Path], noisy: Any, minimum_area: int
) -> None:
    decision = Decision(
        limit=153 / 255,
        map_limit=153 / 255,
        review_limit=0.4,
        minimum_area=minimum_area,
        stated_false_reject_rate=0.05,
        n_good=19,
    )
    bundle = new_bundle(decision=decision, parity={"score_allowed": 1e-4, "map_allowed": 1e-3})
    expected = outcomes(list(Inspector.load(bundle).stream(photos)))
    inspector = Inspector.load(bundle)
    sizes = noisy(inspector, 5e-5)  # what lies exactly at the limit would be above it

    together = outcomes(list(inspector.stream(photos, batch=4)))

    assert together == expected
    assert sizes.count(1) == 1
    assert sizes.count(4) == 2


def test_batch_is_filled_up_so_that_engines_meet_two_sizes(bundle: Bundle, photos: list[Path], noisy: Any) -> None:
    inspector = Inspector.load(bundle)
    sizes = noisy(inspector, 0.0)

    list(inspector.stream(photos[:2], batch=8))

    assert set(sizes) == {8}


def test_batch_that_fails_is_seen_one_by_one(
    bundle: Bundle, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.load(bundle)
    plain = inspector.engine.run

    def run(batch: Any) -> Any:
        if len(batch) > 1:
            raise FlawsmithError("no memory")
        return plain(batch)

    monkeypatch.setattr(inspector.engine, "run", run)

    assert outcomes(list(inspector.stream(photos, batch=4))) == outcomes(list(Inspector.load(bundle).stream(photos)))


def test_tiles_are_seen_one_by_one_beside_whole_images(new_bundle: Callable[..., Bundle], photos: list[Path]) -> None:
    Image.fromarray(np.full((90, 120, 3), 90, np.uint8)).save(photos[0])
    bundle = new_bundle(tiling=Tiling(size=64, overlap=8))

    alone = list(Inspector.load(bundle).stream(photos))
    together = list(Inspector.load(bundle).stream(photos, batch=3))

    assert outcomes(together) == outcomes(alone)


def test_verdict_files_do_not_depend_on_the_batch(bundle: Bundle, photos: list[Path], tmp_path: Path) -> None:
    bundle.save(tmp_path / "model.flaw")

    for batch in (1, 4):
        predict(tmp_path / "model.flaw", photos[0].parent, tmp_path / str(batch), batch=batch)

    assert (tmp_path / "1" / "verdicts.csv").read_bytes() == (tmp_path / "4" / "verdicts.csv").read_bytes()


def test_batch_below_one_is_refused(bundle: Bundle) -> None:
    with pytest.raises(FlawsmithError, match="batch must be at least 1, not 0"):
        Inspector.load(bundle).stream([], batch=0)
