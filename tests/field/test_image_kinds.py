"""Files of unusual kinds are read with the values that they hold, or refused by name; never read otherwise."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.field.image_files import RGB, WHITE_IS_ZERO, bmp, chunk, jpeg_segment, packed, png_16_bit, saved, tiff

from flawsmith.data.doctor import check
from flawsmith.data.layouts import load
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode

HEIGHT, WIDTH = 24, 32
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
DEEP = np.stack([Y * 2000 + 7, X * 1500 + 3, (X + Y) * 900 + 1], 2).astype(np.uint16)
COLOUR = (DEEP >> 8).astype(np.uint8)
GREY = np.rint(np.hypot(Y, X) * 6).astype(np.uint8)


def planes(values: np.ndarray, order: str, rows: int) -> list[bytes]:
    """Strips of so many rows, plane after plane."""
    return [
        values[top : top + rows, :, channel].astype(f"{order}u2").tobytes()
        for channel in range(values.shape[2])
        for top in range(0, len(values), rows)
    ]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [24, 8, 7])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("orientation", [1, 6])
def test_16_bit_planes_of_a_tiff_are_put_together(order: str, rows: int, channels: int, orientation: int) -> None:
    values = DEEP if channels == 3 else np.dstack([DEEP, DEEP[:, :, 0]])
    more = {284: (2,), 274: (orientation,), **({338: (0,)} if channels == 4 else {})}

    image = decode(
        tiff((HEIGHT, WIDTH), planes(values, order, rows), order=order, bits=(16,) * channels, photometric=RGB,
             rows=rows, more=more)
    )  # fmt: skip

    expected = DEEP if orientation == 1 else np.rot90(DEEP, -1)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, expected)


def _interleaved(order: str, rows: int, *, deflate: bool) -> bytes:
    strips = [DEEP[top : top + rows].astype(f"{order}u2").tobytes() for top in range(0, HEIGHT, rows)]
    stored = [zlib.compress(strip) for strip in strips] if deflate else strips
    return tiff(
        (HEIGHT, WIDTH),
        stored,
        order=order,
        bits=(16,) * 3,
        photometric=RGB,
        rows=rows,
        compression=8 if deflate else 1,
    )


def _premultiplied() -> bytes:
    values = np.dstack([DEEP, DEEP[:, :, 0]])
    return tiff((HEIGHT, WIDTH), [values.astype("<u2").tobytes()], bits=(16,) * 4, photometric=RGB, more={338: (1,)})


EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    **{
        f"tiff, {order}, strips of {rows}, {'deflate' if deflate else 'plain'}": (
            _interleaved(order, rows, deflate=deflate),
            DEEP,
        )
        for order in "<>"
        for rows in (24, 5)
        for deflate in (False, True)
    },
    **{
        f"{bits}-bit bmp of {greys}": (
            bmp(GREY % len(greys), bits, greys), np.repeat(np.array(greys, np.uint8)[GREY % len(greys), None], 3, 2)
        )
        for bits, greys in ((8, [0, 255]), (8, [255, 0]), (1, [0, 255]), (4, [255, 0]), (8, [0, 1, 2]), (4, [9, 255]))
    },
    "ppm": (b"P6 32 24 65535\n" + DEEP.astype(">u2").tobytes(), DEEP),
    "png": (png_16_bit(DEEP), DEEP),
    "ppm of 12 bits": (
        b"P6\n# a camera\n32 24\n4095\n" + (DEEP >> 4).astype(">u2").tobytes(),
        np.rint((DEEP >> 4) / 4095 * 65535).astype(np.uint16),
    ),
    "pgm of 10 bits": (
        b"P5 32 24 1023\n" + (DEEP[:, :, 0] >> 6).astype(">u2").tobytes(),
        np.repeat(np.rint((DEEP[:, :, :1] >> 6) / 1023 * 65535).astype(np.uint16), 3, 2),
    ),
    "pgm of 100 levels": (
        b"P5 32 24 99\n" + (GREY % 100).tobytes(),
        np.repeat(np.rint((GREY % 100) / 99 * 255).astype(np.uint8)[:, :, None], 3, 2),
    ),
    "grey tiff where white is zero": (
        tiff((HEIGHT, WIDTH), [DEEP[:, :, 0].tobytes()], bits=(16,), photometric=WHITE_IS_ZERO),
        np.repeat(65535 - DEEP[:, :, :1], 3, 2),
    ),
    "tiff of 12-bit values in a row": (
        tiff((HEIGHT, WIDTH), [packed(DEEP[:, :, 0] >> 4, 12)], bits=(12,)),
        np.repeat(DEEP[:, :, :1] >> 4, 3, 2),
    ),
    "8-bit planes": (
        tiff((HEIGHT, WIDTH), [COLOUR[:, :, c].tobytes() for c in range(3)], bits=(8,) * 3, photometric=RGB,
             more={284: (2,)}),
        COLOUR,
    ),
    "grey jpeg 2000": (saved(Image.fromarray(DEEP[:, :, 0]), "JPEG2000"), np.repeat(DEEP[:, :, :1], 3, 2)),
    "colour jpeg 2000": (saved(COLOUR, "JPEG2000"), COLOUR),
    "png with much text": (
        (plain := saved(COLOUR, "PNG"))[:33]
        + chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(40_000_000), 9))
        + plain[33:],
        COLOUR,
    ),
    "png with a large profile": (
        plain[:33] + chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(40_000_000), 9)) + plain[33:],
        COLOUR,
    ),
    "tiff with a thumbnail behind the picture": (
        saved(COLOUR, "TIFF", save_all=True, append_images=[Image.fromarray(COLOUR[::4, ::4])]),
        COLOUR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_file_gives_the_values_that_it_holds(name: str, tmp_path: Path) -> None:
    content, expected = EXACT[name]
    (tmp_path / "image").write_bytes(content)

    image = decode(content)

    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(decode(tmp_path / "image"), expected)


def _jpeg2000_of_16_bit_colour() -> bytes:
    """The depth is the one that the code stream names; its pixels are not reached."""
    content = bytearray(saved(COLOUR, "JPEG2000", no_jp2=True))
    for component in range(3):
        content[42 + 3 * component] = 15
    return bytes(content)


def _jpeg2000_of_signed_values() -> bytes:
    content = bytearray(saved(GREY, "JPEG2000", no_jp2=True))
    content[42] |= 0x80
    return bytes(content)


def _jpeg(frame: int, bits: int) -> bytes:
    ordinary = saved(GREY, "JPEG")
    at = ordinary.index(b"\xff\xc0")
    return ordinary[:at] + bytes([0xFF, frame]) + ordinary[at + 2 : at + 4] + bytes([bits]) + ordinary[at + 5 :]


def _jpeg_whose_height_follows() -> bytes:
    ordinary = saved(GREY, "JPEG")
    at = ordinary.index(b"\xff\xc0") + 5
    height = jpeg_segment(0xDC, struct.pack(">H", HEIGHT))
    return ordinary[:at] + b"\0\0" + ordinary[at + 2 : -2] + height + ordinary[-2:]


def _jpeg_of_few_colour_values() -> bytes:
    """One colour value for 4 x 2 pixels; its pixels are not reached."""
    ordinary = saved(COLOUR, "JPEG")
    at = ordinary.index(b"\xff\xc0") + 11
    return ordinary[:at] + b"\x42" + ordinary[at + 1 :]


def _one_strip(values: np.ndarray, bits: int, channels: int = 1, photometric: int = 1, **more: int) -> bytes:
    tags = {int(number[1:]): (value,) * (channels if number == "t339" else 1) for number, value in more.items()}
    return tiff((HEIGHT, WIDTH), [values.tobytes()], bits=(bits,) * channels, photometric=photometric, more=tags)


def _planes_of_8_bits(channels: int, photometric: int = RGB, **more: int) -> bytes:
    tags = {int(number[1:]): (value,) * (2 if number == "t530" else 1) for number, value in more.items()}
    strips = [COLOUR[:, :, channel % 3].tobytes() for channel in range(channels)]
    return tiff((HEIGHT, WIDTH), strips, bits=(8,) * channels, photometric=photometric, more={284: (2,), **tags})


FOUR = np.dstack([DEEP, DEEP[:, :, 0]])
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "10 bits": (lambda: tiff((HEIGHT, WIDTH), [packed(DEEP[:, :, 0] >> 6, 10)], bits=(10,)), "TIFF .*10 bits a value"),
    "14 bits": (lambda: tiff((HEIGHT, WIDTH), [packed(DEEP[:, :, 0] >> 2, 14)], bits=(14,)), "TIFF .*14 bits a value"),
    "12-bit colour": (lambda: _one_strip(DEEP, 12, 3, RGB), "TIFF .*12 bits a value"),
    "64-bit integers": (lambda: _one_strip(DEEP[:, :, 0].astype(np.uint64), 64), "TIFF .*64 bits a value"),
    "half floats": (lambda: _one_strip(GREY.astype("<f2"), 16, t339=3), "TIFF .*16-bit floating point"),
    "double floats": (lambda: _one_strip(GREY.astype("<f8"), 64, t339=3), "TIFF .*64-bit floating point"),
    "colour of floats": (lambda: _one_strip(DEEP.astype("<f4"), 32, 3, RGB, t339=3), "TIFF .*32-bit floating point"),
    "floats": (lambda: _one_strip(GREY.astype("<f4"), 32, t339=3), "floating-point pixels"),
    "signed bytes": (lambda: _one_strip(GREY, 8, t339=2), "TIFF .*signed 8-bit"),
    "bayer": (lambda: _one_strip(GREY, 8, photometric=32803), "TIFF .*Bayer"),
    "bayer of 16 bits": (lambda: _one_strip(DEEP[:, :, 0], 16, photometric=32803), "TIFF .*Bayer"),
    "camera's linear raw": (lambda: _one_strip(DEEP, 16, 3, photometric=34892), "TIFF .*Bayer"),
    "deep grey with alpha": (
        lambda: _one_strip(DEEP[:, :, :2], 16, 2, t338=2),
        "TIFF .*16-bit grey with a second channel",
    ),
    "planes and a fourth of no meaning": (lambda: _planes_of_8_bits(4, t338=0), "TIFF .*separate planes"),
    "planes and a fourth, compressed": (
        lambda: tiff((HEIGHT, WIDTH), [zlib.compress(COLOUR[:, :, c % 3].tobytes()) for c in range(4)], bits=(8,) * 4,
                     photometric=RGB, compression=8, more={284: (2,)}),
        "TIFF .*separate planes",
    ),
    "planes of premultiplied colour": (lambda: _planes_of_8_bits(4, t338=1), "TIFF .*separate planes"),
    "planes of five bands": (lambda: _planes_of_8_bits(5, t338=0), "TIFF .*separate planes"),
    "planes of grey and alpha": (lambda: _planes_of_8_bits(2, photometric=1, t338=2), "TIFF .*separate planes"),
    "planes of lab": (lambda: _planes_of_8_bits(3, photometric=8), "TIFF .*separate planes"),
    "planes of ycbcr": (lambda: _planes_of_8_bits(3, photometric=6, t530=1), "TIFF .*separate planes"),
    "big-endian bigtiff": (lambda: b"MM\0\x2b\0\x08\0\0" + bytes(200), "TIFF .*BigTIFF in big-endian order"),
    "palette of 16 bits": (lambda: _one_strip(DEEP[:, :, 0], 16, photometric=3), "TIFF .*unusual combination: 16 bits"),
    "bits in the other order": (lambda: _one_strip(DEEP, 16, 3, RGB, t266=2), "TIFF .*unusual combination.* bits 2"),
    "jbig": (lambda: _one_strip(GREY, 1, t259=34661), "TIFF .*compressed by method 34661"),
    "a camera's compression": (lambda: _one_strip(GREY, 8, t259=34713), "TIFF .*compressed by method 34713"),
    "jpeg-ls": (lambda: _jpeg(0xF7, 8), "JPEG .*lossless"),
    "jpeg in a bmp": (
        lambda: b"BM" + struct.pack("<LHHLLllHHLL", 999, 0, 0, 54, 40, WIDTH, HEIGHT, 1, 0, 4, 0) + bytes(945),
        "of a kind that cannot be read .*BMP",
    ),
    "bmp of 4 bits and black and white alone": (lambda: bmp(GREY % 2, 4, [0, 255]), "BMP .*4 bits a value"),
    "bmp of 4 bits and dark greys": (lambda: bmp(GREY % 16, 4, [*range(16)]), "BMP .*4 bits a value"),
    "five bands": (lambda: _one_strip(np.dstack([FOUR, FOUR[:, :, 0]]), 16, 5, RGB), "TIFF .*5 channels"),
    "nine bands": (lambda: _one_strip(np.repeat(GREY[:, :, None], 9, 2), 8, 9), "TIFF .*9 channels"),
    "cmyk of 16 bits": (lambda: _one_strip(FOUR, 16, 4, photometric=5), "TIFF .*16 bits in other colours"),
    "lab of 16 bits": (lambda: _one_strip(DEEP, 16, 3, photometric=8), "TIFF .*16 bits in other colours"),
    "deep colour times alpha": (_premultiplied, "TIFF .*multiplied with its transparency"),
    "deep planes, compressed": (
        lambda: tiff((HEIGHT, WIDTH), [zlib.compress(p) for p in planes(DEEP, "<", 24)], bits=(16,) * 3,
                     photometric=RGB, compression=8, more={284: (2,)}),
        "TIFF .*separate planes.*save it interleaved",
    ),
    "lerc": (lambda: _one_strip(GREY, 8, t259=34887), "TIFF .*LERC"),
    "jpeg 2000 in tiff": (lambda: _one_strip(GREY, 8, t259=34712), "TIFF .*JPEG 2000"),
    "ycbcr with fewer colour values": (lambda: _one_strip(COLOUR, 8, 3, photometric=6), "TIFF .*YCbCr"),
    "jpeg 2000 of deep colour": (_jpeg2000_of_16_bit_colour, "JPEG 2000 .*more than 8 bits"),
    "jpeg 2000 of signed values": (_jpeg2000_of_signed_values, "JPEG 2000 .*signed values"),
    "signed 16 bits below zero": (
        lambda: _one_strip(DEEP[:, :, 0].astype("<i2") - 9, 16, t339=2),
        "values outside 0..65535.*16 bits, unsigned",
    ),
    "jpeg of 12 bits": (lambda: _jpeg(0xC1, 12), "JPEG .*12 bits a value"),
    "jpeg of few colour values": (_jpeg_of_few_colour_values, "JPEG .*unusual subsampling"),
    "jpeg of few values of inks": (
        lambda: saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", subsampling=2),
        "JPEG .*unusual subsampling",
    ),
    "jpeg whose height follows": (_jpeg_whose_height_follows, "JPEG .*height stands behind the pixels"),
    "lossless jpeg": (lambda: _jpeg(0xC3, 8), "JPEG .*lossless"),
    "arithmetically coded jpeg": (lambda: _jpeg(0xC9, 8), "JPEG .*arithmetically coded"),
    "arithmetically coded jpeg of several scans": (lambda: _jpeg(0xCA, 8), "JPEG .*arithmetically coded"),
    "ppm of deep words": (lambda: b"P3 2 1 65535\n1 2 3 4 5 65535\n", "PPM .*up to 65535"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_kind_that_cannot_be_read_is_named_and_not_called_damaged(name: str) -> None:
    content, message = REFUSED[name]

    with pytest.raises(FlawsmithError, match=message) as caught:
        decode(content())

    assert "damaged" not in str(caught.value)
    assert "save" in str(caught.value) or "convert" in str(caught.value)


def test_doctor_does_not_ask_to_restore_what_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(COLOUR, "PNG"))
    (tmp_path / "b.tif").write_bytes(REFUSED["10 bits"][0]())
    (tmp_path / "c.png").write_bytes(saved(COLOUR, "PNG")[:120])

    whole, damaged = [finding for finding in check(load(tmp_path)).items if finding.name == "unreadable-image"]

    assert whole.what.endswith("a kind of TIFF that cannot be read (10 bits a value)")
    assert whole.fix == "save it with 8 or 16 bits, or remove the file"
    assert "damaged" in damaged.what and damaged.fix == "copy or export it anew, or remove the file"


OTHER_CONTENTS = {
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a" + bytes(100),
    "Photoshop": b"8BPS\0\1" + bytes(200),
    "DICOM": bytes(128) + b"DICM" + bytes(100),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(100),
    "PAM": b"P7\nWIDTH 32\n",
    "not an image but a PDF document": b"%PDF-1.7\n",
    "not an image but a web page": b"<!DOCTYPE html><html><body>sign in</body></html>",
    "not an image but a film": b"\0\0\0\x18ftypisom" + bytes(100),
    "fetch it with `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n",
    "not an image of a known format": b"hello world",
}


@pytest.mark.parametrize("name", OTHER_CONTENTS)
def test_content_that_is_no_image_of_a_known_format_is_named_whatever_the_file_is_called(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "part.jpg"
    path.write_bytes(OTHER_CONTENTS[name])

    with pytest.raises(FlawsmithError) as caught:
        decode(path)

    assert name in str(caught.value) and "damaged" not in str(caught.value)
    assert "save it as PNG" in str(caught.value) or "git lfs" in str(caught.value)


def _pages(*pages: Image.Image) -> bytes:
    return saved(pages[0], "TIFF", save_all=True, append_images=list(pages[1:]))


PICTURE = Image.fromarray(COLOUR)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_pages(PICTURE, PICTURE, PICTURE), "holds 3 pages.*save every page"),
        (_pages(PICTURE.resize((8, 6)), PICTURE), "holds 2 pages"),
        (_pages(PICTURE, PICTURE.resize((30, 20))), "holds 2 pages"),
        (saved(PICTURE, "TIFF", tiffinfo={254: 1, 330: 8}), "first page is a thumbnail"),
    ],
)
def test_tiff_of_several_pictures_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(FlawsmithError, match=message):
        decode(content)


def test_pages_that_lead_round_in_circles_end() -> None:
    content = bytearray(tiff((HEIGHT, WIDTH), [GREY.tobytes()]))
    at = struct.unpack_from("<L", content, 4)[0]
    (count,) = struct.unpack_from("<H", content, at)
    struct.pack_into("<L", content, at + 2 + 12 * count, at)

    np.testing.assert_array_equal(decode(bytes(content))[:, :, 0], GREY)


def test_pictures_behind_the_first_in_a_jpeg_are_let_be() -> None:
    first, second = saved(COLOUR, "JPEG", quality=95), saved(255 - COLOUR, "JPEG", quality=95)
    index = jpeg_segment(0xE2, b"MPF\0" + bytes(40))

    image = decode(first[:2] + index + first[2:] + second)

    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(first))))
