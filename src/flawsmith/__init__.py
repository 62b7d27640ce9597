"""Flawsmith: visual inspection learned from good parts alone.

The public names load what they need on first use, so that ``from flawsmith import Inspector`` imports no torch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

TYPE_CHECKING = False  # as type checkers know it, without waiting for typing

# These libraries report home from the moment they are imported, so this comes before, in every process that has
# Flawsmith in it. Whoever sets a variable on purpose keeps it.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")
# OpenVINO knows no variable: it reports through this package, and does without where that is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from flawsmith.benchmark.plan import Plan
    from flawsmith.benchmark.reproduce import reproduce
    from flawsmith.benchmark.run import BenchmarkResult, run_benchmark
    from flawsmith.data.doctor import Findings
    from flawsmith.metrics.results import Evaluation
    from flawsmith.pipeline.calibrate import CalibrationResult, calibrate
    from flawsmith.pipeline.describe import doctor
    from flawsmith.pipeline.evaluate import evaluate
    from flawsmith.pipeline.export import ExportResult, export_bundle
    from flawsmith.pipeline.predict import Prediction, predict
    from flawsmith.pipeline.synthesize import SynthesisSettings, synthesize, weak_flaw_sets
    from flawsmith.pipeline.train import TrainResult, train
    from flawsmith.runtime.bundle import Bundle
    from flawsmith.runtime.decision import Decision, Verdict
    from flawsmith.runtime.errors import FlawsmithError
    from flawsmith.runtime.geometry import Geometry
    from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
    from flawsmith.runtime.regions import Region
    from flawsmith.runtime.roi import RegionOfInterest, Zone

__version__ = "0.1.0"

_PLACES = {
    "BenchmarkResult": "flawsmith.benchmark.run",
    "Bundle": "flawsmith.runtime.bundle",
    "CalibrationResult": "flawsmith.pipeline.calibrate",
    "Decision": "flawsmith.runtime.decision",
    "Evaluation": "flawsmith.metrics.results",
    "ExportResult": "flawsmith.pipeline.export",
    "Findings": "flawsmith.data.doctor",
    "FlawsmithError": "flawsmith.runtime.errors",
    "Geometry": "flawsmith.runtime.geometry",
    "Inspection": "flawsmith.runtime.inspector",
    "Inspector": "flawsmith.runtime.inspector",
    "Plan": "flawsmith.benchmark.plan",
    "Prediction": "flawsmith.pipeline.predict",
    "Region": "flawsmith.runtime.regions",
    "RegionOfInterest": "flawsmith.runtime.roi",
    "SynthesisSettings": "flawsmith.pipeline.synthesize",
    "TrainResult": "flawsmith.pipeline.train",
    "Unreadable": "flawsmith.runtime.inspector",
    "Verdict": "flawsmith.runtime.decision",
    "Zone": "flawsmith.runtime.roi",
    "calibrate": "flawsmith.pipeline.calibrate",
    "doctor": "flawsmith.pipeline.describe",
    "evaluate": "flawsmith.pipeline.evaluate",
    "export_bundle": "flawsmith.pipeline.export",
    "predict": "flawsmith.pipeline.predict",
    "reproduce": "flawsmith.benchmark.reproduce",
    "run_benchmark": "flawsmith.benchmark.run",
    "synthesize": "flawsmith.pipeline.synthesize",
    "train": "flawsmith.pipeline.train",
    "weak_flaw_sets": "flawsmith.pipeline.synthesize",
}
__all__ = [
    "BenchmarkResult", "Bundle", "CalibrationResult", "Decision", "Evaluation", "ExportResult", "Findings",
    "FlawsmithError", "Geometry", "Inspection", "Inspector", "Plan", "Prediction", "Region", "RegionOfInterest",
    "SynthesisSettings", "TrainResult", "Unreadable", "Verdict", "Zone", "calibrate", "doctor", "evaluate",
    "export_bundle", "predict", "reproduce", "run_benchmark", "synthesize", "train", "weak_flaw_sets",
]  # fmt: skip

_TIERS = {
    **dict.fromkeys(("train", "TrainResult", "synthesize", "SynthesisSettings", "weak_flaw_sets"), "train"),
    **dict.fromkeys(("run_benchmark", "BenchmarkResult", "Plan", "reproduce"), "benchmark"),
}
"""What names need that the tier eval does not give."""


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'flawsmith' has no attribute {name!r}")
    try:
        return getattr(import_module(_PLACES[name]), name)
    except ModuleNotFoundError as error:
        from flawsmith.runtime.errors import FlawsmithError, package_missing

        line = package_missing(error, f"flawsmith.{name}", _TIERS.get(name, "eval"))
        if line is None:
            raise
        raise FlawsmithError(line) from error


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
