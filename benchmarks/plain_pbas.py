"""The training step of PBAS written out plainly, and kept frozen as the yardstick of `official_step.py`.

Eager torch in float32, each formula of the paper as it stands and nothing merged: neighbourhoods are unfolded, all
planes of a coarse level are resized, two adaptive poolings make the embedding, anomalous features are formed and
concatenated with the normal ones, and probabilities go into a binary cross-entropy. Do not optimise this file: it
says what the same step costs to those who write it down.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 3
LEAKY_SLOPE = 0.2


def backbone(architecture: str = "wide_resnet50_2", indices: tuple[int, ...] = (2, 3)) -> nn.Module:
    """An untrained backbone in evaluation mode that gives the level maps of stride 8 and 16."""
    model = timm.create_model(architecture, pretrained=False, features_only=True, out_indices=indices)
    return model.eval().requires_grad_(False)


def embed(levels: Sequence[Tensor], *, level_width: int = 1536, width: int = 1536) -> Tensor:
    """Patch aggregation: level maps (batch, channels, height, width) to one row a position, (positions, width).

    3×3 neighbourhoods with zero padding, each flattened as (channel, row, column); every plane of a coarse level
    resized bilinearly to the finest grid; each level pooled to ``level_width``, the levels together to ``width``.
    """
    grid = levels[0].shape[-2:]
    pooled = []
    for level in levels:
        batch, channels, height, columns = level.shape
        planes = F.unfold(level, PATCH, padding=PATCH // 2).reshape(batch, channels * PATCH**2, height, columns)
        if (height, columns) != tuple(grid):
            planes = F.interpolate(planes, size=grid, mode="bilinear", align_corners=False)
        rows = planes.permute(0, 2, 3, 1).reshape(batch * grid[0] * grid[1], 1, channels * PATCH**2)
        pooled.append(F.adaptive_avg_pool1d(rows, level_width)[:, 0])
    joined = torch.stack(pooled, dim=1).reshape(len(pooled[0]), 1, -1)
    return F.adaptive_avg_pool1d(joined, width)[:, 0]


class PlainPBAS(nn.Module):
    """Projector, discriminator and the table of centres, with the step that trains them.

    Args:
        centers: (center, width) table, fixed.
        hidden: hidden width of the discriminator.
        degree: α of Eq. 7.
    """

    centers: Tensor

    def __init__(self, centers: Tensor, *, hidden: int = 1024, degree: float = 0.25) -> None:
        super().__init__()
        width = centers.shape[1]
        self.degree = degree
        self.register_buffer("centers", centers)
        self.projector = nn.Linear(width, width)
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 1, bias=False)
        for layer in (self.projector, self.first, self.last):
            nn.init.xavier_normal_(layer.weight)
        self.optimisers = [
            torch.optim.Adam(self.projector.parameters(), lr=1e-4, weight_decay=1e-5),
            torch.optim.AdamW([*self.first.parameters(), *self.norm.parameters(), *self.last.parameters()], lr=2e-4),
        ]

    def discriminate(self, features: Tensor) -> Tensor:
        """(position, width) features to probabilities of being anomalous, (position,)."""
        hidden = F.leaky_relu(self.norm(self.first(features)), LEAKY_SLOPE)
        return torch.sigmoid(self.last(hidden))[:, 0]

    def loss(self, rows: Tensor) -> Tensor:
        """Eq. 10, all weights 1, of the embedding's rows."""
        features = self.projector(rows)
        with torch.no_grad():
            similarity = F.normalize(features, dim=1) @ F.normalize(self.centers, dim=1).T
            nearest = similarity.argmax(dim=1)
        offset = features - self.centers[nearest]
        distance = offset.norm(dim=1)
        boundary = distance.mean()  # Eq. 6
        step = self.degree * boundary * offset / distance[:, None]
        anomalies = features + step.detach()  # Eq. 7
        probability = self.discriminate(torch.cat([features, anomalies]))
        normal, anomalous = probability.chunk(2)
        loss_normal = F.binary_cross_entropy(normal, torch.zeros_like(normal))  # Eq. 8
        loss_anomaly = F.binary_cross_entropy(anomalous, torch.ones_like(anomalous))  # Eq. 9
        return boundary + loss_normal + loss_anomaly

    def update(self, loss: Tensor) -> None:
        """Backward and one step of both optimisers."""
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
