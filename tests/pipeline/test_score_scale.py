"""A model that could never reject is not what a training ends with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from flawsmith.models.components import patch_model
from flawsmith.runtime.bundle import Bundle

PROBABILITIES = {"scale": "probability", "score_norm": "none", "bank": []}


@pytest.fixture
def sure_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discriminators whose logits are so large that their probabilities are 1, of good images too."""
    on_scale = patch_model.on_scale

    def saturated(logits: Tensor, scale: patch_model.Scale) -> Tensor:
        return on_scale(logits + 40 if scale == "probability" else logits, scale)

    monkeypatch.setattr(patch_model, "on_scale", saturated)


@pytest.mark.parametrize("settings", [{}, {"cross_fit": 2}], ids=["held-out", "cross-fitted"])
@pytest.mark.usefixtures("sure_of_everything")
def test_where_good_images_have_the_probability_1_scores_become_logits(
    train_small: Callable[..., Any], parts: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    result = train_small("pbas", parts, tmp_path / "run", set=PROBABILITIES, **settings)

    bundle = Bundle.load(result.model)
    assert bundle.spec.config["scale"] == "logit"
    assert not bundle.spec.decision.rejects_nothing
    assert bundle.spec.decision.limit > float(np.median(bundle.calibration["good"]))
    assert "scale" in bundle.spec.training.findings
    assert "logits instead of probabilities" in (tmp_path / "run" / "run.json").read_text()
    assert np.unique(bundle.calibration["good"]).size > 1
