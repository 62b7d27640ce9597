"""One image of a dataset and what is known of it, without reading a pixel; and all images of one category."""

from __future__ import annotations

import os
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
        masks: ground-truth masks, none for good images and for flawed images that were never annotated;
            several where one image carries several annotated defects (MVTec LOCO AD).
        category: the product, such as ``screw``.
        dataset: the dataset's name, or the name of the parent folder.
        group: the day, camera, lot, cavity or burst it belongs to; empty where that is not known, see
            :func:`flawsmith.data.groups.with_groups`.
    """

    image: Path
    split: Split
    label: Label
    defect: str
    masks: tuple[Path, ...]
    category: str
    dataset: str
    group: str = ""

    @property
    def is_flawed(self) -> bool:
        return self.label == "flawed"


@dataclass(frozen=True)
class Dataset:
    """All images of one category, as a layout found them.

    Attributes:
        root: the category folder, absolute.
        category: the product's name, the folder's own name.
        dataset: the dataset's name, or the name of the parent folder.
        layout: name of the layout that read it, such as ``mvtec``.
        recognised: why that layout was chosen, in words.
        samples: every image, in the order of splits and paths.
        unused_masks: mask files that belong to no flawed image: orphans, and masks of good images.
        notes: what the reader of a log should know, such as folders that were passed over; one line each.
        defects_config: the file that says when each kind of defect counts as found (MVTec LOCO AD), whether it is
            there or not; None for layouts that know none.
        left_out: images that the layout knows and uses for nothing, such as flawed images of a training split; a note
            says why.
        near_misses: why no other layout was chosen, one line each; empty where the user named the layout.
        grouped_by: how the groups of the images were told, such as ``sub-folder``; empty where they have none.
    """

    root: Path
    category: str
    dataset: str
    layout: str
    recognised: str
    samples: tuple[Sample, ...]
    unused_masks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    defects_config: Path | None = None
    left_out: tuple[Path, ...] = ()
    near_misses: tuple[str, ...] = ()
    grouped_by: str = ""

    def of(self, *, split: Split, label: Label | None = None) -> tuple[Sample, ...]:
        """Samples of one split, and of one label where given."""
        return tuple(s for s in self.samples if s.split == split and label in (None, s.label))

    @property
    def good_train(self) -> tuple[Sample, ...]:
        """The images to learn from."""
        return self.of(split="train", label="good")

    @property
    def good_val(self) -> tuple[Sample, ...]:
        """The user's own validation folder; empty where there is none."""
        return self.of(split="val", label="good")

    @property
    def test(self) -> tuple[Sample, ...]:
        """The labelled test images, good and flawed."""
        return self.of(split="test")

    @property
    def test_good(self) -> tuple[Sample, ...]:
        return self.of(split="test", label="good")

    @property
    def test_flawed(self) -> tuple[Sample, ...]:
        return self.of(split="test", label="flawed")

    @property
    def without_mask(self) -> tuple[Sample, ...]:
        """Flawed images that were never annotated: they count for image-level figures alone."""
        return tuple(s for s in self.samples if s.is_flawed and not s.masks)

    def name_of(self, path: Path) -> str:
        """A file's path as seen from the category folder: ``../`` first where a table names files elsewhere."""
        try:
            return Path(os.path.relpath(path, self.root)).as_posix()
        except ValueError:  # on another drive
            return path.as_posix()

    @property
    def defects(self) -> tuple[str, ...]:
        """Defect types of the flawed images, sorted."""
        return tuple(sorted({s.defect for s in self.samples if s.is_flawed}))

    def summary(self) -> str:
        """One line for a log: category, layout and counts."""
        counts = [f"{len(self.good_train)} good images to learn from" if self.good_train else "nothing to learn from"]
        if self.good_val:
            counts.append(f"{len(self.good_val)} good ones to validate")
        if self.test:
            counts.append(f"{len(self.test_good)} good and {len(self.test_flawed)} flawed ones to test")
        if self.without_mask:
            counts.append(f"{len(self.without_mask)} flawed without a mask")
        return f"{self.category} ({self.layout} layout): {', '.join(counts)}"
