"""Synthetic anomalies on good images, in plain numpy: no run, no network, no torch.

>>> import numpy as np
>>> from flawsmith.synthesis import AnomalySynthesizer
>>> synthesizer = AnomalySynthesizer.from_recipe("glass", textures="procedural")
>>> sample = synthesizer(np.full((64, 64, 3), 0.5), np.random.default_rng(0))
>>> sample.image.shape, sample.mask.dtype.name
((64, 64, 3), 'bool')

The public names load what they need on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flawsmith.synthesis.foreground import Foreground
    from flawsmith.synthesis.recipes import RECIPES, Recipe
    from flawsmith.synthesis.synthesizer import AnomalySample, AnomalySynthesizer

_PLACES = {
    "RECIPES": "flawsmith.synthesis.recipes",
    "AnomalySample": "flawsmith.synthesis.synthesizer",
    "AnomalySynthesizer": "flawsmith.synthesis.synthesizer",
    "Foreground": "flawsmith.synthesis.foreground",
    "Recipe": "flawsmith.synthesis.recipes",
}
__all__ = ["RECIPES", "AnomalySample", "AnomalySynthesizer", "Foreground", "Recipe"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'flawsmith.synthesis' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
