"""Figures of anomaly detection, NumPy in and NumPy out: functions of all images, and accumulators of one at a time.

Functions take lists or arrays and give a float, or None where the data leave the figure undefined. Accumulators take in
one map after the other, in any order and in bounded memory, with ``update``, and give the same figures with
``compute``; :mod:`flawsmith.metrics.bootstrap` gives them of resampled images.

>>> from flawsmith.metrics import PixelMetrics, aupro, auroc
>>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
0.75
>>> maps, masks = [[[0.9, 0.3, 0.1]], [[0.2, 0.4, 0.1]]], [[[1, 1, 0]], None]
>>> round(aupro(maps, masks), 6)
0.583333
>>> with PixelMetrics() as pixels:
...     for anomaly_map, mask in zip(maps, masks):
...         _ = pixels.update(anomaly_map, mask)
...     round(pixels.compute().overlap, 6)
0.583333
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flawsmith.metrics.accumulate import PixelMetrics, PixelResult, SaturatedOverlap
    from flawsmith.metrics.bootstrap import intervals, paired_differences
    from flawsmith.metrics.collect import EvaluationState, MetricCollection, ScoredImage, ScoredMask
    from flawsmith.metrics.legacy_pro import LegacyPRO
    from flawsmith.metrics.pro import aupro, pixel_auroc, pixel_average_precision, pro_curve
    from flawsmith.metrics.protocol import Protocol
    from flawsmith.metrics.ranking import Curve, auroc, average_precision, f1_max, f1_max_threshold, roc_curve
    from flawsmith.metrics.results import Evaluation
    from flawsmith.metrics.spro import Channel, au_spro, saturation_area, spro_at, spro_curve
    from flawsmith.metrics.summary import evaluate_images, summarise

_MODULES = {
    "accumulate": ("PixelMetrics", "PixelResult", "SaturatedOverlap"),
    "bootstrap": ("intervals", "paired_differences"),
    "collect": ("EvaluationState", "MetricCollection", "ScoredImage", "ScoredMask"),
    "legacy_pro": ("LegacyPRO",),
    "pro": ("aupro", "pixel_auroc", "pixel_average_precision", "pro_curve"),
    "protocol": ("Protocol",),
    "ranking": ("Curve", "auroc", "average_precision", "f1_max", "f1_max_threshold", "roc_curve"),
    "results": ("Evaluation",),
    "spro": ("Channel", "au_spro", "saturation_area", "spro_at", "spro_curve"),
    "summary": ("evaluate_images", "summarise"),
}
_PLACES = {name: f"flawsmith.metrics.{module}" for module, names in _MODULES.items() for name in names}
__all__ = [
    "Channel", "Curve", "Evaluation", "EvaluationState", "LegacyPRO", "MetricCollection", "PixelMetrics",
    "PixelResult", "Protocol", "SaturatedOverlap", "ScoredImage", "ScoredMask", "au_spro", "aupro",
    "auroc", "average_precision", "evaluate_images", "f1_max", "f1_max_threshold", "intervals", "paired_differences",
    "pixel_auroc", "pixel_average_precision", "pro_curve", "roc_curve", "saturation_area", "spro_at", "spro_curve",
    "summarise",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'flawsmith.metrics' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
