"""MVTec LOCO AD's evaluation: saturated overlap of each defect, logical and structural anomalies apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.golden.steps import Arrays, Results, handles

from flawsmith.metrics import ranking
from flawsmith.metrics.spro import Channel, au_spro, spro_at


def channels_of(case: dict[str, Any], arrays: Arrays) -> list[list[Channel]]:
    """The defects of each image."""
    config = case["hyper_parameters"]["defects_config"]
    channels: list[list[Channel]] = [[] for _ in arrays["maps"]]
    for mask, image, entry in zip(arrays["channels"], arrays["channel_image"], arrays["channel_config"], strict=True):
        kind = config[entry]
        channels[image].append(Channel(mask != 0, kind["saturation_threshold"], kind["relative_saturation"]))
    return channels


def defined(value: float | None) -> float:
    """Undefined figures are NaN in the cases."""
    return float("nan") if value is None else value


@handles("loco")
def loco(case: dict[str, Any], arrays: Arrays) -> Results:
    maps, kind, channels = arrays["maps"], arrays["image_type"], channels_of(case, arrays)
    every = [each for own in channels for each in own]
    order = np.argsort(arrays["channel_image"], kind="stable")
    results: dict[str, Any] = {name: np.empty(len(every), dtype=int) for name in ("defect_area", "saturation_area")}
    for name, values in results.items():
        attribute = {"defect_area": "area"}.get(name, name)
        values[order] = [getattr(each, attribute) for each in every]
    if "curve_thresholds" in arrays:
        found = spro_at(list(maps), channels, arrays["curve_thresholds"])
        results["curve_mean_spro"], results["curve_fpr"] = found
    scores = maps.max(axis=(1, 2))
    results["image_auroc_pooled"] = defined(ranking.auroc(scores, kind > 0))
    limits = case["hyper_parameters"]["limits"]
    for number, name in (1, "logical"), (2, "structural"):
        kept = np.flatnonzero((kind == 0) | (kind == number))
        own = [channels[image] for image in kept]
        results[f"image_auroc_{name}"] = defined(ranking.auroc(scores[kept], kind[kept] > 0))
        areas = [defined(au_spro(list(maps[kept]), own, limit=limit)) for limit in limits]
        results[f"exact_au_spro_{name}"] = np.array(areas)
    both = [results[f"exact_au_spro_{name}"] for name in ("logical", "structural")]
    results["exact_au_spro_mean"] = np.mean(both, axis=0)
    # The kit's thresholds are adaptive; its values lie within the case's tolerance of the exact ones.
    return results | {name.replace("exact", "kit"): area for name, area in results.items() if name.startswith("exact")}
