"""What SLSG shows of its training in the report."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.features.backbones import BackboneInfo
from flawsmith.methods.diagnostics import Pictures
from flawsmith.methods.slsg.decoder import Grid
from flawsmith.methods.slsg.pretraining import Generator, InpaintingBatch
from flawsmith.methods.slsg.sg_block import Graph

SHOWN = 4
NODES = 3
"""Nodes of each image whose neighbours are drawn."""
LEAST_SIDE = 256
NODE_COLOUR, NEIGHBOUR_COLOUR = (0, 200, 0), (230, 30, 30)

Picture = NDArray[np.uint8]
Example = tuple[Picture, Picture, Picture]


def as_input(examples: Sequence[Example], info: BackboneInfo) -> Float[Tensor, "batch 3 height width"]:
    """The simulated images as the encoder sees them."""
    pictures = np.stack([forged for _, _, forged in examples]).astype(np.float32) / 255
    values = (pictures - np.array(info.mean, np.float32)) / np.array(info.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


@torch.no_grad()
def reconstructions(generator: Generator, batch: InpaintingBatch, info: BackboneInfo) -> Pictures:
    """Good images, what GPT-Net saw of them, and what it painted from all levels and from the bottleneck alone.

    With batch statistics, as it was trained: the encoder's running ones are those of whole images by now.
    """
    found = copy.deepcopy(generator).train()(batch.masked)
    columns = [
        ("good image", batch.images),
        ("what was seen", batch.masked),
        ("reconstruction", found.final),
        ("from the bottleneck", found.auxiliary),
    ]
    pictures = [
        (label, _picture(images[number], info))
        for number in range(min(SHOWN, len(batch.images)))
        for label, images in columns
    ]
    return Pictures(
        "Masked reconstructions",
        "What GPT-Net makes of good images of which most is hidden, after its last epoch.",
        pictures,
        group=len(columns),
    )


def simulated(examples: Sequence[Example], maps: Float[Tensor, "batch height width"]) -> Pictures:
    """Simulated anomalies, their masks, and what the trained SegNet says of them; 0 is black, the highest white."""
    scale = max(float(maps.max() - maps.min()), 1e-12)
    said = np.rint(((maps - maps.min()) / scale * 255).numpy()).astype(np.uint8)
    pictures = [
        pair
        for (good, mask, forged), found in zip(examples, said, strict=True)
        for pair in (("good image", good), ("simulated anomaly", forged), ("mask", mask), ("SegNet's map", found))
    ]
    return Pictures(
        "Simulated anomalies",
        "Structural and logical anomalies as SegNet learns from them, and its own map of them, on one scale.",
        pictures,
        group=4,
    )


def neighbours(examples: Sequence[Example], graph: Graph, grid: Grid) -> Pictures:
    """The graph around a few nodes, as in the paper's Fig. 8: the node in green, its neighbours in red."""
    assert graph.neighbours is not None
    pictures = []
    for number, (_, _, forged) in enumerate(examples):
        for node in _spread(grid):
            drawn = _marked(forged, grid, node, graph.neighbours[number, node].tolist())
            pictures.append((f"node {node // grid[1]}, {node % grid[1]}", drawn))
    return Pictures(
        "Neighbours in the graph",
        "Which cells the SG block relates to a node (green): those it finds alike whatever their place (red).",
        pictures,
        group=NODES,
    )


def _spread(grid: Grid) -> list[int]:
    """Nodes on the diagonal: near the corner, in the middle, near the other corner."""
    places = [(number + 1) / (NODES + 1) for number in range(NODES)]
    return [int(grid[0] * place) * grid[1] + int(grid[1] * place) for place in places]


def _marked(picture: Picture, grid: Grid, node: int, others: Sequence[int]) -> Picture:
    times = max(1, -(-LEAST_SIDE // min(picture.shape[:2])))
    size = (picture.shape[1] * times, picture.shape[0] * times)
    drawn = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    down, across = drawn.shape[0] / grid[0], drawn.shape[1] / grid[1]
    radius = max(2, round(min(down, across) / 4))
    for place, colour in [*((other, NEIGHBOUR_COLOUR) for other in others if other != node), (node, NODE_COLOUR)]:
        row, column = divmod(place, grid[1])
        centre = (round((column + 0.5) * across), round((row + 0.5) * down))
        cv2.circle(drawn, centre, radius, colour, thickness=-1, lineType=cv2.LINE_AA)
    return drawn


def _picture(image: Tensor, info: BackboneInfo) -> Picture:
    values = image.numpy().transpose(1, 2, 0) * np.array(info.std) + np.array(info.mean)
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
