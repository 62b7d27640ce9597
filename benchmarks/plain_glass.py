"""A plain training iteration of GLASS: eager float32, 21 full passes of the discriminator; frozen, for comparison.

The same mathematics as ours in the most direct form: the embedding by unfolding and pooling (`plain_pbas.embed`), the
ascent by automatic differentiation through the joint batch, projections by norms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from plain_pbas import LEAKY_SLOPE
from torch import Tensor, nn

NOISE, STEP, STEPS, EVERY = 0.015, 0.001, 20, 5
RADII = (0.5, 1.0)
RADIUS_QUANTILE, HARD_QUANTILE, GAMMA, SMOOTHING = 0.75, 0.5, 2.0, 1e-5
EPSILON = 1e-10


class PlainGLASS(nn.Module):
    """Adaptor, discriminator and both optimisers; centres are (position, width), a row a position of one image."""

    def __init__(self, width: int = 1536, hidden: int = 1024) -> None:
        super().__init__()
        self.adaptor = nn.Linear(width, width)
        self.first = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 1, bias=False)
        self.optimisers = [
            torch.optim.Adam(self.adaptor.parameters(), lr=1e-4, weight_decay=1e-5),
            torch.optim.AdamW([*self.first.parameters(), *self.norm.parameters(), *self.last.parameters()], lr=2e-4),
        ]

    def discriminate(self, features: Tensor) -> Tensor:
        """(position, width) features to probabilities of being anomalous, (position,)."""
        hidden = F.leaky_relu(self.norm(self.first(features)), LEAKY_SLOPE)
        return torch.sigmoid(self.last(hidden))[:, 0]

    def loss(
        self, normal_rows: Tensor, forged_rows: Tensor, anomalous: Tensor, centers: Tensor, noise: Tensor, mode: str
    ) -> Tensor:
        """The loss of one iteration, from the embedding's rows of normal and synthetic images."""
        normal, local = self.adaptor(normal_rows), self.adaptor(forged_rows)
        centers = centers.repeat(len(normal) // len(centers), 1)
        true = torch.cat([local[~anomalous], normal])
        radius = torch.quantile((true - torch.cat([centers[~anomalous], centers])).norm(dim=1), RADIUS_QUANTILE)
        radius = radius.detach()
        synthetic = normal + noise
        for step in range(1, STEPS + 1):
            probability = self.discriminate(torch.cat([normal, synthetic]))[len(normal) :]
            ascended = F.binary_cross_entropy(probability, torch.ones_like(probability))
            (gradient,) = torch.autograd.grad(ascended, synthetic, retain_graph=True)
            with torch.no_grad():
                move = STEP * gradient / (gradient.norm(dim=1, keepdim=True) + EPSILON)
            synthetic = synthetic + move
            if step % EVERY == 0:
                origin, radii = (normal, RADII) if mode == "manifold" else (centers, (radius, 2 * radius))
                synthetic = origin + self._shell(synthetic - origin, *radii)
        probability = self.discriminate(torch.cat([normal, synthetic]))
        good, bad = probability[: len(normal)], probability[len(normal) :]
        total = F.binary_cross_entropy(good, torch.zeros_like(good)) + F.binary_cross_entropy(bad, torch.ones_like(bad))
        if mode == "hypersphere":
            pushed = centers + self._shell(local - centers, 2 * radius, 4 * radius)
            local = torch.where(anomalous[:, None], pushed, local)
        return total + self._focal(self.discriminate(local), anomalous.float())

    @staticmethod
    def _shell(offset: Tensor, inner: Tensor | float, outer: Tensor | float) -> Tensor:
        length = offset.norm(dim=1, keepdim=True)
        return offset * (length.clamp(inner, outer) / (length + EPSILON))

    @staticmethod
    def _focal(probability: Tensor, target: Tensor) -> Tensor:
        error = (probability - target).square()
        hard = error >= torch.quantile(error, HARD_QUANTILE)
        probability, target = probability[hard], target[hard]
        one_hot = torch.stack([1 - target, target], 1).clamp(SMOOTHING, 1 - SMOOTHING)
        likelihood = (one_hot * torch.stack([1 - probability, probability], 1)).sum(1) + SMOOTHING
        return (-((1 - likelihood) ** GAMMA) * likelihood.log()).mean()

    def update(self, loss: Tensor) -> None:
        """Backward and one step of both optimisers."""
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
