"""Benchmark folders as `flawsmith benchmark` leaves them, made of invented results."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flawsmith.benchmark.experiment import (
    MODEL,
    RESULT,
    SCORES,
    BenchmarkRun,
    Costs,
    Experiment,
    ResultStore,
    RunResult,
)
from flawsmith.metrics.results import Evaluation

DEFECTS = ("crack", "scratch")


def evaluation(**figures: float | None) -> Evaluation:
    """Figures of a test set; those that are not given are unknown."""
    names = ("image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "false_reject_rate", "miss_rate")
    known: dict[str, Any] = dict.fromkeys(names) | {"image_auroc": 0.9, "n_good": 20, "n_flawed": 20} | figures
    return Evaluation(**known)


def result(
    method: str = "pbas",
    *,
    category: str = "bolt",
    dataset: str = "parts",
    seed: int = 0,
    config: dict[str, Any] | None = None,
    costs: dict[str, Any] | None = None,
    figures: dict[str, float | None] | None = None,
    status: str = "finished",
    **experiment: Any,
) -> RunResult:
    """One run's result; ``experiment`` are fields of the experiment."""
    run = BenchmarkRun(
        experiment=Experiment(method=method, **experiment),
        seed=seed,
        dataset=dataset,
        category=category,
        images_sha256="ab" * 32,
        config={"patch_size": 3, **(config or {}), **experiment.get("set", {})},
        backbone="efficientnet_lite0",
    )
    return RunResult(
        run=run,
        status=status,
        error=None if status == "finished" else "no reason",
        evaluations={"whole": evaluation(**(figures or {}))} if status == "finished" else {},
        n_train=100,
        costs=Costs(**{"latency_p50_ms": 40.0, "model_bytes": 4_000_000, **(costs or {})}),
        machine="a machine",
    )


def score_rows(seed: int = 0, *, n: int = 30, limit: float = 1.0) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of a benchmark's scores.csv: good images around 0.5, flawed ones around 1.5."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        defect = ("good", "good", *DEFECTS)[number % 4]
        score = rng.normal(0.5 if defect == "good" else 1.5, 0.2)
        verdict = "reject" if score > limit else "pass"
        label = "good" if defect == "good" else "flawed"
        rows.append((f"test/{defect}/{number:03d}.png", label, defect, "A", repr(float(score)), verdict))
    return rows


@pytest.fixture
def make_result() -> Callable[..., RunResult]:
    return result


@pytest.fixture
def benchmark_folder(tmp_path: Path, tiny: ModuleType) -> Callable[..., Path]:
    """``benchmark_folder(results)``: the folder of these results, with scores, and with tiny models if asked for."""

    def make(results: list[RunResult], *, models: bool = False, name: str = "results", scores: bool = True) -> Path:
        root = tmp_path / name
        for number, one in enumerate(results):
            files = {RESULT: one.model_dump_json().encode()}
            if scores and one.finished:
                path = tmp_path / "scores.csv"
                with path.open("w", newline="") as file:
                    rows = csv.writer(file)
                    rows.writerow(("image", "label", "defect", "half", "score", "verdict"))
                    rows.writerows(score_rows(number))
                files[SCORES] = path.read_bytes()
            if models:
                files[MODEL] = tiny.make_bundle().to_bytes()
            ResultStore(root).save(one.run, files)
        return root

    return make
