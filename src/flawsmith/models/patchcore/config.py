"""Settings of PatchCore and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from flawsmith.features.patch_embedding import OddSide
from flawsmith.models.base import PUBLISHED, Conditions, ModelConfig


class PatchCoreConfig(ModelConfig):
    """Every number of PatchCore; defaults are those of the authors' released code (preset ``official``)."""

    aggregation: Literal["average", "pooled"] = Field(
        "pooled",
        description="Eqs. 1 and 2. pooled: neighbourhoods of a level are flattened and pooled to width values, as in "
        "the released code; average: every channel is averaged over the neighbourhood and levels are concatenated, as "
        "in anomalib.",
    )
    patch_size: OddSide = Field(3, ge=1, description="Side of the neighbourhood, odd (Fig. 4 of the paper: 3).")
    width: int = Field(1024, ge=1, description="Width of a pooled embedding (released code: 1024).")
    coreset_ratio: float = Field(0.1, gt=0, le=1, description="Share of the patches that is kept (Eq. 5); 1 keeps all.")
    least_rows: int = Field(1024, ge=1, description="Patches that are kept at least, or all where there are fewer.")
    most_candidates: int = Field(
        500_000,
        ge=1,
        description="Patches that the coreset is chosen from, and that its ratio is of; where there are more, as many "
        "of every image are drawn. No category of MVTec AD has more at 224 pixels.",
    )
    projection: int = Field(128, ge=1, description="Width that wider patches are projected to for the choice alone.")
    weighting: Literal["paper", "none"] = Field(
        "none",
        description="Image score. paper: Eq. 7, which is not continuous; none: the largest distance (Eq. 6), as in the "
        "released code.",
    )
    neighbours: int = Field(9, ge=2, description="b of Eq. 7; 9 in anomalib.")
    map_neighbour: int = Field(
        1,
        ge=1,
        le=64,
        description="The map shows the distance to this nearest patch of the memory, 1 in the paper. From 2 on a flaw "
        "that slipped in among the good images, which the coreset keeps once, hides fewer like it on the map; the "
        "image score does not change.",
    )
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")


PRESETS: Mapping[str, PatchCoreConfig] = MappingProxyType(
    {
        "official": PatchCoreConfig(image_size=(224, 224), policy="crop", resize=256),
        "paper": PatchCoreConfig(image_size=(224, 224), policy="crop", resize=256, weighting="paper"),
        "fast": PatchCoreConfig(aggregation="average", coreset_ratio=0.01, most_candidates=250_000, projection=256),
    }
)
CONDITIONS: Mapping[str, Conditions] = MappingProxyType({"official": PUBLISHED, "paper": PUBLISHED})
