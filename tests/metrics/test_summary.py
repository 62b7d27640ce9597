from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from tests.metrics import brute_force
from tests.metrics.strategies import map_sets

from flawsmith.metrics.collect import ScoredImage, accumulate, resize_mask
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.summary import evaluate_images
from flawsmith.runtime.errors import FlawsmithError

SIZE = (20, 30)


def mask_at(row: int = 3) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[row : row + 4, 5:10] = True
    return mask


def good(name: str, score: float = 0.1, verdict: str = "pass") -> ScoredImage:
    return ScoredImage(name, score, verdict, "good", False, np.zeros(SIZE, dtype=np.float32))


def flawed(name: str, score: float = 0.9, verdict: str = "reject", defect: str = "dent") -> ScoredImage:
    mask = mask_at()
    return ScoredImage(name, score, verdict, defect, True, mask.astype(np.float32), mask)


def evaluate(*records: ScoredImage) -> Evaluation:
    return evaluate_images(records, n_resamples=50)


def test_perfect_model_gets_perfect_figures() -> None:
    result = evaluate(good("a"), good("b"), flawed("c"), flawed("d", defect="scratch"))

    assert result.image_auroc == result.image_ap == result.image_f1_max == 1.0
    assert result.pixel_auroc == result.pixel_ap == result.aupro == 1.0
    assert (result.false_reject_rate, result.miss_rate) == (0.0, 0.0)
    assert (result.n_good, result.n_flawed, result.n_annotated) == (2, 2, 2)
    assert set(result.by_defect) == {"dent", "scratch"}
    assert any("zero width" in note for note in result.notes)


def test_evaluation_shows_counts_before_figures() -> None:
    result = evaluate(good("a"), good("b", verdict="reject"), flawed("c"), flawed("d", verdict="pass"))

    assert repr(result).startswith("Evaluation(flaws missed: 1 of 2, good parts rejected: 1 of 2, image AUROC 1.0000, ")
    assert str(result) == result.as_table()
    page = result._repr_html_()
    assert page.index("flaws missed: 1 of 2") < page.index("image AUROC")
    assert "good parts rejected: 1 of 2" in page


def test_evaluation_shows_stamps_first_and_escapes_notes() -> None:
    plain = evaluate(good("a"), flawed("b"))
    result = plain.model_copy(update={"stamps": ["ORACLE"], "notes": ["<script>x</script>"]})

    assert repr(result).startswith("Evaluation(ORACLE, ")
    page = result._repr_html_()
    assert page.index("ORACLE") < page.index("flaws missed")
    assert "note: &lt;script&gt;x&lt;/script&gt;" in page


def test_records_may_be_a_stream() -> None:
    def stream() -> Iterator[ScoredImage]:
        yield from (good("a"), flawed("b"))

    assert evaluate_images(stream(), n_resamples=0).image_auroc == 1.0


def test_rates_count_what_the_stored_limit_decided() -> None:
    result = evaluate(
        good("a"),
        good("b", verdict="reject"),
        good("f", verdict="review"),
        good("g", verdict="review"),
        flawed("c", verdict="pass"),
        flawed("d", verdict="review"),
        flawed("e", verdict="reject"),
    )

    assert result.false_reject_rate == 0.25
    assert result.miss_rate == pytest.approx(2 / 3)
    assert result.verdicts == {
        "good": {"pass": 1, "review": 2, "reject": 1},
        "flawed": {"pass": 1, "review": 1, "reject": 1},
    }
    assert [note for note in result.notes if "sent to review" in note] == [
        "1 flawed image was sent to review: not rejected, so counted in the miss rate.",
        "2 good images were sent to review: not rejected, so not counted in the false reject rate.",
    ]


def test_no_false_reject_among_few_images_still_has_a_wide_interval() -> None:
    low, high = evaluate(*(good(f"{index}") for index in range(27))).intervals["false_reject_rate"]

    assert low == 0.0
    assert high == pytest.approx(0.128, abs=1e-3)


def test_by_defect_regions_average_to_the_aupro() -> None:
    missed = replace(flawed("c", defect="scratch"), map=np.zeros(SIZE, dtype=np.float32))

    result = evaluate(good("a"), flawed("b"), missed)

    dent, scratch = result.by_defect["dent"], result.by_defect["scratch"]
    assert dent.aupro is not None
    assert scratch.aupro is not None
    assert dent.aupro > scratch.aupro
    assert result.aupro == pytest.approx((dent.aupro + scratch.aupro) / 2)


def test_by_defect_auroc_is_against_all_good_images() -> None:
    weak = flawed("d", score=0.15, defect="scratch")

    result = evaluate(good("a", 0.1), good("b", 0.2), flawed("c"), weak)

    assert result.by_defect["dent"].image_auroc == 1.0
    assert result.by_defect["scratch"].image_auroc == 0.5
    assert result.by_defect["scratch"].mean_score == pytest.approx(0.15)


def test_good_images_alone_give_the_false_reject_rate_only() -> None:
    result = evaluate(good("a"), good("b"))

    assert result.false_reject_rate == 0.0
    undefined = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "miss_rate")
    assert all(getattr(result, name) is None for name in undefined)
    assert any("No flawed test image" in note for note in result.notes)


def test_flawed_images_alone_leave_what_compares_with_good_ones_undefined() -> None:
    result = evaluate(flawed("a"), flawed("b"))

    undefined = ("image_auroc", "image_ap", "image_f1_max", "image_f1_threshold")
    assert all(getattr(result, name) is None for name in undefined)
    assert not {"image_ap", "image_f1_max"} & result.intervals.keys()
    assert result.false_reject_rate is None
    assert result.pixel_auroc == 1.0
    assert any("No good test image" in note for note in result.notes)


def test_flawed_image_without_mask_counts_for_the_image_figures_only() -> None:
    result = evaluate(good("a"), replace(flawed("b"), mask=None), flawed("c"))

    assert result.n_flawed == 2
    assert result.n_annotated == 1
    assert result.pixel_auroc == 1.0
    assert "1 image flawed without a mask: left out of the pixel figures." in result.notes


def test_flawed_image_with_empty_mask_is_left_out_and_noted() -> None:
    result = evaluate(good("a"), replace(flawed("b"), mask=np.zeros(SIZE, dtype=bool)))

    assert result.aupro is None
    assert any("empty mask" in note for note in result.notes)


def test_records_without_maps_give_image_figures() -> None:
    result = evaluate(replace(good("a"), map=None), replace(flawed("b"), map=None))

    assert result.image_auroc == 1.0
    assert result.pixel_auroc is None
    assert "2 images without an anomaly map: left out of the pixel figures." in result.notes


def test_mask_of_another_size_is_resized_and_noted() -> None:
    double = np.kron(mask_at(), np.ones((2, 2), dtype=bool))

    result = evaluate(good("a"), replace(flawed("b"), mask=double))

    assert result.aupro == 1.0
    assert any("another size" in note for note in result.notes)


def test_resized_mask_takes_the_nearest_pixel() -> None:
    mask = mask_at()
    doubled = np.kron(mask, np.ones((2, 2), dtype=bool))

    np.testing.assert_array_equal(resize_mask(mask, (40, 60)), doubled)
    np.testing.assert_array_equal(resize_mask(doubled, SIZE), mask)


def test_mask_that_vanishes_when_resized_is_left_out() -> None:
    mask = np.zeros((200, 300), dtype=bool)
    mask[0, 0] = True

    result = evaluate(good("a"), replace(flawed("b"), mask=mask))

    assert result.aupro is None
    assert any("lost every annotated pixel" in note for note in result.notes)


def test_flaw_outside_the_inspected_area_counts_as_not_found() -> None:
    result = evaluate(good("a"), replace(flawed("b"), not_inspected=mask_at()))

    assert result.aupro == 0.0
    assert result.pixel_auroc == 0.0
    assert any("does not look" in note for note in result.notes)


def test_good_image_with_a_flawed_mask_is_refused() -> None:
    with pytest.raises(FlawsmithError, match=r"a\.png counts as good"):
        evaluate(replace(good("a.png"), mask=mask_at()))


def test_image_given_twice_is_refused() -> None:
    with pytest.raises(FlawsmithError, match=r"a\.png stands 2 times"):
        evaluate(good("a.png"), good("a.png"))


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(FlawsmithError, match="no test image"):
        evaluate()


def test_json_has_null_for_what_is_undefined() -> None:
    printed = json.loads(evaluate(good("a")).model_dump_json())

    assert printed["image_auroc"] is None
    assert printed["spro"] is None
    assert printed["n_good"] == 1
    assert Evaluation.model_validate(printed).n_good == 1


def test_table_lists_figures_defects_and_notes() -> None:
    table = evaluate(good("a"), flawed("b"), replace(flawed("c", defect="scratch"), mask=None)).as_table()

    assert "image AUROC" in table
    assert "scratch" in table
    assert "–" in table
    assert "note: 1 image flawed without a mask" in table


def test_curves_come_with_the_state() -> None:
    state = accumulate([good("a"), flawed("b")])

    for curve in (state.roc_curve(), state.pro_curve(), state.pixel_roc_curve()):
        assert curve is not None
        assert np.all(np.diff(curve.x) >= 0)
        assert np.all((curve.y >= 0) & (curve.y <= 1))
    nothing = accumulate([good("a")])
    assert nothing.roc_curve() is None
    assert nothing.pro_curve() is None
    assert nothing.pixel_roc_curve() is None


@given(map_sets(), st.randoms(use_true_random=False))
def test_every_figure_of_the_whole_path_equals_scikit_learn_and_brute_force(
    case: tuple[list[np.ndarray], list[np.ndarray]], random
) -> None:
    maps, masks = case
    records = [
        ScoredImage(str(at), random.choice([0.0, 0.5, 1.0]), "pass", "dent", bool(mask.any()), one, mask)
        for at, (one, mask) in enumerate(zip(maps, masks, strict=True))
    ]
    scores, labels = [one.score for one in records], [one.flawed for one in records]
    flawed = np.concatenate([mask.ravel() for mask in masks])
    pooled = np.concatenate([one.ravel() for one in maps])
    finite = np.where(np.isneginf(pooled), np.float32(-1e9), pooled)
    expected = dict.fromkeys(("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"))
    if any(labels):
        expected["pixel_ap"] = metrics.average_precision_score(flawed, finite)
    if any(labels) and not all(labels):
        expected["image_ap"] = metrics.average_precision_score(labels, scores)
        expected["image_f1_max"] = max(metrics.f1_score(labels, np.array(scores) >= limit) for limit in scores)
        expected["image_auroc"] = metrics.roc_auc_score(labels, scores)
    if 0 < flawed.sum() < flawed.size:
        expected["pixel_auroc"] = metrics.roc_auc_score(flawed, finite)
        expected["aupro"] = brute_force.aupro(maps, masks, 0.3)

    result = evaluate_images(records, n_resamples=0)

    for name, value in expected.items():
        assert getattr(result, name) == (None if value is None else pytest.approx(value, abs=1e-6)), name
