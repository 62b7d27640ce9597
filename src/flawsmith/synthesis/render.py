"""A sample product line drawn from nothing, for demonstrations and tests, in MVTec layout.

Accuracy on rendered parts says that a program runs; it is no evidence of how it inspects real ones.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from flawsmith.data.seeding import generator
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.drawn_flaws import FLAWS
from flawsmith.synthesis.parts import PARTS
from flawsmith.synthesis.scene import draw_light, draw_view, photograph

DEFAULT_SIZE = (320, 384)
MIN_SIDE = 64
_VISIBLE = 3
"""Least change in grey levels of 255 by which a pixel belongs to a flaw; smaller changes are taken back."""
_MAX_TRIES = 20
_MIN_AREA = 1.5e-4

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def render_part(
    part: str,
    *,
    defect: str | None = None,
    group: str = "train",
    index: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    seed: int = 0,
) -> tuple[Rgb, Mask]:
    """Draw one part.

    The picture is a function of its arguments alone, so any subset of a product line renders to the same
    pixels.

    Args:
        part: a name of :data:`~flawsmith.synthesis.parts.PARTS`.
        defect: a name of :data:`~flawsmith.synthesis.drawn_flaws.FLAWS`, or None for a good part.
        group: the set of pictures it belongs to, such as ``train``; another group, other pictures.
        index: number within the group.
        size: (height, width), each at least 64 pixels.
        seed: seed of the product line.

    Returns:
        The picture, (height, width, 3) uint8; and its mask, (height, width) bool: the pixels that a
        structural flaw visibly changed, the area of the hole for ``wrong_hole``, empty for a good part.
        Outside the mask a flawed part has the very pixels that it would have without its flaw.

    Raises:
        FlawsmithError: an unknown part or flaw, or too small a size.

    Example:
        >>> image, mask = render_part("gear", defect="stain", index=3, size=(96, 128))
        >>> image.shape, bool(mask.any())
        ((96, 128, 3), True)
    """
    _check(part, defect, size)
    kind = PARTS[part]
    look, flaw = (generator(seed, f"render {name} of {part} {group} {defect}", index) for name in ("look", "flaw"))
    view = draw_view(size, look, max_angle=kind.max_angle, max_shift=0.012)
    light = draw_light(look)
    mat = kind.mat(view, look)
    surface = kind.surface(view, look)
    noise = look.standard_normal(size, dtype=np.float32)
    good = photograph(view, surface, mat, light, noise)
    if defect is None:
        return good, np.zeros(size, bool)
    for _ in range(_MAX_TRIES):
        flawed_surface, area = FLAWS[defect](kind, view, surface, flaw)
        flawed = photograph(view, flawed_surface, mat, light, noise)
        changed = np.abs(flawed.astype(np.int16) - good).max(axis=2) >= _VISIBLE
        mask = _closed(changed) if area is None else area
        if np.count_nonzero(mask & changed) >= max(6, _MIN_AREA * mask.size):
            break
    return np.where(mask[:, :, None], flawed, good), mask


def render_product_line(
    out: str | Path,
    *,
    parts: Sequence[str] = tuple(PARTS),
    n_train: int = 60,
    n_test_good: int = 15,
    n_per_defect: int = 6,
    size: tuple[int, int] = DEFAULT_SIZE,
    seed: int = 0,
) -> list[Path]:
    """Draw a product line and write it in MVTec layout.

    Each part's folder is drawn under a temporary name and renamed when whole::

        <out>/<part>/train/good/NNN.png
        <out>/<part>/test/good/NNN.png
        <out>/<part>/test/<defect>/NNN.png
        <out>/<part>/ground_truth/<defect>/NNN_mask.png

    Args:
        out: folder for the categories; made if missing.
        parts: names of the parts to draw.
        n_train: good images to learn from, a part.
        n_test_good: good test images, a part.
        n_per_defect: flawed test images of each of the five types, a part.
        size: (height, width), each at least 64 pixels.
        seed: seed of all draws.

    Returns:
        The category folders, in the order of ``parts``.

    Raises:
        FlawsmithError: an unknown part, too small a size, a category's folder that exists, or a full or
            read-only disk.
    """
    folder = Path(out)
    for part in parts:
        _check(part, None, size)
        if (folder / part).exists():
            raise FlawsmithError(f"{folder / part} exists already; remove it or choose another folder")
    plan: list[tuple[str, str | None, int]] = [("train", None, n_train), ("test", None, n_test_good)]
    plan += [("test", defect, n_per_defect) for defect in FLAWS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write_category(folder, part, plan, size, seed) for part in parts]
    except OSError as error:
        raise FlawsmithError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def _closed(changed: Mask) -> Mask:
    """Changed pixels, and the lines up to two pixels wide between them where the flaw's bright and dark side
    meet."""
    image = Image.fromarray(changed.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3))) > 0


def _write_category(
    folder: Path, part: str, plan: Sequence[tuple[str, str | None, int]], size: tuple[int, int], seed: int
) -> Path:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{part}-", dir=folder))
    try:
        # A private temporary folder becomes one that others may read, as any folder the user makes.
        category = unfinished / part
        for group, defect, number in plan:
            images = category / group / (defect or "good")
            masks = category / "ground_truth" / defect if defect else None
            for target in (images, masks):
                if target is not None and number > 0:
                    target.mkdir(parents=True)
            for index in range(number):
                image, mask = render_part(part, defect=defect, group=group, index=index, size=size, seed=seed)
                _save(image, images / f"{index:03d}.png")
                if masks is not None:
                    _save(mask.astype(np.uint8) * 255, masks / f"{index:03d}_mask.png")
        return category.rename(folder / part)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save(pixels: Rgb, path: Path) -> None:
    # The weakest compression: noisy pictures hardly shrink further, and it takes a third of the time.
    Image.fromarray(pixels).save(path, compress_level=1)


def _check(part: str, defect: str | None, size: tuple[int, int]) -> None:
    if part not in PARTS:
        raise FlawsmithError(f"unknown sample part {part!r}; known are {', '.join(PARTS)}")
    if defect is not None and defect not in FLAWS:
        raise FlawsmithError(f"unknown flaw {defect!r}; known are {', '.join(FLAWS)}")
    if min(size) < MIN_SIDE:
        raise FlawsmithError(f"size {size[0]} x {size[1]} is too small; give at least {MIN_SIDE} pixels a side")
