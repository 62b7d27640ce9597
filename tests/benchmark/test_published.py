"""The published figures: what the papers print agrees with itself, and is found under any usual name."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib.resources import files
from statistics import fmean
from typing import Any, get_args

import pytest
import yaml

from flawsmith.benchmark.published import (
    DATASETS,
    PAPERS,
    Metric,
    all_figures,
    dataset_key,
    method_key,
    parse_paper,
    protocol_notes,
    published,
    published_costs,
    published_papers,
)
from flawsmith.metrics.results import LABELS, LOCO_LABELS
from flawsmith.models.registry import method_names
from flawsmith.runtime.errors import FlawsmithError

OWN = ("aand", "glass", "pbas", "slsg")
HALF_A_DIGIT = 0.0005 + 1e-9
"""Papers print three digits, so a mean of theirs may be off by half of the last."""
TEXTURES = {"carpet", "grid", "leather", "tile", "wood"}
LOCO_FLAWED = {
    "breakfast_box": (90, 83),
    "juice_bottle": (94, 142),
    "pushpins": (81, 91),
    "screw_bag": (82, 137),
    "splicing_connectors": (85, 108),
}
"""Structural and logical test images of MVTec LOCO AD."""

Row = tuple[str, str, "str | None", str, str]


def rows() -> Mapping[Row, dict[str, float]]:
    """Values by category, for each paper, method, variant, data set and metric."""
    found: dict[Row, dict[str, float]] = defaultdict(dict)
    for figure in all_figures():
        row = (figure.paper, figure.method, figure.variant, figure.dataset, figure.metric)
        found[row][figure.category] = figure.value
    return found


def categories_of(values: Mapping[str, float]) -> dict[str, float]:
    return {category: value for category, value in values.items() if not category.endswith("mean")}


def gaps(kind: str) -> dict[Row, float]:
    """How far a printed mean is from that of the row, wherever both are known."""
    found = {}
    for row, values in rows().items():
        parts = categories_of(values)
        if kind == "texture_mean":
            parts = {category: value for category, value in parts.items() if category in TEXTURES}
        elif kind == "object_mean":
            parts = {category: value for category, value in parts.items() if category not in TEXTURES}
        if kind in values and len(parts) > 1:
            found[row] = abs(fmean(parts.values()) - values[kind])
    return found


# ---- The papers agree with themselves -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "texture_mean", "object_mean"])
def test_printed_means_of_the_four_methods_are_those_of_their_rows(kind: str) -> None:
    own = {row: gap for row, gap in gaps(kind).items() if method_key(row[1]) == row[0]}

    assert own
    assert all(gap <= HALF_A_DIGIT for gap in own.values()), own


@pytest.mark.parametrize(
    "row",
    [
        *(("glass", "GLASS", variant, "mvtec_ad", "image_auroc") for variant in ("GLASS-m", "GLASS-h", "GLASS-j")),
        *(("glass", "GLASS", variant, "mvtec_ad", "pixel_auroc") for variant in ("GLASS-m", "GLASS-h", "GLASS-j")),
        *(("pbas", "PBAS", None, "mvtec_ad", metric) for metric in ("image_auroc", "pixel_auroc", "aupro")),
        ("aand", "AAND", None, "visa", "image_auroc"),
        ("aand", "AAND", None, "mvtec_3d", "image_auroc"),
        *(("slsg", "SLSG", None, "mvtec_ad", metric) for metric in ("image_auroc", "pixel_auroc")),
        *(("slsg", "SLSG", None, "btad", metric) for metric in ("image_auroc", "pixel_auroc")),
        *(("slsg", "SLSG", None, "mvtec_loco", metric) for metric in ("image_auroc", "spro_loco_mean")),
    ],
    ids=str,
)
def test_row_and_mean_are_both_there(row: Row) -> None:
    assert row in gaps("mean")


def test_printed_means_of_other_methods_are_those_of_their_rows_but_for_one() -> None:
    far = {row for kind in ("mean", "texture_mean", "object_mean") for row, gap in gaps(kind).items() if gap > 0.001}

    assert far == {("slsg", "SPADE", None, "mvtec_ad", "pixel_auroc")}
    slsg = next(paper for paper in published_papers() if paper.name == "slsg")
    assert any("SPADE has a mean pixel AUROC of 96.0" in remark for remark in slsg.remarks)


@pytest.mark.parametrize(
    ("over", "parts"),
    [("four_sets", ("mvtec_ad", "visa", "mpdd", "wfdd")), ("two_weak_sets", ("mad_man", "mad_sys"))],
)
def test_means_over_data_sets_are_those_of_their_parts(over: str, parts: tuple[str, ...]) -> None:
    known = rows()
    joined = {row: values["mean"] for row, values in known.items() if row[3] == over}

    assert len(joined) >= 18
    for (paper, method, variant, _, metric), value in joined.items():
        mean = fmean(known[paper, method, variant, part, metric]["mean"] for part in parts)
        assert abs(mean - value) <= HALF_A_DIGIT, (method, variant, metric)


def test_pooled_auroc_of_the_released_slsg_is_weighted_by_numbers() -> None:
    known = rows()
    structural, logical, pooled = (
        known["slsg", "SLSG", "released weights", "mvtec_loco", metric]
        for metric in ("image_auroc_structural", "image_auroc_logical", "image_auroc")
    )

    for category, (n_structural, n_logical) in LOCO_FLAWED.items():
        weighted = (n_structural * structural[category] + n_logical * logical[category]) / (n_structural + n_logical)
        assert abs(weighted - pooled[category]) <= 2 * HALF_A_DIGIT, category
    # Half the sum does not explain what is printed.
    halves = [abs((structural[name] + logical[name]) / 2 - pooled[name]) for name in LOCO_FLAWED]
    assert max(halves) > 0.02


def test_loco_mean_of_the_released_slsg_is_half_the_sum() -> None:
    (mean,) = published("mvtec_loco", None, "slsg", "image_auroc_loco_mean", kind="released")
    (structural,) = published("mvtec_loco", None, "slsg", "image_auroc_structural", kind="released")
    (logical,) = published("mvtec_loco", None, "slsg", "image_auroc_logical", kind="released")

    assert abs((structural.value + logical.value) / 2 - mean.value) <= HALF_A_DIGIT


@pytest.mark.parametrize(
    ("dataset", "category", "method", "metric", "values"),
    [
        ("mvtec_ad", None, "glass", "aupro", [0.964, 0.959, 0.968]),
        ("mvtec_ad", "screw", "glass", "image_auroc", [0.995, 1.0, 1.0]),
        ("mad_sys", None, "glass", "pixel_auroc", [0.933]),
        ("mvtec_ad", "screw", "pbas", "aupro", [0.969]),
        ("visa", None, "pbas", "pixel_ap", [0.476]),
        ("visa", "macaroni2", "aand", "image_auroc", [0.952]),
        ("mvtec_3d", None, "aand", "aupro", [0.975]),
        ("mvtec_3d", "tire", "rd4ad", "image_auroc", [0.877]),
        ("mvtec_ad", "transistor", "slsg", "pixel_auroc", [0.925]),
        ("btad", "02", "slsg", "image_auroc", [0.854]),
        ("mvtec_loco", "screw_bag", "slsg", "spro_loco_mean", [0.472]),
        ("mvtec_loco", "pushpins", "padim", "image_auroc_loco_mean", [0.612]),
        ("mvtec_ad", None, "patchcore", "aupro", [0.928, 0.944]),
    ],
)
def test_value_is_that_of_the_paper(
    dataset: str, category: str | None, method: str, metric: str, values: list[float]
) -> None:
    assert [figure.value for figure in published(dataset, category, method, metric)] == values


# ---- The data as a whole --------------------------------------------------------------------------------------------


def test_every_value_is_a_share_that_was_not_left_in_percent() -> None:
    values = [figure.value for figure in all_figures()]

    assert len(values) > 1800
    assert all(0 <= value <= 1 for value in values)
    assert min(values) > 0.1, "a percentage was divided twice"


def test_no_value_stands_twice() -> None:
    places = Counter(
        (figure.paper, method_key(figure.method), figure.variant, figure.dataset, figure.category, figure.metric)
        for figure in all_figures()
    )

    assert [place for place, count in places.items() if count > 1] == []


def test_every_file_belongs_to_a_paper() -> None:
    folder = files("flawsmith.benchmark") / "published"

    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{name}.yaml" for name in PAPERS)
    assert [paper.name for paper in published_papers()] == list(PAPERS)


def test_every_data_set_has_figures() -> None:
    assert {figure.dataset for figure in all_figures()} == set(DATASETS)


def test_metrics_are_figures_of_an_evaluation() -> None:
    assert set(get_args(Metric)) <= set(LABELS | LOCO_LABELS)


@pytest.mark.parametrize("method", [*OWN, "rd4ad"])
def test_every_method_of_the_four_papers_is_there(method: str) -> None:
    assert method in method_names()
    assert any(method_key(figure.method) == method and figure.kind == "result" for figure in all_figures())


def test_only_methods_of_others_are_marked_as_reported() -> None:
    for figure in all_figures():
        own = method_key(figure.method) == figure.paper
        assert figure.reported_by == (None if own else figure.paper)
        assert figure.protocol, "every paper says how it measures"


@pytest.mark.parametrize("method", OWN)
def test_every_method_has_a_speed_or_size_with_its_source(method: str) -> None:
    found = published_costs(method)

    assert found
    assert all(cost.source and cost.value > 0 for _, cost in found)
    assert all(cost.device for _, cost in found if cost.quantity in ("ms_per_image", "images_per_second"))


def test_speed_of_one_quantity_is_found() -> None:
    found = [(paper.name, cost.value, cost.batch_size) for paper, cost in published_costs("SLSG", "ms_per_image")]

    assert found == [("slsg", 54.2, 1), ("slsg", 18.5, 16)]


# ---- Look-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "category", "method", "metric"),
    [
        ("mvtec_ad", "metal_nut", "pbas", "pixel_auroc"),
        ("MVTec AD", "Metal nut", "PBAS", "P-AUROC"),
        ("mvtec", "metal-nut", "Pbas", "P-AUC"),
    ],
)
def test_spelling_does_not_matter(dataset: str, category: str, method: str, metric: str) -> None:
    assert [figure.value for figure in published(dataset, category, method, metric)] == [0.991]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("MVTec LOCO AD", "mvtec_loco"),
        ("mvtec_3d_anomaly_detection", "mvtec_3d"),
        ("BTAD", "btad"),
        ("MAD-man", "mad_man"),
        ("screws_of_line_3", None),
    ],
)
def test_data_set_is_known_by_its_usual_names(name: str, key: str | None) -> None:
    assert dataset_key(name) == key


def test_methods_with_similar_names_are_kept_apart() -> None:
    assert method_key("RD") == method_key("Reverse Distillation") == "rd4ad"
    assert method_key("RD++") != method_key("RD")
    students = {figure.method for figure in all_figures() if figure.method.startswith(("ST", "S-T"))}
    assert len(students) == len({method_key(name) for name in students}) == 2


def test_ablations_and_released_weights_come_only_when_asked_for() -> None:
    results = published("mvtec_ad", None, "glass", "image_auroc")
    everything = published("mvtec_ad", None, "glass", "image_auroc", kind=None)

    assert [figure.label for figure in results] == ["GLASS-m", "GLASS-h", "GLASS-j"]
    assert {figure.kind for figure in everything} == {"result", "ablation"}
    assert published("mvtec_ad", None, "glass", "image_auroc", kind="released") == []


def test_several_papers_report_one_method_in_their_order() -> None:
    found = published("visa", None, "SimpleNet", "image_auroc")

    assert [(figure.reported_by, figure.value) for figure in found] == [
        ("glass", 0.971),
        ("pbas", 0.971),
        ("aand", 0.808),
    ]


def test_what_no_paper_prints_is_empty() -> None:
    assert published("mpdd", "tubes", "glass", "image_auroc") == []
    assert published("visa", "candle", "glass", "image_auroc") == []
    assert published("visa", None, "a method of mine", "image_auroc") == []
    assert published("visa", None, "aand", "image_f1_max") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mvtec_locoo", None, "slsg", "aupro"), "no data set is called 'mvtec_locoo': did you mean 'mvtec_loco'"),
        (("visa", "candel", "aand", "aupro"), "no category of VisA is called 'candel': did you mean 'candle'"),
        (("visa", None, "aand", "pixel_aurocc"), "no figure is called 'pixel_aurocc': did you mean 'pixel_auroc'"),
    ],
)
def test_unknown_name_is_refused_with_the_closest(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(FlawsmithError, match=message):
        published(*arguments)


# ---- Protocols ------------------------------------------------------------------------------------------------------


def test_notes_tell_that_the_pro_of_glass_and_pbas_is_dilated() -> None:
    for method in ("glass", "pbas"):
        assert any("dilated" in note for note in protocol_notes(method, metrics=["aupro"]))
        assert not any("dilated" in note for note in protocol_notes(method, metrics=["image_auroc"]))


@pytest.mark.parametrize("method", OWN)
def test_notes_tell_that_checkpoints_are_chosen_on_test_data(method: str) -> None:
    assert any("test data" in note for note in protocol_notes(method))


def test_notes_leave_out_other_data_sets() -> None:
    assert any("wood and toothbrush" in note for note in protocol_notes("glass", dataset="MVTec AD"))
    assert not any("wood and toothbrush" in note for note in protocol_notes("glass", dataset="visa"))


def test_notes_of_a_method_of_others_name_who_reports_it() -> None:
    notes = protocol_notes("patchcore", dataset="visa")

    assert [note.split(":")[0] for note in notes] == [
        "PatchCore as reported by the GLASS paper",
        "PatchCore as reported by the AAND paper",
    ]
    assert protocol_notes("a method of mine") == []


def test_pooled_value_of_slsg_says_so() -> None:
    (figure,) = published("mvtec_loco", None, "slsg", "image_auroc")

    assert any("pooled" in note for note in figure.notes)
    assert published("mvtec_loco", None, "slsg", "image_auroc_loco_mean") == []


# ---- Files ----------------------------------------------------------------------------------------------------------


def paper_with(change: Mapping[str, Any]) -> str:
    """A file with one table of one row, and a change to that row or table."""
    row = {"method": "Ours", "figures": {"aupro": [0.5, None]}} | dict(change.get("row", {}))
    table = {"source": "Table 1", "subject": "all", "kind": "result", "columns": ["visa/mean", "mpdd/mean"]}
    paper = {"name": "ours", "title": "T", "reference": "R", "method": "Ours", "comparators": "none"}
    rest = {"protocol": [], "remarks": [], "costs": []}
    return yaml.safe_dump(paper | rest | {"tables": [table | {"rows": [row]} | dict(change.get("table", {}))]})


def test_file_is_read() -> None:
    paper = parse_paper(paper_with({}), "ours.yaml")

    assert paper.tables[0].rows[0].figures == {"aupro": (0.5, None)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": {"figurs": {}}}, r"ours.yaml, tables.0.rows.0.figurs: Extra inputs"),
        ({"table": {"colour": "red"}}, r"ours.yaml, tables.0.colour: Extra inputs"),
        ({"row": {"figures": {"aupro": [98.2, None]}}}, "less than or equal to 1"),
        ({"row": {"figures": {"aupro": ["0.9", None]}}}, "valid number"),
        ({"row": {"figures": {"aupro": [0.9]}}}, "1 values for 2 columns"),
        ({"row": {"figures": {"auroc": [0.9, 0.9]}}}, "auroc"),
        ({"table": {"columns": ["visa/mean", "visaa/mean"]}}, "no data set is called 'visaa'"),
        ({"table": {"columns": ["visa/mean", "visa"]}}, "should match pattern"),
    ],
)
def test_fault_in_a_file_is_told_with_its_place(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(FlawsmithError, match=message):
        parse_paper(paper_with(change), "ours.yaml")


def test_text_that_is_no_yaml_is_told() -> None:
    with pytest.raises(FlawsmithError, match=r"ours\.yaml is no intact YAML"):
        parse_paper("tables: [", "ours.yaml")


def test_look_up_imports_no_torch() -> None:
    script = (
        "import sys; from flawsmith.benchmark.published import published_papers; published_papers();"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'cv2') if m in sys.modules])"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
