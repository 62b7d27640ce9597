"""A baseline beside a model: what the same images give without learning anything, so that one sees whether it paid."""

from __future__ import annotations

from typing import Any

from flawsmith.methods.base import MethodConfig
from flawsmith.methods.registry import find_method
from flawsmith.pipeline.names import BASELINES
from flawsmith.pipeline.settings import TrainSettings
from flawsmith.runtime.errors import FlawsmithError

_FINEST_SHARED = 8
"""Levels finer than this stride are left out of a baseline: their positions would make it slow."""


def choose_baseline(name: str, method: str) -> str | None:
    """The baseline to train beside a method; none beside a baseline.

    Raises:
        FlawsmithError: no baseline is called so.
    """
    if name not in (*BASELINES, "none"):
        raise FlawsmithError(f"no baseline is called {name!r}: choose {', '.join(BASELINES)} or none with --baseline")
    return None if name == "none" or method in BASELINES else name


def baseline_settings(
    name: str, settings: TrainSettings, config: MethodConfig
) -> tuple[TrainSettings, str, MethodConfig]:
    """Settings, preset and configuration of a baseline that sees the same images in the same geometry.

    Args:
        name: its method.
        settings: of the run it stands beside.
        config: of that run's method; its levels are shared where they are not finer than stride 8, so that cached
            features serve both.
    """
    kind, preset = find_method(name), "fast"
    base = kind.presets[preset]
    strides = config.strides if config.frozen_backbone and min(config.strides) >= _FINEST_SHARED else base.strides
    geometry = {field: getattr(config, field) for field in ("image_size", "policy", "resize", "interpolation")}
    changes: dict[str, Any] = {
        "method": name,
        "preset": preset,
        "set": {},
        "select": "last",
        "textures": None,
        "foregrounds": None,
    }
    backbone = settings.backbone if config.frozen_backbone else base.default_backbone
    chosen = settings.model_copy(update={**changes, "backbone": backbone})
    return chosen, preset, kind.Config(**{**base.model_dump(), **geometry, "strides": strides})
