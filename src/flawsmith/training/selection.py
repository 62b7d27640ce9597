"""What a checkpoint is chosen by: flaws synthesized on held-out good images, or, as an oracle, labelled test images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawsmith.metrics.ranking import auroc
from flawsmith.models.base import AnomalyModel, FeatureSource

EVALUATIONS = 10
BATCH = 8
T = TypeVar("T", bound=nn.Module)


class CheckpointMonitor(ABC):
    """Measures a model as it trains, for ``ModelCheckpoint(monitor=...)``: the first of the best is kept.

    Attributes:
        monitor: name of the monitored figure, the sum of those measured.
    """

    monitor: ClassVar[str]

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether to measure after this epoch: ten times a run or a few more, the last time at its end."""
        every = max(1, epochs // EVALUATIONS)
        return (epoch + 1) % every == 0 or epoch + 1 == epochs

    @abstractmethod
    def measure(self) -> Mapping[str, float]:
        """Figures by the name that metrics.jsonl gives them, each 0 to 1."""


@dataclass(frozen=True)
class HeldOutSelection(CheckpointMonitor):
    """How well a model tells good images from synthetic flaws; neither is ever trained on.

    Attributes:
        good: normalised good images, (n, 3, height, width).
        synthetic: normalised images with synthetic flaws, (m, 3, height, width).
        network: gives the model as trained so far.
    """

    monitor: ClassVar[str] = "selection_auroc"
    good: NDArray[np.float32]
    synthetic: NDArray[np.float32]
    network: Callable[[], nn.Module]

    def measure(self) -> Mapping[str, float]:
        """Image AUROC of synthetic flaws against good images."""
        model, device = _in_evaluation(self.network())
        batches = (torch.split(torch.from_numpy(images), BATCH) for images in (self.good, self.synthetic))
        with torch.inference_mode():
            scores = [torch.cat([model(batch.to(device)).score for batch in part]) for part in batches]
        labels = np.repeat([False, True], [len(part) for part in scores])
        result = auroc(torch.cat(scores).numpy(force=True), labels)
        assert result is not None, "good and synthetic images are both there"
        return {self.monitor: result}


@dataclass(frozen=True)
class TestImage:
    """What is known of a labelled test image.

    Attributes:
        flawed: its label.
        mask: (h, w) True where flawed, of the part of the map that ``content`` cuts out; None where there is none.
        content: cuts the part of a map that shows the image.
    """

    __test__ = False  # nothing for pytest

    flawed: bool
    mask: NDArray[np.bool_] | None
    content: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TestSetSelection(CheckpointMonitor):
    """Measures a model on labelled test images, as released codes do: figures on them say nothing of other images.

    The figures are image AUROC and pixel AUROC in the network's pixels, whose sum GLASS, PBAS and the second stage of
    AAND select by. Without masks image AUROC decides alone. All of it is computed where the model is trained, and the
    maps of all images are there at a time.

    Attributes:
        images: what is known of each test image.
        features: gives what the frozen backbone says of them, or the images themselves as the only level for a model
            with an encoder of its own.
        network: gives the model as trained so far.
    """

    __test__ = False

    monitor: ClassVar[str] = "oracle_auroc"
    images: Sequence[TestImage]
    features: Callable[[], FeatureSource]
    network: Callable[[], AnomalyModel]

    def due(self, epoch: int, epochs: int) -> bool:
        """After every epoch, as the released codes of GLASS and PBAS."""
        return True

    def measure(self) -> Mapping[str, float]:
        """Image AUROC, and pixel AUROC where there are masks."""
        model, device = _in_evaluation(self.network())
        features = self.features()
        scores: list[Tensor] = []
        good: list[Tensor] = []
        flawed: list[Tensor] = []
        for start in range(0, len(self.images), BATCH):
            batch = self.images[start : start + BATCH]
            levels = [level.to(device) for level in features.batch(range(start, start + len(batch)))]
            with torch.inference_mode():
                output = model.from_levels(levels) if model.config.frozen_backbone else model(levels[0])
            scores.append(output.score)
            for image, anomaly_map in zip(batch, output.map, strict=True):
                values = image.content(anomaly_map)
                if image.mask is not None:
                    mask = torch.from_numpy(image.mask).to(device)
                    flawed.append(values[mask])
                    good.append(values[~mask])
                elif not image.flawed:
                    good.append(values.flatten())
        labels = torch.tensor([image.flawed for image in self.images], device=device)
        of_images = torch.cat(scores)
        by_image = _auroc(of_images[labels], of_images[~labels])
        assert by_image is not None, "a test split without good or flawed images is refused before training"
        by_pixel = _auroc(torch.cat(flawed), torch.cat(good)) if flawed and good else None
        return {"oracle_image_auroc": by_image, **({} if by_pixel is None else {"oracle_pixel_auroc": by_pixel})}


def _in_evaluation(model: T) -> tuple[T, torch.device]:
    """A copy of a model in evaluation mode, and the device that it is on."""
    copied = copy.deepcopy(model).eval()
    device = next((each.device for each in (*copied.parameters(), *copied.buffers())), torch.device("cpu"))
    return copied.to(device), device  # the frozen backbone may have stayed behind


def _auroc(flawed: Tensor, good: Tensor) -> float | None:
    """Exact AUROC on the device of the scores, ties counted half; None where either has none.

    In whole numbers: sums of some million ranks are beyond float32.
    """
    if not len(flawed) or not len(good):
        return None
    ordered = good.sort().values
    below = torch.searchsorted(ordered, flawed).sum() + torch.searchsorted(ordered, flawed, right=True).sum()
    return int(below) / (2 * len(flawed) * len(good))
