"""A trained detector as one ONNX graph from normalised image to map and score."""

from __future__ import annotations

from torch import Tensor, nn

from flawsmith.features.onnx_graph import to_onnx
from flawsmith.methods.base import Detector

OUTPUTS = ("map", "score")


class _AsTuple(nn.Module):
    """The exporter wants a plain tuple."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.detector(images)
        return output.map, output.score


def export_detector(detector: Detector, image_size: tuple[int, int]) -> bytes:
    """A detector, folded, as a serialised ONNX model.

    Args:
        detector: trained; what it computes is not changed.
        image_size: (height, width) of the input in pixels.

    Returns:
        A model with the input ``image`` (batch, 3, height, width) and the outputs ``map`` (batch, height, width) and
        ``score`` (batch); the same detector gives the same bytes.
    """
    return to_onnx(_AsTuple(detector.folded()).eval(), image_size, OUTPUTS)
