"""Image files, format by format: what is read exactly, what is refused, and by what name.

Pillow decodes. This module asks first whether Pillow can give the values that the file holds, and afterwards whether
the file held all of them: a file that is whole but of a kind that cannot be read is named for what it is, and one that
is damaged is not taken for whole.
"""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, _imaging
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from flawsmith.runtime.errors import FlawsmithError

# A fixed list keeps Pillow's rarely used parsers away from strangers' bytes.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
_FULL_16_BIT = 65535
_ORIENTATION_TAG = 0x0112
_STRIP_PIXELS = 2**17
"""Pixels that are copied out of Pillow's memory at a time."""
# Pillow keeps colour at 8 bits: these raw modes read the upper byte of each 16-bit value. Read with the byte
# order turned round they give the lower byte, so two passes give all 16 bits.
_DEEP_COLOUR = {
    f"{channels};16{order}": f"{channels};16{turned}"
    for channels in ("RGB", "RGBX", "RGBA")
    for order, turned in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def read_image(stream: BinaryIO, name: str, max_pixels: int) -> NDArray[Any]:
    """Reads the image of an open file by the rules of `flawsmith.runtime.image.decode`.

    Args:
        stream: a seekable file, at its beginning.
        name: what messages call it.
        max_pixels: refuse larger images.

    Returns:
        (height, width, 3) RGB, uint8 or uint16, C-contiguous and writable.

    Raises:
        FlawsmithError: it cannot be read, or not exactly; one line that begins with the name.
    """
    try:
        file = _recognised(stream, name, max_pixels)
        return _READERS.get(file.kind, _read_plain)(file)
    except FlawsmithError:
        raise
    except _UnsupportedError as error:
        raise FlawsmithError(f"{name}: a kind of {error.kind} that cannot be read ({error}); {error.fix}") from None
    except Image.DecompressionBombError as error:
        # The WebP reader asks Pillow's own limit (179 million pixels) before it makes its canvas.
        raise FlawsmithError(f"{name}: pixels exceed the cap ({error}); scale the image down") from None
    except MemoryError:
        raise FlawsmithError(f"{name}: too large for the free memory; scale the image down") from None
    except Exception as error:
        # Pillow's parsers answer malformed bytes with nearly every exception there is (SyntaxError,
        # struct.error, IndexError, ...); all of them mean the same to the user.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if re.search("unsupported|not supported", reason, re.IGNORECASE):
            raise FlawsmithError(f"{name}: of a kind that cannot be read ({reason}); save it as PNG or JPEG") from None
        raise FlawsmithError(f"{name}: damaged or truncated image ({reason}); copy or export it anew") from None


def read_pillow(image: Image.Image, max_pixels: int) -> NDArray[Any]:
    """Reads an image that Pillow has opened or made, by the rules of `flawsmith.runtime.image.decode`.

    It has the depth that Pillow gives it: 8 bits for colour. It stays as it is.

    Args:
        image: of any mode that `decode` reads.
        max_pixels: refuse larger images.

    Returns:
        (height, width, 3) RGB, uint8 or uint16, C-contiguous and writable.

    Raises:
        FlawsmithError: no pixels or too many, floating point, or a file that cannot be read.

    Example:
        >>> read_pillow(Image.new("L", (4, 2), 7), 100)[0, 0].tolist()
        [7, 7, 7]
    """
    name = "Pillow image"
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise FlawsmithError(f"{name}: {width} x {height} pixels, needed are 1 to {max_pixels:,}; scale it")
    try:
        image.load()
        # Reading drops what is said of transparency.
        plain = image.copy() if "transparency" in image.info else image
        return _turned(_to_array(plain, name), image)
    except (OSError, ValueError, SyntaxError) as error:
        raise FlawsmithError(f"{name}: cannot be read ({error}); open the file anew") from None


def open_image(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The header of an open file, by whose attributes a caller may ask for more than pixels.

    Pillow's own way warns of large images. To silence it would take `warnings.catch_warnings`, which is not for
    threads: two at a time can leave all warnings of the process silenced.

    Args:
        stream: a seekable file, at its beginning.
        name: what messages call it.
        max_pixels: refuse larger images.

    Raises:
        FlawsmithError: empty, of an unknown format, or larger.
        Exception: nearly any of Pillow's, for a damaged header.

    Example:
        >>> stream = io.BytesIO()
        >>> Image.new("L", (4, 2)).save(stream, "PNG")
        >>> _ = stream.seek(0)
        >>> image = open_image(stream, "a.png", 100)
        >>> image.format, image.size
        ('PNG', (4, 2))
    """
    return _recognised(stream, name, max_pixels).open()


def holds_further_pictures(image: Image.Image) -> bool:
    """Whether a file holds more pictures than the first, which alone is decoded.

    These are the frames of an animation (GIF, WebP, PNG), and what cameras and phones put behind the first picture of a
    JPEG. Thumbnails do not count, nor do maps of brightness: pictures of a quarter of the first one's pixels or less.

    Args:
        image: a fresh one of `open_image`.

    Example:
        >>> stream = io.BytesIO()
        >>> frames = [Image.new("L", (4, 2), value) for value in (0, 9)]
        >>> frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
        >>> _ = stream.seek(0)
        >>> holds_further_pictures(open_image(stream, "a.gif", 100))
        True
    """
    try:
        if image.format == "JPEG":
            return "mp" in image.info and _holds_pictures_behind(image)
        return image.format in ("GIF", "WEBP", "PNG") and bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow answers odd bytes with nearly every exception there is; the first picture is whole
        return False


_ENTRIES = 0xB002
"""Tag of the pictures of a JPEG in the format for several (CIPA DC-007): attributes, size and place, 16 bytes each."""
_MAX_ENTRIES, _HEADER_BYTES = 100, 2**18
"""A file can name more pictures than it holds, and all of it as each of them."""


def _holds_pictures_behind(image: Image.Image) -> bool:
    index = image.info["mp"]
    directory = ImageFileDirectory_v2(index[:8])
    stream = io.BytesIO(index)
    stream.seek(directory.next)
    directory.load(stream)
    entries = directory[_ENTRIES]
    order = ">" if index[:2] == b"MM" else "<"
    width, height = image.size
    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    for start in range(16, 16 * min(len(entries) // 16, _MAX_ENTRIES), 16):
        size, place = struct.unpack_from(f"{order}II", entries, start + 4)
        file.seek(image.info["mpoffset"] + place)
        try:
            behind = JpegImageFile(io.BytesIO(file.read(min(size, _HEADER_BYTES))), "")
        except SyntaxError:
            continue  # named, but cut off, as by programs that know of the first alone
        if _is_no_thumbnail(behind.size[0] * behind.size[1], width * height):
            return True
    return False


def _is_no_thumbnail(pixels: int, pixels_of_first: int) -> bool:
    return 4 * pixels > pixels_of_first


def _recognised(stream: BinaryIO, name: str, max_pixels: int) -> _File:
    _prepare_pillow()
    prefix = stream.read(132)
    if not prefix:
        raise FlawsmithError(f"{name}: the file is empty; copy or export it anew")
    kind = _format_of(prefix, name)
    stream.seek(0)
    return _File(stream, name, max_pixels, kind)


class _UnsupportedError(Exception):
    """The file is whole, but its values cannot be had."""

    def __init__(self, kind: str, fault: str, fix: str = "save it with 8 or 16 bits") -> None:
        super().__init__(fault)
        self.kind, self.fix = kind, fix


class _File(NamedTuple):
    """An open file on its way to an array."""

    stream: BinaryIO
    name: str
    max_pixels: int
    kind: str

    def open(self, stream: BinaryIO | None = None) -> Image.Image:
        """Reads the header.

        ``Image.open`` is not used because its own bomb check warns or raises at a process-wide limit; the cap
        here is the caller's and concerns this call alone.

        Raises:
            FlawsmithError: too many pixels, or none.
            OSError: not a header of this format.
        """
        # Of the pictures that some cameras put behind the first in one JPEG file, Pillow's own opener makes frames.
        factory = JpegImageFile if self.kind == "JPEG" else Image.OPEN[self.kind][0]
        try:
            image = factory(stream or self.stream, "")
        except SyntaxError as error:
            raise OSError(str(error)) from None
        width, height = image.size
        if width * height > self.max_pixels:
            raise FlawsmithError(
                f"{self.name}: {width} x {height} pixels exceed the cap of {self.max_pixels}; scale the image down "
                "or raise the cap"
            )
        if width * height == 0:
            raise FlawsmithError(f"{self.name}: the image has no pixels; copy or export it anew")
        return image


_POINTER = "a pointer of Git LFS"
_NO_IMAGES = ("a web page", "a PDF document", "a ZIP archive", "a film", "an array of NumPy's")
_OTHER_CONTENTS = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
    (4, b"ftypcrx ", "camera raw"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (4, b"ftyp", "a film"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "Photoshop"),
    (0, b"DDS ", "DDS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"P7\n", "PAM"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\x01\xda", "SGI"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x89HDF", "HDF5"),
    (128, b"DICM", "DICOM"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x93NUMPY", "an array of NumPy's"),
    *((0, mark, "a web page") for mark in (b"<!DOCTYPE html", b"<!doctype html", b"<html", b"<HTML")),
    *((0, mark, "SVG") for mark in (b"<svg", b"<?xml")),
    (0, b"version https://git-lfs", _POINTER),
)
"""Where and how files begin that bear the name of an image now and then, and what they are."""


def _format_of(prefix: bytes, name: str) -> str:
    Image.init()
    for kind in _FORMATS:
        if kind in Image.OPEN:
            accept = Image.OPEN[kind][1]
            if accept is None or accept(prefix) is True:
                return kind
    content = next((content for start, mark, content in _OTHER_CONTENTS if prefix.startswith(mark, start)), "")
    if content == _POINTER:
        raise FlawsmithError(f"{name}: holds {content} in place of the image; fetch it with `git lfs pull`")
    fault = (
        f"not an image but {content}" if content in _NO_IMAGES else f"an image of a format that is not read ({content})"
    )
    fault = fault if content else "not an image of a known format"
    raise FlawsmithError(f"{name}: {fault}; save it as PNG, JPEG, BMP, TIFF, WebP, GIF or PNM")


@functools.cache
def _prepare_pillow() -> None:
    """Bounds directories of tags, and silences libraries: libtiff writes about damaged files to stderr, in this
    process's name, and so does Pillow's logger where nobody listens; what matters of it is raised."""
    ImageFileDirectory_v2.load = bounded_directory(ImageFileDirectory_v2.load)  # type: ignore[assignment, method-assign]
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    try:
        library = ctypes.CDLL(_imaging.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype = ctypes.c_void_p
            setter.argtypes = [ctypes.c_void_p]
            setter(None)
    except (OSError, AttributeError, TypeError):
        pass  # linked in without its names, as on Windows


_MAX_TAGS = 2**16
_VALUE_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 0])
"""Bytes of a tag's value, by the number of its type; the last are of types that Pillow does not read."""


def bounded_directory(load: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Pillow's reading of a directory of tags (TIFF, EXIF) with a bound.

    A tag names the place and the number of its values, and each of thousands of tags can name all of the file: before
    version 13 of Pillow half a megabyte took gigabytes, since then it warns of every tag.

    Args:
        load: ``ImageFileDirectory_v2.load``.

    Returns:
        The same, which raises ValueError where the tags name more bytes than the file has.
    """

    @functools.wraps(load)
    def bounded(directory: Any, stream: BinaryIO) -> None:
        start, length = stream.tell(), stream.seek(0, io.SEEK_END)
        stream.seek(start)
        tags = _directory(stream, directory._endian, wide=directory._bigtiff)
        sizes = tags["count"].astype(np.float64) * _VALUE_BYTES[np.minimum(tags["kind"], len(_VALUE_BYTES) - 1)]
        if sizes[sizes > tags["value"].itemsize].sum() > length:
            raise ValueError("its tags name more bytes than the file has")
        stream.seek(start)
        load(directory, stream)

    return bounded


def _directory(stream: BinaryIO, order: str, *, wide: bool) -> NDArray[Any]:
    """The tags of the directory at which a file stands, as many as are there: numbers, types, counts and values."""
    number, place = ("Q", "u8") if wide else ("H", "u4")
    fields = [("tag", "u2"), ("kind", "u2"), ("count", place), ("value", place)]
    entry = np.dtype([(name, order + form) for name, form in fields])
    (count,) = struct.unpack(order + number, stream.read(8 if wide else 2).ljust(8 if wide else 2, b"\0"))
    content = stream.read(min(count, _MAX_TAGS) * entry.itemsize)
    return np.frombuffer(content, entry, len(content) // entry.itemsize)


def _read_plain(file: _File) -> NDArray[Any]:
    with file.open() as image:
        _load(image)
        return _turned(_to_array(image, file.name), image)


def _load(image: Image.Image) -> None:
    """Decodes the pixels of an image whose size was found to be within the cap."""
    stored_size = getattr(image, "_tile_size", None)
    if stored_size is not None:
        # Pillow's TIFF reader checks against the process-wide limit where it makes the canvas itself; given
        # one, it does not.
        image.im = Image.new(image.mode, stored_size).im
    image.load()


# PNG


def _read_png(file: _File) -> NDArray[Any]:
    try:
        return _read_deep(file)
    except ValueError as error:
        if not re.search("too (large|much)", str(error), re.IGNORECASE):
            raise
    # Pillow gives up at text of more than a megabyte, which nobody asked for.
    file.stream.seek(0)
    return _read_deep(file._replace(stream=io.BytesIO(_png_of_pixels_alone(file.stream.read()))))


def _png_of_pixels_alone(content: bytes) -> bytes:
    """The file without text, profiles and the like."""
    parts, position = [content[:8]], 8
    while position + 8 <= len(content):
        length, chunk = struct.unpack_from(">I4s", content, position)
        end = position + length + 12
        if chunk in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"):
            parts.append(content[position:end])
        position = end
    return b"".join(parts)


def _read_deep(file: _File) -> NDArray[Any]:
    """An image that may be 16 bits deep in colour, in a raw mode that names the order of its bytes."""
    with file.open() as image:
        raw_mode = _raw_mode(image)
        if raw_mode in _DEEP_COLOUR or raw_mode == "LA;16B":
            array: NDArray[Any] = _deep_colour(image, file, raw_mode)
        else:
            _load(image)
            array = _to_array(image, file.name)
        return _turned(array, image)


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
    for tile in image.tile:  # type: ignore[attr-defined]
        codec, extents, offset, arguments = tile
        changed = (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode
        # Plain tuples in older versions of Pillow, named ones in newer.
        tiles.append(tile._replace(args=changed) if hasattr(tile, "_replace") else (codec, extents, offset, changed))
    image.tile = tiles  # type: ignore[attr-defined]
    _load(image)
    return np.asarray(image)


def _deep_colour(image: Image.Image, file: _File, raw_mode: str) -> NDArray[np.uint16]:
    """(height, width, 3) of a 16-bit colour image, or of 16-bit grey with transparency (``LA;16B``)."""
    if raw_mode == "LA;16B":
        # The four bytes of a pixel, read as RGBA: upper and lower byte of grey, then those of the alpha.
        grey = _read_as(image, "RGBA").astype(np.uint16)
        return _as_rgb(grey[:, :, 0] << 8 | grey[:, :, 1])
    upper = _read_as(image, raw_mode)[:, :, :3].astype(np.uint16)
    file.stream.seek(0)
    with file.open() as again:
        lower = _read_as(again, _DEEP_COLOUR[raw_mode])[:, :, :3]
    upper <<= 8
    upper |= lower
    return upper


# BMP


def _read_bmp(file: _File) -> NDArray[Any]:
    """A palette of greys alone makes Pillow take indices for the values, in 8 bits each, or 1 where there are two."""
    header = file.stream.read(30)
    bits = int.from_bytes(header[24:26] if header[14] == 12 else header[28:30], "little")
    file.stream.seek(0)
    with file.open() as image:
        if _raw_mode(image) == "1" and bits == 8:
            return _turned(_as_rgb(_read_as(image, "1;8").astype(np.uint8) * 255), image)
        if _raw_mode(image) in ("1", "L") and bits == 4:
            raise _UnsupportedError("BMP", "4 bits a value with a palette of dark greys", "save it as PNG")
        _load(image)
        return _turned(_to_array(image, file.name), image)


# PNM


def _read_pnm(file: _File) -> NDArray[Any]:
    with file.open() as image:
        codec, _, offset, arguments = image.tile[0]
        if codec == "ppm":
            # Pillow scales these value by value, in Python, and colour down to 8 bits.
            return _scaled_pnm(image, file.stream, offset, arguments[1])
        if codec == "ppm_plain" and image.mode == "RGB" and arguments[1] > 255:
            fix = "save it as PNG, or as binary PPM (P6)"
            raise _UnsupportedError("PPM", f"colour in words with values up to {arguments[1]}", fix)
        _load(image)
        return _to_array(image, file.name)


def _scaled_pnm(image: Image.Image, stream: BinaryIO, offset: int, full_scale: int) -> NDArray[Any]:
    """(height, width, 3) of a binary PGM or PPM that names its own full scale; 16 bits where that exceeds 255."""
    width, height = image.size
    channels = 3 if image.mode == "RGB" else 1
    stored = np.dtype(np.uint8 if full_scale <= 255 else ">u2")
    stream.seek(offset)
    content = stream.read(width * height * channels * stored.itemsize)
    values = np.frombuffer(content, stored)
    if values.size < width * height * channels:
        raise OSError(f"{len(content)} bytes of pixels")
    full = 255 if full_scale <= 255 else _FULL_16_BIT
    table = np.minimum(np.rint(np.arange(256 if full == 255 else 65536) / full_scale * full), full)
    scaled = table.astype(np.uint8 if full == 255 else np.uint16)[values].reshape(height, width, channels)
    return scaled if channels == 3 else _as_rgb(scaled[:, :, 0])


# TIFF

_THUMBNAIL, _MASK = 1, 4
_SUB_PAGES = 330
_COMPRESSIONS = {
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of a camera",
    22610: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_OPTIONAL_COMPRESSIONS = {
    6: "JPEG of the old kind",
    32809: "ThunderScan",
    34676: "SGI Log",
    34677: "SGI Log",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
}
_COLOUR_FILTERS, _LINEAR_RAW = 32803, 34892
_FAX = (2, 3, 4)
_UNPACKED = {1: 1, 5: 2**12, 7: 2**11, 8: 1040, 32946: 1040, 32773: 64}
"""Bytes of pixels that a byte of a file gives at most, by compression."""
_DEFLATE = (8, 32946)
_PIECE = 2**18
_MAX_PAGES = 1000


def _read_tiff(file: _File) -> NDArray[Any]:
    if file.stream.read(4) == b"MM\0\x2b":
        raise _UnsupportedError("TIFF", "BigTIFF in big-endian order", "save it as PNG, or as an ordinary TIFF")
    tags = _tags_of_first(file.stream)
    _check_numbers(tags)
    _refuse_pages(list(_tiff_pages(file.stream)), file.name)
    kind_and_fix = _unreadable_tiff(tags)
    if kind_and_fix is not None:
        raise _UnsupportedError("TIFF", *kind_and_fix)
    _check_length(tags, file.stream)
    if tags.get(259) in _DEFLATE:
        _check_sums(tags, file.stream)
    file.stream.seek(0)
    if _is_separate_16_bit(tags):
        with file.open() as image:
            return _turned(_separate_planes(file.stream, tags), image)
    try:
        array = _read_deep(file)
    except OSError as error:
        if "unknown pixel mode" in str(error) and tags:
            combination = f"an unusual combination: {_combination(tags)}"
            raise _UnsupportedError("TIFF", combination, "save it as PNG, or as an ordinary TIFF") from None
        if tags.get(259) not in _OPTIONAL_COMPRESSIONS:
            raise
        compressed = f"compressed as {_OPTIONAL_COMPRESSIONS[tags[259]]}, which Pillow may lack here, or damaged"
        raise _UnsupportedError("TIFF", compressed, "save it with LZW, Deflate or no compression") from None
    if tags.get(262) == 0 and array.dtype == np.uint16:
        # White is zero, which Pillow heeds up to 8 bits alone.
        np.subtract(_FULL_16_BIT, array, out=array)
    return array


def _check_numbers(tags: dict[int, Any]) -> None:
    """Refuses text and fractions where the format has whole numbers: what follows reckons with them, and names them.

    Raises:
        OSError: a tag holds something else.
    """
    for number in _WHOLE_NUMBERS & tags.keys():
        if not all(isinstance(value, int) for value in _all_of(tags, number, ())):
            raise OSError(f"its tag {number} holds no whole numbers")


def _check_length(tags: dict[int, Any], stream: BinaryIO) -> None:
    """Holds what the file says about its pixels against its bytes, before any memory is taken for them.

    Raises:
        OSError: they cannot be all of them.
    """
    width, height = _as_integer(tags.get(256)), _as_integer(tags.get(257))
    compression = tags.get(259, 1)
    most = width if compression in _FAX else _UNPACKED.get(compression)  # a fax takes a bit for a row
    bits = min(_all_of(tags, 258, (1,))) * _as_integer(tags.get(277, 1))
    if most is not None and width * height * bits > 8 * most * stream.seek(0, io.SEEK_END):
        raise OSError(f"too few bytes for {width} x {height} pixels")


def _check_sums(tags: dict[int, Any], stream: BinaryIO) -> None:
    """Reads the check sums behind strips or tiles: libtiff stops before them, once it has all pixels.

    Raises:
        OSError: one is not that of its data.
    """
    offsets, counts = (_all_of(tags, strip, ()) or _all_of(tags, tile, ()) for strip, tile in ((273, 324), (279, 325)))
    # No more than the pixels take: a file may hold anything behind them.
    left = 2 * _as_integer(tags.get(256)) * _as_integer(tags.get(257)) * sum(_all_of(tags, 258, (1,))) // 8 + _PIECE
    for offset, count in zip(offsets, counts, strict=False):
        stream.seek(offset)
        unpacker, remaining = zlib.decompressobj(), count
        while left > 0 and not unpacker.eof:
            packed = unpacker.unconsumed_tail or stream.read(min(remaining, _PIECE))
            if not packed:
                break
            remaining -= 0 if unpacker.unconsumed_tail else len(packed)
            try:
                left -= len(unpacker.decompress(packed, _PIECE))
            except zlib.error as error:
                raise OSError(str(error).rpartition(": ")[2]) from None


def _combination(tags: dict[int, Any]) -> str:
    bits = ", ".join(map(str, dict.fromkeys(_all_of(tags, 258, (1,)))))
    return f"{bits} bits, colours of kind {tags.get(262)}, order of bits {tags.get(266, 1)}"


class _Page(NamedTuple):
    """What a page of a TIFF says of its place in the file: what it is, its pixels, and whether others are below it."""

    kind: int
    pixels: int
    has_sub_pages: bool


def _tiff_pages(stream: BinaryIO) -> Iterator[_Page]:
    """The pages, up to where the file is damaged. Pillow would read all values of every page, which can be one."""
    stream.seek(0)
    header = stream.read(16)
    order, wide = "<" if header[:2] == b"II" else ">", header[2:4] == b"\x2b\0"
    link = struct.Struct(order + ("Q" if wide else "L"))
    place = 8 if wide else 4
    (following,) = link.unpack(header[place : place + link.size].ljust(link.size, b"\0"))
    seen: set[int] = set()
    while following and following not in seen and len(seen) < _MAX_PAGES:
        seen.add(following)
        try:
            stream.seek(following)
            tags = _directory(stream, order, wide=wide)
            (following,) = link.unpack(stream.read(link.size))
        except (OSError, OverflowError, ValueError, struct.error):
            return  # Pillow will say what is wrong, where it is the first page
        kind, width, height = (_number_of(tags, number, order) for number in (254, 256, 257))
        yield _Page(kind, width * height, _SUB_PAGES in tags["tag"])


def _number_of(tags: NDArray[Any], number: int, order: str) -> int:
    """The value of a tag that holds one number; 0 where there is none such."""
    of_tag = tags[(tags["tag"] == number) & (tags["count"] == 1) & np.isin(tags["kind"], (3, 4, 16))]
    if not of_tag.size:
        return 0
    # It stands to the left in the bytes of the value.
    content, length = of_tag["value"][:1].tobytes(), int(_VALUE_BYTES[of_tag["kind"][0]])
    return int.from_bytes(content[:length], "little" if order == "<" else "big")


def _tags_of_first(stream: BinaryIO) -> dict[int, Any]:
    """Tags of the first page, by number; none where it is damaged."""
    stream.seek(0)
    try:
        header = stream.read(8)
        directory = ImageFileDirectory_v2(header + stream.read(8) if header[2:4] == b"\x2b\0" else header)
        stream.seek(directory.next)
        directory.load(stream)
        return {number: directory[number] for number in _WHOLE_NUMBERS if number in directory}
    except Exception:
        return {}  # Pillow will say what is wrong


def _refuse_pages(pages: Sequence[_Page], name: str) -> None:
    """One picture a file: of several pages all but the first would go without a word.

    Raises:
        FlawsmithError: other pages that are no masks, nor thumbnails by name or by size, or the first page is one.
    """
    if not pages:
        return
    first, *others = pages
    if first.kind & _THUMBNAIL and (others or first.has_sub_pages):
        raise FlawsmithError(f"{name}: its first page is a thumbnail of another; save the picture alone")
    pictures = 1 + sum(
        _is_no_thumbnail(page.pixels, first.pixels) and not page.kind & (_THUMBNAIL | _MASK) for page in others
    )
    if pictures > 1:
        raise FlawsmithError(
            f"{name}: holds {pictures} pages, and only one image a file is read; save every page as a file of its own"
        )


def _as_integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _all_of(tags: dict[int, Any], number: int, default: tuple[int, ...]) -> tuple[Any, ...]:
    value = tags.get(number, default)
    return value if isinstance(value, tuple) else (value,)


_WHOLE_NUMBERS = {254, *range(256, 260), 262, 266, 273, *range(277, 280), 284, 322, 323, 324, 325, 338, 339, 530}
"""Tags that are read here, from the size to the places of the pixels."""

_PLANES_OF_8_BITS = ((2, 3, ()), (2, 4, (2,)), (5, 4, ()))
"""Colours, channels and meaning of further ones that Pillow puts together rightly from planes."""


def _unreadable_tiff(tags: dict[int, Any]) -> tuple[str, ...] | None:
    """Why Pillow cannot read a TIFF, or reads it otherwise than it is meant, and how to fix that; None: it can."""
    compression, photometric = tags.get(259, 1), tags.get(262, 0)
    bits, formats = _all_of(tags, 258, (1,)), _all_of(tags, 339, (1,))
    channels = _as_integer(tags.get(277, 1))
    extra = _all_of(tags, 338, ())
    if compression in _COMPRESSIONS:
        return f"compressed as {_COMPRESSIONS[compression]}", "save it with LZW, Deflate or no compression"
    if compression not in COMPRESSION_INFO:
        return f"compressed by method {compression}", "save it with LZW, Deflate or no compression"
    if photometric in (_COLOUR_FILTERS, _LINEAR_RAW):
        return "raw values of a colour sensor (Bayer)", "convert it to colour or grey, with 8 or 16 bits"
    if max(formats) in (3, 5, 6):
        if max(bits) == 32 and channels == 1:
            return None  # the decoder has its own words for it
        return f"{max(bits)}-bit floating point", "save it with 8 or 16 bits"
    if len(set(bits)) > 1:
        return (f"channels of {', '.join(map(str, bits))} bits",)
    if bits[0] not in (1, 2, 4, 8, 12, 16, 32) or (bits[0] in (12, 32) and channels > 1):
        return (f"{bits[0]} bits a value",)
    if 2 in formats and bits[0] == 8:
        return "signed 8-bit values", "save it with unsigned values"
    expected = {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    if (channels > 4 and channels - expected > 3) or (expected == 1 and channels > 2):
        return f"{channels} channels", "save it as grey or RGB"
    if photometric == 6 and compression == 1 and tags.get(530, (2, 2)) != (1, 1):
        return "YCbCr with fewer colour values than pixels, not compressed", "save it as RGB"
    if (
        tags.get(284, 1) == 2
        and channels > 1
        and bits[0] == 8
        and (photometric, channels, extra) not in _PLANES_OF_8_BITS
    ):
        return "separate planes that are not red, green and blue alone", "save it interleaved, as RGB"
    if bits[0] == 16 and channels > 1:
        return _unreadable_16_bit_colour(tags, photometric, channels, extra)
    return None


def _unreadable_16_bit_colour(
    tags: dict[int, Any], photometric: int, channels: int, extra: tuple[Any, ...]
) -> tuple[str, str] | None:
    if photometric in (0, 1, 3):
        return "16-bit grey with a second channel", "save it without transparency"
    if photometric != 2:
        return "16 bits in other colours than RGB", "save it as RGB"
    if channels not in (3, 4):
        return f"16-bit colour of {channels} channels", "save it as RGB"
    if tags.get(284, 1) == 2 and not _is_separate_16_bit(tags):
        return "16-bit colour stored in separate planes, compressed or in tiles", "save it interleaved"
    if 1 in extra:
        return "16-bit colour that is multiplied with its transparency", "save it without transparency"
    return None


def _is_separate_16_bit(tags: dict[int, Any]) -> bool:
    """Whether 16-bit colour lies plane by plane in plain strips, which Pillow takes for 8-bit planes."""
    return (
        set(_all_of(tags, 258, ())) == {16}
        and (tags.get(284), tags.get(262), tags.get(259, 1)) == (2, 2, 1)
        and tags.get(277) in (3, 4)
        and set(_all_of(tags, 339, (1,))) == {1}
        and tags.get(266, 1) == 1
        and 273 in tags
        and 279 in tags
    )


def _separate_planes(stream: BinaryIO, tags: dict[int, Any]) -> NDArray[np.uint16]:
    """(height, width, 3) of 16-bit colour in strips, plane after plane, not compressed."""
    width, height = tags[256], tags[257]
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    rows = min(_as_integer(tags.get(278, height)) or height, height)
    strips = -(-height // rows)
    offsets = _all_of(tags, 273, ())
    if len(offsets) < 3 * strips:
        raise OSError(f"{len(offsets)} strips")
    image = np.empty((height, width, 3), np.uint16)
    for number, offset in enumerate(offsets[: 3 * strips]):
        plane, strip = divmod(number, strips)
        part = image[strip * rows : (strip + 1) * rows, :, plane]
        stream.seek(offset)
        content = stream.read(part.size * 2)
        if len(content) < part.size * 2:
            raise OSError("strips end early")
        part[:] = np.frombuffer(content, f"{order}u2").reshape(part.shape)
    return image


# JPEG 2000


def _read_jpeg2000(file: _File) -> NDArray[Any]:
    content = file.stream.read()
    start = content.find(b"\xff\x4f\xff\x51")
    with file.open(io.BytesIO(content)) as image:
        if start >= 0:
            (components,) = struct.unpack_from(">H", content, start + 40)
            stored = content[start + 42 : start + 42 + 3 * components : 3]
            if max(stored) & 0x80:  # Pillow would lift them by half of their range
                raise _UnsupportedError("JPEG 2000", "signed values", "save it with unsigned values")
            depths = [depth + 1 for depth in stored]
            if max(depths) > (16 if image.mode == "I;16" else 8):
                fix = "save it as PNG or TIFF" if image.mode != "I;16" else "save it with 16 bits"
                kind = "colour of more than 8 bits" if len(depths) > 1 else f"{max(depths)} bits a value"
                raise _UnsupportedError("JPEG 2000", kind, fix)
        _load(image)
        return _turned(_to_array(image, file.name), image)


# JPEG

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker among compressed data, where 0xFF stands before a zero, a restart marker or another 0xFF alone."""
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = (0xC0, 0xC1), (0xC2,), (0xC9, 0xCA)
_JPEG_LS = 0xF7
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {_JPEG_LS}
_SCAN, _END = 0xDA, 0xD9
_END_MARKER = b"\xff\xd9"
_MAX_SCANS = 40
"""Progressive JPEGs have 10 scans, seldom 20; every scan walks through all pixels, however few bytes it has."""
_PIXELS_A_BYTE = 512
"""A block of 64 pixels takes at least one bit."""
_SURPLUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PADDING = b"\0\xff"
_OF_HEADERS = ("Unknown Adobe color transform", "unknown JFIF revision", "Invalid SOS parameters")
"""What libjpeg finds odd in files whose pixels are whole."""
_APPLICATIONS, _COMMENT = range(0xE0, 0xF0), 0xFE
_USUAL_PARAMETERS = b"\0\x3f\0"
"""How a scan ends its header that brings all 64 coefficients of its blocks with all of their bits."""


class _Scan(NamedTuple):
    """One pass over the pixels: its parameters, and where its compressed data lie."""

    parameters: bytes
    start: int
    end: int


class _Frame(NamedTuple):
    """What a JPEG says about itself before its pixels."""

    marker: int
    content: bytes
    scans: list[_Scan]
    applications: list[int]
    """Where the markers of segments for programs (JFIF, Adobe, EXIF, ...) have their kind."""

    @property
    def in_one_scan(self) -> bool:
        return self.marker in _SEQUENTIAL and self.scans[0].parameters[0] == self.content[5]


def _read_jpeg(file: _File) -> NDArray[Any]:
    content = file.stream.read()
    frame = _jpeg_frame(content)
    if frame.marker in _ARITHMETIC:  # where such data end early, libjpeg makes up the rest without a warning
        raise _UnsupportedError("JPEG", "arithmetically coded", "save it as an ordinary JPEG")
    if frame.marker not in (*_SEQUENTIAL, *_PROGRESSIVE):
        raise _UnsupportedError("JPEG", "lossless or hierarchical", "save it as PNG, or as an ordinary JPEG")
    if frame.content[0] != 8:
        raise _UnsupportedError("JPEG", f"{frame.content[0]} bits a value", "save it with 8 bits, or as 16-bit PNG")
    if frame.content[5] not in (1, 3, 4):
        raise _UnsupportedError("JPEG", f"{frame.content[5]} channels", "save it as grey or RGB")
    if frame.content[1:3] == b"\0\0":
        raise _UnsupportedError("JPEG", "its height stands behind the pixels", "save it as an ordinary JPEG")
    content = content[: frame.scans[-1].end]
    with file.open(io.BytesIO(content + _END_MARKER)) as image:
        _check_scans(frame, image.size)
        pixels = _jpeg_pixels(content, frame, image.mode)
        if pixels is None or image.mode == "CMYK":
            _load(image)
            pixels = _to_array(image, file.name)
        return _turned(_as_rgb(pixels[..., 0]) if image.mode == "L" else pixels, image)


def _jpeg_pixels(content: bytes, frame: _Frame, mode: str) -> NDArray[Any] | None:
    """(height, width, channels) of a JPEG without its end marker; None: it has an odd header, so ask Pillow.

    Pillow drops libjpeg's warnings, which are all that tells a damaged file from a whole one.

    Raises:
        OSError: libjpeg warned of its compressed data.
        _UnsupportedError: its colours are sampled in a way that simplejpeg does not know.
    """
    colours = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[mode]
    try:
        return simplejpeg.decode_jpeg(content + _END_MARKER, colours, strict=True)
    except ValueError as error:
        warning = str(error)
    if "subsampling" in warning:
        raise _UnsupportedError(
            "JPEG", "unusual subsampling of its colours", "save it as PNG, or as JPEG with 4:4:4 or 4:2:0"
        )
    if any(words in warning for words in _OF_HEADERS):
        plain = _with_plain_headers(content, frame)
        if plain != content:
            _jpeg_pixels(plain, frame, mode)  # colours may be others then, but damage is the same
        return None
    surplus = _SURPLUS.search(warning)
    end = len(content) - int(surplus[1]) if surplus else len(content)
    if surplus is None or content[end:].strip(_PADDING):
        raise OSError(warning)
    try:
        return simplejpeg.decode_jpeg(content[:end] + _END_MARKER, colours, strict=True)
    except ValueError as error:
        raise OSError(error) from None


def _with_plain_headers(content: bytes, frame: _Frame) -> bytes:
    """The same compressed data behind headers at which libjpeg finds nothing odd."""
    plain = bytearray(content)
    for place in frame.applications:
        plain[place] = _COMMENT
    for scan in frame.scans if frame.marker in _SEQUENTIAL else ():
        plain[scan.start - len(_USUAL_PARAMETERS) : scan.start] = _USUAL_PARAMETERS
    return bytes(plain)


def _jpeg_frame(content: bytes) -> _Frame:
    """Walks through the segments up to the pixels, and through all scans where there are several."""
    marker, header = 0, b""
    scans: list[_Scan] = []
    applications: list[int] = []
    position = 2
    while (match := _MARKER.search(content, position)) is not None:
        position, kind = match.end(), content[match.start() + 1]
        if kind == _END:
            break
        if kind == 0x01 or kind == 0xD8:
            continue
        (length,) = struct.unpack_from(">H", content, position)
        segment = content[position + 2 : position + length]
        position += length
        if kind in _APPLICATIONS:
            applications.append(match.start() + 1)
        elif kind in _FRAMES:
            marker, header = kind, segment
        elif kind == _SCAN:
            following = _MARKER.search(content, position)
            scans.append(_Scan(segment, position, following.start() if following else len(content)))
            frame = _Frame(marker, header, scans, applications)
            if frame.in_one_scan or marker not in (*_SEQUENTIAL, *_PROGRESSIVE):
                return frame
            if len(scans) > _MAX_SCANS:
                raise OSError(f"more than {_MAX_SCANS} scans")
            position = scans[-1].end
    if not scans:
        raise OSError("no pixels")
    return _Frame(marker, header, scans, applications)


def _check_scans(frame: _Frame, size: tuple[int, int]) -> None:
    """Holds what the file says about its pixels against the bytes that are there."""
    width, height = size
    if width * height > _PIXELS_A_BYTE * sum(scan.end - scan.start for scan in frame.scans):
        raise OSError(f"too few bytes for {width} x {height} pixels")
    components = frame.content[6::3][: frame.content[5]]
    if not frame.in_one_scan:
        # What every scan brings: which coefficients of which components, and down to which bit of them.
        missing = {(component, index): 1 for component in components for index in range(64)}
        for scan in frame.scans:
            number = scan.parameters[0]
            first, last, bits = scan.parameters[-3:]
            for component in scan.parameters[1 : 1 + 2 * number : 2]:
                for index in range(first, min(last, 63) + 1):
                    missing[component, index] = bits & 0x0F
        if any(missing.values()):
            raise OSError("scans are missing")


_READERS: dict[str, Callable[[_File], NDArray[Any]]] = {
    "PNG": _read_png,
    "BMP": _read_bmp,
    "JPEG": _read_jpeg,
    "TIFF": _read_tiff,
    "PPM": _read_pnm,
    "JPEG2000": _read_jpeg2000,
}


# Pixels


def _to_array(image: Image.Image, name: str) -> NDArray[Any]:
    """(height, width, 3) RGB of a loaded image."""
    if image.mode == "F":
        raise FlawsmithError(
            f"{name}: floating-point pixels have no fixed full scale; save the image with 8 or 16 bits"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.dtype.kind == "i" and (grey.min() < 0 or grey.max() > _FULL_16_BIT):
            fix = "save the image with 8 or 16 bits, unsigned"
            raise FlawsmithError(f"{name}: values outside 0..{_FULL_16_BIT}; {fix}")
        return _as_rgb(grey.astype(np.uint16))
    # Pillow warns when it drops transparency; dropping it is the rule here.
    image.info.pop("transparency", None)
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    # A strip at a time: Pillow's way from its memory to an array's holds the pixels three times over.
    width, height = image.size
    array = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        array[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return array


def _as_rgb(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _turned(array: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """(height, width, 3) after the EXIF orientation, 1 to 8, that an image names."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        value = 1  # a damaged EXIF block says nothing about the pixels, which were read whole
    orientation = value if isinstance(value, int) else 1
    if 5 <= orientation <= 8:
        array = array.transpose(1, 0, 2)
    # After the transposition of 5 to 8, these flips complete the eight cases of the EXIF standard.
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)
