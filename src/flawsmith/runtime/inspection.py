"""What inspecting one image gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.decision import Verdict
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.image import decode, validate_array
from flawsmith.runtime.overlay import draw_overlay
from flawsmith.runtime.regions import Region

ImageSource = str | Path | bytes | NDArray[Any]
"""A path, a file's content, or an array (height, width, 3) RGB or (height, width) grey, uint8 or uint16."""


@dataclass(frozen=True)
class Inspection:
    """What a model says about one image.

    Attributes:
        image: path as it was given; None for bytes and arrays.
        score: image score; larger is more anomalous.
        verdict: ``pass``, ``review`` or ``reject``.
        map: (height, width) float32 anomaly map in pixels of the original image.
        regions: regions above ``map_limit``, the strongest first.
        not_inspected: (height, width), True where the geometry's crop cut away; None where all was inspected.
        timing: milliseconds by step: decode, prepare, infer, restore, decide.
        limit: limit on the score that held.
        map_limit: limit on the map that held.
        review_limit: lower limit for a review, or None.
        value_range: values of images deeper than 8 bits that are black and white; None: 0 and 65535.
        network_map: (h, w) float32, the map as the network gave it, in its own input pixels.
    """

    image: str | None
    score: float
    verdict: Verdict
    map: NDArray[np.float32] = field(repr=False)
    regions: list[Region]
    not_inspected: NDArray[np.bool_] | None = field(repr=False)
    timing: dict[str, float] = field(repr=False)
    limit: float
    map_limit: float
    review_limit: float | None = None
    value_range: tuple[float, float] | None = field(default=None, repr=False)
    network_map: NDArray[np.float32] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pixels, ready for strict JSON; ``inspected`` is the share of pixels
        seen."""
        unseen = 0.0 if self.not_inspected is None else float(self.not_inspected.mean())
        return {
            "image": self.image,
            "score": self.score,
            "verdict": self.verdict,
            "limit": self.limit,
            "review_limit": self.review_limit,
            "map_limit": self.map_limit,
            "regions": [region.model_dump(mode="json") for region in self.regions],
            "inspected": 1.0 - unseen,
            "timing": dict(self.timing),
        }

    def overlay(self, image: ImageSource | None = None) -> Image.Image:
        """Draws the map's heat and the regions' outlines over the image.

        The colours' scale is fixed by ``map_limit``: good images look calm, and pictures of one model
        compare.

        Args:
            image: the image; None reads the inspected file again. Arrays must be RGB.

        Returns:
            An RGB picture of the image's size.

        Raises:
            FlawsmithError: no image was given and none is known, or it has another size than the map.
        """
        source = image if image is not None else self.image
        if source is None:
            raise FlawsmithError("overlay: the inspection came from no file; give the image")
        pixels = validate_array(source) if isinstance(source, np.ndarray) else decode(source)
        if pixels.shape[:2] != self.map.shape:
            raise FlawsmithError(
                f"overlay: the image is {pixels.shape[1]} x {pixels.shape[0]}, the inspected one was "
                f"{self.map.shape[1]} x {self.map.shape[0]}; give the same image"
            )
        return draw_overlay(pixels, self.map, self.regions, self.map_limit, value_range=self.value_range)


@dataclass(frozen=True)
class Unreadable:
    """An image of a stream that could not be inspected.

    Attributes:
        image: its path as it was given.
        error: one line that says why, and what to do.
    """

    image: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Returns ``image`` and ``error``, ready for JSON."""
        return {"image": self.image, "error": self.error}
