"""The trained SegNet behind its encoder, ready to export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flawsmith.methods.base import AnomalyOutput, Detector
from flawsmith.methods.slsg.config import Scale
from flawsmith.methods.slsg.segmentation import SegNet, anomaly_probability


class SegmentationDetector(Detector):
    """The probability of every pixel, or its logit; an image's score is the mean of its highest pixels.

    Args:
        encoder: gives the levels.
        network: everything behind it.
        scale: what a pixel's value means.
        top_pixels: so many pixels make the score; all where there are fewer.
        strangeness_weight: what is added to a pixel's logit for each unit of its strangeness, where there is a memory.
    """

    def __init__(
        self, encoder: nn.Module, network: SegNet, *, scale: Scale, top_pixels: int, strangeness_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network
        self.scale, self.top_pixels = scale, top_pixels
        self.strangeness_weight = strangeness_weight
        self.eval()

    @property
    def highest_score(self) -> float | None:
        return 1.0 if self.scale == "probability" else None

    @property
    def continuous(self) -> bool:
        block = self.network.sg_block
        return block is None or block.continuous

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> AnomalyOutput:
        found = self.network(self.encoder(images))
        logits = found.final
        if found.strangeness is not None:
            added = self.strangeness_weight * found.strangeness
            # Half to each class, so that their difference, which is all that counts, rises by the whole.
            logits = logits + torch.cat([-added, added], dim=1) / 2
        return scored(logits, scale=self.scale, top_pixels=self.top_pixels)

    def feature_maps(self, images: Float[Tensor, "batch 3 height width"]) -> Mapping[str, Tensor]:
        """The encoder's bottleneck, and the output of the decoder's first block (Fig. 7)."""
        levels, seen = self.encoder(images), list[Tensor]()
        hook = self.network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        with hook:
            self.network(levels)
        return {"encoder, bottleneck": levels[-1], "decoder, first block": seen[0]}


def scored(logits: Float[Tensor, "batch 2 height width"], *, scale: Scale, top_pixels: int) -> AnomalyOutput:
    """Map and image score (section 4.2)."""
    found = anomaly_probability(logits) if scale == "probability" else logits[:, 1] - logits[:, 0]
    pixels = found.flatten(1)
    highest = torch.topk(pixels, min(top_pixels, pixels.shape[1]), dim=1).values
    return AnomalyOutput(found, highest.mean(dim=1))
