"""The networks of GLASS and one training step over its three branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from flawsmith.methods.glass.config import GLASSConfig
from flawsmith.methods.glass.spectrogram import Hypothesis
from flawsmith.methods.glass.synthesis import Anomalies, global_anomalies, local_loss, pushed_out
from flawsmith.methods.layers.distributed import Part, mean, total
from flawsmith.methods.layers.forged_batches import PairedBatch
from flawsmith.methods.layers.patch_learner import PatchLearner, Rows
from flawsmith.methods.layers.projection import Shell, radius_of


class Branches(NamedTuple):
    """Features of one iteration, a row a position.

    Attributes:
        normal: u, adapted features of normal images.
        hidden: output of the discriminator's first layer for them.
        gas: global anomalies; None where the settings leave them out.
        las: features of forged images; None likewise.
        anomalous: which of the latter belong to flaws.
        radius: r'1.
    """

    normal: Rows
    hidden: Float[Tensor, "position hidden"]
    gas: Anomalies | None
    las: Rows | None
    anomalous: Bool[Tensor, " position"] | None
    radius: Float[Tensor, ""]


class GLASSModule(PatchLearner):
    """Feature adaptor and discriminator; one training step is the three branches together.

    Attributes:
        mean_embedding: mean of the embedding over the training images, a row a position. The adaptor is affine, so
            the mean of the adapted features, which every epoch needs anew, is the adapted mean.
        hypothesis: where normal features are assumed to lie.
    """

    name = "glass"
    mean_embedding: Tensor
    hypothesis: Hypothesis = "manifold"

    def __init__(self, config: GLASSConfig, channels: Sequence[int], seed: int) -> None:
        super().__init__(config, channels, seed)
        self.config = config
        self.register_buffer("mean_embedding", torch.zeros(0, config.width))
        self._centers: Tensor | None = None

    @torch.no_grad()
    def centers(self) -> Float[Tensor, "position width"]:
        """The centres as the adaptor is now: one a position, or the same for all."""
        features = self.projector(self.mean_embedding).float()
        return features if self.config.center == "position" else features.mean(0, keepdim=True).expand_as(features)

    def on_train_epoch_start(self) -> None:
        self._centers = self.centers()

    def batch_losses(self, batch: PairedBatch) -> dict[str, Tensor]:
        losses = self.losses(self.branches(batch))
        return losses if batch.forged is None else losses | {"fell_back": total(torch.tensor(batch.fell_back))}

    def noise(self, like: Rows, step: tuple[int, int], part: Part | None = None) -> Rows:
        """ε of Eq. 5, a function of the seed and the step."""
        return self.config.noise * self.gaussian(like, "glass noise", step, part)

    def branches(self, batch: PairedBatch) -> Branches:
        """Features of the three branches: normal ones, global anomalies made of them, and forged flaws."""
        config, spherical = self.config, self.hypothesis == "hypersphere"
        normal = self.project(batch.normal.levels, batch.normal.rows).float()
        centers = self._centers_of(batch, len(normal))
        forged = None if batch.forged is None else self.project(batch.forged, batch.normal.rows).float()
        radius = self._radius(normal, forged, batch.cells, centers)
        hidden = self.discriminator.blocks[0].linear(normal)
        anomalies = None
        if config.gas != "none":
            # Around the manifold g depends on u as identity; within the hypersphere the gradient reaches u through the
            # radial scaling of every projection.
            noise = self.noise(normal, batch.normal.step, batch.normal.positions)
            shell, offset = Shell(normal, config.inner_radius, config.outer_radius), noise
            if spherical:
                shell, offset = Shell(centers, radius, config.shell * radius), normal + noise - centers
            anomalies = global_anomalies(offset, shell, self.discriminator, hidden, config)
        if spherical and forged is not None and batch.cells is not None:
            shell = Shell(centers, config.shell * radius, config.shell**2 * radius)
            forged = pushed_out(forged, batch.cells, shell)
        return Branches(normal, hidden, anomalies, forged, batch.cells, radius)

    def losses(self, branches: Branches) -> dict[str, Tensor]:
        """L_n, L_gas, L_las and their sum (Eqs. 10 to 13), with the radius and the share of moved points."""
        config, discriminator, hidden = self.config, self.discriminator, branches.hidden
        found: dict[str, Tensor] = {}
        if branches.gas is not None:
            hidden = torch.cat([hidden, discriminator.blocks[0].linear(branches.gas.features)])
        logits = discriminator.from_first_linear(hidden).float()
        count = len(branches.normal)
        found["loss_normal"] = mean(F.softplus(logits[:count]))
        if branches.gas is not None:
            found["loss_gas"] = mean(F.softplus(-logits[count:]))
        if branches.las is not None and branches.anomalous is not None:
            found["loss_las"] = local_loss(
                discriminator(branches.las),
                branches.anomalous,
                hard_quantile=config.hard_quantile,
                gamma=config.focal_gamma,
            )
        weights = {"loss_gas": config.gas_weight}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in found.items()]).sum()
        moved = {} if branches.gas is None else {"moved": branches.gas.moved}
        return {"loss": loss, **found, **moved, "radius": branches.radius}

    def _centers_of(self, batch: PairedBatch, count: int) -> Rows:
        """The centre of the position of every feature of a batch."""
        centers = self._centers if self._centers is not None else self.centers()
        positions = torch.arange(count) if batch.normal.rows is None else batch.normal.rows
        return centers[positions.to(centers.device) % len(centers)]

    def _radius(self, normal: Rows, forged: Rows | None, anomalous: Tensor | None, centers: Rows) -> Tensor:
        """r'1: the distance within which three quarters of the points known to be normal lie."""
        points, own = normal.detach(), centers
        if forged is not None and anomalous is not None:
            points, own = torch.cat([forged.detach()[~anomalous], points]), torch.cat([centers[~anomalous], centers])
        return radius_of(points, own, self.config.radius_quantile)
