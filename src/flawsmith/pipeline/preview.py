"""What a model in the making sees, shown now and then while it learns."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flawsmith.models.base import AnomalyModel, AnomalyOutput
from flawsmith.pipeline.progress import Preview, PreviewImage
from flawsmith.report.plots import data_address
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.overlay import draw_overlay

IMAGES = 8
"""Good images that are looked at, and flaws drawn on them."""
_SHOWN_FLAWS, _SHOWN_GOOD = 4, 2
_LARGEST = 240
"""Longer side of a picture, pixels."""
_SECONDS_BETWEEN, _TIMES_ITS_COST = 8.0, 12
"""A look comes at most so often, and takes at most so small a share of the training."""

log = logging.getLogger("flawsmith.pipeline")


@dataclass
class LearningPreview:
    """Looks with a copy of a model at images that it never learns from; training does not notice.

    Attributes:
        good: normalised good images, (n, 3, height, width).
        synthetic: the same with a synthetic flaw each.
        names: of the images.
        network: gives the model as trained so far.
        geometry: that made the images.
        show: is given what was seen.
    """

    good: NDArray[np.float32]
    synthetic: NDArray[np.float32]
    names: Sequence[str]
    network: Callable[[], AnomalyModel]
    geometry: Geometry
    show: Callable[[Preview], object]
    _due: float = 0.0
    _levels: list[Tensor] | None = None

    def look(self, share: float, words: str) -> None:
        """Look, if it is time.

        Args:
            share: of the epochs that is done.
            words: which epoch it is.
        """
        start = time.monotonic()
        if start < self._due:
            return
        try:
            preview = self._seen(share, words)
        except Exception:  # a training of hours is worth more than its preview
            log.warning("what the model sees cannot be shown as it learns", exc_info=True)
            self._due = float("inf")
            return
        if preview is not None:
            self.show(preview)
        end = time.monotonic()
        self._due = end + max(_SECONDS_BETWEEN, _TIMES_ITS_COST * (end - start))

    @torch.inference_mode()
    def _seen(self, share: float, words: str) -> Preview | None:
        model = self.network().learned_so_far()
        images = np.concatenate([self.good, self.synthetic])
        maps, scores = (values.float().numpy() for values in self._outputs(model, torch.from_numpy(images)))
        if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
            return None
        count = len(self.good)
        # Colours begin where no good image reaches, so that what has colour would be told from good ones.
        limit = float(maps[:count].max())
        caught = scores[count:] > scores[:count].max()
        flaws = [count + place for place in range(min(_SHOWN_FLAWS, count))]
        return Preview(
            words,
            share,
            int(caught.sum()),
            count,
            tuple(
                PreviewImage(
                    self.names[place % count], place >= count, *self._pictures(images[place], maps[place], limit)
                )
                for place in [*flaws, *range(min(_SHOWN_GOOD, count))]
            ),
        )

    def _outputs(self, model: AnomalyModel, images: Tensor) -> AnomalyOutput:
        if not model.config.frozen_backbone:
            return model(images)
        if self._levels is None:  # they stay the same
            self._levels = [level.clone() for level in model.backbone(images)]
        return model.from_levels(self._levels)

    def _pictures(self, image: NDArray[np.float32], heat: NDArray[np.float32], limit: float) -> tuple[str, str]:
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.geometry.mean, self.geometry.std))
        pixels = np.rint(np.clip(image * std + mean, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        pixels = np.ascontiguousarray(pixels)
        return _address(Image.fromarray(pixels)), _address(draw_overlay(pixels, heat, [], limit))


def _address(picture: Image.Image) -> str:
    """The picture as a ``data:`` address."""
    picture.thumbnail((_LARGEST, _LARGEST))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return data_address(stream.getvalue())
