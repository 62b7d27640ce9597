"""What GLASS shows of its training in the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.data.seeding import generator
from flawsmith.methods.diagnostics import Diagnostic, FeatureCloud, MetricChart, Pictures
from flawsmith.methods.glass.spectrogram import spectrum_picture

SHOWN_FEATURES = 400


def charts(*, projects: bool, spherical: bool) -> list[Diagnostic]:
    """The radius over the epochs and, where features are projected, the share of them that the projection moved."""
    found: list[Diagnostic] = [
        MetricChart(
            "Radius of the normal features",
            "Distance from their centre within which the set share of normal features lies, mean of every epoch. "
            + (
                "Anomalies are pushed beyond it." if spherical else "Recorded alone: the manifold has radii of its own."
            ),
            "distance in feature space",
            {"radius": "radius"},
        )
    ]
    if projects:
        found.append(
            MetricChart(
                "Truncated projection",
                "Share of synthetic features that a projection moved because they lay outside of its two radii. With "
                "the manifold's radii of the released code and its noise none ever does.",
                "share of features",
                {"moved": "moved by the projection"},
            )
        )
    return found


def cloud(normal: Tensor, gas: Tensor | None, las: Tensor | None, seed: int) -> FeatureCloud:
    """Features of one batch by kind, a seeded sample of each; None where a kind is not trained on."""
    kinds = {"normal": normal, "GAS": gas, "LAS": las}
    return FeatureCloud(
        "Features after training",
        "Adapted features of one batch: normal ones, global anomalies (GAS) made of them, and forged flaws (LAS).",
        {name: _sample(rows, seed, name) for name, rows in kinds.items() if rows is not None and len(rows)},
    )


def _sample(features: Tensor, seed: int, name: str) -> NDArray[np.float32]:
    rows = generator(seed, f"shown {name}").permutation(len(features))[:SHOWN_FEATURES]
    return features.detach().float().cpu().numpy()[np.sort(rows)]


def judged(mean_image: NDArray[np.uint8]) -> Pictures:
    """The mean training image with the spectrum that the judge looks at."""
    return Pictures(
        "What the judge sees",
        "The mean training image and the middle of its spectrum; frequencies above the limit are marked.",
        [("mean image", mean_image), ("spectrum", spectrum_picture(mean_image))],
    )
