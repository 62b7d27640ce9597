"""MVTec LOCO AD's layout: logical and structural anomalies, and several masks an image.

::

    <category>/train/good/                                 good images to learn from
    <category>/validation/good/                            good images to calibrate on
    <category>/test/good/
    <category>/test/{logical,structural}_anomalies/<stem>.png
    <category>/ground_truth/{logical,structural}_anomalies/<stem>/000.png, 001.png, ...
    <category>/defects_config.json                         optional: saturation area of each defect type

The folders are those of MVTec AD and are read by the same code. Each mask marks one defect, in a grey value that
``defects_config.json`` explains (:mod:`flawsmith.data.defects_config`): what is not black is marked.

Source: Bergmann et al., Beyond Dents and Scratches, IJCV 2022.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flawsmith.data.layouts.files import has_images, subfolder, subfolders
from flawsmith.data.layouts.mvtec import ground_truth, read_category, split_folders, without_train
from flawsmith.data.samples import Dataset

DEFECTS_CONFIG = "defects_config.json"
LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"


class MvtecLocoLayout:
    """See the module's docstring."""

    name = "mvtec_loco"
    expects = (
        "train/good/, validation/good/, test/{good,logical_anomalies,structural_anomalies}/ and masks in "
        f"ground_truth/<defect>/<stem>/ or {DEFECTS_CONFIG}"
    )

    def recognise(self, root: Path) -> str | None:
        found, mark = split_folders(root), _mark(root)
        if not found or mark is None:
            return None
        return f"{self.name} layout, because it has {', '.join(found)} and {mark}{without_train(root)}"

    def near_miss(self, root: Path) -> str | None:
        if self.recognise(root) is not None:
            return None
        test = subfolder(root, "test")
        found = subfolder(test, LOGICAL, STRUCTURAL) if test is not None else None
        if found is None or not split_folders(root):
            return None
        return f"test/{found.name}/ is there, but neither {DEFECTS_CONFIG} nor masks in ground_truth/<defect>/<stem>/"

    def load(self, root: Path) -> Dataset:
        return replace(read_category(self, root), defects_config=root / DEFECTS_CONFIG)


def _mark(root: Path) -> str | None:
    """What tells the folder from one of MVTec AD: the file that only this set has, or masks in folders of their own."""
    if (root / DEFECTS_CONFIG).is_file():
        return DEFECTS_CONFIG
    truth = ground_truth(root)
    if truth is None:
        return None
    for name in (LOGICAL, STRUCTURAL):
        masks = subfolder(truth, name)
        for nested in subfolders(masks) if masks is not None else ():
            if has_images(nested):
                return f"masks in {nested.relative_to(root).as_posix()}/"
    return None
