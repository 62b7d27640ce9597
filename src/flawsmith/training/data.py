"""The good images that a method learns from."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flawsmith.data.bursts import Thumbnail, thumbnail_of
from flawsmith.data.samples import Sample
from flawsmith.data.seeding import Shard, generator
from flawsmith.data.splits import content_hashes
from flawsmith.features.backbones import Backbone
from flawsmith.features.cache import FeatureCache, FeatureTable, ImageCache, ImageTable, LevelArrays, fill_images
from flawsmith.features.extract import (
    THUMBNAIL_KEY,
    Extractor,
    Form,
    extract,
    extractor_key,
    image_key,
    make_extractor,
    read_files,
)
from flawsmith.models.base import ALONE, SyntheticImages
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry, Pixels
from flawsmith.runtime.image import ImageArray, ValueSummary, decode, image_size, summarise_values
from flawsmith.runtime.roi import RegionOfInterest
from flawsmith.runtime.tiles import Tile, Tiling, tiles_to_see
from flawsmith.synthesis.blend import FloatImage, Mask
from flawsmith.synthesis.foreground import Foreground, ForegroundProvider, provider
from flawsmith.synthesis.recipes import Recipe
from flawsmith.synthesis.synthesizer import AnomalySample, AnomalySynthesizer, to_8_bit
from flawsmith.synthesis.textures import texture_source
from flawsmith.synthesis.views import View

PREFETCHED = 2
MOST_WORKERS, MOST_BESIDE_A_DEVICE = 2, 16
CACHED_FOREGROUNDS = 4096
FITTED_FOREGROUNDS = 16
"""Images that decide together whether there is a foreground."""


def default_workers(device: torch.device) -> int:
    """Worker processes that synthesize, none more than there are cores.

    Two synthesize faster than a CPU trains. Any other device trains faster than many, and leaves the cores to them.
    """
    return min(MOST_WORKERS if device.type == "cpu" else MOST_BESIDE_A_DEVICE, os.cpu_count() or 1)


@dataclass(frozen=True)
class SampleKey:
    """What one synthetic image is drawn from.

    Attributes:
        row: of the image.
        epoch: from 0.
        number: of the sample in the whole epoch, over all processes.
    """

    row: int
    epoch: int
    number: int


@dataclass(frozen=True)
class TrainingRow:
    """What one row of the training data shows.

    Attributes:
        path: the file.
        tile: the part of it; None: all of it.
        image_size: (height, width) of the file's image, where it is cut.
    """

    path: Path
    tile: Tile | None = None
    image_size: tuple[int, int] = (0, 0)

    def identity(self, content: str) -> str:
        """What its pixels follow from: the content hash of the file, and the tile."""
        return content if self.tile is None else "-".join(map(str, (content, *self.tile)))

    def of_mask(self, region: RegionOfInterest, size: tuple[int, int]) -> NDArray[np.bool_]:
        """A region of interest as it lies in this row, brought to the network's (height, width)."""
        if self.tile is None:
            return region.to_mask(size)
        mask = self.tile.of(region.to_mask(self.image_size))
        rows, columns = (np.arange(n) * have // n for n, have in zip(size, mask.shape, strict=True))
        return mask[rows[:, None], columns]


def rows_of(path: Path, tiling: Tiling | None, geometry: Geometry) -> Iterator[TrainingRow]:
    """What the rows of one image show: all of it, or those of its tiles that show some of the region of interest.

    Raises:
        FlawsmithError: an image that is to be cut cannot be read.
    """
    size = None if tiling is None else image_size(path) or decode(path).shape[:2]
    if tiling is None or size is None or tiling.holds(size):
        yield TrainingRow(path)
        return
    for tile in tiles_to_see(tiling, geometry, size):
        yield TrainingRow(path, tile, size)


def _read_rows(
    rows: Sequence[TrainingRow],
    forms: Sequence[Form],
    lacking: Mapping[int, Sequence[int]],
    see: Callable[[Path, ImageArray], None] = lambda path, image: None,
) -> Iterator[Sequence[Pixels]]:
    """The pixels of the rows that lack some forms, in these."""
    chosen = [rows[row] for row in lacking]
    lacked = [[forms[number] for number in numbers] for numbers in lacking.values()]
    return read_files([row.path for row in chosen], lacked, [row.tile for row in chosen], see=see)


class FirstLook:
    """The decoding of each good image, before it is known which of them are learned from.

    Groups are told by thumbnails of all images, and the split follows from the groups. What training wants of an image
    is therefore made of the same pixels and left in the cache.

    Args:
        geometries: in which the method asks for images.
        tiling: how images are cut; None: each is seen as a whole.
        watched: images whose values are looked at.

    Attributes:
        images: those that can be read, for they have been.
        values: of the watched images, as far as they were not in the cache.
    """

    def __init__(self, geometries: Sequence[Geometry], tiling: Tiling | None, watched: Iterable[Path]) -> None:
        self._geometries, self._tiling, self._watched = tuple(geometries), tiling, frozenset(watched)
        self.images: frozenset[Path] = frozenset()
        self.values: dict[Path, ValueSummary] = {}

    def thumbnails(self, paths: Sequence[Path]) -> list[Thumbnail]:
        """Thumbnails of images, whose pixels in all geometries are in the cache thereafter.

        Raises:
            FlawsmithError: an image cannot be read.
        """
        contents = dict(zip(paths, content_hashes(paths), strict=True))
        rows: list[TrainingRow] = []
        of_thumbnails: list[str | None] = []
        of_pixels: list[str | None] = []
        for path, content in contents.items():
            parts = [(row, row.identity(content)) for row in rows_of(path, self._tiling, self._geometries[0])]
            if parts and parts[0][0].tile is None:
                of_thumbnails.append(content)
            else:  # a row of the whole image, for its thumbnail alone
                rows.append(TrainingRow(path))
                of_thumbnails += [content, *[None] * len(parts)]
                of_pixels.append(None)
            rows += [row for row, _ in parts]
            of_pixels += [identity for _, identity in parts]
        thumbnails = ImageCache(THUMBNAIL_KEY)
        pixels = [(ImageCache(image_key(geometry)), of_pixels) for geometry in self._geometries]
        read = partial(_read_rows, rows, [thumbnail_of, *self._geometries], see=self._see)
        fill_images([(thumbnails, of_thumbnails), *pixels], read)
        self.images = frozenset(paths)
        table = thumbnails.table([contents[path] for path in paths])
        return [np.array(table[row]) for row in range(len(table))]

    def _see(self, path: Path, image: ImageArray) -> None:
        if path in self._watched:
            self.values[path] = summarise_values(image)


class TrainingImages:
    """Training images as the network sees them, before they are normalised, from the cache."""

    def __init__(self, table: ImageTable, rows: Sequence[TrainingRow], geometry: Geometry) -> None:
        self.table, self.rows, self.geometry = table, tuple(rows), geometry

    def seen(self, row: int) -> NDArray[np.bool_]:
        """(height, width), False outside of the region of interest: no flaw is put there."""
        geometry = self.geometry
        if geometry.region is None or geometry.policy != "squash":  # others do not keep the image's proportions
            return np.ones(geometry.size, bool)
        return self.rows[row].of_mask(geometry.region, geometry.size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> FloatImage:
        """(height, width, 3) in [0, 1]."""
        return self.geometry.to_float(self.table[row])

    def any(self, rng: np.random.Generator) -> FloatImage:
        """One of the images, each equally likely."""
        return self[int(rng.integers(len(self)))]


class _SyntheticDataset(Dataset[AnomalySample | FlawsmithError]):
    """Synthetic anomalies by key; what is drawn depends on the seed and the key alone, not on the worker."""

    def __init__(self, images: TrainingImages, synthesizer: AnomalySynthesizer, seed: int) -> None:
        self._images, self._synthesizer, self._seed = images, synthesizer, seed
        self._foregrounds: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, key: SampleKey) -> AnomalySample | FlawsmithError:
        """A user's mistake is handed over instead of raised: the loader would wrap it in a worker's traceback."""
        try:
            return self.sample(key)
        except FlawsmithError as error:
            return error

    def sample(self, key: SampleKey) -> AnomalySample:
        """The sample of a key, with a foreground that is everywhere for an image without one.

        Raises:
            FlawsmithError: a foreground mask is missing.
        """
        image = self._images[key.row]
        rng = generator(self._seed, "forge", key.epoch, key.number)
        return self._synthesizer.synthesize(image, rng, foreground=self._foreground(key.row, image))

    def _foreground(self, row: int, image: FloatImage) -> Mask:
        """The image's foreground, computed once and held as bits: it is the same every time."""
        if row not in self._foregrounds:
            mask = self._synthesizer.foreground(image, self._images.rows[row].path)
            mask = np.ones(image.shape[:2], bool) if mask is None else mask
            self._foregrounds[row] = np.packbits(mask & self._images.seen(row))
            if len(self._foregrounds) > CACHED_FOREGROUNDS:
                self._foregrounds.popitem(last=False)
        bits = np.unpackbits(self._foregrounds[row], count=image.shape[0] * image.shape[1])
        return bits.reshape(image.shape[:2]).astype(bool)


class _BatchSampler(Sampler[list[SampleKey]]):
    """The keys of every batch of one epoch; set anew for each."""

    def __init__(self) -> None:
        self.batches: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


_Batch = tuple[Tensor, Tensor | None, Tensor, Tensor, int]
"""Synthetic and, where the recipe jitters, good images (images, 3, height, width), normalised; masks and foregrounds
(images, height, width); and the number of fallbacks."""


def _collate(
    samples: Sequence[AnomalySample | FlawsmithError], geometry: Geometry, *, jitters: bool
) -> _Batch | FlawsmithError:
    """A batch as tensors, which workers hand over in shared memory; arrays would be copied through a pipe."""
    drawn = [sample for sample in samples if not isinstance(sample, FlawsmithError)]
    if len(drawn) < len(samples):
        return next(sample for sample in samples if isinstance(sample, FlawsmithError))

    def normalised(images: list[FloatImage]) -> Tensor:
        return torch.from_numpy(np.stack([geometry.normalise(image) for image in images]))

    return (
        normalised([sample.image for sample in drawn]),
        normalised([sample.normal for sample in drawn]) if jitters else None,
        torch.from_numpy(np.stack([sample.mask for sample in drawn])),
        torch.from_numpy(np.stack([sample.foreground for sample in drawn if sample.foreground is not None])),
        sum(sample.fallback is not None for sample in drawn),
    )


class SyntheticLoader:
    """Synthesizes fresh flaws every epoch, and gives what the frozen backbone sees of them
    (:class:`flawsmith.models.base.SyntheticSource`).

    Args:
        extractor: the compiled backbone; it runs in this process.
        workers: processes that synthesize; 0 synthesizes in this one. Results do not depend on it.
    """

    def __init__(
        self, images: TrainingImages, synthesizer: AnomalySynthesizer, extractor: Extractor, *, seed: int, workers: int
    ) -> None:
        self._extractor, self._sampler, self._count = extractor, _BatchSampler(), len(images)
        self._dataset = _SyntheticDataset(images, synthesizer, seed)
        self._loader = DataLoader(
            self._dataset,
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=partial(_collate, geometry=images.geometry, jitters=synthesizer.recipe.jitter > 0),
            prefetch_factor=PREFETCHED if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # the loader draws a seed for its workers; the global generator stays as it is
        )

    def examples(self, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Good image as the flaw was put on it, mask and synthetic image as uint8 pictures.

        The images are spread over the training set, the flaws drawn as those of epoch 0.
        """
        rows = np.unique(np.linspace(0, self._count - 1, count).round().astype(int))
        samples = [self._dataset.sample(SampleKey(int(row), 0, number)) for number, row in enumerate(rows)]
        return [
            (to_8_bit(sample.normal), sample.mask.astype(np.uint8) * np.uint8(255), to_8_bit(sample.image))
            for sample in samples
        ]

    def batches(self, rows: Sequence[np.ndarray], epoch: int, shard: Shard = ALONE) -> Iterator[SyntheticImages]:
        """The synthetic images of a process's batches of an epoch.

        Args:
            rows: the images to synthesize on, of every batch of the epoch.
            shard: which of the batches this process computes. What is drawn does not depend on it.

        Raises:
            FlawsmithError: a texture or a foreground mask is missing.
        """
        starts = np.cumsum([0, *map(len, rows)])
        keys = [
            [SampleKey(int(row), epoch, int(start) + number) for number, row in enumerate(batch)]
            for start, batch in zip(starts[:-1], rows, strict=True)
        ]
        self._sampler.batches = shard.of(keys)
        with _one_opencv_thread():
            batches = iter(self._loader)
        for batch in batches:
            if isinstance(batch, FlawsmithError):
                raise batch
            images, normal, masks, foregrounds, fallbacks = batch
            yield SyntheticImages(
                self._extractor.levels(images),
                masks.numpy(),
                foregrounds.numpy(),
                fallbacks,
                None if normal is None else self._extractor.levels(normal),
            )


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


class TrainingSet:
    """The held-in good images and what can be made of them (:class:`flawsmith.models.base.TrainingData`).

    A file is decoded once: its pixels at the network's size are cached, and features, synthetic images and means are
    made of them. Whoever asks for another size first gets both sizes of the same decoding. Where images are cut into
    tiles, a row is a tile.

    Args:
        samples: images to learn from, in an order that depends on their content alone; at least one.
        geometry: how files become network input.
        cache: features of this extractor and geometry.
        textures: what flaws are made of: a folder, ``self`` or ``procedural`` (also None).
        foregrounds: folder of foreground masks; None looks for ``fg_mask`` beside the images.
        workers: processes that synthesize; results do not depend on it. None chooses.
        tiling: how images are cut; None: each is seen as a whole.
        watch: is told the share of the features that are extracted.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        geometry: Geometry,
        extractor: Extractor,
        cache: FeatureCache,
        *,
        seed: int,
        textures: str | Path | None = None,
        foregrounds: Path | None = None,
        workers: int | None = None,
        tiling: Tiling | None = None,
        watch: Callable[[float], object] = lambda share: None,
    ) -> None:
        self.tiling, self._watch = tiling, watch
        self.samples, self.geometry, self.seed = tuple(samples), geometry, seed
        self.image_size = geometry.size
        self.dataset, self.category = self.samples[0].dataset, self.samples[0].category
        self._extractor, self._cache = extractor, cache
        self._textures, self._foregrounds, self._workers = textures, foregrounds, workers
        self._tables: dict[str, ImageTable] = {}
        self._features: FeatureTable | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> tuple[TrainingRow, ...]:
        """What every row shows: an image or, in the order of the images, a tile of one.

        Raises:
            FlawsmithError: an image that is to be cut cannot be read, or all lie outside of the region of interest.
        """
        if self.tiling is None:
            return tuple(TrainingRow(sample.image) for sample in self.samples)
        rows = tuple(row for sample in self.samples for row in rows_of(sample.image, self.tiling, self.geometry))
        if not rows:
            raise FlawsmithError("no tile shows anything of the region of interest; enlarge it")
        return rows

    @cached_property
    def _paths(self) -> list[Path]:
        """The files, each once."""
        return [sample.image for sample in self.samples]

    @cached_property
    def _hashes(self) -> Sequence[str]:
        """What each row's pixels follow from: the content of its file, and the tile."""
        contents = dict(zip(self._paths, content_hashes(self._paths), strict=True))
        return [row.identity(contents[row.path]) for row in self.rows]

    def features(self) -> FeatureTable:
        """Level maps of all images, extracted at most once and kept on disk."""
        if self._features is None:
            self._features = self._cache.table(self._hashes, self._extract)
        return self._features

    def _extract(self, rows: Sequence[int]) -> Iterator[LevelArrays]:
        table = self._table(self.geometry)
        levels = extract(self._extractor, (self.geometry.normalise(table[row]) for row in rows))
        for done, of_image in enumerate(levels, 1):
            self._watch(done / len(rows))
            yield of_image

    def views(self, views: Sequence[tuple[int, View]]) -> FeatureTable:
        """Level maps of rows seen otherwise, in the order in which they are asked for, kept on disk likewise."""
        table = self._table(self.geometry)
        identities = [f"{self._hashes[row]}-{hashlib.sha256(repr(view).encode()).hexdigest()}" for row, view in views]

        def seen(row: int, view: View) -> NDArray[np.float32]:
            pixels = table[row]
            image = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels
            return self.geometry.normalise(view.of(np.asarray(image, np.float32), self._stretch(row)))

        def extracted(numbers: Sequence[int]) -> Iterator[LevelArrays]:
            return extract(self._extractor, (seen(*views[number]) for number in numbers))

        return self._cache.table(identities, extracted)

    def _stretch(self, row: int) -> float:
        """Width over height of what a pixel of the network's input shows of a row."""
        size = None if self.tiling is not None else image_size(self.rows[row].path)
        if size is None or self.geometry.policy != "squash":  # tiles are square; others keep proportions
            return 1.0
        (height, width), (seen_height, seen_width) = size, self.geometry.size
        return (width / seen_width) / (height / seen_height)

    def images(self, geometry: Geometry | None = None) -> Iterator[NDArray[np.float32]]:
        """All images, normalised, (3, height, width); a given geometry takes the value range of this data's source."""
        chosen = geometry or self.geometry
        chosen = chosen.model_copy(update={"value_range": self.geometry.value_range})
        table = self._table(chosen)
        return (chosen.normalise(table[row]) for row in range(len(self)))

    def _table(self, geometry: Geometry) -> ImageTable:
        """The pixels of all images in a geometry; what is missing of it, and of the network's, is read in one pass."""
        key = image_key(geometry)
        if key not in self._tables:
            geometries = {image_key(each): each for each in (self.geometry, geometry)}
            missing = {name: each for name, each in geometries.items() if name not in self._tables}
            cache = self._cache
            caches = {name: ImageCache(name, cache.root, cache.cap, cache.in_use) for name in missing}
            hashed = [(cache, self._hashes) for cache in caches.values()]
            fill_images(hashed, partial(_read_rows, self.rows, list(missing.values())))
            self._tables |= {name: cache.table(self._hashes) for name, cache in caches.items()}
        return self._tables[key]

    def with_backbone(self, backbone: Backbone) -> TrainingSet:
        """The same images through another frozen backbone, with the same engine and precision."""
        chosen = self._extractor.engine, self._extractor.precision, self._extractor.device
        extractor = make_extractor(backbone, self.image_size, *chosen)
        key = extractor_key(backbone, self.geometry, *chosen)
        cache = FeatureCache(key, self._cache.root, self._cache.cap, self._cache.in_use)
        return TrainingSet(
            self.samples,
            self.geometry,
            extractor,
            cache,
            seed=self.seed,
            textures=self._textures,
            foregrounds=self._foregrounds,
            workers=self._workers,
            tiling=self.tiling,
            watch=self._watch,
        )

    def synthetic(
        self, recipe: Recipe, foreground: Foreground, grid: tuple[int, int], *, match_grey: bool
    ) -> SyntheticLoader:
        """Flaws synthesized on these images; see :class:`flawsmith.models.base.TrainingData`.

        Raises:
            FlawsmithError: no such textures or masks.
        """
        images = TrainingImages(self._table(self.geometry), self.rows, self.geometry)
        synthesizer = AnomalySynthesizer(
            recipe,
            texture_source(self._textures, self._paths, fit=recipe.fit, value_range=self.geometry.value_range),
            self._foreground_provider(foreground, images),
            self.geometry,
            others=images.any,
            grid=grid,
            match_grey=match_grey,
        )
        workers = default_workers(self._extractor.device) if self._workers is None else self._workers
        return SyntheticLoader(images, synthesizer, self._extractor, seed=self.seed, workers=workers)

    def _foreground_provider(self, settings: Foreground, images: TrainingImages) -> ForegroundProvider:
        """The provider, fitted on images spread over the data set."""
        rows = np.unique(np.linspace(0, len(self) - 1, FITTED_FOREGROUNDS).round().astype(int))
        return provider(settings, self._foregrounds).fit(images[int(row)] for row in rows)
