"""Which of the good images look least like the others, by a baseline that did not see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.models.base import AnomalyOutput, FeatureSource
from flawsmith.models.components.level_table import Rows

FOLDS = 3
_BATCH = 8


@runtime_checkable
class Baseline(Protocol):
    """A model that is fitted to features in one pass: PatchCore or PaDiM."""

    def fit_features(self, features: FeatureSource) -> object: ...

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput: ...


@torch.no_grad()
def unlikeness(baseline: Baseline, features: FeatureSource, groups: Sequence[str]) -> NDArray[np.float64]:
    """How unlike the others each image is: its score by the baseline, fitted to images of other folds.

    Args:
        baseline: fitted anew for each fold; it is left fitted to the last.
        features: of all images, in an order that says nothing of them.
        groups: of the images; those of one group stand in one fold, or its twins would hide an odd image. Images
            without one stand alone.

    Returns:
        (n,) image scores; all 0 where there are fewer images or groups than folds.
    """
    names = [name or f"image {number}" for number, name in enumerate(groups)]
    numbers = np.unique(names, return_inverse=True)[1].ravel()
    order = {number: place for place, number in enumerate(dict.fromkeys(numbers.tolist()))}
    scores = np.zeros(len(names))
    if len(order) < FOLDS:
        return scores
    folds = np.array([order[number] % FOLDS for number in numbers.tolist()])
    for fold in range(FOLDS):
        inside = np.flatnonzero(folds == fold)
        baseline.fit_features(Rows(features, np.flatnonzero(folds != fold)))
        for start in range(0, len(inside), _BATCH):
            rows = inside[start : start + _BATCH]
            scores[rows] = baseline.from_levels(features.batch(rows)).score.double().numpy()
    return scores
