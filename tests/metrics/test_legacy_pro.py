"""PRO of released codes: equal to a plain reading of what they do, streamed, resampled, and where they fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.metrics import brute_force

from flawsmith.metrics import pro
from flawsmith.metrics.legacy_pro import LegacyPRO, LegacyResult, Rule


def legacy(
    maps: list[np.ndarray],
    masks: list[np.ndarray | None],
    rule: Rule,
    excluded: list[np.ndarray | None] | None = None,
) -> LegacyResult:
    with LegacyPRO(rule) as pixels:
        for scores, mask, outside in zip(maps, masks, excluded or [None] * len(maps), strict=True):
            pixels.update(scores, mask, outside)
        return pixels.compute()


def resampled(figures: LegacyResult, weights: np.ndarray) -> np.ndarray:
    return figures.resampled_overlap(figures.counts.weighted(weights), weights)


@st.composite
def soft_sets(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps of different sizes, tied or not, with masks that hold partly covered pixels."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tied = draw(st.booleans())
    maps, masks = [], []
    for _ in range(draw(st.integers(1, 4))):
        size = (draw(st.integers(2, 12)), draw(st.integers(2, 12)))
        maps.append((generator.integers(0, 5, size) if tied else generator.normal(size=size)).astype(np.float32))
        share = draw(st.sampled_from([0.0, 0.1, 0.5]))
        masks.append(generator.choice([0.0, 0.4, 1.0], size, p=[1 - share, share / 2, share / 2]))
    return maps, masks


def assert_equal(value: float | None, reference: float) -> None:
    if math.isnan(reference):
        assert value is None
    else:
        assert value == pytest.approx(reference, abs=1e-9)


@settings(max_examples=40)
@given(soft_sets())
def test_dilated_pro_is_that_of_brute_force(case: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    maps, masks = case

    assert_equal(legacy(maps, masks, "dilated_200").overlap, brute_force.legacy_pro(maps, masks, dilated=True))


@settings(max_examples=40)
@given(soft_sets())
def test_per_image_pro_is_the_mean_of_brute_force_over_flawed_images(
    case: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    maps, masks = case
    each = [
        brute_force.legacy_pro([one], [mask], dilated=False)
        for one, mask in zip(maps, masks, strict=True)
        if (mask >= 1).any() and (mask < 1).any()
    ]

    figures = legacy(maps, masks, "per_image_200")

    # One failing image makes the mean undefined, in the released code too.
    assert_equal(figures.overlap, float(np.mean(each)) if each else math.nan)
    np.testing.assert_allclose(figures.region_area, each, atol=1e-9)


@settings(max_examples=30)
@given(soft_sets(), st.data())
@pytest.mark.parametrize("rule", ["dilated_200", "per_image_200"])
def test_a_resample_is_the_set_with_its_images_repeated(
    rule: Rule, case: tuple[list[np.ndarray], list[np.ndarray]], data: st.DataObject
) -> None:
    maps, masks = case
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(maps), max_size=len(maps))))
    # The first image holds both extremes and is drawn, so that the thresholds stay where they were.
    maps[0].flat[0], maps[0].flat[1] = -9.0, 9.0
    times[0] = max(times[0], 1)
    figures = legacy(maps, masks, rule)

    if figures.overlap is None:
        return
    repeated = np.repeat(np.arange(len(maps)), times)
    expected = legacy([maps[at] for at in repeated], [masks[at] for at in repeated], rule).overlap
    value = float(resampled(figures, times[None])[0])

    assert_equal(None if math.isnan(value) else value, math.nan if expected is None else expected)


@pytest.mark.parametrize("rule", ["dilated_200", "per_image_200"])
def test_a_resample_without_flaws_is_undefined(rule: Rule) -> None:
    maps = [np.array([[-9.0, 9.0], [0.6, 0.1]]), np.array([[-0.7, -1.3], [-0.6, 0.0]])]
    figures = legacy(maps, [None, np.array([[1.0, 0.0], [0.4, 0.0]])], rule)

    assert np.isnan(resampled(figures, np.array([[1, 0]]))).all()


def test_dilation_rewards_neighbours_that_the_exact_figure_does_not() -> None:
    generator = np.random.default_rng(3)
    mask = np.zeros((32, 32))
    mask[10:14, 10:14] = 1.0
    maps = list(generator.normal(size=(2, 32, 32)).astype(np.float32))

    dilated = legacy(maps, [mask, None], "dilated_200").overlap
    exact = pro.aupro(maps, [mask, None])

    assert dilated is not None
    assert exact is not None
    assert dilated > exact + 0.3


def test_perfect_binary_map_gives_zero_as_in_the_released_code() -> None:
    mask = np.zeros((16, 16))
    mask[4:8, 4:8] = 1.0

    assert legacy([mask], [mask], "dilated_200").overlap == 0.0
    assert legacy([mask], [mask], "per_image_200").overlap is None


@pytest.mark.parametrize("rule", ["dilated_200", "per_image_200"])
@pytest.mark.parametrize(
    "maps",
    [np.full((2, 4, 4), 0.5), np.stack([1.0 - np.eye(4), 1.0 - np.eye(4)]), np.full((2, 4, 4), -np.inf)],
    ids=["constant", "inverted", "nothing inspected"],
)
def test_what_the_released_code_fails_on_is_undefined(rule: Rule, maps: np.ndarray) -> None:
    assert legacy(list(maps), [np.eye(4), None], rule).overlap is None


@pytest.mark.parametrize("rule", ["dilated_200", "per_image_200"])
def test_excluded_pixels_might_as_well_not_be_there(rule: Rule, seed: int) -> None:
    generator = np.random.default_rng(seed)
    maps = list(generator.normal(size=(3, 12, 16)).astype(np.float32))
    masks = [(generator.random((12, 16)) < 0.1).astype(float), None, (generator.random((12, 16)) < 0.1).astype(float)]
    outside = np.ones((12, 16), dtype=bool)
    outside[:, 3:13] = False

    excluded = legacy(maps, masks, rule, [outside] * 3)
    cut = legacy([one[:, 3:13] for one in maps], [None if mask is None else mask[:, 3:13] for mask in masks], rule)

    assert excluded.overlap == pytest.approx(cut.overlap, abs=1e-12)
    np.testing.assert_array_equal(excluded.region_image, cut.region_image)
