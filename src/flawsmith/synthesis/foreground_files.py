"""Foreground masks from files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import IMAGE_SUFFIXES
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.synthesis.overlay import Image, Mask

FOLDER = "fg_mask"
"""Name under which the released code of GLASS and AAND keeps foreground masks."""

Resampling = Literal["bilinear", "nearest"]

_SUFFIXES = ("", "_mask")


@dataclass(frozen=True)
class FileForeground:
    """Masks from files named like their images: the same stem, or the stem and ``_mask``.

    Attributes:
        folder: the masks' folder; None: the nearest ``fg_mask`` above an image, and the category's folder in it.
        resampling: ``bilinear`` or ``nearest``.
    """

    folder: Path | None
    resampling: Resampling = "bilinear"
    reason: None = None

    def fit(self, images: Iterable[Image]) -> FileForeground:
        """Nothing to decide."""
        return self

    def __call__(self, image: Image, path: Path | None = None, geometry: Geometry | None = None) -> Mask:
        """The image's mask file, put through the geometry of the image."""
        if path is None:
            raise FlawsmithError("foreground masks from files need images from files; choose another mode")
        file = self._file(path)
        mask = decode(file).max(axis=2) > 0
        if geometry is not None:
            return through_geometry(mask, geometry, resampling=self.resampling)
        if mask.shape != image.shape[:2]:
            raise FlawsmithError(f"{file}: is {mask.shape}, its image {image.shape[:2]}; make them equally large")
        return mask

    def _file(self, path: Path) -> Path:
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
        mask: (height, width).
        geometry: the image's.
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
