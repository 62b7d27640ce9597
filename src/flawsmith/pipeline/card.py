"""The model card inside every bundle."""

from __future__ import annotations

from flawsmith.runtime.bundle import BundleSpec


def model_card(spec: BundleSpec) -> str:
    """What the model is, what it learned from and what its limit is worth, as Markdown."""
    height, width = spec.geometry.size
    stamps = "".join(f"**{stamp}.**\n\n" for stamp in spec.training.stamps)
    return f"""# {spec.training.category}: a Flawsmith model

{stamps}- method: {spec.method}, preset {spec.preset}, seed {spec.seed}
- backbone: {spec.backbone.name} ({spec.backbone.weights} weights, SHA-256 {spec.backbone.sha256[:16]}…)
- input: {width}×{height} pixels, {spec.geometry.policy}
- engine: {spec.engine}, {spec.precision}
- learned from {spec.training.n_train} good images of {spec.training.category} ({spec.training.layout} layout)
- limit on the image score: {spec.decision.limit:.6g}; on the map: {spec.decision.map_limit:.6g}

{spec.decision.describe()}

Scores are comparable within this model only. The model has learned from no flawed part; what it calls a flaw is what it
did not find among the good ones.
"""
