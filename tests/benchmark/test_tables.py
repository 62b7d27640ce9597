"""Results as tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from flawsmith.benchmark.experiment import BenchmarkRun, Costs, Experiment, FurtherResult, Measurement, RunResult
from flawsmith.benchmark.tables import describe, latex, markdown, tables, tidy_csv, write_tables
from flawsmith.metrics.results import Evaluation


def evaluation(image_auroc: float | None, **figures: Any) -> Evaluation:
    names = ("image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "false_reject_rate", "miss_rate")
    known = dict.fromkeys(names, 0.5) | {"n_good": 3, "n_flawed": 4} | figures
    return Evaluation(image_auroc=image_auroc, **known)


def result(category: str, method: str, seed: int, image_auroc: float | None, **changes: Any) -> RunResult:
    run = BenchmarkRun(
        experiment=Experiment(method=method),
        seed=seed,
        dataset="line",
        category=category,
        images_sha256="0",
        config={},
        backbone="b",
    )
    found = {
        "run": run,
        "status": "finished",
        "evaluations": {"whole": evaluation(image_auroc)},
        "costs": Costs(train_seconds=10.0 + seed, latency_p50_ms=5.0, peak_bytes=10**9, model_bytes=14 * 10**6),
        "machine": "a machine",
        "versions": {"flawsmith": "0"},
    }
    return RunResult(**{**found, **changes})


@pytest.fixture
def results() -> list[RunResult]:
    """Two categories, two methods, two seeds."""
    return [
        result(category, method, seed, base + 0.1 * (category == "nut") + 0.02 * seed)
        for method, base in (("pbas", 0.7), ("glass", 0.6))
        for seed in (0, 1)
        for category in ("bolt", "nut")
    ]


def row_of(table: Any, *first: str) -> dict[str, str]:
    (found,) = [row for row in table.rows if row[: len(first)] == first]
    return dict(zip(table.heads, found, strict=True))


def test_overall_row_is_the_mean_over_categories_and_its_spread_that_over_seeds(results: list[RunResult]) -> None:
    row = row_of(tables(results)[0], "pbas")

    # Seed 0: (0.70 + 0.80) / 2; seed 1: 0.77.
    assert row["image AUROC"] == "0.7600 ± 0.0141"
    assert row["runs"] == "4 of 4"
    assert row["training, s"] == "10"
    assert row["model, MB"] == "14.0"


def test_category_row_is_the_mean_over_seeds(results: list[RunResult]) -> None:
    row = row_of(tables(results)[1], "line/nut", "glass")

    assert row["image AUROC"] == "0.7100 ± 0.0141"
    assert row["seeds"] == "2"


def test_failed_run_is_named_and_counts_nowhere(results: list[RunResult]) -> None:
    broken = result("bolt", "pbas", 2, None, status="failed", error="no such image", evaluations={}, machine="")

    made = tables([*results, broken])

    assert row_of(made[0], "pbas")["image AUROC"] == "0.7600 ± 0.0141"
    assert row_of(made[0], "pbas")["runs"] == "4 of 5"
    assert made[-1].rows == [("bolt", "pbas", "2", "no such image")]


def test_figure_that_the_data_cannot_give_is_a_dash(results: list[RunResult]) -> None:
    for one in results:
        one.evaluations["whole"] = evaluation(0.9, aupro=None if one.run.experiment.method == "pbas" else 0.5)

    assert row_of(tables(results)[0], "pbas")["AUPRO (0.3)"] == "–"
    assert row_of(tables(results)[0], "glass")["AUPRO (0.3)"] == "0.5000 ± 0.0000"


def test_loco_figures_show_where_there_are_some(results: list[RunResult]) -> None:
    assert "image AUROC, LOCO mean" not in tables(results)[0].heads
    results[0].evaluations["whole"] = evaluation(0.9, image_auroc_loco_mean=0.8)

    assert "image AUROC, LOCO mean" in tables(results)[0].heads


def test_tidy_csv_holds_a_row_a_run_and_part(results: list[RunResult]) -> None:
    results[0].evaluations["B"] = evaluation(0.123)

    rows = list(csv.DictReader(io.StringIO(tidy_csv(results))))

    assert len(rows) == 9
    assert [row["part"] for row in rows[:2]] == ["whole", "B"]
    assert float(rows[1]["image_auroc"]) == 0.123
    assert {row["key"] for row in rows} == {one.run.key for one in results}


def test_latex_sets_its_own_signs(results: list[RunResult]) -> None:
    strange = [result("50%_a&b", "pbas", 0, 0.5), result(r"{c}\d~e^f", "pbas", 0, 0.5)]

    text = latex(tables(strange), ["a note"])

    assert r"50\%\_a\&b" in text
    (caption,) = [line for line in text.splitlines() if line.startswith(r"\caption{Mean over categories")]
    assert r"\{c\}\textbackslash{}d\textasciitilde{}e\textasciicircum{}f" in caption
    assert "–" not in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3


def test_name_with_a_bar_is_one_cell_of_markdown() -> None:
    text = markdown(tables([result("a|b", "pbas", 0, 0.5)]), [])

    rows = [line for line in text.splitlines() if line.startswith("| line/a")]
    assert rows and all(line.startswith(r"| line/a\|b") for line in rows)


def test_all_formats_are_written_and_html_escapes(results: list[RunResult], tmp_path: Path) -> None:
    results.append(result("<b>", "pbas", 0, 0.5))

    files = write_tables(results, tmp_path)

    assert {path.name for path in files.values()} == {"results.csv", "results.md", "results.tex", "results.html"}
    page = files["html"].read_text()
    assert "line/&lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "| pbas" in files["md"].read_text()


def test_several_runs_at_a_time_are_admitted(results: list[RunResult], tmp_path: Path) -> None:
    results[0].costs.jobs = 2

    assert "2 runs shared the machine" in write_tables(results, tmp_path)["md"].read_text()


def test_published_figures_stand_beside_ours_with_their_protocol() -> None:
    run = result("screw", "glass", 0, 0.9)
    known = run.model_copy(update={"run": run.run.model_copy(update={"dataset": "mvtec_ad"})})

    (table,) = [one for one in tables([known]) if one.title == "Beside the papers"]

    rows = [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    (row,) = [each for each in rows if each["row"] == "GLASS-j" and each["figure"] == "image AUROC"]
    assert (row["data"], row["printed"], row["here, clean"], row["difference"]) == (
        "MVTec AD/screw", "1.000", "0.9000", "-0.1000",
    )  # fmt: skip
    assert not [each for each in rows if "mean" in each["data"]]
    assert any("test" in note for note in table.notes)


def test_means_of_the_papers_are_set_beside_ours_where_a_plan_names_the_table() -> None:
    runs = []
    for category, score in (("screw", 0.9), ("wood", 1.0)):
        run = result(category, "glass", 0, score)
        experiment = run.run.experiment.model_copy(update={"published": "GLASS-m"})
        runs.append(
            run.model_copy(update={"run": run.run.model_copy(update={"dataset": "mvtec", "experiment": experiment})})
        )

    (table,) = [one for one in tables(runs, {"glass": ["Table 1", "Table 2"]}) if one.title == "Beside the papers"]

    rows = [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    means = {row["data"]: row for row in rows if row["figure"] == "image AUROC"}
    whole = means["MVTec AD, mean"]
    assert (whole["here, clean"], whole["difference"], whole["categories"]) == ("0.9500", "–", "2 of 15")
    assert (means["MVTec AD, texture mean"]["here, clean"], means["MVTec AD, texture mean"]["categories"]) == (
        "1.0000",
        "1 of 5",
    )
    assert {row["row"] for row in rows} == {"GLASS-m"}


def test_what_was_measured_by_two_protocols_and_on_another_set_stands_side_by_side() -> None:
    run = result("carpet", "glass", 0, 0.9)
    places = [("mvtec", "clean", 0.8), ("MAD-sys/Beta_0.1", "papers", 0.5), ("MAD-sys/Beta_0.3", "papers", 0.7)]
    measurements = [
        Measurement(dataset=dataset, category="carpet", images_sha256="0", protocol=protocol)
        for dataset, protocol, _ in places
    ]
    known = run.model_copy(
        update={
            "run": run.run.model_copy(
                update={"dataset": "mvtec", "protocol": "papers", "further": tuple(measurements)}
            ),
            "further": [
                FurtherResult(measurement=each, evaluations={"whole": evaluation(score)})
                for each, (*_, score) in zip(measurements, places, strict=True)
            ],
        }
    )

    made = {one.title: one for one in tables([known], {"glass": ["Table 1", "Table 3"]})}

    overall = made["Mean over categories, the whole test set"]
    assert row_of(overall, "glass, papers")["image AUROC"] == "0.9000"
    assert row_of(overall, "glass, clean")["image AUROC"] == "0.8000"
    rows = [dict(zip(made["Beside the papers"].heads, row, strict=True)) for row in made["Beside the papers"].rows]
    (weak,) = [r for r in rows if r["data"] == "MAD-sys, mean" and r["figure"] == "image AUROC"]
    assert (weak["here, papers"], weak["here, clean"], weak["categories"]) == ("0.6000", "–", "1 of 5")
    carpet = [
        r for r in rows if r["data"] == "MVTec AD/carpet" and r["row"] == "GLASS-m" and r["figure"] == "image AUROC"
    ]
    assert [(r["here, papers"], r["here, clean"]) for r in carpet] == [("0.9000", "0.8000")]
    assert len(list(csv.DictReader(io.StringIO(tidy_csv([known]))))) == 4


def test_no_published_table_for_data_of_the_users_own(results: list[RunResult]) -> None:
    assert "Beside the papers" not in [table.title for table in tables(results)]


def test_figures_of_an_oracle_are_stamped_above_all_tables(results: list[RunResult], tmp_path: Path) -> None:
    results[0].evaluations["whole"] = evaluation(0.9, selection="oracle", stamps=["ORACLE: chosen on test data"])

    files = write_tables(results, tmp_path)

    for name in ("md", "tex", "html", "csv"):
        assert "ORACLE: chosen on test data" in files[name].read_text(), name


def test_misses_and_false_rejects_at_the_limit_come_before_the_figures_that_need_none(
    results: list[RunResult],
) -> None:
    overall, by_category = tables(results)[:2]

    for table in (overall, by_category):
        places = [table.heads.index(name) for name in ("miss rate", "false reject rate", "image AUROC")]
        assert places == sorted(places)


def test_changes_of_a_published_preset_stand_above_the_tables_by_name() -> None:
    """Whatever an arm is called; of categories that differ, each kind once."""
    run = result("bolt", "pbas", 0, 0.7).run
    named = run.model_copy(update={"experiment": Experiment(method="pbas", preset="official", name="ours")})
    changes = ("backbone efficientnet_lite0", "epochs=3")
    results = [
        result("bolt", "pbas", 0, 0.7, run=named, deviations=changes),
        result("nut", "pbas", 0, 0.7, run=named, deviations=changes),
        result("wood", "pbas", 0, 0.7, run=named, deviations=changes[:1]),
    ]

    notes = describe(results)

    assert notes.count("ours: official, with 2 changes: backbone efficientnet_lite0, epochs=3.") == 1
    assert notes.count("ours: official, with 1 change: backbone efficientnet_lite0.") == 1
