"""Deciding where normal features are assumed to lie: published decisions, or the judge on the training images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from flawsmith.data.public_sets import known_dataset, plain
from flawsmith.runtime.geometry import Geometry

Hypothesis = Literal["manifold", "hypersphere"]

SIDE = 289  # pixels; odd, so that the zero frequency has a centre to lie in
CENTER = SIDE // 2
BLUR = 39  # pixels
GRID = 2 * SIDE  # side of the grid on which the points of the disc are counted
LOG_FACTOR = 20.0
SPECTRUM_LIMIT = 170.0  # 20·ln|F| = 170 is |F| ≈ 4915
DENSITY_LIMIT = 0.21
RADIUS_LIMIT = 12.0
COUNT_LIMIT = 60
# Below any effect on the judgement and above the rounding of normalised float32 values, so that a mean of whole grey
# levels is not truncated to the level below on one machine and kept on another.
ROUNDING_GUARD = 1e-3
_SHOWN_AROUND = 8  # frequencies shown beyond the outermost point
_SHOWN_LEAST = 48
_MARK = (224, 145, 63)


@dataclass(frozen=True)
class Judgement:
    """The decision with every figure it rests on; all fields are plain values, ready for JSON.

    Attributes:
        hypothesis: the decision.
        count: n, frequencies whose magnitude exceeds ``spectrum_limit``.
        half_width: a_x, largest horizontal distance of such a frequency from the zero frequency, in bins.
        half_height: a_y, the same vertically.
        radius: R, the largest Euclidean distance.
        density_rectangle: ρ1 = n / (4·max(a_x, 1)·max(a_y, 1)).
        density_disc: ρ2 = n / whole points within R of the zero frequency; a grid of 578×578 that shares the spectrum's
            top left corner bounds the disc.
        spectrum_limit: limit on 20·ln|F|.
        density_limit: ρ1 or ρ2 has to exceed it.
        radius_limit: R has to exceed it.
        count_limit: n has to exceed it.
        note: what is unusual about the image, in words; empty otherwise.
    """

    hypothesis: Hypothesis
    count: int
    half_width: int
    half_height: int
    radius: float
    density_rectangle: float
    density_disc: float
    spectrum_limit: float = SPECTRUM_LIMIT
    density_limit: float = DENSITY_LIMIT
    radius_limit: float = RADIUS_LIMIT
    count_limit: int = COUNT_LIMIT
    note: str = ""


def mean_image(images: Iterable[Float[ndarray, "3 height width"]]) -> Float[ndarray, "3 height width"]:
    """Mean of normalised images in one pass, one image in memory.

    Every image counts alike. The released code takes the mean of the means of its batches instead, in which the images
    of a smaller last batch weigh more.

    Args:
        images: normalised RGB images of one size, squashed to the network's input without cropping.

    Returns:
        The mean in float64.

    Raises:
        ValueError: there is no image, or the sizes differ.
    """
    total: np.ndarray | None = None
    count = 0
    for image in images:
        if total is None:
            total = np.zeros(image.shape, dtype=np.float64)
        if image.shape != total.shape:
            raise ValueError(f"images of one size are expected, not of {total.shape} and {image.shape}")
        total += image
        count += 1
    if total is None:
        raise ValueError("the mean of no image is undefined")
    return total / count


def as_rgb(
    normalised: Float[ndarray, "3 height width"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[ndarray, "height width 3"]:
    """A normalised image in 8 bits: scaled back, clipped and truncated to whole levels.

    Args:
        normalised: RGB image, (value − mean) / std of values in [0, 1].
        mean: a channel's mean, three values.
        std: a channel's standard deviation, three values.
    """
    scale, shift = (np.asarray(values, dtype=np.float64)[:, None, None] for values in (std, mean))
    levels = (np.asarray(normalised, dtype=np.float64) * scale + shift) * 255 + ROUNDING_GUARD
    return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def resized(rgb: UInt8[ndarray, "height width 3"]) -> UInt8[ndarray, "289 289 3"]:
    """The image at the size of the spectrum, bilinear without antialiasing as in the released code.

    Raises:
        ValueError: not a colour image of 8 bits.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"an RGB image of 8 bits (height, width, 3) is expected, not {rgb.dtype} {rgb.shape}")
    return cv2.resize(np.ascontiguousarray(rgb), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def blurred_grey(square: UInt8[ndarray, "289 289 3"]) -> UInt8[ndarray, "289 289"]:
    """Grey levels of an RGB image after a box blur of 39×39 pixels with mirrored border."""
    return cv2.blur(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (BLUR, BLUR)).astype(np.uint8)


def spectrum(grey: UInt8[ndarray, "side side"]) -> Float[ndarray, "side side"]:
    """20·ln|F| of the unnormalised two-dimensional DFT, zero frequency in the centre; −∞ where |F| is zero."""
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(grey.astype(np.float64))))
    return LOG_FACTOR * np.log(magnitude, out=np.full(magnitude.shape, -np.inf), where=magnitude > 0)


def judge(rgb: UInt8[ndarray, "height width 3"]) -> Judgement:
    """Manifold or hypersphere, from the mean training image.

    Hypersphere if and only if (ρ1 > 0.21 or ρ2 > 0.21) and R > 12 and n > 60. The released code raises an error on a
    black image, whose spectrum has no point above the limit; here the answer is manifold, with a note.

    Args:
        rgb: the mean image in 8 bits, any size; see :func:`as_rgb`.

    Raises:
        ValueError: not a colour image of 8 bits.

    Example:
        >>> judge(np.full((20, 20, 3), 128, dtype=np.uint8)).hypothesis
        'manifold'
    """
    return judge_points(spectrum(blurred_grey(resized(rgb))) > SPECTRUM_LIMIT)


def judge_points(points: np.ndarray) -> Judgement:
    """The decision from the strong frequencies.

    Args:
        points: (289, 289) True where 20·ln|F| > 170, zero frequency at (144, 144).
    """
    rows, columns = (places - CENTER for places in np.nonzero(points))
    if not len(rows):
        note = "the mean image is black: no frequency exceeds the limit, and manifold is taken"
        return Judgement("manifold", 0, 0, 0, 0.0, 0.0, 0.0, note=note)
    count, half_width, half_height = len(rows), int(np.abs(columns).max()), int(np.abs(rows).max())
    squared_radius = int((rows**2 + columns**2).max())
    # Squares of whole numbers, so that points at exactly the radius are counted on every machine.
    squares = (np.arange(GRID) - CENTER) ** 2
    disc = int(np.count_nonzero(squares[:, None] + squares <= squared_radius))
    in_rectangle = count / (4 * max(half_width, 1) * max(half_height, 1))
    radius, in_disc = squared_radius**0.5, count / disc
    dense = in_rectangle > DENSITY_LIMIT or in_disc > DENSITY_LIMIT
    spherical = dense and radius > RADIUS_LIMIT and count > COUNT_LIMIT
    hypothesis: Hypothesis = "hypersphere" if spherical else "manifold"
    return Judgement(hypothesis, count, half_width, half_height, radius, in_rectangle, in_disc)


def spectrum_picture(rgb: UInt8[ndarray, "height width 3"]) -> UInt8[ndarray, "289 289 3"]:
    """The spectrum that :func:`judge` looks at, to show: brighter is stronger, orange exceeds the limit.

    The picture is an enlargement around the zero frequency that holds every orange point.
    """
    levels = spectrum(blurred_grey(resized(rgb)))
    points = levels > SPECTRUM_LIMIT
    judgement = judge_points(points)
    half = min(max(judgement.half_width + _SHOWN_AROUND, judgement.half_height + _SHOWN_AROUND, _SHOWN_LEAST), CENTER)
    window: Any = (slice(CENTER - half, CENTER + half + 1),) * 2
    brightness = np.clip(levels, 0, None) / max(float(levels.max()), 1.0) * 255
    picture = np.repeat(brightness.astype(np.uint8)[..., None], 3, axis=2)
    picture[points] = _MARK
    return cv2.resize(picture[window], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST).astype(np.uint8)


# Every category of a data set, hypersphere first; the table that comes with the released code, which Table 1 of the
# paper agrees with.
_PUBLISHED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "mvtec": (
            "bottle cable pill screw transistor",
            "carpet grid leather tile wood capsule hazelnut metal_nut toothbrush zipper",
        ),
        "visa": (
            "cashew fryum pcb1 pcb2 pcb4 pipe_fryum",
            "candle capsules chewinggum macaroni1 macaroni2 pcb3",
        ),
        "mpdd": ("", "bracket_black bracket_brown bracket_white connector metal_plate tubes"),
        "wfdd": ("", "grey_cloth grid_cloth yellow_cloth pink_flower"),
    }
)
_COLUMNS: tuple[Hypothesis, Hypothesis] = ("hypersphere", "manifold")
_TABLE: Mapping[tuple[str, str], Hypothesis] = MappingProxyType(
    {
        (dataset, plain(category)): hypothesis
        for dataset, columns in _PUBLISHED.items()
        for hypothesis, categories in zip(_COLUMNS, columns, strict=True)
        for category in categories.split()
    }
)


def published_hypothesis(dataset: str, category: str) -> Hypothesis | None:
    """The published decision for a category, or None where there is none.

    Case and punctuation do not matter. A data set is recognised by the usual names of its folder and by nothing less:
    a folder that merely begins like one, such as that of MVTec LOCO, is another data set.

    Example:
        >>> published_hypothesis("MVTec AD", "screw"), published_hypothesis("mvtec_loco", "screw_bag")
        ('hypersphere', None)
    """
    known = known_dataset(dataset)
    return None if known is None else _TABLE.get((known, plain(category)))


JUDGED_GEOMETRY = Geometry(size=(288, 288))
"""Images are squashed, not cropped, before the judge looks at their mean."""
HYPOTHESES: tuple[Hypothesis, Hypothesis] = ("manifold", "hypersphere")


def mean_rgb(images: Iterable[Float[ndarray, "3 height width"]]) -> UInt8[ndarray, "height width 3"]:
    """The mean of images normalised for :data:`JUDGED_GEOMETRY`, in 8 bits."""
    return as_rgb(mean_image(images), JUDGED_GEOMETRY.mean, JUDGED_GEOMETRY.std)


def decide(
    rgb: UInt8[ndarray, "height width 3"],
    setting: Hypothesis | Literal["auto", "published"] = "auto",
    published: Hypothesis | None = None,
) -> dict[str, str | float]:
    """What the settings say, else the published decision where there is one, else the judgement of the mean image.

    The judge's figures are recorded in any case, so that a setting can be held against them.

    Args:
        published: the authors' decision for the category, where it was asked for and there is one.

    Returns:
        ``hypothesis``, ``decided`` (why), and every figure of the judgement.
    """
    judgement = judge(rgb)
    figures = {f"judge: {name.replace('_', ' ')}": value for name, value in asdict(judgement).items() if value != ""}
    if setting == "manifold" or setting == "hypersphere":
        hypothesis, why = setting, "given in the settings"
    elif published is not None:
        hypothesis, why = published, "published by the authors"
    else:
        hypothesis, why = judgement.hypothesis, "judged by the mean training image"
    return {"hypothesis": hypothesis, "decided": why, **figures}
