"""The sample product line: a milled bracket, a turned gear and a moulded, printed cover.

Every part is described in its own units, one unit being half the shorter side of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flawsmith.synthesis.scene import Field, Surface, View, clouds, grain, length

Hole = tuple[float, float, float]
"""(u, v, radius) in part units."""


@dataclass(frozen=True)
class Part:
    """A kind of part.

    Attributes:
        name: folder name of its category.
        holes: the drilled holes that a good part has.
        second_hole: shift (u, v) at which a doubled hole lies.
        max_angle: largest rotation to either side, in degrees.
        bevel: width of the rounded edges in part units.
        gloss: strength of the highlight.
        outline: signed distance to the outline without the drilled holes, in part units.
        finish: relief in pixels and albedo of the surface.
        mat: albedo of the mat it lies on.
    """

    name: str
    holes: tuple[Hole, ...]
    second_hole: tuple[float, float]
    max_angle: float
    bevel: float
    gloss: float
    outline: Callable[[View], Field]
    finish: Callable[[View, np.random.Generator], tuple[Field, Field]]
    mat: Callable[[View, np.random.Generator], Field]

    def drill(self, view: View, outline: Field, holes: tuple[Hole, ...]) -> Field:
        """(height, width) signed distance in pixels to the part with these holes."""
        distance = outline * np.float32(view.unit)
        for u, v, radius in holes:
            distance = np.maximum(distance, np.float32(radius * view.unit) - view.radius_to(u, v))
        return distance

    def surface(self, view: View, rng: np.random.Generator) -> Surface:
        """A good part."""
        relief, albedo = self.finish(view, rng)
        distance = self.drill(view, self.outline(view), self.holes)
        return Surface(distance, relief, albedo, self.gloss, max(2.0, self.bevel * view.unit))


def rounded_box(u: Field, v: Field, half: tuple[float, float], radius: float) -> Field:
    """Signed distance to a rectangle with rounded corners around the origin."""
    a = np.abs(u) - np.float32(half[0] - radius)
    b = np.abs(v) - np.float32(half[1] - radius)
    outside = length(np.maximum(a, 0), np.maximum(b, 0))
    return outside + np.minimum(np.maximum(a, b), 0) - np.float32(radius)


def _step(distance: Field, width: float) -> Field:
    """1 where ``distance`` is well negative, 0 where well positive, smooth in between."""
    t = np.clip(np.float32(0.5) - distance / np.float32(width), 0, 1)
    return t * t * (3 - 2 * t)


def _grey(level: Field, tint: tuple[float, float, float]) -> Field:
    return level[:, :, None] * np.asarray(tint, np.float32)


def _mat(level: float, tint: tuple[float, float, float], roughness: float) -> Callable[..., Field]:
    """A mat of even colour with a fine grain and slow clouds."""

    def draw(view: View, rng: np.random.Generator) -> Field:
        fine = clouds(view.shape, rng, size=1.5)
        slow = clouds(view.shape, rng, size=70)
        factor = 1 + np.float32(roughness) * fine + np.float32(0.04) * slow
        return _grey(np.clip(np.float32(level) * factor, 0, 1), tint)

    return draw


def _bracket_outline(view: View) -> Field:
    plate = rounded_box(view.u, view.v, (0.98, 0.6), 0.16)
    notch = rounded_box(view.u, view.v - np.float32(0.66), (0.24, 0.24), 0.1)
    slot = rounded_box(view.u, view.v + np.float32(0.04), (0.36, 0.1), 0.1)
    return np.maximum(np.maximum(plate, -notch), -slot)


def _bracket_finish(view: View, rng: np.random.Generator) -> tuple[Field, Field]:
    """Brushed along its length, with a faint band of light that the brush marks throw."""
    brushed = grain(view, rng, along=46, across=1.3)
    coarse = grain(view, rng, along=160, across=5)
    band = np.exp(-((view.v + np.float32(rng.normal(0.1, 0.03))) ** 2) / np.float32(0.1))
    level = np.float32(0.5) + np.float32(0.028) * brushed + np.float32(0.016) * coarse + np.float32(0.1) * band
    step = _step(rounded_box(view.u, view.v + np.float32(0.04), (0.47, 0.21), 0.2) * np.float32(view.unit), 7)
    relief = np.float32(0.12) * brushed - np.float32(3.0) * step
    return relief, _grey(np.clip(level, 0, 1), (0.97, 1.0, 1.05))


_TEETH = 20


def _gear_outline(view: View) -> Field:
    radius = length(view.u, view.v)
    turn = np.arctan2(view.v, view.u) * np.float32(_TEETH)
    flank = np.tanh(np.float32(2.2) * np.cos(turn))
    # The slope of the tooth's edge turns radial distance into distance across the edge.
    slope = np.float32(0.05 * 2.2 * _TEETH) * np.sin(turn) * (1 - flank * flank) / np.float32(0.8)
    teeth = (radius - np.float32(0.83) - np.float32(0.05) * flank) / np.sqrt(1 + slope * slope)
    key = rounded_box(view.u, view.v + np.float32(0.17), (0.045, 0.08), 0.01)
    return np.maximum(teeth, -np.minimum(radius - np.float32(0.17), key))


def _gear_finish(view: View, rng: np.random.Generator) -> tuple[Field, Field]:
    """Turned on a lathe: fine rings, and the two opposite fans of light such a surface shows."""
    radius = length(view.u, view.v)
    rings = rng.standard_normal(512, dtype=np.float32)
    rings = rings + np.float32(0.8) * np.repeat(rng.standard_normal(128, dtype=np.float32), 4)
    groove = rings[np.minimum((radius * np.float32(330)).astype(np.int32), 511)]
    # The fan stays with the lamp while the part turns under it, so it is drawn in image coordinates.
    across, down = view.x - np.float32(view.offset[0]), view.y - np.float32(view.offset[1])
    lamp = rng.normal(-0.66, 0.06)
    along = (across * np.float32(math.cos(lamp)) + down * np.float32(math.sin(lamp))) / np.float32(view.unit)
    fan = (along / np.maximum(radius, np.float32(0.02))) ** 2
    fan = fan * fan * fan
    level = np.float32(0.3) + np.float32(0.42) * fan
    level *= 1 + np.float32(0.05) * groove
    web = _step((np.abs(radius - np.float32(0.5)) - np.float32(0.19)) * np.float32(view.unit), 8)
    hub = _step((radius - np.float32(0.27)) * np.float32(view.unit), 6)
    level *= 1 - np.float32(0.14) * web
    relief = np.float32(3.2) * (hub - web)
    return relief, _grey(np.clip(level, 0, 1), (1.03, 1.0, 0.95))


_PRINT_UNIT = 160
_LABEL = (0.66, 0.36)


@lru_cache(maxsize=1)
def _print() -> Image.Image:
    """The printed label as (red, green, blue) albedo, 160 pixels a part unit, centred on the part."""
    over = 2
    width, height = (int(2 * side * _PRINT_UNIT * over) for side in _LABEL)
    label = Image.new("RGB", (width, height), (226, 224, 216))
    draw = ImageDraw.Draw(label)
    ink, accent = (32, 36, 42), (196, 72, 32)
    draw.rectangle((0, 0, width, height // 4), fill=accent)
    draw.text((18, 4), "FLAWSMITH", font=_font(44), fill=(240, 238, 230))
    draw.text((18, 66), "COVER  M8-204", font=_font(30), fill=ink)
    draw.text((18, 104), "24 V DC   IP 67", font=_font(26), fill=ink)
    bars = np.random.default_rng(204).integers(2, 8, 46)
    left = 20
    for number, bar in enumerate(bars.tolist()):
        if number % 2 == 0:
            draw.rectangle((left, 148, left + bar - 1, height - 16), fill=ink)
        left += bar
    centre = (width - 74, height - 74)
    draw.ellipse((centre[0] - 50, centre[1] - 50, centre[0] + 50, centre[1] + 50), outline=ink, width=7)
    bolt = [(6, -38), (-24, 8), (-2, 8), (-8, 38), (24, -10), (2, -10)]
    draw.polygon([(centre[0] + a, centre[1] + b) for a, b in bolt], fill=accent)
    return label.reduce(over)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _printed(view: View) -> Field:
    """(height, width, 3) the label's albedo seen in this pose; black outside."""
    label = _print()
    scale = _PRINT_UNIT / view.unit
    cos, sin = math.cos(view.angle) * scale, math.sin(view.angle) * scale
    height, width = view.shape
    x0 = (width - 1) / 2 + view.offset[0]
    y0 = (height - 1) / 2 + view.offset[1]
    # Pillow wants the way back: where in the label each output pixel comes from.
    matrix = (
        *(cos, sin, label.width / 2 - cos * x0 - sin * y0),
        *(-sin, cos, label.height / 2 + sin * x0 - cos * y0),
    )
    seen = label.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(seen, np.float32) / np.float32(255)


def _cover_outline(view: View) -> Field:
    body = rounded_box(view.u, view.v, (1.0, 0.68), 0.14)
    tab = rounded_box(np.abs(view.u) - np.float32(0.62), view.v - np.float32(0.7), (0.1, 0.08), 0.04)
    return np.minimum(body, tab)


def _cover_finish(view: View, rng: np.random.Generator) -> tuple[Field, Field]:
    """Moulded plastic with a spark-eroded grain, a raised rim, and a glued label."""
    eroded = grain(view, rng, along=1.9, across=1.9)
    rim = _step((rounded_box(view.u, view.v, (0.92, 0.6), 0.1)) * np.float32(view.unit), 6)
    at_label = rounded_box(view.u, view.v, (_LABEL[0] - 0.01, _LABEL[1] - 0.01), 0.03) * np.float32(view.unit)
    glued = np.clip(0.5 - at_label, 0, 1)
    relief = np.float32(0.2) * eroded * (1 - glued) - np.float32(2.6) * rim
    relief += np.float32(0.8) * _step(at_label, 2)
    shade = rng.normal(1, 0.03)
    plastic = np.asarray((0.1, 0.17, 0.25), np.float32) * np.float32(shade)
    glued = glued[:, :, None]
    return relief, plastic * (1 - glued) + np.float32(0.75) * _printed(view) * glued


def _corner_holes(u: float, v: float, radius: float) -> tuple[Hole, ...]:
    """Four holes, mirrored to both sides of both axes."""
    return tuple((u * a, v * b, radius) for a, b in ((-1, -1), (1, -1), (-1, 1), (1, 1)))


def _ring_of_holes(number: int, distance: float, radius: float) -> tuple[Hole, ...]:
    """Holes at equal angles on a circle around the centre."""
    angles = (2 * math.pi * k / number for k in range(number))
    return tuple((distance * math.cos(angle), distance * math.sin(angle), radius) for angle in angles)


_PARTS = (
    Part(
        name="bracket",
        holes=_corner_holes(0.76, 0.38, 0.105),
        second_hole=(0.0, 0.26),
        max_angle=7,
        bevel=0.035,
        gloss=0.5,
        outline=_bracket_outline,
        finish=_bracket_finish,
        mat=_mat(0.085, (0.9, 1.0, 1.12), 0.16),
    ),
    Part(
        name="gear",
        holes=_ring_of_holes(6, 0.5, 0.1),
        second_hole=(0.0, 0.25),
        max_angle=180,
        bevel=0.03,
        gloss=0.55,
        outline=_gear_outline,
        finish=_gear_finish,
        mat=_mat(0.075, (0.75, 1.0, 1.3), 0.12),
    ),
    Part(
        name="cover",
        holes=_corner_holes(0.79, 0.48, 0.065),
        second_hole=(0.0, 0.2),
        max_angle=5,
        bevel=0.05,
        gloss=0.35,
        outline=_cover_outline,
        finish=_cover_finish,
        mat=_mat(0.4, (1.05, 1.0, 0.9), 0.06),
    ),
)

PARTS: Mapping[str, Part] = MappingProxyType({part.name: part for part in _PARTS})
"""The kinds of part, by name."""
