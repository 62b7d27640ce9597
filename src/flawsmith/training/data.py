"""The good images that a method learns from."""

from __future__ import annotations

from collections.abc import Sequence

from flawsmith.data.samples import Sample
from flawsmith.data.splits import content_hashes
from flawsmith.features.cache import FeatureCache, FeatureTable
from flawsmith.features.extract import Extractor, extract_files
from flawsmith.runtime.geometry import Geometry


class GoodImages:
    """The held-in good images and their cached features (methods.base.TrainingData).

    Args:
        samples: images to learn from, in an order that depends on their content alone.
        geometry: how files become network input.
        extractor: the compiled backbone.
        cache: features of this extractor and geometry.
        seed: seed of the run.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        geometry: Geometry,
        extractor: Extractor,
        cache: FeatureCache,
        *,
        seed: int,
    ) -> None:
        self.samples, self.geometry, self.seed = tuple(samples), geometry, seed
        self.image_size = geometry.size
        self._extractor, self._cache = extractor, cache
        self._table: FeatureTable | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def features(self) -> FeatureTable:
        """Level maps of all images, extracted at most once and kept on disk."""
        if self._table is None:
            paths = [sample.image for sample in self.samples]
            self._table = self._cache.table(
                content_hashes(paths),
                lambda rows: extract_files(self._extractor, [paths[row] for row in rows], self.geometry),
            )
        return self._table
