"""PatchCore and PaDiM of anomalib on given feature maps; runs where anomalib is installed.

``python given_features.py IN.npz OUT.npz``: IN holds level maps of training and test images (train_0 …, test_0 …,
finest first, float32), the levels that each method uses, the image size, a seed, the share of the coreset and the
number of channels that PaDiM keeps. OUT holds maps, image scores, seconds, PatchCore's memory and PaDiM's channels.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from anomalib.models.components import KCenterGreedy, MultiVariateGaussian
from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator as GaussianMaps
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

Levels = dict[str, torch.Tensor]
IMAGES_A_PASS = 16


class Patchcore(PatchcoreModel):  # type: ignore[misc]
    """anomalib's model without its backbone; everything else is called as its own forward pass calls it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(layers=["layer1"], backbone="resnet18", pre_trained=False)
        self.layers = names

    def embeddings(self, levels: Levels) -> torch.Tensor:
        return self.generate_embedding({name: self.feature_pooler(level) for name, level in levels.items()})

    def scores(self, levels: Levels, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.embeddings(levels)
        count, _, height, width = embedding.shape
        rows = self.reshape_embedding(embedding)
        distances, places = self.nearest_neighbors(rows, n_neighbors=1)
        distances, places = distances.reshape(count, -1), places.reshape(count, -1)
        score = self.compute_anomaly_score(distances, places, rows)
        return self.anomaly_map_generator(distances.reshape(count, 1, height, width), size), score


def levels_of(arrays: dict[str, np.ndarray], part: str, numbers: list[int], rows: slice) -> Levels:
    return {f"level_{number}": torch.from_numpy(arrays[f"{part}_{number}"][rows]) for number in numbers}


def passes(count: int) -> list[slice]:
    return [slice(start, start + IMAGES_A_PASS) for start in range(0, count, IMAGES_A_PASS)]


def patchcore(arrays: dict[str, np.ndarray], numbers: list[int], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Coreset, maps and scores, and the seconds that the coreset took."""
    model = Patchcore([f"level_{number}" for number in numbers]).eval()
    rows = torch.cat(
        [
            model.reshape_embedding(model.embeddings(levels_of(arrays, "train", numbers, part)))
            for part in passes(len(arrays["train_0"]))
        ]
    )
    start = time.perf_counter()
    model.memory_bank = KCenterGreedy(rows, float(arrays["coreset_ratio"])).sample_coreset()
    seconds = time.perf_counter() - start
    batches = [model.scores(levels_of(arrays, "test", numbers, part), size) for part in passes(len(arrays["test_0"]))]
    maps, scores = (torch.cat(values) for values in zip(*batches, strict=True))
    return {
        "patchcore_map": maps[:, 0].numpy(),
        "patchcore_score": scores.numpy(),
        "patchcore_memory": model.memory_bank.numpy(),
        "patchcore_seconds": np.array(seconds),
    }


def padim(arrays: dict[str, np.ndarray], numbers: list[int], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Maps and scores, and the seconds that the Gaussians took."""
    model = PadimModel(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=1)
    model.layers = [f"level_{number}" for number in numbers]
    width = sum(arrays[f"train_{number}"].shape[1] for number in numbers)
    model.idx = torch.randperm(width)[: int(arrays["channel_count"])]  # as its constructor draws
    embeddings = torch.cat(
        [model.generate_embedding(levels_of(arrays, "train", numbers, part)) for part in passes(len(arrays["train_0"]))]
    )
    start = time.perf_counter()
    gaussian, maps = MultiVariateGaussian(), GaussianMaps()
    mean, inverse = gaussian.fit(embeddings)
    seconds = time.perf_counter() - start
    batches = [
        maps(
            embedding=model.generate_embedding(levels_of(arrays, "test", numbers, part)),
            mean=mean,
            inv_covariance=inverse,
            image_size=size,
        )
        for part in passes(len(arrays["test_0"]))
    ]
    whole = torch.cat(batches)[:, 0]
    return {
        "padim_map": whole.numpy(),
        "padim_score": whole.amax(dim=(1, 2)).numpy(),
        "padim_seconds": np.array(seconds),
        "padim_channels": model.idx.numpy(),
    }


@torch.no_grad()
def main() -> None:
    with np.load(sys.argv[1], allow_pickle=False) as file:
        arrays = dict(file)
    size = (int(arrays["image_size"][0]), int(arrays["image_size"][1]))
    torch.manual_seed(int(arrays["seed"]))
    answers = (method(arrays, arrays[f"{method.__name__}_levels"].tolist(), size) for method in (patchcore, padim))
    np.savez(sys.argv[2], **{name: value for answer in answers for name, value in answer.items()})  # type: ignore[arg-type]


main()
