"""Simulated anomalies on good images, as the settings say, and the batches of SegNet's stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from flawsmith.data.public_sets import known_dataset, plain
from flawsmith.data.seeding import Shard
from flawsmith.models.base import ALONE, FeatureSource, SyntheticSource
from flawsmith.models.components.batches import DeviceBatch, FeatureBatches, Sampling
from flawsmith.models.slsg.config import SLSGConfig, select_branches
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.augment import BandCopy, ColourJitter, Flip, JitterStrength, Shuffle, Transform
from flawsmith.synthesis.blend import FixedWeight, UniformWeight, WeightLaw
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.masks import Acceptance
from flawsmith.synthesis.recipes import RECIPES, Branch, Recipe, find_recipe

_GENERIC = RECIPES["slsg-official"]
_TEXTURE, _HOMOLOGOUS = _GENERIC.branches
_HALF_TURN, _JITTER, _BLUR, _ = _HOMOLOGOUS.transforms
assert isinstance(_JITTER, ColourJitter)

_UPSIDE_DOWN, _LEFT_TO_RIGHT, _ONE_FLIP = (Flip(axis=axis) for axis in ("vertical", "horizontal", "either"))
_BANDS = BandCopy()
_STRONG_JITTER = ColourJitter(
    strengths=(
        JitterStrength(share=0.8, brightness=0.7, saturation=0.7, hue=0.45),
        *(strength.model_copy(update={"share": 0.2 * strength.share}) for strength in _JITTER.strengths),
    )
)
_SQUARE = (140 / 256, 140 / 256, 205 / 256, 205 / 256)
_NOTHING = FixedWeight(value=0.0)
_EVEN = UniformWeight(high=0.7)


class _Source(NamedTuple):
    """One part of the mixture of homologous sources: its share, whose image it is, and what becomes of it."""

    share: float
    texture: Literal["self", "other"]
    transforms: tuple[Transform, ...] = ()


class _Rules(NamedTuple):
    """What the released code decides by category; the rest is that of the generic simulation.

    Attributes:
        sources: mixture of the homologous branch.
        before: transforms of the image itself between the half turn and the mixture.
        homologous_share: of the flaws.
        texture_weight: law of the good image's weight under a texture.
        homologous_weight: the same under a homologous source.
        min_pixels: least pixels of a mask.
        foreground: where flaws may lie.
        texture_on_foreground: how often a texture has to lie there.
        homologous_on_foreground: how often a homologous source has to.
        foreground_of: whose foreground a homologous source has to lie on.
        foreground_as_mask: how often the foreground is the mask of a homologous source.
        with_square: how often a fixed square belongs to the mask.
    """

    sources: tuple[_Source, ...]
    before: tuple[Transform, ...] = ()
    homologous_share: float = _HOMOLOGOUS.share
    texture_weight: WeightLaw = _TEXTURE.weight
    homologous_weight: WeightLaw = _HOMOLOGOUS.weight
    min_pixels: int = _GENERIC.acceptance.min_pixels
    foreground: Foreground = Foreground()
    texture_on_foreground: float = 1.0
    homologous_on_foreground: float = 1.0
    foreground_of: Literal["image", "texture"] = "image"
    foreground_as_mask: float = 0.0
    with_square: float = 0.0

    def recipe(self, name: str) -> Recipe:
        """The rules as branches: every mixture is written out."""
        texture = _TEXTURE.model_copy(
            update={
                "share": 1 - self.homologous_share,
                "weight": self.texture_weight,
                "foreground_share": self.texture_on_foreground,
            }
        )
        homologous = [self._homologous(source) for source in self.sources]
        branches = [
            texture,
            *_changed(homologous, 1 - self.foreground_as_mask),
            *_changed(homologous, self.foreground_as_mask, foreground_share=1.0, mask_is_foreground=True),
        ]
        squared = [
            branch.model_copy(update={"rule": branch.rule.model_copy(update={"box": _SQUARE})}) for branch in branches
        ]
        changes: dict[str, Any] = {
            "name": name,
            "branches": (*_changed(branches, 1 - self.with_square), *_changed(squared, self.with_square)),
            "acceptance": Acceptance(min_pixels=self.min_pixels),
        }
        return Recipe(**{**dict(_GENERIC), **changes})

    def _homologous(self, source: _Source) -> Branch:
        first = (_HALF_TURN, *self.before) if source.texture == "self" else ()
        return Branch(
            share=self.homologous_share * source.share,
            rule=_HOMOLOGOUS.rule,
            weight=self.homologous_weight,
            texture=source.texture,
            transforms=(*first, *source.transforms),
            foreground_share=self.homologous_on_foreground,
            foreground_of=self.foreground_of,
        )


def _changed(branches: Iterable[Branch], part: float, **changes: Any) -> list[Branch]:
    """The branches with that part of their shares, and changes to all; none of them where the part is nothing."""
    if not part:
        return []
    return [branch.model_copy(update={"share": part * branch.share, **changes}) for branch in branches]


# The numbers of the released code, in the order in which it draws them. Its images are BGR here, so channel 0 is blue.
_RULES: Mapping[str, _Rules] = MappingProxyType(
    {
        "juice_bottle": _Rules(
            sources=(
                _Source(0.25, "self", (Shuffle(cells=(3, 3)),)),
                _Source(0.33, "self", (_UPSIDE_DOWN,)),
                _Source(0.42, "other"),
            ),
            texture_weight=_NOTHING,
            homologous_weight=_NOTHING,
            foreground=Foreground(
                mode="threshold",
                sigma=0,
                channel="blue",
                level=8,
                erosion=(15, 15),
                dilation=(3, 3),
                kept=(240 / 256, 201 / 256),
            ),
        ),
        "breakfast_box": _Rules(
            sources=(
                _Source(1 / 3, "self", (Shuffle(cells=(3, 2)),)),
                _Source(1 / 3, "self", (_UPSIDE_DOWN,)),
                _Source(1 / 3, "self", (_LEFT_TO_RIGHT,)),
            ),
            homologous_share=0.5,
            texture_weight=_EVEN,
            homologous_weight=_EVEN,
            with_square=0.2,
        ),
        "pushpins": _Rules(
            sources=(
                _Source(0.25, "self", (Shuffle(cells=(3, 5)),)),
                _Source(0.33, "self", (_UPSIDE_DOWN,)),
                _Source(0.42, "other"),
            ),
            before=(_JITTER.model_copy(update={"share": 0.7}), _BLUR),
            texture_weight=UniformWeight(high=0.4),
            homologous_weight=_NOTHING,
            min_pixels=64,
            foreground=Foreground(mode="threshold", sigma=0, channel="blue", level=36, dilation=(5, 5)),
            texture_on_foreground=0.0,
            homologous_on_foreground=0.75,
            foreground_of="texture",
        ),
        "screw_bag": _Rules(
            sources=(
                _Source(0.25, "self", (Shuffle(cells=(4, 4)),)),
                _Source(0.25, "self", (_ONE_FLIP,)),
                _Source(0.5, "other", (Shuffle(cells=(4, 4)),)),
            ),
            before=(_STRONG_JITTER, _BLUR),
        ),
        "splicing_connectors": _Rules(
            sources=(
                _Source(0.7 * 0.75, "other", (_BANDS, Shuffle(cells=(1, 4)))),
                _Source(0.7 * 0.25, "other"),
                _Source(0.3, "self", (BandCopy(share=0.8), Shuffle(cells=(2, 4)))),
            ),
            homologous_weight=_NOTHING,
            foreground=Foreground(
                mode="threshold", sigma=0, channel="blue", level=20, erosion=(6, 13), dilation=(9, 15)
            ),
            texture_on_foreground=0.0,
            homologous_on_foreground=0.0,
            foreground_of="texture",
            foreground_as_mask=0.2,
        ),
    }
)
_SIMULATIONS: Mapping[str, tuple[Recipe, Foreground]] = MappingProxyType(
    {
        plain(category): (rules.recipe(f"{_GENERIC.name} {category}"), rules.foreground)
        for category, rules in _RULES.items()
    }
)


def published_simulation(dataset: str, category: str) -> tuple[Recipe, Foreground] | None:
    """How the released code simulates anomalies of a category of MVTec LOCO AD, and where; None for all others.

    Source:
        Yang et al., SLSG, 2023: released code.

    Example:
        >>> published_simulation("mvtec_loco_anomaly_detection", "pushpins")[1].level
        36.0
    """
    return _SIMULATIONS.get(plain(category)) if known_dataset(dataset) == "mvtec_loco" else None


def choose_simulation(config: SLSGConfig, dataset: str, category: str) -> tuple[Recipe, Foreground, str]:
    """How anomalies are simulated, where they may lie, and what to call the recipe.

    With ``recipe=published`` the released code's recipe of a LOCO category is taken, and with ``foreground=published``
    its foreground: results are tuned to the category. For all other categories it is the generic one, anywhere.

    Raises:
        FlawsmithError: the switches leave nothing of a published recipe.

    Example:
        >>> choose_simulation(SLSGConfig(), "mvtec", "bottle")[2]
        'slsg'
    """
    published = published_simulation(dataset, category)
    if config.recipe != "published":
        recipe, name = find_recipe(config.recipe), config.recipe
    elif published is None:
        recipe, name = _GENERIC, f"{_GENERIC.name} (nothing published for {dataset}/{category})"
    else:
        recipe, name = published[0], f"released recipe of {category} (class-tuned)"
    foreground = config.foreground
    if foreground == "published":
        foreground = Foreground(mode="none") if published is None else published[1]
    try:
        return select_branches(recipe, config), foreground, name
    except ValueError as error:
        raise FlawsmithError(str(error)) from None


@dataclass(frozen=True)
class SimulatedBatch(DeviceBatch):
    """Normal images, then as many with simulated anomalies.

    Attributes:
        levels: the encoder's level maps, finest first; or the normalised images as the only one.
        mask: anomalous pixels.
        fallback_rate: share of the simulated images whose mask is a fall-back, in [0, 1].
    """

    levels: list[Tensor]
    mask: Bool[Tensor, "batch height width"]
    fallback_rate: float = 0.0


class SimulatedBatches:
    """The batches of SegNet's stage, simulated afresh every time.

    Args:
        features: level maps of the good images, or the images as their only level.
    """

    def __init__(self, features: FeatureSource, synthetic: SyntheticSource, config: SLSGConfig, seed: int) -> None:
        self._features, self.synthetic, self._config = features, synthetic, config
        self._order = FeatureBatches(features, Sampling(config.batch_size, config.steps_per_epoch), seed=seed)

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int, shard: Shard = ALONE) -> Iterator[SimulatedBatch]:
        """The batches of an epoch; the last epoch ends with the last of all steps."""
        rows = list(self._order.images(epoch))[: max(0, self._config.steps - epoch * len(self))]
        for images, synthetic in zip(shard.of(rows), self.synthetic.batches(rows, epoch, shard), strict=True):
            normal = self._features.batch(images) if synthetic.normal is None else synthetic.normal
            pairs = zip(normal, synthetic.levels, strict=True)
            levels = [torch.cat([good.to(flawed.device), flawed]) for good, flawed in pairs]
            mask = np.concatenate([np.zeros_like(synthetic.masks), synthetic.masks])
            yield SimulatedBatch(levels, torch.from_numpy(mask), synthetic.fallback_rate)
