"""Regions of interest from files: what is drawn is what is inspected, in images of any size."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image, ImageDraw
from pydantic import ValidationError

from flawsmith.data.roi import read_drawing
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.roi import RegionOfInterest


def write(path: Path, **drawing: object) -> Path:
    path.write_text(json.dumps({"width": 60, "height": 40, **drawing}), encoding="utf-8")
    return path


def test_rectangles_cover_their_pixels_exactly(tmp_path: Path) -> None:
    path = write(tmp_path / "roi.json", include=[[[10, 5], [50, 5], [50, 35], [10, 35]]], exclude=[[[20, 10], [30, 10], [30, 20], [20, 20]]])  # fmt: skip  # noqa: E501

    inspected = read_drawing(path)[0].to_mask((40, 60))

    expected = np.zeros((40, 60), bool)
    expected[5:35, 10:50] = True
    expected[10:20, 20:30] = False
    # Pillow draws a polygon's last row and column too.
    assert (inspected != expected).mean() < 0.05
    assert inspected[6:34, 11:19].all() and not inspected[11:19, 21:29].any()


def test_mask_image_is_kept_pixel_by_pixel(tmp_path: Path, seed: int) -> None:
    marked = np.random.default_rng(seed).random((40, 60)) > 0.5
    Image.fromarray(marked).save(tmp_path / "roi.png")

    region, _ = read_drawing(tmp_path / "roi.png")

    np.testing.assert_array_equal(region.to_mask((40, 60)), marked)
    np.testing.assert_array_equal(region.to_mask((80, 120)), marked.repeat(2, 0).repeat(2, 1))
    assert RegionOfInterest.model_validate_json(region.model_dump_json()) == region


def test_region_may_leave_out_areas_alone(tmp_path: Path) -> None:
    region, _ = read_drawing(write(tmp_path / "roi.json", exclude=[[[0, 0], [30, 0], [30, 40], [0, 40]]]))

    inspected = region.to_mask((40, 60))
    assert inspected[:, 32:].all() and not inspected[:, :29].any()


def test_name_that_is_too_long_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="there is no file"):
        read_drawing(tmp_path / ("x" * 300 + ".json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "the file must hold names and values"),
        ('{"width": 60, "height": 40}', "says nothing"),
        ('{"width": 0, "height": 40, "include": []}', "width"),
        ('{"width": 60, "height": 40, "inside": []}', "inside"),
        ('{"width": 60, "height": 40, "include": [[[1, 2], [3, "x"], [5, 6]]]}', "include.0.1 must be a corner"),
        ('{"width": 60, "height": 40, "include": [[[1, 2], [3, NaN], [5, 6]]]}', "include.0.1 must be a corner"),
        ('{"width": 60, "height": 40, "include": [[[1, 2], [3, 4]]]}', "three corners"),
        ('{"width": 60, "height": 40, "include": [[[1, 2], [3, 99], [5, 6]]]}', "lies outside of 60 x 40"),
        ("{", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
    ],
)
def test_file_that_says_nothing_is_refused_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "roi.json").write_text(content, encoding="utf-8")

    with pytest.raises(FlawsmithError, match=words) as caught:
        read_drawing(tmp_path / "roi.json")

    assert str(caught.value).startswith(str(tmp_path / "roi.json"))
    assert "\n" not in str(caught.value)


SQUARE = [[[0, 0], [9, 0], [9, 9]]]
ZONES: dict[str, tuple[Any, str]] = {
    "no list": ({"seal": SQUARE}, "zones must be a list"),
    "no zone": (["seal"], "zones.0 must hold names and values"),
    "too many": (
        [{"name": str(number), "include": SQUARE} for number in range(101)],
        "zones has 101 entries, and may have at most 100: join some",
    ),
    "nothing drawn": ([{"name": "seal"}], "zones.0.include (zone seal) is missing"),
    "no polygon": ([{"name": "seal", "include": []}], "zones.0.include (zone seal) has no polygon"),
    "a polygon, not a list of them": (
        [{"name": "seal", "include": SQUARE[0]}],
        "zones.0.include.0.0 (zone seal) must be a corner, two numbers [x, y]",
    ),
    "a corner of three numbers": (
        [{"name": "seal", "include": [[[0, 0, 1], [9, 0], [9, 9]]]}],
        "zones.0.include.0.0 (zone seal) must be a corner",
    ),
    "a corner of one": ([{"name": "seal", "include": [[[0], [9, 0], [9, 9]]]}], "include.0.0 (zone seal) must be"),
    "no polygon but a number": (
        [{"name": "seal", "include": SQUARE, "exclude": [5]}],
        "zones.0.exclude.0 (zone seal) must be a polygon",
    ),
    "an area of no kind": (
        [{"name": "seal", "include": SQUARE, "min_area": True}],
        'zones.0.min_area (zone seal) must be a number of pixels, or an area such as "0.2mm2"',
    ),
    "another word": (
        [{"name": "seal", "include": SQUARE, "minarea": 3}],
        "zones.0.minarea (zone seal) is not known here, but name, include, exclude, min_area are",
    ),
    "a number as name": ([{"name": 3, "include": SQUARE}], "zones.0.name is not possible: a zone's name is 1 to 60"),
    "no name": ([{"name": "", "include": SQUARE}], "zones.0.name is not possible"),
    "a name that colours the terminal": ([{"name": "\x1b[31m", "include": SQUARE}], r"(zone \x1b[31m) is not possible"),
}


@pytest.mark.parametrize("case", ZONES)
def test_zone_that_makes_no_sense_is_refused_in_plain_words(case: str, tmp_path: Path) -> None:
    zones, words = ZONES[case]
    path = write(tmp_path / "zones.json", zones=zones)

    with pytest.raises(FlawsmithError) as caught:
        read_drawing(path)

    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message
    assert ";" in message or "join some" in message  # how to write it instead
    assert not any(word in message for word in ("tuple", "dictionary", "Input", "input", "_Zone", "\x1b", "\n"))


def ring(corners: int) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return list(zip((0.5 + 0.4 * np.cos(angles)).tolist(), (0.5 + 0.4 * np.sin(angles)).tolist(), strict=True))


def test_more_than_10000_corners_of_all_polygons_together_are_refused() -> None:
    RegionOfInterest(include=[ring(6_000)], exclude=[ring(4_000)])

    with pytest.raises(ValueError, match="have 10,001 corners together, more than 10,000") as caught:
        RegionOfInterest(include=[ring(6_000)], exclude=[ring(4_001)])
    assert isinstance(caught.value, ValidationError) and caught.value.error_count() == 1


def test_file_of_too_many_corners_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "roi.json", include=[[[60 * x, 40 * y] for x, y in ring(10_001)]])

    with pytest.raises(FlawsmithError) as caught:
        read_drawing(path)

    assert str(caught.value) == (
        f"{path}: the polygons of the region of interest have 10,001 corners together, more than 10,000: draw them "
        "coarser, or give a mask image"
    )


def test_exclusion_of_everything_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "roi.json", exclude=[[[0, 0], [60, 0], [60, 40], [0, 40]]])

    with pytest.raises(FlawsmithError, match="nothing is left to inspect"):
        read_drawing(path)


def test_ragged_mask_is_refused_where_it_is_made(tmp_path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).random((2000, 2000)) > 0.5).save(tmp_path / "roi.png")

    with pytest.raises(FlawsmithError, match="too many small spots"):
        read_drawing(tmp_path / "roi.png")


def test_what_lies_outside_never_reaches_the_network(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = RegionOfInterest(include=[[(0, 0), (0.5, 0), (0.5, 1), (0, 1)]])
    for dtype, value_range in ((np.uint8, None), (np.uint16, (100.0, 4095.0))):
        geometry = Geometry(size=(32, 32), region=region, value_range=value_range)
        first = rng.integers(0, np.iinfo(dtype).max, (50, 70, 3)).astype(dtype)
        second = first.copy()
        second[:, 37:] = rng.integers(0, np.iinfo(dtype).max, (50, 33, 3))

        np.testing.assert_array_equal(geometry.apply(first), geometry.apply(second))


def test_map_is_lowest_and_not_inspected_outside() -> None:
    region = RegionOfInterest(exclude=[[(0, 0), (0.5, 0), (0.5, 1), (0, 1)]])
    geometry = Geometry(size=(4, 4), region=region)
    anomaly_map = np.arange(16, dtype=np.float32).reshape(4, 4)

    inverted, inspected = geometry.invert(anomaly_map, (8, 8)), geometry.valid_mask((8, 8))

    assert inspected is not None
    assert not inspected[:, :4].any() and inspected[:, 5:].all()
    assert (inverted[~inspected] == 0).all() and inverted[inspected].min() > 0


def test_region_drawn_on_images_of_other_proportions_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "roi.json", include=[[[0, 0], [30, 0], [30, 40]]])

    read_drawing(path, (400, 600))
    with pytest.raises(FlawsmithError, match="was drawn on 60 x 40, the images have 500 x 400"):
        read_drawing(path, (400, 500))


corners = st.tuples(st.floats(0, 1), st.floats(0, 1))
polygons = st.lists(st.lists(corners, min_size=3, max_size=6), max_size=3)


@given(polygons, polygons, st.integers(0, 99), st.booleans(), st.integers(1, 40), st.integers(1, 40))
def test_polygons_and_mask_are_combined_pixel_by_pixel(
    include: Any, exclude: Any, draw: int, has_mask: bool, height: int, width: int
) -> None:
    marked = np.random.default_rng(draw).random((5, 7)) > 0.3
    full = ((0, 0), (1, 0), (1, 1), (0, 1))
    mask = RegionOfInterest.from_mask(marked).mask if has_mask else None
    region = RegionOfInterest(include=include or [full], exclude=exclude, mask=mask)

    def drawn(polygons: Any) -> np.ndarray:
        canvas = Image.new("L", (width, height), 0)
        for polygon in polygons:
            ImageDraw.Draw(canvas).polygon([(x * width - 0.5, y * height - 0.5) for x, y in polygon], fill=1)
        return np.asarray(canvas).astype(bool)

    expected = drawn(include or [full]) & ~drawn(exclude)
    if has_mask:
        expected &= np.asarray(Image.fromarray(marked).resize((width, height), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(region.to_mask((height, width)), expected)


def test_only_the_last_mask_is_kept_in_memory() -> None:
    region = RegionOfInterest(exclude=[[(0, 0), (0.5, 0), (0.5, 1)]])

    first = weakref.ref(region.to_mask((40, 60)))
    assert region.to_mask((40, 60)) is first()
    region.to_mask((20, 30))

    gc.collect()
    assert first() is None


def test_large_mask_is_drawn_without_copies_of_it(seed: int) -> None:
    size = (4000, 4000)
    half = ((0, 0), (0.5, 0), (0.5, 1), (0, 1))
    marked = RegionOfInterest.from_mask(np.random.default_rng(seed).random((20, 20)) > 0.2).mask
    region = RegionOfInterest(include=[half], exclude=[[(0, 0), (0.2, 0), (0.2, 0.2)]], mask=marked)

    tracemalloc.start()
    region.to_mask(size)
    peak = tracemalloc.get_traced_memory()[1]  # what Pillow holds, a canvas at a time, is not counted
    tracemalloc.stop()

    assert peak < 1.5 * size[0] * size[1]
