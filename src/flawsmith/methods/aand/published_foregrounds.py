"""Where the released script of AAND looks for the part, for the data sets of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flawsmith.methods.published import known_dataset, plain
from flawsmith.synthesis.foreground import Foreground

# Grey level after smoothing, whether darker is foreground, and the categories. The script means cable where it says
# bottle's disc, but misspells it: both get the disc here.
_THRESHOLDS: Mapping[str, tuple[tuple[float, bool, str], ...]] = MappingProxyType(
    {
        "mvtec": (
            (0, False, "carpet grid leather tile wood transistor"),
            (150, True, "capsule screw zipper"),
            (50, False, "hazelnut metal_nut pill toothbrush"),
        ),
        "visa": (
            (150, False, "candle cashew chewinggum fryum macaroni1 macaroni2 pcb1"),
            (100, False, "pcb2 pcb3 pipe_fryum"),
            (50, False, "pcb4"),
            (100, True, "capsules"),
        ),
        "mvtec_3d": ((50, False, "bagel cable_gland carrot cookie dowel peach potato rope"),),
    }
)
_DISC = Foreground(mode="disc", extent=(0.45, 0.45))
_BOX = Foreground(mode="box", extent=(0.35, 0.35))
_RULES: Mapping[tuple[str, str], Foreground] = MappingProxyType(
    {
        (dataset, plain(category)): Foreground(mode="threshold", level=level, inverted=inverted, pixels="file")
        for dataset, rules in _THRESHOLDS.items()
        for level, inverted, categories in rules
        for category in categories.split()
    }
    | {("mvtec", category): _DISC for category in ("bottle", "cable")}
    | {("mvtec_3d", category): _BOX for category in ("foam", "tire")}
)


def published_foreground(dataset: str, category: str) -> Foreground | None:
    """The released script's rule for a category, or None where there is none.

    Args:
        dataset: name of the data set or of its folder.
        category: name of the category.

    Example:
        >>> published_foreground("mvtec_anomaly_detection", "screw").level
        150.0
    """
    known = known_dataset(dataset)
    return None if known is None else _RULES.get((known, plain(category)))
