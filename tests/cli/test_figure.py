"""`flawsmith figure`: every kind by one command, and its mistakes in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawsmith.benchmark.experiment import RESULT, SCORES, BenchmarkRun, Costs, Experiment, ResultStore, RunResult
from flawsmith.metrics.results import Evaluation

KINDS = ("scores", "grid", "features", "curve", "weakness", "thresholds", "latency")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A benchmark of one method at two fractions."""
    root = tmp_path / "results"
    unknown = dict.fromkeys(("image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"))
    for fraction, auroc in ((0.5, 0.8), (1.0, 0.9)):
        run = BenchmarkRun(
            experiment=Experiment(method="pbas", fraction=fraction),
            dataset="parts",
            category="bolt",
            images_sha256="ab" * 32,
            config={"patch_size": 3},
            backbone="efficientnet_lite0",
        )
        rates = {"false_reject_rate": 0.0, "miss_rate": 0.0, "n_good": 1, "n_flawed": 1}
        evaluation = Evaluation(image_auroc=auroc, **unknown, **rates)
        costs = Costs(latency_p50_ms=50.0 * fraction, model_bytes=4_000_000)
        result = RunResult(run=run, status="finished", evaluations={"whole": evaluation}, costs=costs)
        scores = "image,label,defect,half,score,verdict\na.png,good,good,A,0.1,pass\nb.png,flawed,dent,A,0.9,reject\n"
        ResultStore(root).save(run, {RESULT: result.model_dump_json().encode(), SCORES: scores.encode()})
    return root


@pytest.fixture
def category(tmp_path: Path, trees) -> Path:
    root = trees.mvtec(tmp_path / "bolt")
    for defect, level in (("good", 60), ("crack", 200)):
        for number in range(2):
            path = root / "test" / defect / f"{number:03d}.png"
            Image.fromarray(np.full((20, 30, 3), level + number, np.uint8)).save(path)
            if defect == "crack":
                trees.mask(root / "ground_truth" / "crack" / f"{number:03d}_mask.png", (20, 30))
    return root


def test_help_lists_every_kind_with_an_example(flawsmith):
    assert all(kind in flawsmith("figure", "--help").out for kind in KINDS)
    for kind in KINDS:
        assert f"Example: flawsmith figure {kind}" in " ".join(flawsmith("figure", kind, "--help").out.split())


@pytest.mark.parametrize(
    ("kind", "rows"), [("scores", 4), ("curve", 2), ("latency", 2)], ids=["scores", "curve", "latency"]
)
def test_benchmark_becomes_a_figure_and_its_numbers(kind, rows, results, tmp_path, flawsmith):
    out = tmp_path / f"{kind}.svg"

    outcome = flawsmith("figure", kind, results, "--out", out, "--csv")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [str(out), str(out.with_suffix(".csv"))]
    assert out.read_text().startswith("<?xml")
    with out.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == rows


def test_models_and_data_become_a_grid(model, category, tmp_path, flawsmith):
    out = tmp_path / "grid.png"

    outcome = flawsmith(
        "figure", "grid", model, "--data", category, "--pick", "worst", "best", "--n", "1", "--out", out
    )

    assert outcome.code == 0, outcome.err
    assert Image.open(out).width > 900


def test_json_names_the_files_and_the_notes(results, tmp_path, flawsmith):
    outcome = flawsmith("figure", "latency", results, "--out", tmp_path / "a.pdf", "--json")

    assert json.loads(outcome.out) == {"figure": str(tmp_path / "a.pdf"), "notes": []}


def test_run_becomes_planes_of_its_features(trained, parts, tmp_path, flawsmith):
    out = tmp_path / "features.pdf"

    outcome = flawsmith(
        "figure",
        "features",
        trained("pbas").folder,
        "--data",
        parts,
        "--maps",
        "adapted",
        "--planes",
        "pca",
        "--out",
        out,
    )

    assert outcome.code == 0, outcome.err
    assert out.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["scores", "RESULTS", "--out", "a.jpg"], "a.jpg: a figure is written as .pdf, .svg or .png"),
        (["scores", "EMPTY"], "flawsmith evaluate"),
        (["grid", "RESULTS", "--data", "CATEGORY"], "--keep-models"),
        (["grid", "MODEL", "--data", "CATEGORY", "--pick", "middling"], "--pick middling: choose from worst"),
        (["grid", "MODEL", "--data", "EMPTY"], "EMPTY"),
        (["features", "MODEL", "--data", "CATEGORY"], "no checkpoints"),
        (["curve", "EMPTY"], "flawsmith benchmark"),
        (["curve", "RESULTS", "--x", "fractoin"], "did you mean fraction?"),
        (["curve", "RESULTS", "--metric", "aupro"], "--metric aupro: no result has it"),
        (["weakness", "RESULTS"], "flawsmith synthesize DATA --out FOLDER --test-set"),
        (["weakness", "MODEL", "--sets", "EMPTY"], "flawsmith synthesize DATA --out FOLDER --test-set"),
        (["weakness", "MODEL", "--sets", "EMPTY", "--part", "A"], "--part has no meaning with --sets"),
        (["latency", "RESULTS", "--metric", "auroc"], "did you mean image_auroc?"),
    ],
)
def test_mistake_gives_one_line_and_no_file(arguments, fragment, results, model, category, tmp_path, flawsmith):
    places = {"RESULTS": results, "MODEL": model, "CATEGORY": category, "EMPTY": tmp_path / "EMPTY"}
    places["EMPTY"].mkdir()
    out = [] if "--out" in arguments else ["--out", tmp_path / "out.pdf"]

    outcome = flawsmith("figure", *(places.get(argument, argument) for argument in arguments), *out)

    assert outcome.code == 2, outcome.err
    assert outcome.err.count("\n") == 1
    assert fragment in outcome.err
    assert not (tmp_path / "out.pdf").exists()
