"""Nearly equal pictures: several frames of one scene, told from pictures of different parts that look alike.

Under a fixed camera all good parts look alike, so that whole pictures correlate whatever they show. What tells one part
from another is fine detail that the common picture lacks: grain, scratches, the place of each edge. Thumbnails are
therefore reduced to their fine detail, each place by its own contrast, and the mean of all images is taken away. Two
frames of one scene still agree then, once a shift of half a pixel is undone; two parts do not. docs/results/bursts.md
has the figures behind the constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import once_a_file, open_regular
from flawsmith.runtime.formats import open_image
from flawsmith.runtime.image import MAX_PIXELS, ImageArray, decode

_SIDE = 64
_BORDER = 2
_BLUR, _NEIGHBOURHOOD = 1.0, 2.0
"""Standard deviations, in pixels of a thumbnail: what is coarser is no detail, and how far its contrast is measured."""
_GREY_LEVEL = 1.0
"""Detail weaker than a grey level of 255 is noise; it is not raised to the contrast of the rest."""
_SHIFTS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
"""In halves of a thumbnail's pixel."""
_SAME_SCENE = 0.8
_LEAST_SHARE = 0.25
"""Among many images of alike parts a few pairs are near by chance; bursts are a habit of whoever took the pictures."""
_LOW = 0.05
_CHUNK = 256
_THREADS = 4


Thumbnail = NDArray[np.uint8]
"""(128, 128) grey."""
Thumbnails = Callable[[Sequence[Path]], Sequence[Thumbnail]]


def read_thumbnails(images: Sequence[Path]) -> list[Thumbnail]:
    """Thumbnails of files, each decoded once a process, JPEGs at a fraction of their size.

    Args:
        images: paths of image files; those that cannot be read are black.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_thumbnail, images))


def thumbnail_of(image: ImageArray) -> Thumbnail:
    """The thumbnail of a decoded image; values of deep images as shares of the largest one.

    Example:
        >>> thumbnail_of(np.full((300, 200, 3), 7, np.uint8)).shape
        (128, 128)
    """
    if image.dtype == np.uint8:
        return _small(Image.fromarray(image).convert("L"))
    full = float(max(1, image.max()))
    return _small(Image.fromarray((image.mean(axis=2) * (255 / full)).astype(np.float32)))


def find_scenes(images: Sequence[Path], thumbnails: Thumbnails = read_thumbnails) -> list[int] | None:
    """The scene that each image shows, where many images are nearly equal to another one.

    Files that cannot be read show a scene of their own. Memory is 32 kB an image beside matrices of 256 rows.

    Returns:
        A number for each image, equal for images of one scene, counted from 0 in the order of the images; None where
        fewer than a quarter of the images have a twin.

    Example:
        >>> find_scenes([]) is None
        True
    """
    if len(images) < 2:
        return None
    scenes = np.arange(len(images))
    for start, likeness in _likeness(thumbnails(images)):
        for near in likeness >= _SAME_SCENE:
            joined = np.unique(scenes[start:][near])
            if len(joined) > 1:
                scenes[np.isin(scenes, joined)] = joined[0]
    _, numbers, sizes = np.unique(scenes, return_inverse=True, return_counts=True)
    if np.mean(sizes[numbers] > 1) < _LEAST_SHARE:
        return None
    return [int(number) for number in numbers]  # labels are the first image of each scene, so numbers are in order


def share_unlike(images: Sequence[Path], others: Sequence[Path], thumbnails: Thumbnails = read_thumbnails) -> float:
    """Share of images that are less like all of the others than nearly all of those are like each other.

    Args:
        images: such as the good test images; at least one.
        others: such as the training images; at least two.
        thumbnails: gives those of files.

    Returns:
        In [0, 1]; about 0.05 where both were taken alike: an image counts where its nearest neighbour is farther away
        than that of 95 % of the others.
    """
    nearest = np.full(len(others) + len(images), -1, np.float32)
    for start, likeness in _likeness(thumbnails([*others, *images])):
        stop = start + len(likeness)
        likeness[np.arange(len(likeness)), np.arange(len(likeness))] = -1  # an image and itself
        among_others = likeness[:, : max(0, len(others) - start)]
        if among_others.size:
            nearest[start:stop] = np.maximum(nearest[start:stop], among_others.max(axis=1))
            nearest[start:] = np.maximum(nearest[start:], likeness[: len(others) - start].max(axis=0))
    usual = np.quantile(nearest[: len(others)], _LOW)
    return float(np.mean(nearest[len(others) :] < usual))


def _likeness(thumbnails: Sequence[Thumbnail]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Correlation of the images' fine detail, at the best of small shifts, some rows at a time.

    Yields:
        Number of the first image of the rows; and (row, image), the images from that one on.
    """
    chunks = range(0, len(thumbnails), _CHUNK)
    detail = np.concatenate([_detail(thumbnails[start : start + _CHUNK]) for start in chunks])
    shown = np.any(detail, axis=1)
    common = detail[shown].mean(axis=0) if shown.any() else np.zeros_like(detail[0])
    detail = _unit(detail - common) * shown[:, None]
    for start in chunks:
        stop = start + _CHUNK
        best = np.full((len(detail[start:stop]), len(detail) - start), -1, np.float32)
        for down, right in _SHIFTS:
            shifted = _unit(_detail(thumbnails[start:stop], down, right) - common) * shown[start:stop, None]
            np.maximum(best, shifted @ detail[start:].T, out=best)
        yield start, best


def _detail(thumbnails: Sequence[Thumbnail], down: int = 0, right: int = 0) -> NDArray[np.float32]:
    """(image, pixel) fine detail of thumbnails, shifted by halves of a pixel; of length 1, or 0 where there is none."""
    wide = np.pad(np.stack(thumbnails).astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    moved = wide[:, 1 + down : 1 + down + 2 * _SIDE, 1 + right : 1 + right + 2 * _SIDE]
    quarters = moved[:, ::2, ::2], moved[:, ::2, 1::2], moved[:, 1::2, ::2], moved[:, 1::2, 1::2]
    pictures = sum(quarters[1:], start=quarters[0]) / 4  # a mean over two axes takes several times as long
    blur, neighbourhood = _gaussian(_BLUR), _gaussian(_NEIGHBOURHOOD)
    fine = pictures - blur @ pictures @ blur.T
    contrast = np.sqrt(np.maximum(neighbourhood @ (fine * fine) @ neighbourhood.T, 0))
    inner = (fine / (contrast + _GREY_LEVEL))[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
    return _unit(inner.reshape(len(inner), -1))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-4)


def _gaussian(sigma: float) -> NDArray[np.float32]:
    """(to, from) weights of a blur along one side of a thumbnail, whose border counts as much as is there."""
    places = np.arange(_SIDE)
    weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _thumbnail(path: Path) -> Thumbnail:
    try:
        return _read(path)
    except (OSError, FlawsmithError):
        return np.zeros((2 * _SIDE, 2 * _SIDE), np.uint8)  # whoever needs its pixels will tell


@once_a_file(1 << 14)
def _read(path: Path) -> Thumbnail:
    """The thumbnail of a file."""
    try:
        with open_regular(path) as stream, open_image(stream, str(path), MAX_PIXELS) as image:
            if image.mode in ("L", "RGB") and ";16" not in str(image.tile[0][3]):
                # JPEGs are decoded at a fraction of their size, in a fraction of the time.
                image.draft("L", (4 * _SIDE, 4 * _SIDE))
                return _small(image.convert("L"))
    except Exception:
        pass
    return thumbnail_of(decode(path))


def _small(image: Image.Image) -> Thumbnail:
    return np.rint(np.asarray(image.resize((2 * _SIDE, 2 * _SIDE), Image.Resampling.BOX))).astype(np.uint8)
