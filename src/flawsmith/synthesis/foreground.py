"""Where on an image the part is, so that flaws are synthesized on it and not beside it.

A provider is picklable and gives a mask for each image: everywhere, from mask files, by a threshold, or found
automatically with a refusal where an image has no part that stands out from its border, as textures have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from typing_extensions import Self

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import as_8_bit, brightest_channel, decode
from flawsmith.synthesis.blend import FloatImage, Mask, blurred

FOLDER = "fg_mask"
"""Name under which the released code of GLASS and AAND keeps foreground masks."""

SIGMA = 8.0
"""Gaussian in pixels of an image with a shorter side of 1024 (the released script of AAND: 8)."""

Resampling = Literal["bilinear", "nearest"]
Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""

_SUFFIXES = ("", "_mask")


class _Fixed:
    """Gives the foreground of each image by itself: several good images decide nothing together."""

    @property
    def reason(self) -> str | None:
        """Why no image has a foreground; None: images have one."""
        return None

    def fit(self, images: Iterable[FloatImage]) -> Self:
        """Nothing to decide."""
        return self


@dataclass(frozen=True)
class FileForeground(_Fixed):
    """Masks from files named like their images: the same stem, or the stem and ``_mask``.

    Attributes:
        folder: the masks' folder; None: the nearest ``fg_mask`` above an image, and the category's folder in it.
        resampling: ``bilinear`` or ``nearest``.
    """

    folder: Path | None
    resampling: Resampling = "bilinear"

    def __call__(self, image: FloatImage, path: Path | None = None, geometry: Geometry | None = None) -> Mask:
        """The image's mask file, put through the geometry of the image."""
        if path is None:
            raise FlawsmithError("foreground masks from files need images from files; choose another mode")
        file = self.file_of(path)
        mask = brightest_channel(decode(file)) > 0
        if geometry is not None:
            return through_geometry(mask, geometry, resampling=self.resampling)
        if mask.shape != image.shape[:2]:
            raise FlawsmithError(f"{file}: is {mask.shape}, its image {image.shape[:2]}; make them equally large")
        return mask

    def file_of(self, path: Path) -> Path:
        """The mask file of an image file.

        Raises:
            FlawsmithError: there is none.
        """
        folders = _mask_folders(path) if self.folder is None else [self.folder, self.folder / FOLDER]
        for folder in folders:
            for suffix in _SUFFIXES:
                for ending in sorted(IMAGE_SUFFIXES):
                    file = folder / f"{path.stem}{suffix}{ending}"
                    if file.is_file():
                        return file
        place = self.folder or f"a folder {FOLDER} above it"
        raise FlawsmithError(f"{path}: no foreground mask {path.stem}.png in {place}; add one or choose mode auto")


def _mask_folders(path: Path) -> list[Path]:
    """Where the released layouts keep the masks of an image: <category>/fg_mask, or <data set>/fg_mask/<category>
    with or without the split's name below."""
    folders = []
    for steps, above in enumerate(path.parents[:5]):
        named = [above / FOLDER]
        if steps:
            child = path.parents[steps - 1].name
            named = [above / FOLDER / child / "train", above / FOLDER / child, *named]
        folders += [folder for folder in named if folder.is_dir()]
    return folders


def through_geometry(mask: Mask, geometry: Geometry, *, resampling: Resampling = "bilinear") -> Mask:
    """A mask in the pixels of the file, brought to those of the network's input as its image was.

    Args:
        resampling: ``bilinear``, antialiased, where any pixel above zero belongs (GLASS); or ``nearest``, the
            pixel at floor(i·length/size) (AAND), for the policy ``squash``.

    Raises:
        FlawsmithError: ``nearest`` with another policy.
    """
    if resampling == "nearest":
        if geometry.policy != "squash":
            raise FlawsmithError(f"nearest masks need the policy squash, not {geometry.policy}; choose bilinear")
        rows, columns = (
            np.arange(size) * length // size for size, length in zip(geometry.size, mask.shape, strict=True)
        )
        return mask[rows[:, None], columns]
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
    picture = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255
    return geometry.model_copy(update=plain).apply(picture)[0] > 0


Channel = Literal["grey", "red", "green", "blue"]

Kernel = tuple[int, int]
"""Rows and columns of a rectangle, in pixels of an image of 256 x 256; scaled with the image, one pixel at least."""

KERNEL_SIDE = 256


@dataclass(frozen=True)
class ThresholdForeground(_Fixed):
    """Pixels above a level after smoothing (the script of AAND; the released simulation of SLSG)."""

    settings: Foreground

    def __call__(self, image: FloatImage, path: Path | None = None, geometry: Geometry | None = None) -> Mask:
        """The pixels on the right side of the level."""
        if self.settings.pixels == "input" or path is None or geometry is None:
            return self._mask(blurred(self._values(image), self.settings.sigma) * 255)
        values = self._values(as_8_bit(decode(path), geometry.value_range))
        smooth = cv2.GaussianBlur(values, (0, 0), self.settings.sigma) if self.settings.sigma else values
        nearest = geometry.policy == "squash"
        return through_geometry(self._mask(smooth), geometry, resampling="nearest" if nearest else "bilinear")

    def _values(self, image: NDArray[Any]) -> NDArray[np.float32]:
        if self.settings.channel == "grey":
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)
        return np.ascontiguousarray(image[:, :, ("red", "green", "blue").index(self.settings.channel)], np.float32)

    def _mask(self, values: NDArray[Any]) -> Mask:
        above: Mask = values > self.settings.level
        mask = ~above if self.settings.inverted else above
        mask = _changed(_changed(mask, self.settings.erosion, cv2.erode), self.settings.dilation, cv2.dilate)
        height, width = mask.shape
        mask[round(self.settings.kept[0] * height) :] = False
        mask[:, round(self.settings.kept[1] * width) :] = False
        return mask


def _changed(mask: Mask, kernel: Kernel, change: Any) -> Mask:
    """The mask eroded or dilated; beyond the image's border lies what changes nothing."""
    rows, columns = (max(1, round(size * side / KERNEL_SIDE)) for size, side in zip(kernel, mask.shape, strict=True))
    if kernel == (1, 1):
        return mask
    return np.asarray(change(mask.astype(np.uint8), np.ones((rows, columns), np.uint8)), bool)


_OUTLINE = (0, 229, 255)
_DIMMED = 0.3


class Foreground(BaseModel):
    """How the foreground is found; a bare name such as ``auto`` stands for its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["none", "files", "threshold", "auto", "disc", "box"] = Field(
        "none",
        description="none: everywhere; files: masks from a folder; threshold: by a level of grey or of one colour; "
        "auto: found; disc, box: a centred shape.",
    )
    sigma: float = Field(
        SIGMA,
        ge=0,
        description="threshold, auto: Gaussian in pixels of an image with a shorter side of 1024, as in MVTec AD, "
        "scaled with the image (AAND: 8).",
    )
    level: float = Field(128.0, ge=0, le=255, description="threshold: what is above it is foreground, 0..255.")
    inverted: bool = Field(False, description="threshold: what is up to the level is foreground instead.")
    channel: Channel = Field("grey", description="threshold: what is compared with the level (SLSG: blue).")
    erosion: tuple[PositiveInt, PositiveInt] = Field(
        (1, 1),
        description="threshold: rows and columns of the rectangle by which the foreground shrinks, in pixels of an "
        "image of 256 x 256, scaled with the image.",
    )
    dilation: tuple[PositiveInt, PositiveInt] = Field(
        (1, 1), description="threshold: the same for the rectangle by which it then grows."
    )
    kept: tuple[float, float] = Field(
        (1.0, 1.0),
        description="threshold: share of the rows, from the top, and of the columns, from the left, that may be "
        "foreground.",
    )
    pixels: Literal["input", "file"] = Field(
        "input",
        description="threshold: of the network's input, with sigma scaled; or of the image's file at its own size, "
        "with sigma as it is and the mask brought to the input as the image was (the script of AAND).",
    )
    resampling: Resampling = Field(
        "bilinear",
        description="files: bilinear, where any non-zero pixel belongs (GLASS), or nearest (AAND; squash alone).",
    )

    extent: tuple[float, float] = Field(
        (0.45, 0.45),
        description="disc: radius as share of the height, given twice; box: half its height and width as shares.",
    )

    @model_validator(mode="after")
    def _inside(self) -> Foreground:
        if not all(0 < share <= 1 for share in self.extent) or (self.mode == "disc" and len(set(self.extent)) > 1):
            raise ValueError("extent needs two shares above 0 and up to 1, equal ones for a disc")
        if not all(0 < share <= 1 for share in self.kept):
            raise ValueError("kept needs two shares above 0 and up to 1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


class ForegroundProvider(Protocol):
    """Gives the foreground of images. Frozen and picklable.

    Attributes:
        reason: why no image has a foreground; None where images have one.
    """

    @property
    def reason(self) -> str | None: ...

    def fit(self, images: Iterable[FloatImage]) -> ForegroundProvider:
        """What several good images of one data set decide together, for all images alike."""

    def __call__(self, image: FloatImage, path: Path | None = None, geometry: Geometry | None = None) -> Mask | None:
        """The foreground of one image.

        Args:
            image: (height, width, 3) RGB in [0, 1], the network's input before it is normalised.
            path: the image's file, for masks from files.
            geometry: how the file became ``image``; None: it was left as it is.

        Returns:
            (height, width), or None where the whole image counts.

        Raises:
            FlawsmithError: a mask file is missing, unreadable or of another size.
        """


def provider(settings: Foreground, folder: Path | None = None) -> ForegroundProvider:
    """The provider that the settings ask for.

    Args:
        folder: of mask files; None: ``fg_mask`` beside the images' category or data set. Not part of the
            settings, because a model's file holds no paths.

    Raises:
        FlawsmithError: the folder is none.
    """
    if settings.mode == "files":
        if folder is not None and not folder.is_dir():
            raise FlawsmithError(f"{folder}: is no folder of foreground masks; check the path")
        return FileForeground(folder, settings.resampling)
    if settings.mode == "threshold":
        return ThresholdForeground(settings)
    if settings.mode in ("disc", "box"):
        return CentredForeground(settings)
    return AutomaticForeground(settings.sigma) if settings.mode == "auto" else WholeImage()


@dataclass(frozen=True)
class WholeImage(_Fixed):
    """Every pixel counts."""

    @property
    def reason(self) -> str:
        return "none was asked for"

    def __call__(self, image: FloatImage, path: Path | None = None, geometry: Geometry | None = None) -> None:
        """No mask."""
        return


@dataclass(frozen=True)
class CentredForeground(_Fixed):
    """A disc or a box in the middle of the image (the script of AAND, for parts that fill it)."""

    settings: Foreground

    def __call__(self, image: FloatImage, path: Path | None = None, geometry: Geometry | None = None) -> Mask:
        """The shape's pixels."""
        height, width = image.shape[:2]
        down = np.abs(np.arange(height) - (height - 1) / 2)[:, None]
        across = np.abs(np.arange(width) - (width - 1) / 2)
        reach, breadth = self.settings.extent
        if self.settings.mode == "disc":
            return np.hypot(down, across) <= reach * height
        return (down <= reach * height) & (across <= breadth * width)


@dataclass(frozen=True)
class AutomaticForeground:
    """What stands out from the border's colour; see :func:`separate`.

    Unfitted, every image decides for itself. Fitted, the sample decides whether there is a foreground at all and what
    colour the background has; the level is found anew on every image, so that light may vary.

    Attributes:
        sigma: of the Gaussian, in pixels of an image with a shorter side of 1024.
        background: colour of the background, found by ``fit``.
        reason: why ``fit`` refused to guess; None where it did not.
    """

    sigma: float = SIGMA
    background: Colour | None = None
    reason: str | None = None

    def fit(self, images: Iterable[FloatImage]) -> AutomaticForeground:
        """Decide on polarity and refusal over a sample: ten images are plenty.

        Raises:
            ValueError: no image.
        """
        smooth = [blurred(image, self.sigma) for image in images]
        if not smooth:
            raise ValueError("no image to find a foreground in")
        background = background_of(smooth)
        refusals = [refusal for image in smooth if (refusal := separate(image, background)[1]) is not None]
        reason = None
        if 2 * len(refusals) > len(smooth):
            reason = f"{len(refusals)} of {len(smooth)} images have no clear foreground: {refusals[0]}"
        return replace(self, background=background, reason=reason)

    def __call__(self, image: FloatImage, path: Path | None = None, geometry: Geometry | None = None) -> Mask | None:
        """What stands out, or None where the sample, or this image, has no clear foreground."""
        if self.reason is not None:
            return None
        smooth = blurred(image, self.sigma)
        mask, refusal = separate(smooth, self.background or background_of([smooth]))
        return mask if refusal is None else None


_RING = 0.04
"""Width of the border that counts as background, as a share of the shorter side."""
_LEAST_SPREAD = 0.07
"""Colour distance (of √3 between black and white) below which shadows and uneven light are not told from the mat."""
_LEAST_GAP = 1.2
"""Least distance between the means of the two classes, in e-folds. Measured on ten images each at 256 pixels: textures
of DTD and magnetic tiles reach 1.1 at most; screws, bottles, rendered brackets and gears 1.4 at least."""
_LEAST_SEPARABILITY = 0.7
"""Least share of the variance that lies between the two classes (Otsu's η)."""
_AREA = (0.01, 0.85)
"""A part smaller is taken for dirt, one larger leaves nothing to tell apart."""
_MOST_BORDER = 0.4
"""Largest share of the border that the part may cover."""
_FRAGMENT = 0.002
"""Islands, and holes, smaller than this share of the image are closed."""
_SAMPLE = 4_000
"""Border pixels of an image that vote on the background's colour; more decide nothing."""


def background_of(images: Sequence[FloatImage]) -> Colour:
    """The median colour of the borders of smoothed images, each (height, width, 3); sizes may differ.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("no image to find a background in")
    medians = np.array([np.median(_some(image[_ring(image)]), axis=0) for image in images])
    red, green, blue = np.median(medians, axis=0).tolist()
    return red, green, blue


def separate(image: FloatImage, background: Colour) -> tuple[Mask, str | None]:
    """Tell a part from its background, and say whether that can be trusted.

    The idea is Otsu's, on another quantity than grey: the distance of a pixel's colour to that of the image's border,
    in units of the border's own spread, on a logarithmic scale. The border decides what is background, so a light part
    on a dark mat and a dark part on a light one need no setting; the logarithm keeps a dark bottle with a white label
    in one piece, where Otsu's level on grey would cut out the label; and the border's spread refuses textures, whose
    middle is no stranger to their border than the border is to itself.

    Args:
        image: (height, width, 3) RGB in [0, 1], smoothed.
        background: of this image, or of the sample it belongs to.

    Returns:
        (height, width) the part, also where the evidence speaks against it; and why it should not be trusted, None
        where it may.
    """
    ring = _ring(image)
    border = _some(image[ring])
    # The light of this image: the half of its border that is nearest to the common colour.
    offset = np.linalg.norm(border - np.asarray(background, np.float32), axis=1)
    colour = border[offset <= np.median(offset)].mean(axis=0)
    spread = 2 * float(np.median(np.linalg.norm(border - colour, axis=1)))
    difference = image - colour
    distance = cv2.sqrt(np.einsum("ijk,ijk->ij", difference, difference))
    novelty = np.asarray(cv2.log(1 + distance / np.float32(max(spread, _LEAST_SPREAD))), np.float32)
    level, separability = otsu(novelty)
    above = novelty > level
    both = above.any() and not above.all()
    gap = float(novelty[above].mean() - novelty[~above].mean()) if both else 0.0
    mask = _tidied(above)
    return mask, _refusal(gap, separability, float(mask.mean()), float(mask[ring].mean()))


def otsu(values: NDArray[np.float32], bins: int = 256) -> tuple[float, float]:
    """Otsu's level and how well it separates.

    Args:
        values: any shape.
        bins: of the histogram between the extremes.

    Returns:
        The level, above which the upper class lies; and η, the variance between the classes over the whole
        variance, 0 for constant values.

    Source:
        N. Otsu, A threshold selection method from gray-level histograms, 1979: Eqs. 12 and 18.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return high, 0.0
    edges = np.linspace(low, high, bins + 1)
    number = np.minimum((values.ravel() - np.float32(low)) * np.float32(bins / (high - low)), bins - 1)
    share = np.bincount(number.astype(np.intp), minlength=bins) / values.size
    centres = (edges[1:] + edges[:-1]) / 2
    below, moment = np.cumsum(share)[:-1], np.cumsum(share * centres)
    mean = moment[-1]
    inside = below * (1 - below)
    # Two empty bins in a row give the same split twice; a class without members separates nothing.
    between = np.divide((mean * below - moment[:-1]) ** 2, inside, out=np.zeros(bins - 1), where=inside > 1e-12)
    best = int(between.argmax())
    total = float((share * (centres - mean) ** 2).sum())
    return float(edges[best + 1]), float(between[best] / total) if total > 0 else 0.0


def _refusal(gap: float, separability: float, area: float, border: float) -> str | None:
    low, high = _AREA
    if gap < _LEAST_GAP or separability < _LEAST_SEPARABILITY:
        return f"nothing stands out from the border (gap {gap:.2f}, separability {separability:.2f})"
    if not low <= area <= high:
        return f"what stands out covers {100 * area:.1f} % of the image"
    if border > _MOST_BORDER:
        return f"what stands out covers {100 * border:.0f} % of the border"
    return None


def _ring(image: FloatImage) -> Mask:
    """(height, width): the border, at least one pixel wide."""
    height, width = image.shape[:2]
    wide = max(1, round(_RING * min(height, width)))
    ring = np.ones((height, width), bool)
    ring[wide : height - wide, wide : width - wide] = False
    return ring


def _some(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 3): evenly spaced pixels of many."""
    return pixels[:: max(1, len(pixels) // _SAMPLE)]


def _tidied(mask: Mask) -> Mask:
    """Without islands and holes too small to matter."""
    least = _FRAGMENT * mask.size
    for inside in (True, False):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((mask == inside).astype(np.uint8))
        small = stats[:, cv2.CC_STAT_AREA] < least
        small[0] = False  # what is not inside
        if small.any():
            mask = np.where(small[labels], not inside, mask)
    return mask


def preview(image: FloatImage, mask: Mask | None) -> NDArray[np.uint8]:
    """A picture to judge a foreground by: dimmed outside, with an outline; the plain image where there is no mask.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    picture = np.clip(np.rint(image * 255), 0, 255)
    if mask is None:
        return picture.astype(np.uint8)
    shown = np.ascontiguousarray(np.where(mask[:, :, None], picture, picture * _DIMMED).astype(np.uint8))
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, outlines, -1, _OUTLINE, max(1, round(min(mask.shape) / 300)))
    return shown
