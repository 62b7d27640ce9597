"""Figures as files: formats, fonts, the same bytes every time, numbers beside them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from flawsmith.figures.style import COLUMN, PaperFigure, legend_below, panels, wrapped, write
from flawsmith.report.style import PRINT, plot_style, short_label
from flawsmith.runtime.errors import FlawsmithError


def drawn(label: str = "a line") -> PaperFigure:
    with plot_style(PRINT):
        figure, axes = panels(1, 1, height=1.0)
        legend_below(figure, axes[0, 0].plot([1, 2], [3, 4], label=label))
        axes[0, 0].set_xlabel("place")
    return PaperFigure(figure, [{"x": 1, "y": 3}, {"x": 2, "y": 4}])


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_same_figure_gives_the_same_bytes_whenever_it_is_drawn(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (tmp_path / f"{name}{suffix}" for name in "ab")
    write(drawn(), first, numbers=False)
    # Both fonts and documents can carry the time of writing; this is what their writers ask for it.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    monkeypatch.setattr("time.time", lambda: 2e9)

    write(drawn(), second, numbers=False)

    assert first.read_bytes() == second.read_bytes()


def test_pdf_embeds_truetype_fonts(tmp_path: Path) -> None:
    write(drawn(), tmp_path / "a.pdf", numbers=False)

    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_svg_needs_no_font_of_the_reader(tmp_path: Path) -> None:
    write(drawn(), tmp_path / "a.svg", numbers=False)

    assert "<text" not in (tmp_path / "a.svg").read_text()


def test_numbers_stand_beside_the_figure(tmp_path: Path) -> None:
    files = write(drawn(), tmp_path / "new" / "a.svg", numbers=True)

    assert files["numbers"] == tmp_path / "new" / "a.csv"
    with files["numbers"].open() as file:
        assert list(csv.DictReader(file)) == [{"x": "1", "y": "3"}, {"x": "2", "y": "4"}]


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=r"a\.txt: a figure is written as \.pdf, \.svg or \.png"):
        write(drawn(), tmp_path / "a.txt", numbers=False)


def test_figure_keeps_the_width_of_a_column_and_grows_by_its_legend(tmp_path: Path) -> None:
    one, many = drawn(), drawn("a label so long that only a single one has room in a row of the legend")
    with plot_style(PRINT):
        legend_below(many.figure, [many.figure.axes[0].plot([1], [1], label="x" * 50)[0] for _ in range(10)])

    write(one, tmp_path / "a.png", numbers=False)

    assert Image.open(tmp_path / "a.png").width == pytest.approx(300 * COLUMN, abs=1)
    assert many.figure.get_figheight() > one.figure.get_figheight() + 1


def test_labels_that_are_too_long_end_in_an_ellipsis() -> None:
    assert short_label("_hidden\nname") == "hidden name"
    assert short_label("x" * 50) == "x" * 43 + "…"
    assert wrapped("glass, epochs=1, 10 % of the images", 20) == "glass, epochs=1, 10\n% of the images"
    assert re.fullmatch(r"(.{1,10}\n).{1,10}", wrapped("one two three four five six seven", 10))
