"""Rows of small pictures under their heads."""

from __future__ import annotations

import numpy as np
import pytest

from flawsmith.report.contact_sheet import SheetRow, contact_sheet

HEADS = ("image", "mask")
RED = (255, 0, 0)


def row(size: tuple[int, int] = (40, 60)) -> SheetRow:
    return ([np.full((*size, 3), RED, np.uint8), np.zeros(size, np.uint8)], "000.png: weight 0.50")


def test_pictures_keep_their_aspect_and_fill_their_cell() -> None:
    sheet = contact_sheet(HEADS, [row((40, 60))], cell=90)

    red = np.argwhere((sheet == RED).all(axis=2))
    assert (np.ptp(red, axis=0) + 1).tolist() == [60, 90]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 3)])
def test_any_picture_fits(size: tuple[int, int]) -> None:
    sheet = contact_sheet(HEADS, [row(size)], cell=50)

    assert (sheet == RED).all(axis=2).any()
    assert sheet.shape[1] < 3 * 60


def test_every_row_is_shown_and_many_rows_stand_side_by_side() -> None:
    one, many = (contact_sheet(HEADS, [row((50, 50))] * n, cell=50) for n in (1, 32))

    shown = [int((sheet == RED).all(axis=2).sum()) for sheet in (one, many)]
    assert shown == [2500, 32 * 2500]
    assert many.shape[1] > one.shape[1]
    assert 0.3 < many.shape[0] / many.shape[1] < 3


def test_heads_and_captions_are_written() -> None:
    named = contact_sheet(HEADS, [row()], cell=90)
    nameless = contact_sheet(("", ""), [(row()[0], "")], cell=90)

    changed = np.argwhere((named != nameless).any(axis=2))[:, 0]
    assert changed.min() < 26
    assert changed.max() > named.shape[0] - 30


@pytest.mark.parametrize("rows", [[], [(row()[0][:1], "")]])
def test_rows_without_all_pictures_are_refused(rows: list[SheetRow]) -> None:
    with pytest.raises(ValueError, match="rows of 2 pictures"):
        contact_sheet(HEADS, rows)
