"""What the scripts of this folder share: reading images, synthesizing flaws on good ones, scoring the test images.

DATA is a folder with ``train/good``, ``test/good`` and a folder in ``test`` for each kind of flaw, as in MVTec AD.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flawsmith.metrics import auroc
from flawsmith.models import AnomalyModel
from flawsmith.runtime.files import find_images
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.synthesis import AnomalySynthesizer


def options(description: str | None, arguments: Sequence[str] | None, *, steps: int) -> Namespace:
    """What every script is told on the command line; ``steps`` is the default, 0 for a method that takes none."""
    parser = ArgumentParser(description=description)
    parser.add_argument("data", type=Path, help="folder with train/good, test/good and test/<kind of flaw>")
    parser.add_argument("--image-size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=8)
    if steps:
        parser.add_argument("--steps", type=int, default=steps, help="of a training stage")
    return parser.parse_args(arguments)


def read(folder: Path, geometry: Geometry) -> list[np.ndarray]:
    """All images of a folder at the network's size: (height, width, 3) in [0, 1]."""
    return [geometry.to_float(geometry.fit(decode(file))) for file in find_images(folder)]


def normalised(images: Iterable[np.ndarray], geometry: Geometry) -> Tensor:
    """Images as the network wants them: (batch, 3, height, width)."""
    return torch.from_numpy(np.stack([geometry.normalise(image) for image in images]))


def flawed(
    good: Sequence[np.ndarray],
    synthesizer: AnomalySynthesizer,
    geometry: Geometry,
    rng: np.random.Generator,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Some good images, the same with synthetic flaws, and the masks of these, (batch, height, width) bool."""
    samples = synthesizer.batch([good[row] for row in rng.integers(len(good), size=count)], rng)
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples]))
    normal = normalised([sample.normal for sample in samples], geometry)
    return normal, normalised([sample.image for sample in samples], geometry), masks


@torch.inference_mode()
def report(model: AnomalyModel, data: Path) -> None:
    """Print the image AUROC of the test images: the chance that a flawed one scores higher than a good one."""
    files = find_images(data / "test")
    model.eval()
    scores = [float(model(torch.from_numpy(model.geometry.apply(decode(file)))[None]).score) for file in files]
    print(f"image AUROC {auroc(scores, [file.parent.name != 'good' for file in files]):.4f}")
