"""Variants of methods whose detectors are not those of the preset `fast`: they leave a model file too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "boundary learning alone": ("pbas", {"synthesis": "none"}),
    "pooled patches": ("patchcore", {"aggregation": "pooled", "width": 32}),
    "weighted score": ("patchcore", {"aggregation": "pooled", "width": 32, "weighting": "paper"}),
    "no projector": ("glass", {"projector_depth": 0}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_exported_and_agrees_with_the_trained_one(
    train_tiny: Callable[..., Any], parts: Path, tmp_path: Path, variant: str
) -> None:
    method, changes = VARIANTS[variant]

    result = train_tiny(method, parts, tmp_path / "run", set=changes)

    assert result.bundle.spec.parity["images"] > 0
