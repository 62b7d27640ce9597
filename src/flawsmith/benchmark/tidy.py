"""Results as one tidy CSV: a row a cell and part of the test set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from flawsmith.benchmark.cell import CellResult, Part
from flawsmith.evaluation.results import LABELS, LOCO_LABELS, Evaluation

FIGURES = (*LABELS, *LOCO_LABELS)


def tidy_csv(results: Sequence[CellResult]) -> str:
    """One row a cell and part of the test set; what is unknown is empty."""
    identity = ("key", "dataset", "category", "arm", "method", "preset", "backbone", "fraction", "set", "textures")
    costs = list(type(results[0].costs).model_fields) if results else []
    sizes = ("n_train", "n_calibration", "n_good", "n_flawed")
    heads = [
        *identity,
        "seed",
        "protocol",
        "part",
        "stamps",
        "status",
        "error",
        *FIGURES,
        *sizes,
        *costs,
        "machine",
        "versions",
    ]
    text = io.StringIO()
    rows = csv.DictWriter(text, heads, lineterminator="\n")
    rows.writeheader()
    for result in results:
        for part, evaluation in result.evaluations.items() or [(result.cell.parts[0], None)]:
            rows.writerow(_tidy_row(result, part, evaluation))
    return text.getvalue()


def _tidy_row(result: CellResult, part: Part, evaluation: Evaluation | None) -> dict[str, Any]:
    cell, arm = result.cell, result.cell.arm
    row: dict[str, Any] = {
        "key": cell.key,
        "dataset": cell.dataset,
        "category": cell.category,
        "arm": arm.title,
        "method": arm.method,
        "preset": arm.preset,
        "backbone": cell.backbone,
        "fraction": arm.fraction,
        "set": json.dumps(arm.set, sort_keys=True),
        "textures": arm.textures,
        "seed": cell.seed,
        "protocol": cell.protocol,
        "part": part,
        "stamps": "" if evaluation is None else "; ".join(evaluation.stamps),
        "status": result.status,
        "error": result.error,
        "n_train": result.n_train,
        "n_calibration": result.n_calibration,
        **result.costs.model_dump(),
        "machine": result.machine,
        "versions": json.dumps(result.versions),
    }
    if evaluation is not None:
        row |= {name: getattr(evaluation, name) for name in (*FIGURES, "n_good", "n_flawed")}
    return row
