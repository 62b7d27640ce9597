"""The five flaws of the sample product line, drawn into a part's surface before it is lit.

Four are structural (scratch, dent or chip, stain, crack); one is logical: a hole that is missing or drilled
twice, where every spot looks as on a good part and only the arrangement is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flawsmith.synthesis.parts import Part
from flawsmith.synthesis.perlin import fractal_noise
from flawsmith.synthesis.scene import Field, Surface, View, length

Mask = NDArray[np.bool_]
Flaw = Callable[[Part, View, Surface, np.random.Generator], tuple[Surface, Mask | None]]
"""Gives the flawed surface; and the flaw's area where it is known beforehand, else None: then it is all that
changed."""

_OVERSAMPLING = 4


def scratch(part: Part, view: View, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A shallow, slightly curved groove through bare material."""
    centre = _spot(surface, rng, margin=0.06)
    extent = min(view.shape) * rng.uniform(0.16, 0.4)
    heading, bend = rng.uniform(0, math.pi), rng.uniform(-0.5, 0.5)
    steps = np.linspace(-0.5, 0.5, 25)
    turn = heading + bend * steps
    path = np.stack([centre[0] + extent * steps * np.sin(turn), centre[1] + extent * steps * np.cos(turn)], 1)
    width = min(view.shape) * rng.uniform(0.004, 0.007) * (1.15 - 1.6 * np.abs(steps))
    groove = _stroke(view.shape, path, np.maximum(width, 0.7)) * _on_part(surface)
    shine = np.float32(rng.choice((-0.45, 0.55)))
    albedo = np.clip(surface.albedo * (1 + shine * groove[:, :, None]), 0, 1)
    return replace(surface, relief=surface.relief - np.float32(1.6) * groove, albedo=albedo), None


def dent(part: Part, view: View, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A pit in the surface, or a chip broken out of the edge."""
    size = min(view.shape)
    if rng.random() < 0.5:
        return _chip(view, surface, rng), None
    row, column = _spot(surface, rng, margin=0.08)
    reach, depth = size * rng.uniform(0.03, 0.055), size * rng.uniform(0.018, 0.028)
    squeeze, turn = rng.uniform(0.75, 1.3), rng.uniform(0, math.pi)
    down, across = _offsets(view, row, column)
    along = (across * math.cos(turn) + down * math.sin(turn)) * np.float32(squeeze)
    aside = down * math.cos(turn) - across * math.sin(turn)
    inside = np.clip(1 - (along**2 + aside**2) / np.float32(reach**2), 0, None)
    pit = np.float32(depth) * inside * inside * _on_part(surface)
    return replace(surface, relief=(surface.relief - pit).astype(np.float32)), None


def stain(part: Part, view: View, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A dried drop of oil or rust: an uneven blot with a darker rim."""
    row, column = _spot(surface, rng, margin=0.07)
    reach = min(view.shape) * rng.uniform(0.05, 0.1)
    down, across = _offsets(view, row, column)
    uneven = fractal_noise(view.shape, rng, cells=(6, 12, 24)).astype(np.float32) - np.float32(0.5)
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


def crack(part: Part, view: View, surface: Surface, rng: np.random.Generator) -> tuple[Surface, None]:
    """A dark jagged line that starts at an edge and branches on its way into the material."""
    start, heading = _edge(surface, rng)
    size = min(view.shape)
    extent = size * rng.uniform(0.14, 0.3)
    trunk = _jagged(start, heading, extent, rng)
    width = size * rng.uniform(0.006, 0.009)
    gap = _stroke(view.shape, trunk, np.linspace(width, 0.7, len(trunk)))
    for _ in range(int(rng.integers(1, 4))):
        knot = int(rng.integers(len(trunk) // 4, len(trunk) - 2))
        aside = heading + rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
        branch = _jagged(trunk[knot], aside, extent * rng.uniform(0.15, 0.4), rng)
        gap = np.maximum(gap, _stroke(view.shape, branch, np.linspace(0.55 * width, 0.6, len(branch))))
    gap = gap * _on_part(surface)
    albedo = surface.albedo * (1 - np.float32(0.85) * gap[:, :, None])
    return replace(surface, relief=surface.relief - np.float32(1.2) * gap, albedo=albedo), None


def wrong_hole(part: Part, view: View, surface: Surface, rng: np.random.Generator) -> tuple[Surface, Mask]:
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
    distance = part.drill(view, part.outline(view), holes)
    area = view.radius_to(u, v) < radius * view.unit + surface.bevel + 1
    return replace(surface, distance=distance), area


FLAWS: Mapping[str, Flaw] = MappingProxyType(
    {"scratch": scratch, "dent": dent, "stain": stain, "crack": crack, "wrong_hole": wrong_hole}
)
"""The flaws, by the name of their folder."""


def _second_hole(part: Part, u: float, v: float) -> tuple[float, float]:
    du, dv = part.second_hole
    if math.isclose(math.hypot(u, v), math.hypot(*part.holes[0][:2])) and part.max_angle == 180:
        turn = 2 * math.asin(dv / 2 / math.hypot(u, v))
        return u * math.cos(turn) - v * math.sin(turn) - u, u * math.sin(turn) + v * math.cos(turn) - v
    return -math.copysign(du, u), -math.copysign(dv, v)


def _chip(view: View, surface: Surface, rng: np.random.Generator) -> Surface:
    (row, column), _ = _edge(surface, rng)
    reach = min(view.shape) * rng.uniform(0.03, 0.055)
    down, across = _offsets(view, row, column)
    uneven = fractal_noise(view.shape, rng, cells=(12, 24)).astype(np.float32) - np.float32(0.5)
    bite = np.float32(reach) - length(down, across) + np.float32(0.8 * reach) * uneven
    bite = np.where(length(down, across) < 1.6 * reach, bite, np.float32(-reach))
    return replace(surface, distance=np.maximum(surface.distance, bite))


def _on_part(surface: Surface) -> Field:
    return np.clip(0.5 - surface.distance, 0, 1)


def _offsets(view: View, row: float, column: float) -> tuple[Field, Field]:
    """Rows and columns relative to a pixel: (height, 1) and (1, width)."""
    return view.y - view.y[int(row), 0], view.x - view.x[0, int(column)]


def _spot(surface: Surface, rng: np.random.Generator, *, margin: float) -> tuple[float, float]:
    """(row, column) of a random pixel on the part, at least ``margin`` of the shorter side from its edges if
    possible."""
    wanted = np.float32(margin * min(surface.distance.shape))
    deepest = -surface.distance.min()
    inner = np.flatnonzero(surface.distance <= -min(wanted, deepest))
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
