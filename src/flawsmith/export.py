"""A trained model as a graph, how large it is, and the gate it passes: what was trained is what will run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flawsmith.features.backbones import Backbone, checksum
from flawsmith.features.cache import GraphCache
from flawsmith.features.extract import anonymise, backbone_to_onnx, to_onnx
from flawsmith.models.base import AnomalyModel, AnomalyOutput
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import ImageArray, decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.tiles import Tiling

Scores = NDArray[np.float64]
_LEAST_SIZE = float(np.finfo(np.float32).tiny)

SCORE_TOLERANCE = 1e-4
MAP_TOLERANCE = 1e-3
"""Shares of the size of scores by which float32 may round them differently in two engines, on a map at its worst pixel.

At most a sixth of that was seen of any method and ablation (docs/research/parity.md); a model with its weights in
bfloat16, or with a layer changed by one part in a hundred, exceeds them.
"""
# Other precisions may differ by this share of the spread (5th to 95th percentile) of held-out good scores.
RELATIVE_TOLERANCE = 0.25


@dataclass(frozen=True)
class Tolerance:
    """By how much the exported model may differ from the trained one; added to the limits.

    Attributes:
        score: on the image score.
        map: on the map, in original pixels.
        every_pixel: whether ``map`` binds the pixel that differs most, as in float32, or the mean over the pixels: in
            bfloat16 single pixels far below the limit differ by much, which decides nothing.
        size: of scores and maps for which this holds. What exceeds it is rounded the more: an image whose score or map
            reaches k times the size may differ by k times as much.
    """

    score: float = SCORE_TOLERANCE
    map: float = MAP_TOLERANCE
    every_pixel: bool = True
    size: float = 1.0

    @classmethod
    def of_float32(cls, scores: Scores, maxima: Scores, synthetic: Scores) -> Tolerance:
        """What rounding in float32 may do, whatever the unit of the scores: a probability, a logit or a distance.

        The size is the largest score or map value of held-out good images, near which the limits lie, or what half of
        the images with synthetic flaws exceed, where that is more: a model that has learned its calibration images by
        heart says 0 of them, and rounding is that of what it subtracts.

        Args:
            scores: image scores of held-out good images.
            maxima: largest values of their maps.
            synthetic: image scores of images with synthetic flaws.

        Example:
            >>> tolerance = Tolerance.of_float32(np.array([33.0, 35.0]), np.array([30.0, 31.0]), np.array([40.0]))
            >>> round(tolerance.score, 6), round(tolerance.map, 6)
            (0.004, 0.04)
        """
        size = max(np.abs(scores).max(), np.abs(maxima).max(), np.median(np.abs(synthetic)), _LEAST_SIZE)
        return cls(SCORE_TOLERANCE * float(size), MAP_TOLERANCE * float(size), size=float(size))

    @classmethod
    def relative(cls, scores: Scores, maxima: Scores, synthetic: Scores) -> Tolerance:
        """The tolerance where float32 is not computed or the model is not continuous: a share of the good spread.

        Never less than that of float32, which takes the same arguments.
        """
        least = cls.of_float32(scores, maxima, synthetic)
        score, level = (RELATIVE_TOLERANCE * float(np.ptp(np.quantile(v, [0.05, 0.95]))) for v in (scores, maxima))
        return cls(max(score, least.score), max(level, least.map), every_pixel=False, size=least.size)

    def at(self, score: float, anomaly_map: NDArray[np.float32]) -> tuple[float, float]:
        """The largest differences allowed on score and map of an image.

        Example:
            >>> Tolerance(score=0.5, map=1.0, size=10.0).at(20.0, np.zeros((2, 2), np.float32))
            (1.0, 2.0)
        """
        factor = max(1.0, abs(score) / self.size, float(np.abs(anomaly_map).max()) / self.size)
        return self.score * factor, self.map * factor

    def map_difference(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
        """What ``map`` is compared with."""
        difference = np.abs(first - second)
        return float(difference.max() if self.every_pixel else difference.mean())


def reference(model: AnomalyModel, geometry: Geometry, source: Path | ImageArray) -> tuple[float, NDArray[np.float32]]:
    """Score and map in original pixels of an image, computed by torch as trained."""
    image = source if isinstance(source, np.ndarray) else decode(source)
    batch = torch.from_numpy(geometry.apply(image))[None]
    with torch.inference_mode():
        output = model.eval()(batch)
    return float(output.score[0]), geometry.invert(output.map[0].numpy(), image.shape[:2])


_WAY_OUT = "train anew with another --engine or --precision, or report it"


def check_parity(
    model: AnomalyModel,
    inspector: Inspector,
    files: Iterable[Path],
    tolerance: Tolerance,
    read: Callable[[Path], ImageArray] = decode,
) -> dict[str, float]:
    """Compare the exported model with the trained one on image files, where images are cut on a tile of each.

    A map that is joined of tiles differs by no more than the maps of its tiles do.

    Args:
        files: images from disk, some of them not square.

    Returns:
        The largest differences of ``score`` and ``map``, what was allowed where the limits lie (``score_allowed``,
        ``map_allowed``), and the number of ``images``.

    Raises:
        FlawsmithError: when a score, a map or a verdict differs, naming the file.
    """
    geometry, decision = inspector.spec.geometry, inspector.spec.decision
    worst_score = worst_map = 0.0
    count = 0
    for path in files:
        image = read(path)
        if inspector.spec.tiling is not None:
            image = inspector.spec.tiling.middle(image)
        score, anomaly_map = reference(model, geometry, image)
        found_score, raw = inspector.raw(image)
        found_map = geometry.invert(raw, anomaly_map.shape)
        by_score, by_map = abs(score - found_score), tolerance.map_difference(anomaly_map, found_map)
        allowed_score, allowed_map = tolerance.at(score, anomaly_map)
        if not (by_score <= allowed_score and by_map <= allowed_map):  # what is not a number differs too
            raise FlawsmithError(
                f"the exported model differs from the trained one on {path.name}: score by {by_score:.2g} (allowed "
                f"{allowed_score:.2g}), map by {by_map:.2g} (allowed {allowed_map:.2g}); {_WAY_OUT}"
            )
        _same_verdict(decision, path, (score, anomaly_map), (found_score, found_map), tolerance)
        worst_score, worst_map, count = max(worst_score, by_score), max(worst_map, by_map), count + 1
    return {
        "score": worst_score,
        "score_allowed": tolerance.score,
        "map": worst_map,
        "map_allowed": tolerance.map,
        "images": float(count),
    }


def _same_verdict(
    decision: Decision,
    path: Path,
    trained: tuple[float, NDArray[np.float32]],
    exported: tuple[float, NDArray[np.float32]],
    tolerance: Tolerance,
) -> None:
    verdicts = [decision.decide(score, anomaly_map)[0] for score, anomaly_map in (trained, exported)]
    if verdicts[0] != verdicts[1] and abs(trained[0] - decision.limit) > tolerance.score:
        raise FlawsmithError(
            f"the exported model says {verdicts[1]} on {path.name} where the trained one says {verdicts[0]}; {_WAY_OUT}"
        )


def non_square_copies(
    source: Path, folder: Path, tiling: Tiling | None = None, read: Callable[[Path], ImageArray] = decode
) -> list[Path]:
    """A wide and a tall part of an image or of a tile, written as files, so that more than squares are proved."""
    image = read(source) if tiling is None else tiling.middle(read(source))
    if image.dtype != np.uint8:
        return []
    height, width = image.shape[:2]
    parts = {"wide": image[: max(1, height * 3 // 5)], "tall": image[:, : max(1, width * 3 // 5)]}
    files = []
    for name, part in parts.items():
        file = folder / f"{name}.png"
        Image.fromarray(part).save(file)
        files.append(file)
    return files


def count_parameters(model: nn.Module) -> int:
    """Numbers that a model holds: parameters and what is learned without gradients, frozen backbone included.

    Counters of batches are left out. A paper counts its released code, which may hold layers that no map depends on.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())


def count_flops(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Floating-point operations of one image, a multiplication and the sum after it counted as two.

    Convolutions, matrix products and attention count, as ``torch.utils.flop_counter`` knows them; resizing, norms and
    searches for nearest neighbours do not.

    Args:
        model: takes normalised images (batch, 3, height, width).
        image_size: (height, width).

    Example:
        >>> count_flops(nn.Conv2d(3, 2, 1), (4, 5))
        240
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    training = model.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, *image_size, device=device))
    finally:
        model.train(training)
    return int(counter.get_total_flops())


OUTPUTS = ("map", "score")


class _AsTuple(nn.Module):
    """The exporter wants a plain tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.detector = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.detector(images)
        return output.map, output.score


class _Head(_AsTuple):
    """What a model makes of its backbone's levels."""

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output: AnomalyOutput = self.detector.from_levels(levels)  # type: ignore[operator]
        return output.map, output.score


def export_model(model: AnomalyModel, image_size: tuple[int, int], graphs: GraphCache | None = None) -> bytes:
    """A model, in its export form, as a serialised ONNX model.

    The backbone takes most of the time; a model that sees nothing but its levels is exported in two parts.

    Args:
        model: trained; what it computes is not changed.
        image_size: (height, width) of the input in pixels.
        graphs: where the backbone's graph is kept, under its :func:`flawsmith.features.extract.graph_key`; None: it is
            made anew.

    Returns:
        A model with the input ``image`` (batch, 3, height, width) and the outputs ``map`` (batch, height, width) and
        ``score`` (batch); the same model gives the same bytes.
    """
    form = model.export_form().eval()
    if type(form).forward is not AnomalyModel.forward:
        return to_onnx(_AsTuple(form), {"image": (3, *image_size)}, OUTPUTS)
    backbone = form.backbone
    assert isinstance(backbone, Backbone)
    is_as_loaded = graphs is not None and checksum(backbone.trunk) == backbone.info.sha256
    make = partial(backbone_to_onnx, backbone, image_size)
    features = onnx.load_from_string(graphs.graph(make) if graphs is not None and is_as_loaded else make())
    shapes = {
        level.name: [size.dim_value for size in level.type.tensor_type.shape.dim[1:]] for level in features.graph.output
    }
    head = onnx.load_from_string(to_onnx(_Head(_without_backbone(form)), shapes, OUTPUTS, listed=True))
    # Weights of the backbone are called by their places in the model, as they are where it is exported in one.
    onnx.compose.add_prefix(features, "detector.backbone.", inplace=True)
    _rename_input(features.graph, "image")
    levels = [level.name for level in features.graph.output]
    whole = onnx.compose.merge_models(features, head, io_map=list(zip(levels, shapes, strict=True)))
    anonymise(whole)
    return whole.SerializeToString(deterministic=True)


def _rename_input(graph: onnx.GraphProto, name: str) -> None:
    """``rename_inputs=False`` of onnx renames the only input all the same up to 1.17, as an edge."""
    (image,) = graph.input
    for node in graph.node:
        node.input[:] = [name if edge == image.name else edge for edge in node.input]
    image.name = name


def _without_backbone(form: nn.Module) -> nn.Module:
    """A copy that knows its backbone, whose weights are no part of it: the exporter would go through them too."""
    head = copy(form)
    head._modules = {name: module for name, module in form._modules.items() if name != "backbone"}
    head.__dict__["backbone"] = form.backbone
    return head
