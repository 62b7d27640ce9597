"""Settings of PBAS and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from flawsmith.models.base import PUBLISHED, Conditions
from flawsmith.models.components.memory_bank import Neighbourhood
from flawsmith.models.components.patch_model import PatchConfig


class PBASConfig(PatchConfig):
    """Every number of PBAS; defaults are those of the authors' released code (preset ``official``).

    The paper trains at 256 pixels for 400 epochs; a neighbourhood of 3 is best in its Fig. 12b, 8 images a step in
    Fig. 12d.
    """

    embedded_levels: int | None = Field(
        None, ge=1, description="Coarsest levels that are embedded and learned from; null: all. A bank reads all."
    )
    discriminator_depth: int = Field(2, ge=2, description="Linear layers of the discriminator.")
    center: Literal["aligned", "average", "iterative", "kmeans"] = Field(
        "aligned", description="Centre initialisation (Table VI); aligned is the paper's own, average is Eq. 5."
    )
    center_features: Literal["projected", "embedded"] = Field(
        "projected",
        description="What the centres are made of: features behind the frozen projector, as published, or before it "
        "(99.6 in the text of section IV-D).",
    )
    center_smoothing: float = Field(0.1, gt=0, le=1, description="Weight of a new batch in the moving average.")
    synthesis: Literal["ray", "gaussian", "none"] = Field(
        "ray", description="Anomaly synthesis (Table V); none trains ABL alone and scores by the distance to a centre."
    )
    anomaly_degree: float = Field(0.25, gt=0, description="α of Eq. 7; 0.3 in the paper.")
    noise: float = Field(0.015, gt=0, description="Standard deviation of gaussian synthesis, as in SimpleNet.")
    boundary_weight: float = Field(
        1.0, ge=0, description="λ1 of Eq. 10, weight of the boundary loss (released code: 1)."
    )
    discrimination_weight: float = Field(
        1.0, ge=0, description="λ2 of Eq. 10, weight of Eqs. 8 and 9 (released code: 1)."
    )

    @property
    def finest_level(self) -> int:
        return len(self.strides) - (self.embedded_levels or len(self.strides))

    @model_validator(mode="after")
    def _something_to_train(self) -> PBASConfig:
        if self.embedded_levels is not None and self.embedded_levels > len(self.strides):
            raise ValueError(f"embedded_levels must be {len(self.strides)} at most, as many as strides has")
        if self.synthesis == "none" and self.projector_depth == 0:
            raise ValueError("without a projector and without synthesis there is nothing to train")
        return self


PRESETS: Mapping[str, PBASConfig] = MappingProxyType(
    {
        "official": PBASConfig(resize="published"),
        "paper": PBASConfig(
            level_width=None,
            width=None,
            image_size=(256, 256),
            epochs=400,
            anomaly_degree=0.3,
            discriminator_optimiser="adam",
            discriminator_weight_decay=0.0,
        ),
        "fast": PBASConfig(
            image_size=(320, 320),
            policy="squash",
            strides=(8, 16),
            embedded_levels=1,
            level_width=384,
            width=384,
            hidden=256,
            anomaly_degree=0.3,
            scale="logit",
            score_norm="position",
            bank=(5, Neighbourhood(side=1, levels=2), Neighbourhood(side=5, levels=2)),
            bank_weight=1.0,
            discriminator_lr=1e-3,
            epochs=30,
            steps_per_epoch=20,
        ),
    }
)
CONDITIONS: Mapping[str, Conditions] = MappingProxyType({"official": PUBLISHED, "paper": PUBLISHED})
