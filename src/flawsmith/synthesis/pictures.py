"""Picture files as a source of textures: drawn uniformly, decoded safely, brought to a size, the latest kept."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.synthesis.operations import Texture

Fit = Literal["crop", "squash"]

CACHE_BYTES = 64 * 2**20
"""Default memory for pictures in their final size, of one source in one process: 340 of 256×256."""


def fitted(image: Texture, size: tuple[int, int], fit: Fit) -> Texture:
    """A picture brought to a size, bilinearly and antialiased.

    Args:
        image: (height, width, 3) uint8.
        size: (height, width) wanted.
        fit: ``crop`` keeps the aspect, resizes until the size is covered (the longer side truncated) and cuts the
            middle out, as torchvision's ``Resize(int)`` and ``CenterCrop`` do; ``squash`` ignores the aspect.
    """
    have = image.shape[:2]
    box = (0.0, 0.0, float(have[1]), float(have[0]))
    if fit == "crop":
        # Exact in whole numbers: the axis that just covers its target keeps it, the other one is truncated.
        tall = size[0] * have[1] >= size[1] * have[0]
        numerator, denominator = (size[0], have[0]) if tall else (size[1], have[1])
        resized = [max(want, length * numerator // denominator) for want, length in zip(size, have, strict=True)]
        starts = [round((new - want) / 2.0) for new, want in zip(resized, size, strict=True)]
        pixels = [length / new for length, new in zip(have, resized, strict=True)]
        low = [start * pixel for start, pixel in zip(starts, pixels, strict=True)]
        high = [min(first + want * pixel, n) for first, want, pixel, n in zip(low, size, pixels, have, strict=True)]
        box = (low[1], low[0], high[1], high[0])
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, box))


class Pictures:
    """Image files, drawn uniformly, decoded and brought to a size; the latest stay in memory.

    Args:
        files: at least one; each is equally likely.
        value_range: values of a source deeper than 8 bits that become 0 and 255; None: 0 and 65535.
        cache_bytes: memory for pictures in their final size; what is drawn does not depend on it.
    """

    def __init__(self, files: tuple[Path, ...], value_range: tuple[float, float] | None, cache_bytes: int) -> None:
        self.files = files
        self.value_range = value_range
        self.cache_bytes = cache_bytes
        self._forget()

    def _forget(self) -> None:
        self._recent: OrderedDict[tuple[int, tuple[int, int], str], Texture] = OrderedDict()
        self._held = 0
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"files": self.files, "value_range": self.value_range, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def draw(self, size: tuple[int, int], rng: np.random.Generator, *, fit: Fit) -> Texture:
        """One picture, read-only; a damaged file is reported once, and another drawn in its place.

        Args:
            size: (height, width) in pixels.
            rng: source of all draws.
            fit: how the picture fills the size, see :func:`fitted`.

        Raises:
            FlawsmithError: not one file can be read.
        """
        number = int(rng.integers(len(self.files)))
        tried: set[int] = set()
        while (texture := self._texture(number, size, fit)) is None:
            tried.add(number)
            left = [other for other in range(len(self.files)) if other not in tried]
            if not left:
                raise FlawsmithError(
                    f"{self.files[0].parent}: none of {len(self.files)} images can be read; give other textures"
                )
            number = left[int(rng.integers(len(left)))]
        return texture

    def _texture(self, number: int, size: tuple[int, int], fit: Fit) -> Texture | None:
        """None for a damaged file."""
        key = number, size, fit
        with self._lock:
            if number in self._damaged:
                return None
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
        try:
            texture = fitted(as_8_bit(decode(self.files[number]), self.value_range), size, fit)
        except FlawsmithError as error:
            with self._lock:
                if number not in self._damaged:
                    warnings.warn(f"{error}; no texture is taken from it", stacklevel=3)
                self._damaged.add(number)
            return None
        # The cached array is handed out itself.
        texture.flags.writeable = False
        with self._lock:
            self._keep(key, texture)
        return texture

    def _keep(self, key: tuple[int, tuple[int, int], str], texture: Texture) -> None:
        if key in self._recent or texture.nbytes > self.cache_bytes:
            return
        self._recent[key] = texture
        self._held += texture.nbytes
        while self._held > self.cache_bytes:
            self._held -= self._recent.popitem(last=False)[1].nbytes
