from __future__ import annotations

import numpy as np
import pytest

from flawsmith.metrics import pro


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long-array ways of working, at lengths that a test can afford."""
    monkeypatch.setattr("flawsmith.metrics.pro._SEGMENT", 4)
    monkeypatch.setattr("flawsmith.metrics.pro._PIECE", 5)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("length", [0, 1, 4, 16, 17, 19, 20, 21, 50])
def test_segmented_search_equals_searchsorted(length: int) -> None:
    generator = np.random.default_rng(length)
    ascending = np.sort(generator.integers(0, 25, length)).astype(np.float32)
    keys = np.sort(generator.integers(-2, 28, 40)).astype(np.float32)

    np.testing.assert_array_equal(pro.places(ascending, keys), np.searchsorted(ascending, keys))


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("sizes", [[3, 4], [40], [200, 0, 5]])
def test_counts_equal_comparisons(sizes: list[int]) -> None:
    generator = np.random.default_rng(0)
    distinct = np.unique(generator.integers(0, 60, 45)).astype(np.float32)
    blocks = [np.sort(generator.integers(-5, 65, size)).astype(np.float32) for size in sizes]
    pooled = np.concatenate(blocks)

    counts = pro.count_negatives(distinct, blocks, pooled.size)

    np.testing.assert_array_equal(counts.above, [(pooled > score).sum() for score in distinct])
    np.testing.assert_array_equal(counts.at_least, [(pooled >= score).sum() for score in distinct])


def test_work_in_pieces_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    distinct, number = np.unique(generator.integers(0, 90, 70).astype(np.float32), return_counts=True)
    negatives = np.sort(generator.integers(-20, 80, 500)).astype(np.float32)
    counts = pro.count_negatives(distinct, [negatives], negatives.size)
    whole = (pro.pixel_average_precision_from_counts(counts, number), pro.pixel_auroc_from_counts(counts, number))

    monkeypatch.setattr("flawsmith.metrics.pro._PIECE", 7)

    assert pro.pixel_average_precision_from_counts(counts, number) == pytest.approx(whole[0], abs=1e-12)
    assert pro.pixel_auroc_from_counts(counts, number) == pytest.approx(whole[1], abs=1e-12)


def test_more_than_four_billion_pixels_are_counted_in_64_bits() -> None:
    counts = pro.count_negatives(np.array([0.5], dtype=np.float32), [np.zeros(3, dtype=np.float32)], 2**33)

    assert counts.above.dtype == np.uint64
    assert counts.above[0] == 2**33 - 3


def test_limit_outside_its_range_is_refused() -> None:
    counts = pro.count_negatives(np.array([0.5], dtype=np.float32), [], 0)

    with pytest.raises(ValueError, match="limit"):
        pro.partial_auc_weights(counts, 1.5)
