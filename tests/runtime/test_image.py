"""What each usual, unusual and malformed image file gives."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES, find_images, iter_images
from flawsmith.runtime.image import (
    brightest_channel,
    decode,
    is_grey,
    summarise_values,
    validate_array,
)

HEIGHT, WIDTH = 24, 37
RGB = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RGB[:, :, 0]
DEEP_GREY = np.random.default_rng(6).integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
DEEP_RGB = np.random.default_rng(7).integers(0, 65536, (HEIGHT, WIDTH, 3), np.uint16)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of raw rows, each filtered by the difference to the row above where there is one."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _deep_png(values: np.ndarray, colour: int) -> bytes:
    stored = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    rows, before = b"", np.zeros(stored.shape[1], np.uint8)
    for row in stored:
        rows += b"\x02" + (row - before).tobytes()
        before = row
    return _png(values.shape[1], values.shape[0], 16, colour, rows)


def _deep_tiff(values: np.ndarray, order: str, *, orientation: int = 1) -> bytes:
    """An uncompressed 16-bit colour TIFF in either byte order."""
    data = values.astype(f"{order}u2").tobytes()
    height, width = values.shape[:2]
    bits_at = 8 + len(data)
    short, long = 3, 4
    tags = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 3, bits_at),
        (259, short, 1, 1),
        (262, short, 1, 2),
        (273, long, 1, 8),
        (274, short, 1, orientation),
        (277, short, 1, 3),
        (278, long, 1, height),
        (279, long, 1, len(data)),
    ]
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(order + ("HH" if kind == short and count == 1 else "L"), *_pair(kind, count, value))
        directory += struct.pack(order + "HHL", tag, kind, count) + packed
    directory += struct.pack(order + "L", 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, bits_at + 6)
    return head + data + struct.pack(order + "HHH", 16, 16, 16) + directory


def _pair(kind: int, count: int, value: int) -> tuple[int, ...]:
    return (value, 0) if kind == 3 and count == 1 else (value,)


def _palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(16)


def _with_alpha() -> Image.Image:
    alpha = (np.arange(HEIGHT * WIDTH) % 256).astype(np.uint8).reshape(HEIGHT, WIDTH, 1)
    return Image.fromarray(np.concatenate([RGB, alpha], axis=2))


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(Image.fromarray(RGB), "PNG", exif=exif)


def _turned(orientation: int, image: np.ndarray = RGB) -> np.ndarray:
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, 1),
    }
    return turns[orientation](image)


def _jpeg_with_damaged_exif() -> bytes:
    plain = _saved(Image.fromarray(RGB), "JPEG", quality=95)
    block = b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\x12\x01" * 9
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]


def _frames(kind: str) -> bytes:
    first, second = _palette(), Image.fromarray(255 - RGB).quantize(16)
    if kind != "GIF":
        first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    options = {"lossless": True} if kind == "WEBP" else {}
    return _saved(first, kind, save_all=True, append_images=[second], **options)


EXACT = {
    "png rgb": (_saved(Image.fromarray(RGB), "PNG"), RGB),
    "png grey": (_saved(Image.fromarray(GREY), "PNG"), _three(GREY)),
    "png 1-bit": (_saved(Image.fromarray(GREY > 99), "PNG"), _three((GREY > 99) * np.uint8(255))),
    "png palette": (_saved(_palette(), "PNG"), np.asarray(_palette().convert("RGB"))),
    "png palette with one transparent colour": (
        _saved(_palette(), "PNG", transparency=3),
        np.asarray(_palette().convert("RGB")),
    ),
    "png palette with alpha of each colour": (
        _saved(_palette(), "PNG", transparency=bytes(range(0, 160, 10))),
        np.asarray(_palette().convert("RGB")),
    ),
    "png rgb with one transparent colour": (
        _saved(Image.fromarray(RGB), "PNG", transparency=tuple(int(v) for v in RGB[0, 0])),
        RGB,
    ),
    "png rgb and alpha": (_saved(_with_alpha(), "PNG"), RGB),
    "png grey and alpha": (_saved(Image.merge("LA", [Image.fromarray(GREY)] * 2), "PNG"), _three(GREY)),
    "png 16-bit grey": (_saved(Image.fromarray(DEEP_GREY), "PNG"), _three(DEEP_GREY)),
    "png 12 bits in 16": (_saved(Image.fromarray(DEEP_GREY >> 4), "PNG"), _three(DEEP_GREY >> 4)),
    "png 16-bit colour": (_deep_png(DEEP_RGB, 2), DEEP_RGB),
    "png 16-bit colour and alpha": (_deep_png(np.dstack([DEEP_RGB, DEEP_GREY]), 6), DEEP_RGB),
    "png 16-bit grey and alpha": (_deep_png(np.dstack([DEEP_GREY, DEEP_GREY // 3]), 4), _three(DEEP_GREY)),
    "png 1x1": (_saved(Image.fromarray(RGB[:1, :1]), "PNG"), RGB[:1, :1]),
    "png 1x5000": (_saved(Image.new("RGB", (5000, 1), (1, 2, 3)), "PNG"), np.full((1, 5000, 3), (1, 2, 3))),
    "png 5000x1": (_saved(Image.new("RGB", (1, 5000), (1, 2, 3)), "PNG"), np.full((5000, 1, 3), (1, 2, 3))),
    "png animated": (_frames("PNG"), RGB),
    "png whose stream ends early, the rest black": (
        _png(2, 2, 8, 0, b"\0\x07\x09"),
        _three(np.array([[7, 9], [0, 0]], np.uint8)),
    ),
    "bmp rgb": (_saved(Image.fromarray(RGB), "BMP"), RGB),
    "bmp palette": (_saved(_palette(), "BMP"), np.asarray(_palette().convert("RGB"))),
    "ppm": (_saved(Image.fromarray(RGB), "PPM"), RGB),
    "pgm": (_saved(Image.fromarray(GREY), "PPM"), _three(GREY)),
    "pgm in words": (b"P2\n# made by hand\n2 1\n255\n7 250\n", np.array([[[7] * 3, [250] * 3]])),
    "pgm 16-bit": (b"P5 37 24 65535\n" + DEEP_GREY.astype(">u2").tobytes(), _three(DEEP_GREY)),
    "webp lossless": (_saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "webp animated": (_frames("WEBP"), RGB),
    "gif animated": (_frames("GIF"), np.asarray(_palette().convert("RGB"))),
    "tiff rgb": (_saved(Image.fromarray(RGB), "TIFF"), RGB),
    "tiff compressed": (_saved(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB),
    "tiff 16-bit grey": (_saved(Image.fromarray(DEEP_GREY), "TIFF"), _three(DEEP_GREY)),
    "tiff 16-bit grey compressed": (
        _saved(Image.fromarray(DEEP_GREY), "TIFF", compression="tiff_adobe_deflate"),
        _three(DEEP_GREY),
    ),
    "tiff 16-bit colour little-endian": (_deep_tiff(DEEP_RGB, "<"), DEEP_RGB),
    "tiff 16-bit colour big-endian": (_deep_tiff(DEEP_RGB, ">"), DEEP_RGB),
    "tiff 16-bit colour turned": (_deep_tiff(DEEP_RGB, "<", orientation=6), np.rot90(DEEP_RGB, -1)),
    "tiff 32-bit integers within 16 bits": (
        _saved(Image.fromarray(DEEP_GREY.astype(np.int32)), "TIFF"),
        _three(DEEP_GREY),
    ),
    **{f"png turned {n}": (_oriented(n), _turned(n)) for n in range(1, 9)},
    "png with an impossible orientation": (_oriented(77), RGB),
}

MALFORMED = {
    "empty": (b"", "is empty"),
    "text": (b"This is not an image at all, whatever it is called.\n", "not an image of a known format"),
    "zeros": (bytes(4096), "not an image of a known format"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image but a web page"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "a format that is not read .SVG."),
    "pdf": (b"%PDF-1.7\n" + bytes(200), "not an image but a PDF document"),
    "eps, which would start a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not an image of a known format",
    ),
    "png signature alone": (EXACT["png rgb"][0][:8], "damaged or truncated"),
    "png cut in the header": (EXACT["png rgb"][0][:20], "damaged or truncated"),
    "png cut in the pixels": (EXACT["png rgb"][0][:600], "damaged or truncated"),
    "png with a flipped bit in its header": (
        EXACT["png rgb"][0][:17] + bytes([EXACT["png rgb"][0][17] ^ 4]) + EXACT["png rgb"][0][18:],
        "damaged or truncated",
    ),
    "png without pixels": (_png(0, 0, 8, 2, b""), "damaged|no pixels"),
    "png 16-bit colour cut": (EXACT["png 16-bit colour"][0][:900], "damaged or truncated"),
    "png bomb": (_png(60_000, 60_000, 1, 0, b""), "60000 x 60000 pixels exceed the cap"),
    "png bomb of the largest size": (_png(2**31 - 1, 2**31 - 1, 8, 2, b""), "exceed the cap"),
    "bmp bomb": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "exceed the cap",
    ),
    "ppm bomb": (b"P6 50000 50000 255\n", "exceed the cap"),
    "gif bomb": (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x01\x00\x00;",
        "exceed the cap",
    ),
    "webp bomb": (
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\x00" * 2,
        "exceed the cap|damaged or truncated",
    ),
    "jpeg cut in the header": (_saved(Image.fromarray(RGB), "JPEG")[:30], "damaged or truncated"),
    "jpeg cut in the pixels": (_saved(Image.fromarray(RGB), "JPEG")[:-400], "damaged or truncated"),
    "tiff cut": (EXACT["tiff rgb"][0][:500], "damaged or truncated"),
    "tiff compressed and cut": (EXACT["tiff compressed"][0][:500], "damaged or truncated"),
    "bmp cut": (EXACT["bmp rgb"][0][:500], "damaged or truncated"),
    "webp cut": (EXACT["webp lossless"][0][:500], "damaged or truncated"),
    "gif cut": (EXACT["gif animated"][0][:20], "damaged or truncated"),
    "pgm cut": (EXACT["pgm"][0][:100], "damaged or truncated"),
    "pgm of letters": (b"P2\n2 1\n255\n7 x\n", "damaged or truncated"),
    "tiff of floats": (_saved(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"), "floating-point"),
    "tiff of negative integers": (
        _saved(Image.fromarray(np.full((5, 5), -3, np.int32)), "TIFF"),
        "outside 0..65535",
    ),
    "tiff of large integers": (
        _saved(Image.fromarray(np.full((5, 5), 70_000, np.int32)), "TIFF"),
        "outside 0..65535",
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_image_decodes_to_its_pixels(name: str, tmp_path: Path) -> None:
    content, expected = EXACT[name]
    path = tmp_path / "image.png"
    path.write_bytes(content)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_bytes, from_file = decode(content), decode(path)

    np.testing.assert_array_equal(from_bytes, expected)
    np.testing.assert_array_equal(from_file, from_bytes)
    deep = expected.dtype == np.uint16
    assert from_bytes.dtype == (np.uint16 if deep else np.uint8)
    assert from_bytes.flags.c_contiguous
    assert from_bytes.flags.writeable


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_image_gives_one_line_with_its_name(name: str, tmp_path: Path) -> None:
    content, message = MALFORMED[name]
    path = tmp_path / "image.png"
    path.write_bytes(content)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FlawsmithError, match=message) as caught:
            decode(path)
        with pytest.raises(FlawsmithError, match=message):
            decode(content)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_decodes_close_to_its_pixels(mode: str) -> None:
    smooth = Image.fromarray(RGB).resize((8, 6)).resize((160, 120), Image.Resampling.BICUBIC).convert(mode)

    result = decode(_saved(smooth, "JPEG", quality=98, subsampling=0))

    expected = np.asarray(smooth.convert("RGB"), np.float64)
    assert np.abs(result - expected).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_jpeg_with_damaged_exif_still_decodes() -> None:
    content = _jpeg_with_damaged_exif()

    assert decode(content).shape == RGB.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_and_jpeg_follow_their_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    tiff = _saved(Image.fromarray(RGB), "TIFF", tiffinfo={274: orientation})
    jpeg = _saved(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0, exif=exif)

    np.testing.assert_array_equal(decode(tiff), _turned(orientation))
    assert np.abs(decode(jpeg).astype(int) - _turned(orientation)).max() < 12


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
def test_truncation_at_any_point_is_an_error_or_the_whole_image() -> None:
    for name in ("png rgb", "tiff rgb", "bmp rgb", "webp lossless", "ppm", "png 16-bit colour"):
        content, expected = EXACT[name]
        for length in range(0, len(content), 97):
            try:
                result = decode(content[:length])
            except FlawsmithError:
                continue
            np.testing.assert_array_equal(result, expected)


def test_random_damage_never_raises_anything_but_the_users_error() -> None:
    rng = np.random.default_rng(11)
    for name in (
        "png rgb",
        "tiff compressed",
        "gif animated",
        "webp lossless",
        "bmp palette",
        "png 16-bit colour",
    ):
        for _ in range(40):
            damaged = bytearray(EXACT[name][0])
            for place in rng.integers(0, min(len(damaged), 300), 4):
                damaged[place] = rng.integers(0, 256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = decode(bytes(damaged), max_pixels=1_000_000)
            except FlawsmithError:
                continue
            assert result.ndim == 3
            assert result.shape[2] == 3


def test_size_cap_is_the_callers_and_counts_pixels() -> None:
    content = EXACT["png rgb"][0]

    assert decode(content, max_pixels=HEIGHT * WIDTH).shape == RGB.shape
    with pytest.raises(FlawsmithError, match="exceed the cap of 887"):
        decode(content, max_pixels=HEIGHT * WIDTH - 1)


def test_pillows_own_limit_neither_warns_nor_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (
            "png rgb",
            "bmp rgb",
            "tiff rgb",
            "tiff compressed",
            "tiff 16-bit colour turned",
            "gif animated",
            "ppm",
            "png 16-bit colour",
        ):
            content, expected = EXACT[name]
            np.testing.assert_array_equal(decode(content), expected)


@pytest.mark.parametrize("name", ["β nut.png", "no suffix", "photo.jpg", "with space .PNG", "line\tbreak.png"])
def test_name_and_suffix_do_not_matter(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(EXACT["png rgb"][0])

    np.testing.assert_array_equal(decode(path), RGB)
    np.testing.assert_array_equal(decode(str(path)), RGB)


def test_folder_missing_file_link_and_pipe_are_named(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.png", tmp_path / "pipe.png"
    link.symlink_to(tmp_path / "gone.png")
    os.mkfifo(pipe)

    for path, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "none.png", "no such file"),
        (link, "link to a missing file"),
        (pipe, "not a regular file"),
        (tmp_path / "a\0b.png", "cannot be opened"),
        (tmp_path / ("x" * 400 + ".png"), "cannot be opened"),
    ]:
        with pytest.raises(FlawsmithError, match=message):
            decode(path)


def test_unreadable_file_names_its_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(EXACT["png rgb"][0])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(FlawsmithError, match="check the file's permissions"):
        decode(path)


def test_folder_is_searched_in_order_without_hidden_files(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.png", "a.jpg", "a/z.TIFF", "a/y/x.bmp", "c.webp", "B.Jpeg"]
    for name in [*names, ".hidden.png", ".git/x.png", "notes.txt", "a/._z.TIFF", "Thumbs.db"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()

    found = find_images(tmp_path)

    assert found == sorted(tmp_path / name for name in names)
    assert list(iter_images(str(tmp_path))) == found


def test_linked_folders_are_followed_but_never_round_in_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "1.png").touch()
    (inside / "good").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    (inside / "broken.png").symlink_to(tmp_path / "gone")

    assert find_images(inside) == [inside / "broken.png", inside / "good" / "1.png"]


@pytest.mark.parametrize("name", ["missing", "file.png"])
def test_folder_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()

    with pytest.raises(FlawsmithError, match=r"no such folder|is a file"):
        find_images(tmp_path / name)


def test_name_that_is_too_long_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="no such folder"):
        find_images(tmp_path / ("x" * 300))


def test_suffixes_are_lower_case_with_a_dot() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def test_arrays_become_rgb() -> None:
    np.testing.assert_array_equal(validate_array(RGB), RGB)
    np.testing.assert_array_equal(validate_array(RGB[:, :, ::-1], bgr=True), RGB)
    np.testing.assert_array_equal(validate_array(GREY), _three(GREY))
    np.testing.assert_array_equal(validate_array(GREY[:, :, None], bgr=True), _three(GREY))
    np.testing.assert_array_equal(validate_array(DEEP_RGB), DEEP_RGB)
    assert validate_array(RGB[::2, ::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB.astype(np.float32) / 255, "scale to 0..255"),
        (RGB.astype(np.int64), "give uint8, or uint16 where they exceed 255"),
        (GREY > 9, r"0 and 255: image.astype\(numpy.uint8\) \* 255"),
        (np.dstack([RGB, GREY]), "drop the alpha channel"),
        (RGB.transpose(2, 0, 1), "shape is"),
        (RGB[None], "shape is"),
        (RGB[0, 0], "shape is"),
        (RGB[:0], "no pixels"),
        (np.uint8(3), "got uint8"),
        (np.array(3, np.uint8), "shape is"),
        ([[1, 2], [3, 4]], "got list"),
        (None, "got NoneType"),
    ],
    ids=["float", "int64", "bool", "rgba", "planes first", "batch", "1-D", "empty", "number", "0-D", "list", "none"],
)
def test_other_arrays_are_refused_with_the_mend(array: object, message: str) -> None:
    with pytest.raises(FlawsmithError, match=message):
        validate_array(array)


def test_link_to_itself_does_not_hide_the_folder_it_lies_in(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")

    assert [path.name for path in find_images(tmp_path)] == ["a.png", "loop.png"]


@pytest.mark.parametrize("image", [RGB, DEEP_RGB], ids=["8 bits", "16 bits"])
def test_brightest_channel_is_the_maximum_over_channels(image: np.ndarray) -> None:
    brightest = brightest_channel(image)

    assert brightest.dtype == image.dtype
    np.testing.assert_array_equal(brightest, image.max(axis=2))


@pytest.mark.parametrize(
    "image", [RGB, DEEP_RGB, np.repeat(DEEP_GREY[..., None], 3, axis=2)], ids=["8 bits", "16 bits", "grey"]
)
def test_sample_of_a_summary_is_evenly_spaced_among_the_sorted_values(image: np.ndarray) -> None:
    summary = summarise_values(image)

    assert summary.sample.dtype == image.dtype
    np.testing.assert_array_equal(summary.sample, np.sort(image, axis=None)[:: image.size // 500])
    assert summary.highest == image.max()
    assert summary.grey == is_grey(image) == bool((image == image[..., :1]).all())
