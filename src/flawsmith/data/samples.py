"""One image of a dataset and what is known of it, without reading a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test"]
Label = Literal["good", "flawed"]

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """An image file with its role and its ground truth.

    Attributes:
        image: path of the image file.
        split: the part of the dataset it belongs to.
        label: ``good`` or ``flawed``.
        defect: the defect type as the folder names it; ``good`` for good images.
        masks: ground-truth masks, none for good images and for flawed images that were never annotated; several
            where one image carries several annotated defects (MVTec LOCO AD).
        category: the product, such as ``screw``.
        dataset: the dataset's name, or the name of the parent folder.
    """

    image: Path
    split: Split
    label: Label
    defect: str
    masks: tuple[Path, ...]
    category: str
    dataset: str

    @property
    def is_flawed(self) -> bool:
        return self.label == "flawed"
