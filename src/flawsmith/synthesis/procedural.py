"""Textures drawn from nothing, so that synthesis needs no download: clouds, grain, stripes, cells, scratches, stains.

A texture is a field of values, drawn by one of ten painters at a random scale, seen through a random ramp of colours.
Painters work at low resolution where the field is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
Field = NDArray[np.float32]
"""(height, width), values in [0, 1]."""

_GREY = 0.3
"""Share of textures without colour: dirt, shadow, bare metal."""


class ProceduralTextures:
    """Textures drawn from nothing; every one is new, the same generator gives the same.

    Example:
        >>> ProceduralTextures().draw((32, 48), np.random.default_rng(0)).shape
        (32, 48, 3)
    """

    def draw(self, size: Size, rng: np.random.Generator) -> NDArray[np.uint8]:
        """One texture.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        field = list(PAINTERS.values())[int(rng.integers(len(PAINTERS)))](size, rng)
        if rng.random() < 0.5:
            # Real surfaces are rarely lit evenly.
            light = _smooth_noise(size, rng, max(size) / rng.uniform(0.8, 3.0))
            field = field + np.float32(rng.uniform(0.1, 0.5)) * (light - np.float32(0.5))
        levels = np.clip(field * 255, 0, 255).astype(np.uint8)
        texture = cv2.applyColorMap(levels, _ramp(rng)[:, None]).astype(np.uint8, copy=False)
        return _with_grain(texture, rng) if rng.random() < 0.5 else texture


def clouds(size: Size, rng: np.random.Generator) -> Field:
    """Octaves of smooth noise, each half as coarse as the last."""
    return _stretched(_octaves(size, rng, _scale(size, rng, 0.08, 0.8), rng.uniform(0.4, 0.8)))


def grain(size: Size, rng: np.random.Generator) -> Field:
    """Speckle of one grain size, round or drawn out along an axis, from soft to all-or-nothing."""
    grains = _scale(size, rng, 0.004, 0.04)
    noise = _smooth_noise(size, rng, (grains * math.exp(rng.normal(0, 0.6)), grains))
    return _sharpened(noise, 0.5, rng)


def blotches(size: Size, rng: np.random.Generator) -> Field:
    """Clouds cut at a level: patches with ragged rims, as of peeling paint or rust."""
    noise = _stretched(_octaves(size, rng, _scale(size, rng, 0.08, 0.5), rng.uniform(0.4, 0.7)))
    return _sharpened(noise, rng.uniform(0.35, 0.65), rng)


def stripes(size: Size, rng: np.random.Generator) -> Field:
    """Stripes in any direction, straight or bent, even or of varied width: brushed metal, wood, fabric, print."""
    phase = _along(size, rng.uniform(0, math.pi)) / np.float32(_scale(size, rng, 0.015, 0.3))
    bend = rng.choice((0.0, 0.5, 2.0)) * rng.random()
    if bend:
        phase = phase + np.float32(2 * bend) * (_smooth_noise(size, rng, _scale(size, rng, 0.2, 0.8)) - 0.5)
    return _profile(phase, rng)


def weave(size: Size, rng: np.random.Generator) -> Field:
    """Two families of stripes across each other: cloth, mesh, knurls, tiles."""
    angle, period = rng.uniform(0, math.pi), _scale(size, rng, 0.02, 0.2)
    crossing = angle + (math.pi / 2 if rng.random() < 0.7 else rng.uniform(0.5, 1.5))
    warp = _profile(_along(size, angle) / np.float32(period), rng)
    other = _profile(_along(size, crossing) / np.float32(period * rng.choice((1.0, 1.0, 2.0))), rng)
    kind = rng.integers(3)
    if kind == 0:
        return np.abs(warp - other)
    return warp * other if kind == 1 else np.maximum(warp, other)


def cells(size: Size, rng: np.random.Generator) -> Field:
    """Cells about random or gridded points, as plates, bubbles or cracks between them: grains, gravel, scale, foam."""
    height, width = size
    side = max(_scale(size, rng, 0.03, 0.25), 2.0)
    rows, columns = (max(1, round(length / side)) for length in size)
    jitter = rng.uniform(0.3, 1.0)
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5 + rng.uniform(-jitter / 2, jitter / 2, (2, rows * columns))
    seeds = np.full(size, 255, np.uint8)
    seeds[(y * height / rows).astype(int) % height, (x * width / columns).astype(int) % width] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    plates = rng.random(rows * columns + 2, dtype=np.float32)[labels]
    kind = rng.integers(3)
    if kind == 0:
        return plates
    if kind == 1:
        return np.clip(distance / (0.8 * side), 0, 1) * np.float32(rng.uniform(0.6, 1)) + np.float32(0.3) * plates
    # A pixel on a rim has a neighbour of another label.
    rims = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    rim = cv2.GaussianBlur(rims.astype(np.float32), (0, 0), rng.uniform(0.6, 0.02 * min(size) + 0.7))
    return np.clip(rim / max(float(rim.max()), 1e-6), 0, 1) * np.float32(rng.uniform(0.5, 1)) + np.float32(0.4) * plates


def scratches(size: Size, rng: np.random.Generator) -> Field:
    """Thin strokes over a cloudy ground, mostly one way or every way, bright or dark."""
    height, width = size
    ground = np.float32(0.5) + np.float32(rng.uniform(0.05, 0.4)) * (clouds(size, rng) - np.float32(0.5))
    strokes = np.zeros(size, np.uint8)
    direction, spread = rng.uniform(0, 2 * math.pi), rng.choice((0.08, 0.4, math.pi))
    for _ in range(int(rng.integers(8, 60))):
        turn = direction + rng.uniform(-spread, spread) + np.cumsum(rng.normal(0, 0.08, 6))
        step = rng.uniform(0.02, 0.15) * max(size)
        start = rng.uniform((0, 0), (width, height))
        path = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1) * step, axis=0)
        width_ = 1 + int(rng.exponential(0.004 * min(size) + 0.2))
        line = np.rint(path * 16).astype(np.int32)
        cv2.polylines(strokes, [line], False, int(rng.integers(80, 256)), width_, cv2.LINE_AA, 4)
    return np.clip(ground + strokes * np.float32((0.8 if rng.random() < 0.5 else -0.8) / 255), 0, 1)


def stains(size: Size, rng: np.random.Generator) -> Field:
    """Overlapping drops with soft or dried, darker rims, on a cloudy ground."""
    # Half the resolution loses nothing that a drop has, and is four times cheaper.
    small = tuple(max(1, length // 2) for length in size)
    height, width = coarse = (small[0], small[1])
    field = np.full(coarse, 0.2, np.float32) + np.float32(0.3) * clouds(coarse, rng)
    warp = np.float32(0.06 * max(coarse)) * (_smooth_noise(coarse, rng, _scale(coarse, rng, 0.1, 0.4)) - 0.5)
    y, x = (np.arange(length, dtype=np.float32) for length in coarse)
    rim = np.float32(rng.uniform(0.02, 0.2))
    for _ in range(int(rng.integers(2, 8))):
        radius = max(1.0, _scale(coarse, rng, 0.06, 0.45))
        above, across = y - np.float32(rng.uniform(0, height)), x - np.float32(rng.uniform(0, width))
        depth = 1 - (np.sqrt((above * above)[:, None] + across * across) + warp) / np.float32(radius)
        body = np.clip(depth * np.float32(1 / rng.uniform(0.05, 0.8)), 0, 1) * np.float32(rng.uniform(0.1, 0.4))
        edge = np.maximum(1 - np.square(depth / rim), 0)
        field += body + np.float32(rng.uniform(0, 0.5)) * edge
    return np.clip(cv2.resize(field, size[::-1], interpolation=cv2.INTER_LINEAR), 0, 1)


def marble(size: Size, rng: np.random.Generator) -> Field:
    """Veins: stripes bent by clouds until they fold."""
    folds = _octaves(size, rng, _scale(size, rng, 0.2, 0.8), 0.55)
    phase = _along(size, rng.uniform(0, math.pi)) / np.float32(_scale(size, rng, 0.1, 0.6))
    veins = np.abs(np.sin(np.float32(math.pi) * (phase + np.float32(rng.uniform(1, 5)) * folds)))
    return 1 - veins ** np.float32(rng.uniform(0.3, 1.5))


def dots(size: Size, rng: np.random.Generator) -> Field:
    """Round or square dots on a turned grid, of one size or of many: perforated sheet, print, pores."""
    angle, period = rng.uniform(0, math.pi), max(_scale(size, rng, 0.03, 0.2), 2.0)
    u, v = (_along(size, angle + turn) / np.float32(period) for turn in (0.0, math.pi / 2))
    # Rows are offset against each other, as bricks are.
    row = np.floor(v)
    u = u + (row % 2) * np.float32(rng.choice((0.0, 0.5)))
    a, b = u - np.floor(u) - 0.5, v - row - 0.5
    distance = np.maximum(np.abs(a), np.abs(b)) if rng.random() < 0.4 else np.sqrt(a * a + b * b)
    radius = rng.uniform(0.15, 0.48)
    if rng.random() < 0.5:
        distance = distance + np.float32(0.4) * (_smooth_noise(size, rng, 2 * period) - 0.5)
    return np.clip((radius - distance) / (rng.uniform(1.0, 6.0) / period) + 0.5, 0, 1)


PAINTERS: Mapping[str, Callable[[Size, np.random.Generator], Field]] = {
    painter.__name__: painter
    for painter in (clouds, grain, blotches, stripes, weave, cells, scratches, stains, marble, dots)
}
"""The painters by name, equally likely."""


def _scale(size: Size, rng: np.random.Generator, low: float, high: float) -> float:
    """A length in pixels, log-uniform between two shares of the shorter side, at least 1.5 pixels."""
    return max(1.5, min(size) * math.exp(rng.uniform(math.log(low), math.log(high))))


def _smooth_noise(size: Size, rng: np.random.Generator, period: float | tuple[float, float]) -> Field:
    """Uniform noise on a coarse grid of ``period`` pixels (down, across), enlarged smoothly; in [0, 1]."""
    periods = period if isinstance(period, tuple) else (period, period)
    height, width = size
    rows, columns = (max(2, math.ceil(n / max(p, 1.0)) + 1) for n, p in zip(size, periods, strict=True))
    coarse = rng.random((rows, columns), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _octaves(size: Size, rng: np.random.Generator, period: float, roughness: float) -> Field:
    """Sum of smooth noises, each with half the period of the last and ``roughness`` times its strength."""
    field, strength, total = np.zeros(size, np.float32), 1.0, 0.0
    for _ in range(7):
        field += np.float32(strength) * _smooth_noise(size, rng, period)
        total += strength
        period, strength = period / 2, strength * roughness
        if period < 1.5:
            break
    return field / np.float32(total)


def _along(size: Size, angle: float) -> Field:
    """Position of each pixel along a direction, in pixels from the centre."""
    y, x = (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in size)
    return y[:, None] * np.float32(math.sin(angle)) + x * np.float32(math.cos(angle))


def _profile(phase: Field, rng: np.random.Generator) -> Field:
    """What a stripe looks like across: one period of a wave, a saw tooth or a bar, or each bar of its own shade."""
    kind = rng.integers(4)
    phase = phase + np.float32(rng.random())
    part = phase - np.floor(phase)
    if kind == 0:
        return 0.5 + 0.5 * np.sin(np.float32(2 * math.pi) * part)
    if kind == 1:
        return part
    if kind == 2:
        return np.clip((part - np.float32(rng.uniform(0.2, 0.8))) * np.float32(rng.uniform(4, 40)) + 0.5, 0, 1)
    shades = rng.random(64, dtype=np.float32)
    return shades[np.floor(phase).astype(np.int32) % 64]


def _sharpened(field: Field, level: float, rng: np.random.Generator) -> Field:
    """Contrast raised about a level, up to black and white."""
    return np.clip((field - np.float32(level)) * np.float32(math.exp(rng.uniform(0, 3.5))) + 0.5, 0, 1)


def _stretched(field: Field) -> Field:
    """Values brought to fill [0, 1]."""
    low, high = float(field.min()), float(field.max())
    return (field - np.float32(low)) / np.float32(max(high - low, 1e-6))


def _ramp(rng: np.random.Generator) -> NDArray[np.uint8]:
    """(256, 3) colours that field values 0 to 255 show: 2 to 5 colours about a common one, blended between."""
    stops = int(rng.integers(2, 6))
    spread = rng.uniform(0.15, 1.0)
    lightness = np.clip(rng.uniform(0, 255) * (1 - spread) + rng.uniform(0, 255, stops) * spread, 0, 255)
    # Two stops at least differ visibly, or a texture is a plain colour.
    order = np.argsort(lightness) if rng.random() < 0.6 else rng.permutation(stops)
    lightness = lightness[order]
    if np.ptp(lightness) < 40:
        lightness = np.clip(lightness + np.linspace(-20, 20, stops), 0, 255)
    colours = np.repeat(lightness[:, None], 3, axis=1)
    if rng.random() >= _GREY:
        # Mostly muted, as materials are; now and then a dye.
        vivid = 2.0 if rng.random() < 0.2 else 1.0
        tint = rng.normal(0, 1, 3) * rng.uniform(5, 35) + rng.normal(0, 1, (stops, 3)) * rng.uniform(0, 30)
        tint *= vivid
        colours = np.clip(colours + tint, 0, 255)
    places = np.sort(np.concatenate([[0.0, 255.0], rng.uniform(0, 255, stops - 2)]))
    values = np.arange(256)
    return np.stack([np.interp(values, places, colours[:, c]) for c in range(3)], axis=1).astype(np.uint8)


def _with_grain(texture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of a camera or a rough surface: the same in all channels, a few grey levels strong."""
    strength = rng.uniform(2, 16)
    noise = rng.integers(-256, 256, texture.shape[:2], dtype=np.int16) * strength / 256
    rough = texture.astype(np.int16) + noise.astype(np.int16)[:, :, None]
    return np.clip(rough, 0, 255).astype(np.uint8)
