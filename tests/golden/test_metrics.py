"""The metric cases of the golden set: maps and masks in, figures of released codes and brute force out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from flawsmith.metrics import pro, ranking
from flawsmith.metrics.accumulate import PixelMetrics
from flawsmith.metrics.legacy_pro import LegacyPRO, Rule

PACKAGED = Path(__file__).parent / "data"
DATA = Path(os.environ.get("FLAWSMITH_GOLDEN", PACKAGED))
CASES = [
    case for case in json.loads((DATA / "cases.json").read_text(encoding="utf-8"))["cases"] if case["kind"] == "metrics"
]
PRO_LIMITS = ("0.05", "0.1", "0.3", "1.0")
VARIANTS: dict[str, Rule] = {
    "compat_dilated": "dilated_200",
    "rd4ad_whole_set": "whole_200",
    "rd4ad_per_image_mean": "per_image_200",
}


class Golden:
    """One case: its arrays, and agreement within the tolerance that it states."""

    def __init__(self, case: dict) -> None:
        self.case = case
        with np.load(DATA / case["file"], allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def soft_masks(self) -> np.ndarray:
        return self.arrays.get("masks_soft", self.arrays["masks"])

    def assert_agrees(self, name: str, value: float | None) -> None:
        reference = float(self[name])
        tolerance = self.case["arrays"][name].get("tolerance", self.case["tolerance"])
        if np.isnan(reference):
            assert value is None, f"{name} must be undefined"
        else:
            assert value is not None, f"{name} must be {reference}"
            assert value == pytest.approx(reference, abs=tolerance["atol"], rel=tolerance["rtol"])


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_all_metric_cases_are_present() -> None:
    assert CASES if DATA != PACKAGED else len(CASES) == 11


def test_image_figures_agree(golden: Golden) -> None:
    scores = golden["maps"].max(axis=(1, 2))

    np.testing.assert_array_equal(scores, golden["image_scores"])
    golden.assert_agrees("image_auroc", ranking.auroc(scores, golden["labels"]))
    golden.assert_agrees("image_ap", ranking.average_precision(scores, golden["labels"]))


def test_pixel_figures_agree(golden: Golden) -> None:
    with PixelMetrics() as pixels:
        for anomaly_map, mask in zip(golden["maps"], golden["masks"], strict=True):
            pixels.update(anomaly_map, mask)
        figures = pixels.compute()

    golden.assert_agrees("pixel_auroc", figures.auroc)
    golden.assert_agrees("pixel_ap", figures.average_precision)
    golden.assert_agrees("pro_exact_limit_0.3", figures.overlap)
    assert len(figures.region_area) == int(golden["components"])


@pytest.mark.parametrize("limit", PRO_LIMITS)
def test_exact_pro_agrees(golden: Golden, limit: str) -> None:
    value = pro.aupro(list(golden["maps"]), list(golden["masks"]), limit=float(limit))

    golden.assert_agrees(f"pro_exact_limit_{limit}", value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_legacy_pro_agrees(golden: Golden, variant: str) -> None:
    with LegacyPRO(VARIANTS[variant]) as pixels:
        for anomaly_map, mask in zip(golden["maps"], golden.soft_masks, strict=True):
            pixels.update(anomaly_map, mask)
        figures = pixels.compute()

    golden.assert_agrees(f"pro_{variant}", figures.overlap)


def test_reference_curve_lies_on_the_exact_curve(golden: Golden) -> None:
    curve = pro.pro_curve(list(golden["maps"]), list(golden["masks"]))

    if "exact_curve_fpr" not in golden.arrays:
        assert curve is None
        return
    assert curve is not None
    for x, y in zip(golden["exact_curve_fpr"], golden["exact_curve_pro"], strict=True):
        lowest = curve.y[max(np.searchsorted(curve.x, x - 1e-9, side="right") - 1, 0)]
        highest = curve.y[min(np.searchsorted(curve.x, x + 1e-9, side="right"), len(curve.y) - 1)]
        assert lowest - 1e-6 <= y <= highest + 1e-6
