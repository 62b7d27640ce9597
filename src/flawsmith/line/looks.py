"""What is remembered of images, so that thousands of them need not be read again: a cache, which may be deleted."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.groups import day_taken
from flawsmith.data.splits import content_hash
from flawsmith.runtime.image import ImageArray, decode

FILE = "looks.db"
THUMBNAIL = 224
"""Longer side of a thumbnail, pixels."""
_SIDE = 24
_VERSION = 1
_NEIGHBOURS = 3
_CHUNK = 512
_MOST_COMPARED = 4096
_ASKED_AT_ONCE = 500


@dataclass(frozen=True)
class Look:
    """What is known of an image's content.

    Attributes:
        height, width: of the image, pixels.
        brightness: mean, as a share of full scale.
        sharpness: mean step from a pixel to the next in a small picture of fixed size, as a share of full scale.
        day: on which it was taken, such as ``2026-11-30``; empty where the file does not say.
        bits: a channel.
    """

    height: int
    width: int
    brightness: float
    sharpness: float
    day: str
    bits: int


@dataclass(frozen=True, eq=False)
class Seen:
    """A look with what can be computed from a small picture.

    Attributes:
        look: what is known.
        thumbnail: JPEG.
        vector: (n,) that is near for images that look alike.
    """

    look: Look
    thumbnail: bytes
    vector: NDArray[np.float32]


def see(path: Path, *, max_pixels: int) -> Seen:
    """Look at an image.

    Args:
        path: of the file.
        max_pixels: refuse larger images.

    Raises:
        FlawsmithError: it cannot be read.
    """
    pixels = decode(path, max_pixels=max_pixels)
    full = float(np.iinfo(pixels.dtype).max)
    small = Image.fromarray(_shown(pixels))
    look = Look(
        height=pixels.shape[0],
        width=pixels.shape[1],
        brightness=float(pixels[:: max(1, pixels.shape[0] // 256), :: max(1, pixels.shape[1] // 256)].mean()) / full,
        sharpness=_sharpness(small),
        day=day_taken(path),
        bits=8 * pixels.dtype.itemsize,
    )
    vector = _vector(small)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return Seen(look, stream.getvalue(), vector)


def vector_of(content: bytes, *, max_pixels: int) -> NDArray[np.float32]:
    """The vector of an image file's content, as of `Seen`.

    Raises:
        FlawsmithError: it cannot be read.
    """
    return _vector(Image.fromarray(_shown(decode(content, max_pixels=max_pixels))))


def _shown(pixels: ImageArray) -> NDArray[np.uint8]:
    """In 8 bits, at most 1,024 pixels a side; the values of deep images as shares of their largest."""
    step = max(1, max(pixels.shape[:2]) // 1024)
    few = pixels[::step, ::step]
    if few.dtype == np.uint8:
        return np.ascontiguousarray(few, np.uint8)
    return (few.astype(np.float32) * (255 / max(1, int(few.max())))).astype(np.uint8)


def _sharpness(picture: Image.Image) -> float:
    grey = np.asarray(picture.convert("L").resize((256, 256), Image.Resampling.BILINEAR), np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 510


def _vector(picture: Image.Image) -> NDArray[np.float32]:
    """Colours and fine detail by place, coarsely enough that a part may lie a little elsewhere."""
    colours = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32) / 255
    grey = np.asarray(picture.convert("L").resize((8 * _SIDE, 8 * _SIDE), Image.Resampling.BOX), np.float32) / 255
    steps = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    cells = steps.reshape(_SIDE, 8, _SIDE, 8)
    return np.concatenate([colours.ravel(), 2 * cells.mean(axis=(1, 3)).ravel(), 0.5 * cells.max(axis=(1, 3)).ravel()])


def oddness(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """How unlike the others each image is: the mean distance to its nearest neighbours, in units of the usual one.

    Each number of a vector counts by how little it differs among the images anyway. Of many images, each is compared
    with some thousands of them.

    Args:
        vectors: (n,) of the images.

    Returns:
        (n,), about 1 for a usual image; all 1 where there are fewer than five.

    Example:
        >>> rows = [np.array([0.0, float(x)], np.float32) for x in (1, 2, 3, 4, 5, 40)]
        >>> int(oddness(rows).argmax())
        5
    """
    if len(vectors) < _NEIGHBOURS + 2:
        return np.ones(len(vectors))
    table = np.stack(vectors).astype(np.float32, copy=False)
    table -= np.median(table, axis=0)
    spread = np.median(np.abs(table), axis=0)
    table /= spread + spread.mean() + np.float32(1e-3)
    squares = (table**2).sum(axis=1)
    places = np.arange(0, len(table), -(-len(table) // _MOST_COMPARED))
    others = table[places]
    distances = np.empty(len(table))
    for start in range(0, len(table), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(table)))
        apart = squares[rows, None] + squares[places] - 2 * table[rows] @ others.T
        apart[rows[:, None] == places] = np.inf
        nearest = np.partition(apart, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
        distances[rows] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    return distances / max(float(np.median(distances)), 1e-9)


class Looks:
    """Looks by content, and the content of files by name, size and time, in one SQLite file.

    Safe from several threads. A file that is damaged, or of another version, is made anew.

    Args:
        folder: where `FILE` is, or will be.
        max_pixels: images that are larger cannot be read.
    """

    def __init__(self, folder: Path, *, max_pixels: int) -> None:
        self._path, self.max_pixels = folder / FILE, max_pixels
        self._lock = threading.Lock()
        self._known: dict[str, Look] = {}
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            self._connection = self._made_anew()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            connection.executescript(
                f"""
                DROP TABLE IF EXISTS files; DROP TABLE IF EXISTS looks;
                CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT);
                CREATE TABLE looks (sha256 TEXT PRIMARY KEY, facts TEXT, thumbnail BLOB, vector BLOB);
                PRAGMA user_version = {_VERSION};
                """
            )
        return connection

    def _made_anew(self) -> sqlite3.Connection:
        for path in self._path.parent.glob(f"{FILE}*"):  # its log too, which would bring the damage back
            path.unlink()
        return self._open()

    def _ask(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of an answer; none where the disk is full or the file is damaged, which costs time, not work."""
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                return []
            except sqlite3.ProgrammingError:  # it was closed
                raise
            except sqlite3.DatabaseError:
                self._connection.close()
                self._connection = self._made_anew()
                return []

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._connection.close()

    def sha256(self, path: Path, size: int, mtime_ns: int) -> str:
        """SHA-256 of a file's content, read again only where size or time differ from those remembered.

        Raises:
            FlawsmithError: it cannot be read.
        """
        query = "SELECT sha256 FROM files WHERE path = ? AND size = ? AND mtime_ns = ?"
        for (digest,) in self._ask(query, (str(path), size, mtime_ns)):
            return str(digest)
        digest = content_hash(path)
        self.name(path, size, mtime_ns, digest)
        return digest

    def name(self, path: Path, size: int, mtime_ns: int, sha256: str) -> None:
        """Remember what a file holds."""
        self._ask("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (str(path), size, mtime_ns, sha256))

    def remembered(self, sha256: str) -> Look | None:
        """What is remembered of a content; None: nothing."""
        if sha256 not in self._known:
            for (facts,) in self._ask("SELECT facts FROM looks WHERE sha256 = ?", (sha256,)):
                self._known[sha256] = Look(**json.loads(facts))
        return self._known.get(sha256)

    def vectors(self, contents: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of those contents that are remembered, in the order given."""
        vectors: dict[str, NDArray[np.float32]] = {}
        for start in range(0, len(contents), _ASKED_AT_ONCE):
            some = contents[start : start + _ASKED_AT_ONCE]
            query = f"SELECT sha256, vector FROM looks WHERE sha256 IN ({', '.join('?' * len(some))})"
            by_content = {sha256: np.frombuffer(vector, np.float32) for sha256, vector in self._ask(query, some)}
            vectors |= {sha256: by_content[sha256] for sha256 in some if sha256 in by_content}
        return vectors

    def look(self, path: Path, sha256: str) -> Look:
        """What a file shows, from memory or from the file.

        Raises:
            FlawsmithError: it cannot be read.
        """
        look = self.remembered(sha256)
        return self._remember(path, sha256).look if look is None else look

    def _remember(self, path: Path, sha256: str) -> Seen:
        seen = see(path, max_pixels=self.max_pixels)
        self._known[sha256] = seen.look
        row = (sha256, json.dumps(asdict(seen.look)), seen.thumbnail, seen.vector.astype(np.float32).tobytes())
        self._ask("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?)", row)
        return seen

    def thumbnail(self, path: Path, sha256: str) -> bytes:
        """The thumbnail of a file, JPEG.

        Raises:
            FlawsmithError: it cannot be read.
        """
        for (thumbnail,) in self._ask("SELECT thumbnail FROM looks WHERE sha256 = ?", (sha256,)):
            return bytes(thumbnail)
        return self._remember(path, sha256).thumbnail
