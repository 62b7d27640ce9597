"""What a checkpoint is chosen by: flaws synthesized on held-out good images, or, as an oracle, labelled test images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawsmith.metrics.accumulate import PixelMetrics
from flawsmith.metrics.ranking import auroc
from flawsmith.models.base import AnomalyOutput

EVALUATIONS = 10
BATCH = 8


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
        model = _frozen_copy(self.network())
        scores = [_scores(model, images) for images in (self.good, self.synthetic)]
        labels = np.repeat([False, True], [len(part) for part in scores])
        result = auroc(np.concatenate(scores), labels)
        assert result is not None, "good and synthetic images are both there"
        return {self.monitor: result}


@dataclass(frozen=True)
class TestImage:
    """A labelled test image at the network's input.

    Attributes:
        image: normalised, (3, height, width).
        flawed: its label.
        mask: (h, w) True where flawed, of the part of the map that ``content`` cuts out; None where there is none.
        content: cuts the part of a map that shows the image.
    """

    __test__ = False  # nothing for pytest

    image: NDArray[np.float32]
    flawed: bool
    mask: NDArray[np.bool_] | None
    content: Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class TestSetSelection(CheckpointMonitor):
    """Measures a model on labelled test images, as released codes do: figures on them say nothing of other images.

    The figures are image AUROC and pixel AUROC in the network's pixels, whose sum GLASS, PBAS and the second stage of
    AAND select by. Without masks image AUROC decides alone.

    Attributes:
        images: gives the test images, one at a time and anew at every call, so that memory stays bounded.
        network: gives the model as trained so far.
    """

    __test__ = False

    monitor: ClassVar[str] = "oracle_auroc"
    images: Callable[[], Iterable[TestImage]]
    network: Callable[[], nn.Module]

    def measure(self) -> Mapping[str, float]:
        """Image AUROC, and pixel AUROC where there are masks."""
        model = _frozen_copy(self.network())
        scores: list[float] = []
        labels: list[bool] = []
        with PixelMetrics() as pixels:
            for test_image in self.images():
                output = _outputs(model, test_image.image[None])
                scores.append(float(output.score[0]))
                labels.append(test_image.flawed)
                if not test_image.flawed or test_image.mask is not None:
                    pixels.update(test_image.content(output.map[0].numpy()), test_image.mask)
            by_pixel = pixels.compute().auroc
        by_image = auroc(scores, labels)
        assert by_image is not None, "a test split without good or flawed images is refused before training"
        return {"oracle_image_auroc": by_image, **({} if by_pixel is None else {"oracle_pixel_auroc": by_pixel})}


def _frozen_copy(model: nn.Module) -> nn.Module:
    # A copy on the CPU: a module that trains elsewhere has left the frozen backbone and these images behind.
    return copy.deepcopy(model).cpu().eval()


def _outputs(model: nn.Module, images: NDArray[np.float32]) -> AnomalyOutput:
    with torch.inference_mode():
        return model(torch.from_numpy(images))


def _scores(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(images), BATCH)
        return torch.cat([model(batch).score for batch in batches]).numpy()
