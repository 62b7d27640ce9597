"""Reading images from files, bytes and arrays, safely and always the same way.

Everything Flawsmith does to an image before a network sees it lives here and in `flawsmith.runtime.geometry`:
training, evaluation and inspection share this one copy.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import open_regular
from flawsmith.runtime.formats import holds_further_pictures, open_image, read_image

ImageArray = NDArray[np.uint8] | NDArray[np.uint16]
"""(height, width, 3) RGB."""

MAX_PIXELS = 400_000_000
"""Default size cap: a 16k line-scan camera's 24,000 lines still pass, and the array stays at 1.2 GB or less.
Services that read strangers' files should ask for less."""

_ORIENTATION = 0x0112


def decode(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """Reads an image as RGB.

    Rules: the EXIF orientation is applied; of animated files the first frame counts; grey becomes three equal
    channels; transparency is dropped and the stored colours stay as they are (as OpenCV does: no background
    is invented); palette, 1-bit, CMYK, YCbCr and Lab images are converted. 16-bit grey and colour keep their
    depth; PGM and PPM files, and JPEG 2000 in grey, name their own full scale, which becomes 65535; 32-bit
    integers are taken when they fit 16 bits.

    What cannot be read exactly is refused by name: floating point (it has no full scale), 10 and 14 bits,
    sensors' raw values, several pictures in one TIFF, deep colour in a container that Pillow reads with 8 bits,
    arithmetically coded JPEGs. Damage is found where the compressed data show it: by check sums, and in JPEGs by what
    libjpeg finds odd in them.

    Memory at the peak, for a pixel and beside the file itself: 8 bytes; progressive JPEGs 12, 16-bit grey and WebP
    17, 16-bit colour 20, JPEG 2000 23. A JPEG or TIFF with fewer bytes than its pixels need, or a JPEG of more than 40
    scans, is refused.

    Args:
        source: path of the file, or its content.
        max_pixels: refuse larger images, judged by the header before any pixel is decoded.

    Returns:
        (height, width, 3) uint8, or uint16 for sources deeper than 8 bits; C-contiguous and writable.

    Raises:
        FlawsmithError: missing, unreadable, damaged, of an unsupported kind, too large or not an image; says which file
            and what to do.

    Example:
        >>> import io
        >>> from PIL import Image
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


def has_further_pictures(source: str | Path | bytes) -> bool:
    """Whether an image that `decode` reads holds further pictures, which it does not: see `holds_further_pictures`.

    Args:
        source: path of the file, or its content.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream:
            return holds_further_pictures(open_image(stream, "", MAX_PIXELS))
    except Exception:  # what is wrong, decoding says
        return False


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """(height, width) that `decode` will give an image, by its header; None where that cannot be read.

    An orientation that stands behind the pixels of a PNG file is not seen.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 2)).save(f"{folder}/a.png")
        ...     image_size(f"{folder}/a.png")
        (2, 4)
    """
    try:
        with open_regular(path) as stream, open_image(stream, str(path), max_pixels) as image:
            width, height = image.size
            # Pillow reads all of a PNG file to look for an orientation.
            known = image.format in ("JPEG", "TIFF", "WEBP") or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)
    except Exception:  # Pillow answers odd bytes with nearly every exception there is
        return None


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
            f"image array: got {type(image).__name__}; give a path, bytes, a Pillow image, or a numpy array "
            "(height, width, 3)"
        )
    image = np.asarray(image)  # a matrix has two axes for ever
    if image.dtype == np.dtype(np.uint16).newbyteorder():
        image = image.astype(np.uint16)
    if image.dtype not in (np.uint8, np.uint16):
        raise FlawsmithError(f"image array: values are {image.dtype.name}; {_advice_on_values(image)}")
    if image.size == 0:
        raise FlawsmithError(f"image array: has no pixels, shape {image.shape}; give (height, width, 3)")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        fix = "drop the alpha channel with image[:, :, :3]" if image.shape[-1:] == (4,) else "give (height, width, 3)"
        if image.ndim == 3 and image.shape[0] == 3:
            fix = "put the channels last with image.transpose(1, 2, 0)"
        raise FlawsmithError(f"image array: shape is {image.shape}, needed is (height, width, 3); {fix}")
    return np.ascontiguousarray(image[:, :, ::-1] if bgr else image)


def _advice_on_values(image: NDArray[Any]) -> str:
    """How to give values of another type without wrapping any."""
    kind, fix = image.dtype.kind, "give uint8, or uint16 where they exceed 255"
    if kind == "b":
        return "give black and white as 0 and 255: image.astype(numpy.uint8) * 255"
    if kind == "f":
        finite = bool(np.isfinite(image).all())
        step = "" if finite else "some are no numbers: replace them with numpy.nan_to_num; then "
        return f"{step}scale to 0..255 and convert with .round().astype(numpy.uint8)"
    if kind not in "iu" or image.size == 0:
        return fix
    if image.min() < 0:
        return f"some are below 0, as {image.min()}: shift or clip them to 0 and more, and {fix}"
    return f"some are above 65535, as {image.max()}: scale them down, and {fix}" if image.max() > 65535 else fix


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


_SAMPLE_SIDE = 128
"""Rows and columns that are looked at where the values of an image are summarised."""
_GREY_TOLERANCE, _COLOURED_SHARE = 8 / 255, 0.001
_CAMERA_BITS = (10, 12, 14)
_NARROW = 16
"""How many times wider than its values a range may be before most grey levels are lost."""
_THERMAL = 4
_FEW_MIXED, _SAME_SCALE = 0.05, 0.2
"""Share of images that are let be, and how far brightness may be from a power of two."""
_MANY_BEYOND, _MOST_BEYOND, _SOME_BEYOND = 0.25, 0.5, 0.001


def _sampled(image: ImageArray) -> ImageArray:
    rows, columns = (max(1, length // _SAMPLE_SIDE) for length in image.shape[:2])
    return image[::rows, ::columns]


def brightest_channel(image: ImageArray) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The largest channel of every pixel, as ``image.max(2)`` in a tenth of the time.

    Args:
        image: (height, width, 3).

    Returns:
        (height, width), of the same type.

    Example:
        >>> brightest_channel(np.array([[[90, 93, 91], [7, 7, 7]]], np.uint8))
        array([[93,  7]], dtype=uint8)
    """
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def is_grey(image: ImageArray) -> bool:
    """Whether an image shows grey alone: its channels are equal but for noise, compression and a tint.

    Args:
        image: (height, width, 3); 128 rows and columns of it are looked at.

    Example:
        >>> is_grey(np.array([[[90, 93, 91], [7, 7, 7]]], np.uint8)), is_grey(np.array([[[90, 20, 20]]], np.uint8))
        (True, False)
    """
    sample = _sampled(image)
    full = 255 if image.dtype == np.uint8 else max(int(sample.max()), 1)
    darkest = np.minimum(np.minimum(sample[..., 0], sample[..., 1]), sample[..., 2])
    spread = brightest_channel(sample).astype(np.int32) - darkest
    return bool((spread > _GREY_TOLERANCE * full).mean() <= _COLOURED_SHARE)


class ValueSummary(NamedTuple):
    """What is kept of the values of an image.

    Attributes:
        deep: whether it has more than 8 bits.
        grey: see `is_grey`.
        highest: its largest value.
        sample: some of its values, sorted.
    """

    deep: bool
    grey: bool
    highest: int
    sample: NDArray[np.uint8] | NDArray[np.uint16]


class RangeAdvice(NamedTuple):
    """What is wrong with a range of values, or with having declared none.

    Attributes:
        refused: whether the images cannot be used so; otherwise most of their grey levels are lost.
        what: the fault.
        fix: what to do.
    """

    refused: bool
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def summarise_values(image: ImageArray) -> ValueSummary:
    """Looks at the values of an image; `range_advice` says what follows of many.

    Args:
        image: (height, width, 3).
    """
    values = _sampled(image).ravel()
    ranks = np.arange(0, values.size, max(1, values.size // 500))
    # Counting sorts; sorting takes ten times as long.
    sample: NDArray[Any] = np.searchsorted(np.cumsum(np.bincount(values)), ranks, side="right").astype(image.dtype)
    return ValueSummary(image.dtype != np.uint8, is_grey(image), int(image.max()), sample)


def kind_of_images(summaries: Sequence[ValueSummary]) -> str:
    """The kind that all images are of, such as ``grey, 8 bits``; empty where they differ in depth, or there are none.

    Example:
        >>> kind_of_images([summarise_values(np.full((4, 6, 3), 9, np.uint8))])
        'grey, 8 bits'
    """
    depths = {summary.deep for summary in summaries}
    if len(depths) != 1:
        return ""
    return f"{'grey' if all(s.grey for s in summaries) else 'colour'}, {'16' if depths.pop() else '8'} bits"


def range_advice(
    summaries: Sequence[ValueSummary], value_range: tuple[float, float] | None, option: str = ""
) -> RangeAdvice | None:
    """Holds the values of images deeper than 8 bits against the range that becomes black and white.

    Args:
        summaries: of the images.
        value_range: `Geometry.value_range`.
        option: how the user gave it, such as ``--bits 12``.

    Returns:
        None: all is well.

    Example:
        >>> images = [np.full((8, 8, 3), value, np.uint16) for value in (900, 2800)]
        >>> print(range_advice([summarise_values(image) for image in images], None))
        values end at 2800 of 65535: a 12-bit camera? add --bits 12
    """
    deep = [summary for summary in summaries if summary.deep]
    if not deep:
        if value_range is None or not summaries:
            return None
        return RangeAdvice(False, f"{option} changes nothing", "all images have 8 bits, leave it out")
    if (mixed := _mixed_scales(deep, refused=option.startswith("--bits"))) is not None:
        return mixed
    values = np.sort(np.concatenate([summary.sample for summary in deep]))
    lowest, highest = (int(value) for value in np.quantile(values, (0.001, 0.999), method="nearest"))
    top = max(summary.highest for summary in deep)
    if value_range is not None:
        return _declared(values, (lowest, highest, top), value_range, option)
    bits = next((number for number in _CAMERA_BITS if top < 2**number), 16)
    camera = "" if bits == 16 else f"a {bits}-bit camera? add --bits {bits}"
    if top < 256:
        camera = "8-bit values in 16-bit files? add --value-range 0:255"
    # Thermal cameras count from absolute zero: their values begin high and hardly vary.
    thermal = bits < 16 and 8 * lowest > 2**bits and _THERMAL * (highest - lowest) < 2**bits
    if camera and not thermal:
        return RangeAdvice(False, f"values end at {top} of 65535", camera) if highest - lowest > 1 else None
    narrow = _narrow(lowest, highest, 65535.0, "of 65535")
    return narrow if narrow is None or not camera else narrow._replace(fix=f"{narrow.fix}, or is it {camera}")


def _mixed_scales(deep: Sequence[ValueSummary], *, refused: bool) -> RangeAdvice | None:
    """Whether some files hold a camera's values as they are, and others the same scaled to 16 bits."""
    for bits in _CAMERA_BITS:
        plain = [summary for summary in deep if summary.highest < 2**bits]
        scaled = [summary for summary in deep if summary.highest >= 2**bits]
        if min(len(plain), len(scaled)) <= _FEW_MIXED * len(deep):
            continue
        middles = [float(np.median([np.median(summary.sample) for summary in part])) for part in (plain, scaled)]
        if abs(middles[1] / max(middles[0], 1.0) / 2 ** (16 - bits) - 1) < _SAME_SCALE:
            ends = [max(summary.highest for summary in part) for part in (plain, scaled)]
            fault = f"{len(plain)} of {len(deep)} images hold values up to {ends[0]}, the others up to {ends[1]}"
            fix = f"{bits}-bit values, some of them scaled to 16 bits? save all in the same way"
            return RangeAdvice(refused, fault, fix)
    return None


def _declared(
    values: NDArray[Any], extent: tuple[int, int, int], value_range: tuple[float, float], option: str
) -> RangeAdvice | None:
    (low, high), (lowest, highest, top) = value_range, extent
    above = float((values > high).mean())
    if option.startswith("--bits") and above > _SOME_BEYOND:
        bits = next((number for number in _CAMERA_BITS if top < 2**number), 16)
        fix = "leave --bits out" if bits == 16 else f"give --bits {bits}, or leave it out"
        return RangeAdvice(True, f"values up to {top}, but {option} ends at {high:.0f}", fix)
    beyond = above + float((values < low).mean())
    if beyond > _MOST_BEYOND:
        finding = f"{beyond:.0%} of the values lie outside {option or f'{low:g}:{high:g}'}"
        return RangeAdvice(True, finding, f"they go from {lowest} to {highest}, give a range that holds them")
    narrow = _narrow(max(lowest, low), min(highest, high), high - low, f"of {low:g} to {high:g}")
    fewer = next((number for number in _CAMERA_BITS if top < 2**number), 16)
    if narrow is None and option.startswith("--bits") and 4 * 2**fewer <= high + 1 and highest - lowest > 1:
        return RangeAdvice(False, f"values end at {top} of {high:.0f}", f"a {fewer}-bit camera? give --bits {fewer}")
    return narrow


def _narrow(lowest: float, highest: float, width: float, of: str) -> RangeAdvice | None:
    """Nothing is said of images of one even tone: no range would help them."""
    span = highest - lowest
    if span <= 1 or _NARROW * span >= width:
        return None
    # Half as much again on either side: a flaw may be darker or brighter than all good parts.
    low, high = max(0, round(lowest - span / 2)), min(65535, round(highest + span / 2))
    return RangeAdvice(
        False,
        f"nearly all values lie between {lowest:.0f} and {highest:.0f} {of}, which the model sees as one tone",
        f"add --value-range {low}:{high}",
    )


class KindWatch:
    """Says once when a model gets images of another kind than it learned from, or many values beyond its range.

    Args:
        learned: `kind_of_images` of the training images; empty: unknown.
        value_range: `Geometry.value_range`.
    """

    def __init__(self, learned: str, value_range: tuple[float, float] | None) -> None:
        self._depth, self._grey = learned.rpartition(", ")[2], learned.startswith("grey")
        self._value_range = value_range
        self._told: set[str] = set()

    def look(self, image: ImageArray, name: str) -> None:
        """Warns in one line, where there is cause that was not told yet.

        Args:
            image: (height, width, 3).
            name: of the image.
        """
        depth = "8 bits" if image.dtype == np.uint8 else "16 bits"
        if self._depth and depth != self._depth:
            self._tell("depth", f"{name} has {depth}, the model learned from images of {self._depth}")
        if self._grey and "colour" not in self._told and not is_grey(image):
            self._tell("colour", f"{name} shows colour, the model learned from grey images")
        if self._value_range is not None and image.dtype == np.uint16 and "range" not in self._told:
            (low, high), sample = self._value_range, _sampled(image)
            beyond = float(((sample < low) | (sample > high)).mean())
            if beyond > _MANY_BEYOND:
                oddity = f"{beyond:.0%} of the values of {name} lie outside {low:g} to {high:g}, the range of the model"
                self._tell("range", oddity)

    def _tell(self, kind: str, oddity: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(f"{oddity}: its verdict may be wrong (said once)", stacklevel=3)
