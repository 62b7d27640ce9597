"""The plain iterations beside which training steps are timed have the same losses, of equal tensors, weights, draws."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.stand_ins import fixed_backbone
from torch import Tensor, nn

from flawsmith.models.components.batches import FeatureBatch, PairedBatch
from flawsmith.models.components.patch_model import PatchModel
from flawsmith.models.glass.config import GLASSConfig
from flawsmith.models.glass.hypothesis import Hypothesis
from flawsmith.models.glass.model import GLASS
from flawsmith.models.pbas import PBAS, PBASConfig

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import plain_glass
import plain_pbas

STEP = (0, 0)
IMAGES, CHANNELS, GRIDS = 4, (6, 10), ((6, 8), (3, 4))
POSITIONS = IMAGES * 6 * 8
TINY: dict[str, Any] = {"strides": (8, 16), "image_size": (48, 64), "level_width": 32, "width": 24, "hidden": 16}


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels_of(generator: torch.Generator) -> list[Tensor]:
    """Level maps of images of which one is far from the others, so that a projection has something to draw in."""
    shapes = [(IMAGES, count, *grid) for count, grid in zip(CHANNELS, GRIDS, strict=True)]
    contrast = torch.tensor([1.0, 1.0, 1.0, 6.0])[:, None, None, None]
    return [contrast * torch.randn(shape, generator=generator) for shape in shapes]


def embed(levels: list[Tensor]) -> Tensor:
    return plain_pbas.embed(levels, level_width=TINY["level_width"], width=TINY["width"])


def share_weights(ours: PatchModel, projector: nn.Linear, plain: Any) -> None:
    block = ours.discriminator.blocks[0]
    projector.load_state_dict(ours.projector.layers[0].state_dict())
    plain.first.load_state_dict(block.linear.state_dict())
    plain.norm.load_state_dict(block.norm.state_dict())
    plain.last.load_state_dict(ours.discriminator.out.state_dict())


def assert_same(ours: tuple[Tensor, nn.Module], plain: tuple[Tensor, nn.Module]) -> None:
    """Two losses are equal, and so are their gradients in the projector, which no branch leaves out."""
    torch.testing.assert_close(ours[0], plain[0], atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, module.parameters()) for loss, module in (ours, plain)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", ["manifold", "hypersphere"])
def test_plain_iteration_of_glass_has_the_loss_of_ours(mode: Hypothesis, generator: torch.Generator) -> None:
    normal, flawed = levels_of(generator), levels_of(generator)
    anomalous = torch.rand(POSITIONS, generator=generator) < 0.2
    ours = GLASS(GLASSConfig(**TINY), fixed_backbone(CHANNELS, GRIDS), seed=0).train()
    ours.fit_center([FeatureBatch(normal)])
    ours.spherical.fill_(mode == "hypersphere")
    ours.start_epoch()
    plain = plain_glass.PlainGLASS(TINY["width"], TINY["hidden"])
    share_weights(ours, plain.adaptor, plain)
    centers, noise = ours.centers(), ours.noise(torch.empty(POSITIONS, TINY["width"]), STEP)

    loss = ours.losses(PairedBatch(FeatureBatch(normal, None, STEP), flawed, anomalous))["loss"]
    plain_loss = plain.loss(embed(normal), embed(flawed), anomalous, centers, noise, mode)

    assert_same((loss, ours.projector), (plain_loss, plain.adaptor))


def test_plain_step_of_pbas_has_the_loss_of_ours(generator: torch.Generator) -> None:
    normal = levels_of(generator)
    ours = PBAS(PBASConfig(**TINY), fixed_backbone(CHANNELS, GRIDS), seed=0).train()
    ours.fit_centers([FeatureBatch(normal)])
    plain = plain_pbas.PlainPBAS(ours.centers.clone(), hidden=TINY["hidden"])
    share_weights(ours, plain.projector, plain)

    loss = ours.losses(FeatureBatch(normal, None, STEP))["loss"]
    plain_loss = plain.loss(embed(normal))

    assert_same((loss, ours.projector), (plain_loss, plain.projector))
