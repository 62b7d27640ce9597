"""How large the network has to see an image, so that the smallest flaw that must be found is not lost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from flawsmith.models.base import ModelConfig
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.tiles import OVERLAP_SHARE, SMALLEST_TILE, Tiling

PIXELS_OF_A_FLAW = 8
"""Of the network's input, that the smallest flaw shall have: a cell of the finest level that most methods read.
docs/results/input_size.md has the figures."""
MOST_PIXELS = 640 * 640
"""Of the network's input; what needs more is cut into tiles, whose memory and training time do not grow."""
_MUCH_LARGER = 2.0
"""From so many pixels of an image to one of the network's input on, a larger input is mentioned."""

Size = tuple[int, int]


class InputSize(NamedTuple):
    """How images are seen.

    Attributes:
        network: (height, width) of the network's input.
        tiling: how images are cut into tiles of that size; None: each is seen as a whole.
        cost: by what factor an image takes longer than with the method's own settings, in numbers of pixels.
    """

    network: Size
    tiling: Tiling | None
    cost: float


def typical_size(sizes: Iterable[Size]) -> Size | None:
    """The middle one of the images' (height, width), by area; None where there are none."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return ordered[len(ordered) // 2] if ordered else None


def input_size_for(flaw: float, image: Size, config: ModelConfig) -> InputSize:
    """The input with which the network sees a flaw at the size that it needs.

    The whole image is seen, at its own proportions, where that takes no more than :data:`MOST_PIXELS`; otherwise tiles,
    each seen at the size of the method's own settings. The input never gets smaller than that, nor larger than the
    image.

    Args:
        flaw: extent of the smallest flaw, pixels of the image.
        image: (height, width) of the images.
        config: of the method, with the size that it has without this.

    Example:
        >>> from flawsmith.models import PatchCore
        >>> fast = PatchCore.presets["fast"]
        >>> input_size_for(12, (600, 800), fast).network
        (416, 544)
        >>> input_size_for(12, (3000, 4000), fast).tiling
        Tiling(size=384, overlap=48)
        >>> input_size_for(100, (600, 800), fast).network
        (256, 256)
    """
    share = min(1.0, PIXELS_OF_A_FLAW / flaw)
    unit = 2 * max(config.strides)  # the levels of the finest halve without a remainder
    height, width = (unit * math.ceil(side * share / unit - 1e-9) for side in image)
    rows, columns = config.image_size
    usual = rows * columns
    if height <= rows and width <= columns:
        return InputSize((rows, columns), None, 1.0)
    if height * width <= MOST_PIXELS:
        # A short side is not seen smaller than before: a gain is no reason for a loss.
        network = max(height, min(rows, _fitting(image[0], unit))), max(width, min(columns, _fitting(image[1], unit)))
        return InputSize(network, None, network[0] * network[1] / usual)
    side = max(SMALLEST_TILE, math.floor(min(rows, columns) / share))
    tiling = Tiling(size=side, overlap=side // OVERLAP_SHARE)
    return InputSize((rows, columns), tiling, float(len(tiling.tiles(image))))


def _fitting(side: int, unit: int) -> int:
    return unit * math.ceil(side / unit)


def seen_in_words(flaw: float, image: Size, seen: InputSize, usual: Size) -> str:
    """How images are seen, and what it costs, before it is paid."""
    if seen.tiling is not None:
        how = f"in tiles of {seen.tiling.size} pixels, {seen.cost:.0f} an image"
    elif seen.network == usual:
        return (
            f"images of {image[1]} x {image[0]} are seen at {usual[1]} x {usual[0]} as usual: a flaw of {flaw:.5g} "
            f"pixels has {PIXELS_OF_A_FLAW} there or more"
        )
    else:
        how = f"at {seen.network[1]} x {seen.network[0]} instead of {usual[1]} x {usual[0]}"
    return (
        f"images of {image[1]} x {image[0]} are seen {how}, so that a flaw of {flaw:.5g} pixels is seen; an image "
        f"takes about {seen.cost:.1f} times as long"
    )


def size_advice(image: Size, config: ModelConfig) -> str:
    """What is lost at the method's own size, and the way out; empty where images are hardly reduced.

    Example:
        >>> from flawsmith.models import PatchCore
        >>> size_advice((600, 800), PatchCore.presets["fast"])[:76]
        'images of 800 x 600 are seen at 256 x 256: flaws of fewer than about 25 pixe'
        >>> size_advice((300, 400), PatchCore.presets["fast"])
        ''
    """
    rows, columns = config.image_size
    factor = max(image[0] / rows, image[1] / columns)
    if factor < _MUCH_LARGER:
        return ""
    half = max(2, round(PIXELS_OF_A_FLAW * factor / 2))
    seen = input_size_for(half, image, config)
    return (
        f"images of {image[1]} x {image[0]} are seen at {columns} x {rows}: flaws of fewer than about "
        f"{math.ceil(PIXELS_OF_A_FLAW * factor)} pixels may be lost; --smallest-flaw {half} finds smaller ones, in "
        f"{seen.cost:.1f} times the time"
    )


def refuse_beside_smallest_flaw(changed: Iterable[str], tile: int | None, config: ModelConfig) -> None:
    """Refuse a second word on the input's size.

    Args:
        changed: settings of the method that the user gave.
        tile: side of the tiles that the user gave.
        config: of the method.

    Raises:
        FlawsmithError: naming the other option.
    """
    for field in ("image_size", "resize"):
        if field in changed:
            raise FlawsmithError(f"--smallest-flaw chooses the input's size, as --set {field} does: give one of them")
    if tile is not None:
        raise FlawsmithError(f"--smallest-flaw chooses tiles where they are needed, and --tile {tile} does: give one")
    if config.policy == "crop":
        raise FlawsmithError(
            "--smallest-flaw: the policy crop leaves the rim uninspected at any size: add --set policy=squash"
        )
