"""Thumbnails of inspected images as JPEG data URIs, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from flawsmith.report.data import Example, ExampleKind

THUMBNAIL = 260
PER_KIND = 12
BUDGET_BYTES = 3_000_000
_QUALITY = 82
_OUTLINE = (0, 229, 255)


@dataclass(frozen=True)
class Tile:
    """One picture of an example.

    Attributes:
        source: JPEG data URI.
        caption: what the picture is.
        alt: text in the picture's place.
    """

    source: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Card:
    """An example ready for the page: its facts and its pictures."""

    example: Example
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Gallery:
    """The examples of one kind.

    Attributes:
        kind: which.
        cards: those shown, worst first.
        total: how many there are.
    """

    kind: ExampleKind
    cards: Sequence[Card]
    total: int


def galleries(examples: Iterable[Example], *, per_kind: int = PER_KIND, budget: int = BUDGET_BYTES) -> list[Gallery]:
    """The worst examples of each kind, as many as the budget of bytes allows.

    Misses come with the lowest scores first, false alarms and finds with the highest; misses have the first
    call on the budget, finds the last.

    Args:
        examples: any number.
        per_kind: at most so many of a kind.
        budget: bytes of all pictures together, as they stand in the page.
    """
    everything = list(examples)
    result = []
    kinds: tuple[ExampleKind, ...] = ("miss", "false_alarm", "found")
    for kind in kinds:
        members = [one for one in everything if one.kind == kind]
        sign = 1.0 if kind == "miss" else -1.0
        members.sort(key=lambda one: (sign * one.score, one.name))
        cards = []
        for example in members[:per_kind]:
            tiles = _tiles(example)
            budget -= sum(len(tile.source) for tile in tiles)
            if budget < 0:
                break
            cards.append(Card(example, tiles))
        if cards:
            result.append(Gallery(kind, cards, len(members)))
    return result


def _tiles(example: Example) -> list[Tile]:
    subject = f"{example.name} ({example.defect})"
    image = _thumbnail(example.image)
    tiles = [Tile(_jpeg(image), "image", f"Inspected image {subject}")]
    if example.mask is not None and example.mask.any():
        marked = _outlined(image, example.mask)
        tiles.append(Tile(_jpeg(marked), "ground truth", f"Annotated flaw outlined on {subject}"))
    heat = _thumbnail(example.overlay)
    tiles.append(Tile(_jpeg(heat), "anomaly map", f"Anomaly map of {subject}, warm colours mark what looks wrong"))
    return tiles


def _thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _outlined(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The thumbnail with the flawed regions' outlines drawn just outside them."""
    height, width = image.shape[:2]
    # A box filter keeps a flaw of a few pixels that nearest-pixel sampling would lose.
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    inside = np.asarray(grey) > 0
    edge = ndimage.binary_dilation(inside, iterations=2) & ~inside
    marked = image.copy()
    marked[edge] = _OUTLINE
    return marked


def _jpeg(image: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
