"""What a method shows of its training, as plain data: the report draws each kind and knows no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MetricChart:
    """Recorded figures over the epochs.

    Attributes:
        metrics: the name of each line by the name under which the training step returns the figure.
    """

    title: str
    caption: str
    y_label: str
    metrics: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class LineChart:
    """Figures over training, as lines over one horizontal axis.

    Attributes:
        x: (points,) horizontal places, ascending.
        lines: values by name, as many as ``x``; values that are not finite are passed over.
        y_label: name of the vertical axis, with its unit.
        x_label: name of the horizontal axis.
    """

    title: str
    caption: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    y_label: str
    x_label: str = "epoch"


@dataclass(frozen=True, eq=False)
class FeatureCloud:
    """Samples of features in groups, to be looked at in two dimensions.

    Attributes:
        groups: (samples, width) by name.
    """

    title: str
    caption: str
    groups: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in a row.

    Attributes:
        pictures: label and (height, width[, 3]) uint8 picture.
        group: so many successive pictures belong together.
    """

    title: str
    caption: str
    pictures: Sequence[tuple[str, NDArray[np.uint8]]]
    group: int = 1


def synthetic_flaws(examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]) -> Pictures:
    """Synthetic flaws as training sees them: good image, mask and synthetic image of each."""
    labels = ("good image", "mask", "synthetic flaw")
    pictures = [pair for example in examples for pair in zip(labels, example, strict=True)]
    return Pictures("Synthetic flaws", "Good training images, masks, and what becomes of them.", pictures, group=3)


Diagnostic = MetricChart | LineChart | FeatureCloud | Pictures
