"""Good images as they would look on another day: in another light, a little moved, or turned like other good ones."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from flawsmith.synthesis.blend import FloatImage

Turn = Literal["mirrored", "half", "quarter"]
"""How parts may lie: mirrored, by a half turn, or by a quarter turn and any other angle."""
ANGLE = 2.5
"""Degrees either way that every part may be turned."""
SHIFT = 0.01
"""Share of the image's width and height that every part may be moved, either way."""
SCALE = 1.02
EXPOSURE = 1.28
CONTRAST = 1.16
BLURRED = 0.3
"""Share of views that are out of focus, by a Gaussian of at most this many pixels of the network's input."""
BLUR = 0.8
NOISY = 0.5
"""Share of views with noise, and of views stored as JPEG, of smooth images: there a grey level of it, which no eye
sees, is stranger to a network than most flaws. Images with noise of their own need neither."""
NOISE = 2 / 255
QUALITY = (70, 95)
SMOOTH = 0.25 / 255
"""Half the difference of the diagonals of 2x2 pixels, typically, below which an image is smooth: no grey level of 8
bits."""


@dataclass(frozen=True)
class View:
    """One way to see a good image again; as made, it changes nothing.

    Attributes:
        mirrored: left is right.
        degrees: anticlockwise, about the centre.
        shift: to the right and down, as shares of width and height.
        scale: how much larger things look.
        exposure: factor on all values.
        contrast: factor on the distance of all values to their mean.
        blur: standard deviation of a Gaussian, pixels.
        noise: standard deviation of white noise that a smooth image gets, drawn with ``noise_seed``.
        quality: of the JPEG file that a smooth image was stored as, colours at half the resolution; None: as it is.
    """

    mirrored: bool = False
    degrees: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    exposure: float = 1.0
    contrast: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    quality: int | None = None

    def of(self, image: FloatImage, stretch: float = 1.0) -> FloatImage:
        """The image seen so; what comes in at the borders repeats them.

        Args:
            image: (height, width, 3) in [0, 1].
            stretch: width over height of what a pixel shows: an angle is one of the part, not of its squashed picture.

        Example:
            >>> image = np.zeros((2, 2, 3), np.float32)
            >>> image[0, 0] = 0.5
            >>> View(mirrored=True, exposure=0.8).of(image)[:, :, 0].tolist()
            [[0.0, 0.4000000059604645], [0.0, 0.0]]
        """
        height, width = image.shape[:2]
        across, down = (width - 1) / 2, (height - 1) / 2
        turn, size = math.radians(self.degrees), self.scale
        # Image coordinates run downwards; the turn is made where pixels are square.
        matrix = np.array(
            [
                [size * math.cos(turn), size * math.sin(turn) / stretch],
                [-size * math.sin(turn) * stretch, size * math.cos(turn)],
            ]
        ) @ np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        offset = np.array([across + self.shift[0] * width, down + self.shift[1] * height]) - matrix @ [across, down]
        seen: FloatImage = image
        if not np.allclose(np.column_stack([matrix, offset]), np.eye(2, 3)):
            seen = cv2.warpAffine(  # type: ignore[assignment]
                np.ascontiguousarray(image, dtype=np.float32),
                np.column_stack([matrix, offset]),
                (width, height),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        if self.blur:
            seen = cv2.GaussianBlur(seen, (0, 0), self.blur)  # type: ignore[assignment]
        mean = seen.mean()
        lit = ((seen - mean) * self.contrast + mean) * self.exposure
        if not (self.noise or self.quality) or not _is_smooth(image):
            return np.clip(lit, 0, 1, dtype=np.float32)
        noise = np.random.default_rng(self.noise_seed).normal(0, self.noise, lit.shape)
        noisy = np.clip(lit + noise, 0, 1, dtype=np.float32)
        return noisy if self.quality is None else _stored_as_jpeg(noisy, self.quality)


TURNED: Mapping[Turn, View] = MappingProxyType(
    {"mirrored": View(mirrored=True), "half": View(degrees=180.0), "quarter": View(degrees=90.0)}
)
"""A view that is turned and otherwise as it was, for each turn."""


def draw_view(rng: np.random.Generator, turns: Collection[Turn] = ()) -> View:
    """A view of another day.

    Args:
        turns: how the part may lie beside how it lies.

    Example:
        >>> view = draw_view(np.random.default_rng(0))
        >>> view.mirrored, abs(view.degrees) <= ANGLE
        (False, True)
    """
    (codec,) = rng.spawn(1)  # a stream beside the other, whose draws do not depend on it
    angle = float(rng.uniform(-ANGLE, ANGLE))
    if "quarter" in turns:
        angle += float(rng.uniform(0, 360))
    elif "half" in turns:
        angle += 180.0 * int(rng.integers(2))
    return View(
        mirrored="mirrored" in turns and bool(rng.integers(2)),
        degrees=angle,
        shift=(float(rng.uniform(-SHIFT, SHIFT)), float(rng.uniform(-SHIFT, SHIFT))),
        scale=_factor(rng, SCALE),
        exposure=_factor(rng, EXPOSURE),
        contrast=_factor(rng, CONTRAST),
        blur=float(rng.uniform(0, BLUR)) if rng.random() < BLURRED else 0.0,
        noise=float(codec.uniform(0, NOISE)) if codec.random() < NOISY else 0.0,
        noise_seed=int(codec.integers(2**32)),
        quality=int(codec.integers(QUALITY[0], QUALITY[1] + 1)) if codec.random() < NOISY else None,
    )


def _is_smooth(image: FloatImage) -> bool:
    """Whether most of an image is without noise."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    corners = [image[row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
    diagonal = np.abs(corners[0] - corners[1] - corners[2] + corners[3]) / 2
    return bool(np.median(diagonal) < SMOOTH)


def _stored_as_jpeg(image: FloatImage, quality: int) -> FloatImage:
    file = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file), np.float32) / np.float32(255)


def _factor(rng: np.random.Generator, most: float) -> float:
    """Between 1 / most and most, evenly by its logarithm."""
    return float(most ** rng.uniform(-1, 1))
