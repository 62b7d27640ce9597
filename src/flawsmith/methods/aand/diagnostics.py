"""What AAND shows of its training in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.methods.aand.config import AANDConfig
from flawsmith.methods.diagnostics import Diagnostic, MetricChart, Pictures

SHOWN_HEIGHT = 160


def charts(config: AANDConfig) -> list[Diagnostic]:
    """Residual intensity and the gates' precision over the epochs of the first stage."""
    found: list[Diagnostic] = []
    if config.amplification in ("both", "generator"):
        found.append(
            MetricChart(
                "Residual intensity",
                "Length of the residuals over that of the features, weighted by the gate as in inspection, mean over "
                "the levels: on forged cells it should grow, on normal ones stay near zero.",
                "share of the feature's length",
                {"residual_anomalous": "forged cells", "residual_normal": "normal cells"},
            )
        )
    if config.amplification in ("both", "gate"):
        found.append(
            MetricChart(
                "Gates on forged flaws",
                "Of the cells with a gate above one half, the share that is forged (precision), and of the forged "
                "cells the share with such a gate (recall); training batches, mean over the levels.",
                "share of cells",
                {"gate_precision": "precision", "gate_recall": "recall"},
            )
        )
    return found


def level_pictures(
    examples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]], maps: Mapping[str, Tensor]
) -> Pictures:
    """The maps that are summed, on forged flaws, beside the flaw and its mask.

    Args:
        examples: good image, mask and forged image of each.
        maps: low-resolution maps of the forged images by what they are called, each on a scale of its own.
    """
    scaled = {name: _on_own_scale(one.float().cpu().numpy()) for name, one in maps.items()}
    pictures = []
    for number, (_, mask, forged) in enumerate(examples):
        pictures += [("forged flaw", forged), ("mask", mask)]
        pictures += [(name, _enlarged(one[number])) for name, one in scaled.items()]
    return Pictures(
        "Anomaly maps by level",
        "Discrepancy of the finest to the coarsest level on forged flaws, and distances to the memory bank where there "
        "is one; white is the map's highest value here.",
        pictures,
        group=2 + len(scaled),
    )


def _on_own_scale(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, SHOWN_HEIGHT // picture.shape[0])
    size = (picture.shape[1] * times, picture.shape[0] * times)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST), np.uint8)
