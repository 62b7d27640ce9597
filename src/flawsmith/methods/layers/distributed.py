"""Batches, means and order statistics over the processes that train together.

Every process works on its share of the images of a batch, so that a batch is the same batch however many processes
there are. What a method computes over a batch (means in losses, quantiles, draws) is computed over all shares here. In
one process, and outside of :func:`together`, every function is the plain operation on plain tensors.

The loss that a process holds is the loss of the whole batch, the same number everywhere. Gradients are summed over
processes by a mean: with W processes each counts W-fold what it contributes (:func:`mean`), and the data-parallel
strategy then averages. The result is the gradient of one process, whatever the sizes of the shares; some may be empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


class _State:
    together = False


@contextmanager
def together() -> Iterator[None]:
    """Within it the processes of torch's default group train one model, and all of them call the same functions."""
    _State.together = dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _State.together = False


@contextmanager
def apart() -> Iterator[None]:
    """Within it this process works on its own while the others wait."""
    before, _State.together = _State.together, False
    try:
        yield
    finally:
        _State.together = before


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if _State.together else 1


@dataclass(frozen=True)
class Part:
    """Which rows of the whole batch a process has.

    Attributes:
        rows: their places in the whole batch, ascending.
        count: rows of the whole batch.
    """

    rows: slice | Int[Tensor, " row"]
    count: int


def share(count: int) -> slice:
    """This process's places among so many images: shares are contiguous, in order, and differ by one at most."""
    size = world_size()
    if size == 1:
        return slice(0, count)
    rank = dist.get_rank()
    return slice(rank * count // size, (rank + 1) * count // size)


def part_of(count: int) -> Part | None:
    """The same with the size of the whole; None where this process has it all."""
    return None if world_size() == 1 else Part(share(count), count)


def totals(*values: Tensor) -> list[Tensor]:
    """Sums over processes of tensors of one shape, without gradient, in one exchange."""
    if world_size() == 1:
        return list(values)
    packed = torch.stack([value.detach() for value in values])
    return list(_summed(packed))


def total(value: Tensor) -> Tensor:
    """Sum over processes, without gradient."""
    return totals(value)[0]


def total_count(count: int) -> int:
    """Sum over processes of a number of rows."""
    return count if world_size() == 1 else int(_summed(torch.tensor(count)))


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        found = _summed(torch.stack([values.sum(dtype=torch.float64), values.new_tensor(values.numel()).double()]))
        ctx.shape, ctx.count = values.shape, found[1]
        return (found[0] / found[1]).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        factor = dist.get_world_size() / ctx.count  # undone when gradients are averaged over processes
        return (gradients[0] * factor.to(gradients[0].dtype)).expand(ctx.shape)


def mean(values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean over the values of all processes; a process may have none.

    Its gradient is that of a loss which is the same in all processes and whose gradients are averaged over them.
    """
    return values.mean() if world_size() == 1 else _Mean.apply(values)


def mean_row(rows: Float[Tensor, "row width"]) -> Float[Tensor, " width"]:
    """Mean over the rows of all processes, without gradient."""
    rows = rows.detach()
    return rows.mean(dim=0) if world_size() == 1 else total(rows.sum(dim=0)) / total_count(len(rows))


def gathered(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of the whole batch, without gradient."""
    rows, size = rows.detach(), world_size()
    if size == 1:
        return rows
    counts = _counts(len(rows))
    padded = _carried(rows.new_zeros(max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    # Truth values travel as bytes: not every backend knows them.
    plain = padded.to(torch.uint8) if rows.dtype == torch.bool else padded
    found = [torch.empty_like(plain) for _ in counts]
    dist.all_gather(found, plain)
    joined = torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
    return joined.to(rows.device, rows.dtype)


def own(places: Int[Tensor, " place"], count: int) -> Int[Tensor, " place"]:
    """Of places among :func:`gathered` rows those that are this process's, counted from its first row.

    Args:
        places: in any order, which is kept.
        count: rows that this process has.
    """
    if world_size() == 1:
        return places
    start = sum(_counts(count)[: dist.get_rank()])
    return places[(places >= start) & (places < start + count)] - start


def _counts(count: int) -> list[int]:
    """What every process gives, in order."""
    given = _carried(torch.tensor([count]))
    found = [torch.empty_like(given) for _ in range(world_size())]
    dist.all_gather(found, given)
    return [int(one) for one in found]


def _summed(tensor: Tensor) -> Tensor:
    carried = _carried(tensor.clone())
    dist.all_reduce(carried)
    return carried.to(tensor.device)


def _carried(tensor: Tensor) -> Tensor:
    """Where the group's backend can see it: NCCL exchanges what is on a GPU."""
    return tensor.cuda() if tensor.device.type == "cpu" and dist.get_backend() == "nccl" else tensor
