"""What an evaluation says of the test images it could not use in full."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from flawsmith.pipeline.evaluate import evaluate
from flawsmith.runtime.inspector import Inspector


def test_flawed_image_without_a_mask_is_noted_as_such(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (root / "ground_truth" / "crack" / "001_mask.png").unlink()

    result = evaluate(Inspector.load(tiny.make_bundle()), root, n_resamples=0)

    assert result.n_annotated == 1
    assert "1 image flawed without a mask: left out of the pixel figures." in result.notes
    assert not any("without an anomaly map" in note for note in result.notes)
