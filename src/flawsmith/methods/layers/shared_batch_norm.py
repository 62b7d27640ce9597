"""Batch norms whose statistics are those of the whole batch, wherever its images are.

torch's SyncBatchNorm refuses tensors on a CPU, and its conversion drops the activation that timm's ``BatchNormAct2d``
carries. Here a module keeps its parameters, buffers and place; only its class changes, to a subclass of what it was.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flawsmith.methods.layers.distributed import total, totals, world_size


class _Normalise(torch.autograd.Function):
    """Batch norm with the statistics of all processes; they take part in the gradient.

    With x̂ = (x − μ)/σ over n values a channel, the gradient is w/σ · (g − Σg/n − x̂ · Σ(g·x̂)/n), both sums over all
    processes. The gradients of weight and bias are this process's; they are averaged with all others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *rest: float) -> Any:
        count, epsilon = rest
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + epsilon))
        ctx.count = count
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        shape, axes = _channels(x)
        gradient = _wide(gradients[0])
        normal = (_wide(x) - mean.view(shape)) * inverse.view(shape)
        of_bias, of_weight = gradient.sum(axes), (gradient * normal).sum(axes)
        first, second = (summed.view(shape) / ctx.count for summed in totals(of_bias, of_weight))
        found = (weight * inverse).view(shape) * (gradient - first - normal * second)
        return found.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None, None, None


def _channels(x: Tensor) -> tuple[list[int], list[int]]:
    """Shape that sets values of a channel against x, and the axes that a channel extends over."""
    return [1, -1, *[1] * (x.dim() - 2)], [0, *range(2, x.dim())]


def _wide(x: Tensor) -> Tensor:
    """Sums need float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of every channel over all processes, and the number of its values."""
    shape, axes = _channels(x)
    values = _wide(x.detach())
    sums, counts = totals(values.sum(axes).double(), values.new_full((x.shape[1],), x.numel() / x.shape[1]).double())
    mean, count = (sums / counts).to(values.dtype), int(counts[0])
    squares = total((values - mean.view(shape)).square().sum(axes).double())
    return mean, (squares / count).to(values.dtype), count


class _Shared(_BatchNorm):
    """What the subclasses share; in evaluation mode, and where nobody trains together, all is as it was."""

    def normalised(self, x: Tensor) -> Tensor:
        """The batch norm in training mode over the batch of all processes."""
        mean, variance, count = moments(x)
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        self._learn(mean, variance * (count / (count - 1)))
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        return _Normalise.apply(x, weight, bias, mean, variance, count, self.eps)

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    @property
    def _shares(self) -> bool:
        return self.training and world_size() > 1

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x) if self._shares else super().forward(x)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """nn.BatchNorm1d over all processes."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """nn.BatchNorm2d over all processes."""


class SharedBatchNormAct2d(_Shared, BatchNormAct2d):
    """timm's batch norm and activation over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.normalised(x))) if self._shares else super().forward(x)


_SHARED: dict[type[_BatchNorm], type[_Shared]] = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    BatchNormAct2d: SharedBatchNormAct2d,
}


def share_batch_norms(model: nn.Module) -> None:
    """Make every batch norm of a model one over all processes, in place.

    Raises:
        TypeError: for a batch norm of another kind.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _Shared):
            if type(module) not in _SHARED:
                raise TypeError(f"{name}: nobody knows how to share the statistics of a {type(module).__name__}")
            module.__class__ = _SHARED[type(module)]


def own_batch_norms(model: nn.Module) -> None:
    """Undo :func:`share_batch_norms`."""
    plain = {shared: kind for kind, shared in _SHARED.items()}
    for module in model.modules():
        if isinstance(module, _Shared):
            cast(Any, module).__class__ = plain[type(module)]
