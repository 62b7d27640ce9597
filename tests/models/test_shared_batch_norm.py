"""Batch norms over processes, as far as one process shows it; tests/training/test_several_processes.py has two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from flawsmith.models.components.distributed import own_batch_norms, share_batch_norms

KINDS: list[Callable[[], nn.Module]] = [lambda: nn.BatchNorm2d(6), lambda: nn.BatchNorm2d(6, momentum=None)]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shared_norm_is_torchs_own_in_every_precision(
    make: Callable[[], nn.Module], dtype: torch.dtype, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    plain, shared = make(), make()
    share_batch_norms(shared)
    results = []
    x, weights = (torch.randn(4, 6, 5, 3, generator=draw) for _ in range(2))
    for module, forward in ((plain, plain), (shared, shared.normalised)):
        given = (3 + x).to(dtype).requires_grad_()
        found = forward(given)
        (found.float() * weights).sum().backward()
        assert found.dtype == given.grad.dtype == dtype
        results.append((found, given.grad, module.weight.grad, module.bias.grad, *module.buffers()))

    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_sharing_keeps_state_and_place_and_is_undone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNormAct2d(4), nn.Flatten(), nn.BatchNorm1d(4))
    modules, state = list(model), model.state_dict()

    share_batch_norms(model)

    assert list(model) == modules
    assert model.state_dict().keys() == state.keys()
    assert isinstance(model[1], nn.BatchNorm2d)
    assert type(model[1]) is not nn.BatchNorm2d
    own_batch_norms(model)
    assert [type(module) for module in model] == [nn.Conv2d, nn.BatchNorm2d, BatchNormAct2d, nn.Flatten, nn.BatchNorm1d]


def test_one_value_a_channel_has_no_variance() -> None:
    module = nn.BatchNorm1d(4)
    share_batch_norms(module)

    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module.normalised(torch.zeros(1, 4))


def test_batch_norm_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchNorm3d"):
        share_batch_norms(nn.Sequential(nn.BatchNorm3d(2)))
