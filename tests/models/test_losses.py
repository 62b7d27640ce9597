"""Losses stay finite wherever a network may drive them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flawsmith.losses import balanced_focal_loss, focal_loss


@pytest.mark.parametrize("loss", [focal_loss, balanced_focal_loss])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_slopes_are_finite_where_a_probability_rounds_to_0_or_1(loss: Callable[..., Tensor], gamma: float) -> None:
    """A power below 1 has no slope at 0, which a network that is sure of itself reaches in float32."""
    logits = torch.tensor([-200.0, -30.0, 30.0, 200.0]).repeat(2).requires_grad_()
    targets = torch.tensor([0.0, 1.0]).repeat_interleave(4)

    value = loss(logits.sigmoid(), targets, gamma=gamma)
    value.backward()

    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
