"""The good images that a method learns from."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flawsmith.data.samples import Sample
from flawsmith.data.seeding import generator
from flawsmith.data.splits import content_hashes
from flawsmith.features.backbones import Backbone
from flawsmith.features.cache import FeatureCache, FeatureTable, LevelMaps
from flawsmith.features.extract import Extractor, extract_files, extractor_key, make_extractor, preparation
from flawsmith.models.base import SyntheticImages
from flawsmith.models.components.distributed import share
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.synthesis.blend import FloatImage, Mask
from flawsmith.synthesis.foreground import Foreground, ForegroundProvider, provider
from flawsmith.synthesis.recipes import Recipe
from flawsmith.synthesis.synthesizer import AnomalySynthesizer, SyntheticAnomaly, to_8_bit
from flawsmith.synthesis.textures import texture_source
from flawsmith.training import processes

PREFETCHED = 2
MOST_WORKERS = 2
KEPT_FOREGROUNDS = 4096


def default_workers() -> int:
    """Worker processes that synthesize: two synthesize faster than a CPU trains; none more than there are cores."""
    return min(MOST_WORKERS, os.cpu_count() or 1)


@dataclass(frozen=True)
class SampleKey:
    """What one synthetic image is drawn from: the image's row, and where in training it stands."""

    row: int
    epoch: int
    number: int


class PreparedImages:
    """Training images as the network sees them, before normalisation; read from the cache, whatever their files cost.

    Args:
        table: normalised images as the only level of a feature table.
        paths: their files, by row.
        geometry: how the files became network input.
    """

    def __init__(self, table: FeatureTable, paths: Sequence[Path], geometry: Geometry) -> None:
        self.table, self.paths, self.geometry = table, tuple(paths), geometry
        self._mean = np.array(geometry.mean, np.float32)
        self._std = np.array(geometry.std, np.float32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> FloatImage:
        """(height, width, 3) in [0, 1]."""
        (normalised,) = self.table.row(row)
        return np.ascontiguousarray(np.clip(normalised.transpose(1, 2, 0) * self._std + self._mean, 0, 1))

    def any(self, rng: np.random.Generator) -> FloatImage:
        """One of the images, each equally likely."""
        return self[int(rng.integers(len(self)))]

    def normalised(self, image: FloatImage) -> Tensor:
        """An image in [0, 1] as network input, (3, height, width)."""
        values = (image - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))


class AnomalySample(NamedTuple):
    """One synthetic image on its way from a worker.

    Attributes:
        image: normalised, (3, height, width).
        mask: (height, width).
        foreground: (height, width).
        fell_back: whether the mask is a fall-back.
        good: the good image as the flaw was put on it, in the form of ``image``; None where the recipe does not
            jitter it.
    """

    image: Tensor
    mask: Mask
    foreground: Mask
    fell_back: bool
    good: Tensor | None


class _Batch(NamedTuple):
    """Samples of a batch, stacked."""

    images: Tensor
    masks: Tensor
    foregrounds: Tensor
    fell_back: int
    good: Tensor | None


class _SyntheticImages(Dataset[AnomalySample | FlawsmithError]):
    """Synthetic images by place; what is drawn depends on the seed and the place alone, not on the worker."""

    def __init__(self, images: PreparedImages, synthesizer: AnomalySynthesizer, seed: int) -> None:
        self._images, self._synthesizer, self._seed = images, synthesizer, seed
        self._foregrounds: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, place: SampleKey) -> AnomalySample | FlawsmithError:
        """A user's mistake is handed over instead of raised: the loader would wrap it in a worker's traceback."""
        try:
            image = self._images[place.row]
            foreground = self._foreground(place.row, image)
            synthetic = self._synthesize(place, image, foreground)
        except FlawsmithError as error:
            return error
        normalised = self._images.normalised
        good = normalised(synthetic.good) if self._synthesizer.recipe.jitter else None
        return AnomalySample(
            normalised(synthetic.image), synthetic.mask, foreground, synthetic.fell_back is not None, good
        )

    def _synthesize(self, place: SampleKey, image: FloatImage, foreground: Mask) -> SyntheticAnomaly:
        rng = generator(self._seed, "forge", place.epoch, place.number)
        return self._synthesizer.synthesize(image, rng, foreground=foreground)

    def _foreground(self, row: int, image: FloatImage) -> Mask:
        """The image's foreground, found once and kept as bits: it is the same every time."""
        if row not in self._foregrounds:
            found = self._synthesizer.foreground(image, self._images.paths[row])
            self._foregrounds[row] = np.packbits(np.ones(image.shape[:2], bool) if found is None else found)
            if len(self._foregrounds) > KEPT_FOREGROUNDS:
                self._foregrounds.popitem(last=False)
        bits = np.unpackbits(self._foregrounds[row], count=image.shape[0] * image.shape[1])
        return bits.reshape(image.shape[:2]).astype(bool)

    def example(self, place: SampleKey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Good image as the flaw was put on it, mask and synthetic image as uint8 pictures."""
        image = self._images[place.row]
        synthetic = self._synthesize(place, image, self._foreground(place.row, image))
        return to_8_bit(synthetic.good), synthetic.mask.astype(np.uint8) * np.uint8(255), to_8_bit(synthetic.image)


class _BatchKeys(Sampler[list[SampleKey]]):
    """The places of every batch of one epoch; set anew for each."""

    def __init__(self) -> None:
        self.batches: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class SyntheticLoader:
    """Synthesizes fresh flaws every epoch, and gives what the frozen backbone sees of them
    (methods.base.SyntheticSource).

    Args:
        images: the training images.
        forger: draws a flaw on an image.
        extractor: the compiled backbone; it runs in this process.
        seed: seed of the run.
        workers: processes that synthesize; 0 synthesizes in this one. Results do not depend on it.
    """

    def __init__(
        self, images: PreparedImages, synthesizer: AnomalySynthesizer, extractor: Extractor, *, seed: int, workers: int
    ) -> None:
        self._extractor, self._plan = extractor, _BatchKeys()
        self._synthetic, self._count = _SyntheticImages(images, synthesizer, seed), len(images)
        self._loader = DataLoader(
            self._synthetic,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_Collate(images.geometry.size, jitter=synthesizer.recipe.jitter > 0),
            prefetch_factor=PREFETCHED if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # the loader draws a seed for its workers; the global generator stays as it is
        )

    def examples(self, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Flaws on images spread over the training set, drawn as those of epoch 0."""
        rows = np.unique(np.linspace(0, self._count - 1, count).round().astype(int))
        return [self._synthetic.example(SampleKey(int(row), 0, number)) for number, row in enumerate(rows)]

    def batches(self, rows: Sequence[np.ndarray], epoch: int) -> Iterator[SyntheticImages]:
        starts = np.cumsum([0, *map(len, rows)])
        self._plan.batches = [
            [SampleKey(int(row), epoch, int(start) + number) for number, row in enumerate(batch)][share(len(batch))]
            for start, batch in zip(starts[:-1], rows, strict=True)
        ]
        with _one_opencv_thread():
            synthetic = iter(self._loader)
        for batch, whole in zip(synthetic, rows, strict=True):
            if isinstance(batch, FlawsmithError):
                raise batch
            levels = self._levels(batch.images)
            normal = None if batch.good is None else self._levels(batch.good)
            masks, foregrounds = batch.masks.numpy(), batch.foregrounds.numpy()
            yield SyntheticImages(levels, masks, foregrounds, batch.fell_back, normal, len(whole))

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Level maps of normalised images (images, 3, height, width), finest first."""
        if not len(images):
            one = np.zeros((1, *images.shape[1:]), np.float32)
            return [torch.from_numpy(level[:0]) for level in self._extractor(one)]
        # One image at a time: compiled backbones on a CPU are faster so, and a feature has no neighbours.
        levels = zip(*(self._extractor(images[[number]].numpy()) for number in range(len(images))), strict=True)
        return [torch.from_numpy(np.concatenate(level)) for level in levels]


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """OpenCV's threads do not survive a fork, and a worker that counts on them waits for ever."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _one_thread(worker: int) -> None:
    """A worker draws one image at a time; threads of its libraries would only take turns with those of training."""
    cv2.setNumThreads(0)
    threadpool_limits(1)


class _Collate:
    """A batch of samples as tensors, which workers hand over in shared memory; arrays would be copied through a pipe.

    Args:
        size: (height, width) of the images.
        jitter: whether the recipe changes good images too.
    """

    def __init__(self, size: tuple[int, int], *, jitter: bool) -> None:
        self._size, self._jitter = size, jitter

    def __call__(self, samples: list[AnomalySample | FlawsmithError]) -> _Batch | FlawsmithError:
        drawn = [sample for sample in samples if not isinstance(sample, FlawsmithError)]
        if len(drawn) < len(samples):
            return next(sample for sample in samples if isinstance(sample, FlawsmithError))
        if not drawn:
            images, masks = torch.zeros(0, 3, *self._size), torch.zeros(0, *self._size, dtype=torch.bool)
            return _Batch(images, masks, masks, 0, images if self._jitter else None)
        good = [sample.good for sample in drawn if sample.good is not None]
        return _Batch(
            torch.stack([sample.image for sample in drawn]),
            torch.from_numpy(np.stack([sample.mask for sample in drawn])),
            torch.from_numpy(np.stack([sample.foreground for sample in drawn])),
            sum(sample.fell_back for sample in drawn),
            torch.stack(good) if good else None,
        )


FITTED_FOREGROUNDS = 16  # images that decide together whether there is a foreground


@dataclass(frozen=True)
class SynthesisOptions:
    """What synthesis draws from, and where it runs.

    Attributes:
        textures: a folder, ``self`` or ``procedural`` (also None).
        foregrounds: folder of foreground masks; None looks for ``fg_mask`` beside the images.
        workers: processes that synthesize; results do not depend on it. None chooses.
    """

    textures: str | Path | None = None
    foregrounds: Path | None = None
    workers: int | None = None


class TrainingSet:
    """The held-in good images and what can be made of them (methods.base.TrainingData).

    Args:
        samples: images to learn from, in an order that depends on their content alone; at least one.
        geometry: how files become network input.
        extractor: the compiled backbone.
        cache: features of this extractor and geometry.
        seed: seed of the run.
        synthesis: what flaws are synthesized from.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        geometry: Geometry,
        extractor: Extractor,
        cache: FeatureCache,
        *,
        seed: int,
        synthesis: SynthesisOptions | None = None,
    ) -> None:
        self.samples, self.geometry, self.seed = tuple(samples), geometry, seed
        self.image_size = geometry.size
        self.dataset, self.category = self.samples[0].dataset, self.samples[0].category
        self._extractor, self._cache = extractor, cache
        self._synthesis = synthesis or SynthesisOptions()
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

    def through(self, backbone: Backbone) -> TrainingSet:
        """The same images through another frozen backbone, with the same engine and precision."""
        engine, precision = self._extractor.engine, self._extractor.precision
        extractor = make_extractor(backbone, self.image_size, engine, precision)
        key = extractor_key(backbone, self.geometry, engine, precision)
        cache = FeatureCache(key, self._cache.root, self._cache.cap)
        return TrainingSet(self.samples, self.geometry, extractor, cache, seed=self.seed, synthesis=self._synthesis)

    def _prepared(self) -> PreparedImages:
        """The images at the network's size, kept beside the features: synthesis reads them many times."""
        key = hashlib.sha256(f"images\n{preparation(self.geometry)}".encode()).hexdigest()[:32]
        cache = FeatureCache(key, self._cache.root, self._cache.cap)
        table = self._table(
            "images", cache, lambda rows: ([self.geometry.apply(decode(self._paths[row]))] for row in rows)
        )
        return PreparedImages(table, self._paths, self.geometry)

    def synthetic(
        self, recipe: Recipe, foreground: Foreground, grid: tuple[int, int], *, match_grey: bool
    ) -> SyntheticLoader:
        """Flaws synthesized on these images; see :class:`flawsmith.models.base.TrainingData`.

        Raises:
            FlawsmithError: no such textures or masks.
        """
        options = self._synthesis
        prepared = self._prepared()
        synthesizer = AnomalySynthesizer(
            recipe,
            texture_source(options.textures, self._paths, fit=recipe.fit, value_range=self.geometry.value_range),
            self._foregrounds(foreground, prepared),
            self.geometry,
            others=prepared.any,
            grid=grid,
            match_grey=match_grey,
        )
        workers = default_workers() if options.workers is None else options.workers
        return SyntheticLoader(prepared, synthesizer, self._extractor, seed=self.seed, workers=workers)

    def _foregrounds(self, settings: Foreground, images: PreparedImages) -> ForegroundProvider:
        """The provider, fitted on images spread over the data set."""
        found = provider(settings, self._synthesis.foregrounds)
        rows = np.unique(np.linspace(0, len(self) - 1, FITTED_FOREGROUNDS).round().astype(int))
        return found.fit(images[int(row)] for row in rows)
