"""Damages image files of every format, format by format, and watches what decoding them does.

`make fuzz` runs it for some minutes; alone: ``python -m tests.field.image_fuzzer --minutes 30 [--seed 1]``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import struct
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import SystemRandom

import numpy as np
from PIL import Image
from tests.field.image_files import chunk, png_16_bit, saved, tiff

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode, has_further_pictures

MAX_PIXELS = 4_000_000
MAX_SECONDS = 5.0
MAX_GROWTH = 400 * 2**20
"""Bytes beyond which an image of at most MAX_PIXELS takes too much memory: 100 a pixel."""

_Y, _X = np.mgrid[0:60, 0:84]
COLOUR = np.stack([_X * 3, _Y * 4, (_X * _Y) % 256], 2).astype(np.uint8)
DEEP = COLOUR.astype(np.uint16) * 257


def seeds() -> dict[str, bytes]:
    """Whole files of every format and of most of its kinds."""
    grey, picture = Image.fromarray(COLOUR[:, :, 0]), Image.fromarray(COLOUR)
    deep = Image.fromarray(DEEP[:, :, 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = picture.quantize(32)
    planes = [DEEP[:, :, channel].tobytes() for channel in range(3)]
    return {
        "png": saved(picture, "PNG", exif=exif),
        "png grey": saved(grey, "PNG"),
        "png 1 bit": saved(grey.convert("1"), "PNG"),
        "png palette": saved(palette, "PNG", transparency=3),
        "png 16": png_16_bit(DEEP),
        "png deep grey": saved(deep, "PNG"),
        "png animated": saved(picture, "PNG", save_all=True, append_images=[picture.rotate(180)]),
        "jpeg": saved(picture, "JPEG", exif=exif),
        "jpeg grey": saved(grey, "JPEG", optimize=True),
        "jpeg cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "jpeg progressive": saved(picture, "JPEG", progressive=True),
        "jpeg several": saved(picture, "MPO", save_all=True, append_images=[picture.rotate(180)]),
        "jpeg restarts": saved(picture, "JPEG", restart_marker_blocks=3),
        "bmp": saved(picture, "BMP"),
        "bmp palette": saved(palette, "BMP"),
        "gif": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "webp": saved(picture, "WEBP"),
        "webp lossless": saved(picture, "WEBP", lossless=True),
        "webp animated": saved(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)]),
        "ppm": saved(picture, "PPM"),
        "ppm 12": b"P6 84 60 4095\n" + (DEEP >> 4).astype(">u2").tobytes(),
        "pgm words": b"P2 3 2\n# six\n1000\n1 2 3 4 5 1000\n",
        "pbm words": b"P1 3 2\n101010\n",
        "jpeg 2000": saved(picture, "JPEG2000"),
        "jpeg 2000 stream": saved(deep, "JPEG2000", no_jp2=True, tile_size=(32, 32)),
        "tiff": saved(picture, "TIFF"),
        "tiff pages": saved(picture, "TIFF", save_all=True, append_images=[picture.resize((9, 6))]),
        "tiff 16": tiff((60, 84), [DEEP.tobytes()], bits=(16,) * 3, photometric=2),
        "tiff planes": tiff((60, 84), planes, bits=(16,) * 3, photometric=2, more={284: (2,)}),
        "tiff big-endian": tiff((60, 84), [DEEP[:, :, 0].astype(">u2").tobytes()], order=">", bits=(16,)),
        **{
            f"tiff {name}": saved(image, "TIFF", compression=name)
            for name, image in (
                *(("tiff_lzw", picture), ("tiff_adobe_deflate", deep), ("packbits", grey), ("jpeg", picture)),
                *(("group4", grey.convert("1")), ("group3", grey.convert("1"))),
            )
        },
    }


def _flip(content: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(0, len(content), rng.integers(1, 8)):
        content[place] ^= 1 << rng.integers(8)


def _head(content: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(0, min(len(content), 200), rng.integers(1, 5)):
        content[place] = rng.choice([0, 1, 2, 3, 4, 8, 16, 127, 128, 254, 255, int(rng.integers(256))])


def _number(content: bytearray, rng: np.random.Generator) -> None:
    """Some number of 2 or 4 bytes becomes an extreme one."""
    size, order = int(rng.choice([2, 4])), str(rng.choice(["<", ">"]))
    place = int(rng.integers(0, max(1, len(content) - size)))
    if rng.random() < 0.5:
        place = min(place, int(rng.integers(0, 400)))
    value = int(rng.choice([0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF])) % 256**size
    content[place : place + size] = struct.pack(order + {2: "H", 4: "L"}[size], value)


def _cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[int(rng.integers(0, len(content))) :]


def _lose(content: bytearray, rng: np.random.Generator) -> None:
    place = int(rng.integers(0, len(content)))
    del content[place : place + int(rng.integers(1, 600))]


def _repeat(content: bytearray, rng: np.random.Generator) -> None:
    place = int(rng.integers(0, len(content)))
    part = content[place : place + int(rng.integers(1, 600))]
    content[place:place] = part * int(rng.choice([1, 2, 50]))


def _fill(content: bytearray, rng: np.random.Generator) -> None:
    place, length = int(rng.integers(0, len(content))), int(rng.integers(1, 600))
    content[place : place + length] = bytes([int(rng.choice([0, 255]))]) * len(content[place : place + length])


def _jpeg_segments(content: bytearray, rng: np.random.Generator) -> None:
    """A segment of a JPEG is doubled, moved or lost."""
    places = [n for n in range(len(content) - 4) if content[n] == 0xFF and content[n + 1] in range(0xC0, 0xFF)]
    if not content.startswith(b"\xff\xd8") or not places:
        return
    place = int(rng.choice(places))
    length = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    segment = content[place : place + length]
    if rng.random() < 0.5:
        del content[place : place + length]
    other = int(rng.choice(places))
    content[other:other] = segment * int(rng.choice([0, 1, 3, 200]))


def _png_chunks(content: bytearray, rng: np.random.Generator) -> None:
    """A chunk of a PNG is changed or doubled, with a right check sum."""
    if not content.startswith(b"\x89PNG"):
        return
    parts, position = [], 8
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        parts.append((bytes(content[position + 4 : position + 8]), content[position + 8 : position + 8 + length]))
        position += length + 12
    if not parts:
        return
    number = int(rng.integers(len(parts)))
    name, inside = parts[number]
    if name == b"IDAT" and rng.random() < 0.6:
        with contextlib.suppress(zlib.error):
            pixels = bytearray(zlib.decompress(bytes(inside)))
            (_cut, _flip, _fill)[int(rng.integers(3))](pixels, rng)
            inside = bytearray(zlib.compress(bytes(pixels)))
    elif inside:
        (_flip, _number, _cut)[int(rng.integers(3))](inside, rng)
    parts[number : number + 1] = [(name, inside)] * int(rng.choice([1, 1, 1, 2, 40]))
    content[:] = bytes(content[:8]) + b"".join(chunk(name, bytes(inside)) for name, inside in parts)


def _tiff_tags(content: bytearray, rng: np.random.Generator) -> None:
    """An entry of the first directory of a TIFF gets another value, count, kind or number."""
    if content[:4] not in (b"II*\0", b"MM\0*") or len(content) < 8:
        return
    order = "<" if content[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "L", content, 4)
    if at + 2 > len(content):
        return
    (count,) = struct.unpack_from(order + "H", content, at)
    place = at + 2 + 12 * int(rng.integers(max(1, count)))
    if place + 12 > len(content):
        return
    field = int(rng.integers(4))
    if field < 2:
        choices = [(254, 256, 258, 259, 262, 266, 273, 277, 284, 317, 322, 338, 339, 530), (1, 2, 3, 4, 5, 12, 13, 16)]
        struct.pack_into(order + "H", content, place + 2 * field, int(rng.choice(choices[field])))
    else:
        values = (
            0,
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            12,
            16,
            32,
            255,
            32773,
            32803,
            34712,
            50000,
            65535,
            2**20,
            2**31,
            2**32 - 1,
        )
        struct.pack_into(order + "L", content, place + 4 * (field - 1), int(rng.choice(values)))


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(_flip, _head, _number, _cut, _lose, _repeat, _fill, _jpeg_segments, _png_chunks, _tiff_tags, _tiff_tags),
)


def damaged_files(seed: int) -> Iterator[tuple[str, bytes]]:
    """Endless damaged files: a function of the seed."""
    rng = np.random.default_rng(seed)
    whole = seeds()
    names = list(whole)
    while True:
        name = names[int(rng.integers(len(names)))]
        content = bytearray(whole[name])
        for number in rng.integers(0, len(MUTATIONS), rng.integers(1, 4)):
            if content:
                MUTATIONS[number](content, rng)
        yield name, bytes(content)


class _Output:
    """What is written to stdout and stderr meanwhile, by C libraries too."""

    def __enter__(self) -> _Output:
        sys.stdout.flush()
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._before = os.dup(1), os.dup(2)
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), self._before, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        self._file.seek(0)
        self.text = self._file.read()
        self._file.close()


def _peak() -> int:
    """Bytes that this process has taken at most; 0 where the system does not say, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fault_of(source: bytes | Path) -> str:
    """What is wrong with how a file is decoded; empty: read, or refused in one line, in bounded time and memory.

    Args:
        source: the file or its content: Pillow and libtiff read the two in different ways.
    """
    before, start, fault = _peak(), time.perf_counter(), ""
    with _Output() as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode(source, max_pixels=MAX_PIXELS)
            has_further_pictures(source)
            if image.ndim != 3 or image.shape[2] != 3 or not image.flags.c_contiguous:
                fault = f"an array of {image.shape}"
        except FlawsmithError as error:
            if "\n" in str(error):
                fault = f"several lines: {error}"
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
    seconds, growth = time.perf_counter() - start, _peak() - before
    if not fault and seconds > MAX_SECONDS:
        fault = f"{seconds:.1f} seconds"
    if not fault and growth > MAX_GROWTH:
        fault = f"{growth / 2**20:.0f} MiB"
    return fault or (f"printed {output.text[:80]!r}" if output.text else "")


def main() -> int:
    """Run for some minutes, keep each find and print counts."""
    parser = argparse.ArgumentParser(description="Damage image files of all formats and decode them.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="drawn by default, so that every run tries others")
    parser.add_argument("--finds", type=Path, default=Path("build/fuzz-images"), help="folder for files with a fault")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else SystemRandom().randrange(2**40)
    end, counts, finds = time.monotonic() + 60 * options.minutes, Counter[str](), 0
    for name, content in damaged_files(seed):
        if time.monotonic() > end:
            break
        # Should a file end the process or never end, it is there to be looked at.
        (last := Path(tempfile.gettempdir()) / f"fuzzed-{os.getpid()}").write_bytes(content)
        watchdog = threading.Timer(60, os._exit, (3,))
        watchdog.start()
        fault = fault_of(content) or fault_of(last)
        watchdog.cancel()
        counts[name] += 1
        if fault:
            finds += 1
            options.finds.mkdir(parents=True, exist_ok=True)
            (options.finds / f"{finds:04}-{name.replace(' ', '-')}").write_bytes(content)
            print(f"{name}: {fault}", flush=True)
    last.unlink(missing_ok=True)
    total = sum(counts.values())
    print(
        f"{total} files of {len(counts)} kinds from seed {seed}, {finds} finds, {_peak() / 2**20:.0f} MiB at the peak"
    )
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
