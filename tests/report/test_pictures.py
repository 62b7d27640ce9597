from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from flawsmith.report.plots import SIDES, encoded, outlined


def opened(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_large_pictures_shrink_and_keep_their_shape() -> None:
    assert opened(encoded(np.full((1000, 2000, 3), 90, np.uint8), 10**6)).shape == (512, 1024, 3)


def test_small_pictures_are_not_enlarged() -> None:
    assert opened(encoded(np.full((20, 30, 3), 90, np.uint8), 10**6)).shape == (20, 30, 3)


@pytest.mark.parametrize("most", [200_000, 60_000, 20_000])
def test_picture_is_as_large_as_its_bytes_allow(most: int) -> None:
    content = encoded(noise(800, 900), most)

    assert len(content) <= most
    larger = [side for side in SIDES if side > max(opened(content).shape)]
    assert not larger or len(encoded(noise(800, 900), 10**9)) > most


def test_picture_that_cannot_be_small_enough_is_the_smallest_there_is() -> None:
    assert max(opened(encoded(noise(800, 900), 1)).shape) == SIDES[-1]


@pytest.mark.parametrize("size", [(50, 50), (1000, 1000)])
def test_flaw_of_one_pixel_is_outlined_in_black_and_white(size: tuple[int, int]) -> None:
    grey, mask = np.full((*size, 3), 90, np.uint8), np.zeros((1000, 1000), bool)
    mask[500, 500] = True

    marked = outlined(grey, mask)

    assert set(np.unique(marked)) == {0, 90, 255}
    assert np.all(grey == 90)
    rows, columns = np.nonzero((marked != 90).any(axis=2))
    assert max(np.abs(rows - size[0] // 2).max(), np.abs(columns - size[1] // 2).max()) < 12


def test_outline_leaves_the_flaw_itself_as_it_is() -> None:
    image, mask = noise(60, 80), np.zeros((60, 80), bool)
    mask[20:30, 30:50] = True

    np.testing.assert_array_equal(outlined(image, mask)[mask], image[mask])
