from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from tests.metrics import brute_force
from tests.metrics.strategies import map_sets

from flawsmith.metrics.accumulate import PixelMetrics, PixelResult
from flawsmith.runtime.errors import FlawsmithError


def figures_of(maps: list[np.ndarray], masks: list[np.ndarray], **options: int) -> PixelResult:
    with PixelMetrics(**options) as pixels:
        for anomaly_map, mask in zip(maps, masks, strict=True):
            pixels.update(anomaly_map, mask)
        return pixels.compute()


def finite(maps: list[np.ndarray]) -> np.ndarray:
    """Pooled scores with -inf replaced by a number below all others, for scikit-learn."""
    pooled = np.concatenate([scores.ravel() for scores in maps])
    return np.where(np.isneginf(pooled), np.float32(-1e9), pooled)


@given(map_sets(), st.sampled_from([1, 10**6]))
def test_pixel_figures_equal_scikit_learn_and_brute_force(
    case: tuple[list[np.ndarray], list[np.ndarray]], in_memory_bytes: int
) -> None:
    maps, masks = case
    flawed = np.concatenate([mask.ravel() for mask in masks])

    figures = figures_of(maps, masks, in_memory_bytes=in_memory_bytes)

    if 0 < flawed.sum() < flawed.size:
        assert figures.auroc == pytest.approx(metrics.roc_auc_score(flawed, finite(maps)), abs=1e-6)
        assert figures.overlap == pytest.approx(brute_force.aupro(maps, masks, 0.3), abs=1e-6)
    else:
        assert figures.auroc is None
        assert figures.overlap is None
    if flawed.any():
        reference = metrics.average_precision_score(flawed, finite(maps))
        assert figures.average_precision == pytest.approx(reference, abs=1e-6)
    else:
        assert figures.average_precision is None


@given(map_sets(), st.randoms(use_true_random=False))
def test_order_of_adding_changes_nothing(case: tuple[list[np.ndarray], list[np.ndarray]], random) -> None:
    maps, masks = case
    order = random.sample(range(len(maps)), len(maps))

    first = figures_of(maps, masks)
    second = figures_of([maps[at] for at in order], [masks[at] for at in order])

    assert (first.auroc, first.average_precision) == (second.auroc, second.average_precision)
    assert first.overlap == (None if second.overlap is None else pytest.approx(second.overlap, abs=1e-12))


@given(map_sets())
def test_counts_at_thresholds_of_few_distinct_scores_give_the_exact_figures(
    case: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    figures = figures_of(*case)
    together = figures.counts.weighted(np.ones((1, len(case[0]))))
    if figures.auroc is None:
        return

    assert together.auroc() == pytest.approx(figures.auroc, abs=1e-9)
    assert together.overlap_area(0.3) == pytest.approx(figures.overlap, abs=1e-9)


def test_counts_at_thresholds_of_many_distinct_scores_come_close() -> None:
    generator = np.random.default_rng(5)
    maps = list(generator.normal(size=(12, 96, 96)).astype(np.float32))
    masks = [np.zeros((96, 96), dtype=bool) for _ in maps]
    for index in range(6):
        masks[index][10 : 30 + 5 * index, 20:40] = True
        maps[index][masks[index]] += 1.5

    figures = figures_of(maps, masks)
    together = figures.counts.weighted(np.ones((1, 12)))

    assert len(together.thresholds) <= 1024
    assert together.overlap_area(0.3) == pytest.approx(figures.overlap, abs=1e-3)
    assert together.average_precision() == pytest.approx(figures.average_precision, abs=5e-3)


def test_region_areas_average_to_the_aupro_and_name_their_image() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[0, 0] = mask[4, 4] = True
    scores = np.zeros((9, 9))
    scores[4, 4] = 1.0

    figures = figures_of([np.zeros((9, 9)), scores], [np.zeros((9, 9), dtype=bool), mask])

    np.testing.assert_allclose(figures.region_area, [0.15, 1.0])
    np.testing.assert_array_equal(figures.region_image, [1, 1])
    assert figures.overlap == pytest.approx(0.575)


def test_large_sets_spill_to_a_file_that_is_removed(tmp_path: Path) -> None:
    maps = [np.full((64, 64), value, dtype=np.float32) for value in (0.1, 0.2, 0.3)]

    with PixelMetrics(in_memory_bytes=1024, directory=tmp_path) as pixels:
        for anomaly_map in maps:
            pixels.update(anomaly_map, np.eye(64) if anomaly_map is maps[-1] else None)
        figures = pixels.compute()

    assert figures.auroc is not None
    assert list(tmp_path.iterdir()) == []


def test_maps_may_follow_a_computation() -> None:
    with PixelMetrics() as pixels:
        pixels.update(np.array([[0.1, 0.9]]), np.array([[0, 1]]))
        assert pixels.compute().auroc == 1.0
        pixels.update(np.array([[2.0]]))

        assert pixels.compute().auroc == 0.5


def test_nothing_added_gives_nothing() -> None:
    with PixelMetrics() as pixels:
        figures = pixels.compute()

    assert (figures.auroc, figures.average_precision, figures.overlap) == (None, None, None)


def test_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with PixelMetrics(directory=tmp_path) as pixels:

        class Full:
            def write(self, data: object) -> None:
                raise OSError(28, "No space left on device")

            def close(self) -> None:
                pass

        pixels._spool.close()
        pixels._spool = Full()

        with pytest.raises(FlawsmithError, match=r"No space left on device.*TMPDIR"):
            pixels.update(np.zeros((2, 2)))


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Lets no file grow beyond a number of bytes, as a disk without room for more."""
    import resource  # of POSIX

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, which Windows lacks")
@pytest.mark.parametrize("side", [100, 37, 20])
def test_disk_that_fills_up_is_one_clear_line_whenever_it_does(side: int, tmp_path: Path) -> None:
    # Small maps wait in the file's buffer, and reach the disk only when something is computed or the file is closed.
    generator = np.random.default_rng(side)
    with (
        room_for(4096),
        pytest.raises(FlawsmithError, match=r"no room for the pixel scores.*TMPDIR") as raised,
        PixelMetrics(in_memory_bytes=1, directory=tmp_path) as pixels,
    ):
        for _ in range(3 if side < 100 else 1):
            pixels.update(generator.random((side, side)), np.eye(side))
        pixels.compute()

    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
