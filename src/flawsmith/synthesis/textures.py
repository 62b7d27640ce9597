"""Where textures come from: a folder of pictures, the good images themselves, nothing at all, or a mixture.

A source answers ``draw(size, rng)``; the same generator gives the same texture in any process, whatever was drawn
before. Sources can be pickled, so that worker processes get one each.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import expanded, find_images
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.synthesis.augment import Texture
from flawsmith.synthesis.procedural import ProceduralTextures

Fit = Literal["crop", "squash"]

WORDS = ("procedural", "self")
"""Sources of textures that are no folder."""
DTD = "dtd"
DTD_PICTURES = 5640
"""Pictures of the Describable Textures Dataset, 120 of each class."""
_DTD_CLASSES = (
    "banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous flecked "
    "freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed paisley "
    "perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained stratified "
    "striped studded swirly veined waffled woven wrinkled zigzagged"
)

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


class ImagePool:
    """Image files, drawn uniformly, decoded and brought to a size; the latest stay in memory.

    Args:
        files: at least one; each is equally likely.
        fit: ``crop`` resizes until a texture is covered and cuts its middle out (GLASS), ``squash`` ignores the aspect
            (AAND).
        value_range: values of a source deeper than 8 bits that become 0 and 255; None: 0 and 65535.
        cache_bytes: memory for pictures in their final size; what is drawn does not depend on it.
    """

    def __init__(
        self, files: Iterable[str | Path], fit: Fit, value_range: tuple[float, float] | None, cache_bytes: int
    ) -> None:
        self.files = tuple(Path(file) for file in files)
        self.fit, self.value_range, self.cache_bytes = fit, value_range, cache_bytes
        self._forget()

    def _forget(self) -> None:
        self._recent: OrderedDict[tuple[int, tuple[int, int]], Texture] = OrderedDict()
        self._held = 0
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("files", "fit", "value_range", "cache_bytes")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Texture:
        """See :class:`TextureSource`; read-only; a damaged file is reported once, and another drawn in its place.

        Raises:
            FlawsmithError: not one file can be read.
        """
        number = int(rng.integers(len(self.files)))
        tried: set[int] = set()
        while (texture := self._texture(number, size)) is None:
            tried.add(number)
            left = [other for other in range(len(self.files)) if other not in tried]
            if not left:
                raise FlawsmithError(
                    f"{self.files[0].parent}: none of {len(self.files)} images can be read; give other textures"
                )
            number = left[int(rng.integers(len(left)))]
        return texture

    def _texture(self, number: int, size: tuple[int, int]) -> Texture | None:
        """None for a damaged file."""
        key = number, size
        with self._lock:
            if number in self._damaged:
                return None
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
        try:
            texture = fitted(as_8_bit(decode(self.files[number]), self.value_range), size, self.fit)
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

    def _keep(self, key: tuple[int, tuple[int, int]], texture: Texture) -> None:
        if key in self._recent or texture.nbytes > self.cache_bytes:
            return
        self._recent[key] = texture
        self._held += texture.nbytes
        while self._held > self.cache_bytes:
            self._held -= self._recent.popitem(last=False)[1].nbytes


class TextureSource(Protocol):
    """Anything that textures can be drawn from."""

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        """One texture before any operations.

        Args:
            size: (height, width) in pixels.
            rng: source of all draws.

        Returns:
            (height, width, 3) uint8 RGB of exactly this size.
        """
        ...


class FolderTextures(ImagePool):
    """The pictures below a folder, each equally likely: DTD's tree, or any other.

    Args:
        folder: where to look, with all its subfolders.
        fit, cache_bytes: as of :class:`ImagePool`.

    Raises:
        FlawsmithError: the folder is missing, or holds no images.

    Source:
        GLASS and AAND draw one file of DTD (Cimpoi et al., CVPR 2014) uniformly a sample, resized bilinearly.
    """

    def __init__(self, folder: str | Path, *, fit: Fit = "crop", cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(find_images(folder), fit, None, cache_bytes)
        if not self.files:
            raise FlawsmithError(f"{folder}: no images to take textures from; give a folder of pictures, such as DTD")


class SelfTextures(ImagePool):
    """Patches of the good images themselves, shuffled, turned by quarters and jittered: no outside pictures needed.

    Args:
        images: paths of good images; each is equally likely.
        value_range, cache_bytes: as of :class:`ImagePool`.

    Raises:
        FlawsmithError: no images.

    Source:
        The homologous textures of SLSG (Yang et al., 2023), which shuffle a grid of 4×8 cells; GLASS (ECCV 2024)
        names textures without outside data as future work. Here patches come from random places.
    """

    def __init__(
        self,
        images: Sequence[str | Path],
        *,
        value_range: tuple[float, float] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(images, "crop", value_range, cache_bytes)
        if not self.files:
            raise FlawsmithError("no good images to take textures from; give a folder of textures, or procedural")

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Texture:
        """See :class:`TextureSource` and :class:`ImagePool`."""
        # In the scale of the synthetic image, or a seam of 20 pixels would become one of 5.
        return jittered(shuffled_patches(super().draw(size, rng), rng), rng)


def texture_source(
    spec: str | Path | None = None,
    good: Sequence[str | Path] = (),
    *,
    fit: Fit = "crop",
    value_range: tuple[float, float] | None = None,
) -> TextureSource:
    """The source that a user names.

    Args:
        spec: ``procedural`` (also None), ``self``, or a folder; a folder of one of these names is written ``./self``.
        good: paths of good images, for ``self``.
        fit: how pictures of a folder fill a texture, see :class:`FolderTextures`.
        value_range: see :class:`SelfTextures`.

    Raises:
        FlawsmithError: no such folder, or nothing in it.

    Example:
        >>> type(texture_source()).__name__
        'ProceduralTextures'
    """
    if spec is None or spec == "procedural":
        return ProceduralTextures()
    if spec == "self":
        return SelfTextures(good, value_range=value_range)
    if not expanded(spec).exists():
        raise FlawsmithError(f"{spec}: no such folder of textures; give one, or self, or procedural")
    return FolderTextures(expanded(spec), fit=fit)


def pictures_of_dtd(folder: str | Path) -> int:
    """How many pictures a folder holds that lie and are named as DTD's do; 0 where it holds other ones too.

    Args:
        folder: DTD's, or a part of it.

    Raises:
        FlawsmithError: there is no such folder.
    """
    pictures, classes = find_images(expanded(folder)), _DTD_CLASSES.split()
    of_dtd = (each.parent.name in classes and each.name.startswith(f"{each.parent.name}_") for each in pictures)
    return len(pictures) if all(of_dtd) else 0


def holds_dtd(folder: str | Path) -> bool:
    """Whether a folder holds all pictures of DTD, and no others.

    Raises:
        FlawsmithError: there is no such folder.
    """
    return pictures_of_dtd(folder) == DTD_PICTURES


def shuffled_patches(source: Texture, rng: np.random.Generator) -> Texture:
    """Square patches from random places, each turned by a random quarter, side by side.

    Args:
        rng: source of all draws; the patches' side is a half, a quarter or an eighth of the shorter side.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = source.shape[:2]
    side = max(1, min(height, width) // int(rng.choice((2, 4, 8))))
    down, across = -(-height // side), -(-width // side)
    number = down * across
    top = rng.integers(height - side + 1, size=number)
    left = rng.integers(width - side + 1, size=number)
    span = np.arange(side)
    patches = source[(top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :]]
    turns = rng.integers(4, size=number)
    for quarter in range(1, 4):
        patches[turns == quarter] = np.rot90(patches[turns == quarter], quarter, axes=(1, 2))
    sheet = patches.reshape(down, across, side, side, 3).swapaxes(1, 2).reshape(down * side, across * side, 3)
    return np.ascontiguousarray(sheet[:height, :width])


def jittered(texture: Texture, rng: np.random.Generator) -> Texture:
    """Another contrast, brightness and a slight tint, so that patches of the same material become visible.

    Args:
        rng: source of all draws: contrast U(0.6, 1.4), brightness N(0, 30) and tint N(0, 8) grey levels.
    """
    gain = rng.uniform(0.6, 1.4)
    offset = rng.normal(0, 30) + rng.normal(0, 8, 3)
    mean = texture.mean(axis=(0, 1))
    tables = np.rint((np.arange(256)[:, None] - mean) * gain + mean + offset).clip(0, 255).astype(np.uint8)
    return np.stack([tables[:, channel][texture[:, :, channel]] for channel in range(3)], axis=2)
