"""Small image trees drawn into a temporary folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    """Write a noise image of (height, width) whose content depends on the seed alone."""
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (12, 10), *, empty: bool = False, level: int = 255, top: int = 0) -> Path:
    """Write a mask of (height, width) with a patch of 3×4 pixels at the left edge, or none where empty.

    ``level`` is the grey value of the patch, ``top`` its first row.
    """
    pixels = np.zeros(size, np.uint8)
    if not empty:
        pixels[top : top + 3, :4] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mvtec(root: Path, *, n_train: int = 6, n_good: int = 2, n_flawed: int = 2) -> Path:
    """A category in MVTec layout: good images, and one defect type ``crack`` with masks."""
    for i in range(n_train):
        picture(root / "train" / "good" / f"{i:03d}.png", seed=i)
    for i in range(n_good):
        picture(root / "test" / "good" / f"{i:03d}.png", seed=100 + i)
    for i in range(n_flawed):
        picture(root / "test" / "crack" / f"{i:03d}.png", seed=200 + i)
        mask(root / "ground_truth" / "crack" / f"{i:03d}_mask.png")
    return root


LOCO_LEVELS = {"logical_anomalies": (255, 254), "structural_anomalies": (206, 211)}
"""Grey values of the first and the second mask of an image, by defect folder."""


def mvtec_loco(root: Path, *, n_train: int = 6, n_val: int = 3, config: bool = True) -> Path:
    """A category in MVTec LOCO AD's layout, with the official file names.

    Each defect folder has two images: ``000.png`` with the masks ``000/000.png`` and ``000/001.png``, ``001.png``
    with ``001/000.png``. The masks of one image mark different rows, in the grey values of ``LOCO_LEVELS``.
    """
    splits = (("train", n_train, 0), ("validation", n_val, 50), ("test", 2, 100))
    for split, number, seed in splits:
        for i in range(number):
            picture(root / split / "good" / f"{i:03d}.png", seed=seed + i)
    for seed, (defect, levels) in enumerate(LOCO_LEVELS.items()):
        truth = root / "ground_truth" / defect
        for i in range(2):
            picture(root / "test" / defect / f"{i:03d}.png", seed=200 + 10 * seed + i)
            mask(truth / f"{i:03d}" / "000.png", level=levels[0])
        mask(truth / "000" / "001.png", level=levels[1], top=6)
    if config:
        rows = [
            {"defect_name": f"kind {v}", "pixel_value": v, "saturation_threshold": 0.5, "relative_saturation": True}
            for levels in LOCO_LEVELS.values()
            for v in levels
        ]
        (root / "defects_config.json").write_text(json.dumps(rows, indent=4))
    return root


def btad(root: Path, *, n_train: int = 6) -> Path:
    """A category in BTAD's layout, with the official file names.

    01 has .bmp images and .png masks, 02 has .png alone, 03 has .bmp alone; another name is taken for 01.
    """
    image, truth = {"02": ("png", "png"), "03": ("bmp", "bmp")}.get(root.name, ("bmp", "png"))
    for seed, (folder, number) in enumerate((("train/ok", n_train), ("test/ok", 2), ("test/ko", 3))):
        for i in range(number):
            picture(root / folder / f"{i:04d}.{image}", seed=100 * seed + i)
    for i in range(3):
        mask(root / "ground_truth" / "ko" / f"{i:04d}.{truth}")
    return root


def visa(root: Path, *, n_train: int = 6, n_good: int = 2, n_flawed: int = 3) -> Path:
    """A category in VisA's layout, with the official file names; its rows are added to the table beside it.

    The masks mark their patch with 1, 2, 3, ... The table lists the images in no order, as the official one does.
    """
    category, table = root.name, visa_table(root)
    rows = []
    for split, number in (("train", n_train), ("test", n_good)):
        for _ in range(number):
            name = f"{category}/Data/Images/Normal/{len(rows):04d}.JPG"
            picture(root.parent / name, seed=len(rows))
            rows.append(f"{category},{split},normal,{name},")
    for i in range(n_flawed):
        name, truth = f"{category}/Data/Images/Anomaly/{i:03d}.JPG", f"{category}/Data/Masks/Anomaly/{i:03d}.png"
        picture(root.parent / name, seed=200 + i)
        mask(root.parent / truth, level=i + 1)
        rows.append(f"{category},test,anomaly,{name},{truth}")
    table.parent.mkdir(exist_ok=True)
    before = table.read_text() if table.exists() else "object,split,label,image,mask\n"
    table.write_text(before + "".join(f"{row}\n" for row in reversed(rows)))
    return root


def visa_table(root: Path) -> Path:
    """The table of the data set that a category in VisA's layout belongs to."""
    return root.parent / "split_csv" / "1cls.csv"


def mvtec_3d(root: Path, *, n_train: int = 6, n_val: int = 3) -> Path:
    """A category in MVTec 3D-AD's layout, with the official file names: two images of each kind in the test split."""
    counts = {"train/good": n_train, "validation/good": n_val, "test/good": 2, "test/crack": 2, "test/hole": 2}
    for seed, (folder, number) in enumerate(counts.items()):
        for i in range(number):
            picture(root / folder / "rgb" / f"{i:03d}.png", seed=100 * seed + i)
            heights(root / folder / "xyz" / f"{i:03d}.tiff")
            if folder.startswith("test/"):
                mask(root / folder / "gt" / f"{i:03d}.png", empty=folder == "test/good")
    return root


def magnetic_tile(root: Path, *, n_good: int = 12) -> Path:
    """The magnetic tile set as released, with the official names: two images of each defect type.

    The mask of ``MT_Uneven/Imgs/exp1_num_1.png`` is black.
    """
    for i in range(n_good):
        picture(root / "MT_Free" / "Imgs" / f"exp1_num_{i:02d}.jpg", seed=i, mode="L")
        mask(root / "MT_Free" / "Imgs" / f"exp1_num_{i:02d}.png", empty=True)
    for seed, defect in enumerate(("Blowhole", "Break", "Crack", "Fray", "Uneven")):
        for i in range(2):
            stem = root / f"MT_{defect}" / "Imgs" / f"exp1_num_{i}"
            picture(stem.with_suffix(".jpg"), seed=200 + 10 * seed + i, mode="L")
            mask(stem.with_suffix(".png"), empty=(defect, i) == ("Uneven", 1))
    return root


def ksdd2(root: Path, *, n_train: int = 8, n_test: int = 4) -> Path:
    """KolektorSDD2 as released, with the official names: every fourth image is flawed."""
    for split, number, first in (("train", n_train, 10000), ("test", n_test, 20000)):
        for i in range(number):
            picture(root / split / f"{first + i}.png", seed=first + i)
            mask(root / split / f"{first + i}_GT.png", empty=i % 4 != 3)
    return root


def mad(root: Path, *, n_good: int = 2, n_flawed: int = 6) -> Path:
    """A category of a test set for models trained elsewhere: MVTec layout without ``train/``."""
    return mvtec(root, n_train=0, n_good=n_good, n_flawed=n_flawed)


def heights(path: Path, size: tuple[int, int] = (12, 10)) -> Path:
    """Write a TIFF of floating-point values, which no reader of images takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.float32)).save(path)
    return path
