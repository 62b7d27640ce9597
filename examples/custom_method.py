"""A method of one's own: a place is as anomalous as its feature is far from the mean feature of that place.

python examples/custom_method.py train DATA --method mean_feature
"""

from collections.abc import Iterator, Sequence
from types import MappingProxyType

import torch
from pydantic import Field
from torch import Tensor

from flawsmith.cli.main import main
from flawsmith.features.backbones import Backbone
from flawsmith.models.base import AnomalyModel, AnomalyOutput, ModelConfig, SinglePass, Stage, TrainingData
from flawsmith.models.components.score_maps import UpsampleAndSmooth
from flawsmith.models.registry import register


class MeanFeatureConfig(ModelConfig):
    """Every number of the method, to be changed with ``--set``."""

    strides: tuple[int, ...] = Field((16,), description="The backbone level to compare, by stride in pixels.")
    sigma: float = Field(4.0, ge=0, description="Gaussian smoothing of the map in pixels of the input.")


@register
class MeanFeature(AnomalyModel):
    """Distance to the mean feature of every position."""

    name = "mean_feature"
    paper = "in no paper: the tutorial of this project, 2026"
    Config = MeanFeatureConfig
    presets = MappingProxyType(dict.fromkeys(("paper", "official", "fast"), MeanFeatureConfig()))
    mean: Tensor

    def __init__(self, config: MeanFeatureConfig, backbone: Backbone, seed: int = 0) -> None:
        super().__init__(config, backbone, seed)
        (grid,) = backbone.grids(config.image_size)
        self.smooth = UpsampleAndSmooth(grid, config.image_size, sigma=config.sigma)
        self.register_buffer("mean", torch.zeros(backbone.channels[0], *grid))

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput:
        distance = torch.linalg.vector_norm(levels[0] - self.mean, dim=1)
        return AnomalyOutput(map=self.smooth(distance), score=distance.amax(dim=(1, 2)))

    def stages(self, data: TrainingData) -> Iterator[Stage]:
        features = data.features()

        def compute() -> None:
            maps = (features.batch([row])[0][0] for row in range(len(features)))
            self.mean.copy_(sum(maps, start=torch.zeros(self.mean.shape)) / len(features))

        yield SinglePass("mean", compute)


if __name__ == "__main__":
    raise SystemExit(main())
