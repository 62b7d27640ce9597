"""Flawsmith: visual inspection learned from good parts alone.

The public names load what they need on first use, so that ``from flawsmith import Inspector`` imports no torch.
"""

from __future__ import annotations

import os
from importlib import import_module

TYPE_CHECKING = False  # as type checkers know it, without waiting for typing

# These libraries report home from the moment they are imported, so this comes before, in every process that has
# Flawsmith in it. Whoever sets a variable on purpose keeps it.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")

if TYPE_CHECKING:
    from flawsmith.metrics.results import Evaluation
    from flawsmith.pipeline.calibrate import CalibrationResult, calibrate
    from flawsmith.pipeline.evaluate import evaluate
    from flawsmith.pipeline.train import TrainResult, train
    from flawsmith.runtime.bundle import Bundle
    from flawsmith.runtime.decision import Decision, Verdict
    from flawsmith.runtime.errors import FlawsmithError
    from flawsmith.runtime.geometry import Geometry
    from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
    from flawsmith.runtime.regions import Region
    from flawsmith.runtime.roi import RegionOfInterest
    from flawsmith.runtime.zones import Zone

__version__ = "0.1.0"

_PLACES = {
    "Bundle": "flawsmith.runtime.bundle",
    "CalibrationResult": "flawsmith.pipeline.calibrate",
    "Decision": "flawsmith.runtime.decision",
    "Evaluation": "flawsmith.metrics.results",
    "FlawsmithError": "flawsmith.runtime.errors",
    "Geometry": "flawsmith.runtime.geometry",
    "Inspection": "flawsmith.runtime.inspector",
    "Inspector": "flawsmith.runtime.inspector",
    "Region": "flawsmith.runtime.regions",
    "RegionOfInterest": "flawsmith.runtime.roi",
    "TrainResult": "flawsmith.pipeline.train",
    "Unreadable": "flawsmith.runtime.inspector",
    "Verdict": "flawsmith.runtime.decision",
    "Zone": "flawsmith.runtime.zones",
    "calibrate": "flawsmith.pipeline.calibrate",
    "evaluate": "flawsmith.pipeline.evaluate",
    "train": "flawsmith.pipeline.train",
}
__all__ = [
    "Bundle", "CalibrationResult", "Decision", "Evaluation", "FlawsmithError", "Geometry", "Inspection", "Inspector",
    "Region", "RegionOfInterest", "TrainResult", "Unreadable", "Verdict", "Zone", "calibrate", "evaluate",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'flawsmith' has no attribute {name!r}")
    try:
        return getattr(import_module(_PLACES[name]), name)
    except ModuleNotFoundError as error:
        from flawsmith.runtime.errors import FlawsmithError, package_missing

        line = package_missing(error, f"flawsmith.{name}", "train" if name in ("train", "TrainResult") else "eval")
        if line is None:
            raise
        raise FlawsmithError(line) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
