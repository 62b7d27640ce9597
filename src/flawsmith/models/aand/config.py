"""Settings of AAND, their presets, and the foregrounds that the released script has for the papers' data sets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from flawsmith.data.public_sets import known_dataset, plain
from flawsmith.models.aand.functional import Residual
from flawsmith.models.aand.networks import Components
from flawsmith.models.base import PUBLISHED, WITH_DTD, Conditions
from flawsmith.models.components.memory_bank import BankConfig, Neighbourhood
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import RECIPES


class AANDConfig(BankConfig):
    """Every number of AAND; defaults are those of the authors' released code (preset ``official``)."""

    strides: tuple[int, ...] = Field(
        (4, 8, 16), description="Backbone levels by stride in pixels, finest first, each twice the one before."
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bicubic", description="How an image is resized to image_size, antialiased."
    )
    batch_size: int = Field(16, ge=1, description="Images a step, in both stages.")
    lr: float = Field(0.005, gt=0, description="Learning rate of Adam at the start of each stage.")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's β1 and β2.")
    lr_decay: float = Field(0.2, gt=0, le=1, description="Factor on the learning rate at each milestone.")
    lr_milestones: tuple[float, ...] = Field((0.8, 0.9), description="Milestones as shares of a stage's epochs.")

    amplification: Components = Field(
        "both",
        description="Residual anomaly amplification (Table V): both parts; generator: every position is amplified; "
        "gate: its weights are the anomaly map and no student is trained; contrastive: the generator alone, which "
        "learns to pull normal features together and to push anomalous ones away from them (Table VI a); none: plain "
        "reverse distillation.",
    )
    residual: Residual = Field(
        "tanh", description="What the generator scales features with (Table VII); learnable: it gives the residual."
    )
    memories: int = Field(50, ge=1, description="L, embeddings each of the normal and the anomaly memory (Fig. 7).")
    temperature: float = Field(
        0.2,
        gt=0,
        description="Divides the gate's similarities before the softmax. The paper names none, which is 1; but then "
        "the gate lies in 0.12 to 0.88 whatever is learnt, and its Fig. 8 shows gates beyond that.",
    )
    gate_weight: Literal["truth", "predicted"] = Field(
        "truth", description="What weights residuals while they are learnt: the true cells, or the gate (released ViT)."
    )
    focal_alpha: float = Field(0.8, ge=0, le=1, description="α of the gate's focal loss, weight of anomalous cells.")
    focal_gamma: float = Field(2.0, ge=0, description="γ of the gate's focal loss.")
    amplification_weight: float = Field(0.1, ge=0, description="Weight of L_A in Eq. 9; 1 in the paper.")
    margin: float = Field(0.3, ge=0, description="α of Eq. 8: how much less similar anomalies shall become.")
    normal_cells: int = Field(5000, ge=1, description="Most normal cells of a level and step in L_A.")
    anomalous_cells: int = Field(1000, ge=1, description="Most anomalous cells of a level and step in L_A.")
    cell_share: float = Field(0.3, ge=0, lt=1, description="A cell belongs to a mask that covers more of it than this.")
    recipe: str = Field("aand", description="How flaws are synthesized for the first stage.")
    normal_share: float | None = Field(
        None, ge=0, lt=1, description="Share of those images that are left normal; None: the recipe's, a fifth."
    )
    foreground: Foreground | Literal["published"] = Field(
        "published",
        description="Where flaws are synthesized and which normal cells L_A takes; published: the rules of the "
        "released script by data set and category, the automatic foreground for all others.",
    )
    match_grey: bool = Field(False, description="Make textures grey where the image is grey.")
    refresh: int = Field(1, ge=1, description="Epochs that a pool of synthetic flaws serves.")
    amplification_epochs: int = Field(100, ge=1, description="Epochs of the first stage.")
    amplification_steps: int | None = Field(
        None, ge=1, description="Steps an epoch of the first stage; None: one pass over the training images."
    )

    hard_positions: int = Field(
        10, ge=0, description="K_h of Eq. 11, worst positions a level and image; 0 leaves the loss out (Fig. 7)."
    )
    student_levels: int | None = Field(
        None,
        ge=2,
        description="Levels that the student reconstructs, the finest of strides; None: all. The bank reads all.",
    )
    student_widths: tuple[int, ...] | None = Field(
        None, description="Channels of bottleneck and decoder by level, finest first; None: those of the backbone."
    )
    student_blocks: tuple[int, ...] | None = Field(
        None, description="Residual blocks of the decoder's stages, coarsest first; None: those of the backbone."
    )
    epochs: int = Field(120, ge=1, description="Epochs of the second stage, the distillation.")
    steps_per_epoch: int | None = Field(
        None, ge=1, description="Steps an epoch of the second stage; None: one pass over the training images."
    )
    sigma: float = Field(4.0, ge=0, description="Gaussian on the anomaly map in pixels of the network's input.")
    score_norm: Literal["none", "level", "position"] = Field(
        "none",
        description="level: the levels' maps get equal spread on the training images before they are summed; position: "
        "scores count relative to those of the training images at the same position; neither is in a paper.",
    )

    score_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="The image score is the mean over this share of all positions, those farthest from what the bank "
        "remembers; None, or without a bank: the map's maximum. In no paper.",
    )
    mean_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of its own mean that is taken off each image's map where the score is that of score_share: "
        "what stands out of its image counts, not how strange the image is as a whole. In no paper.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> AANDConfig:
        if self.recipe not in RECIPES:
            raise ValueError(f"known recipes are {', '.join(RECIPES)}")
        if self.refresh > 1 and self.amplification_steps is None:
            raise ValueError("refresh above 1 needs amplification_steps: all synthetic batches must be of one size")
        if self.score_share is not None and all(each.role == "map" for each in self.neighbourhoods) and self.bank:
            raise ValueError("score_share needs a bank that counts for the score, such as bank=[1,5]")
        if self.student_levels is not None and self.synthesizes and self.student_levels < len(self.strides):
            raise ValueError("student_levels needs amplification=none: amplifiers work on all levels")
        levels = self.student_levels or len(self.strides)
        if levels > len(self.strides):
            raise ValueError(f"student_levels is {levels}, and strides has {len(self.strides)}")
        for name, numbers in (("student_widths", self.student_widths), ("student_blocks", self.student_blocks)):
            if numbers is not None and (len(numbers) != levels or min(numbers) < 1):
                raise ValueError(f"{name} needs {levels} positive numbers, one for each of strides")
        return self

    @property
    def foreground_files(self) -> bool:
        """Whether foregrounds are read from mask files."""
        return isinstance(self.foreground, Foreground) and self.foreground.mode == "files"

    @property
    def synthesizes(self) -> bool:
        """Whether there is a first stage."""
        return self.amplification != "none"


FAST = AANDConfig(
    precision="auto",
    interpolation="bilinear",
    batch_size=8,
    foreground=Foreground(mode="auto"),
    match_grey=True,
    amplification_epochs=20,
    amplification_steps=20,
    refresh=5,
    student_blocks=(2, 2, 2),
    score_norm="level",
    bank=(3, 5, Neighbourhood(side=1, levels=2), Neighbourhood(side=3, levels=2)),
    epochs=30,
    steps_per_epoch=20,
)

PRESETS: Mapping[str, AANDConfig] = MappingProxyType(
    {
        "official": AANDConfig(),
        # Without a temperature of 0.2 the gate could not be what the paper's own Fig. 8 shows.
        "paper": AANDConfig(amplification_weight=1.0, sigma=0.0, normal_share=0.0, lr_milestones=()),
        "fast": FAST,
    }
)
CONDITIONS: Mapping[str, Conditions] = MappingProxyType({"official": WITH_DTD, "paper": WITH_DTD})

_PLAIN: Mapping[str, Any] = MappingProxyType({"amplification": "none", "hard_positions": 0, "bank": ()})
_RD4AD = AANDConfig(**_PLAIN, interpolation="bilinear", lr_milestones=(), epochs=200)
RD4AD_PRESETS: Mapping[str, AANDConfig] = MappingProxyType(
    {"official": _RD4AD, "paper": _RD4AD, "fast": FAST.model_copy(update=dict(_PLAIN))}
)
RD4AD_CONDITIONS: Mapping[str, Conditions] = MappingProxyType({"official": PUBLISHED, "paper": PUBLISHED})

FUSION = RD4AD_PRESETS["fast"].model_copy(
    update={
        "image_size": (320, 320),
        "strides": (4, 8, 16, 32),
        "student_levels": 3,
        "bank": (
            Neighbourhood(side=1, levels=2, stride=16, tolerance=0.4),
            Neighbourhood(side=3, levels=2, stride=16, role="score", tolerance=0.4),
            Neighbourhood(side=1, levels=2, stride=32, role="score", tolerance=0.4),
            Neighbourhood(side=1, levels=2, stride=16, whitened=True, share=0.5, role="map"),
            Neighbourhood(side=3, levels=2, stride=16, whitened=True, share=0.5, role="map"),
        ),
        "bank_size": 8000,
        "bank_candidates": 200_000,
        "bank_views": 3,
        "bank_weight": 0.5,
        "score_share": 0.01,
        "mean_share": 0.5,
    }
)
FUSION_PRESETS: Mapping[str, AANDConfig] = MappingProxyType({"fast": FUSION})

# Grey level after smoothing, whether darker is foreground, and the categories. The script means cable where it says
# bottle's disc, but misspells it: both get the disc here.
_THRESHOLDS: Mapping[str, tuple[tuple[float, bool, str], ...]] = MappingProxyType(
    {
        "mvtec": (
            (0, False, "carpet grid leather tile wood transistor"),
            (150, True, "capsule screw zipper"),
            (50, False, "hazelnut metal_nut pill toothbrush"),
        ),
        "visa": (
            (150, False, "candle cashew chewinggum fryum macaroni1 macaroni2 pcb1"),
            (100, False, "pcb2 pcb3 pipe_fryum"),
            (50, False, "pcb4"),
            (100, True, "capsules"),
        ),
        "mvtec_3d": ((50, False, "bagel cable_gland carrot cookie dowel peach potato rope"),),
    }
)
_DISC = Foreground(mode="disc", extent=(0.45, 0.45))
_BOX = Foreground(mode="box", extent=(0.35, 0.35))
_RULES: Mapping[tuple[str, str], Foreground] = MappingProxyType(
    {
        (dataset, plain(category)): Foreground(mode="threshold", level=level, inverted=inverted, pixels="file")
        for dataset, rules in _THRESHOLDS.items()
        for level, inverted, categories in rules
        for category in categories.split()
    }
    | {("mvtec", category): _DISC for category in ("bottle", "cable")}
    | {("mvtec_3d", category): _BOX for category in ("foam", "tire")}
)


def published_foreground(dataset: str, category: str) -> Foreground | None:
    """The released script's rule for a category, or None where there is none.

    Args:
        dataset: name of the data set or of its folder.
        category: name of the category.

    Example:
        >>> published_foreground("mvtec_anomaly_detection", "screw").level
        150.0
    """
    known = known_dataset(dataset)
    return None if known is None else _RULES.get((known, plain(category)))
