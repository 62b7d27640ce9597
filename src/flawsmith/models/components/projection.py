"""Truncated projection: offsets pushed into the shell between two radii (GLASS, Eqs. 8 and 9)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.models.components.distributed import gathered

EPSILON = 1e-10  # added to a length that is divided by, as in the released code


class Truncated(NamedTuple):
    """Offsets after a projection, the factors by which they were scaled, and which of them it moved."""

    offset: Float[Tensor, "position width"]
    scale: Float[Tensor, " position"]
    moved: Bool[Tensor, " position"]


def truncate(offset: Float[Tensor, "position width"], inner: Tensor | float, outer: Tensor | float) -> Truncated:
    """Scale every offset h so that its length lies in [inner, outer]; its direction stays.

    h ← h · clamp(‖h‖, inner, outer) / ‖h‖. The gradient passes through the length where it was clamped.

    Args:
        offset: h, features relative to their origin.
        inner: least length, ≥ 0.
        outer: largest length.

    Returns:
        The new offsets, their factors, and whether a length was outside of the shell.
    """
    length = torch.linalg.vector_norm(offset, dim=1)
    clamped = length.clamp(inner, outer)
    scale = clamped / (length + EPSILON)
    return Truncated(offset * scale[:, None], scale, (clamped != length).detach())


class Shell(NamedTuple):
    """Where a truncated projection puts features: around an origin, between two radii.

    Attributes:
        origin: normal features themselves (manifold) or their centres (hypersphere), a row a feature.
        inner: r1 or r'1.
        outer: r2 or r'2.
    """

    origin: Float[Tensor, "position width"]
    inner: Tensor | float
    outer: Tensor | float

    def put(self, offset: Float[Tensor, "position width"]) -> Truncated:
        """Offsets from the origin, truncated to the radii."""
        return truncate(offset, self.inner, self.outer)


def radius_of(
    features: Float[Tensor, "position width"], centers: Float[Tensor, "position width"], quantile: float
) -> Float[Tensor, ""]:
    """The distance to their own centres within which a share of the features lies (GLASS: 0.75), without gradient."""
    with torch.no_grad():
        distances = torch.linalg.vector_norm(features.float() - centers, dim=1)
        return torch.quantile(gathered(distances), quantile)
