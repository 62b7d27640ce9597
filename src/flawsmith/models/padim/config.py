"""Settings of PaDiM and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import Field

from flawsmith.models.base import PUBLISHED, Conditions, ModelConfig


class PaDiMConfig(ModelConfig):
    """Every number of PaDiM; defaults are those of the implementation that the paper's followers use (``official``)."""

    strides: tuple[int, ...] = Field(
        (4, 8, 16), description="Backbone levels by stride in pixels, finest first; positions are those of the finest."
    )
    channels: int | None = Field(
        None,
        ge=1,
        description="Channels drawn at random (paper, section III-B), or all where there are fewer. null: 550 of "
        "levels with 1,000 channels or more, 100 of others: the paper's numbers for WideResNet-50 and ResNet-18.",
    )
    regularisation: float = Field(0.01, ge=1e-6, description="ε of Eq. 1, added to every variance (paper: 0.01).")
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")


PRESETS: Mapping[str, PaDiMConfig] = MappingProxyType(
    {
        "official": PaDiMConfig(image_size=(224, 224), policy="crop", resize=256, interpolation="lanczos"),
        "paper": PaDiMConfig(image_size=(224, 224), policy="crop", resize=256),
        "fast": PaDiMConfig(strides=(8, 16), channels=100),
    }
)
CONDITIONS: Mapping[str, Conditions] = MappingProxyType({"official": PUBLISHED, "paper": PUBLISHED})
