"""Images at a network's size and their level maps on disk: keyed by content, memory-mapped, shared by runs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Pixels

SHARD_IMAGES = 128
DEFAULT_CAP_GB = 20.0
_INDEX = "index.json"
_TEMPORARY = "tmp-"
_HALF = float(np.finfo(np.float16).max)

LevelArrays = list[NDArray[np.float32]]


def cache_folder() -> Path:
    """``FLAWSMITH_CACHE``, or the user's cache folder."""
    folder = os.environ.get("FLAWSMITH_CACHE")
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flawsmith"


def cache_cap() -> int:
    """Bytes that all cached images and features together may take: ``FLAWSMITH_CACHE_GB``, 20 by default."""
    gigabytes = os.environ.get("FLAWSMITH_CACHE_GB", str(DEFAULT_CAP_GB))
    try:
        return int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError) as error:
        raise FlawsmithError(f"FLAWSMITH_CACHE_GB is {gigabytes!r}: set it to a number of gigabytes") from error


class _Table:
    """Arrays by row; rows lie in memory-mapped shards, so that the table costs no memory of its own.

    A pickled table carries the shards' folders alone: a worker process maps the same files.

    Args:
        folders: of the shards.
        places: shard and position in it of every row.
    """

    def __init__(self, folders: Sequence[Path], places: Sequence[tuple[int, int]]) -> None:
        self._folders, self._places = tuple(folders), tuple(places)
        self._shards = [_open(folder) for folder in self._folders]

    def __reduce__(self) -> tuple[type[_Table], tuple[Any, ...]]:
        return type(self), (self._folders, self._places)

    def __len__(self) -> int:
        return len(self._places)


class FeatureTable(_Table):
    """Level maps by row, kept in half precision.

    Attributes:
        channels: of every level, finest first.
        grids: (height, width) of every level.
    """

    def __init__(self, folders: Sequence[Path], places: Sequence[tuple[int, int]]) -> None:
        super().__init__(folders, places)
        first = self._shards[self._places[0][0]]
        self.channels = tuple(int(level.shape[1]) for level in first)
        self.grids = tuple((int(level.shape[2]), int(level.shape[3])) for level in first)

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Tensor]:
        """Level maps of some rows, finest first: float32 (rows, channels, height, width) each."""
        places = [self._places[int(row)] for row in rows]
        if not places:
            return [torch.zeros(0, count, *grid) for count, grid in zip(self.channels, self.grids, strict=True)]
        return [
            torch.from_numpy(np.stack([self._shards[shard][level][at] for shard, at in places])).float()
            for level in range(len(self.channels))
        ]


class ImageTable(_Table):
    """Images at a network's size by row, before they are normalised."""

    def __getitem__(self, row: int) -> Pixels:
        """(h, w, 3) as :meth:`flawsmith.runtime.geometry.Geometry.fit` gave it, read-only."""
        shard, place = self._places[row]
        return self._shards[shard][0][place]


class _ShardCache:
    """One folder a key; in it one folder a shard, renamed into place when it is whole.

    A killed run leaves at most a temporary folder behind, which the next run removes; a shard that cannot be read is
    dropped and computed anew. Shards of other keys, least recently used first, make room for new ones. A shard is
    named by its images: processes that fill the cache at once write the same one once.

    Args:
        key: identity of all that makes an array of an image.
        folder: root of the cache, by default ``cache_folder()``.
        cap: bytes that the whole cache may take, by default ``cache_cap()``.
        in_use: shards that make no room; shared by the caches of one run.
    """

    def __init__(
        self, key: str, folder: Path | None = None, cap: int | None = None, in_use: set[Path] | None = None
    ) -> None:
        self.root = folder or cache_folder()
        self.cap = cache_cap() if cap is None else cap
        self.in_use = set() if in_use is None else in_use
        self._root = self.root / "features"
        self._folder = self._root / key
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlawsmithError(
                f"the feature cache cannot be written at {self._folder} ({error.strerror}): "
                "set FLAWSMITH_CACHE to a writable folder"
            ) from error

    def missing(self, hashes: Sequence[str]) -> list[int]:
        """The first row of every image that is not here, ascending; the others stay until the cache is let go.

        Args:
            hashes: content hash of every image, a row each.
        """
        known = self._known()
        first = {content: row for row, content in reversed(list(enumerate(hashes)))}
        self.in_use |= {known[content][0] for content in first if content in known}
        return sorted(row for content, row in first.items() if content not in known)

    def write(self, hashes: Sequence[str], levels: Sequence[NDArray[Any]]) -> None:
        """Keep one shard.

        Args:
            hashes: content hash of every image.
            levels: (images, ...) each.

        Raises:
            FlawsmithError: there is no room.
        """
        self._make_room(sum(level.nbytes for level in levels))
        temporary = self._folder / f"{_TEMPORARY}{os.getpid()}-{platform.node()}-{uuid.uuid4().hex}"
        final = self._folder / hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]
        try:
            temporary.mkdir()
            for number, level in enumerate(levels):
                np.save(temporary / f"level_{number}.npy", level, allow_pickle=False)
            (temporary / _INDEX).write_text(json.dumps({"images": list(hashes), "levels": len(levels)}))
            self.in_use.add(final)
            temporary.rename(final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if final.is_dir():  # another process was first
                return
            raise FlawsmithError(
                f"features cannot be written to {self._folder} ({error.strerror}): "
                "free some space or set FLAWSMITH_CACHE to another disk"
            ) from error

    def _places(self, hashes: Sequence[str]) -> tuple[list[Path], list[tuple[int, int]]]:
        """The shards of images that are here, and the place of each image in them."""
        known = self._known()
        if not all(content in known for content in hashes):
            raise FlawsmithError(f"another run has made room in {self._folder}: run again, or raise FLAWSMITH_CACHE_GB")
        folders = sorted({known[content][0] for content in hashes})
        number = {folder: index for index, folder in enumerate(folders)}
        for folder in folders:
            os.utime(folder / _INDEX)
        return folders, [(number[known[content][0]], known[content][1]) for content in hashes]

    def _known(self) -> dict[str, tuple[Path, int]]:
        known: dict[str, tuple[Path, int]] = {}
        for folder in sorted(self._folder.iterdir()):
            if folder.name.startswith(_TEMPORARY):
                _remove_if_orphaned(folder)
                continue
            try:
                contents = _contents(folder)
            except (OSError, EOFError, ValueError, TypeError, KeyError):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            known.update({content: (folder, place) for place, content in enumerate(contents)})
        return known

    def _make_room(self, size: int) -> None:
        shards = [index.parent for index in self._root.glob(f"*/*/{_INDEX}")]
        total = sum(_bytes(shard) for shard in shards)
        old = sorted((shard for shard in shards if shard not in self.in_use), key=_last_use)
        while total + size > self.cap and old:
            shard = old.pop(0)
            total -= _bytes(shard)
            shutil.rmtree(shard, ignore_errors=True)
        if total + size > self.cap:
            raise FlawsmithError(
                f"the features of this dataset need more than the cache's {self.cap / 1e9:.1f} GB in {self._root}: "
                "raise FLAWSMITH_CACHE_GB, or train on smaller images with --set image_size=[...]"
            )


class FeatureCache(_ShardCache):
    """Level maps by the content of the images; its key is the extractor's (weights, levels, geometry, engine)."""

    def table(self, hashes: Sequence[str], extract: Callable[[Sequence[int]], Iterable[LevelArrays]]) -> FeatureTable:
        """The features of some images, extracting those that are missing.

        Args:
            hashes: content hash of every image, a row each.
            extract: given the rows that are missing, yields their level maps (channels, height, width), in order.
        """
        missing = self.missing(hashes)
        if missing:
            maps = iter(extract(missing))
            for rows in _in_groups(missing):
                levels = zip(*(_halved(levels) for levels in islice(maps, len(rows))), strict=True)
                self.write([hashes[row] for row in rows], [np.stack(level) for level in levels])
        return FeatureTable(*self._places(hashes))


class ImageCache(_ShardCache):
    """Images at a network's size, by the content of their files; 8 bits a value where the files have no more."""

    def table(self, hashes: Sequence[str]) -> ImageTable:
        """The images of some files, all of which must be here: :func:`fill_images` sees to that."""
        return ImageTable(*self._places(hashes))


def fill_images(
    caches: Sequence[ImageCache],
    hashes: Sequence[str],
    read: Callable[[Mapping[int, Sequence[int]]], Iterable[Sequence[Pixels]]],
) -> None:
    """Read every image that some cache lacks, once for all of them.

    Args:
        caches: one for each size.
        hashes: content hash of every image, a row each.
        read: given rows with the caches that lack them, yields for each row, in order, its pixels for these caches.
    """
    lacking: dict[int, list[int]] = {}
    for number, cache in enumerate(caches):
        for row in cache.missing(hashes):
            lacking.setdefault(row, []).append(number)
    lacking = dict(sorted(lacking.items()))
    images = iter(read(lacking))
    for rows in _in_groups(list(lacking)):
        # Files of other depths, and in a letterbox of other shapes, do not stack.
        groups: dict[tuple[int, tuple[int, ...], str], dict[str, Pixels]] = {}
        for row, pixels in zip(rows, islice(images, len(rows)), strict=True):
            for number, picture in zip(lacking[row], pixels, strict=True):
                groups.setdefault((number, picture.shape, picture.dtype.name), {})[hashes[row]] = picture
        for (number, _, _), group in groups.items():
            caches[number].write(list(group), [np.stack(list(group.values()))])


def _in_groups(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    return (rows[start : start + SHARD_IMAGES] for start in range(0, len(rows), SHARD_IMAGES))


def _halved(levels: LevelArrays) -> list[NDArray[np.float16]]:
    return [np.clip(level, -_HALF, _HALF).astype(np.float16) for level in levels]


def _remove_if_orphaned(folder: Path) -> None:
    """Remove the unfinished shard of a process that is no more; that of a living one is left alone.

    Whether a process of another machine that shares the cache lives cannot be known.
    """
    process, _, rest = folder.name.removeprefix(_TEMPORARY).partition("-")
    machine = rest.rpartition("-")[0]
    if machine not in ("", platform.node()):
        return
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
    except PermissionError:
        return


def _contents(folder: Path) -> list[str]:
    """Content hashes of a shard's images, a row each; ValueError and others where the shard is not whole."""
    index = json.loads((folder / _INDEX).read_text())
    images, levels = index["images"], _open(folder)
    if len(levels) != index["levels"] or any(len(level) != len(images) for level in levels):
        raise ValueError(f"{folder} does not hold what its index says")
    return images


def _open(folder: Path) -> list[NDArray[Any]]:
    """The arrays of a shard, memory-mapped: (images, ...) each; levels finest first."""
    count = len(list(folder.glob("level_*.npy")))
    return [np.load(folder / f"level_{level}.npy", mmap_mode="r", allow_pickle=False) for level in range(count)]


def _last_use(folder: Path) -> float:
    """When a shard was used last; one that another process has just removed counts as oldest."""
    try:
        return (folder / _INDEX).stat().st_mtime
    except OSError:
        return 0.0


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
