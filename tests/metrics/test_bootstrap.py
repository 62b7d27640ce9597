from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from flawsmith.metrics import bootstrap, pro, ranking
from flawsmith.metrics.accumulate import PixelMetrics
from flawsmith.metrics.collect import EvaluationState, ScoredImage, accumulate


def images(shift: float, seed: int = 0, number: int = 24) -> Iterator[ScoredImage]:
    generator = np.random.default_rng(seed)
    for index in range(number):
        flawed = index % 2 == 1
        scores = generator.normal(size=(24, 20)).astype(np.float32)
        mask = np.zeros(scores.shape, dtype=bool)
        if flawed:
            mask[4 : 8 + index % 5, 5:12] = True
            mask[20, 2] = True
            scores[mask] += shift
        score = float(generator.normal() + shift * flawed)
        yield ScoredImage(f"{index}.png", score, "pass", "dent" if flawed else "good", flawed, scores, mask)


@pytest.fixture(scope="module")
def state() -> EvaluationState:
    return accumulate(images(1.0))


def test_image_replicates_equal_figures_of_the_repeated_images() -> None:
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 6, 25).astype(float)
    flawed = np.arange(25) % 3 == 0
    weights = bootstrap.resample_weights(flawed, n_resamples=40, seed=2)

    values = bootstrap.image_replicates(scores, flawed, weights)

    for row, weight in enumerate(weights):
        drawn, labels = np.repeat(scores, weight), np.repeat(flawed, weight)
        assert values["image_auroc"][row] == pytest.approx(ranking.auroc(drawn, labels), abs=1e-12)
        assert values["image_ap"][row] == pytest.approx(ranking.average_precision(drawn, labels), abs=1e-12)
        assert values["image_f1_max"][row] == pytest.approx(ranking.f1_max(drawn, labels), abs=1e-12)


def test_pixel_replicates_come_close_to_figures_of_the_repeated_images(state: EvaluationState) -> None:
    weights = bootstrap.resample_weights(state.flawed, n_resamples=8, seed=3)
    source = list(images(1.0))

    values = bootstrap.replicates(state, weights)

    for row, weight in enumerate(weights):
        drawn = [image for image, times in zip(source, weight, strict=True) for _ in range(times)]
        with PixelMetrics() as pixels:
            for image in drawn:
                pixels.update(image.map, image.mask)
            figures = pixels.compute()
        assert values["pixel_auroc"][row] == pytest.approx(figures.auroc, abs=1e-3)
        assert values["pixel_ap"][row] == pytest.approx(figures.average_precision, abs=5e-3)
        assert values["aupro"][row] == pytest.approx(figures.overlap, abs=2e-3)
        exact = pro.aupro([image.map for image in drawn], [image.mask for image in drawn])
        assert figures.overlap == pytest.approx(exact)


def test_resamples_keep_the_number_of_each_label() -> None:
    flawed = np.array([True] + [False] * 9)

    weights = bootstrap.resample_weights(flawed, n_resamples=50, seed=0)

    assert np.all(weights[:, flawed].sum(axis=1) == 1)
    assert np.all(weights[:, ~flawed].sum(axis=1) == 9)


def test_intervals_hold_the_exact_figures_and_repeat_with_the_seed(state: EvaluationState) -> None:
    points = bootstrap.point_estimates(state)

    ends = bootstrap.intervals(state, n_resamples=300, seed=7)

    assert set(ends) == set(bootstrap.METRICS)
    for name, (low, high) in ends.items():
        point = points[name]
        assert point is not None
        assert 0.0 <= low <= point <= high <= 1.0
        assert low < high
    assert ends == bootstrap.intervals(state, n_resamples=300, seed=7)
    assert ends != bootstrap.intervals(state, n_resamples=300, seed=8)


def test_replicates_computed_in_blocks_are_the_same(state: EvaluationState, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bootstrap.resample_weights(state.flawed, n_resamples=30)
    whole = bootstrap.replicates(state, weights)

    monkeypatch.setattr(bootstrap, "_BLOCK_ENTRIES", 100)
    blocks = bootstrap.replicates(state, weights)

    for name in bootstrap.METRICS:
        np.testing.assert_allclose(whole[name], blocks[name], rtol=0, atol=1e-12)


def test_paired_differences_of_a_model_with_itself_are_zero(state: EvaluationState) -> None:
    differences = bootstrap.paired_differences(state, state, n_resamples=50)

    assert differences == dict.fromkeys(bootstrap.METRICS, (0.0, 0.0, 0.0))


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    strong, weak = accumulate(images(1.3)), accumulate(images(1.0))

    value, low, high = bootstrap.paired_differences(strong, weak, n_resamples=300)["image_auroc"]
    separate = [bootstrap.intervals(model, n_resamples=300)["image_auroc"] for model in (strong, weak)]

    assert low <= value <= high
    assert high - low < max(end - start for start, end in separate)


def test_paired_difference_of_different_images_is_refused(state: EvaluationState) -> None:
    with pytest.raises(ValueError, match="same images"):
        bootstrap.paired_differences(state, accumulate(images(1.0, number=22)))


def test_undefined_figures_have_no_interval() -> None:
    good_only = accumulate(image for image in images(1.0) if not image.flawed)

    assert bootstrap.intervals(good_only, n_resamples=20) == {}
    assert bootstrap.paired_differences(good_only, good_only, n_resamples=20) == {}
