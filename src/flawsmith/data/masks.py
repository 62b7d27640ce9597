"""What a mask file marks, whichever program drew it: white on black, on a transparent layer, or as a JPEG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import ImageOps

from flawsmith.runtime.formats import open_image
from flawsmith.runtime.image import MAX_PIXELS, ImageArray, brightest_channel, decode

Oddity = Literal["mostly-marked", "alpha", "soft", "photograph", "outlines"]

MOSTLY = 0.5
"""A mask that marks a larger share of its image than this may be inverted."""
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_OPAQUE = (_JPEG, b"BM")
_OPAQUE_PNG = (0, 2)
"""Kinds of colour that a PNG's 26th byte names: grey and RGB."""
_LOSSY = ("WEBP", "JPEG2000")
_FEW_LEVELS = 32
"""A drawn mask has no more values than so many, of instances or kinds of defects; softened edges and photographs do."""
_FAINT = 64
"""Noise of compression stays below half of it, in 8 bits."""
_MIDDLE = (0.1, 0.9)
_PHOTOGRAPH = 0.25
"""Share of pixels with middle values from which on an image is no mask."""
_ENCLOSED = 1.0
"""Marked lines around so many times their own area may be outlines of what was meant; the parts of a juice bottle's box
that are marked with a hole in them enclose 0.45 times their own."""
_GAP = 0.1
"""Gaps of a drawn outline that count as closed, of its longer side."""
_AROUND = 0.8
"""Share of a contour that lies around what it encloses together with a side of the image."""
_THICK = 8  # cells that its line is thick at most
_GRID = 256  # cells a side on which that is looked at


@dataclass(frozen=True, eq=False)
class MaskImage:
    """A mask as it is on the disk, and what it marks.

    Attributes:
        marked: (height, width) True where flawed.
        pixels: (height, width, 3) as decoded, for masks whose grey value means something.
        oddities: what is unusual about it.
    """

    marked: NDArray[np.bool_]
    pixels: ImageArray
    oddities: tuple[Oddity, ...] = ()

    @property
    def share(self) -> float:
        """The marked share of the image, in [0, 1]."""
        return float(self.marked.mean())


def read_mask_image(path: Path) -> MaskImage:
    """Read a mask.

    What is not black is marked. Where a picture is partly transparent, a marked pixel must be opaque too: drawing
    programs save the strokes of a layer so, often in one colour. In a JPEG and wherever edges were softened, a marked
    pixel is at least half as bright as the brightest one.

    Returns:
        What it marks, at its own size; and what of the above it took.

    Raises:
        FlawsmithError: the file cannot be read.
    """
    pixels = decode(path)
    grey = brightest_channel(pixels)
    marked = grey > 0
    opaque, lossy = _header(path, (grey.shape[0], grey.shape[1]))
    oddities: list[Oddity] = []
    if opaque is not None:
        strokes = pixels[opaque]
        of_one_colour = bool((strokes == strokes[:1]).all())
        by_alpha = opaque if of_one_colour else marked & opaque
        if (by_alpha != marked).any():
            marked = by_alpha
            oddities.append("alpha")
    else:
        levels = np.count_nonzero(np.bincount(grey.ravel()))
        if levels > _FEW_LEVELS and _is_photograph(pixels):
            oddities.append("photograph")
        elif pixels.dtype == np.uint8 and (lossy or (levels > _FEW_LEVELS and grey.max() >= 200)):
            firm = grey > max(int(grey.max()), _FAINT) // 2
            if (firm != marked).any():
                marked = firm
                oddities.append("soft")
    if marked.mean() > MOSTLY and "photograph" not in oddities:
        oddities.append("mostly-marked")
    elif _are_outlines(marked):
        oddities.append("outlines")
    return MaskImage(marked, pixels, tuple(oddities))


def _header(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.bool_] | None, bool]:
    """Where an image is opaque, None where it is everywhere or nowhere; and whether its values went through a lossy
    compression.
    """
    with path.open("rb") as file:
        start = file.read(26)
    if start.startswith(_OPAQUE) or (start.startswith(_PNG) and start[25] in _OPAQUE_PNG):
        return None, start.startswith(_JPEG)
    try:
        with path.open("rb") as file, open_image(file, str(path), MAX_PIXELS) as image:
            lossy = image.format in _LOSSY
            if not (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
                return None, lossy
            alpha = np.asarray(ImageOps.exif_transpose(image.convert("RGBA")).getchannel("A"))
    except Exception:  # what only Pillow's plain reading refuses was read by decode
        return None, False
    if alpha.shape != size or alpha.min() == alpha.max():
        return None, lossy
    return alpha > alpha.max() // 2, lossy


def _are_outlines(marked: NDArray[np.bool_]) -> bool:
    """Whether marked pixels enclose more than they are, alone or together with a side of the image that they touch."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not rows.size:
        return False
    part = marked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    step = -(-max(part.shape) // _GRID)
    part = np.pad(part, [(0, -length % step) for length in part.shape])
    lines = np.logical_or.reduce(part.reshape(part.shape[0] // step, step, -1, step), axis=(1, 3))
    if _encloses_more(lines, 0) or _encloses_more(lines, int(_GAP * max(lines.shape) / 2)):
        return True
    # A contour may end at the side of the image that cuts it.
    height, width = marked.shape
    sides = (rows[0] == 0, columns[-1] == width - 1, rows[-1] == height - 1, columns[0] == 0)
    turned = (np.rot90(lines, turn) for turn, touches in enumerate(sides) if touches)
    return any(_encloses_more(part, 0, closed_above=True) for part in turned)


def _encloses_more(lines: NDArray[np.bool_], gap: int, *, closed_above: bool = False) -> bool:
    """Whether more cells than those of the lines cannot be reached from around them.

    Args:
        lines: the marked cells, without a frame.
        gap: lines count as broader by so many cells on each side.
        closed_above: the first row is the side of an image. Scratches that cross enclose something with it as well,
            but then a part of them lies elsewhere than around it.
    """
    walls = np.pad(lines, 2 * gap + 2)
    if closed_above:
        walls[: 2 * gap + 2] = True
    walls = _dilated(walls, gap)
    outside = np.zeros_like(walls)
    outside[-1] = True
    reached = 0
    while reached < (reached := int(outside.sum())):
        for direction in range(4):
            turned, obstacles = np.rot90(outside, direction), np.rot90(walls, direction)
            along = np.arange(1, turned.shape[1] + 1)
            last_outside = np.maximum.accumulate(np.where(turned, along, 0), axis=1)
            turned |= last_outside > np.maximum.accumulate(np.where(obstacles, along, 0), axis=1)
    area = ~outside & ~walls
    if area.sum() <= _ENCLOSED * _dilated(np.pad(lines, gap), gap).sum():
        return False
    around = _dilated(area, _THICK)[2:-2, 2:-2]
    return not closed_above or bool((lines & around).sum() > _AROUND * lines.sum())


def _dilated(cells: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    for axis in (0, 1):
        padded = np.pad(cells, [(radius, radius) if axis == side else (0, 0) for side in (0, 1)])
        cells = np.logical_or.reduce(sliding_window_view(padded, 2 * radius + 1, axis=axis), axis=-1)
    return cells


def _is_photograph(pixels: ImageArray) -> bool:
    full = float(np.iinfo(pixels.dtype).max)
    brightness = pixels.mean(axis=2) / full
    return bool(((brightness > _MIDDLE[0]) & (brightness < _MIDDLE[1])).mean() > _PHOTOGRAPH)


class MaskRemarks:
    """What is odd about the masks of a data set, gathered while they are read."""

    def __init__(self) -> None:
        self._files: dict[Oddity, dict[Path, float]] = defaultdict(dict)

    def update(self, path: Path, oddities: Iterable[Oddity], share: float) -> None:
        """Take in a mask: what is odd about it, and the marked share of its image."""
        for oddity in oddities:
            self._files[oddity][path] = share

    def files(self, oddity: Oddity) -> tuple[Path, ...]:
        """The masks of one oddity, in the order they came."""
        return tuple(self._files.get(oddity, ()))

    def sentences(self) -> dict[Oddity, tuple[str, str]]:
        """For each oddity that there is, what it is and what to do, each in a line."""
        words: dict[Oddity, tuple[str, str]] = {}
        for oddity, files in self._files.items():
            number = "1 mask" if len(files) == 1 else f"{len(files)} masks"
            if oddity == "mostly-marked":
                largest = max(files.values())
                words[oddity] = (
                    f"{number} {_verb(files, 'marks', 'mark')} more than half of the image, up to {largest:.0%}: "
                    "inverted?",
                    "flaws must be white on black; invert the masks if they are not",
                )
            elif oddity == "alpha":
                words[oddity] = (
                    f"{number} {_verb(files, 'is', 'are')} partly transparent: what is opaque counts as marked",
                    "save masks without transparency, white on black, if that is not meant",
                )
            elif oddity == "soft":
                words[oddity] = (
                    f"{number} {_verb(files, 'has', 'have')} values between black and white, as JPEG and soft edges "
                    "give: what is brighter than half counts as marked",
                    "save masks as PNG in black and white alone",
                )
            elif oddity == "outlines":
                words[oddity] = (
                    f"{number} {_verb(files, 'marks', 'mark')} lines around a larger area: what lines enclose does not "
                    "count as marked",
                    "fill the outlines if the area within is meant",
                )
            else:
                words[oddity] = (
                    f"{number} {_verb(files, 'looks', 'look')} like a photograph or heat map, not like a mask: all "
                    "that is not black counts as marked",
                    "export the marking alone, white on black, without the image under it",
                )
        return words

    def notes(self) -> tuple[str, ...]:
        """What was found, in sentences that name a file."""
        return tuple(
            f"{fault} ({_named(self.files(oddity)[0])}); {fix}." for oddity, (fault, fix) in self.sentences().items()
        )


def _verb(files: dict[Path, float], singular: str, plural: str) -> str:
    return singular if len(files) == 1 else plural


def _named(path: Path) -> str:
    return "/".join(path.parts[-2:])
