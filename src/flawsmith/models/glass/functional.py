"""Anomalies in feature space and the loss on synthetic ones: the equations of GLASS as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.losses import hardest, two_class_focal
from flawsmith.models.components.distributed import mean
from flawsmith.models.components.fast import AscentStep, HiddenAscent, NormalStatistics
from flawsmith.models.components.heads import Discriminator
from flawsmith.models.components.patch_learner import Rows
from flawsmith.models.components.projection import Shell
from flawsmith.models.glass.config import GLASSConfig

Watch = Callable[[AscentStep, Rows, HiddenAscent], None]
"""Sees every step of the ascent: its forward pass, the features at the last restart, and how far they have moved."""


class Anomalies(NamedTuple):
    """Global anomalies of one iteration.

    Attributes:
        features: g, a row a normal feature.
        moved: share of (feature, projection) pairs that the projection changed, in [0, 1].
    """

    features: Rows
    moved: Float[Tensor, ""]


def global_anomalies(
    offset: Rows,
    shell: Shell,
    discriminator: Discriminator,
    hidden: Float[Tensor, "position hidden"],
    config: GLASSConfig,
    watch: Watch | None = None,
) -> Anomalies:
    """Eqs. 6 to 9: gradient ascent and truncated projection of features that noise has set off.

    Steps of the ascent are constants to the gradient, projections are not.

    Args:
        offset: of the synthetic features g from the shell's origin at the start (Eq. 5).
        shell: origin and radii of the projection.
        discriminator: what is ascended.
        hidden: output of the discriminator's first layer for the normal features of the batch.
        config: steps, step size, projection.
        watch: called after every step, before a projection.
    """
    if config.gas == "noise":
        return Anomalies(shell.origin + offset, offset.new_zeros(()))
    first = discriminator.blocks[0].linear
    with torch.no_grad():
        anchor = first(shell.origin).float()
        start = first(shell.origin + offset)
    ascent = HiddenAscent(discriminator, NormalStatistics.of(hidden), start, step_size=config.step_size)
    moved = []
    for begin in range(0, config.steps, config.project_every):
        steps = min(config.project_every, config.steps - begin)
        for _ in range(steps):
            seen = ascent.step()
            if watch is not None:
                watch(seen, shell.origin + offset, ascent)
        offset, scale = offset + ascent.moved(), anchor.new_ones(len(offset))
        if config.gas == "projected" and steps == config.project_every:
            found = shell.put(offset)
            offset, scale = found.offset, found.scale.detach()
            moved.append(mean(found.moved.float()))
        ascent.restart(anchor + (ascent.hidden - anchor) * scale[:, None])
    return Anomalies(shell.origin + offset, torch.stack(moved).mean() if moved else offset.new_zeros(()))


def pushed_out(features: Rows, anomalous: Bool[Tensor, " position"], shell: Shell) -> Rows:
    """Local anomalies under the hypersphere: features of synthetic cells, put into the shell; the others stay."""
    pushed = shell.origin + shell.put(features - shell.origin).offset
    return torch.where(anomalous[:, None], pushed, features)


def local_loss(
    logits: Float[Tensor, " position"], anomalous: Bool[Tensor, " position"], *, hard_quantile: float, gamma: float
) -> Float[Tensor, ""]:
    """Eq. 12: the focal loss over the hardest positions of synthetic images."""
    probability, target = logits.float().sigmoid(), anomalous.float()
    kept = hardest(probability, target, hard_quantile).kept
    return two_class_focal(probability[kept], target[kept], gamma=gamma)
