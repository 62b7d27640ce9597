"""From an image of any size to the network's input, and from the network's map back to the image's pixels."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from flawsmith.runtime.roi import RegionOfInterest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_MASK_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""(h, w, 3) RGB at the size at which a network sees an image: uint8, or float32 in 0..1 of a deeper source."""

WHOLE_PIXELS = 2**24
"""Largest image that a crop resizes as a whole; of a longer one, such as a web, only what the network sees is resized,
which may differ by a grey level."""


MAX_SIDE = 8192
"""Longest side of a network's input and of an image before the cut, pixels: what a model file asks for is no larger."""
_SMALLEST_STEP = 1e-6
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Value = Annotated[FiniteFloat, Field(ge=-1e9, le=1e9)]  # float32 holds what is computed of such numbers


class _Sliced(Protocol):
    def __getitem__(self, key: tuple[slice, slice], /) -> Any: ...


_Map = TypeVar("_Map", bound=_Sliced)
"""An array, or a tensor on whatever device."""


class _Axis(NamedTuple):
    """One axis of the way into the network: the image is resized, then a window of it is the network's input.

    Attributes:
        original: length of the image in pixels.
        resized: length after resizing, in network pixels.
        start: first network pixel of the resized image that the network sees (crop), 0 otherwise.
        length: network pixels filled by the image.
        padding: network pixels before the image (letterbox), 0 otherwise.
    """

    original: int
    resized: int
    start: int
    length: int
    padding: int

    @property
    def box(self) -> tuple[float, float]:
        """The part of the image, in its own pixels, that the network sees."""
        pixels = self.original / self.resized
        return self.start * pixels, min((self.start + self.length) * pixels, float(self.original))

    @property
    def valid(self) -> tuple[int, int]:
        """First and past-the-last original pixel whose centre the network sees; at least one pixel."""
        low, high = self.box
        first = min(math.ceil(low - 0.5), self.original - 1)
        return first, min(max(math.ceil(high - 0.5), first + 1), self.original)


class Geometry(BaseModel):
    """How an image becomes the network's input, and how a map returns to the image; stored in every bundle.

    Policies: ``squash`` resizes to ``size`` whatever the aspect; ``crop`` resizes the shorter side to
    ``resize`` and cuts ``size`` out of the middle, as torchvision's ``Resize(int)`` and ``CenterCrop`` do in
    the published code (longer side truncated, offset rounded half to even); ``letterbox`` keeps the aspect,
    fits the image into ``size`` and fills the rest with ``mean``, which is 0 after normalising.

    Example:
        >>> geometry = Geometry(size=(4, 6))
        >>> geometry.apply(np.zeros((30, 20, 3), np.uint8)).shape
        (3, 4, 6)
        >>> geometry.invert(np.ones((4, 6), np.float32), (30, 20)).shape
        (30, 20)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["squash", "crop", "letterbox"] = Field(default="squash", description="how the aspect is treated")
    size: tuple[_Side, _Side] = Field(description="height and width of the network's input, pixels")
    resize: _Side | None = Field(
        default=None,
        description="crop only: the shorter side before the cut, at least max(size); None: max(size)",
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        default="bilinear", description="Pillow's filter, always antialiased"
    )
    mean: tuple[_Value, _Value, _Value] = Field(
        default=IMAGENET_MEAN, description="subtracted from values scaled to 0..1"
    )
    std: tuple[_Value, _Value, _Value] = Field(default=IMAGENET_STD, description="divisor after the mean, > 0")
    value_range: tuple[_Value, _Value] | None = Field(
        default=None,
        description="values of a source deeper than 8 bits that become 0 and 1; None: 0 and 65535. Declared, "
        "never guessed from an image; 8-bit images always have 0..255",
    )
    region: RegionOfInterest | None = Field(
        default=None,
        description="what the network sees of the image; the rest becomes grey, half way to white. None: all of it",
    )

    @model_validator(mode="after")
    def _check(self) -> Geometry:
        if self.policy != "crop" and self.resize is not None:
            raise ValueError("resize has a meaning for the policy crop alone")
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"resize {self.resize} is smaller than the crop {self.size}")
        if min(self.std) < _SMALLEST_STEP:
            raise ValueError(f"std must be at least {_SMALLEST_STEP}")
        if self.value_range is not None and self.value_range[1] - self.value_range[0] < _SMALLEST_STEP:
            raise ValueError("value_range must rise")
        return self

    @staticmethod
    def range_of_bits(bits: int) -> tuple[float, float]:
        """Returns the ``value_range`` of a camera with ``bits`` significant low bits in 16: 9 to 16.

        Raises:
            ValueError: ``bits`` is outside 9..16.

        Example:
            >>> Geometry.range_of_bits(12)
            (0.0, 4095.0)
        """
        if not 9 <= bits <= 16:
            raise ValueError(f"bits must be 9 to 16, not {bits}")
        return 0.0, float(2**bits - 1)

    def apply(self, image: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Makes the network's input of an image: :meth:`fit`, then :meth:`normalise`.

        Args:
            image: (height, width, 3) RGB, uint8 or uint16, as `flawsmith.runtime.image.decode` returns it.

        Returns:
            (3, h, w) float32, C-contiguous, normalised: ``(value in 0..1 − mean) / std``.

        Example:
            >>> Geometry(size=(4, 6)).apply(np.zeros((30, 20, 3), np.uint8)).shape
            (3, 4, 6)
        """
        return self.normalise(self.fit(image))

    def fit(self, image: NDArray[np.uint8] | NDArray[np.uint16]) -> Pixels:
        """Brings an image to the size at which the network sees it, without a letterbox's bars.

        What is kept between decoding and the network is this: it holds all that the network's input does.

        Args:
            image: (height, width, 3) RGB, uint8 or uint16.

        Returns:
            (h, w, 3), where the policy is letterbox smaller in one direction: uint8 of an 8-bit source, else
            float32 in 0..1 by ``value_range``, because the resized values lie between those of 8 bits.

        Example:
            >>> pixels = Geometry(policy="letterbox", size=(8, 8)).fit(np.full((40, 80, 3), 7, np.uint8))
            >>> pixels.shape, pixels.dtype.name
            ((4, 8, 3), 'uint8')
        """
        if self.region is not None:
            image = self.painted_over(image, self.region.to_mask((image.shape[0], image.shape[1])))
        if image.dtype == np.uint8:
            return self._resized(Image.fromarray(image), _FILTERS[self.interpolation])
        rows, columns = self._axes((image.shape[0], image.shape[1]))
        low, high = self.value_range or (0.0, 65535.0)
        result = np.empty((rows.length, columns.length, 3), np.float32)
        for channel in range(3):
            # Clipping comes first: a value beyond the declared range must not bleed into its neighbours.
            plane = np.clip((image[:, :, channel].astype(np.float32) - low) / (high - low), 0.0, 1.0)
            picture = Image.fromarray(plane.astype(np.float32))
            result[:, :, channel] = _windowed(picture, _FILTERS[self.interpolation], rows, columns)
        return result

    def to_float(self, pixels: Pixels) -> NDArray[np.float32]:
        """The network's input before it is normalised, as a picture to draw on.

        Args:
            pixels: as :meth:`fit` gives them.

        Returns:
            (h, w, 3) float32 in 0..1; the bars of a letterbox hold ``mean``.

        Example:
            >>> geometry = Geometry(policy="letterbox", size=(4, 4), mean=(0.5, 0.5, 0.5))
            >>> geometry.to_float(np.full((2, 4, 3), 255, np.uint8))[:, 0, 0].tolist()
            [0.5, 1.0, 1.0, 0.5]
        """
        result = np.empty((*self.size, 3), np.float32)
        result[:] = self.mean
        result[self._centred(pixels)] = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels
        return result

    def normalise(self, pixels: Pixels) -> NDArray[np.float32]:
        """The network's input of pixels at its size.

        Args:
            pixels: as :meth:`fit` gives them, or as :meth:`to_float` does: (h, w, 3), uint8 or float32 in 0..1.

        Returns:
            (3, h, w) float32, C-contiguous: ``(value in 0..1 − mean) / std``; the bars of a letterbox are 0.

        Raises:
            ValueError: the pixels exceed the network's input.

        Example:
            >>> geometry = Geometry(size=(4, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
            >>> geometry.normalise(np.full((4, 6, 3), 255, np.uint8)).max().item()
            2.0
        """
        region = self._centred(pixels)
        whole = pixels.shape[:2] == self.size
        result = np.empty((3, *self.size), np.float32) if whole else np.zeros((3, *self.size), np.float32)
        if pixels.dtype == np.uint8:
            tables = self._tables()
            for channel in range(3):
                # A table look-up scales, shifts and converts in one pass.
                result[channel][region] = tables[channel][pixels[:, :, channel]]
            return result
        for channel in range(3):
            result[channel][region] = (pixels[:, :, channel] - self.mean[channel]) / self.std[channel]
        return result

    def apply_to_mask(
        self, mask: NDArray[np.bool_], resample: Literal["nearest", "bilinear", "bicubic"], *, exact: bool
    ) -> NDArray[np.float32]:
        """Brings a mask the way that the image goes, to be compared with :meth:`valid_region` of a map.

        Args:
            mask: (height, width) of the image, True where flawed.
            resample: Pillow's filter; all but nearest are antialiased.
            exact: compute in float32; otherwise in 8 bits, rounded, as with a mask file.

        Returns:
            (h, w) float32, 0..1: the network's input without letterbox bars. Bicubic in float may overshoot.

        Example:
            >>> Geometry(size=(1, 2)).apply_to_mask(np.array([[True, True, False, False]]), "nearest", exact=True)
            array([[1., 0.]], dtype=float32)
        """
        plane = mask.astype(np.float32) if exact else np.where(mask, np.uint8(255), np.uint8(0))
        resized = self._resized(Image.fromarray(plane), _MASK_FILTERS[resample]).astype(np.float32)
        return resized if exact else resized / np.float32(255)

    def valid_region(self, anomaly_map: _Map, original_size: tuple[int, int]) -> _Map:
        """The part of a map of the network's input size that shows the image: all but letterbox bars.

        Example:
            >>> Geometry(policy="letterbox", size=(8, 8)).valid_region(np.zeros((8, 8), np.float32), (40, 80)).shape
            (4, 8)
        """
        return anomaly_map[_filled(*self._axes(original_size))]

    def invert(self, anomaly_map: NDArray[np.float32], original_size: tuple[int, int]) -> NDArray[np.float32]:
        """Brings a map back to the pixels of the original image, bilinearly, antialiased where it shrinks.

        Args:
            anomaly_map: (h, w) of the network's input size.
            original_size: (height, width) of the image.

        Returns:
            (height, width) float32. Pixels that a crop cut away or that lie outside of the region hold the smallest
            value of the map.

        Raises:
            ValueError: the map has not the network's input size.

        Example:
            >>> Geometry(size=(4, 6)).invert(np.ones((4, 6), np.float32), (30, 20)).shape
            (30, 20)
        """
        return self.inverse(anomaly_map, original_size).whole()

    def inverse(self, anomaly_map: NDArray[np.float32], original_size: tuple[int, int]) -> InvertedMap:
        """What :meth:`invert` gives, computed only where it is asked for.

        Args:
            anomaly_map: (h, w) of the network's input size.
            original_size: (height, width) of the image.

        Raises:
            ValueError: the map has not the network's input size.

        Example:
            >>> inverse = Geometry(size=(4, 6)).inverse(np.eye(4, 6, dtype=np.float32), (30, 20))
            >>> inverse.shape, inverse.columns(inverse.columns_above(0.9)).max().item()
            ((30, 20), 1.0)
        """
        if anomaly_map.shape != self.size:
            raise ValueError(f"the map is {anomaly_map.shape}, the network's input {self.size}")
        return InvertedMap(anomaly_map, *self._axes(original_size), self.region)

    def valid_mask(self, original_size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Tells which pixels of an image the network sees.

        Args:
            original_size: (height, width) of the image.

        Returns:
            None where all are seen, else (height, width) bool, False where a crop cut away and outside of the region.

        Example:
            >>> mask = Geometry(policy="crop", size=(4, 4)).valid_mask((4, 8))
            >>> mask[0].astype(int).tolist()
            [0, 0, 1, 1, 1, 1, 0, 0]
        """
        rows, columns = self._axes(original_size)
        (top, bottom), (left, right) = rows.valid, columns.valid
        region = None if self.region is None else self.region.to_mask((original_size[0], original_size[1]))
        if (bottom - top, right - left) == tuple(original_size):
            return region
        mask = np.zeros(original_size, bool)
        mask[top:bottom, left:right] = True if region is None else region[top:bottom, left:right]
        return mask

    def painted_over(
        self, image: NDArray[np.uint8] | NDArray[np.uint16], inside: NDArray[np.bool_]
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """An image that is grey outside of a region: before it is resized, so that nothing of what lies there reaches
        the network.

        Args:
            image: (height, width, 3).
            inside: (height, width), False where it is painted over.
        """
        low, high = (0.0, 255.0) if image.dtype == np.uint8 else self.value_range or (0.0, 65535.0)
        painted = image.copy()
        # A range may lie beyond what the image can hold, and whoever wrote it may be a stranger.
        painted[~inside] = min(max(round(low + (high - low) / 2), 0), np.iinfo(image.dtype).max)
        return painted

    def _centred(self, pixels: Pixels) -> tuple[slice, slice]:
        """The network pixels that pixels without bars fill.

        Raises:
            ValueError: they exceed them.
        """
        shape = pixels.shape[:2]
        if pixels.ndim != 3 or any(length > size for length, size in zip(shape, self.size, strict=True)):
            raise ValueError(f"the pixels are {pixels.shape}, the network's input {self.size}")
        rows, columns = (
            slice((size - length) // 2, (size - length) // 2 + length)
            for length, size in zip(shape, self.size, strict=True)
        )
        return rows, columns

    def _resized(self, picture: Image.Image, resample: Image.Resampling) -> NDArray[Any]:
        """What the network sees of a picture, in network pixels, without letterbox bars."""
        rows, columns = self._axes((picture.height, picture.width))
        if self.policy == "crop" and columns.resized * rows.resized <= WHOLE_PIXELS:
            # Cutting after the resize, as torchvision does: a box at a fraction of a pixel rounds differently.
            resized = np.asarray(picture.resize((columns.resized, rows.resized), resample))
            return resized[rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
        return _windowed(picture, resample, rows, columns)

    def cell(self, original_size: tuple[int, int]) -> float:
        """Pixels of an image by one of the network's input: how coarsely the network sees it.

        Args:
            original_size: (height, width) of the image.

        Example:
            >>> Geometry(size=(40, 60)).cell((80, 240))
            8.0
        """
        rows, columns = self._axes(original_size)
        return rows.original / rows.resized * columns.original / columns.resized

    def _axes(self, original_size: tuple[int, int]) -> tuple[_Axis, _Axis]:
        """The rows and the columns of the way of an image of this size."""
        if self.policy == "crop":
            shorter, side = min(original_size), self.resize or max(self.size)
            # The longer side is truncated and the offset rounded half to even, as in torchvision.
            resized = [int(side * length / shorter) for length in original_size]
            starts = [round((have - want) / 2.0) for have, want in zip(resized, self.size, strict=True)]
            axes = [
                _Axis(original, new, start, want, 0)
                for original, new, start, want in zip(original_size, resized, starts, self.size, strict=True)
            ]
        elif self.policy == "letterbox":
            scale = min(want / have for want, have in zip(self.size, original_size, strict=True))
            fitted = [
                min(max(1, round(have * scale)), want) for want, have in zip(self.size, original_size, strict=True)
            ]
            axes = [
                _Axis(original, length, 0, length, (want - length) // 2)
                for original, length, want in zip(original_size, fitted, self.size, strict=True)
            ]
        else:
            axes = [_Axis(original, want, 0, want, 0) for original, want in zip(original_size, self.size, strict=True)]
        return axes[0], axes[1]

    def _tables(self) -> NDArray[np.float32]:
        """(3, 256): what each 8-bit value becomes in each channel."""
        values = np.arange(256, dtype=np.float64) / 255.0
        table = (values - np.array(self.mean)[:, None]) / np.array(self.std)[:, None]
        return table.astype(np.float32)


class InvertedMap:
    """An anomaly map in the pixels of the image, computed only where it is asked for.

    Most images pass by their score, and of the others a flaw is seen in some columns alone. The way back is linear in
    rows and columns: each row of the network's map is stretched first, then each column by itself, so that some columns
    have the same values as in the whole map, bit by bit.

    Args:
        anomaly_map: (h, w) of the network's input size.
        rows, columns: how the image went into the network.
        region: outside of it the map holds its smallest value.

    Attributes:
        shape: (height, width) of the image.
        lowest, highest: of the network's map; pixels that it did not see have the lowest value.
    """

    def __init__(
        self, anomaly_map: NDArray[np.float32], rows: _Axis, columns: _Axis, region: RegionOfInterest | None
    ) -> None:
        self.shape = (rows.original, columns.original)
        self.lowest, self.highest = float(anomaly_map.min()), float(anomaly_map.max())
        self._region = region
        content = np.ascontiguousarray(anomaly_map[_filled(rows, columns)], dtype=np.float32)
        above, below, self._top, self._bottom = _reach(rows)
        before, after, self._left, self._right = _reach(columns)
        if above or below or before or after:
            content = np.pad(content, ((above, below), (before, after)), mode="edge")
        self._content = content
        self._seen_rows, self._seen_columns = slice(*rows.valid), slice(*columns.valid)

    def whole(self) -> NDArray[np.float32]:
        """(height, width), all of it."""
        inverted = self._lengthened(self._stretched)
        if inverted.shape == self.shape:
            result = inverted.copy()
        else:
            result = np.full(self.shape, self.lowest, np.float32)
            result[self._seen_rows, self._seen_columns] = inverted
        if self._region is not None:
            result[~self._region.to_mask(self.shape)] = self.lowest
        return result

    def columns_above(self, limit: float) -> NDArray[np.intp]:
        """The columns that may hold values above a limit, and after each run of them the next one, which holds none.

        So regions above the limit that do not touch in the whole map do not touch in these columns either.

        Args:
            limit: not below `lowest`, or all columns may.
        """
        if self.lowest > limit:
            return np.arange(self.shape[1])
        above = np.zeros(self.shape[1] + 1, bool)
        # No value lies above all of those in its column from which it is interpolated.
        above[:-1][self._seen_columns] = self._stretched.max(axis=0) > limit
        above[1:] |= above[:-1]
        return np.flatnonzero(above[:-1])

    def peak(self) -> np.float32:
        """The largest value of the whole map."""
        likely = self.columns(np.array([self._seen_columns.start + self._stretched.max(axis=0).argmax()])).max()
        others = self.columns_above(float(likely))
        return self.columns(others).max() if others.size else likely

    def columns(self, numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        """(height, n): some columns of the whole map.

        Args:
            numbers: (n,) of the columns.
        """
        result = np.full((self.shape[0], numbers.size), self.lowest, np.float32)
        seen = (numbers >= self._seen_columns.start) & (numbers < self._seen_columns.stop)
        if seen.any():
            inverted = self._lengthened(self._stretched[:, numbers[seen] - self._seen_columns.start])
            if inverted.shape == result.shape:
                result = inverted.copy()
            else:
                result[self._seen_rows, seen] = inverted
        if self._region is not None:
            result[~self._region.to_mask(self.shape)[:, numbers]] = self.lowest
        return result

    @functools.cached_property
    def _stretched(self) -> NDArray[np.float32]:
        """(network rows, seen columns): the network's rows in the columns of the image."""
        height = self._content.shape[0]
        size = (self._seen_columns.stop - self._seen_columns.start, height)
        box = (self._left, 0, self._right, height)
        return np.asarray(Image.fromarray(self._content).resize(size, Image.Resampling.BILINEAR, box))

    def _lengthened(self, strip: NDArray[np.float32]) -> NDArray[np.float32]:
        """(seen rows, n) of (network rows, n) columns."""
        width, height = strip.shape[1], self._seen_rows.stop - self._seen_rows.start
        picture = Image.fromarray(np.ascontiguousarray(strip))
        return np.asarray(
            picture.resize((width, height), Image.Resampling.BILINEAR, (0, self._top, width, self._bottom))
        )


def _windowed(picture: Image.Image, resample: Image.Resampling, rows: _Axis, columns: _Axis) -> NDArray[Any]:
    """The window of a picture that the network sees, and nothing else of it, resized."""
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    return np.asarray(picture.resize((columns.length, rows.length), resample, box))


def _filled(rows: _Axis, columns: _Axis) -> tuple[slice, slice]:
    """The network pixels that the image fills."""
    return (
        slice(rows.padding, rows.padding + rows.length),
        slice(columns.padding, columns.padding + columns.length),
    )


def _reach(axis: _Axis) -> tuple[int, int, float, float]:
    """Where in the map the valid original pixels lie: edge padding before and after, and the box within
    it.

    A valid pixel's centre lies in the map, its rim may stand out by half an original pixel, which is
    many pixels of the map when a small image was enlarged; the map's edge is continued there.
    """
    first, last = axis.valid
    scale = axis.resized / axis.original
    low, high = first * scale - axis.start, last * scale - axis.start
    if abs(high - axis.length) < 1e-6 * axis.resized:
        high = float(axis.length)
    before, after = max(0, math.ceil(-low)), max(0, math.ceil(high - axis.length))
    return before, after, low + before, high + before
