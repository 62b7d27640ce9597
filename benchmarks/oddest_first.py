"""How well Teach's order, oddest first, finds a few flawed images among good ones; the backbone's features beside it.

    python benchmarks/oddest_first.py FOLDER...

Each folder is a category with flawed test images. Prints a line a folder and kind of features.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.layouts import load
from flawsmith.features.backbones import load_backbone
from flawsmith.line.looks import oddness, see
from flawsmith.metrics.ranking import auroc

GOOD, FLAWED_SHARE = 100, 1 / 12
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
Features = Callable[[Path], NDArray[np.float32]]


def pooled() -> Features:
    """Means and maxima of the levels of the packaged backbone."""
    backbone = load_backbone(strides=(8, 16)).eval()

    @torch.no_grad()
    def features(path: Path) -> NDArray[np.float32]:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((256, 256)), np.float32) / 255
        levels = backbone(torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]))
        return np.concatenate([v.ravel().numpy() for level in levels for v in (level.mean((2, 3)), level.amax((2, 3)))])

    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    kinds: dict[str, Features] = {"looks": lambda path: see(path, max_pixels=10**9).vector, "backbone": pooled()}
    for folder in parser.parse_args().folders:
        dataset, draw = load(folder), random.Random(0)
        good = [sample.image for sample in dataset.good_train]
        flawed = [sample.image for sample in dataset.test_flawed]
        draw.shuffle(good)
        draw.shuffle(flawed)
        good = good[:GOOD]
        flawed = flawed[: max(4, int(len(good) * FLAWED_SHARE))]
        is_flawed = np.array([False] * len(good) + [True] * len(flawed))
        for kind, features in kinds.items():
            odd = oddness([features(path) for path in (*good, *flawed)])
            print(f"{dataset.category}, {kind}: AUROC {auroc(odd, is_flawed):.2f}", flush=True)


if __name__ == "__main__":
    main()
