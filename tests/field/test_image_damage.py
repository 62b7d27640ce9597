"""A damaged image is not inspected as whole, a small file does not take a large memory, and nothing is printed."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tests.field.image_files import jpeg_segment, saved, tiff

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.formats import _jpeg_frame, bounded_directory
from flawsmith.runtime.image import decode

Y, X = np.mgrid[0:160, 0:240]
_NOISE = np.random.default_rng(3).normal(0, 6, (160, 240, 3))
PICTURE = np.clip(np.stack([X, 255 - Y, 90 + (X * Y) % 97], 2) + _NOISE, 0, 255).astype(np.uint8)
KINDS: dict[str, dict[str, object]] = {
    "usual": {},
    "fine colour": {"subsampling": 0, "quality": 92},
    "with restarts": {"restart_marker_blocks": 10},
    "with tables of its own": {"optimize": True},
}
JPEGS = {name: saved(PICTURE, "JPEG", **options) for name, options in KINDS.items()}
JPEGS |= {"grey": saved(PICTURE[:, :, 0], "JPEG"), "cmyk": saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")}


def _pixels(content: bytes) -> tuple[int, int]:
    """Where the compressed data of a JPEG begin and end."""
    scan = _jpeg_frame(content).scans[0]
    return scan.start, scan.end


def _damaged(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    start, end = _pixels(content)
    place = int(np.random.default_rng(seed).integers(start + 50, end - 700))
    yield "cut and closed", content[:place] + content[end:]
    yield "a stretch lost", content[:place] + content[place + 512 :]
    yield "a stretch twice", content[: place + 512] + content[place:]
    yield "a sector of zeros", content[:place] + bytes(512) + content[place + 512 :]
    yield "a marker within", content[:place] + b"\xff\xd9" + content[place + 2 :]


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("seed", range(4))
def test_damaged_jpeg_is_refused(kind: str, seed: int) -> None:
    content = JPEGS[kind]
    whole = decode(content).astype(int)

    for name, damaged in _damaged(content, seed):
        try:
            image = decode(damaged)
        except FlawsmithError as error:
            assert "damaged" in str(error)
        else:
            # A decoder may fall into step again, with no more lost than what it could not know of.
            assert name in ("a sector of zeros", "a stretch twice")
            assert (np.abs(image - whole) > 30).any(2).mean() < 0.1


@pytest.mark.parametrize("kind", JPEGS)
def test_whole_jpeg_is_read_as_pillow_reads_it(kind: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(JPEGS[kind])).convert("RGB"))

    np.testing.assert_array_equal(decode(JPEGS[kind]), expected)


@pytest.mark.parametrize("kind", [*JPEGS, "progressive"])
@pytest.mark.parametrize("padding", [b"\0", b"\0\0\0", bytes(500), b"\xff\xff"])
def test_bytes_that_fill_up_a_whole_jpeg_are_no_damage(kind: str, padding: bytes) -> None:
    content = JPEGS.get(kind) or saved(PICTURE, "JPEG", progressive=True)
    end = _jpeg_frame(content).scans[-1].end

    for padded in (content[:end] + padding + content[end:], content[:end], content + padding):
        np.testing.assert_array_equal(decode(padded), decode(content))


def test_odd_headers_are_no_damage() -> None:
    content = JPEGS["usual"]
    revision, scan = content.index(b"JFIF\0") + 5, content.index(b"\xff\xda") + 11
    of_adobe = content.replace(b"\xff\xdb", jpeg_segment(0xEE, b"Adobe\0d\0\0\0\0\x07") + b"\xff\xdb", 1)
    without_jfif = of_adobe[:2] + of_adobe[of_adobe.index(b"\xff\xee") :]

    for odd in (
        content[:revision] + b"\x07" + content[revision + 1 :],
        content[:scan] + b"\0\0\0" + content[scan + 3 :],
        without_jfif,
    ):
        np.testing.assert_array_equal(decode(odd), decode(content))
        start, end = _pixels(odd)
        for damaged in (odd[: (start + end) // 2] + odd[end:], odd[: start + 300] + odd[start + 900 :]):
            with pytest.raises(FlawsmithError, match="damaged"):
                decode(damaged)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("value", [0, 1, 254, 255])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 17), (500, 3), (3, 500), (300, 200)])
def test_even_tones_are_no_damage(mode: str, value: int, size: tuple[int, int]) -> None:
    colour = value if mode == "L" else (value, 255 - value, (value * 3) % 256)
    content = saved(Image.new(mode, size, colour), "JPEG", quality=100, subsampling=0)

    assert decode(content).shape == (size[1], size[0], 3)


def test_jpeg_in_the_colour_of_an_untouched_canvas_is_read() -> None:
    content = saved(np.full((40, 50), 1, np.uint8), "JPEG", quality=100)

    assert (decode(content) == 1).all()


PROGRESSIVE: dict[str, dict[str, object]] = {
    "usual": {},
    "fine colour": {"subsampling": 0, "quality": 92},
    "with restarts": {"restart_marker_blocks": 10},
}


def _damaged_scans(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    scans = _jpeg_frame(content).scans
    place = int(np.random.default_rng(seed).integers(scans[0].start + 20, scans[-1].end - 700))
    yield "cut and closed", content[:place] + content[scans[-1].end :]
    yield "a marker within", content[:place] + b"\xff\xd9" + content[place + 2 :]
    yield "a stretch lost", content[:place] + content[place + 512 :]
    yield "a sector of zeros", content[:place] + bytes(512) + content[place + 512 :]


def test_progressive_jpeg_whose_scans_end_early_is_refused() -> None:
    refused, spoilt, seeds = Counter[str](), Counter[str](), range(20)
    for options in PROGRESSIVE.values():
        content = saved(PICTURE, "JPEG", progressive=True, **options)
        whole = decode(content).astype(int)
        for name, damaged in (case for seed in seeds for case in _damaged_scans(content, seed)):
            try:
                image = decode(damaged)
            except FlawsmithError as error:
                assert "damaged" in str(error)
                refused[name] += 1
            else:
                spoilt[name] += bool((np.abs(image - whole) > 30).any(2).mean() > 0.02)

    # A decoder may fall into step again, or have data left where a stretch was exchanged. Little is wrong then, mostly.
    share = {name: number / len(seeds) / len(PROGRESSIVE) for name, number in refused.items()}
    assert min(share["cut and closed"], share["a marker within"]) > 0.9, share
    assert min(share["a stretch lost"], share["a sector of zeros"]) > 0.4, share
    assert (spoilt["cut and closed"], spoilt["a marker within"]) == (0, 0)
    assert max(spoilt.values()) < 0.2 * len(seeds) * len(PROGRESSIVE), spoilt


@pytest.mark.parametrize("kind", PROGRESSIVE)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (9, 17), (500, 3), (160, 240)])
@pytest.mark.parametrize("tone", ["even", "drawn"])
def test_whole_progressive_jpeg_is_read_as_pillow_reads_it(
    kind: str, mode: str, size: tuple[int, int], tone: str
) -> None:
    picture = Image.fromarray(PICTURE).resize(size) if tone == "drawn" else Image.new("RGB", size, (230, 231, 7))
    content = saved(picture.convert(mode), "JPEG", progressive=True, **PROGRESSIVE[kind])

    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": True, "subsampling": 0}])
def test_progressive_jpeg_lacking_scans_is_refused(options: dict[str, object]) -> None:
    content = saved(PICTURE, "JPEG", **options)
    scans = _jpeg_frame(content).scans

    assert decode(content).shape == PICTURE.shape
    for scan in scans[:-1]:
        with pytest.raises(FlawsmithError, match="scans are missing"):
            decode(content[: scan.end] + b"\xff\xd9")


def test_progressive_jpeg_of_many_empty_scans_is_refused() -> None:
    content = saved(PICTURE, "JPEG", progressive=True)
    last = _jpeg_frame(content).scans[-1]
    scan = jpeg_segment(0xDA, last.parameters) + content[last.start : last.end]

    with pytest.raises(FlawsmithError, match="more than 40 scans"):
        decode(content[: last.end] + 5000 * scan + b"\xff\xd9")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("padding", [0, 100_000])
def test_small_jpeg_of_a_large_size_takes_no_memory(*, progressive: bool, padding: int) -> None:
    content = saved(np.zeros((64, 64, 3), np.uint8), "JPEG", progressive=progressive)
    at = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    bomb = content[: at + 5] + struct.pack(">HH", 16383, 16383) + content[at + 9 :]
    filled = bomb[:2] + (padding // 50_000) * jpeg_segment(0xFE, bytes(50_000)) + bomb[2:]

    tracemalloc.start()
    with pytest.raises(FlawsmithError, match="too few bytes for 16383 x 16383 pixels"):
        decode(filled)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * len(filled) + 500_000


WITH_RESTARTS = ({"restart_marker_rows": 1}, {"restart_marker_rows": 3}, {"restart_marker_blocks": 7})


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", WITH_RESTARTS, ids=str)
def test_data_that_do_not_fit_between_restart_markers_are_refused(mode: str, options: dict[str, object]) -> None:
    content = saved(Image.fromarray(PICTURE).convert(mode), "JPEG", **options)
    mark = content.index(b"\xff\xd2", _pixels(content)[0])
    lost, doubled = content[: mark - 30] + content[mark:], content[:mark] + content[mark - 30 :]
    lost_behind = content[: mark + 2] + content[mark + 32 :]

    assert decode(content).shape == PICTURE.shape
    for damaged, message in ((lost, "premature end"), (doubled, "extraneous bytes"), (lost_behind, "damaged")):
        with pytest.raises(FlawsmithError, match=message):
            decode(damaged)


@pytest.mark.parametrize("value", [1, 254, 255])
@pytest.mark.parametrize("options", WITH_RESTARTS, ids=str)
def test_even_jpegs_with_restart_markers_are_read(value: int, options: dict[str, object]) -> None:
    for mode in ("RGB", "L", "CMYK"):
        content = saved(Image.new("L", (241, 163), value).convert(mode), "JPEG", **options)
        np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("compression", [8, 32946])
@pytest.mark.parametrize("rows", [160, 16])
def test_deflated_tiff_whose_check_sum_is_not_that_of_its_data_is_refused(compression: int, rows: int) -> None:
    strips = [zlib.compress(PICTURE[top : top + rows].tobytes(), 0) for top in range(0, 160, rows)]
    whole = tiff((160, 240), strips, bits=(8,) * 3, photometric=2, compression=compression, rows=rows)
    hole = len(whole) // 2
    damaged = whole[:hole] + bytes(512) + whole[hole + 512 :]

    np.testing.assert_array_equal(decode(whole), PICTURE)
    with pytest.raises(FlawsmithError, match=r"damaged.*incorrect data check"):
        decode(damaged)


@pytest.mark.parametrize("compression", [1, 3, 4, 5, 7, 8, 32773])
def test_small_tiff_of_a_large_size_takes_no_memory(compression: int) -> None:
    bits, photometric = ((1,), 0) if compression in (3, 4) else ((8, 8, 8), 2)
    content = tiff((16000, 16000), [bytes(1000)], bits=bits, photometric=photometric, compression=compression)

    with pytest.raises(FlawsmithError, match="too few bytes for 16000 x 16000 pixels"):
        decode(content)


def exif(tags: int, length: int) -> bytes:
    """EXIF with so many tags, of which each names the same stretch as its values."""
    directory = struct.pack("<H", tags) + b"".join(struct.pack("<HHLL", 40000 + n, 1, length, 8) for n in range(tags))
    return b"II*\0" + struct.pack("<L", 8 + length) + bytes(length) + directory + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("error")
def test_tags_that_name_all_of_the_file_take_no_memory(kind: str) -> None:
    content = saved(PICTURE, kind, exif=exif(1000, 50_000))
    decode(content)
    tracemalloc.start()

    decode(content)

    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_directory_whose_tags_name_more_than_the_file_has_is_not_loaded() -> None:
    loaded = []
    bounded = bounded_directory(lambda directory, stream: loaded.append(stream.tell()))
    for tags in (1, 3):
        content = exif(tags, 1000)
        stream = io.BytesIO(content)
        directory = ImageFileDirectory_v2(stream.read(8))
        stream.seek(directory.next)
        if tags == 3:
            with pytest.raises(ValueError, match="more bytes than the file has"):
                bounded(directory, stream)
        else:
            bounded(directory, stream)

    assert loaded == [1008]


def test_further_pages_are_looked_at_without_their_values() -> None:
    values, pages = 200_000, 40
    content = bytearray(tiff((160, 240), [PICTURE[:, :, 0].tobytes(), bytes(2 * values)], rows=160))
    directory = struct.unpack_from("<L", content, 4)[0]
    link = directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0]
    for _ in range(pages):  # thumbnails, each with the same long row of numbers
        struct.pack_into("<L", content, link, len(content))
        content += struct.pack("<HHHLLHHLL", 2, 254, 4, 1, 1, 40000, 3, values, 8)
        link = len(content)
        content += bytes(4)
    tracemalloc.start()

    decode(bytes(content))

    assert tracemalloc.get_traced_memory()[1] < 6_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_even_tiff_is_small_and_read(compression: str) -> None:
    mode = "1" if compression.startswith("group") else "L"
    content = saved(Image.new(mode, (3000, 2000), 255), "TIFF", compression=compression)

    assert (decode(content) == 255).all()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_nothing_is_printed_about_a_damaged_tiff(
    compression: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(saved(PICTURE, "TIFF", compression=compression))
    content[2000:2400] = os.urandom(0) + b"\xff" * 400
    path = tmp_path / "part.tif"
    path.write_bytes(content)

    for source in (bytes(content), path):
        try:
            decode(source)
        except FlawsmithError as error:
            assert "\n" not in str(error)

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tag", [256, 258, 259, 262, 277, 279])
@pytest.mark.parametrize("kind", [2, 11, 7])  # text, floating point, bytes without a meaning
def test_tiff_with_text_or_fractions_for_numbers_is_refused_in_one_line(tag: int, kind: int) -> None:
    content = bytearray(saved(PICTURE, "TIFF"))
    (directory,) = struct.unpack_from("<I", content, 4)
    entries = range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0], 12)
    (place,) = [entry for entry in entries if struct.unpack_from("<H", content, entry)[0] == tag]
    struct.pack_into("<HI", content, place + 2, kind, 60)
    struct.pack_into("<I", content, place + 8, 10)  # sixty values that lie among the pixels

    with pytest.raises(FlawsmithError, match=r"^[ -~]+$"):
        decode(bytes(content))
