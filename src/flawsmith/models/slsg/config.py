"""Settings of SLSG and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from flawsmith.models.base import WITH_DTD, Conditions, ModelConfig, Side
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import RECIPES, Branch, Recipe

Topology = Literal["unpooled", "plain"]
Stem = Literal["raw", "normalised"]


class SLSGConfig(ModelConfig):
    """Every number of SLSG; defaults are those of the paper, or recommended where it says nothing."""

    strides: tuple[int, ...] = Field(
        (2, 4, 8, 16, 32),
        description="Encoder levels by stride in pixels, finest first; the last is the bottleneck. Strides are those "
        "of the pooled ResNet: without max-pooling all but the first are half as large.",
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "lanczos", description="How an image is resized to image_size, antialiased."
    )
    topology: Topology = Field(
        "unpooled", description="unpooled: a ResNet without max-pooling, as in the paper; plain: any backbone as it is."
    )
    stem: Stem = Field(
        "raw",
        description="What an unpooled ResNet's first stage reads: the stem's convolution as it is (released code), or "
        "normalised and activated.",
    )

    pretraining: bool = Field(True, description="Whether GPT-Net pre-trains the encoder (Table 4).")
    pretraining_size: tuple[Side, Side] | None = Field(
        None, description="(height, width) of the images that GPT-Net sees; None: image_size."
    )
    mask_patch: int = Field(8, ge=1, description="Side of the grid patches that are hidden, pixels (Table 4).")
    mask_share: float = Field(0.8, ge=0, le=1, description="Share of the grid patches that are hidden (Table 4).")
    large_masks: tuple[int, int] = Field(
        (1, 3), description="Fewest and most large rectangles that are hidden besides; 0 and 0: none (Table 4)."
    )
    large_mask_sides: tuple[int, int] = Field(
        (40, 150),
        description="Shortest and longest side of these rectangles in pixels of 256; scaled with the image's.",
    )
    pretraining_epochs: int = Field(40, ge=1, description="Epochs of GPT-Net.")
    pretraining_steps: int | None = Field(
        None, ge=1, description="Steps an epoch of GPT-Net; None: one pass over the training images."
    )
    pretraining_batch_size: int = Field(6, ge=2, description="Images a step of GPT-Net.")
    generator_lr: float = Field(1e-3, gt=0, description="Adam's learning rate of the generator.")
    discriminator_lr: float = Field(6e-4, gt=0, description="Adam's learning rate of D-Net.")
    pretraining_betas: tuple[float, float] = Field(
        (0.5, 0.999), description="Adam's β1 and β2 in GPT-Net; those of the paper that its discriminator is from."
    )
    discriminator_width: int = Field(64, ge=1, description="Channels of D-Net's first group; each next has twice.")
    adversarial_weight: float = Field(1.0, ge=0, description="α1 of Eq. 10, weight of L_G.")
    reconstruction_weight: float = Field(0.8, ge=0, description="α2 of Eq. 10, weight of the ℓ1 loss.")
    bottleneck_weight: float = Field(1.0, ge=0, description="α3 of Eq. 10, weight of the auxiliary loss.")

    encoder_statistics: Literal["batch", "frozen"] = Field(
        "batch",
        description="Batch norms of the frozen encoder while SegNet learns: batch statistics that the running ones "
        "follow (released code), or those of whole good images, which lets features be computed ahead.",
    )
    block: Literal["paper", "released"] = Field(
        "paper", description="Form of the SG block: that of section 3.3, or that of the released code."
    )
    attention: bool = Field(True, description="Dense self-attention in the SG block (Table 6).")
    graph: bool = Field(True, description="Sparse graph in the SG block (Table 6).")
    subtract_position: bool = Field(True, description="Whether W_s leaves out the similarity of places (Table 6).")
    neighbours: int = Field(9, ge=1, description="K, neighbours of a node (Table 6).")
    neighbour_margin: float = Field(
        0.0,
        ge=0,
        description="A neighbour counts in part where its similarity is by less than this above that of the first node "
        "that is none; 0 in the paper, where a difference in the last digit can exchange a neighbour.",
    )
    bottleneck_skips: bool = Field(
        True, description="Whether features behind the SG block are joined at finer decoder blocks (Table 6)."
    )
    skip_attention: bool = Field(False, description="Attention on the encoder's skip connections (released code).")
    added_auxiliary: bool = Field(True, description="Final logits are the decoder's plus the auxiliary head's.")
    decoder_widths: tuple[int, ...] | None = Field(
        None, description="Channels of SegNet's decoder blocks by skip connection, finest first; None: the skips' own."
    )
    full_resolution: bool = Field(True, description="The last layers run at twice the finest level's resolution.")

    normalised_levels: bool = Field(False, description="A batch norm on each of the encoder's levels; in no paper.")
    memory_strides: tuple[int, ...] = Field(
        (),
        description="Levels, of those in strides, with a memory of normal features; SegNet reads the distance to the "
        "nearest of them too. In no paper on SLSG; MemSeg hands differences to a memory to its decoder.",
    )
    memory_size: int = Field(1000, ge=1, description="Features remembered of each of these levels.")
    novelty_weight: float = Field(
        0.0,
        ge=0,
        description="What a trained model adds to a pixel's logit where it is farther from a memory than the farthest "
        "position of a typical good image, times the excess as a share of that distance; in no paper.",
    )

    recipe: str = Field(
        "slsg", description="How anomalies are simulated; published: the released code's recipe of a LOCO category."
    )
    logical: bool = Field(True, description="Whether logical anomalies are simulated (Table 5).")
    structural: bool = Field(True, description="Whether structural anomalies are simulated (Table 5).")
    mask_shape: Literal["noise", "rectangle"] = Field(
        "noise", description="Shape of simulated anomalies: thresholded Perlin noise, or rectangles (Table 5)."
    )
    foreground: Foreground | Literal["published"] = Field(
        Foreground(mode="auto"),
        description="Where anomalies are simulated (Table 5: mode none); published: where the released recipe of a "
        "LOCO category has them, anywhere for all other categories.",
    )
    match_grey: bool = Field(False, description="Make textures grey where the image is grey.")

    focal_weight: float = Field(0.4, ge=0, description="α4 of Eq. 11, weight of the focal loss (Table 7).")
    focal_gamma: float = Field(4.0, ge=0, description="γ of the focal loss.")
    l1_weight: float = Field(0.6, ge=0, description="α5 of Eq. 11, weight of the ℓ1 loss (Table 7).")
    auxiliary_weight: float = Field(0.3, ge=0, description="α6 of Eq. 11, weight of the auxiliary ℓ1 loss (Table 7).")
    lr: float = Field(0.04, gt=0, description="SGD's learning rate at the start; it falls to 0 along a cosine.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum.")
    weight_decay: float = Field(3e-5, ge=0, description="SGD's weight decay.")
    batch_size: int = Field(4, ge=1, description="Normal images a step; as many simulated ones stand beside them.")
    epochs: int = Field(35, ge=1, description="Epochs of SegNet.")
    steps_per_epoch: int = Field(100, ge=1, description="Steps an epoch of SegNet.")
    iterations: int | None = Field(None, ge=1, description="Steps in all; the last epoch ends with them.")

    top_pixels: int = Field(100, ge=1, description="An image's score is the mean of so many highest pixels.")
    scale: Literal["probability", "logit"] = Field(
        "probability", description="What maps mean; a logit ranks pixels alike and never rounds to 1."
    )

    @model_validator(mode="after")
    def _consistent(self) -> SLSGConfig:
        fewest, most = self.large_masks
        if not 0 <= fewest <= most:
            raise ValueError("large_masks must be two numbers, the fewest and the most")
        if not 1 <= self.large_mask_sides[0] <= self.large_mask_sides[1]:
            raise ValueError("large_mask_sides must be two numbers, the shortest and the longest side")
        if self.neighbour_margin and self.block == "released":
            raise ValueError("neighbour_margin is for block=paper: the released block takes every third neighbour")
        if self.recipe != "published":
            if self.recipe not in RECIPES:
                raise ValueError(
                    f"no recipe is called {self.recipe!r}: known recipes are published, {', '.join(RECIPES)}"
                )
            select_branches(RECIPES[self.recipe], self)
        elif not self.logical and not self.structural:
            raise ValueError("nothing is simulated without structural and logical anomalies")
        missing = sorted(set(self.memory_strides) - set(self.strides))
        if missing:
            raise ValueError(f"memory_strides {missing} are not among strides; memory_strides=[] has no memory")
        if self.memory_strides and self.encoder_statistics != "frozen":
            raise ValueError(
                "memory_strides needs encoder_statistics=frozen, because features that still change cannot be kept; "
                "memory_strides=[] has no memory"
            )
        if len(self.strides) < 2:
            raise ValueError("strides needs two levels at least")
        if self.decoder_widths is not None and (
            len(self.decoder_widths) != len(self.strides) - 1 or min(self.decoder_widths) < 1
        ):
            raise ValueError(f"decoder_widths needs {len(self.strides) - 1} positive numbers, one a skip connection")
        if self.iterations is not None and not 0 <= self.epochs * self.steps_per_epoch - self.iterations < (
            self.steps_per_epoch
        ):
            raise ValueError("iterations must end in the last epoch: epochs = iterations / steps_per_epoch, rounded up")
        return self

    @property
    def foreground_files(self) -> bool:
        """Whether foregrounds are read from mask files."""
        return isinstance(self.foreground, Foreground) and self.foreground.mode == "files"

    @property
    def synthesizes(self) -> bool:
        """Anomalies are always simulated."""
        return True

    @property
    def default_backbone(self) -> str:
        """An untrained ResNet-18, as in the paper; the packaged backbone where any will do."""
        return "resnet18@random" if self.topology == "unpooled" else super().default_backbone

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone stays as it is all the time."""
        return not self.pretraining and self.encoder_statistics == "frozen" and self.topology == "plain"

    @property
    def memory_levels(self) -> tuple[int, ...]:
        """Numbers of the levels with a memory, finest first."""
        return tuple(number for number, stride in enumerate(self.strides) if stride in self.memory_strides)

    @property
    def steps(self) -> int:
        """Steps of SegNet in all."""
        return self.iterations or self.epochs * self.steps_per_epoch


def select_branches(recipe: Recipe, config: SLSGConfig) -> Recipe:
    """The recipe without the branches that are switched off, the others' shares raised in proportion (Table 5).

    Raises:
        ValueError: no branch is left.

    Example:
        >>> recipe = select_branches(RECIPES["slsg"], SLSGConfig(logical=False))
        >>> [(branch.texture, branch.share) for branch in recipe.branches]
        [('source', 0.5), ('self', 0.5)]
    """
    branches = [branch for branch in recipe.branches if (config.logical if _logical(branch) else config.structural)]
    if not branches:
        raise ValueError(f"nothing is simulated: the recipe {recipe.name} has no other branches, switch one on again")
    total = sum(branch.share for branch in branches)
    return recipe.model_copy(
        update={
            "branches": tuple(
                branch.model_copy(
                    update={
                        "share": branch.share / total,
                        "rule": branch.rule.model_copy(update={"shape": config.mask_shape}),
                    }
                )
                for branch in branches
            )
        }
    )


def _logical(branch: Branch) -> bool:
    """Whether a branch blends in another good image."""
    return branch.texture == "other"


PAPER = SLSGConfig()
OFFICIAL = PAPER.model_copy(
    update={
        "block": "released",
        "skip_attention": True,
        "recipe": "slsg-official",
        "foreground": Foreground(mode="none"),
        "epochs": 71,
        "iterations": 7001,
    }
)
FAST = SLSGConfig(
    precision="auto",
    interpolation="bilinear",
    strides=(4, 8, 16, 32),
    topology="plain",
    pretraining=False,
    encoder_statistics="frozen",
    decoder_widths=(32, 64, 64),
    full_resolution=False,
    neighbour_margin=0.05,
    normalised_levels=True,
    memory_strides=(16, 32),
    novelty_weight=40.0,
    recipe="slsg-aligned",
    match_grey=True,
    epochs=10,
    steps_per_epoch=50,
    scale="logit",
)

PRESETS: Mapping[str, SLSGConfig] = MappingProxyType(
    {
        "paper": PAPER,
        "official": OFFICIAL,
        "official-loco": OFFICIAL.model_copy(update={"recipe": "published", "foreground": "published"}),
        "fast": FAST,
    }
)
_RESNET = replace(WITH_DTD, backbone="resnet18.tv_in1k")
CONDITIONS: Mapping[str, Conditions] = MappingProxyType(dict.fromkeys(("paper", "official", "official-loco"), _RESNET))
