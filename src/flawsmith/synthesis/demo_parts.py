"""A sample product line drawn from nothing, for demonstrations and tests, in MVTec layout.

Accuracy on rendered parts says that a program runs; it is no evidence of how it inspects real ones.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from flawsmith.data.seeding import generator
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.masks import fractal_noise

Field = NDArray[np.float32]
"""(height, width) float32, or (height, width, 3) where it is a colour."""

_SHADOW_SOFTNESS = 7.0


def length(across: Field, down: Field) -> Field:
    """√(across² + down²), several times faster than ``np.hypot``, whose care for extremes is not needed."""
    return np.sqrt(across * across + down * down)


@dataclass(frozen=True)
class PartPose:
    """Where the part stands: pixel positions, and the same positions in the part's own coordinates.

    Attributes:
        x: (1, width) columns relative to the image's centre.
        y: (height, 1) rows relative to the image's centre.
        u: (height, width) along the part, in part units.
        v: (height, width) across the part, in part units.
        unit: pixels of one part unit.
        angle: the part's rotation in radians.
        offset: (right, down) shift of the part's centre.
    """

    x: Field
    y: Field
    u: Field
    v: Field
    unit: float
    angle: float
    offset: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.u.shape
        return height, width

    def radius_to(self, u: float, v: float) -> Field:
        """(height, width) distance of every pixel to a point given in part units."""
        return length(self.u - np.float32(u), self.v - np.float32(v)) * np.float32(self.unit)


@dataclass(frozen=True)
class Surface:
    """What the lamp falls on.

    Attributes:
        distance: (height, width) signed distance to the outline, negative on the part.
        relief: (height, width) height above the plane.
        albedo: (height, width, 3) share of light sent back, in [0, 1].
        gloss: strength of the highlight, in [0, 1].
        bevel: width of the rounded edge.
    """

    distance: Field
    relief: Field
    albedo: Field
    gloss: float
    bevel: float


@dataclass(frozen=True)
class Light:
    """One lamp and the camera's exposure: what varies from photo to photo without being a flaw.

    Attributes:
        direction: angle in the image plane from which the light comes, in radians.
        elevation: how steeply it falls, in radians.
        exposure: overall factor.
        tint: factor of each colour channel.
        falloff: (right, down) relative change of brightness from the centre to the border.
        vignette: relative darkening in the corners.
        noise: standard deviation of the sensor noise in grey levels of 255.
    """

    direction: float
    elevation: float
    exposure: float
    tint: tuple[float, float, float]
    falloff: tuple[float, float]
    vignette: float
    noise: float


def draw_pose(size: tuple[int, int], rng: np.random.Generator, *, max_angle: float, max_shift: float) -> PartPose:
    """A random pose.

    Args:
        size: (height, width) of the image.
        max_angle: largest rotation to either side, in degrees.
        max_shift: largest shift in each direction, as a share of the shorter side.
    """
    height, width = size
    angle = math.radians(rng.uniform(-max_angle, max_angle))
    right, down = rng.uniform(-max_shift, max_shift, 2) * min(size)
    unit = min(size) / 2 * rng.uniform(0.98, 1.02)
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    cos, sin = np.float32(math.cos(angle) / unit), np.float32(math.sin(angle) / unit)
    xs, ys = x - np.float32(right), y - np.float32(down)
    return PartPose(x, y, cos * xs + sin * ys, cos * ys - sin * xs, unit, angle, (float(right), float(down)))


def draw_light(rng: np.random.Generator) -> Light:
    """A lamp at the upper left that was never mounted twice in quite the same way."""
    warmth = rng.normal(0, 0.008)
    return Light(
        direction=math.radians(rng.normal(-128, 4)),
        elevation=math.radians(rng.normal(50, 1.5)),
        exposure=float(np.clip(rng.normal(1, 0.03), 0.92, 1.08)),
        tint=(1 + warmth, 1.0, 1 - warmth),
        falloff=(rng.normal(-0.05, 0.02), rng.normal(-0.06, 0.02)),
        vignette=rng.uniform(0.2, 0.26),
        noise=rng.uniform(1.6, 2.2),
    )


def photograph(pose: PartPose, surface: Surface, mat: Field, light: Light, noise: Field) -> NDArray[np.uint8]:
    """Light the surface, put it on its mat, and take the picture.

    Args:
        mat: (height, width, 3) albedo of what the part lies on.
        noise: (height, width) standard normal sensor noise.

    Returns:
        (height, width, 3) uint8.
    """
    covered = np.clip(0.5 - surface.distance, 0, 1)[:, :, None]
    ground = mat * _shadow(surface, light)[:, :, None]
    image = _lit(surface, light)
    image -= ground
    image *= covered
    image += ground
    height, width = pose.shape
    across, down = pose.x / np.float32(width / 2), pose.y / np.float32(height / 2)
    lamp = 1 + np.float32(light.falloff[0]) * across + np.float32(light.falloff[1]) * down
    lamp *= (1 - np.float32(light.vignette / 2) * (across**2 + down**2)) * np.float32(light.exposure)
    image *= lamp[:, :, None] * np.asarray(light.tint, np.float32)
    # The tone curve of a camera: highlights roll off instead of clipping at once.
    image *= np.float32(-1.6)
    np.exp(image, out=image)
    image *= np.float32(-300)
    image += (300 + np.float32(light.noise) * noise)[:, :, None]
    return np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8)


def _lit(surface: Surface, light: Light) -> Field:
    """(height, width, 3) light sent back by the part: ambient, diffuse and a highlight."""
    inside = np.clip(-surface.distance / np.float32(surface.bevel), 0, 1)
    relief = surface.relief + np.float32(0.55 * surface.bevel) * (inside * (2 - inside))
    slope_x, slope_y = np.zeros_like(relief), np.zeros_like(relief)
    slope_x[:, 1:-1] = (relief[:, 2:] - relief[:, :-2]) / 2
    slope_y[1:-1] = (relief[2:] - relief[:-2]) / 2
    lx, ly = math.cos(light.direction), math.sin(light.direction)
    facing = slope_x * np.float32(-lx) + slope_y * np.float32(-ly)
    normal = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    diffuse = (facing * np.float32(math.cos(light.elevation)) + np.float32(math.sin(light.elevation))) * normal
    np.clip(diffuse, 0, None, out=diffuse)
    # The half vector between lamp and camera, which looks straight down.
    half = math.pi / 4 + light.elevation / 2
    shine = (facing * np.float32(math.cos(half)) + np.float32(math.sin(half))) * normal
    np.clip(shine, 0, None, out=shine)
    shine = shine * shine
    shine = shine * shine
    shine = shine * shine
    shine *= shine
    shine *= np.float32(surface.gloss)
    return surface.albedo * (np.float32(0.22) + np.float32(0.9) * diffuse + shine)[:, :, None]


def _shadow(surface: Surface, light: Light) -> Field:
    """(height, width) light that reaches the mat: less where the part stands between it and the lamp."""
    reach = 0.022 * min(surface.distance.shape) + 2
    right = round(-math.cos(light.direction) * reach)
    down = round(-math.sin(light.direction) * reach)
    shifted = np.roll(surface.distance, (down, right), axis=(0, 1))
    thrown = np.clip(0.5 - shifted / np.float32(_SHADOW_SOFTNESS), 0, 1)
    contact = np.clip(1 - surface.distance / np.float32(1.6 * _SHADOW_SOFTNESS), 0, 1)
    return (1 - np.float32(0.62) * thrown) * (1 - np.float32(0.35) * contact * contact)


def grain(pose: PartPose, rng: np.random.Generator, *, along: float, across: float) -> Field:
    """Smooth noise that is fixed to the part and turns with it: brush marks, moulding grain.

    Args:
        along: length of a grain along the part, in pixels.
        across: its width.

    Returns:
        (height, width), mean zero, standard deviation somewhat below one.
    """
    height, width = pose.shape
    # Whatever the angle, the part's coordinates stay within half a diagonal of its centre, and the shift is
    # small.
    reach = 0.6 * math.hypot(height, width)
    columns, rows = (math.ceil(2 * reach / size) + 3 for size in (along, across))
    image = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    x0, y0 = (width - 1) / 2 + pose.offset[0], (height - 1) / 2 + pose.offset[1]
    # Pillow wants the way back: where in the noise each output pixel comes from.
    matrix = (
        *(cos / along, sin / along, columns / 2 - (cos * x0 + sin * y0) / along),
        *(-sin / across, cos / across, rows / 2 + (sin * x0 - cos * y0) / across),
    )
    return np.asarray(image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def clouds(shape: tuple[int, int], rng: np.random.Generator, *, size: float) -> Field:
    """(height, width) smooth noise fixed to the picture, about standard normal, with a grain of ``size``
    pixels."""
    height, width = shape
    coarse = (max(2, math.ceil(height / size)), max(2, math.ceil(width / size)))
    image = Image.fromarray(rng.standard_normal(coarse, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


Hole = tuple[float, float, float]
"""(u, v, radius) in part units."""


@dataclass(frozen=True)
class PartDrawing:
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
    outline: Callable[[PartPose], Field]
    finish: Callable[[PartPose, np.random.Generator], tuple[Field, Field]]
    mat: Callable[[PartPose, np.random.Generator], Field]

    def drill(self, pose: PartPose, outline: Field, holes: tuple[Hole, ...]) -> Field:
        """(height, width) signed distance in pixels to the part with these holes."""
        distance = outline * np.float32(pose.unit)
        for u, v, radius in holes:
            distance = np.maximum(distance, np.float32(radius * pose.unit) - pose.radius_to(u, v))
        return distance

    def surface(self, pose: PartPose, rng: np.random.Generator) -> Surface:
        """A good part."""
        relief, albedo = self.finish(pose, rng)
        distance = self.drill(pose, self.outline(pose), self.holes)
        return Surface(distance, relief, albedo, self.gloss, max(2.0, self.bevel * pose.unit))


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

    def draw(pose: PartPose, rng: np.random.Generator) -> Field:
        fine = clouds(pose.shape, rng, size=1.5)
        slow = clouds(pose.shape, rng, size=70)
        factor = 1 + np.float32(roughness) * fine + np.float32(0.04) * slow
        return _grey(np.clip(np.float32(level) * factor, 0, 1), tint)

    return draw


def _bracket_outline(pose: PartPose) -> Field:
    plate = rounded_box(pose.u, pose.v, (0.98, 0.6), 0.16)
    notch = rounded_box(pose.u, pose.v - np.float32(0.66), (0.24, 0.24), 0.1)
    slot = rounded_box(pose.u, pose.v + np.float32(0.04), (0.36, 0.1), 0.1)
    return np.maximum(np.maximum(plate, -notch), -slot)


def _bracket_finish(pose: PartPose, rng: np.random.Generator) -> tuple[Field, Field]:
    """Brushed along its length, with a faint band of light that the brush marks throw."""
    brushed = grain(pose, rng, along=46, across=1.3)
    coarse = grain(pose, rng, along=160, across=5)
    band = np.exp(-((pose.v + np.float32(rng.normal(0.1, 0.03))) ** 2) / np.float32(0.1))
    level = np.float32(0.5) + np.float32(0.028) * brushed + np.float32(0.016) * coarse + np.float32(0.1) * band
    step = _step(rounded_box(pose.u, pose.v + np.float32(0.04), (0.47, 0.21), 0.2) * np.float32(pose.unit), 7)
    relief = np.float32(0.12) * brushed - np.float32(3.0) * step
    return relief, _grey(np.clip(level, 0, 1), (0.97, 1.0, 1.05))


_TEETH = 20


def _gear_outline(pose: PartPose) -> Field:
    radius = length(pose.u, pose.v)
    turn = np.arctan2(pose.v, pose.u) * np.float32(_TEETH)
    flank = np.tanh(np.float32(2.2) * np.cos(turn))
    # The slope of the tooth's edge turns radial distance into distance across the edge.
    slope = np.float32(0.05 * 2.2 * _TEETH) * np.sin(turn) * (1 - flank * flank) / np.float32(0.8)
    teeth = (radius - np.float32(0.83) - np.float32(0.05) * flank) / np.sqrt(1 + slope * slope)
    key = rounded_box(pose.u, pose.v + np.float32(0.17), (0.045, 0.08), 0.01)
    return np.maximum(teeth, -np.minimum(radius - np.float32(0.17), key))


def _gear_finish(pose: PartPose, rng: np.random.Generator) -> tuple[Field, Field]:
    """Turned on a lathe: fine rings, and the two opposite fans of light such a surface shows."""
    radius = length(pose.u, pose.v)
    rings = rng.standard_normal(512, dtype=np.float32)
    rings = rings + np.float32(0.8) * np.repeat(rng.standard_normal(128, dtype=np.float32), 4)
    groove = rings[np.minimum((radius * np.float32(330)).astype(np.int32), 511)]
    # The fan stays with the lamp while the part turns under it, so it is drawn in image coordinates.
    across, down = pose.x - np.float32(pose.offset[0]), pose.y - np.float32(pose.offset[1])
    lamp = rng.normal(-0.66, 0.06)
    along = (across * np.float32(math.cos(lamp)) + down * np.float32(math.sin(lamp))) / np.float32(pose.unit)
    fan = (along / np.maximum(radius, np.float32(0.02))) ** 2
    fan = fan * fan * fan
    level = np.float32(0.3) + np.float32(0.42) * fan
    level *= 1 + np.float32(0.05) * groove
    web = _step((np.abs(radius - np.float32(0.5)) - np.float32(0.19)) * np.float32(pose.unit), 8)
    hub = _step((radius - np.float32(0.27)) * np.float32(pose.unit), 6)
    level *= 1 - np.float32(0.14) * web
    relief = np.float32(3.2) * (hub - web)
    return relief, _grey(np.clip(level, 0, 1), (1.03, 1.0, 0.95))


def _corner_holes(u: float, v: float, radius: float) -> tuple[Hole, ...]:
    """Four holes, mirrored to both sides of both axes."""
    return tuple((u * a, v * b, radius) for a, b in ((-1, -1), (1, -1), (-1, 1), (1, 1)))


def _ring_of_holes(number: int, distance: float, radius: float) -> tuple[Hole, ...]:
    """Holes at equal angles on a circle around the centre."""
    angles = (2 * math.pi * k / number for k in range(number))
    return tuple((distance * math.cos(angle), distance * math.sin(angle), radius) for angle in angles)


_PARTS = (
    PartDrawing(
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
    PartDrawing(
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
)

PARTS: Mapping[str, PartDrawing] = MappingProxyType({part.name: part for part in _PARTS})
"""The kinds of part, by name."""


Mask = NDArray[np.bool_]
Flaw = Callable[[PartDrawing, PartPose, Surface, np.random.Generator], tuple[Surface, Mask | None]]
"""Gives the flawed surface; and the flaw's area where it is known beforehand, else None: then it is all that
changed."""

_OVERSAMPLING = 4


def scratch(part: PartDrawing, pose: PartPose, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A shallow, slightly curved groove through bare material."""
    centre = _spot(surface, rng, margin=0.06)
    extent = min(pose.shape) * rng.uniform(0.16, 0.4)
    heading, bend = rng.uniform(0, math.pi), rng.uniform(-0.5, 0.5)
    steps = np.linspace(-0.5, 0.5, 25)
    turn = heading + bend * steps
    path = np.stack([centre[0] + extent * steps * np.sin(turn), centre[1] + extent * steps * np.cos(turn)], 1)
    width = min(pose.shape) * rng.uniform(0.004, 0.007) * (1.15 - 1.6 * np.abs(steps))
    groove = _stroke(pose.shape, path, np.maximum(width, 0.7)) * _on_part(surface)
    shine = np.float32(rng.choice((-0.45, 0.55)))
    albedo = np.clip(surface.albedo * (1 + shine * groove[:, :, None]), 0, 1)
    return replace(surface, relief=surface.relief - np.float32(1.6) * groove, albedo=albedo), None


def dent(part: PartDrawing, pose: PartPose, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A pit in the surface, or a chip broken out of the edge."""
    size = min(pose.shape)
    if rng.random() < 0.5:
        return _chip(pose, surface, rng), None
    row, column = _spot(surface, rng, margin=0.08)
    reach, depth = size * rng.uniform(0.03, 0.055), size * rng.uniform(0.018, 0.028)
    squeeze, turn = rng.uniform(0.75, 1.3), rng.uniform(0, math.pi)
    down, across = _offsets(pose, row, column)
    along = (across * math.cos(turn) + down * math.sin(turn)) * np.float32(squeeze)
    aside = down * math.cos(turn) - across * math.sin(turn)
    inside = np.clip(1 - (along**2 + aside**2) / np.float32(reach**2), 0, None)
    pit = np.float32(depth) * inside * inside * _on_part(surface)
    return replace(surface, relief=(surface.relief - pit).astype(np.float32)), None


def stain(part: PartDrawing, pose: PartPose, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A dried drop of oil or rust: an uneven blot with a darker rim."""
    row, column = _spot(surface, rng, margin=0.07)
    reach = min(pose.shape) * rng.uniform(0.05, 0.1)
    down, across = _offsets(pose, row, column)
    uneven = fractal_noise(pose.shape, rng, cells=(6, 12, 24)).astype(np.float32) - np.float32(0.5)
    depth = 1 - length(down, across) / np.float32(reach) + np.float32(1.7) * uneven
    # Noise may throw splashes, but not across the whole part.
    depth = np.where(length(down, across) < 1.5 * reach, depth, np.float32(-1))
    inside = np.clip(depth * 6, 0, 1)
    rim = inside * np.clip(1.3 - depth * 4, 0, 1)
    cover = np.clip(0.4 * inside + 0.4 * rim, 0, 1) * _on_part(surface)
    colours = ((0.2, 0.1, 0.04), (0.34, 0.13, 0.04), (0.05, 0.045, 0.04))
    colour = np.asarray(colours[rng.integers(len(colours))], np.float32)
    opacity = cover[:, :, None].astype(np.float32)
    return replace(surface, albedo=surface.albedo * (1 - opacity) + colour * opacity), None


def crack(part: PartDrawing, pose: PartPose, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A dark jagged line that starts at an edge and branches on its way into the material."""
    start, heading = _edge(surface, rng)
    size = min(pose.shape)
    extent = size * rng.uniform(0.14, 0.3)
    trunk = _jagged(start, heading, extent, rng)
    width = size * rng.uniform(0.006, 0.009)
    gap = _stroke(pose.shape, trunk, np.linspace(width, 0.7, len(trunk)))
    for _ in range(int(rng.integers(1, 4))):
        knot = int(rng.integers(len(trunk) // 4, len(trunk) - 2))
        aside = heading + rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
        branch = _jagged(trunk[knot], aside, extent * rng.uniform(0.15, 0.4), rng)
        gap = np.maximum(gap, _stroke(pose.shape, branch, np.linspace(0.55 * width, 0.6, len(branch))))
    gap = gap * _on_part(surface)
    albedo = surface.albedo * (1 - np.float32(0.85) * gap[:, :, None])
    return replace(surface, relief=surface.relief - np.float32(1.2) * gap, albedo=albedo), None


def wrong_hole(part: PartDrawing, pose: PartPose, surface: Surface, rng: np.random.Generator) -> tuple[Surface, Mask]:
    """A hole that was not drilled, or drilled a second time; the area is that of the hole with its bevel."""
    number = int(rng.integers(len(part.holes)))
    u, v, radius = part.holes[number]
    if rng.random() < 0.5:
        holes = part.holes[:number] + part.holes[number + 1 :]
    else:
        # Towards the part's middle line on a plate; along the ring, which leads back into the web, on a gear.
        du, dv = _second_hole(part, u, v)
        u, v = u + du, v + dv
        holes = (*part.holes, (u, v, radius))
    distance = part.drill(pose, part.outline(pose), holes)
    area = pose.radius_to(u, v) < radius * pose.unit + surface.bevel + 1
    return replace(surface, distance=distance), area


FLAWS: Mapping[str, Flaw] = MappingProxyType(
    {"scratch": scratch, "dent": dent, "stain": stain, "crack": crack, "wrong_hole": wrong_hole}
)
"""The flaws, by the name of their folder."""


def _second_hole(part: PartDrawing, u: float, v: float) -> tuple[float, float]:
    du, dv = part.second_hole
    if math.isclose(math.hypot(u, v), math.hypot(*part.holes[0][:2])) and part.max_angle == 180:
        turn = 2 * math.asin(dv / 2 / math.hypot(u, v))
        return u * math.cos(turn) - v * math.sin(turn) - u, u * math.sin(turn) + v * math.cos(turn) - v
    return -math.copysign(du, u), -math.copysign(dv, v)


def _chip(pose: PartPose, surface: Surface, rng: np.random.Generator) -> Surface:
    (row, column), _ = _edge(surface, rng)
    reach = min(pose.shape) * rng.uniform(0.03, 0.055)
    down, across = _offsets(pose, row, column)
    uneven = fractal_noise(pose.shape, rng, cells=(12, 24)).astype(np.float32) - np.float32(0.5)
    bite = np.float32(reach) - length(down, across) + np.float32(0.8 * reach) * uneven
    bite = np.where(length(down, across) < 1.6 * reach, bite, np.float32(-reach))
    return replace(surface, distance=np.maximum(surface.distance, bite))


def _on_part(surface: Surface) -> Field:
    return np.clip(0.5 - surface.distance, 0, 1)


def _offsets(pose: PartPose, row: float, column: float) -> tuple[Field, Field]:
    """Rows and columns relative to a pixel: (height, 1) and (1, width)."""
    return pose.y - pose.y[int(row), 0], pose.x - pose.x[0, int(column)]


def _spot(surface: Surface, rng: np.random.Generator, *, margin: float) -> tuple[float, float]:
    """(row, column) of a random pixel on the part, at least ``margin`` of the shorter side from its edges if
    possible."""
    inset = min(np.float32(margin * min(surface.distance.shape)), -surface.distance.min())
    inner = np.flatnonzero(surface.distance <= -inset)
    row, column = divmod(int(inner[rng.integers(inner.size)]), surface.distance.shape[1])
    return float(row), float(column)


def _edge(surface: Surface, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """(row, column) of a random pixel on an edge of the part, and the heading into the material in
    radians."""
    columns = surface.distance.shape[1]
    edge = np.flatnonzero(np.abs(surface.distance[2:-2, 2:-2]) < 0.6)
    row, column = divmod(int(edge[rng.integers(edge.size)]), columns - 4)
    row, column = row + 2, column + 2
    down = float(surface.distance[row + 2, column] - surface.distance[row - 2, column])
    right = float(surface.distance[row, column + 2] - surface.distance[row, column - 2])
    return (float(row), float(column)), math.atan2(-down, -right) + rng.uniform(-0.35, 0.35)


def _jagged(
    start: tuple[float, float] | NDArray[np.float64], heading: float, extent: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(points, 2) rows and columns of a line that wavers around its heading."""
    points = max(6, round(extent / 4))
    headings = heading + rng.normal(0, 0.55, points)
    steps = extent / points * np.stack([np.sin(headings), np.cos(headings)], axis=1)
    return np.concatenate([np.asarray(start)[None], np.asarray(start) + np.cumsum(steps, axis=0)])


def _stroke(shape: tuple[int, int], path: NDArray[np.float64], widths: NDArray[np.float64]) -> Field:
    """(height, width) coverage in [0, 1] of a line of varying width, drawn four times as large and
    averaged."""
    over = _OVERSAMPLING
    canvas = Image.new("L", (shape[1] * over, shape[0] * over))
    draw = ImageDraw.Draw(canvas)
    points = [((x + 0.5) * over, (y + 0.5) * over) for y, x in path.tolist()]
    for a, b, width in zip(points[:-1], points[1:], widths.tolist(), strict=False):
        draw.line((a, b), fill=255, width=max(1, round(width * over)))
        radius = width * over / 2
        draw.ellipse((b[0] - radius, b[1] - radius, b[0] + radius, b[1] + radius), fill=255)
    return np.asarray(canvas.reduce(over), np.float32) / np.float32(255)


DEFAULT_SIZE = (320, 384)
MIN_SIDE = 64
_VISIBLE = 3
"""Least change in grey levels of 255 by which a pixel belongs to a flaw; smaller changes are taken back."""
_MAX_TRIES = 20
_MIN_AREA = 1.5e-4

Rgb = NDArray[np.uint8]


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
        part: a name of :data:`~flawsmith.synthesis.demo_parts.PARTS`.
        defect: a name of :data:`~flawsmith.synthesis.demo_parts.FLAWS`, or None for a good part.
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
    pose = draw_pose(size, look, max_angle=kind.max_angle, max_shift=0.012)
    light = draw_light(look)
    mat = kind.mat(pose, look)
    surface = kind.surface(pose, look)
    noise = look.standard_normal(size, dtype=np.float32)
    good = photograph(pose, surface, mat, light, noise)
    if defect is None:
        return good, np.zeros(size, bool)
    for _ in range(_MAX_TRIES):
        flawed_surface, area = FLAWS[defect](kind, pose, surface, flaw)
        flawed = photograph(pose, flawed_surface, mat, light, noise)
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
