"""What a method shows of its training beside its losses: plain data, drawn by whoever writes the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MetricChart:
    """Recorded figures over the epochs.

    Attributes:
        title: heading.
        caption: what is seen.
        y_label: name and unit of the vertical axis.
        metrics: the name of each line by the name under which the training step returns the figure.
    """

    title: str
    caption: str
    y_label: str
    metrics: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class FeatureCloud:
    """Samples of features in groups, to be looked at in two dimensions.

    Attributes:
        title: heading.
        caption: what is seen.
        groups: (samples, width) by name.
    """

    title: str
    caption: str
    groups: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in a row.

    Attributes:
        title: heading.
        caption: what is seen.
        pictures: label and (height, width[, 3]) uint8 picture.
        group: so many successive pictures belong together.
    """

    title: str
    caption: str
    pictures: Sequence[tuple[str, NDArray[np.uint8]]]
    group: int = 1


def forged_flaws(examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]) -> Pictures:
    """Forged flaws as training sees them: good image, mask and forged image of each."""
    labels = ("good image", "mask", "forged flaw")
    pictures = [pair for example in examples for pair in zip(labels, example, strict=True)]
    return Pictures("Forged flaws", "Good training images, masks, and what becomes of them.", pictures, group=3)


Diagnostic = MetricChart | FeatureCloud | Pictures
