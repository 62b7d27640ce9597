"""BTAD's layout (beanTech Anomaly Detection): good parts are called ok, flawed ones ko.

::

    <category>/train/ok/0000.bmp          good images to learn from
    <category>/test/ok/
    <category>/test/ko/0000.bmp
    <category>/ground_truth/ko/0000.png   named after the image, but not always of its suffix
    <category>/validation/ok/             optional, not part of BTAD: good images to calibrate on

The folders are arranged as in MVTec AD and are read by the same code, which pairs masks with images by their stem: the
categories 01, 02 and 03 mix .bmp and .png, each in its own way.

Source: Mishra et al., VT-ADL: A Vision Transformer Network for Image Anomaly Detection and Localization, ISIE 2021.
"""

from __future__ import annotations

from pathlib import Path

from flawsmith.data.layouts.files import below
from flawsmith.data.layouts.mvtec import ground_truth, read_category, split_folders
from flawsmith.data.samples import Dataset

GOOD_PARTS, FLAWED_PARTS = "ok", "ko"


class BtadLayout:
    """See the module's docstring."""

    name = "btad"
    expects = "train/ok/, test/{ok,ko}/ and masks in ground_truth/ko/"

    def recognise(self, root: Path) -> str | None:
        found, truth = split_folders(root), ground_truth(root)
        marks = (below(root, "test", FLAWED_PARTS), below(truth, FLAWED_PARTS) if truth is not None else None)
        named = [folder.relative_to(root).as_posix() + "/" for folder in marks if folder is not None]
        if not found or not named or below(root, "train", GOOD_PARTS) is None:
            return None
        return f"{self.name} layout, because it has train/{GOOD_PARTS}/ and {' and '.join(named)}"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        learned, flawed = below(root, "train", GOOD_PARTS), below(root, "test", FLAWED_PARTS)
        if learned is not None and flawed is None:
            return f"train/{learned.name}/ is there, but neither test/{FLAWED_PARTS}/ nor ground_truth/{FLAWED_PARTS}/"
        return f"test/{flawed.name}/ is there, but no train/{GOOD_PARTS}/" if flawed and learned is None else None

    def load(self, root: Path) -> Dataset:
        return read_category(self, root)
