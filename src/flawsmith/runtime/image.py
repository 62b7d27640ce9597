"""Reading images from files, bytes and arrays, safely and always the same way.

Everything Flawsmith does to an image before a network sees it lives here and in `flawsmith.runtime.geometry`:
training, evaluation and inspection share this one copy.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES, find_images, iter_images
from flawsmith.runtime.formats import read_image
from flawsmith.runtime.geometry import Geometry

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Geometry",
    "ImageArray",
    "as_8_bit",
    "decode",
    "find_images",
    "iter_images",
    "validate_array",
]

ImageArray = NDArray[np.uint8] | NDArray[np.uint16]
"""(height, width, 3) RGB."""

MAX_PIXELS = 400_000_000
"""Default size cap: a 16k line-scan camera's 24,000 lines still pass, and the array stays at 1.2 GB or less.
Services that read strangers' files should ask for less."""


def decode(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """Reads an image as RGB.

    Rules: the EXIF orientation is applied; of animated files the first frame counts; grey becomes three equal
    channels; transparency is dropped and the stored colours stay as they are (as OpenCV does: no background
    is invented); palette, 1-bit, CMYK, YCbCr and Lab images are converted. 16-bit grey and colour keep their
    depth; PGM and PPM files, and JPEG 2000 in grey, name their own full scale, which becomes 65535; 32-bit
    integers are taken when they fit 16 bits.

    What cannot be read exactly is refused by name: floating point (it has no full scale), 10 and 14 bits,
    sensors' raw values, several pictures in one TIFF, deep colour in a container that Pillow reads with 8 bits.
    Damage is found where the compressed data show it: by check sums, and in JPEGs by their length.

    Memory at the peak, for a pixel and beside the file itself: 8 bytes; progressive JPEGs 12, 16-bit grey and WebP
    17, 16-bit colour 20, JPEG 2000 23. A JPEG with fewer bytes than its pixels need, or of more than 40 scans,
    is refused.

    Args:
        source: path of the file, or its content.
        max_pixels: refuse larger images, judged by the header before any pixel is decoded.

    Returns:
        (height, width, 3) uint8, or uint16 for sources deeper than 8 bits; C-contiguous and writable.

    Raises:
        FlawsmithError: missing, unreadable, damaged, of an unsupported kind, too large or not an image; says which file
            and what to do.

    Example:
        >>> stream = io.BytesIO()
        >>> Image.new("L", (4, 2), 7).save(stream, "PNG")
        >>> image = decode(stream.getvalue())
        >>> image.shape, image.dtype.name, image[0, 0].tolist()
        ((2, 4, 3), 'uint8', [7, 7, 7])
    """
    if isinstance(source, bytes):
        return read_image(io.BytesIO(source), f"image data of {len(source)} bytes", max_pixels)
    path = Path(source)
    try:
        # Opening a named pipe would wait for ever, so the kind of file is asked for first.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FlawsmithError(f"{path}: is a folder where an image file is needed; name a file in it")
        if not stat.S_ISREG(mode):
            raise FlawsmithError(f"{path}: is not a regular file; name an image file")
        with path.open("rb") as stream:
            return read_image(stream, str(path), max_pixels)
    except FileNotFoundError:
        hint = "is a link to a missing file" if path.is_symlink() else "no such file"
        raise FlawsmithError(f"{path}: {hint}; check the path") from None
    except PermissionError:
        raise FlawsmithError(f"{path}: may not be read; check the file's permissions") from None
    except (OSError, ValueError) as error:
        raise FlawsmithError(f"{path}: cannot be opened ({error}); check the path") from None


def validate_array(image: Any, *, bgr: bool = False) -> ImageArray:
    """Checks an array given as an image and returns it as RGB.

    Args:
        image: (height, width, 3) or grey (height, width) or (height, width, 1), uint8 or uint16.
        bgr: the channels are in OpenCV's order, blue first.

    Returns:
        (height, width, 3) RGB of the same type, C-contiguous; the input itself where nothing had to change.

    Raises:
        FlawsmithError: another type or shape, or no pixels; says what was given and how to convert it.

    Example:
        >>> validate_array(np.zeros((2, 4), np.uint8)).shape
        (2, 4, 3)
    """
    if not isinstance(image, np.ndarray):
        raise FlawsmithError(
            f"image array: got {type(image).__name__}; give a path, bytes or a numpy array (height, width, 3)"
        )
    if image.dtype not in (np.uint8, np.uint16):
        fix = (
            "scale to 0..255 and convert with .astype(numpy.uint8)"
            if np.issubdtype(image.dtype, np.floating)
            else "convert with .astype(numpy.uint8)"
        )
        raise FlawsmithError(f"image array: values are {image.dtype}, needed are uint8 or uint16; {fix}")
    if image.size == 0:
        raise FlawsmithError(f"image array: has no pixels, shape {image.shape}; give (height, width, 3)")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        fix = "drop the alpha channel with image[:, :, :3]" if image.shape[-1] == 4 else "give (height, width, 3)"
        raise FlawsmithError(f"image array: shape is {image.shape}, needed is (height, width, 3); {fix}")
    return np.ascontiguousarray(image[:, :, ::-1] if bgr else image)


def as_8_bit(image: ImageArray, value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """An image in 8 bits; one that has them already is returned as it is.

    Args:
        image: (height, width, 3).
        value_range: values of a deeper source that become 0 and 255; None: 0 and 65535.

    Example:
        >>> as_8_bit(np.full((1, 1, 3), 4095, np.uint16), (0.0, 4095.0))[0, 0].tolist()
        [255, 255, 255]
    """
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    low, high = value_range or (0.0, 65535.0)
    scaled = (image.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
