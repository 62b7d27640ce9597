"""Reading images from files, bytes and arrays, safely and always the same way.

Everything Flawsmith does to an image before a network sees it lives here and in `flawsmith.runtime.geometry`:
training, evaluation and inspection share this one copy.
"""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES, find_images, iter_images
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

# The formats of IMAGE_SUFFIXES. A fixed list keeps Pillow's rarely used parsers away from strangers' bytes.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
_FULL_16_BIT = 65535
_ORIENTATION_TAG = 0x0112
# Pillow keeps colour at 8 bits: these raw modes read the upper byte of each 16-bit value. Read with the byte
# order turned round they give the lower byte, so two passes give all 16 bits.
_DEEP_COLOUR = {
    f"{channels};16{order}": f"{channels};16{turned}"
    for channels in ("RGB", "RGBX", "RGBA")
    for order, turned in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


_ARRAY_FIXES = {
    "b": "give black and white as 0 and 255: image.astype(numpy.uint8) * 255",
    "f": "scale to 0..255 and convert with .round().astype(numpy.uint8)",
}


def decode(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """Reads an image as RGB.

    Rules: the EXIF orientation is applied; of animated and multi-page files the first frame counts; grey
    becomes three equal channels; transparency is dropped and the stored colours stay as they are (as OpenCV
    does: no background is invented); palette, 1-bit, CMYK, YCbCr and Lab images are converted. 16-bit grey
    and colour keep their depth; 32-bit integers are taken when they fit 16 bits. Floating-point images have
    no full scale and are refused.

    Args:
        source: path of the file, or its content.
        max_pixels: refuse larger images, judged by the header before any pixel is decoded.

    Returns:
        (height, width, 3) uint8, or uint16 for sources deeper than 8 bits; C-contiguous and writable.

    Raises:
        FlawsmithError: missing, unreadable, truncated, too large or not an image; says which file and what to
            do.

    Example:
        >>> stream = io.BytesIO()
        >>> Image.new("L", (4, 2), 7).save(stream, "PNG")
        >>> image = decode(stream.getvalue())
        >>> image.shape, image.dtype.name, image[0, 0].tolist()
        ((2, 4, 3), 'uint8', [7, 7, 7])
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"image data of {len(source)} bytes", max_pixels)
    path = Path(source)
    try:
        # Opening a named pipe would wait for ever, so the kind of file is asked for first.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FlawsmithError(f"{path}: is a folder where an image file is needed; name a file in it")
        if not stat.S_ISREG(mode):
            raise FlawsmithError(f"{path}: is not a regular file; name an image file")
        with path.open("rb") as stream:
            return _decode(stream, str(path), max_pixels)
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
        image: (height, width, 3) or grey (height, width) or (height, width, 1), uint8 or uint16 of either byte order.
        bgr: the channels are in OpenCV's order, blue first.

    Returns:
        (height, width, 3) RGB, uint8 or uint16, C-contiguous; the input itself where nothing had to change.

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
    if image.dtype == np.dtype(np.uint16).newbyteorder():
        image = image.astype(np.uint16)
    if image.dtype not in (np.uint8, np.uint16):
        fix = _ARRAY_FIXES.get(image.dtype.kind, "give uint8, or uint16 where they exceed 255")
        raise FlawsmithError(f"image array: values are {image.dtype.name}; {fix}")
    if image.size == 0:
        raise FlawsmithError(f"image array: has no pixels, shape {image.shape}; give (height, width, 3)")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        return _as_rgb(image)
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


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> ImageArray:
    try:
        with _open(stream, name) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise FlawsmithError(
                    f"{name}: {width} x {height} pixels exceed the cap of {max_pixels}; scale the image down "
                    "or raise the cap"
                )
            if width * height == 0:
                raise FlawsmithError(f"{name}: the image has no pixels; copy or export it anew")
            raw_mode = _raw_mode(image)
            if raw_mode in _DEEP_COLOUR or raw_mode == "LA;16B":
                array: ImageArray = _deep_colour(image, stream, name, raw_mode)
            else:
                _load(image)
                array = _to_array(image, name)
            return np.ascontiguousarray(_turn(array, _orientation(image)))
    except FlawsmithError:
        raise
    except Image.DecompressionBombError as error:
        # The WebP reader asks Pillow's own limit (179 million pixels) before it makes its canvas.
        raise FlawsmithError(f"{name}: pixels exceed the cap ({error}); scale the image down") from None
    except MemoryError:
        raise FlawsmithError(f"{name}: too large for the free memory; scale the image down") from None
    except Exception as error:
        # Pillow's parsers answer malformed bytes with nearly every exception there is (SyntaxError,
        # struct.error, IndexError, ...); all of them mean the same to the user.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FlawsmithError(f"{name}: damaged or truncated image ({reason}); copy or export it anew") from None


def _open(stream: BinaryIO, name: str) -> Image.Image:
    """Opens the header.

    ``Image.open`` is not used because its own bomb check warns or raises at a process-wide limit; the cap
    here is the caller's and concerns this call alone.
    """
    prefix = stream.read(16)
    if not prefix:
        raise FlawsmithError(f"{name}: the file is empty; copy or export it anew")
    Image.init()
    for kind in _FORMATS:
        if kind not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[kind]
        if accept is not None and accept(prefix) is not True:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except SyntaxError as error:
            raise OSError(str(error)) from None
    raise FlawsmithError(f"{name}: not an image of a known format; save it as PNG, JPEG, BMP, TIFF, WebP, GIF or PNM")


def _load(image: Image.Image) -> None:
    """Decodes the pixels of an image whose size was found to be within the cap."""
    stored_size = getattr(image, "_tile_size", None)
    if stored_size is not None:
        # Pillow's TIFF reader checks against the process-wide limit where it makes the canvas itself; given
        # one, it does not.
        image.im = Image.new(image.mode, stored_size).im
    image.load()


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its values, in Pillow's words such as ``RGB;16B``."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else ""


def _read_as(image: Image.Image, raw_mode: str) -> NDArray[np.uint8]:
    """(height, width, bands) of a fresh image, its stored bytes taken as another raw mode of the same
    width."""
    tiles = []
    for codec, extents, offset, arguments in image.tile:  # type: ignore[attr-defined]
        changed = (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode
        tiles.append(type(image.tile[0])(codec, extents, offset, changed))  # type: ignore[attr-defined]
    image.tile = tiles  # type: ignore[attr-defined]
    _load(image)
    return np.asarray(image)


def _deep_colour(image: Image.Image, stream: BinaryIO, name: str, raw_mode: str) -> NDArray[np.uint16]:
    """(height, width, 3) of a 16-bit colour image, or of 16-bit grey with transparency (``LA;16B``)."""
    if raw_mode == "LA;16B":
        # The four bytes of a pixel, read as RGBA: upper and lower byte of grey, then those of the alpha.
        grey = _read_as(image, "RGBA").astype(np.uint16)
        return _as_rgb(grey[:, :, 0] << 8 | grey[:, :, 1])
    upper = _read_as(image, raw_mode)[:, :, :3].astype(np.uint16)
    stream.seek(0)
    with _open(stream, name) as again:
        lower = _read_as(again, _DEEP_COLOUR[raw_mode])[:, :, :3]
    return (upper << 8 | lower).astype(np.uint16, copy=False)


def _to_array(image: Image.Image, name: str) -> ImageArray:
    """(height, width, 3) RGB of a loaded image."""
    if image.mode == "F":
        raise FlawsmithError(
            f"{name}: floating-point pixels have no fixed full scale; save the image with 8 or 16 bits"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.dtype.kind == "i" and (grey.min() < 0 or grey.max() > _FULL_16_BIT):
            raise FlawsmithError(f"{name}: 32-bit values outside 0..{_FULL_16_BIT}; save the image with 8 or 16 bits")
        return _as_rgb(grey.astype(np.uint16))
    # Pillow warns when it drops transparency; dropping it is the rule here.
    image.info.pop("transparency", None)
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _as_rgb(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels, which were read whole.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Applies an EXIF orientation (1 to 8) to (height, width, 3)."""
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    # After the transposition of 5 to 8, these flips complete the eight cases of the EXIF standard.
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
