"""Greedy coresets: few rows so that every row of a large table has one of them near.

The greedy choice (Gonzalez 1985; PatchCore, Algorithm 1) takes the row that is farthest from all chosen ones, again
and again. Done literally, each choice reads the whole table. Here the choices are made among the farthest rows alone,
for as long as none of the others can be farther, and the others are compared with all new choices at once, as one
matrix product. Distances only shrink, so the choices are the same.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor

POOL = 4096
"""Rows that choices are made among: small enough for a processor's cache."""
SWEEP = 8192
"""Rows that are compared with the new choices at a time, which bounds the memory of their distances."""

Rows = Float[Tensor, "row width"]


def random_projection(width: int, components: int, seed: int) -> Float[Tensor, "width components"]:
    """A sparse random matrix that nearly keeps distances (Johnson and Lindenstrauss; Li et al. 2006).

    Args:
        width: width of the rows to project.
        components: width of the projected rows, at most ``width``.
        seed: any non-negative number.
    """
    projection = SparseRandomProjection(components, random_state=seed % 2**32).fit(np.zeros((1, width)))
    return torch.from_numpy(projection.components_.toarray().T.copy()).float()


@torch.no_grad()
def greedy_coreset(rows: Rows, count: int, *, first: int) -> Int[Tensor, " chosen"]:
    """Indices of rows, each the farthest from all before it by Euclidean distance, the first of equals.

    Args:
        rows: the table, float32.
        count: how many to choose. Fewer come back where the chosen rows cover all others exactly.
        first: the row to begin with.

    Example:
        >>> greedy_coreset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3, first=0).tolist()
        [0, 3, 2]
    """
    rows = rows - rows.mean(dim=0)  # keeps the cancellation in the squared distances small
    squares = rows.square().sum(dim=1)
    distances = torch.full((len(rows),), torch.inf)
    chosen, new = [first], [first]
    while len(chosen) < min(count, len(rows)):
        _sweep(distances, rows, squares, new)
        pool, near, others = _farthest(distances)
        new = _choose(rows[pool], near, min(count, len(rows)) - len(chosen), others)
        if not new:
            break
        new = pool[new].tolist()
        chosen += new
    return torch.tensor(chosen)


def _sweep(distances: Tensor, rows: Rows, squares: Tensor, new: list[int]) -> None:
    """Lower the squared distances of all rows to what the new choices leave of them, in place."""
    centers, own = rows[new].T.contiguous(), squares[new]
    for start in range(0, len(rows), SWEEP):
        part = slice(start, start + SWEEP)
        nearest = torch.addmm(own, rows[part], centers, alpha=-2).amin(dim=1) + squares[part]
        torch.minimum(distances[part], nearest, out=distances[part])
    distances[new] = 0.0  # exactly, so that no row is chosen twice


def _farthest(distances: Tensor) -> tuple[Tensor, Tensor, float]:
    """The farthest rows in the table's order, their squared distances, and the largest of any other row."""
    if len(distances) <= POOL:
        return torch.arange(len(distances)), distances.clone(), 0.0
    values, found = distances.topk(POOL + 1)
    pool = found[:POOL].sort().values
    return pool, distances[pool], float(values[POOL])


def _choose(rows: Rows, near: Tensor, count: int, others: float) -> list[int]:
    """Greedy choices among the rows of a pool until one outside it may be farther; none where all are covered."""
    chosen: list[int] = []
    squares = rows.square().sum(dim=1)
    while len(chosen) < count:
        farthest = int(near.argmax())
        if near[farthest] <= 0 or near[farthest] < others:
            break
        chosen.append(farthest)
        to_it = torch.addmv(squares, rows, rows[farthest], alpha=-2).add_(squares[farthest])
        torch.minimum(near, to_it, out=near)
        near[farthest] = 0.0
    return chosen
