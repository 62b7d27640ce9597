"""Figures under protocols other than clean: each switch does what it says, and the result says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from flawsmith.metrics.collect import ScoredImage, ScoredMask, network_mask
from flawsmith.metrics.protocol import CLEAN, Protocol, papers
from flawsmith.metrics.results import Evaluation
from flawsmith.metrics.spro import Channel, au_spro
from flawsmith.metrics.summary import evaluate_images
from flawsmith.runtime.geometry import Geometry

SIZE, NETWORK = (20, 30), (10, 10)
NETWORK_CLEAN = papers("another", "mvtec")


def changed(**switches: str) -> Protocol:
    """A protocol in the network's pixels with some switches set."""
    return Protocol(**{"name": "custom", "pixels": "network", "uninspected": "excluded", **switches})


@pytest.fixture
def records(seed: int) -> list[ScoredImage]:
    """Ten images, half of them flawed, with maps of two kinds that have nothing to do with each other."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(10):
        flawed = index >= 5
        mask, small = np.zeros(SIZE, dtype=bool), np.zeros(NETWORK, dtype=np.float32)
        if flawed:
            mask[3 : 6 + index, 5:10] = True
            small[2 : index - 1, 3:6] = 1.0
            small[2, 3:6] = 0.5
        record = ScoredImage(
            image=str(index),
            score=float(generator.normal(flawed)),
            verdict="pass",
            defect="dent" if flawed else "good",
            flawed=flawed,
            map=(generator.normal(size=SIZE) + mask).astype(np.float32),
            mask=mask if flawed else None,
            network=ScoredMask((generator.normal(size=NETWORK) + small).astype(np.float32), small if flawed else None),
        )
        made.append(record)
    return made


def evaluate(records: list[ScoredImage], protocol: Protocol, n_resamples: int = 20) -> Evaluation:
    return evaluate_images(records, protocol=protocol, n_resamples=n_resamples)


def test_pixel_figures_of_the_network_are_those_of_its_maps_and_fully_covered_pixels(
    records: list[ScoredImage],
) -> None:
    result = evaluate(records, NETWORK_CLEAN)

    views = [record.network for record in records]
    scores = np.concatenate([view.scores.ravel() for view in views])
    flawed = np.concatenate([(np.zeros(100) if view.mask is None else view.mask.ravel()) >= 1 for view in views])
    assert result.pixel_auroc == pytest.approx(metrics.roc_auc_score(flawed, scores), abs=1e-9)
    assert result.pixel_ap == pytest.approx(metrics.average_precision_score(flawed, scores), abs=1e-6)
    assert result.image_auroc == evaluate(records, CLEAN).image_auroc


@pytest.mark.parametrize("pro", ["dilated_200", "per_image_200"])
def test_legacy_pro_has_a_name_of_its_own_an_interval_and_shares_by_defect(
    pro: str, records: list[ScoredImage]
) -> None:
    named = [replace(one, defect="dent" if index % 2 else "scratch") for index, one in enumerate(records[5:])]
    result = evaluate([*records[:5], *named], changed(pro=pro))
    exact = evaluate([*records[:5], *named], NETWORK_CLEAN)

    assert result.aupro is not None
    assert result.aupro != exact.aupro
    assert result.pixel_auroc == exact.pixel_auroc
    low, high = result.intervals["aupro"]
    assert low <= result.aupro <= high
    # One region an image, so both kinds of share count alike.
    parts = result.by_defect.values()
    assert result.aupro == pytest.approx(sum(part.aupro * part.n_regions for part in parts) / 5)
    assert "PRO (0.3), " in result.labels()["aupro"]
    assert "AUPRO" not in result.as_table()


def test_undefined_legacy_pro_is_null_and_noted(records: list[ScoredImage]) -> None:
    flat = [replace(one, network=replace(one.network, scores=np.ones(NETWORK, dtype=np.float32))) for one in records]

    result = evaluate(flat, changed(pro="dilated_200"))

    assert result.aupro is None
    assert result.pixel_auroc == 0.5
    assert any("PRO by the released code is undefined" in note for note in result.notes)


def test_excluded_pixels_count_neither_as_flawed_nor_as_free(records: list[ScoredImage]) -> None:
    outside = np.ones(SIZE, dtype=bool)
    outside[:, 8:25] = False
    cropped = [replace(one, not_inspected=outside) for one in records]
    cut = [replace(one, map=one.map[:, 8:25], mask=None if one.mask is None else one.mask[:, 8:25]) for one in records]

    excluded = evaluate(cropped, Protocol(name="custom", uninspected="excluded"))
    lowest = evaluate(cropped, CLEAN)

    for name in ("pixel_auroc", "pixel_ap", "aupro"):
        assert getattr(excluded, name) == pytest.approx(getattr(evaluate(cut, CLEAN), name), abs=1e-12)
        assert getattr(lowest, name) < getattr(excluded, name), "a flaw that is not seen is not found"


def test_flaw_that_the_crop_cut_away_leaves_the_label_and_counts_its_pixels_as_free(
    records: list[ScoredImage],
) -> None:
    lost = replace(records[9], network=replace(records[9].network, mask=np.zeros(NETWORK, dtype=np.float32)))

    result = evaluate([*records[:9], lost], NETWORK_CLEAN)

    assert (result.n_good, result.n_flawed, result.n_annotated) == (5, 5, 5)
    assert any(note.startswith("1 image lost every flawed pixel") for note in result.notes)
    good = replace(lost, flawed=False, mask=None)
    assert result.pixel_auroc == evaluate([*records[:9], good], NETWORK_CLEAN).pixel_auroc


def test_label_by_the_mask_makes_such_an_image_good(records: list[ScoredImage]) -> None:
    lost = replace(records[9], network=replace(records[9].network, mask=np.zeros(NETWORK, dtype=np.float32)))

    result = evaluate([*records[:9], lost], changed(image_label="mask"))

    assert (result.n_good, result.n_flawed, result.by_defect["dent"].n) == (6, 4, 4)
    scores, flawed = [one.score for one in records], [False] * 5 + [True] * 4 + [False]
    assert result.image_auroc == pytest.approx(metrics.roc_auc_score(flawed, scores))
    assert any("counted as good" in note for note in result.notes)


def test_flawed_image_without_a_mask_keeps_its_label(records: list[ScoredImage]) -> None:
    result = evaluate([*records[:9], replace(records[9], mask=None)], changed(image_label="mask"))

    assert (result.n_good, result.n_flawed, result.n_annotated) == (5, 5, 4)


@pytest.mark.parametrize(("protocol", "shown"), [(changed(image_score="map_maximum"), "network"), (CLEAN, None)])
def test_image_score_may_be_the_maximum_of_the_map(
    protocol: Protocol, shown: str | None, records: list[ScoredImage]
) -> None:
    scores = [float(one.network.scores.max()) if shown else one.score for one in records]

    assert evaluate(records, protocol).image_auroc == metrics.roc_auc_score([one.flawed for one in records], scores)


def test_rounding_is_for_the_two_aurocs_alone(records: list[ScoredImage]) -> None:
    result, exact = evaluate(records, changed(rounding="three_decimals")), evaluate(records, NETWORK_CLEAN)

    assert result.pixel_auroc == round(exact.pixel_auroc, 3)
    assert result.image_auroc == round(exact.image_auroc, 3)
    assert (result.pixel_ap, result.aupro, result.intervals) == (exact.pixel_ap, exact.aupro, exact.intervals)


@pytest.fixture
def loco(records: list[ScoredImage]) -> list[ScoredImage]:
    """The records as one structural and four logical anomalies whose defects saturate at half their area."""
    return [
        replace(
            one,
            defect="good" if not one.flawed else ("structural" if index == 5 else "logical") + "_anomalies",
            channels=(Channel(one.mask, threshold=0.5, relative=True),) if one.flawed else (),
        )
        for index, one in enumerate(records)
    ]


def test_pooled_loco_mean_is_the_pooled_auroc_and_is_called_so(loco: list[ScoredImage]) -> None:
    result, clean = evaluate(loco, papers("slsg", "mvtec_loco")), evaluate(loco, CLEAN)

    assert result.image_auroc_loco_mean == result.image_auroc
    assert result.intervals["image_auroc_loco_mean"] == result.intervals["image_auroc"]
    assert clean.image_auroc_loco_mean == (clean.image_auroc_logical + clean.image_auroc_structural) / 2
    assert result.labels()["image_auroc_loco_mean"] != clean.labels()["image_auroc_loco_mean"]


def test_saturated_overlap_is_measured_in_original_pixels_by_every_protocol(loco: list[ScoredImage]) -> None:
    clean, other = evaluate(loco, CLEAN), evaluate(loco, papers("slsg", "mvtec_loco"))

    assert other.pixel_auroc != clean.pixel_auroc
    for name in ("spro", "spro_logical", "spro_structural", "spro_loco_mean"):
        assert getattr(other, name) == getattr(clean, name) is not None
        assert other.intervals[name] == clean.intervals[name]
    assert clean.spro == pytest.approx(au_spro([one.map for one in loco], [one.channels for one in loco]))


def test_result_of_another_protocol_never_looks_clean(records: list[ScoredImage]) -> None:
    result = evaluate(records, papers("glass", "mvtec"))

    printed = json.loads(result.model_dump_json())
    assert printed["protocol"] == "papers"
    assert printed["deviations"] == papers("glass", "mvtec").deviations()
    assert printed["stamps"] == papers("glass", "mvtec").caveats()
    assert Evaluation.model_validate(printed) == result
    assert result.as_table().startswith("PROTOCOL PAPERS: not comparable with clean figures")
    assert [name for name, _ in result.explained()] == [f"{a}={b}" for a, b in printed["deviations"].items()]
    clean = evaluate(records, CLEAN)
    assert (clean.protocol, clean.deviations, clean.stamps) == ("clean", {}, [])


def test_oracle_is_stamped_on_the_table(records: list[ScoredImage]) -> None:
    from flawsmith.metrics.collect import accumulate
    from flawsmith.metrics.summary import summarise

    result = summarise(accumulate(records), selection="oracle", n_resamples=0)

    assert result.selection == "oracle"
    assert result.as_table().startswith("ORACLE: the checkpoint was chosen on test data")


@pytest.mark.parametrize("gone", ["view", "mask", "map"])
def test_record_that_lacks_what_the_protocol_measures_is_refused(gone: str, records: list[ScoredImage]) -> None:
    one = records[9]
    broken = {
        "view": replace(one, network=None),
        "mask": replace(one, network=replace(one.network, mask=None)),
        "map": replace(one, map=None, network=None),
    }[gone]

    with pytest.raises(ValueError, match="9 has no m"):
        evaluate([*records[:9], broken], changed(image_score="map_maximum"))


def by_pillow(mask: np.ndarray, resize: Callable[[Image.Image], Image.Image], box: tuple[int, ...]) -> np.ndarray:
    """A mask file of 0 and 255 the way of torchvision's Resize and CenterCrop."""
    return np.asarray(resize(Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))).crop(box))


def test_masks_go_the_way_of_the_released_codes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = np.zeros((90, 120), dtype=bool)
    for _ in range(4):
        y, x = generator.integers(0, 80), generator.integers(0, 110)
        mask[y : y + 17, x : x + 13] = True
    crop, squash = Geometry(policy="crop", size=(30, 30)), Geometry(size=(30, 30))
    # The shorter side to 30, so 30×40, of which columns 5 to 35 are kept.
    resized = by_pillow(mask, lambda one: one.resize((40, 30), Image.Resampling.BILINEAR), (5, 0, 35, 30))

    eroded = network_mask(mask, crop, "bilinear_exact_one")
    np.testing.assert_array_equal(eroded, resized.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(eroded >= 1, resized == 255)
    dilated = network_mask(mask, crop, "bilinear_above_zero")
    nearest = network_mask(mask, crop, "nearest")
    assert set(np.unique(dilated)) <= {0.0, 1.0}
    assert ((eroded >= 1) <= (nearest >= 1)).all()
    assert ((nearest >= 1) <= (dilated >= 1)).all()
    assert (eroded >= 1).sum() < (nearest >= 1).sum() < (dilated >= 1).sum()
    default = by_pillow(mask, lambda one: one.resize((30, 30)), (0, 0, 30, 30))
    np.testing.assert_array_equal(network_mask(mask, squash, "bicubic_exact_one") >= 1, default == 255)


def test_letterbox_bars_are_no_pixels() -> None:
    geometry = Geometry(policy="letterbox", size=(12, 12))
    mask = np.ones((20, 10), dtype=bool)

    content = geometry.valid_region(np.arange(144, dtype=np.float32).reshape(12, 12), (20, 10))

    assert content.shape == (12, 6)
    assert content[0, 0] == 3.0
    assert network_mask(mask, geometry, "nearest").shape == content.shape
    assert network_mask(mask, geometry, "nearest").min() == 1.0
