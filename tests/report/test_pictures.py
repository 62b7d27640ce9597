from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from flawsmith.report.data import Example
from flawsmith.report.plots import THUMBNAIL, galleries


def example(size: tuple[int, int], name: str = "a.png", *, dot: bool = False) -> Example:
    grey = np.full((*size, 3), 90, dtype=np.uint8)
    mask = np.zeros(size, dtype=bool)
    mask[size[0] // 2, size[1] // 2] = dot
    return Example("miss", grey, grey, 0.5, "pass", "dent", name, mask)


def opened(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def test_pictures_shrink_to_the_thumbnail_and_keep_their_shape() -> None:
    tile = galleries([example((1000, 2000))])[0].cards[0].tiles[0]

    assert opened(tile.source).shape == (THUMBNAIL // 2, THUMBNAIL, 3)


def test_small_pictures_are_not_enlarged() -> None:
    tile = galleries([example((20, 30))])[0].cards[0].tiles[0]

    assert opened(tile.source).shape == (20, 30, 3)


def test_flaw_of_one_pixel_in_a_large_image_is_still_outlined() -> None:
    tiles = galleries([example((1000, 1000), dot=True)])[0].cards[0].tiles

    assert [tile.caption for tile in tiles] == ["image", "ground truth", "anomaly map"]
    difference = np.abs(opened(tiles[1].source).astype(int) - opened(tiles[0].source).astype(int))
    assert difference.max() > 100


def test_empty_mask_shows_no_ground_truth() -> None:
    tiles = galleries([example((50, 50))])[0].cards[0].tiles

    assert [tile.caption for tile in tiles] == ["image", "anomaly map"]


def test_budget_limits_the_pictures_and_the_total_is_told() -> None:
    everything = [example((200, 200), f"{index}.png") for index in range(10)]
    one_card = sum(len(tile.source) for tile in galleries(everything[:1])[0].cards[0].tiles)

    gallery = galleries(everything, budget=3 * one_card)[0]

    assert len(gallery.cards) == 3
    assert gallery.total == 10


def test_outline_leaves_the_given_picture_as_it_was() -> None:
    given = example((50, 50), dot=True)

    galleries([given])

    assert np.all(given.image == 90)
