from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from flawsmith.models.diagnostics import FeatureCloud, LineChart, Pictures
from flawsmith.report import plots
from flawsmith.report.data import FactGroup
from flawsmith.report.plots import THUMBNAIL, chart_of_metrics, line_chart, panels, projections, training_curves
from flawsmith.report.style import PALETTE


def blobs(count: int = 30, width: int = 60, groups: tuple[str, ...] = ("normal", "forged")) -> FeatureCloud:
    generator = np.random.default_rng(0)
    features = {
        name: (generator.normal(size=(count, width)) + 8 * index).astype(np.float32)
        for index, name in enumerate(groups)
    }
    return FeatureCloud("Features", "Of single positions.", features)


def chart(**lines: list[float]) -> LineChart:
    return LineChart("Radii", "Over training.", list(range(len(next(iter(lines.values()))))), lines, "distance")


def strip(size: tuple[int, ...], count: int = 1, group: int = 1) -> Pictures:
    pictures = [(f"number {index}", np.full(size, 90 + index, dtype=np.uint8)) for index in range(count)]
    return Pictures("Synthetic flaws", "As training sees them.", pictures, group)


def opened(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))


def svg(source: str | None) -> str:
    assert source is not None
    return base64.b64decode(source.split(",")[1]).decode()


def test_panels_keep_the_order_and_the_kind_of_their_diagnostics() -> None:
    table = FactGroup("Judge", [("Hypothesis", "manifold")])

    shown = panels([strip((8, 8)), table, chart(r1=[1.0, 2.0]), blobs()])

    assert [panel.kind for panel in shown] == ["strip", "table", "plots", "plots"]
    assert [len(panel.tiles) for panel in shown] == [1, 0, 1, 2]
    assert shown[1].rows == table.rows


def test_diagnostics_with_nothing_to_show_are_left_out() -> None:
    same = FeatureCloud("Features", "", {"normal": np.ones((20, 4)), "lost": np.full((3, 4), np.nan)})

    nothing = [chart(r1=[np.nan, np.inf]), same, FeatureCloud("Features", "", {}), Pictures("Pictures", "", [])]

    assert panels(nothing) == []


# Charts


def test_chart_of_metrics_takes_the_rows_that_hold_its_numbers() -> None:
    rows = [
        {"stage": "one", "epoch": 0, "loss": 3.0},
        {"stage": "two", "epoch": 0, "radius": 2.0, "moved": None},
        {"stage": "two", "epoch": 1, "loss": 1.0},
        {"stage": "two", "epoch": 2, "radius": 1.0, "moved": 0.25},
    ]

    made = chart_of_metrics(rows, {"radius": "r1", "moved": "moved", "r9": "r9"}, title="", caption="", y_label="")

    assert (made.x_label, list(made.x)) == ("epoch", [0.0, 2.0])
    assert made.lines["r1"] == [2.0, 1.0]
    np.testing.assert_equal(made.lines["moved"], [np.nan, 0.25])
    assert "r9" not in made.lines


def test_chart_of_metrics_without_such_numbers_draws_nothing() -> None:
    made = chart_of_metrics([{"epoch": 0, "loss": 1.0}], ["radius"], title="", caption="", y_label="")

    assert made.lines == {}
    assert line_chart(made) is None


def test_a_loss_of_two_stages_is_two_lines() -> None:
    rows = [
        {"stage": stage, "epoch": epoch, "loss": start - epoch, f"loss_{stage}": 1.0}
        for stage, start in (("first", 9.0), ("second", 99.0))
        for epoch in range(3)
    ]

    columns = plots._losses(rows)

    assert list(columns) == ["loss of first", "loss of second", "loss_first", "loss_second"]
    np.testing.assert_array_equal(columns["loss of first"], [9, 8, 7, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(columns["loss of second"], [np.nan, np.nan, np.nan, 99, 98, 97])


@pytest.mark.parametrize("last", [0.001, 0.5, 1.9])
def test_numbers_of_a_logarithmic_axis_are_plain(last: float) -> None:
    picture = training_curves([{"epoch": epoch, "loss": loss} for epoch, loss in enumerate((2.0, last))])
    assert picture is not None

    drawn = base64.b64decode(picture.partition("base64,")[2]).decode()
    assert "mathdefault" not in drawn
    assert "$" not in drawn


def test_losses_are_drawn_without_the_other_numbers() -> None:
    rows = [{"epoch": epoch, "loss": 1.0, "radius": float(epoch)} for epoch in range(5)]

    alone = training_curves([{"epoch": epoch, "loss": 1.0} for epoch in range(5)])

    assert training_curves(rows) == alone


def test_alternative_text_of_a_chart_tells_where_its_lines_begin_and_end() -> None:
    (panel,) = panels([chart(r1=[np.nan, 2.0, 1.5], moved=[0.0, 0.0, 0.0])])

    assert panel.tiles[0].alt == "Radii, distance over epoch: r1 from 2 to 1.5, moved from 0 to 0."


def test_line_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="r1 has 3 values for 2 places"):
        line_chart(LineChart("Radii", "", [0, 1], {"r1": [1.0, 2.0, 3.0]}, "distance"))


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [-1.0, 4.0], [100.0, 101.0], [1e-300, 1e300]])
def test_odd_lines_are_drawn(values: list[float]) -> None:
    assert "<svg" in svg(line_chart(chart(line=values)))


# Point clouds


def test_groups_that_lie_apart_stay_apart_in_both_planes() -> None:
    for plane in projections(blobs()):
        normal, synthetic = plane.points["normal"], plane.points["forged"]
        between = np.linalg.norm(normal.mean(axis=0) - synthetic.mean(axis=0))

        assert normal.shape == synthetic.shape == (30, 2)
        assert between > 2 * max(normal.std(axis=0).max(), synthetic.std(axis=0).max())


def test_axes_tell_the_variance_that_they_explain() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(400, 3)) * np.sqrt([0.9, 0.1, 0.0])

    pca = projections(FeatureCloud("Features", "", {"normal": points[:4]}))[0]
    total = np.var(points[:4], axis=0).sum()
    leading = np.linalg.eigvalsh(np.cov(points[:4].T, bias=True))[-1]

    assert pca.x_label == f"component 1 ({100 * leading / total:.0f} % of variance)"


def test_same_cloud_gives_the_same_bytes() -> None:
    first, second = (panels([blobs()])[0].tiles for _ in range(2))

    assert first == second


def test_large_groups_are_thinned_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawsmith.report.plots.POINTS", 40)
    monkeypatch.setattr("flawsmith.report.plots.POINTS_PER_GROUP", 30)
    cloud = blobs(100, groups=("a", "b"))

    one, other = (projections(FeatureCloud("Features", "", cloud.groups))[0] for _ in range(2))
    alone = projections(FeatureCloud("Features", "", {"a": cloud.groups["a"]}))[0]

    assert {name: len(np.unique(points, axis=0)) for name, points in one.points.items()} == {"a": 20, "b": 20}
    assert len(alone.points["a"]) == 30
    np.testing.assert_array_equal(one.points["a"], other.points["a"])


def test_caption_tells_that_points_were_left_out() -> None:
    generator = np.random.default_rng(0)
    features = np.concatenate([generator.normal(size=(12, 3)), np.full((8, 3), np.nan)])

    (panel,) = panels([FeatureCloud("Features", "Seen.", {"normal": features})])

    assert panel.caption == "Seen. 12 of 20 points are drawn."
    assert panel.tiles[0].alt == "Features, PCA: 12 normal."


@pytest.mark.parametrize(("count", "width", "planes"), [(1, 5, 0), (2, 5, 1), (4, 1, 1), (5, 1, 2), (6, 2, 2)])
def test_small_clouds_show_what_they_can(count: int, width: int, planes: int) -> None:
    drawn = projections(blobs(count, width, groups=("normal",)))

    assert len(drawn) == planes
    assert all(np.isfinite(plane.points["normal"]).all() for plane in drawn)


def test_groups_of_different_width_are_refused() -> None:
    with pytest.raises(ValueError, match="different widths"):
        projections(FeatureCloud("Features", "", {"normal": np.ones((3, 4)), "forged": np.ones((3, 5))}))


def test_colours_and_shapes_tell_groups_apart() -> None:
    places = {name: np.random.default_rng(0).normal(size=(4, 2)) for name in "abc"}

    drawn = svg(plots.scatter(places, "x", "y"))

    assert all(colour.lower() in drawn for colour in PALETTE[:3])


# Strips


def test_large_pictures_shrink_and_tiny_ones_grow() -> None:
    large, tiny = (panels([strip(size)])[0].tiles[0] for size in ((600, 1200, 3), (9, 18)))

    assert opened(large.source).size == (THUMBNAIL, THUMBNAIL // 2)
    assert opened(tiny.source).size == (7 * 18, 7 * 9)


def test_masks_keep_their_edges() -> None:
    mask = np.zeros((200, 200), dtype=np.uint8)
    mask[50:100, 50:100] = 255

    (panel,) = panels([Pictures("Synthetic flaws", "", [("mask", mask)])])

    np.testing.assert_array_equal(np.asarray(opened(panel.tiles[0].source)), mask)


def test_budget_cuts_strips_between_groups_and_the_caption_tells() -> None:
    given = strip((40, 40, 3), count=9, group=3)
    size = sum(len(tile.source) for tile in panels([given])[0].tiles)

    shown = panels([given, given], budget=size + size // 2)

    assert [len(panel.tiles) for panel in shown] == [9, 3]
    assert shown[0].caption == given.caption
    assert shown[1].caption.endswith("3 of 9 pictures are shown.")


def test_pictures_are_labelled() -> None:
    (panel,) = panels([strip((40, 40, 3))])

    assert (panel.tiles[0].caption, panel.tiles[0].alt) == ("number 0", "number 0: Synthetic flaws")
