"""All that maps are poured into while they stream by: the pixel figures, sPRO, and the PRO of released codes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from flawsmith.evaluation.pooling import PixelFigures, PixelMetrics
from flawsmith.evaluation.protocol import Protocol
from flawsmith.evaluation.records import View, resize_mask
from flawsmith.evaluation.released_pro import ReleasedFigures, ReleasedPro
from flawsmith.evaluation.saturated import Channel
from flawsmith.evaluation.saturated_pooling import SaturatedFigures, SaturatedOverlap


class Pools:
    """Gathers the maps of one evaluation; a context manager, so that temporary files go with it.

    Args:
        protocol: the rules.
        limit: largest false-positive rate of the region overlap.
        saturated: whether images may have channels. sPRO is measured in original pixels, uninspected ones lowest: where
            the protocol measures otherwise, maps are pooled a second time.
        in_memory_bytes: defect-free scores up to this size stay in memory.
        directory: folder of the temporary files; None: the system's own.
    """

    def __init__(
        self, protocol: Protocol, limit: float, *, saturated: bool, in_memory_bytes: int, directory: Path | None
    ) -> None:
        self._files = ExitStack()
        self._limit = limit

        def opened() -> PixelMetrics:
            return self._files.enter_context(PixelMetrics(in_memory_bytes=in_memory_bytes, directory=directory))

        self._pixels = opened()
        as_spro_wants = (protocol.pixels, protocol.uninspected) == ("original", "lowest")
        self._apart = opened() if saturated and not as_spro_wants else None
        self._saturated = SaturatedOverlap(self._apart or self._pixels) if saturated else None
        self._released = None if protocol.pro == "exact" else ReleasedPro(protocol.pro, self._pixels, limit=limit)
        self._any = False

    def __enter__(self) -> Pools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, view: View, channels: Sequence[Channel]) -> int:
        """Take in one image; nothing of the arrays is kept.

        Returns:
            The image's index, from 0.

        Raises:
            ValueError: a NaN score, or sizes that differ.
            FlawsmithError: a temporary file cannot be written.
        """
        self._any = True
        index = self._pixels.add(view.scores, None if view.mask is None else view.mask >= 1, view.excluded)
        if self._released is not None:
            self._released.add(index, view.scores, view.mask, view.excluded)
        if self._apart is not None:
            self._apart.add(view.whole_scores, view.whole_mask)
        if self._saturated is not None:
            size = (view.whole_scores.shape[0], view.whole_scores.shape[1])
            fitting = [one if one.mask.shape == size else _resized(one, size) for one in channels]
            self._saturated.add(index, view.whole_scores, fitting)
        return index

    def compute(
        self, defects: Sequence[str | None], *, spro_limit: float
    ) -> tuple[PixelFigures | None, ReleasedFigures | None, SaturatedFigures | None]:
        """The figures of all maps added; None for what the protocol or the data do not give.

        Args:
            defects: (images,) the defect type of each image added, None for good ones.
            spro_limit: largest false-positive rate of the sPRO.
        """
        if not self._any:
            return None, None, None
        return (
            self._pixels.compute(limit=self._limit),
            None if self._released is None else self._released.compute(),
            None if self._saturated is None else self._saturated.compute(defects, limit=spro_limit),
        )


def _resized(channel: Channel, size: tuple[int, int]) -> Channel:
    """A channel in other pixels: a saturation threshold in pixels grows or shrinks with the image."""
    scale = 1.0 if channel.relative else size[0] * size[1] / channel.mask.size
    return replace(channel, mask=np.asarray(resize_mask(channel.mask, size)), threshold=channel.threshold * scale)
