"""False-positive rate and overlap against the threshold on the map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flawsmith.data.layouts import load
from flawsmith.figures.scores import measure, threshold_curves
from flawsmith.figures.sources import models
from flawsmith.pipeline.evaluate import test_samples as samples_of
from flawsmith.pipeline.masks import read_mask
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector


def test_rates_are_those_of_the_pixels_at_every_threshold(tmp_path: Path, trees, tiny) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    dataset = load(trees.mvtec(tmp_path / "bolt"))

    drawn = threshold_curves(measure(models([tmp_path]), dataset))

    inspector, flawed, good = Inspector.load(tmp_path / "model.flaw"), [], []
    for sample in samples_of(dataset):
        scores = inspector.inspect(decode(sample.image)).map
        mask = read_mask(sample) if sample.is_flawed else np.zeros(scores.shape, bool)
        flawed += [scores[mask]] if mask.any() else []
        good.append(scores[~mask])
    negatives = np.concatenate(good)
    assert len(drawn.rows) > 10
    for row in drawn.rows:
        threshold = float(row["threshold"])
        assert float(row["fpr"]) == pytest.approx((negatives >= threshold).mean())
        assert float(row["pro"]) == pytest.approx(np.mean([(region >= threshold).mean() for region in flawed]))
    assert "PRO" in drawn.notes[0]


def test_saturated_overlap_is_taken_where_the_data_set_has_it_and_every_model_has_a_panel(
    tmp_path: Path, trees, tiny
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        tiny.make_bundle().save(tmp_path / name / "model.flaw")
    dataset = load(trees.mvtec_loco(tmp_path / "bolt"))

    drawn = threshold_curves(measure(models([tmp_path / "first", tmp_path / "second"]), dataset))

    assert {row["model"] for row in drawn.rows} == {"pbas fast, first", "pbas fast, second"}
    assert all(0 <= float(row["spro"]) <= 1 for row in drawn.rows)
    assert max(float(row["spro"]) for row in drawn.rows) == 1
    assert not drawn.notes
    titles = [axis.get_title() for axis in drawn.figure.axes]
    assert titles == ["pbas fast, first", "pbas fast, second"]


def test_data_without_annotated_flaws_is_refused(tmp_path: Path, trees, tiny) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    dataset = load(trees.mvtec(tmp_path / "bolt", n_flawed=0))

    with pytest.raises(FlawsmithError, match="no annotated flaw"):
        measure(models([tmp_path]), dataset)
