"""What stands in the report of an evaluation."""

from __future__ import annotations

from html import escape
from pathlib import Path
from types import ModuleType

from flawsmith.data.layouts import load
from flawsmith.pipeline.evaluate import evaluate_into


def test_each_note_stands_in_the_report_once(tiny: ModuleType, trees: ModuleType, tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "bolt")
    (root / "ground_truth" / "crack" / "001_mask.png").unlink()
    trees.picture(root / "test" / "stray.png", seed=300)
    dataset = load(root)

    written = evaluate_into(tmp_path / "evaluation", tiny.make_bundle(), dataset)

    report = written.report.read_text(encoding="utf-8")
    notes = (*dataset.notes, *written.evaluation.notes)
    assert len(notes) > 2
    assert [report.count(f"<li>{escape(note)}</li>") for note in notes] == [1] * len(notes)
