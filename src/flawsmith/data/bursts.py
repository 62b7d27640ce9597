"""Nearly equal pictures: several frames of one scene, told from pictures of different parts that look alike.

Under a fixed camera all good parts look alike, so that whole pictures correlate whatever they show. What tells one part
from another is fine detail that the common picture lacks: grain, scratches, the place of each edge. Thumbnails are
therefore reduced to their fine detail, each place by its own contrast, and the mean of all images is taken away. Two
frames of one scene still agree then; two parts do not. docs/results/bursts.md has the figures behind the constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.formats import open_image
from flawsmith.runtime.image import MAX_PIXELS, decode

_SIDE = 64
_BLUR, _NEIGHBOURHOOD = 1.0, 2.0
"""Standard deviations, in pixels of a thumbnail: what is coarser is no detail, and how far its contrast is measured."""
_GREY_LEVEL = 1.0
"""Detail weaker than a grey level of 255 is noise; it is not raised to the contrast of the rest."""
_SAME_SCENE = 0.7
_LEAST_SHARE = 0.2
"""Among many images of alike parts a few pairs are near by chance; bursts are a habit of whoever took the pictures."""
_LOW = 0.05
_CHUNK = 256
_THREADS = 4


def find_scenes(images: Sequence[Path]) -> list[int] | None:
    """The scene that each image shows, where many images are nearly equal to another one.

    Files that cannot be read show a scene of their own. An unchanged file is decoded once a process. Memory is 16 kB an
    image beside a matrix of 256 rows; 10,000 images need about 0.2 GB.

    Args:
        images: paths of image files.

    Returns:
        A number for each image, equal for images of one scene, counted from 0 in the order of the images; None where
        fewer than a fifth of the images have a twin.

    Example:
        >>> find_scenes([]) is None
        True
    """
    if len(images) < 2:
        return None
    scenes = np.arange(len(images))
    for start, likeness in _likeness(_details(images)):
        for row, near in enumerate(likeness >= _SAME_SCENE, start):
            joined = np.unique(scenes[near])
            if len(joined) > 1 and near[row]:
                scenes[np.isin(scenes, joined)] = joined[0]
    _, numbers, sizes = np.unique(scenes, return_inverse=True, return_counts=True)
    if np.mean(sizes[numbers] > 1) < _LEAST_SHARE:
        return None
    return [int(number) for number in numbers]  # labels are the first image of each scene, so numbers are in order


def share_unlike(images: Sequence[Path], others: Sequence[Path]) -> float:
    """Share of images that are less like all of the others than nearly all of those are like each other.

    Args:
        images: such as the good test images; at least one.
        others: such as the training images; at least two.

    Returns:
        In [0, 1]; about 0.05 where both were taken alike: an image counts where its nearest neighbour is farther away
        than that of 95 % of the others.
    """
    detail = _details([*others, *images])
    nearest = np.empty(len(detail), np.float32)
    for start, likeness in _likeness(detail):
        rows = np.arange(len(likeness))
        likeness[rows, start + rows] = -1
        nearest[start : start + len(likeness)] = likeness[:, : len(others)].max(axis=1)
    usual = np.quantile(nearest[: len(others)], _LOW)
    return float(np.mean(nearest[len(others) :] < usual))


def _likeness(detail: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Correlation of every image with every other, some rows at a time: number of the first row, and (row, image)."""
    for start in range(0, len(detail), _CHUNK):
        yield start, detail[start : start + _CHUNK] @ detail.T


def _details(images: Sequence[Path]) -> NDArray[np.float32]:
    """(image, pixel) fine detail of every image without what all have in common, of length 1; 0 where there is none."""
    with ThreadPoolExecutor(_THREADS) as pool:
        thumbnails = np.stack(list(pool.map(_thumbnail, images)))
    blur, neighbourhood = _gaussian(_BLUR), _gaussian(_NEIGHBOURHOOD)
    detail = np.empty((len(images), _SIDE * _SIDE), np.float32)
    for start in range(0, len(images), _CHUNK):
        pictures = thumbnails[start : start + _CHUNK].astype(np.float32)
        fine = pictures - blur @ pictures @ blur.T
        contrast = np.sqrt(np.maximum(neighbourhood @ (fine * fine) @ neighbourhood.T, 0))
        detail[start : start + _CHUNK] = _unit((fine / (contrast + _GREY_LEVEL)).reshape(len(pictures), -1))
    shown = np.any(detail, axis=1)
    if shown.any():
        detail[shown] -= detail[shown].mean(axis=0)
    return _unit(detail)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-4)


def _gaussian(sigma: float) -> NDArray[np.float32]:
    """(to, from) weights of a blur along one side of a thumbnail, whose border counts as much as is there."""
    places = np.arange(_SIDE)
    weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _thumbnail(path: Path) -> NDArray[np.uint8]:
    try:
        state = path.stat()
        return _read(path, state.st_size, state.st_mtime_ns)
    except (OSError, FlawsmithError):
        return np.zeros((_SIDE, _SIDE), np.uint8)  # whoever needs its pixels will tell


@lru_cache(maxsize=1 << 15)
def _read(path: Path, _size: int, _mtime_ns: int) -> NDArray[np.uint8]:
    """(64, 64) grey; values of deep images as shares of the image's largest one.

    Raises:
        FlawsmithError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream, open_image(stream, str(path), MAX_PIXELS) as image:
            if image.mode in ("L", "RGB") and ";16" not in str(image.tile[0][3]):
                # JPEGs are decoded at a fraction of their size, in a fraction of the time.
                image.draft("L", (2 * _SIDE, 2 * _SIDE))
                return _small(image.convert("L"))
    except Exception:
        pass
    pixels = decode(path)
    full = 255.0 if pixels.dtype == np.uint8 else float(max(1, pixels.max()))
    return _small(Image.fromarray((pixels.mean(axis=2) * (255 / full)).astype(np.float32)))


def _small(image: Image.Image) -> NDArray[np.uint8]:
    return np.rint(np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))).astype(np.uint8)
