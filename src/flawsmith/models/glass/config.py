"""Settings of GLASS and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from flawsmith.data.public_sets import known_dataset
from flawsmith.models.base import WITH_DTD, Conditions
from flawsmith.models.components.patch_model import PatchConfig
from flawsmith.models.glass.hypothesis import JUDGED_GEOMETRY
from flawsmith.runtime.geometry import Geometry
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import RECIPES

_WITH_MASKS = ("mvtec", "visa", "wfdd")
"""Data sets for whose training images the authors released foreground masks; no model is trained on MAD."""


class GLASSConfig(PatchConfig):
    """Every number of GLASS; defaults are those of the authors' released code (preset ``official``)."""

    hypothesis: Literal["auto", "manifold", "hypersphere", "published"] = Field(
        "auto",
        description="Where normal features are assumed to lie; auto judges the mean training image, published takes "
        "the authors' decision for a published category and judges any other.",
    )
    las: bool = Field(True, description="Local anomaly synthesis, from synthetic flaws (Table 4).")
    gas: Literal["none", "noise", "ascent", "projected"] = Field(
        "projected",
        description="Global anomaly synthesis (Table 4): none, Gaussian noise (GN), with gradient ascent (GA), with "
        "truncated projection (TP).",
    )
    noise: float = Field(0.015, gt=0, description="Standard deviation σ of the Gaussian noise (section 3.2).")
    step_size: float = Field(0.001, gt=0, description="Length η of a step of gradient ascent (Eq. 1; released code).")
    steps: int = Field(20, ge=1, description="Steps of gradient ascent an iteration (released code).")
    project_every: int = Field(5, ge=1, description="Steps between two truncated projections (released code).")
    inner_radius: float = Field(0.5, ge=0, description="r1 of the manifold (Eq. 2); 1 in the paper.")
    outer_radius: float = Field(
        1.0, gt=0, description="r2 of the manifold (Eq. 2); 2·r1, as in the paper, where inner_radius alone is changed."
    )
    radius_quantile: float = Field(
        0.75, gt=0, le=1, description="Share of normal features within the hypersphere's radius r'1 (section 3.2)."
    )
    shell: float = Field(2.0, gt=1, description="r'2 / r'1 of the hypersphere; local anomalies lie in the next shell.")
    center: Literal["position", "global"] = Field(
        "position", description="Centre of the hypersphere: one a position (released code) or one in all (paper)."
    )
    hard_quantile: float = Field(
        0.5, ge=0, lt=1, description="Share of easy positions that OHEM leaves out of L_las (Eq. 8)."
    )
    focal_gamma: float = Field(2.0, ge=0, description="γ of the focal loss of Eq. 7.")
    gas_weight: float = Field(1.0, ge=0, description="Weight of L_gas in Eq. 8, where it is 1.")
    recipe: str = Field("glass-official", description="Recipe of the synthetic flaws.")
    refresh: int = Field(
        1,
        ge=1,
        description="Epochs that a set of flaws serves; 1 draws every batch afresh, more need steps_per_epoch.",
    )
    match_grey: bool = Field(
        False, description="Make textures grey where the image is: no camera that sees grey shows a coloured flaw."
    )
    foreground: Foreground | Literal["published"] = Field(
        "published",
        description="Where flaws may be synthesized; published: on the authors' mask files for MVTec AD, VisA and "
        "WFDD, anywhere for all others, as in the released scripts.",
    )

    @classmethod
    def implied(cls, changes: Mapping[str, Any]) -> dict[str, Any]:
        """r2 = 2·r1 (section 3.2 and Fig. 8)."""
        inner = changes.get("inner_radius")
        return {"outer_radius": 2 * inner} if isinstance(inner, (int, float)) and inner > 0 else {}

    def of_category(self, dataset: str, category: str) -> Self:
        config = super().of_category(dataset, category)
        if config.foreground != "published":
            return config
        mode: Literal["files", "none"] = "files" if known_dataset(dataset) in _WITH_MASKS else "none"
        return config.model_copy(update={"foreground": Foreground(mode=mode)})

    @property
    def foreground_files(self) -> bool:
        """Whether foregrounds are read from mask files, or may be: the category decides where they are published."""
        return isinstance(self.foreground, str) or self.foreground.mode == "files"

    @property
    def other_geometries(self) -> tuple[Geometry, ...]:
        """That in which the hypothesis is decided."""
        return (JUDGED_GEOMETRY,)

    @property
    def synthesizes(self) -> bool:
        """Whether there is a local branch."""
        return self.las

    @model_validator(mode="after")
    def _consistent(self) -> GLASSConfig:
        if not self.las and self.gas == "none":
            raise ValueError("without local and without global anomalies there is nothing to learn from")
        if self.recipe not in RECIPES:
            raise ValueError(f"known recipes are {', '.join(RECIPES)}")
        if self.refresh > 1 and self.steps_per_epoch is None:
            raise ValueError("refresh above 1 needs steps_per_epoch: all synthetic batches must be of one size")
        if self.outer_radius < self.inner_radius:
            raise ValueError("outer_radius must be at least inner_radius")
        return self


FAST = GLASSConfig(
    image_size=(320, 320),
    policy="squash",
    strides=(16,),
    precision="auto",
    level_width=1008,  # nine neighbours of the 112 channels of the default backbone: nothing is pooled away
    width=1008,
    hidden=256,
    hypothesis="manifold",
    steps=5,
    step_size=0.004,
    gas_weight=0.5,
    scale="logit",
    bank=(1, 5),
    discriminator_lr=1e-3,
    epochs=28,
    steps_per_epoch=20,
    patches_per_step=1500,
    recipe="glass",
    refresh=4,
    foreground=Foreground(mode="auto"),
    match_grey=True,
)

PRESETS: Mapping[str, GLASSConfig] = MappingProxyType(
    {
        "official": GLASSConfig(resize="published", hypothesis="published", most_steps_per_epoch=50),
        "paper": GLASSConfig(
            level_width=None,
            width=None,
            inner_radius=1.0,
            outer_radius=2.0,
            center="global",
            discriminator_optimiser="adam",
            discriminator_weight_decay=0.0,
        ),
        "fast": FAST,
    }
)
CONDITIONS: Mapping[str, Conditions] = MappingProxyType({"official": WITH_DTD, "paper": WITH_DTD})
