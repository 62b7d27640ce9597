"""The sample product line: exact masks, pictures that depend on their own key alone, MVTec layout on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawsmith.data import layouts
from flawsmith.data.splits import refuse_leaks
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode
from flawsmith.synthesis.demo_parts import FLAWS, PARTS, render_part, render_product_line

SIZE = (120, 152)


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("part", PARTS)
def test_good_parts_vary_and_repeat_exactly(part: str) -> None:
    first, mask = render_part(part, index=0, size=SIZE)
    again, _ = render_part(part, index=0, size=SIZE)
    other, _ = render_part(part, index=1, size=SIZE)
    tested, _ = render_part(part, index=0, size=SIZE, group="test")
    reseeded, _ = render_part(part, index=0, size=SIZE, seed=1)
    assert first.shape == (*SIZE, 3)
    assert first.dtype == np.uint8
    assert not mask.any()
    assert np.array_equal(first, again)
    for another in (other, tested, reseeded):
        assert np.abs(first.astype(int) - another).mean() > 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("defect", FLAWS)
def test_masks_hold_what_changed_and_nothing_else(part: str, defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flawed, mask = render_part(part, defect=defect, index=2, size=(160, 200), group="test")

    # The same picture without its flaw: the flaw leaves the surface as it is and marks one pixel as its area.
    def no_flaw(kind, view, surface, rng):  # type: ignore[no-untyped-def]
        return surface, np.zeros(view.shape, bool)

    with monkeypatch.context() as patch:
        patch.setattr("flawsmith.synthesis.demo_parts.FLAWS", {defect: no_flaw})
        good, _ = render_part(part, defect=defect, index=2, size=(160, 200), group="test")
    changed = np.abs(flawed.astype(int) - good).max(axis=2) > 0
    assert not (changed & ~mask).any()
    assert 1e-4 < mask.mean() < 0.1
    assert (changed & mask).sum() >= 0.7 * mask.sum()


@settings(max_examples=12, deadline=None)
@given(
    part=st.sampled_from(sorted(PARTS)),
    defect=st.sampled_from(sorted(FLAWS)),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(64, 100), st.integers(64, 100)),
)
def test_every_flaw_leaves_a_mark_at_any_size(
    part: str, defect: str, index: int, seed: int, size: tuple[int, int]
) -> None:
    image, mask = render_part(part, defect=defect, index=index, seed=seed, size=size)
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert mask.sum() >= 6


def test_logical_flaw_is_a_hole_too_few_or_too_many() -> None:
    masks = [render_part("gear", defect="wrong_hole", index=i, size=SIZE)[1] for i in range(8)]
    for mask in masks:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.7 < mask.sum() / box < 0.86  # a disc fills π/4 of its box


def test_product_line_is_written_in_mvtec_layout(tmp_path: Path) -> None:
    (category,) = render_product_line(
        tmp_path / "new" / "line", parts=["gear"], n_train=4, n_test_good=2, n_per_defect=1, size=SIZE
    )
    dataset = layouts.load(category)
    assert (dataset.layout, dataset.category) == ("mvtec", "gear")
    assert (len(dataset.good_train), len(dataset.test_good), len(dataset.test_flawed)) == (4, 2, 5)
    assert dataset.defects == tuple(sorted(FLAWS))
    assert dataset.without_mask == ()
    assert dataset.unused_masks == ()
    refuse_leaks(dataset.good_train, dataset.test)
    for sample in dataset.test_flawed:
        mask = decode(sample.masks[0])
        assert mask.shape == decode(sample.image).shape
        assert set(np.unique(mask).tolist()) == {0, 255}


def test_a_larger_line_holds_the_pictures_of_a_smaller_one(tmp_path: Path) -> None:
    common = {"parts": ["bracket"], "size": (64, 80), "seed": 5}
    render_product_line(tmp_path / "small", n_train=1, n_test_good=1, n_per_defect=1, **common)
    render_product_line(tmp_path / "large", n_train=3, n_test_good=2, n_per_defect=2, **common)
    small, large = files(tmp_path / "small"), files(tmp_path / "large")
    assert len(small) == 12
    assert small.items() <= large.items()


def test_an_existing_category_is_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "gear").mkdir()
    (tmp_path / "gear" / "mine.txt").write_text("keep")
    with pytest.raises(FlawsmithError, match="exists already"):
        render_product_line(tmp_path, parts=["bracket", "gear"], n_train=1, size=(64, 64))
    assert list(files(tmp_path)) == ["gear/mine.txt"]


def test_an_interrupted_category_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(pixels: np.ndarray, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawsmith.synthesis.demo_parts._save", full_disk)
    with pytest.raises(FlawsmithError, match="No space left"):
        render_product_line(tmp_path, parts=["gear"], n_train=1, size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"part": "spoon"}, "known are bracket, gear"),
        ({"part": "gear", "defect": "rust"}, "known are scratch"),
        ({"part": "gear", "size": (32, 400)}, "too small"),
    ],
)
def test_unknown_names_and_sizes_are_refused(arguments: dict, expected: str) -> None:
    with pytest.raises(FlawsmithError, match=expected):
        render_part(**arguments)
