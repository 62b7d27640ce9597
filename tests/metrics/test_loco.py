"""Logical and structural anomalies apart, their mean, and the pooled value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawsmith.metrics.bootstrap import LOCO_METRICS, intervals, point_estimates, replicates
from flawsmith.metrics.collect import ScoredImage, accumulate
from flawsmith.metrics.protocol import CLEAN
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.spro import Channel, au_spro
from flawsmith.metrics.summary import evaluate_images

LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"
SIZE = (20, 30)


def good(name: str, score: float = 0.1, level: float = 0.0) -> ScoredImage:
    return ScoredImage(name, score, "pass", "good", False, np.full(SIZE, level, dtype=np.float32))


def flawed(name: str, score: float = 0.9, defect: str = LOGICAL, found: float = 1.0) -> ScoredImage:
    """An image with two defects of 5×5 pixels, of which the second is found."""
    channels = []
    for column in (2, 12):
        mask = np.zeros(SIZE, dtype=bool)
        mask[5:10, column : column + 5] = True
        channels.append(Channel(mask, 0.4, relative=True))
    scores = (found * channels[1].mask).astype(np.float32)
    union = channels[0].mask | channels[1].mask
    return ScoredImage(name, score, "reject", defect, True, scores, union, channels=tuple(channels))


def evaluate(*records: ScoredImage) -> Evaluation:
    return evaluate_images(records, n_resamples=0)


scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=8)


@given(scores, scores, scores)
def test_pooled_auroc_weighs_kinds_by_their_images_and_the_mean_does_not(
    good_scores: list[float], logical: list[float], structural: list[float]
) -> None:
    groups = (("good", good_scores), (LOGICAL, logical), (STRUCTURAL, structural))
    records = [
        ScoredImage(f"{kind} {index}", score, "pass", kind, kind != "good")
        for kind, values in groups
        for index, score in enumerate(values)
    ]

    result = evaluate(*records)

    first, second = result.image_auroc_logical, result.image_auroc_structural
    assert first is not None
    assert second is not None
    weighted = (len(logical) * first + len(structural) * second) / (len(logical) + len(structural))
    assert result.image_auroc == pytest.approx(weighted)
    assert result.image_auroc_loco_mean == pytest.approx((first + second) / 2)
    assert first == result.by_defect[LOGICAL].image_auroc
    assert second == result.by_defect[STRUCTURAL].image_auroc


def test_image_score_is_the_models_own_and_not_the_maximum_of_its_map() -> None:
    result = evaluate(good("a", score=0.2, level=5.0), flawed("b", score=0.9), flawed("c", 0.8, STRUCTURAL))

    assert result.image_auroc_loco_mean == 1.0
    assert "The image score is the model's own." in CLEAN.describe()


def test_perfect_maps_give_one_for_every_figure() -> None:
    perfect = [replace(one, map=one.mask.astype(np.float32)) for one in (flawed("b"), flawed("c", defect=STRUCTURAL))]

    result = evaluate(good("a"), *perfect)

    assert {getattr(result, name) for name in LOCO_METRICS} == {1.0}


def test_kinds_are_measured_against_their_own_images_and_the_good_ones() -> None:
    records = [good("a", level=0.5), flawed("b"), flawed("c"), flawed("d", defect=STRUCTURAL, found=0.25)]

    result = evaluate(*records)

    for value, kept in (
        (result.spro_logical, records[:3]),
        (result.spro_structural, [records[0], records[3]]),
        (result.spro, records),
    ):
        assert value == pytest.approx(au_spro([one.map for one in kept], [one.channels for one in kept]))
    assert result.spro_logical is not None
    assert result.spro_structural is not None
    assert result.spro_logical > result.spro_structural
    assert result.spro_loco_mean == pytest.approx((result.spro_logical + result.spro_structural) / 2)
    assert result.spro != pytest.approx(result.spro_loco_mean)


def test_folder_names_count_in_any_case() -> None:
    result = evaluate(good("a"), flawed("b", defect="Logical_Anomalies"), flawed("c", defect="STRUCTURAL_anomalies"))

    assert None not in {getattr(result, name) for name in LOCO_METRICS}


def test_one_kind_alone_leaves_the_mean_undefined_and_says_so() -> None:
    result = evaluate(good("a"), flawed("b"))

    assert (result.image_auroc_logical, result.image_auroc_structural, result.image_auroc_loco_mean) == (
        1.0,
        None,
        None,
    )
    assert result.spro == result.spro_logical is not None
    assert (result.spro_structural, result.spro_loco_mean) == (None, None)
    assert any(note.startswith("No structural anomalies among the images") for note in result.notes)


def test_without_channels_saturated_overlap_alone_is_undefined() -> None:
    records = [replace(one, channels=()) for one in (flawed("b"), flawed("c", defect=STRUCTURAL))]

    result = evaluate_images([good("a"), *records], n_resamples=0)

    assert result.image_auroc_loco_mean == 1.0
    assert result.aupro is not None
    assert {getattr(result, name) for name in LOCO_METRICS if name.startswith("spro")} == {None}


def test_other_data_have_none_of_these_figures() -> None:
    state = accumulate([good("a"), replace(flawed("b", defect="crack"), channels=())])

    figures, ends = point_estimates(state), intervals(state, n_resamples=20)

    assert {figures[name] for name in LOCO_METRICS} == {None}
    assert not set(LOCO_METRICS) & set(ends)


def test_defects_of_other_kinds_have_a_pooled_figure() -> None:
    result = evaluate(good("a"), flawed("b", defect="missing_screw"))

    assert result.spro is not None
    assert {getattr(result, name) for name in LOCO_METRICS} - {result.spro} == {None}
    assert not any("LOCO" in note for note in result.notes)


def test_image_without_a_mask_takes_no_part_in_the_overlap() -> None:
    left_out = replace(flawed("d", defect=STRUCTURAL), mask=None, channels=())

    result = evaluate(good("a"), flawed("b"), left_out)

    assert result.spro == result.spro_logical == evaluate(good("a"), flawed("b")).spro
    assert result.spro_structural is None


def test_flaw_outside_the_inspected_area_counts_as_not_found() -> None:
    image = flawed("b")

    assert evaluate(good("a"), replace(image, not_inspected=image.mask)).spro == 0.0


def test_masks_of_another_size_are_resized_with_their_saturation_areas() -> None:
    image = flawed("b")
    twice = np.ones((2, 2), dtype=bool)
    for share, relative in ((0.4, True), (10.0, False)):
        own = tuple(Channel(channel.mask, share, relative) for channel in image.channels)
        wide = tuple(
            Channel(np.kron(channel.mask, twice), share if relative else 4 * share, relative) for channel in own
        )

        expected = evaluate(good("a"), replace(image, channels=own))
        resized = evaluate(good("a"), replace(image, mask=np.kron(image.mask, twice), channels=wide))

        assert resized.spro == expected.spro is not None
        assert any("another size" in note for note in resized.notes)


def varied() -> list[ScoredImage]:
    """Sixty images of which none is like another."""
    generator = np.random.default_rng(4)
    records = []
    for index, kind in enumerate(["good", LOGICAL, STRUCTURAL] * 20):
        image = good(f"{index}") if kind == "good" else flawed(f"{index}", defect=kind)
        noise = generator.normal(size=SIZE).astype(np.float32)
        scores = noise if image.map is None else noise + generator.uniform(0, 3) * image.map
        records.append(replace(image, score=float(generator.normal(index % 3)), map=scores))
    return records


def test_intervals_hold_their_figures() -> None:
    result = evaluate_images(varied(), n_resamples=200)

    for name in LOCO_METRICS:
        low, high = result.intervals[name]
        assert 0 < low < getattr(result, name) < high < 1
    assert result.intervals["image_auroc_loco_mean"] != result.intervals["image_auroc"]


def test_replicate_of_every_image_once_is_the_figure_and_one_without_a_kind_is_that_of_the_rest() -> None:
    records = varied()
    once = np.ones(len(records))
    weights = np.stack([once, [image.defect != STRUCTURAL for image in records], 2 * once])

    values = replicates(accumulate(records), weights)

    exact = evaluate(*records)
    rest = evaluate(*(image for image in records if image.defect != STRUCTURAL))
    for name in LOCO_METRICS:
        assert values[name][[0, 2]] == pytest.approx([getattr(exact, name)] * 2, abs=1e-12)
    assert values["image_auroc_logical"][1] == pytest.approx(rest.image_auroc_logical)
    assert values["spro_logical"][1] == pytest.approx(rest.spro_logical)
    assert values["spro"][1] == pytest.approx(rest.spro, abs=2e-3)
    assert np.isnan(values["spro_loco_mean"][1])


@pytest.mark.parametrize("kinds", [[LOGICAL], ["good", LOGICAL], [LOGICAL, STRUCTURAL], ["other"], ["good"]])
def test_intervals_are_given_for_the_figures_that_are_defined(kinds: list[str]) -> None:
    records = [good(kind) if kind == "good" else flawed(kind, defect=kind) for kind in kinds]

    result = evaluate_images(records, n_resamples=20)

    for name in LOCO_METRICS:
        assert (name in result.intervals) == (getattr(result, name) is not None)


def test_curve_of_the_overlap_is_pooled_and_comes_with_the_state() -> None:
    curve = accumulate([good("a"), flawed("b"), flawed("c", defect=STRUCTURAL)]).spro_curve()

    assert curve is not None
    assert np.all(np.diff(curve.x) >= 0)
    # Of both images one of two defects is found before any false positive.
    assert curve.y[np.searchsorted(curve.x, 0.0, side="right") - 1] == pytest.approx(0.5)
    assert accumulate([good("a")]).spro_curve() is None


def test_table_shows_these_figures_where_there_are_any() -> None:
    shown, other = evaluate(good("a"), flawed("b"), flawed("c", defect=STRUCTURAL)), evaluate(good("a"))

    for label in ("image AUROC, pooled", "image AUROC, LOCO mean", "sPRO (0.05), pooled", "sPRO (0.05), LOCO mean"):
        assert label in shown.as_table()
        assert label not in other.as_table()
