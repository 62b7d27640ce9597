"""A small camera, lamp and surface: what the rendered sample parts are drawn with.

A part is a height map with an outline. It is lit by one lamp at an angle, which gives bevels, dents and
scratches their bright and dark sides, and stands on a mat on which it throws a soft shadow. Lengths are
pixels unless stated otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
"""(height, width) float32, or (height, width, 3) where it is a colour."""

_SHADOW_SOFTNESS = 7.0


def length(across: Field, down: Field) -> Field:
    """√(across² + down²), several times faster than ``np.hypot``, whose care for extremes is not needed."""
    return np.sqrt(across * across + down * down)


@dataclass(frozen=True)
class View:
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


def draw_view(size: tuple[int, int], rng: np.random.Generator, *, max_angle: float, max_shift: float) -> View:
    """A random pose.

    Args:
        size: (height, width) of the image.
        rng: source of all draws.
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
    return View(x, y, cos * xs + sin * ys, cos * ys - sin * xs, unit, angle, (float(right), float(down)))


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


def photograph(view: View, surface: Surface, mat: Field, light: Light, noise: Field) -> NDArray[np.uint8]:
    """Light the surface, put it on its mat, and take the picture.

    Args:
        view: the pose.
        surface: the part.
        mat: (height, width, 3) albedo of what the part lies on.
        light: lamp and camera.
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
    height, width = view.shape
    across, down = view.x / np.float32(width / 2), view.y / np.float32(height / 2)
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


def grain(view: View, rng: np.random.Generator, *, along: float, across: float) -> Field:
    """Smooth noise that is fixed to the part and turns with it: brush marks, moulding grain.

    Args:
        view: the pose.
        rng: source of all draws.
        along: length of a grain along the part, in pixels.
        across: its width.

    Returns:
        (height, width), mean zero, standard deviation somewhat below one.
    """
    height, width = view.shape
    # Whatever the angle, the part's coordinates stay within half a diagonal of its centre, and the shift is
    # small.
    reach = 0.6 * math.hypot(height, width)
    columns, rows = (math.ceil(2 * reach / size) + 3 for size in (along, across))
    image = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    cos, sin = math.cos(view.angle), math.sin(view.angle)
    x0, y0 = (width - 1) / 2 + view.offset[0], (height - 1) / 2 + view.offset[1]
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
