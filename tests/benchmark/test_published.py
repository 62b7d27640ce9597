"""The published figures: what the papers print agrees with itself, and is found under any usual name."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import fmean

import pytest

from flawsmith.benchmark.published import all_figures, method_key, protocol_notes, published
from flawsmith.data.public_sets import OFFICIAL
from flawsmith.metrics.results import LABELS, LOCO_LABELS
from flawsmith.models.registry import method_names

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
FIGURES = [figure for figure in all_figures() if figure.kind != "cost"]

Row = tuple[str, str, str, str, str]


def values_by_row() -> Mapping[Row, dict[str, float]]:
    """Values by category, for each paper, method, variant, data set and metric."""
    values: dict[Row, dict[str, float]] = defaultdict(dict)
    for figure in FIGURES:
        row = (figure.paper, figure.method, figure.variant, figure.dataset, figure.metric)
        values[row][figure.category] = figure.value
    return values


def gaps(mean: str) -> dict[Row, float]:
    """How far a printed mean is from that of the row, wherever both are known."""
    gap_by_row = {}
    for row, values in values_by_row().items():
        parts = {name: value for name, value in values.items() if not name.endswith("mean")}
        if mean != "mean":
            of_textures = mean == "texture_mean"
            parts = {name: value for name, value in parts.items() if (name in TEXTURES) == of_textures}
        if mean in values and len(parts) > 1:
            gap_by_row[row] = abs(fmean(parts.values()) - values[mean])
    return gap_by_row


# The papers agree with themselves


@pytest.mark.parametrize(("mean", "count"), [("mean", 16), ("texture_mean", 6), ("object_mean", 6)])
def test_printed_means_of_the_four_methods_are_those_of_their_rows(mean: str, count: int) -> None:
    of_own_method = {row: gap for row, gap in gaps(mean).items() if method_key(row[1]) == row[0]}

    assert len(of_own_method) >= count
    assert all(gap <= HALF_A_DIGIT for gap in of_own_method.values()), of_own_method


def test_printed_means_of_other_methods_are_those_of_their_rows_but_for_one() -> None:
    far = {row for mean in ("mean", "texture_mean", "object_mean") for row, gap in gaps(mean).items() if gap > 0.001}

    assert far == {("slsg", "SPADE", "", "mvtec", "pixel_auroc")}


@pytest.mark.parametrize(
    ("over", "parts"),
    [("four_sets", ("mvtec", "visa", "mpdd", "wfdd")), ("two_weak_sets", ("mad_man", "mad_sys"))],
)
def test_means_over_data_sets_are_those_of_their_parts(over: str, parts: tuple[str, ...]) -> None:
    values = values_by_row()
    joined = {row: of_row["mean"] for row, of_row in values.items() if row[3] == over}

    assert len(joined) >= 18
    for (paper, method, variant, _, metric), value in joined.items():
        mean = fmean(values[paper, method, variant, part, metric]["mean"] for part in parts)
        assert abs(mean - value) <= HALF_A_DIGIT, (method, variant, metric)


def test_pooled_auroc_of_the_released_slsg_is_weighted_by_numbers_and_not_half_the_sum() -> None:
    values = values_by_row()
    structural, logical, pooled = (
        values["slsg", "SLSG", "released weights", "mvtec_loco", metric]
        for metric in ("image_auroc_structural", "image_auroc_logical", "image_auroc")
    )

    for category, (n_structural, n_logical) in LOCO_FLAWED.items():
        weighted = (n_structural * structural[category] + n_logical * logical[category]) / (n_structural + n_logical)
        assert abs(weighted - pooled[category]) <= 2 * HALF_A_DIGIT, category
    halves = [abs((structural[name] + logical[name]) / 2 - pooled[name]) for name in LOCO_FLAWED]
    assert max(halves) > 0.02


@pytest.mark.parametrize(
    ("dataset", "category", "method", "metric", "values"),
    [
        # GLASS, Tables 1 and 2.
        ("mvtec", "screw", "glass", "image_auroc", [0.995, 1.0, 1.0]),
        ("mvtec", "Metal nut", "PatchCore", "pixel_auroc", [0.983]),
        ("mvtec", None, "glass", "aupro", [0.964, 0.959, 0.968]),
        ("MPDD", None, "DSR", "aupro", [0.584, 0.584]),
        ("wfdd", None, "glass", "image_auroc", [1.0, 0.99, 1.0]),
        ("four_sets", None, "SimpleNet", "pixel_auroc", [0.982]),
        ("mad_sys", None, "glass", "pixel_auroc", [0.933]),
        # PBAS, Tables I and III.
        ("mvtec", "screw", "pbas", "aupro", [0.969]),
        ("visa", None, "pbas", "image_auroc", [0.977]),
        ("visa", None, "pbas", "pixel_ap", [0.476]),
        # AAND, Tables I to III.
        ("visa", "macaroni2", "aand", "image_auroc", [0.952]),
        ("mvtec_3d", "carrot", "aand", "image_auroc", [0.969]),
        ("mvtec_3d", None, "aand", "aupro", [0.975]),
        ("mvtec_3d", "tire", "rd4ad", "image_auroc", [0.877]),
        # SLSG, Tables 1 to 4.
        ("btad", "02", "slsg", "image_auroc", [0.854]),
        ("mvtec", "transistor", "slsg", "pixel_auroc", [0.925]),
        ("mvtec_loco", "screw_bag", "slsg", "image_auroc", [0.794]),
        ("mvtec_loco", "screw_bag", "slsg", "spro_loco_mean", [0.472]),
        ("mvtec_loco", "pushpins", "padim", "image_auroc_loco_mean", [0.612]),
    ],
)
def test_value_is_that_of_the_paper(
    dataset: str, category: str | None, method: str, metric: str, values: list[float]
) -> None:
    assert [figure.value for figure in published(dataset, category, method, metric)] == values


# The file


def test_every_figure_is_a_share_that_was_not_left_in_percent() -> None:
    assert len(FIGURES) == 1896
    assert all(0.1 < figure.value <= 1 for figure in FIGURES), "a percentage, or one that was divided twice"


def test_no_figure_stands_twice() -> None:
    places = Counter(
        (figure.paper, method_key(figure.method), figure.variant, figure.dataset, figure.category, figure.metric)
        for figure in FIGURES
    )

    assert [place for place, count in places.items() if count > 1] == []


def test_words_are_those_of_evaluations_and_of_known_data_sets() -> None:
    assert {figure.metric for figure in FIGURES} <= set(LABELS | LOCO_LABELS)
    assert {figure.dataset for figure in FIGURES} <= {known.key for known in OFFICIAL} | {"four_sets", "two_weak_sets"}
    assert {figure.kind for figure in all_figures()} == {"result", "ablation", "released", "cost"}
    assert all(figure.table for figure in all_figures())


@pytest.mark.parametrize("method", [*OWN, "rd4ad"])
def test_every_method_of_the_four_papers_is_there(method: str) -> None:
    assert method in method_names()
    assert any(method_key(figure.method) == method and figure.kind == "result" for figure in FIGURES)


def test_every_speed_names_its_processor() -> None:
    speeds = [figure for figure in all_figures() if figure.metric in ("ms_per_image", "images_per_second")]

    assert {method_key(figure.method) for figure in speeds} > set(OWN)
    assert all("NVIDIA" in figure.note for figure in speeds)
    of_slsg = [(figure.value, figure.note) for figure in speeds if figure.method == "SLSG"][:2]
    assert of_slsg == [(54.2, "NVIDIA GTX 1080 Ti; batches of 1"), (18.5, "NVIDIA GTX 1080 Ti; batches of 16")]


# Look-up


@pytest.mark.parametrize(
    ("dataset", "category", "method"),
    [("mvtec", "metal_nut", "pbas"), ("MVTec AD", "Metal nut", "PBAS"), ("mvtec_ad", "metal-nut", "Pbas")],
)
def test_spelling_does_not_matter(dataset: str, category: str, method: str) -> None:
    assert [figure.value for figure in published(dataset, category, method, "pixel_auroc")] == [0.991]


def test_methods_with_similar_names_are_kept_apart() -> None:
    assert method_key("RD") == method_key("Reverse Distillation") == "rd4ad"
    assert method_key("RD++") != method_key("RD")
    students = {figure.method for figure in FIGURES if figure.method.startswith(("ST", "S-T"))}
    assert len(students) == len({method_key(name) for name in students}) == 2


def test_ablations_and_released_weights_come_only_when_asked_for() -> None:
    results = published("mvtec", None, "glass", "image_auroc")
    ablations = published("mvtec", None, "glass", "image_auroc", kind="ablation")

    assert [figure.label for figure in results] == ["GLASS-m", "GLASS-h", "GLASS-j"]
    assert {figure.kind for figure in ablations} == {"ablation"}
    assert published("mvtec", None, "glass", "image_auroc", kind="released") == []


def test_several_papers_report_one_method_in_their_order() -> None:
    figures = published("visa", None, "SimpleNet", "image_auroc")

    assert [(figure.paper, figure.value) for figure in figures] == [("glass", 0.971), ("pbas", 0.971), ("aand", 0.808)]


def test_what_no_paper_prints_is_empty() -> None:
    assert published("mpdd", "tubes", "glass", "image_auroc") == []
    assert published("visa", None, "a method of mine", "image_auroc") == []
    assert published("visa", None, "aand", "image_f1_max") == []
    assert published("screws of line 3", None, "aand", "image_auroc") == []


# Protocols


def test_notes_tell_that_the_pro_of_glass_and_pbas_is_dilated() -> None:
    for method in ("glass", "pbas"):
        assert any("dilated" in note for note in protocol_notes(method))


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

    assert "pooled" in figure.note
    assert published("mvtec_loco", None, "slsg", "image_auroc_loco_mean") == []


def test_look_up_imports_no_torch() -> None:
    script = (
        "import sys; from flawsmith.benchmark.published import all_figures; all_figures();"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'cv2') if m in sys.modules])"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
