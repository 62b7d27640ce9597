"""Deciding where normal features are assumed to lie: published decisions, or the judge on the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from flawsmith.methods.base import TrainingData
from flawsmith.methods.glass.published_hypotheses import published_hypothesis
from flawsmith.methods.glass.spectrogram import Hypothesis, as_rgb, judge, mean_image
from flawsmith.runtime.geometry import Geometry

JUDGED_SIZE = (288, 288)
HYPOTHESES: tuple[Hypothesis, Hypothesis] = ("manifold", "hypersphere")


class Decided(NamedTuple):
    """A decision with what it rests on, ready to be stored and shown."""

    hypothesis: Hypothesis
    findings: Mapping[str, str | float]


def evidence(data: TrainingData, *, published: bool) -> dict[str, Tensor]:
    """The mean training image as 8-bit RGB, and the authors' decision: 0 manifold, 1 hypersphere, −1 none.

    Args:
        data: the training images.
        published: look for a decision that the authors have published for this data set and category.
    """
    geometry = Geometry(size=JUDGED_SIZE)
    mean = as_rgb(mean_image(data.images(geometry)), geometry.mean, geometry.std)
    known = published_hypothesis(data.dataset, data.category) if published else None
    return {
        "mean_image": torch.from_numpy(mean),
        "published": torch.tensor(-1 if known is None else HYPOTHESES.index(known)),
    }


def decide(found: Mapping[str, Tensor], given: Hypothesis | None = None) -> Decided:
    """What the settings say, else the published decision where there is one, else what the judge says.

    The judge's figures are recorded in any case, so that a setting can be held against them.

    Args:
        found: what :func:`evidence` gave.
        given: a hypothesis that the settings name.
    """
    judgement, published = judge(found["mean_image"].numpy()), int(found["published"])
    figures = {f"judge: {name.replace('_', ' ')}": value for name, value in asdict(judgement).items() if value != ""}
    if given is not None:
        hypothesis, why = given, "given in the settings"
    elif published >= 0:
        hypothesis, why = HYPOTHESES[published], "published by the authors"
    else:
        hypothesis, why = judgement.hypothesis, "judged by the mean training image"
    return Decided(hypothesis, {"hypothesis": hypothesis, "decided": why, **figures})
