"""Choosing a checkpoint without a test label: held-out good images against flaws forged on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flawsmith.evaluation.ranking import auroc
from flawsmith.methods.base import Detector

EVALUATIONS = 10
BATCH = 8


@dataclass(frozen=True)
class Selection:
    """Scores a detector by how well it tells good images from forged flaws; neither is ever trained on.

    Attributes:
        good: normalised good images, (n, 3, height, width).
        forged: normalised images with forged flaws, (m, 3, height, width).
        network: gives the detector as trained so far.
    """

    good: NDArray[np.float32]
    forged: NDArray[np.float32]
    network: Callable[[], Detector]

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether to evaluate after this epoch: ten times a run, the last time at its end."""
        every = max(1, epochs // EVALUATIONS)
        return (epoch + 1) % every == 0 or epoch + 1 == epochs

    def measure(self) -> float:
        """Image AUROC of forged flaws against good images, 0 to 1."""
        # A copy on the CPU: a module that trains elsewhere has left the frozen backbone and these images behind.
        detector = copy.deepcopy(self.network()).cpu().eval()
        scores = [_scores(detector, images) for images in (self.good, self.forged)]
        labels = np.repeat([False, True], [len(part) for part in scores])
        result = auroc(np.concatenate(scores), labels)
        assert result is not None, "good and forged images are both there"
        return result


def _scores(detector: Detector, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(images), BATCH)
        return torch.cat([detector(batch).score for batch in batches]).numpy()
