from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from flawsmith.metrics import bootstrap, pro, ranking
from flawsmith.metrics.accumulate import PixelMetrics
from flawsmith.metrics.collect import Evidence, ImageRecord, gather


def records(shift: float, seed: int = 0, images: int = 24) -> Iterator[ImageRecord]:
    generator = np.random.default_rng(seed)
    for index in range(images):
        flawed = index % 2 == 1
        scores = generator.normal(size=(24, 20)).astype(np.float32)
        mask = np.zeros(scores.shape, dtype=bool)
        if flawed:
            mask[4 : 8 + index % 5, 5:12] = True
            mask[20, 2] = True
            scores[mask] += shift
        score = float(generator.normal() + shift * flawed)
        yield ImageRecord(f"{index}.png", score, "pass", "dent" if flawed else "good", flawed, scores, mask)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return gather(records(1.0))


def test_image_replicates_equal_figures_of_the_repeated_images() -> None:
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 6, 25).astype(float)
    flawed = np.arange(25) % 3 == 0
    weights = bootstrap.resample_weights(flawed, n_resamples=40, seed=2)

    values = bootstrap.image_replicates(scores, flawed, weights)

    for row, weight in enumerate(weights):
        drawn, labels = np.repeat(scores, weight), np.repeat(flawed, weight)
        best = ranking.best_f1(drawn, labels)
        assert best is not None
        assert values["image_auroc"][row] == pytest.approx(ranking.auroc(drawn, labels), abs=1e-12)
        assert values["image_ap"][row] == pytest.approx(ranking.average_precision(drawn, labels), abs=1e-12)
        assert values["image_f1_max"][row] == pytest.approx(best.value, abs=1e-12)


def test_pixel_replicates_come_close_to_figures_of_the_repeated_images(evidence: Evidence) -> None:
    weights = bootstrap.resample_weights(evidence.flawed, n_resamples=8, seed=3)
    source = list(records(1.0))

    values = bootstrap.replicates(evidence, weights)

    for row, weight in enumerate(weights):
        drawn = [record for record, times in zip(source, weight, strict=True) for _ in range(times)]
        with PixelMetrics() as pixels:
            for record in drawn:
                pixels.add(record.map, record.mask)
            figures = pixels.compute()
        assert values["pixel_auroc"][row] == pytest.approx(figures.auroc, abs=1e-3)
        assert values["pixel_ap"][row] == pytest.approx(figures.average_precision, abs=5e-3)
        assert values["aupro"][row] == pytest.approx(figures.aupro, abs=2e-3)
        exact = pro.aupro([record.map for record in drawn], [record.mask for record in drawn])
        assert figures.aupro == pytest.approx(exact)


def test_resamples_keep_the_number_of_each_label() -> None:
    flawed = np.array([True] + [False] * 9)

    weights = bootstrap.resample_weights(flawed, n_resamples=50, seed=0)

    assert np.all(weights[:, flawed].sum(axis=1) == 1)
    assert np.all(weights[:, ~flawed].sum(axis=1) == 9)


def test_intervals_hold_the_exact_figures_and_repeat_with_the_seed(evidence: Evidence) -> None:
    points = bootstrap.point_estimates(evidence)

    ends = bootstrap.intervals(evidence, n_resamples=300, seed=7)

    assert set(ends) == set(bootstrap.METRICS)
    for name, (low, high) in ends.items():
        point = points[name]
        assert point is not None
        assert 0.0 <= low <= point <= high <= 1.0
        assert low < high
    assert ends == bootstrap.intervals(evidence, n_resamples=300, seed=7)
    assert ends != bootstrap.intervals(evidence, n_resamples=300, seed=8)


def test_replicates_computed_in_blocks_are_the_same(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bootstrap.resample_weights(evidence.flawed, n_resamples=30)
    whole = bootstrap.replicates(evidence, weights)

    monkeypatch.setattr(bootstrap, "_BLOCK_ENTRIES", 100)
    blocks = bootstrap.replicates(evidence, weights)

    for name in bootstrap.METRICS:
        np.testing.assert_allclose(whole[name], blocks[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", bootstrap.METRICS)
def test_paired_difference_of_a_model_with_itself_is_zero(evidence: Evidence, metric: bootstrap.Metric) -> None:
    difference = bootstrap.paired_difference(metric, evidence, evidence, n_resamples=50)

    assert difference == bootstrap.Difference(0.0, 0.0, 0.0, 0.95)


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    strong, weak = gather(records(1.3)), gather(records(1.0))

    difference = bootstrap.paired_difference("image_auroc", strong, weak, n_resamples=300)
    apart = [bootstrap.intervals(one, n_resamples=300)["image_auroc"] for one in (strong, weak)]

    assert difference is not None
    assert difference.low <= difference.value <= difference.high
    assert difference.high - difference.low < max(high - low for low, high in apart)


def test_paired_difference_of_different_images_is_refused(evidence: Evidence) -> None:
    with pytest.raises(ValueError, match="same images"):
        bootstrap.paired_difference("aupro", evidence, gather(records(1.0, images=22)))


def test_undefined_figures_have_no_interval() -> None:
    good_only = gather(record for record in records(1.0) if not record.flawed)

    assert bootstrap.intervals(good_only, n_resamples=20) == {}
    assert bootstrap.paired_difference("aupro", good_only, good_only, n_resamples=20) is None
