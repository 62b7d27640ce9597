"""The good images that a method learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawsmith.data.samples import Sample
from flawsmith.data.splits import content_hashes
from flawsmith.features.backbones import Backbone
from flawsmith.features.cache import FeatureCache, FeatureTable, LevelMaps
from flawsmith.features.extract import Extractor, extract_files, extractor_key, make_extractor, preparation
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.synthesis.foreground import Foreground, ForegroundProvider, provider
from flawsmith.synthesis.forge import Forger
from flawsmith.synthesis.recipes import Recipe
from flawsmith.synthesis.textures import texture_source
from flawsmith.training import processes
from flawsmith.training.forging import PreparedImages, WorkerForge, default_workers

FITTED_FOREGROUNDS = 16  # images that decide together whether there is a foreground


@dataclass(frozen=True)
class ForgingOptions:
    """What forging draws from, and where it runs.

    Attributes:
        textures: a folder, ``self`` or ``procedural`` (also None).
        foregrounds: folder of foreground masks; None looks for ``fg_mask`` beside the images.
        workers: processes that forge; results do not depend on it. None chooses.
    """

    textures: str | Path | None = None
    foregrounds: Path | None = None
    workers: int | None = None


class GoodImages:
    """The held-in good images and what can be made of them (methods.base.TrainingData).

    Args:
        samples: images to learn from, in an order that depends on their content alone; at least one.
        geometry: how files become network input.
        extractor: the compiled backbone.
        cache: features of this extractor and geometry.
        seed: seed of the run.
        forging: what flaws are forged from.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        geometry: Geometry,
        extractor: Extractor,
        cache: FeatureCache,
        *,
        seed: int,
        forging: ForgingOptions | None = None,
    ) -> None:
        self.samples, self.geometry, self.seed = tuple(samples), geometry, seed
        self.image_size = geometry.size
        self.dataset, self.category = self.samples[0].dataset, self.samples[0].category
        self._extractor, self._cache = extractor, cache
        self._forging = forging or ForgingOptions()
        self._tables: dict[tuple[str, bool], FeatureTable] = {}

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def _paths(self) -> list[Path]:
        return [sample.image for sample in self.samples]

    @cached_property
    def _hashes(self) -> Sequence[str]:
        return content_hashes(self._paths)

    def features(self) -> FeatureTable:
        """Level maps of all images, extracted at most once and kept on disk."""
        return self._table(
            "features",
            self._cache,
            lambda rows: extract_files(self._extractor, [self._paths[row] for row in rows], self.geometry),
        )

    def _table(
        self, name: str, cache: FeatureCache, extract: Callable[[Sequence[int]], Iterable[LevelMaps]]
    ) -> FeatureTable:
        """A table that the first process of a machine fills; the others find it in the cache."""
        here = name, processes.several()  # what one process has made on its own, the others have still to find
        if here not in self._tables:
            known = self._tables.get((name, not processes.several()))
            self._tables[here] = processes.in_turn(lambda: known or cache.table(self._hashes, extract))
        return self._tables[here]

    def images(self, geometry: Geometry | None = None) -> Iterator[NDArray[np.float32]]:
        """All images, normalised, (3, height, width); a given geometry takes the value range of this data's source."""
        chosen = geometry or self.geometry
        chosen = chosen.model_copy(update={"value_range": self.geometry.value_range})
        return (chosen.apply(decode(path)) for path in self._paths)

    def through(self, backbone: Backbone) -> GoodImages:
        """The same images through another frozen backbone, with the same engine and precision."""
        engine, precision = self._extractor.engine, self._extractor.precision
        extractor = make_extractor(backbone, self.image_size, engine, precision)
        key = extractor_key(backbone, self.geometry, engine, precision)
        cache = FeatureCache(key, self._cache.root, self._cache.cap)
        return GoodImages(self.samples, self.geometry, extractor, cache, seed=self.seed, forging=self._forging)

    def _prepared(self) -> PreparedImages:
        """The images at the network's size, kept beside the features: forging reads them many times."""
        key = hashlib.sha256(f"images\n{preparation(self.geometry)}".encode()).hexdigest()[:32]
        cache = FeatureCache(key, self._cache.root, self._cache.cap)
        table = self._table(
            "images", cache, lambda rows: ([self.geometry.apply(decode(self._paths[row]))] for row in rows)
        )
        return PreparedImages(table, self._paths, self.geometry)

    def forged(self, recipe: Recipe, foreground: Foreground, grid: tuple[int, int], *, match_grey: bool) -> WorkerForge:
        """Flaws forged on these images; see :class:`flawsmith.methods.base.TrainingData`.

        Raises:
            FlawsmithError: no such textures or masks.
        """
        options = self._forging
        prepared = self._prepared()
        forger = Forger(
            recipe,
            texture_source(options.textures, self._paths, fit=recipe.fit, value_range=self.geometry.value_range),
            self._foregrounds(foreground, prepared),
            self.geometry,
            others=prepared.any,
            grid=grid,
            match_grey=match_grey,
        )
        workers = default_workers() if options.workers is None else options.workers
        return WorkerForge(prepared, forger, self._extractor, seed=self.seed, workers=workers)

    def _foregrounds(self, settings: Foreground, images: PreparedImages) -> ForegroundProvider:
        """The provider, fitted on images spread over the data set."""
        found = provider(settings, self._forging.foregrounds)
        rows = np.unique(np.linspace(0, len(self) - 1, FITTED_FOREGROUNDS).round().astype(int))
        return found.fit(images[int(row)] for row in rows)
