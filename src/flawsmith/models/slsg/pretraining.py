"""GPT-Net: an encoder learns what belongs where by painting in what was hidden (section 3.1).

The paper describes it in words alone; what it leaves open is listed in docs/research/slsg.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from flawsmith.data.seeding import Shard, derived_seed, generator
from flawsmith.models.base import ALONE, FeatureSource
from flawsmith.models.components.batches import DeviceBatch, FeatureBatches, Sampling
from flawsmith.models.slsg.config import SLSGConfig
from flawsmith.models.slsg.functional import Grid, Images, Map, discriminator_loss, reconstruction_loss
from flawsmith.models.slsg.networks import Encoder, Head, UpBlock, grid_of, resize

HIDDEN = 0.0
"""What hidden pixels show: the mean of the normalised images."""
SIDES_OF = 256
"""Side of the image that the sides of large rectangles are given for."""
LEAST_WIDTH = 32
UP_BLOCKS = 4
SLOPE, INITIAL_STD = 0.2, 0.02
"""Of D-Net's leaky rectifiers, and of the normal distribution that its weights are drawn from."""


def hidden_pixels(size: Grid, rng: np.random.Generator, config: SLSGConfig) -> Bool[np.ndarray, "height width"]:
    """Where an image is hidden: a share of all grid patches, and some large rectangles.

    Example:
        >>> config = SLSGConfig(mask_patch=8, mask_share=0.5, large_masks=(0, 0))
        >>> float(hidden_pixels((32, 32), np.random.default_rng(0), config).mean())
        0.5
    """
    height, width = size
    side = config.mask_patch
    rows, columns = -(-height // side), -(-width // side)
    patches = np.zeros(rows * columns, bool)
    patches[rng.permutation(len(patches))[: round(config.mask_share * len(patches))]] = True
    hidden = np.kron(patches.reshape(rows, columns), np.ones((side, side), bool))[:height, :width]
    fewest, most = config.large_masks
    for _ in range(int(rng.integers(fewest, most + 1))):
        low, high = config.large_mask_sides
        down, across = (
            min(max(1, round(int(rng.integers(low, high + 1)) * length / SIDES_OF)), length) for length in size
        )
        top, left = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
        hidden[top : top + down, left : left + across] = True
    return hidden


@dataclass(frozen=True)
class InpaintingBatch(DeviceBatch):
    """Good images with what is hidden of them: (batch, 3, height, width), and (batch, height, width)."""

    images: Images
    hidden: Bool[Tensor, "batch height width"]

    @property
    def masked(self) -> Images:
        """x_m, what the generator sees."""
        return self.images.masked_fill(self.hidden[:, None], HIDDEN)


class InpaintingBatches:
    """The batches of GPT-Net's stage; what is hidden is a function of (seed, epoch, place).

    Args:
        images: the good images as their only level.
    """

    def __init__(self, images: FeatureSource, config: SLSGConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        # A fixed number of steps fills the last batch from the next pass: D-Net's batch norms need more than one image.
        steps = config.pretraining_steps or -(-len(images) // config.pretraining_batch_size)
        sampling = Sampling(config.pretraining_batch_size, steps)
        self._batches = FeatureBatches(images, sampling, seed=seed, purpose="pre-training")

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[InpaintingBatch]:
        size = self._config.pretraining_size
        for batch in self._batches.epoch(epoch, shard):
            assert batch.step is not None
            (images,) = batch.levels
            if size is not None:
                images = F.interpolate(images, size, mode="bilinear", antialias=True)
            rng = generator(self._seed, "hidden pixels", *batch.step)
            hidden = np.stack([hidden_pixels(grid_of(images), rng, self._config) for _ in images])
            yield InpaintingBatch(images, torch.from_numpy(hidden))


class Generator(nn.Module):
    """A U-Net on the encoder, and a second reconstruction from the bottleneck alone: the generator gives both.

    Args:
        channels: of its levels, finest first.
    """

    def __init__(self, encoder: Encoder, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        *skips, bottleneck = channels
        widths = [*reversed(skips[-(UP_BLOCKS - 1) :])]
        joined = list(widths)
        while len(widths) < UP_BLOCKS:
            widths.append(max(LEAST_WIDTH, widths[-1] // 2))
            joined.append(0)
        pairs = zip([bottleneck, *widths], joined, widths, strict=False)
        self.blocks = nn.ModuleList(UpBlock(below, skip, width) for below, skip, width in pairs)
        self.out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.auxiliary = Head([bottleneck, max(LEAST_WIDTH, bottleneck // 2), max(LEAST_WIDTH, bottleneck // 8)], 3)
        self._skips = sum(count > 0 for count in joined)

    def forward(self, masked: Images) -> tuple[Images, Images]:
        size = grid_of(masked)
        *skips, x = self.encoder(masked)
        auxiliary = resize(self.auxiliary(x), size)
        for number, block in enumerate(self.blocks):
            joined: list[Map] = [skips[-1 - number]] if number < self._skips else []
            grid = grid_of(joined[0]) if joined else tuple(min(2 * a, b) for a, b in zip(grid_of(x), size, strict=True))
            x = block(x, joined, grid)
        return resize(self.out(x), size), auxiliary


class InpaintingDiscriminator(nn.Sequential):
    """D-Net: four convolution groups of stride 2 and one channel that tells real patches from painted ones.

    The paper takes its Markov discriminator from Isola et al., "Image-to-Image Translation with Conditional Adversarial
    Networks" (CVPR 2017), and so are leaky rectifiers and initial weights here. With plain ones, and torch's own
    weights, D-Net wins within a hundred steps and the generator paints one picture whatever it sees.
    """

    def __init__(self, width: int) -> None:
        widths = [3, *(width * 2**number for number in range(4))]
        groups = [
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)
            )
            for inputs, outputs in pairwise(widths)
        ]
        super().__init__(*groups, nn.Conv2d(widths[-1], 1, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, INITIAL_STD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)


class PretrainingModule(pl.LightningModule):
    """GPT-Net's stage: generator and discriminator against each other.

    Args:
        encoder: trained in place; its weights are unfrozen.
        channels: of its levels, finest first.
    """

    def __init__(self, config: SLSGConfig, encoder: Encoder, channels: Sequence[int], seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "slsg pre-training"))
            self.generator = Generator(encoder.requires_grad_(True), channels).to(memory_format=torch.channels_last)
            self.discriminator = InpaintingDiscriminator(config.discriminator_width).to(
                memory_format=torch.channels_last
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        return [
            torch.optim.Adam(self.generator.parameters(), lr=config.generator_lr, betas=config.pretraining_betas),
            torch.optim.Adam(
                self.discriminator.parameters(), lr=config.discriminator_lr, betas=config.pretraining_betas
            ),
        ]

    def on_train_start(self) -> None:
        self.train()  # the encoder comes from a frozen backbone

    def training_step(self, batch: InpaintingBatch, batch_idx: int) -> dict[str, Tensor]:
        """A step of the generator, then one of the discriminator on what the generator had painted."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        of_generator, of_discriminator = optimizers
        painted = self.generator(batch.masked.contiguous(memory_format=torch.channels_last))
        self.discriminator.requires_grad_(False)
        losses = self.generator_losses(batch.images, painted)
        of_generator.zero_grad()
        self.manual_backward(losses["loss"])
        of_generator.step()
        self.discriminator.requires_grad_(True)
        loss = discriminator_loss(self.discriminator(painted[0].detach()), self.discriminator(batch.images))
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        return {name: value.detach() for name, value in (losses | {"loss_discriminator": loss}).items()}

    def generator_losses(self, image: Images, painted: tuple[Images, Images]) -> dict[str, Tensor]:
        """L_R of Eq. 10 and its parts."""
        config = self.config
        weights = (config.adversarial_weight, config.reconstruction_weight, config.bottleneck_weight)
        return reconstruction_loss(image, *painted, self.discriminator(painted[0]), weights=weights)


@torch.no_grad()
def settle_statistics(encoder: Encoder, images: FeatureSource, batch_size: int) -> None:
    """Take the encoder's batch-norm statistics anew from whole images, in place of those of masked ones.

    Args:
        encoder: trained; left in evaluation mode.
        images: good images as their only level.
    """
    device = next(encoder.parameters()).device
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    encoder.train()
    for rows in np.array_split(np.arange(len(images)), -(-len(images) // batch_size)):
        # Batch norms need more than one value: a single image stands there twice, which changes no statistic but
        # the correction of its variance.
        encoder(images.batch(rows if len(rows) > 1 else [*rows, *rows])[0].to(device))
    encoder.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
