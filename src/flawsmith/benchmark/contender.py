"""What a cell's training leaves to be measured, whichever package it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flawsmith.pipeline.evaluate import Inspects

TIMED_IMAGES, WARM_UP_IMAGES = 60, 5

Latency = tuple[float, float]
"""Median and 95th percentile in milliseconds from file to verdict and map, one image at a time."""


@dataclass(frozen=True)
class Contender:
    """A trained model.

    Attributes:
        inspector: inspects the test images.
        latency: measures how long one image takes.
        n_train: images it learned from.
        n_calibration: images its limit rests on.
        train_seconds: from an empty cache to the written model.
        inspect_seconds: what was spent on the test images before the inspector was asked.
        model_bytes: size of the model file.
        versions: of what computed it.
    """

    inspector: Inspects
    latency: Callable[[], Latency]
    n_train: int
    n_calibration: int
    train_seconds: float
    inspect_seconds: float
    model_bytes: int
    versions: Mapping[str, str]
