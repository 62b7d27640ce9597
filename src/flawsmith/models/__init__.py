"""The methods, as modules that map normalised images (batch, 3, height, width) to anomaly maps and scores.

Example:
    >>> import torch
    >>> from flawsmith.models import PatchCore
    >>> model = PatchCore.from_preset("fast", backbone="efficientnet_lite0@random", image_size=(64, 64))
    >>> map, score = model.eval()(torch.zeros(1, 3, 64, 64))
    >>> map.shape, score.shape
    (torch.Size([1, 64, 64]), torch.Size([1]))
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flawsmith.models.aand import AAND, RD4AD, Fusion
    from flawsmith.models.base import AnomalyModel, AnomalyOutput, TrainingModule
    from flawsmith.models.glass import GLASS
    from flawsmith.models.padim import PaDiM
    from flawsmith.models.patchcore import PatchCore
    from flawsmith.models.pbas import PBAS
    from flawsmith.models.slsg import SLSG

METHODS = sorted(
    name
    for source in Path(__file__).parent.glob("*/model.py")
    for name in re.findall(
        r'^    name(?:: ClassVar\[str\])? = "(\w+)"$', source.read_text(encoding="utf-8"), re.MULTILINE
    )
)
"""Names of all methods, read from their sources: importing those takes torch, which help texts do without."""

_PLACES = {
    **dict.fromkeys(("AAND", "RD4AD", "Fusion"), "flawsmith.models.aand"),
    **dict.fromkeys(("AnomalyModel", "AnomalyOutput", "TrainingModule"), "flawsmith.models.base"),
    **{name: f"flawsmith.models.{name.lower()}" for name in ("GLASS", "PBAS", "PaDiM", "PatchCore", "SLSG")},
}
__all__ = [
    "AAND", "GLASS", "PBAS", "RD4AD", "SLSG", "AnomalyModel", "AnomalyOutput", "Fusion", "PaDiM", "PatchCore",
    "TrainingModule",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'flawsmith.models' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
