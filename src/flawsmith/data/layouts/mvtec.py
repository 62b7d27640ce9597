"""MVTec AD's layout, which MPDD, WFDD and the MAD sets share.

::

    <category>/train/good/            good images to learn from
    <category>/validation/good/       optional (also val/good): good images to calibrate on
    <category>/test/good/             optional
    <category>/test/<defect>/         optional
    <category>/ground_truth/<defect>/<stem>_mask.<ext>, <stem>.<ext> or a folder <stem>/ of masks

Source: Bergmann et al., MVTec AD, CVPR 2019; the folder of masks is that of MVTec LOCO AD.
"""

from __future__ import annotations

from pathlib import Path

from flawsmith.data.layouts.files import VALIDATION_FOLDERS, MaskFolder, count, subfolder, subfolders
from flawsmith.data.samples import GOOD, Dataset, Sample, Split
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import find_images


class MvtecLayout:
    """See the module's docstring."""

    name = "mvtec"
    expects = "train/good/, optional validation/good/, test/good/, test/<defect>/ and ground_truth/<defect>/"

    def recognise(self, root: Path) -> str | None:
        good = _train_good(root)
        # rgb/ and xyz/ below train/good/ are MVTec 3D-AD: its depth maps are no images to learn from.
        if good is None or subfolder(good, "rgb") is not None:
            return None
        found = [good.relative_to(root).as_posix() + "/"]
        for folder in (subfolder(root, *VALIDATION_FOLDERS), subfolder(root, "test"), _ground_truth(root)):
            if folder is not None:
                found.append(folder.name + "/")
        return f"mvtec layout, because it has {', '.join(found)}"

    def load(self, root: Path) -> Dataset:
        recognised = self.recognise(root)
        good = _train_good(root)
        if recognised is None or good is None:
            raise FlawsmithError(f"{root} is not in mvtec layout; expected {self.expects}")
        reader = _Reader(root)
        samples = reader.good_images(good, "train")
        if not samples:
            raise FlawsmithError(f"no good images to train on in {good}; put images of good parts there")
        validation = subfolder(root, *VALIDATION_FOLDERS)
        if validation is not None:
            samples += reader.good_images(subfolder(validation, GOOD) or validation, "val")
        test = subfolder(root, "test")
        if test is not None:
            samples += reader.test_images(test, _ground_truth(root))
        return Dataset(
            root=root,
            category=root.name,
            dataset=root.parent.name,
            layout=self.name,
            recognised=recognised,
            samples=tuple(samples),
            unused_masks=tuple(sorted(reader.unused_masks)),
            notes=tuple(reader.notes),
        )


class _Reader:
    """Collects samples, and on the way what deserves a note."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unused_masks: list[Path] = []
        self.notes: list[str] = []

    def good_images(self, folder: Path, split: Split) -> list[Sample]:
        return [self._good(path, split) for path in find_images(folder)]

    def test_images(self, test: Path, ground_truth: Path | None) -> list[Sample]:
        samples: list[Sample] = []
        folders = subfolders(test)
        stray = len(find_images(test)) - sum(len(find_images(folder)) for folder in folders)
        if stray > 0:
            number = count(stray, "image")
            self.notes.append(f"not used: {number} directly in test/; move them to test/good/ or test/<defect>/")
        for folder in folders:
            masks = MaskFolder(subfolder(ground_truth, folder.name) if ground_truth else None)
            if folder.name.casefold() == GOOD:
                samples += self.good_images(folder, "test")
            else:
                samples += [self._flawed(path, folder, masks) for path in find_images(folder)]
            self.unused_masks += masks.unused()
        if ground_truth is not None:
            self._note_masks_of_unknown_defects(ground_truth, folders)
        return samples

    def _note_masks_of_unknown_defects(self, ground_truth: Path, defects: list[Path]) -> None:
        known = {folder.name.casefold() for folder in defects}
        for folder in subfolders(ground_truth):
            if folder.name.casefold() not in known:
                self.unused_masks += find_images(folder)

    def _good(self, path: Path, split: Split) -> Sample:
        return Sample(path, split, "good", GOOD, (), self.root.name, self.root.parent.name)

    def _flawed(self, path: Path, folder: Path, masks: MaskFolder) -> Sample:
        paired = masks.masks_of(path.relative_to(folder))
        return Sample(path, "test", "flawed", folder.name, paired, self.root.name, self.root.parent.name)


def _train_good(root: Path) -> Path | None:
    train = subfolder(root, "train")
    return subfolder(train, GOOD) if train is not None else None


def _ground_truth(root: Path) -> Path | None:
    return subfolder(root, "ground_truth", "groundtruth")
