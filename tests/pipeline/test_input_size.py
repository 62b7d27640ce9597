"""The input's size follows from the smallest flaw that must be found."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import flawsmith
from flawsmith.models import AAND, PatchCore
from flawsmith.pipeline.input_size import MOST_PIXELS, PIXELS_OF_A_FLAW, input_size_for, size_advice
from flawsmith.runtime.errors import FlawsmithError

SIDES = st.integers(16, 6000)


@given(flaw=st.floats(1, 500), height=SIDES, width=SIDES)
def test_a_flaw_has_the_pixels_that_it_needs_or_all_that_it_has(flaw: float, height: int, width: int) -> None:
    config = AAND.presets["fast"]
    seen = input_size_for(flaw, (height, width), config)
    needed = min(PIXELS_OF_A_FLAW, flaw)

    extent = _extent(seen, (height, width))
    rows, columns = seen.network
    assert flaw * rows / min(height, extent[0]) >= needed - 1e-6
    assert flaw * columns / min(width, extent[1]) >= needed - 1e-6
    assert rows % 32 == columns % 32 == 0
    assert rows * columns <= MOST_PIXELS
    assert seen.cost > 0


def _extent(seen: Any, image: tuple[int, int]) -> tuple[int, int]:
    """How much of an image the network sees at a time."""
    return image if seen.tiling is None else (seen.tiling.size, seen.tiling.size)


@given(flaw=st.floats(1, 500), height=SIDES, width=SIDES)
def test_a_smaller_flaw_never_makes_the_input_coarser(flaw: float, height: int, width: int) -> None:
    config = PatchCore.presets["fast"]

    def resolution(extent: float) -> tuple[float, float]:
        """Of the network's pixels for a pixel of the image, by axis; more than one shows nothing more."""
        seen = input_size_for(extent, (height, width), config)
        shown = _extent(seen, (height, width))
        return min(1, seen.network[0] / min(shown[0], height)), min(1, seen.network[1] / min(shown[1], width))

    finer, coarser = resolution(max(1, flaw / 2)), resolution(flaw)
    assert finer[0] >= coarser[0] - 1e-9
    assert finer[1] >= coarser[1] - 1e-9


def test_images_that_are_hardly_reduced_need_no_advice() -> None:
    assert size_advice((400, 500), PatchCore.presets["fast"]) == ""
    assert "--smallest-flaw" in size_advice((1024, 1024), PatchCore.presets["fast"])


def large_parts(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (400, 800, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_training_takes_the_input_that_the_flaw_needs_and_says_what_it_costs(
    tmp_path: Path, exported_once: None
) -> None:
    options = {"method": "padim", "quiet": True, "baseline": "none", "smallest_flaw": "0.8mm", "scale": "50um"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = flawsmith.train(large_parts(tmp_path / "data"), out=tmp_path / "run", **options)

    assert result.bundle.spec.config["image_size"] == [256, 416]
    assert result.bundle.spec.geometry.size == (256, 416)
    assert result.bundle.spec.tiling is None
    assert [str(each.message) for each in told if "are seen" in str(each.message)] == [
        "images of 800 x 400 are seen at 416 x 256 instead of 256 x 256, so that a flaw of 16 pixels is seen; an image "
        "takes about 1.6 times as long"
    ]
    assert flawsmith.Inspector.load(result.model).inspect(tmp_path / "data" / "0.png").map.shape == (400, 800)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"smallest_flaw": "0.5mm"}, "needs the size of a pixel: add --scale"),
        ({"smallest_flaw": "0"}, "write how wide the smallest flaw is"),
        ({"smallest_flaw": "tiny"}, "write how wide the smallest flaw is"),
        ({"smallest_flaw": 12, "set": {"image_size": [64, 64]}}, "as --set image_size does"),
        ({"smallest_flaw": 12, "tile": 256}, "--tile 256 does"),
        ({"smallest_flaw": 12, "set": {"policy": "crop"}}, "add --set policy=squash"),
    ],
)
def test_bad_words_on_the_smallest_flaw_are_refused_before_an_image_is_read(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(FlawsmithError, match=words):
        flawsmith.train(tmp_path / "nothing here", method="padim", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
