"""Images at a network's size, their level maps and the graphs that give these: on disk, keyed by content, shared."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Pixels
from flawsmith.runtime.outputs import locked_file
from flawsmith.runtime.system import OPEN_FILES_STAY

SHARD_IMAGES = 128
DEFAULT_CAP_GB = 20.0
_FEATURES, _INDEX = "features", "index.json"
_GRAPH = "graph"
_TEMPORARY = "tmp-"
_CHUNK = 1 << 20
_HALF = float(np.finfo(np.float16).max)

LevelArrays = list[NDArray[np.float32]]


def cache_folder() -> Path:
    """``FLAWSMITH_CACHE``, or the user's cache folder.

    A ``~`` stands for the home folder as it does in a shell, which files of services and containers are not read by.

    Raises:
        FlawsmithError: neither is known.
    """
    folder, base = os.environ.get("FLAWSMITH_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if folder:
            return Path(folder).expanduser()
        # The XDG specification has relative paths ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "flawsmith"
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in some containers and services
        raise FlawsmithError(
            "there is no home folder for the feature cache: set FLAWSMITH_CACHE to a writable folder"
        ) from None


def cache_cap() -> int:
    """Bytes that all cached images and features together may take: ``FLAWSMITH_CACHE_GB``, 20 by default."""
    gigabytes = os.environ.get("FLAWSMITH_CACHE_GB", str(DEFAULT_CAP_GB))
    try:
        cap = int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError):
        cap = 0
    if cap <= 0:
        raise FlawsmithError(f"FLAWSMITH_CACHE_GB is {gigabytes!r}: set it to a number of gigabytes")
    return cap


def check_cache() -> None:
    """Find out before any work whether features can be kept.

    Raises:
        FlawsmithError: what the environment says of the cache cannot be used, or its folder cannot be written.
    """
    cache_cap()
    _make(cache_folder() / _FEATURES)


def _make(folder: Path) -> None:
    """Make a folder of the cache, and see that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder, prefix=_TEMPORARY):
            return
    except OSError as error:
        raise FlawsmithError(
            f"the feature cache cannot be written at {folder} ({error.strerror}): "
            "set FLAWSMITH_CACHE to a writable folder"
        ) from error


class _Shard(NamedTuple):
    """A folder of the cache, opened: it stays readable for as long as it is held, though another run removes it.

    Attributes:
        folder: its place.
        images: content hash of every image.
        levels: (images, ...) each, memory-mapped; finest first.
    """

    folder: Path
    images: Sequence[str]
    levels: Sequence[NDArray[Any]]


class _Table:
    """Arrays by row; rows lie in memory-mapped shards, so that the table costs no memory of its own.

    A pickled table carries the shards' folders alone: a worker process maps the same files.

    Args:
        shards: where the rows lie.
        places: shard and position in it of every row.
    """

    def __init__(self, shards: Sequence[_Shard], places: Sequence[tuple[int, int]]) -> None:
        self._folders, self._places = [shard.folder for shard in shards], tuple(places)
        self._shards = [shard.levels for shard in shards]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        folders = [(folder, len(levels)) for folder, levels in zip(self._folders, self._shards, strict=True)]
        return _reopened, (type(self), folders, self._places)

    def __len__(self) -> int:
        return len(self._places)


def _reopened(kind: type[_Table], folders: Sequence[tuple[Path, int]], places: Sequence[tuple[int, int]]) -> _Table:
    """A table in another process, from the folders and their numbers of levels."""
    try:
        return kind([_Shard(folder, (), _open(folder, levels)) for folder, levels in folders], places)
    except OSError as error:
        raise _room_was_made(folders[0][0].parent) from error


def _room_was_made(folder: Path) -> FlawsmithError:
    return FlawsmithError(f"another run has made room in {folder}: run again, or raise FLAWSMITH_CACHE_GB")


class FeatureTable(_Table):
    """Level maps by row, kept in half precision.

    Attributes:
        channels: of every level, finest first.
        grids: (height, width) of every level.
    """

    def __init__(self, shards: Sequence[_Shard], places: Sequence[tuple[int, int]]) -> None:
        super().__init__(shards, places)
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

    A killed run leaves at most a temporary folder behind, which the next run removes; a shard that cannot be read, or
    whose check sums differ, is dropped and computed anew. Shards of other keys, least recently used first, make room
    for new ones, even if another run reads them: what a run has opened it keeps. A shard is named by its images:
    processes that fill the cache at once write the same one once.

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
        self._root = self.root / _FEATURES
        self._folder = self._root / key
        self._places: dict[str, tuple[_Shard, int]] = {}
        _make(self._folder)

    def missing(self, hashes: Sequence[str | None]) -> list[int]:
        """The first row of every image that is not here, ascending; the others stay until the cache is let go.

        Args:
            hashes: content hash of every image, a row each; None: nothing is wanted of this row.
        """
        first = {content: row for row, content in reversed(list(enumerate(hashes))) if content is not None}
        self._look_for(first.keys() - self._places.keys())
        return sorted(row for content, row in first.items() if content not in self._places)

    def write(self, hashes: Sequence[str], levels: Sequence[NDArray[Any]]) -> None:
        """Keep one shard.

        Raises:
            FlawsmithError: there is no room.
        """
        self._make_room(sum(level.nbytes for level in levels))
        final = self._folder / hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]
        try:
            with self._temporary() as temporary:
                for number, level in enumerate(levels):
                    np.save(temporary / f"level_{number}.npy", level, allow_pickle=False)
                index = {"images": list(hashes), "crc32": [_crc32(file) for file in _files(temporary, len(levels))]}
                (temporary / _INDEX).write_text(json.dumps(index), encoding="utf-8")
                # Opened before another run can remove it; a system that renames no open files removes none either.
                opened = None if OPEN_FILES_STAY else _open(temporary, len(levels))
                try:
                    temporary.rename(final)
                except OSError:
                    if not final.is_dir():  # another process was first
                        raise
                self._hold(_Shard(final, hashes, _open(final, len(levels)) if opened is None else opened))
        except OSError as error:
            raise FlawsmithError(
                f"features cannot be written to {self._folder} ({error.strerror}): "
                "free some space or set FLAWSMITH_CACHE to another disk"
            ) from error

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A new folder that other processes leave alone; what is still there at the end goes."""
        while True:
            temporary = self._folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
            with locked_file(_lock_of(temporary)) as is_free:
                if not is_free:  # another process has just looked whether it is an orphan's
                    continue
                temporary.mkdir()
                try:
                    yield temporary
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
                return

    def _hold(self, shard: _Shard) -> None:
        self._places |= {content: (shard, place) for place, content in enumerate(shard.images)}
        self.in_use.add(shard.folder)
        with suppress(OSError):
            os.utime(shard.folder / _INDEX)

    def _look_for(self, contents: Set[str]) -> None:
        """Open the shards that hold any image of these contents."""
        if not contents:
            return
        for folder in sorted(self._folder.iterdir()):
            if folder.name.startswith(_TEMPORARY):
                _remove_if_orphaned(folder)
                continue
            try:
                index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
                if contents.isdisjoint(index["images"]):
                    continue
                self._hold(_checked(folder, index))
            except FileNotFoundError:  # another run makes room
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
                if isinstance(error, _ChangedError):
                    warnings.warn(
                        f"{folder} in the feature cache has changed on disk and is computed again", stacklevel=1
                    )
                shutil.rmtree(folder, ignore_errors=True)

    def _held(self, hashes: Sequence[str]) -> tuple[list[_Shard], list[tuple[int, int]]]:
        """The shards of images that are here, and the place of each image in them."""
        if not all(content in self._places for content in hashes):
            raise _room_was_made(self._folder)
        shards = {id(shard): shard for shard, _ in map(self._places.__getitem__, hashes)}
        number = {key: index for index, key in enumerate(shards)}
        places = [self._places[content] for content in hashes]
        return list(shards.values()), [(number[id(shard)], place) for shard, place in places]

    def _make_room(self, size: int) -> None:
        shards = {index.parent: _bytes(index.parent) for index in self._root.glob(f"*/*/{_INDEX}")}
        total = sum(shards.values())
        old = sorted((shard for shard in shards if shard not in self.in_use), key=_last_use)
        while total + size > self.cap and old:
            shard = old.pop(0)
            doomed = shard.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            try:
                shard.rename(doomed)  # at once, so that no other run finds half of it
            except FileNotFoundError:
                pass
            except OSError:  # Windows: another run reads it
                continue
            total -= shards[shard]
            shutil.rmtree(doomed, ignore_errors=True)
        if total + size > self.cap:
            raise FlawsmithError(
                f"the features of these images need more than the cache's {self.cap / 1e9:.1f} GB in {self._root}: "
                "raise FLAWSMITH_CACHE_GB, or choose a smaller --set image_size"
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
        return FeatureTable(*self._held(hashes))


class ImageCache(_ShardCache):
    """Images at a network's size, by the content of their files; 8 bits a value where the files have no more."""

    def table(self, hashes: Sequence[str]) -> ImageTable:
        """The images of some files, all of which must be here: :func:`fill_images` sees to that."""
        return ImageTable(*self._held(hashes))


class GraphCache(_ShardCache):
    """The ONNX graph of a backbone, seconds of work; its key is :func:`flawsmith.features.extract.graph_key`."""

    def graph(self, make: Callable[[], bytes]) -> bytes:
        """The graph as it was kept, else as ``make`` gives it, which is kept where there is room."""
        if self.missing([_GRAPH]):
            graph = make()
            with suppress(FlawsmithError):  # what a run cannot do without, its features, will say so
                self.write([_GRAPH], [np.frombuffer(graph, np.uint8)[None]])
            return graph
        (shard,), _ = self._held([_GRAPH])
        return shard.levels[0].tobytes()


def fill_images(
    caches: Sequence[tuple[ImageCache, Sequence[str | None]]],
    read: Callable[[Mapping[int, Sequence[int]]], Iterable[Sequence[Pixels]]],
) -> None:
    """Read every image that some cache lacks, once for all of them.

    Args:
        caches: a cache for each size, and the content hash of every image, a row each; None: it is to hold none.
        read: given rows with the caches that lack them, yields for each row, in order, its pixels for these caches.
    """
    lacking: dict[int, list[int]] = {}
    for number, (cache, hashes) in enumerate(caches):
        for row in cache.missing(hashes):
            lacking.setdefault(row, []).append(number)
    lacking = dict(sorted(lacking.items()))
    images = iter(read(lacking))
    for rows in _in_groups(list(lacking)):
        # Files of other depths, and in a letterbox of other shapes, do not stack.
        groups: dict[tuple[int, tuple[int, ...], str], dict[str, Pixels]] = {}
        for row, pixels in zip(rows, islice(images, len(rows)), strict=True):
            for number, picture in zip(lacking[row], pixels, strict=True):
                content = caches[number][1][row]
                assert content is not None
                groups.setdefault((number, picture.shape, picture.dtype.name), {})[content] = picture
        for (number, _, _), group in groups.items():
            caches[number][0].write(list(group), [np.stack(list(group.values()))])


def _in_groups(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    return (rows[start : start + SHARD_IMAGES] for start in range(0, len(rows), SHARD_IMAGES))


def _halved(levels: LevelArrays) -> list[NDArray[np.float16]]:
    return [np.clip(level, -_HALF, _HALF).astype(np.float16) for level in levels]


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}.lock")


def _remove_if_orphaned(entry: Path) -> None:
    """Remove the unfinished shard of a process that is no more, and its lock; that of a living one is left alone."""
    temporary = entry.with_suffix("")
    with suppress(OSError), locked_file(_lock_of(temporary)) as is_free:
        if is_free:
            shutil.rmtree(temporary, ignore_errors=True)


class _ChangedError(ValueError):
    """A shard is not as it was written."""


def _checked(folder: Path, index: Mapping[str, Any]) -> _Shard:
    """A shard, opened, once its check sums agree; ValueError and others where it is not whole."""
    images, sums = index["images"], index["crc32"]
    if [_crc32(file) for file in _files(folder, len(sums))] != sums:
        raise _ChangedError(folder)
    levels = _open(folder, len(sums))
    if any(len(level) != len(images) for level in levels):
        raise ValueError(f"{folder} does not hold what its index says")
    return _Shard(folder, images, levels)


def _files(folder: Path, count: int) -> list[Path]:
    return [folder / f"level_{level}.npy" for level in range(count)]


def _crc32(path: Path) -> int:
    """Check sum of a file: bits that a disk or memory has flipped would be learned from otherwise."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _open(folder: Path, count: int) -> list[NDArray[Any]]:
    """The arrays of a shard, memory-mapped: (images, ...) each; levels finest first."""
    return [np.load(file, mmap_mode="r", allow_pickle=False) for file in _files(folder, count)]


def _last_use(folder: Path) -> float:
    """When a shard was used last; one that another process has just removed counts as oldest."""
    try:
        return (folder / _INDEX).stat().st_mtime
    except OSError:
        return 0.0


def _bytes(folder: Path) -> int:
    """Size of a shard; of one that another process is removing, what is left."""
    size = 0
    with suppress(OSError):
        for path in folder.iterdir():
            size += path.stat().st_size
    return size
