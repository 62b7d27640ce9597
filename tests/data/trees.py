"""Small image trees drawn into a temporary folder."""

from __future__ import annotations

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


def mask(path: Path, size: tuple[int, int] = (12, 10), *, empty: bool = False) -> Path:
    """Write a mask of (height, width) with a white corner, or none where empty."""
    pixels = np.zeros(size, np.uint8)
    if not empty:
        pixels[:3, :4] = 255
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
