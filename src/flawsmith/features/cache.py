"""Raw level maps of images on disk: keyed by content, memory-mapped, half precision, shared by runs."""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawsmith.runtime.errors import FlawsmithError

SHARD_IMAGES = 128
DEFAULT_CAP_GB = 20.0
_INDEX = "index.json"
_TEMPORARY = "tmp-"
_HALF = float(np.finfo(np.float16).max)

LevelMaps = list[NDArray[np.float32]]


def cache_folder() -> Path:
    """``FLAWSMITH_CACHE``, or the user's cache folder."""
    given = os.environ.get("FLAWSMITH_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flawsmith"


def cache_cap() -> int:
    """Bytes that all cached features together may take: ``FLAWSMITH_CACHE_GB``, 20 by default."""
    given = os.environ.get("FLAWSMITH_CACHE_GB", str(DEFAULT_CAP_GB))
    try:
        return int(float(given) * 1e9)
    except ValueError as error:
        raise FlawsmithError(f"FLAWSMITH_CACHE_GB is {given!r}: set it to a number of gigabytes") from error


class FeatureTable:
    """Level maps by row; rows lie in memory-mapped shards, so that the table costs no memory of its own.

    A pickled table carries the shards' folders alone: a worker process maps the same files.

    Args:
        folders: of the shards.
        places: shard and position in it of every row.
    """

    def __init__(self, folders: Sequence[Path], places: Sequence[tuple[int, int]]) -> None:
        self._folders, self._places = tuple(folders), tuple(places)
        self._shards = [_open(folder) for folder in self._folders]
        first = self._shards[self._places[0][0]]
        self.channels = tuple(int(level.shape[1]) for level in first)
        self.grids = tuple((int(level.shape[2]), int(level.shape[3])) for level in first)

    def __reduce__(self) -> tuple[type[FeatureTable], tuple[Any, ...]]:
        return FeatureTable, (self._folders, self._places)

    def __len__(self) -> int:
        return len(self._places)

    def row(self, row: int) -> LevelMaps:
        """Level maps of one row, finest first: float32 (channels, height, width) each."""
        shard, at = self._places[row]
        return [level[at].astype(np.float32) for level in self._shards[shard]]

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Tensor]:
        """Level maps of some rows, finest first: float32 (rows, channels, height, width) each."""
        places = [self._places[int(row)] for row in rows]
        if not places:  # the share of a process where a batch has fewer images than there are processes
            return [torch.zeros(0, count, *grid) for count, grid in zip(self.channels, self.grids, strict=True)]
        return [
            torch.from_numpy(np.stack([self._shards[shard][level][at] for shard, at in places])).float()
            for level in range(len(self.channels))
        ]


class FeatureCache:
    """One folder an extractor; in it one folder a shard, renamed into place when it is whole.

    A killed run leaves at most a temporary folder behind, which the next run removes; a shard that cannot be read is
    dropped and computed anew. Shards of other extractors, least recently used first, make room for new ones.

    Args:
        key: identity of the extractor (weights, levels, geometry, engine, precision).
        folder: root of the cache, by default ``cache_folder()``.
        cap: bytes that the whole cache may take, by default ``cache_cap()``.
    """

    def __init__(self, key: str, folder: Path | None = None, cap: int | None = None) -> None:
        self.root = folder or cache_folder()
        self.cap = cache_cap() if cap is None else cap
        self._root = self.root / "features"
        self._folder = self._root / key
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlawsmithError(
                f"the feature cache cannot be written at {self._folder} ({error.strerror}): "
                "set FLAWSMITH_CACHE to a writable folder"
            ) from error

    def table(self, hashes: Sequence[str], extract: Callable[[Sequence[int]], Iterable[LevelMaps]]) -> FeatureTable:
        """The features of some images, extracting those that are missing.

        Args:
            hashes: content hash of every image, a row each.
            extract: given the rows that are missing, yields their level maps (channels, height, width), in order.
        """
        known = self._known()
        unique = {content: row for row, content in reversed(list(enumerate(hashes)))}
        wanted = sorted(row for content, row in unique.items() if content not in known)
        if wanted:
            in_use = {known[content][0] for content in unique if content in known}
            self._write(wanted, hashes, extract(wanted), in_use)
            known = self._known()
        folders = sorted({known[content][0] for content in hashes})
        position = {folder: number for number, folder in enumerate(folders)}
        for folder in folders:
            os.utime(folder / _INDEX)
        return FeatureTable(folders, [(position[known[c][0]], known[c][1]) for c in hashes])

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
            known.update({content: (folder, at) for at, content in enumerate(contents)})
        return known

    def _write(self, rows: Sequence[int], hashes: Sequence[str], maps: Iterable[LevelMaps], in_use: set[Path]) -> None:
        for group, levels in _grouped(rows, maps):
            size = sum(level.nbytes for level in levels)
            self._make_room(size, in_use)
            temporary = self._folder / f"{_TEMPORARY}{os.getpid()}-{platform.node()}-{uuid.uuid4().hex}"
            try:
                temporary.mkdir()
                for number, level in enumerate(levels):
                    np.save(temporary / f"level_{number}.npy", level, allow_pickle=False)
                index = {"images": [hashes[row] for row in group], "levels": len(levels)}
                (temporary / _INDEX).write_text(json.dumps(index))
                final = self._folder / uuid.uuid4().hex
                temporary.rename(final)
                in_use.add(final)
            except OSError as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise FlawsmithError(
                    f"features cannot be written to {self._folder} ({error.strerror}): "
                    "free some space or set FLAWSMITH_CACHE to another disk"
                ) from error

    def _make_room(self, size: int, in_use: set[Path]) -> None:
        shards = [index.parent for index in self._root.glob(f"*/*/{_INDEX}")]
        total = sum(_bytes(shard) for shard in shards)
        old = sorted((s for s in shards if s not in in_use), key=_last_use)
        while total + size > self.cap and old:
            shard = old.pop(0)
            total -= _bytes(shard)
            shutil.rmtree(shard, ignore_errors=True)
        if total + size > self.cap:
            raise FlawsmithError(
                f"the features of this dataset need more than the cache's {self.cap / 1e9:.1f} GB in {self._root}: "
                "raise FLAWSMITH_CACHE_GB, or train on smaller images with --set image_size=[...]"
            )


def _grouped(
    rows: Sequence[int], maps: Iterable[LevelMaps]
) -> Iterator[tuple[Sequence[int], list[NDArray[np.float16]]]]:
    held: list[list[NDArray[np.float16]]] = []
    start = 0
    for levels in maps:
        held.append([np.clip(level, -_HALF, _HALF).astype(np.float16) for level in levels])
        if len(held) == SHARD_IMAGES or start + len(held) == len(rows):
            yield rows[start : start + len(held)], [np.stack(level) for level in zip(*held, strict=True)]
            start, held = start + len(held), []


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


def _open(folder: Path) -> list[NDArray[np.float16]]:
    """The levels of a shard, finest first, memory-mapped: (images, channels, height, width) each."""
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
