"""The encoder that GPT-Net trains and SegNet looks through."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.data.seeding import derived_seed
from flawsmith.features.backbones import Backbone
from flawsmith.runtime.errors import FlawsmithError

Topology = Literal["unpooled", "plain"]
Stem = Literal["raw", "normalised"]
_PARTS = ("conv1", "bn1", "act1", "layer1", "layer2", "layer3", "layer4")


class UnpooledResNet(nn.Module):
    """A ResNet without max-pooling, so that its last map is a sixteenth of the image.

    Gives the activated stem and the outputs of the four stages: strides 2, 2, 4, 8 and 16.

    Args:
        trunk: timm's features of a ResNet.
        stem: whether the first stage reads the stem's convolution as it is, as in the released code, or normalised
            and activated.
    """

    def __init__(self, trunk: nn.Module, stem: Stem) -> None:
        super().__init__()
        self.stem = stem
        self.parts = nn.ModuleDict({name: getattr(trunk, name) for name in _PARTS})

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        parts = self.parts
        x = parts["conv1"](images)
        skip = parts["act1"](parts["bn1"](x))
        levels, x = [skip], x if self.stem == "raw" else skip
        for name in _PARTS[3:]:
            x = parts[name](x)
            levels.append(x)
        return levels


class PlainTrunk(nn.Module):
    """A backbone as it is: its levels, finest first."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        return list(self.trunk(images))


Encoder = UnpooledResNet | PlainTrunk


def make_encoder(backbone: Backbone, topology: Topology, stem: Stem, seed: int | None) -> Encoder:
    """A trainable copy of a backbone.

    Args:
        backbone: what the encoder begins as.
        topology: see :class:`SLSGConfig`.
        stem: see :class:`UnpooledResNet`.
        seed: the convolutions of an untrained backbone are drawn from it; None keeps the backbone's own.

    Raises:
        FlawsmithError: the backbone is no ResNet, and its topology is to be changed.
    """
    trunk = copy.deepcopy(backbone.trunk).requires_grad_(True)
    if backbone.info.weights == "random" and seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "slsg encoder"))
            trunk.apply(_draw)
    if topology == "plain":
        return PlainTrunk(trunk)
    if not all(hasattr(trunk, name) for name in _PARTS):
        raise FlawsmithError(
            f"topology=unpooled needs a ResNet with all its stages, which {backbone.info.name} with these strides is "
            "not: choose --backbone resnet18@random and strides=[2,4,8,16,32], or --set topology=plain with strides="
            "[4,8,16]"
        )
    return UnpooledResNet(trunk, stem)


def _draw(module: nn.Module) -> None:
    """He's initialisation, as ResNets have it."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_running_stats()
        module.reset_parameters()
