"""Image files written by hand: kinds that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SHORT, LONG = 3, 4
_CODES = {SHORT: "H", LONG: "L"}
RGB, GREY, WHITE_IS_ZERO = 2, 1, 0


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """An image in a format of Pillow's."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def bmp(indices: np.ndarray, bits: int, greys: list[int]) -> bytes:
    """A BMP of (height, width) indices into a palette of greys."""
    height, width = indices.shape
    values = np.unpackbits(indices[::-1, :, None].astype(np.uint8), axis=2)[:, :, 8 - bits :].reshape(height, -1)
    rows = np.packbits(np.pad(values, ((0, 0), (0, -values.shape[1] % 32))), axis=1).tobytes()
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in greys)
    start = 54 + len(palette)
    facts = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(rows), 2835, 2835, len(greys), 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + facts + palette + rows


def tiff(
    size: tuple[int, int],
    strips: list[bytes],
    *,
    order: str = "<",
    bits: tuple[int, ...] = (8,),
    photometric: int = GREY,
    compression: int = 1,
    rows: int | None = None,
    more: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A TIFF of one page.

    Args:
        size: height and width.
        strips: content of each strip, as it is stored.
        order: ``<`` or ``>``.
        bits: of each channel.
        photometric: 0 white is zero, 1 grey, 2 RGB and so on.
        compression: as the tag has it.
        rows: rows in a strip; all by default.
        more: further tags of short values, or other values of these.
    """
    height, width = size
    offsets = np.cumsum([8] + [len(strip) for strip in strips]).tolist()
    tags: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (LONG, (width,)),
        257: (LONG, (height,)),
        258: (SHORT, bits),
        259: (SHORT, (compression,)),
        262: (SHORT, (photometric,)),
        273: (LONG, tuple(offsets[:-1])),
        277: (SHORT, (len(bits),)),
        278: (LONG, (rows or height,)),
        279: (LONG, tuple(len(strip) for strip in strips)),
        **{number: (SHORT, values) for number, values in (more or {}).items()},
    }
    data = b"".join(strips)
    outside = 8 + len(data) + 2 + 12 * len(tags) + 4
    directory, tail = struct.pack(order + "H", len(tags)), b""
    for number, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
        directory += struct.pack(order + "HHL", number, kind, len(values))
        if len(content) <= 4:
            directory += content.ljust(4, b"\0")
        else:
            directory += struct.pack(order + "L", outside + len(tail))
            tail += content
    directory += struct.pack(order + "L", 0)
    return struct.pack(order + "2sHL", b"II" if order == "<" else b"MM", 42, 8 + len(data)) + data + directory + tail


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_16_bit(values: np.ndarray) -> bytes:
    """A PNG of (height, width, 3) uint16 values."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def packed(values: np.ndarray, bits: int) -> bytes:
    """(height, width) values of so many bits, one after the other, rows padded to whole bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(((values[:, :, None] >> shifts) & 1).astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()
